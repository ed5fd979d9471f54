"""A Kabuki file as a `tf.data.Dataset` of RLDS episodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kabuki_rlds.data.block import Block, concatenate, row_splits
from kabuki_rlds.data.common_schema import common_schema, differences, fit_block
from kabuki_rlds.data.schema import Schema
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.extras import require
from kabuki_rlds.files.paths import StrPath, absolute_paths
from kabuki_rlds.formats.hdf5.source import KabukiSource
from kabuki_rlds.loading.ahead import ahead
from kabuki_rlds.loading.table import changed

if TYPE_CHECKING:
    import tensorflow as tf

    from kabuki_rlds.formats.rlds.tfds_elements import Elements


def load(path: StrPath | Sequence[StrPath], *, fields: str | Sequence[str] | None = None) -> tf.data.Dataset:
    """Loads Kabuki files as a `tf.data.Dataset` of RLDS episodes, with the element spec of TFDS.

        for episode in kabuki_rlds.load("hopper.hdf5"):
            for step in episode["steps"]:
                print(step["observation"], step["action"])

    An element is a dict `{"steps": tf.data.Dataset, **metadata}`. A step is a nested dict
    of tensors, with the dtypes and shapes that TFDS gives for the source dataset: images
    are decoded to (height, width, channels), text is `tf.string`, and nested lists are
    `tf.RaggedTensor`. If the file has no TFDS features, they are inferred from the arrays:
    numbers keep their dtype, labels are int64. A field that `convert` derived because the
    source did not have it (for example `discount`) is not returned, as in TFDS, unless
    `fields` names it.

    Each iteration reads the file from the beginning, a few blocks of steps at a time.
    Encoded images are decoded when their step is read, so skipping steps is cheap.

    Args:
      path: a Kabuki file, or several with the same fields. Episodes keep the order of the files.
      fields: the step fields to read: paths, or groups such as "observation" or
        "observation/camera"; None reads all. Episode metadata is always read.

    Returns:
      A dataset of the episodes. Its cardinality is the number of episodes. A damaged file
      raises `tf.errors.OpError` with the text of the KabukiError during the iteration.

    Raises:
      KabukiError: a file cannot be opened or is incomplete, the fields of the files
        differ, or `fields` names a field that does not exist.
    """
    require(
        "load",
        "tensorflow",
        "tensorflow_datasets",
        otherwise="kabuki_rlds.open and load_steps(..., as_numpy=True) work without it",
    )
    import tensorflow as tf

    paths = absolute_paths(path, "path")
    schema, files = _schemas_of(paths)
    steps, metadata = _elements(schema, fields, paths[0])

    def groups() -> Generator[Any, None, None]:
        for path, (own, count) in zip(paths, files, strict=True):
            with KabukiSource(path, quiet=True) as source:
                source.check_complete()
                if source.num_episodes != count or differences(own, source.schema, "", ""):
                    raise changed(path, "load")
                blocks = (fit_block(block, schema) for block in source.blocks(steps.signature, with_metadata=True))
                for block in _whole_episodes(blocks):
                    bounds = np.append(block.starts, block.num_steps)
                    yield bounds[:-1], bounds[1:], steps.parts(block.steps), metadata.parts(block.metadata)

    def episodes(starts: tf.Tensor, stops: tf.Tensor, step_parts: Any, metadata_parts: Any) -> tf.data.Dataset:
        rows = steps.rows(step_parts)

        def episode(start: tf.Tensor, stop: tf.Tensor, metadata_row: Any) -> dict[str, Any]:
            part = tf.nest.map_structure(lambda column: column[start:stop], rows)
            return {"steps": _steps_dataset(steps, part), **metadata.element(metadata_row)}

        return tf.data.Dataset.from_tensor_slices((starts, stops, metadata.rows(metadata_parts))).map(untraced(episode))

    # There are no Python loops to convert, and AutoGraph takes seconds to find that out if there are many fields.
    untraced = tf.autograph.experimental.do_not_convert
    bound = tf.TensorSpec([None], tf.int64)
    # Python returns many episodes per call; the graph splits them.
    dataset = tf.data.Dataset.from_generator(
        lambda: ahead(groups()), output_signature=(bound, bound, steps.signature, metadata.signature)
    )
    counted = tf.data.experimental.assert_cardinality(sum(count for _, count in files))
    return dataset.prefetch(1).flat_map(untraced(episodes)).apply(counted)


def _steps_dataset(steps: Elements, rows: Any) -> tf.data.Dataset:
    """The steps of an episode as a dataset. `rows` has all rows of the episode."""
    import tensorflow as tf

    if steps.is_plain:
        dataset = tf.data.Dataset.from_tensor_slices(steps.element(rows))
    else:
        element = tf.autograph.experimental.do_not_convert(steps.element)
        threads = tf.data.AUTOTUNE if steps.decodes else None
        dataset = tf.data.Dataset.from_tensor_slices(rows).map(element, num_parallel_calls=threads)
    # TensorFlow would optimize the pipeline of every episode, which would take most of the time.
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    options.autotune.enabled = False
    return dataset.with_options(options)


def _schemas_of(paths: Sequence[str]) -> tuple[Schema, list[tuple[Schema, int]]]:
    """(common schema of the files, (schema, number of episodes) of each file)."""
    files = []
    for path in paths:
        with KabukiSource(path) as source:
            source.check_complete()
            files.append((source.schema, source.num_episodes))
    return common_schema([schema for schema, _ in files], paths), files


def _elements(schema: Schema, fields: str | Sequence[str] | None, path: str) -> tuple[Elements, Elements]:
    """The `Elements` of the steps and of the episodes."""
    from kabuki_rlds.formats.rlds.infer_features import features_of
    from kabuki_rlds.formats.rlds.tfds_elements import Elements

    chosen = None
    if fields is not None:
        chosen = schema.select(fields, path)
        if not schema.features:
            # A field that is not read may have a type that TFDS has no feature for.
            schema = dataclasses.replace(schema, steps={name: schema.steps[name] for name in chosen})
    try:
        features = features_of(schema)
    except KabukiError as e:
        raise e.within(path) from e
    steps = Elements(features, schema.steps, in_steps=True, chosen=chosen)
    return steps, Elements(features, schema.metadata, in_steps=False)


def _whole_episodes(blocks: Iterator[Block]) -> Iterator[Block]:
    """Regroups blocks so that each block ends where an episode ends."""
    pieces: list[Block] = []
    for block in blocks:
        if not block.num_episodes:
            pieces.append(block)
            continue
        # The last episode may continue in the next block.
        row, episode = int(block.starts[-1]), block.num_episodes - 1
        whole = _concatenate([*pieces, block.part(slice(0, row), slice(0, episode))])
        pieces = [block.part(slice(row, block.num_steps), slice(episode, None))]
        if whole.num_episodes:
            yield whole
    if any(piece.num_episodes for piece in pieces):
        yield _concatenate(pieces)


def _concatenate(blocks: Sequence[Block]) -> Block:
    """Concatenates consecutive blocks."""
    rows = row_splits(np.array([block.num_steps for block in blocks], np.int64))
    return Block(
        {path: concatenate([block.steps[path] for block in blocks]) for path in blocks[0].steps},
        int(rows[-1]),
        np.concatenate([block.starts + row for block, row in zip(blocks, rows[:-1], strict=True)]),
        {path: concatenate([block.metadata[path] for block in blocks]) for path in blocks[0].metadata},
    )
