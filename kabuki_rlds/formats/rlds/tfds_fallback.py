"""Decodes and encodes, with TFDS itself, the fields that `example_decoder` and `example_encoder` do not support.

TFDS is slower. It gets only the features of these fields, so the other fields stay fast.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kabuki_rlds.data.block import Block, Column, Nested, Ragged, row_splits
from kabuki_rlds.data.schema import BYTES, Field, has_shape
from kabuki_rlds.errors import DamagedDataError, KabukiError, one_line
from kabuki_rlds.formats.rlds.feature_layout import STEPS, FeatureLeaf, is_list, sequence_length, without_dataset
from kabuki_rlds.images.damage import DamagedImageError, check_files


@dataclasses.dataclass(frozen=True)
class Decoded:
    """The decoded fields of a batch of episodes.

    Attributes:
      steps: path to column, one row per step.
      metadata: path to column, one row per episode.
      lengths: number of steps of each episode: int64, (episodes,). None if no step field was decoded.
    """

    steps: dict[str, Column]
    metadata: dict[str, Column]
    lengths: np.ndarray | None


class TfdsReader:
    """Decodes fields of serialized episodes with TFDS.

    Args:
      leaves: the fields to decode.
      features: the features of the dataset.
    """

    def __init__(self, leaves: Sequence[FeatureLeaf], features: Any):
        self._leaves = leaves
        self._features = _select_features(leaves, features)
        self._images = [leaf for leaf in leaves if leaf.field.kind == "image"]

    def __bool__(self) -> bool:
        return bool(self._leaves)

    def read(self, records: np.ndarray) -> Decoded:
        """Decodes a batch of serialized `tf.train.Example`s.

        Raises:
          KabukiError: TFDS cannot decode an episode, or an image file is damaged or too large.
        """
        rows: dict[tuple[bool, str], list[Any]] = {(leaf.in_steps, leaf.path): [] for leaf in self._leaves}
        lengths = []
        for record in records:
            try:
                self._check_images(record)
                lengths.append(self._decode(record, rows))
            except KabukiError:
                raise
            except Exception as e:
                paths = ", ".join(repr(leaf.path) for leaf in self._leaves)
                raise DamagedDataError(f"TFDS cannot decode an episode's {paths}: {one_line(e)}") from e
        columns = {
            (leaf.in_steps, leaf.path): _column(rows[leaf.in_steps, leaf.path], leaf.field, leaf.path)
            for leaf in self._leaves
        }
        return Decoded(
            {path: column for (in_steps, path), column in columns.items() if in_steps},
            {path: column for (in_steps, path), column in columns.items() if not in_steps},
            np.array(lengths, np.int64) if STEPS in self._features else None,
        )

    def _check_images(self, record: bytes) -> None:
        """Checks the image files of a record, because TFDS decodes images of any size."""
        import tensorflow as tf

        if not self._images:
            return
        features = tf.train.Example.FromString(record).features.feature
        for leaf in self._images:
            key = f"{STEPS}/{leaf.path}" if leaf.in_steps else leaf.path
            for each in (key, f"{key}/ragged_flat_values"):
                if each in features:
                    try:
                        check_files(features[each].bytes_list.value, leaf.field.shape, decodes=True)
                    except DamagedImageError as e:
                        raise KabukiError(f"field {leaf.path!r}: {e}") from e

    def _decode(self, record: bytes, rows: dict[tuple[bool, str], list[Any]]) -> int:
        """Appends the rows of one episode to `rows`, and returns the number of its steps."""
        episode = self._features.deserialize_example(record)
        steps = episode.pop(STEPS, ())
        for path, value in _flatten(episode):
            rows[False, path].append(value)
        count = 0
        for step in steps:
            count += 1
            for path, value in _flatten(step):
                rows[True, path].append(value)
        return count


class TfdsWriter:
    """Encodes fields of episodes with TFDS.

    Call `begin` for each episode, then `add` for its steps, then `end` for the result.

    Args:
      leaves: the fields to encode.
      features: the features of the dataset.
    """

    def __init__(self, leaves: Sequence[FeatureLeaf], features: Any):
        import tensorflow_datasets as tfds

        self._leaves = leaves
        self._features = _select_features(leaves, features)
        self._serializer = tfds.core.ExampleSerializer(self._features.get_serialized_info())
        self._rows: dict[tuple[bool, str], list[Any]] = {}

    def begin(self, block: Block, episode: int) -> None:
        """Begins an episode. `episode` counts the episodes that begin in `block`, from 0."""
        self._rows = {
            (leaf.in_steps, leaf.path): []
            if leaf.in_steps
            else _encodable_rows(block.metadata[leaf.path][episode : episode + 1], leaf)
            for leaf in self._leaves
        }

    def add(self, block: Block, start: int, stop: int) -> None:
        """Adds the rows `start` to `stop` of a block to the steps of the episode."""
        for leaf in self._leaves:
            if leaf.in_steps:
                self._rows[True, leaf.path] += _encodable_rows(block.steps[leaf.path][start:stop], leaf)

    def end(self) -> bytes:
        """Ends the episode, and returns its serialized entries for the map of features of a `tf.train.Example`.

        Raises:
          KabukiError: TFDS cannot encode a value.
        """
        if not self._leaves:
            return b""
        episode = {
            name: _nest_rows(feature.feature, "", self._rows, in_steps=True)
            if name == STEPS
            else _nest_rows(feature, name, self._rows, in_steps=False)
            for name, feature in self._features.items()
        }
        try:
            example = self._serializer.get_tf_example(self._features.encode_example(episode))
        except Exception as e:
            paths = ", ".join(repr(leaf.path) for leaf in self._leaves)
            raise KabukiError(f"TFDS cannot encode an episode's {paths}: {one_line(e)}") from e
        entries: bytes = example.features.SerializeToString()
        return entries


def _encodable_rows(column: Column, leaf: FeatureLeaf) -> list[Any]:
    """Returns the rows of a column in the form that TFDS encodes: arrays, or lists of lists of arrays."""
    if isinstance(column, Nested):
        items = list(column.values)
        for lengths in reversed(column.lengths):
            splits = row_splits(lengths).tolist()
            items = [items[a:b] for a, b in itertools.pairwise(splits)]
        return items
    values = column if isinstance(column, np.ndarray) else column.values
    if values.dtype == np.float64 and _is_stored_as(leaf.feature, np.float64):
        with np.errstate(over="ignore", invalid="ignore"):
            lost = (values.astype(np.float32) != values) & ~np.isnan(values)
        if lost.any():
            raise KabukiError(
                f"field {leaf.path!r}: has the value {values[lost][0]!r}, which TFDS would round: it stores float64 as "
                "float32; store the field as float32"
            )
    if isinstance(column, np.ndarray):
        return [np.asarray(row, column.dtype) for row in column]
    splits = column.splits.tolist()
    rows = zip(itertools.pairwise(splits), column.shapes.tolist(), strict=True)
    return [values[a:b].reshape(shape) for (a, b), shape in rows]


def _is_stored_as(feature: Any, dtype: type[np.generic]) -> bool:
    stored = feature.get_serialized_info()
    return not isinstance(stored, dict) and stored.np_dtype == dtype


def _nest_rows(feature: Any, path: str, rows: dict[tuple[bool, str], list[Any]], in_steps: bool) -> Any:
    """Returns the rows of step fields, or the row of episode fields, nested in dicts like the feature at `path`."""
    import tensorflow_datasets as tfds

    if (in_steps, path) in rows:
        found = rows[in_steps, path]
        return found if in_steps else found[0]
    inner = feature
    while not isinstance(inner, tfds.features.FeaturesDict):
        inner = inner.feature
    return {name: _nest_rows(f, f"{path}/{name}" if path else name, rows, in_steps) for name, f in inner.items()}


def _select_features(leaves: Sequence[FeatureLeaf], features: Any) -> Any:
    """Returns the features of a dataset, reduced to some leaves."""
    import tensorflow_datasets as tfds

    in_steps = {leaf.path for leaf in leaves if leaf.in_steps}
    of_episode = {leaf.path for leaf in leaves if not leaf.in_steps}
    chosen = {}
    if in_steps:
        chosen[STEPS] = tfds.features.Dataset(_reduce_dict(features[STEPS].feature, in_steps, ""))
    for name, feature in features.items():
        if name != STEPS:
            kept = _reduce_feature(feature, of_episode, name)
            if kept is not None:
                chosen[name] = kept
    return tfds.features.FeaturesDict(chosen)


def _reduce_feature(feature: Any, paths: set[str], path: str) -> Any:
    """Returns the feature at `path`, reduced to the leaves in `paths`. None if it contains none of them."""
    import tensorflow_datasets as tfds

    # TFDS decodes a Sequence to a tensor, and a Dataset to a `tf.data.Dataset`.
    feature = without_dataset(feature)
    if path in paths:
        return feature
    if isinstance(feature, tfds.features.FeaturesDict):
        return _reduce_dict(feature, paths, path) or None
    if is_list(feature):
        inner = _reduce_feature(feature.feature, paths, path)
        return None if inner is None else tfds.features.Sequence(inner, sequence_length(feature))
    return None


def _reduce_dict(features: Any, paths: set[str], path: str) -> dict[str, Any]:
    kept = {}
    for name, feature in features.items():
        inner = _reduce_feature(feature, paths, f"{path}/{name}" if path else name)
        if inner is not None:
            kept[name] = inner
    return kept


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (path, value) of each leaf of nested dicts. Names may contain slashes."""
    for name, inner in tree.items():
        path = f"{prefix}{name}"
        if isinstance(inner, dict):
            yield from _flatten(inner, f"{path}/")
        else:
            yield path, inner


def _column(rows: list[Any], field: Field, path: str) -> Column:
    """Joins decoded rows (tensors or ragged tensors) to a column."""
    import tensorflow as tf

    if field.nested:
        depth = field.nested
        ragged = [
            r if isinstance(r, tf.RaggedTensor) else tf.RaggedTensor.from_tensor(r, ragged_rank=depth - 1) for r in rows
        ]
        shape = tuple(d for d in field.shape[depth:] if d is not None)
        levels: list[list[np.ndarray]] = [[] for _ in range(depth)]
        values = []
        for row in ragged:
            levels[0].append(np.array([int(row.nrows())], np.int64))
            for level, lengths in zip(levels[1:], row.nested_row_lengths(), strict=False):
                level.append(lengths.numpy().astype(np.int64))
            found = row.flat_values.numpy()
            # In a row without items, TFDS loses the item shape.
            values.append(found if found.size else found.reshape(0, *shape))
            _check_shape(values[-1].shape[1:], shape, path)
        items = [v.astype(field.dtype, copy=False) for v in values]
        return Nested(
            np.concatenate([np.empty((0, *shape), field.dtype), *items]),
            tuple(np.concatenate([np.zeros(0, np.int64), *level]) for level in levels),
        )
    arrays = []
    for row in rows:
        value = row.to_tensor() if isinstance(row, tf.RaggedTensor) else row
        array = np.asarray(value.numpy())
        if array.shape == (0,):
            # In an empty list, TFDS loses the item shape.
            array = array.reshape(0, *(d or 0 for d in field.shape[1:]))
        _check_shape(array.shape, field.shape, path)
        arrays.append(array.astype(field.dtype, copy=False) if field.dtype != BYTES else array.astype(object))
    if field.is_fixed:
        shape = tuple(d for d in field.shape if d is not None)
        return np.stack(arrays) if arrays else np.empty((0, *shape), field.dtype)
    shapes = np.array([a.shape for a in arrays], np.int64).reshape(len(arrays), len(field.shape))
    flat = [a.reshape(-1) for a in arrays]
    return Ragged(np.concatenate([np.empty(0, field.dtype), *flat]), shapes)


def _check_shape(found: tuple[int, ...], stated: tuple[int | None, ...], path: str) -> None:
    if not has_shape(found, stated):
        raise DamagedDataError(f"field {path!r}: has shape {found}, expected {stated} by its feature", field=path)
