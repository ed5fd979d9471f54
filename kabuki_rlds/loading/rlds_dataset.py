"""A Kabuki file as a `tf.data.Dataset` of RLDS episodes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kabuki_rlds.data.block import Block, concatenate, row_splits
from kabuki_rlds.data.common_schema import common_schema, differences, fit_block
from kabuki_rlds.data.schema import Schema
from kabuki_rlds.errors import InvalidArgumentError, KabukiError
from kabuki_rlds.extras import require
from kabuki_rlds.files.paths import StrPath, local_path, path_list
from kabuki_rlds.formats.hdf5.source import KabukiSource

if TYPE_CHECKING:
    import tensorflow as tf

    from kabuki_rlds.formats.rlds.tfds_elements import Elements


def load(path: StrPath | Sequence[StrPath], *, fields: str | Sequence[str] | None = None) -> tf.data.Dataset:
    """Loads a Kabuki file as RLDS episodes, as TFDS loads the dataset that it came from.

    Elements are dicts `{"steps": tf.data.Dataset, **metadata}`, and those of the steps
    nested dicts of tensors. Their types and shapes are those that TFDS gives: images
    decoded (height, width, channels), text as `tf.string`, lists in lists as
    `tf.RaggedTensor`. A file that holds no TFDS features, made by hand, has those that
    its arrays make: a number a tensor of its dtype, a label int64. What a converter
    derived since the dataset lacks it (`discount`, say) TFDS does not give, and so it
    is left out unless `fields` names it.

    The file is read anew in each iteration, in order, an episode and a few blocks of
    steps at a time. Images that are kept encoded are decoded when their step is read,
    so to pass over steps costs little.

    Args:
      path: a Kabuki file, or several with the same fields, whose episodes follow each
        other.
      fields: the step fields to read: names, or groups of fields such as
        "observation" or "observation/camera"; by default all. Metadata is always read.

    Returns:
      The episodes; its cardinality is their number. A file that turns out damaged as
      it is read raises a `tf.errors.OpError` that has the text of the KabukiError.

    Raises:
      KabukiError: a file cannot be opened or is not whole, files do not fit each other,
        or there is no such field.
    """
    require(
        "load",
        "tensorflow",
        "tensorflow_datasets",
        otherwise="kabuki_rlds.open and load_steps(..., as_numpy=True) do without it",
    )
    import tensorflow as tf

    given = path_list(path)
    if not given:
        raise InvalidArgumentError("no file to load")
    # The working folder may be another one when the files are read.
    paths = [os.path.abspath(local_path(p)) for p in given]
    schema, files = _look_at(paths)
    steps, metadata = _elements(schema, fields, paths[0])

    def groups() -> Iterator[Any]:
        for path, (own, count) in zip(paths, files, strict=True):
            with KabukiSource(path, quiet=True) as source:
                source.check_whole()
                if source.num_episodes != count or differences(own, source.schema, "", ""):
                    raise KabukiError(f"{path}: was changed since it was loaded; load it again")
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

    # AutoGraph would only look for Python loops to convert, for seconds where there are many fields.
    untraced = tf.autograph.experimental.do_not_convert
    bound = tf.TensorSpec([None], tf.int64)
    # Python is called once for many episodes; these are cut in the graph.
    dataset = tf.data.Dataset.from_generator(
        groups, output_signature=(bound, bound, steps.signature, metadata.signature)
    )
    counted = tf.data.experimental.assert_cardinality(sum(count for _, count in files))
    return dataset.prefetch(1).flat_map(untraced(episodes)).apply(counted)


def _steps_dataset(steps: Elements, rows: Any) -> tf.data.Dataset:
    """The steps of one episode, of which `rows` are all."""
    import tensorflow as tf

    if steps.is_plain:
        dataset = tf.data.Dataset.from_tensor_slices(steps.element(rows))
    else:
        element = tf.autograph.experimental.do_not_convert(steps.element)
        threads = tf.data.AUTOTUNE if steps.decodes else None
        dataset = tf.data.Dataset.from_tensor_slices(rows).map(element, num_parallel_calls=threads)
    # To search for a faster pipeline, anew in each episode that is iterated over, would take most of the time.
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    options.autotune.enabled = False
    return dataset.with_options(options)


def _look_at(paths: Sequence[str]) -> tuple[Schema, list[tuple[Schema, int]]]:
    """The schema of all files, and the schema of each and how many episodes it has."""
    files = []
    for path in paths:
        with KabukiSource(path) as source:
            source.check_whole()
            files.append((source.schema, source.num_episodes))
    return common_schema([schema for schema, _ in files], paths), files


def _elements(schema: Schema, fields: str | Sequence[str] | None, path: str) -> tuple[Elements, Elements]:
    """What the elements of the steps are made of, and those of the episodes."""
    from kabuki_rlds.formats.rlds.infer_features import features_of
    from kabuki_rlds.formats.rlds.tfds_elements import Elements

    chosen = None
    if fields is not None:
        chosen = schema.select(fields, path)
        if not schema.features:
            # TFDS need not have a feature for what is not read.
            schema = dataclasses.replace(schema, steps={name: schema.steps[name] for name in chosen})
    try:
        features = features_of(schema)
    except KabukiError as e:
        raise e.within(path) from e
    steps = Elements(features, schema.steps, in_steps=True, chosen=chosen)
    return steps, Elements(features, schema.metadata, in_steps=False)


def _whole_episodes(blocks: Iterator[Block]) -> Iterator[Block]:
    """The same steps in blocks that end where an episode does."""
    pieces: list[Block] = []
    for block in blocks:
        if not block.num_episodes:
            pieces.append(block)
            continue
        # The last episode may go on in the next block.
        row, episode = int(block.starts[-1]), block.num_episodes - 1
        whole = _joined([*pieces, block.part(slice(0, row), slice(0, episode))])
        pieces = [block.part(slice(row, block.num_steps), slice(episode, None))]
        if whole.num_episodes:
            yield whole
    if any(piece.num_episodes for piece in pieces):
        yield _joined(pieces)


def _joined(blocks: Sequence[Block]) -> Block:
    """Blocks that follow each other, as one."""
    rows = row_splits(np.array([block.num_steps for block in blocks], np.int64))
    return Block(
        {path: concatenate([block.steps[path] for block in blocks]) for path in blocks[0].steps},
        int(rows[-1]),
        np.concatenate([block.starts + row for block, row in zip(blocks, rows[:-1], strict=True)]),
        {path: concatenate([block.metadata[path] for block in blocks]) for path in blocks[0].metadata},
    )
