"""Encodes blocks of steps as serialized `tf.train.Example`s. The inverse of `example_decoder`.

TFDS encodes one step at a time in Python, about 13,000 small steps per second. This module
encodes all steps of a block at once, one field at a time, and joins the slices of the
fields to the record of each episode. Keys, list types and values are the same as those of
TFDS's serializer. `tfds_fallback` encodes the features that this module does not support.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, cast

import numpy as np

from kabuki_rlds.data.block import Block, Column, Nested, Ragged, row_splits
from kabuki_rlds.data.limits import MAX_RECORD_BYTES
from kabuki_rlds.data.schema import BYTES
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.formats.rlds import feature_layout as rlds_features
from kabuki_rlds.formats.rlds import feature_proto
from kabuki_rlds.formats.rlds.example_decoder import ExampleField, ListType
from kabuki_rlds.formats.rlds.feature_layout import FeatureLeaf
from kabuki_rlds.formats.rlds.feature_proto import FeatureProto, Part, StoredBytes
from kabuki_rlds.formats.rlds.tfds_fallback import TfdsWriter
from kabuki_rlds.images.encode import image_files

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

#: How much of the record of an episode is kept in memory while it is encoded.
_MAX_IN_MEMORY = 128 << 20

#: Items end to end: the rows of a field, or the contents of the lists in its rows.
_Items: TypeAlias = np.ndarray | Ragged


class ExampleEncoder:
    """Encodes consecutive blocks as records, one per episode.

    A record is returned in parts. Those after the first 128 MiB are in a temporary file.

    Args:
      features: the features of the dataset. Fields of blocks that have no feature are not encoded.
      folder: the folder of temporary files. None uses the default of the system.

    Raises:
      KabukiError: the features are not RLDS features.
    """

    def __init__(self, features: tfds.features.FeaturesDict, folder: str | os.PathLike[str] | None = None):
        leaves = rlds_features.read(features)
        self._fields = [_FieldEncoder(leaf, leaf.example_field) for leaf in leaves if leaf.example_field is not None]
        self._keys = [key for field in self._fields if field.in_steps for key in field.keys]
        self._keys += [key for field in self._fields if not field.in_steps for key in field.keys]
        self._fallback = TfdsWriter([leaf for leaf in leaves if leaf.example_field is None], features)
        self._folder = folder
        self._open: _OpenEpisode | None = None

    def encode(self, block: Block) -> Iterator[list[Part]]:
        """Encodes a block, and yields the records of the episodes that are now complete.

        An episode is complete when a later block starts the next one. `finish` yields the last one.

        Raises:
          KabukiError: a value cannot be stored with its feature, or an episode is too large for a record.
          OSError: a temporary file cannot be written.
        """
        # Rows before the first start belong to the open episode of the previous block.
        bounds = np.concatenate([[0], block.starts, [block.num_steps]])
        each = np.arange(block.num_episodes + 1)
        steps = [p for field in self._fields if field.in_steps for p in field.encode(block.steps[field.path], bounds)]
        metadata = [
            p for field in self._fields if not field.in_steps for p in field.encode(block.metadata[field.path], each)
        ]
        for i, (start, stop) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
            if i:
                yield from self.finish()
                self._open = _OpenEpisode([[] for _ in steps], [p[i - 1] for p in metadata])
                self._fallback.begin(block, i - 1)
            if stop > start:
                # The first block of every source starts with an episode.
                assert self._open is not None
                for parts, protos in zip(self._open.steps, steps, strict=True):
                    parts.append(self._open.kept(protos[i], self._folder))
                self._fallback.add(block, start, stop)

    def finish(self) -> Iterator[list[Part]]:
        """Yields the record of the open episode, if there is one. Call it after the last block."""
        if self._open is None:
            return
        payloads: list[Sequence[Part]] = [*self._open.steps, *([payload] for payload in self._open.metadata)]
        self._open = None
        lists = [(key, kind, payload) for (key, kind), payload in zip(self._keys, payloads, strict=True)]
        yield feature_proto.example(lists, self._fallback.end())


@dataclasses.dataclass
class _OpenEpisode:
    """The encoded part of an episode that is not complete yet.

    Attributes:
      steps: for each list of step fields, the payloads of each block so far.
      metadata: the payload of each list of episode fields.
    """

    steps: list[list[Part]]
    metadata: list[bytes]
    _nbytes: int = 0
    _file: BinaryIO | None = None

    def kept(self, payload: bytes, folder: str | os.PathLike[str] | None) -> Part:
        """Returns the payload, or writes it to a temporary file if the episode is large.

        Raises:
          KabukiError: the episode is too large for a record.
        """
        self._nbytes += len(payload)
        if self._nbytes > MAX_RECORD_BYTES:
            raise KabukiError(
                f"an episode has a record of more than {MAX_RECORD_BYTES:,} bytes, which TensorFlow cannot read; "
                "divide the episode, or store its images as PNG or JPEG"
            )
        if self._nbytes <= _MAX_IN_MEMORY:
            return payload
        if self._file is None:
            self._file = cast(BinaryIO, tempfile.TemporaryFile(dir=folder))  # noqa: SIM115
        self._file.seek(0, os.SEEK_END)
        stored = StoredBytes(self._file, self._file.tell(), len(payload))
        self._file.write(payload)
        return stored


class _FieldEncoder:
    """Encodes the rows of one field.

    Attributes:
      path: path of the field.
      in_steps: True if a row is a step, False if a row is an episode.
      keys: (key, type) of each list that `encode` returns, in the same order.
    """

    def __init__(self, leaf: FeatureLeaf, example_field: ExampleField):
        import tensorflow_datasets as tfds

        self._example_field = example_field
        self._feature: Any = leaf.feature
        self._classes = leaf.feature.num_classes if isinstance(leaf.feature, tfds.features.ClassLabel) else None
        self._file_format = getattr(leaf.feature, "encoding_format", None) or "png"
        # `item_shape` of an image is (), because it is stored as one byte string.
        field = example_field.field
        self._item_shape = field.shape[-3:] if field.kind == "image" else example_field.item_shape
        self._rows_before = 0
        self.path = example_field.path
        self.in_steps = example_field.in_steps
        self.keys: list[tuple[bytes, ListType]] = [(key.encode(), kind) for key, kind in example_field.keys.items()]
        self._has_shapes = f"{example_field.key}/shape" in example_field.keys

    def encode(self, column: Column, at: np.ndarray) -> list[FeatureProto]:
        """Encodes the rows of several episodes.

        Args:
          column: the rows.
          at: the rows of episode i are `column[at[i]:at[i + 1]]`: int64, (episodes + 1,).

        Returns:
          one `FeatureProto` for each of `keys`.

        Raises:
          KabukiError: a value cannot be stored with the feature.
        """
        levels, items = _without_lists(column, len(self._example_field.list_lengths))
        self._check_shapes(items, levels)
        lengths = []
        for depth, level in enumerate(levels):
            fixed = self._example_field.list_lengths[depth]
            if fixed is not None and (level != fixed).any():
                first = int(np.flatnonzero(level != fixed)[0])
                raise self._error(first, levels[:depth], f"has a list of {level[first]} items, expected {fixed}")
            # TFDS does not store the length of an episode field's outermost list.
            if depth or self.in_steps:
                lengths.append(feature_proto.integers(level, at))
            at = row_splits(level)[at]
        shapes = []
        if self._has_shapes:
            shape = items.shapes if isinstance(items, Ragged) else np.tile(items.shape[1:], (len(items), 1))
            shapes.append(feature_proto.integers(shape.reshape(-1), at * shape.shape[1]))
        protos = [self._encode_items(items, at, levels), *shapes, *lengths]
        self._rows_before += len(column)
        return protos

    def _check_shapes(self, items: _Items, levels: list[np.ndarray]) -> None:
        """Checks the shapes of ragged items against the shape of the feature."""
        if isinstance(items, Ragged) and not _are_files(items.values):
            for axis, size in enumerate(self._item_shape):
                wrong = np.flatnonzero(items.shapes[:, axis] != size) if size is not None else np.empty(0)
                if len(wrong):
                    first = int(wrong[0])
                    shape = tuple(items.shapes[first].tolist())
                    raise self._error(first, levels, f"has shape {shape}, expected {self._item_shape}")

    def _encode_items(self, items: _Items, at: np.ndarray, levels: list[np.ndarray]) -> FeatureProto:
        encoding, field = self._example_field.encoding, self._example_field.field
        if field.kind == "image":
            if isinstance(items, np.ndarray) and _are_files(items):
                return feature_proto.byte_strings(items.tolist(), at)
            return feature_proto.byte_strings(image_files(_rows(items), self._file_format), at)
        if encoding == "bytes" and isinstance(items, np.ndarray):
            return feature_proto.arrays_as_bytes(items, at)
        if encoding != "none":
            raw = [row.tobytes() for row in _rows(items)]
            return feature_proto.byte_strings([zlib.compress(r) for r in raw] if encoding == "zlib" else raw, at)
        if isinstance(items, Ragged):
            elements, at = items.values, items.splits[at]
        else:
            at = at * int(np.prod(items.shape[1:], dtype=np.int64))
            elements = items.reshape(-1)
        if field.dtype == BYTES:
            return feature_proto.byte_strings(elements.tolist(), at)
        if elements.dtype.kind in "iub":
            self._check_labels(elements, levels)
            return feature_proto.integers(elements, at)
        return feature_proto.floats(self._as_float32(elements, items, levels), at)

    def _as_float32(self, values: np.ndarray, items: _Items, levels: list[np.ndarray]) -> np.ndarray:
        """Converts `values` to float32. Raises `KabukiError` if a value changes."""
        if values.dtype.itemsize <= 4:
            return values
        with np.errstate(over="ignore", invalid="ignore"):
            converted = values.astype(np.float32)
            lost = np.flatnonzero((converted != values) & ~(np.isnan(values) & np.isnan(converted)))
        if not len(lost):
            return converted
        splits = items.splits if isinstance(items, Ragged) else np.arange(len(items) + 1) * (len(values) // len(items))
        item = int(np.searchsorted(splits, lost[0], "right")) - 1
        raise self._error(
            item,
            levels,
            f"has the value {values[lost[0]]!r}, which TFDS would round: it stores {values.dtype.name} as float32; "
            "give the feature encoding='bytes', or delete the attribute 'features' to let this package choose the "
            "encoding",
        )

    def _check_labels(self, values: np.ndarray, levels: list[np.ndarray]) -> None:
        if self._classes is None or not len(values):
            return
        # In TFDS, -1 means "no label".
        unsigned = values.dtype.kind == "u"
        if values.max() >= self._classes or (not unsigned and values.min() < -1):
            wrong = (values >= self._classes) | (values < (0 if unsigned else -1))
            first = int(np.flatnonzero(wrong)[0])
            raise self._error(first, levels, f"has the label {values[first]}, but there are {self._classes} classes")

    def _error(self, item: int, levels: Sequence[np.ndarray], problem: str) -> KabukiError:
        """Returns an error that names the row of an item.

        Args:
          item: index of the item, or of a list if `levels` are only its outer levels.
          levels: the lengths of the lists around the item, outermost first.
          problem: predicate of the message, for example "has the label 7".
        """
        for level in reversed(levels):
            item = int(np.searchsorted(row_splits(level), item, "right")) - 1
        what, row = ("step field", "row") if self.in_steps else ("episode field", "episode")
        return KabukiError(f"{what} {self.path!r}: {row} {self._rows_before + item} {problem}")


def _without_lists(column: Column, depth: int) -> tuple[list[np.ndarray], _Items]:
    """Removes `depth` levels of lists from the rows.

    Returns:
      the lengths of the lists of each level, outermost first: int64, (lists,); and all items, concatenated.
    """
    if not depth:
        assert not isinstance(column, Nested)
        return [], column
    if isinstance(column, Nested):
        return list(column.lengths), column.values
    if isinstance(column, Ragged):
        lengths = column.shapes[:, 0]
        inner = column.shapes[:, 1:]
        if not inner.shape[1]:
            return [lengths], column.values
        if len(inner) and (inner == inner[0]).all():
            return [lengths], column.values.reshape(int(lengths.sum()), *inner[0])
        return [lengths], Ragged(column.values, np.repeat(inner, lengths, axis=0))
    levels = []
    count = len(column)
    for length in column.shape[1 : 1 + depth]:
        levels.append(np.full(count, length, np.int64))
        count *= length
    return levels, column.reshape(count, *column.shape[1 + depth :])


def _are_files(items: np.ndarray) -> bool:
    """Returns whether images are encoded files instead of arrays."""
    return items.dtype == BYTES


def _rows(items: _Items) -> Sequence[np.ndarray]:
    """Returns each item as an array."""
    if isinstance(items, np.ndarray):
        return list(items)
    splits = items.splits.tolist()
    shapes = items.shapes.tolist()
    return [items.values[a:b].reshape(s) for a, b, s in zip(splits[:-1], splits[1:], shapes, strict=True)]
