"""Blocks of steps as serialized `tf.train.Example`s: the inverse of `example_decoder`.

TFDS encodes a step at a time in Python, some 13,000 small steps a second. Here a
field of all steps of a block is put into the wire format at once, and the record of
an episode is the slices of its fields, end to end. A reader cannot tell the
difference: keys, types of lists and values are those of TFDS's own serializer, which
still does what is not known here (`fallback`).
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from kabuki_rlds.data.block import Block, Column, Nested, Ragged, row_splits
from kabuki_rlds.data.schema import BYTES
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.formats.rlds import feature_layout as rlds_features
from kabuki_rlds.formats.rlds import feature_proto
from kabuki_rlds.formats.rlds.example_decoder import ExampleField, ListType
from kabuki_rlds.formats.rlds.feature_layout import FeatureLeaf
from kabuki_rlds.formats.rlds.feature_proto import FeatureProto
from kabuki_rlds.formats.rlds.tfds_fallback import TfdsWriter
from kabuki_rlds.images.encode import image_files

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

#: Rows of a field, or what stands in the lists that are its rows.
_Items: TypeAlias = np.ndarray | Ragged


class ExampleEncoder:
    """Turns consecutive blocks into the records of their episodes.

    Args:
      features: the features of the dataset. Blocks may have more fields; those are
        left out.

    Raises:
      KabukiError: the features are not those of RLDS.
    """

    def __init__(self, features: tfds.features.FeaturesDict):
        leaves = rlds_features.read(features)
        self._fields = [_FieldEncoder(leaf, leaf.wire) for leaf in leaves if leaf.wire is not None]
        self._keys = [key for field in self._fields if field.in_steps for key in field.keys]
        self._keys += [key for field in self._fields if not field.in_steps for key in field.keys]
        self._slow = TfdsWriter([leaf for leaf in leaves if leaf.wire is None], features)
        self._open: _Episode | None = None

    def encode(self, block: Block) -> Iterator[bytes]:
        """The records of the episodes that ended before the end of the block.

        Raises:
          KabukiError: a value cannot be stored as its feature says.
        """
        # Rows before the first start go on with the episode that is open.
        bounds = np.concatenate([[0], block.starts, [block.num_steps]])
        each = np.arange(block.num_episodes + 1)
        steps = [p for field in self._fields if field.in_steps for p in field.encode(block.steps[field.path], bounds)]
        metadata = [
            p for field in self._fields if not field.in_steps for p in field.encode(block.metadata[field.path], each)
        ]
        for i, (start, stop) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
            if i:
                yield from self.finish()
                self._open = _Episode([[] for _ in steps], [p[i - 1] for p in metadata])
                self._slow.begin(block, i - 1)
            if stop > start:
                # Every source begins with an episode; without one these steps would be lost.
                assert self._open is not None
                for pieces, made in zip(self._open.steps, steps, strict=True):
                    pieces.append(made[i])
                self._slow.add(block, start, stop)

    def finish(self) -> Iterator[bytes]:
        """The record of the episode that is still open, if one is: after the last block, the last."""
        if self._open is None:
            return
        payloads = [pieces[0] if len(pieces) == 1 else b"".join(pieces) for pieces in self._open.steps]
        payloads += self._open.metadata
        self._open = None
        lists = [(key, kind, made) for (key, kind), made in zip(self._keys, payloads, strict=True)]
        yield feature_proto.example(lists, self._slow.end())


@dataclasses.dataclass(frozen=True)
class _Episode:
    """An episode in the making.

    Attributes:
      steps: for each list of its steps, the payloads of its parts, a block each.
      metadata: the payload of each list of its own.
    """

    steps: list[list[bytes]]
    metadata: list[bytes]


class _FieldEncoder:
    """Puts the rows of one field into lists.

    Attributes:
      path: the field's path.
      in_steps: whether a row is a step; else an episode.
      keys: the keys of its lists in an example, and their types, in the order in which `encode` makes them.
    """

    def __init__(self, leaf: FeatureLeaf, wire: ExampleField):
        import tensorflow_datasets as tfds

        self._wire = wire
        self._feature: Any = leaf.feature
        self._classes = leaf.feature.num_classes if isinstance(leaf.feature, tfds.features.ClassLabel) else None
        self._file_format = getattr(leaf.feature, "encoding_format", None) or "png"
        # What an image is says its field; its wire only that it is one byte string.
        self._item_shape = wire.field.shape[-3:] if wire.field.kind == "image" else wire.item_shape
        self._rows_before = 0
        self.path = wire.path
        self.in_steps = wire.in_steps
        self.keys: list[tuple[bytes, ListType]] = [(key.encode(), kind) for key, kind in wire.keys.items()]
        self._has_shapes = f"{wire.key}/shape" in wire.keys

    def encode(self, column: Column, at: np.ndarray) -> list[FeatureProto]:
        """The lists of several episodes, whose rows begin at `at`: int64, (episodes + 1,)."""
        levels, items = _without_lists(column, len(self._wire.list_lengths))
        self._check_shapes(items, levels)
        lengths = []
        for depth, level in enumerate(levels):
            fixed = self._wire.list_lengths[depth]
            if fixed is not None and (level != fixed).any():
                raise self._error(int(np.flatnonzero(level != fixed)[0]), levels[:depth], f"is no list of {fixed}")
            # TFDS leaves out the length of an episode's outermost list.
            if depth or self.in_steps:
                lengths.append(feature_proto.integers(level, at))
            at = row_splits(level)[at]
        shapes = []
        if self._has_shapes:
            shape = items.shapes if isinstance(items, Ragged) else np.tile(items.shape[1:], (len(items), 1))
            shapes.append(feature_proto.integers(shape.reshape(-1), at * shape.shape[1]))
        made = [self._items(items, at, levels), *shapes, *lengths]
        self._rows_before += len(column)
        return made

    def _check_shapes(self, items: _Items, levels: list[np.ndarray]) -> None:
        """Holds items whose shapes vary against what the feature says of them."""
        if isinstance(items, Ragged) and not _are_files(items.values):
            for axis, size in enumerate(self._item_shape):
                wrong = np.flatnonzero(items.shapes[:, axis] != size) if size is not None else np.empty(0)
                if len(wrong):
                    first = int(wrong[0])
                    raise self._error(first, levels, f"is of shape {tuple(items.shapes[first].tolist())}")

    def _items(self, items: _Items, at: np.ndarray, levels: list[np.ndarray]) -> FeatureProto:
        wire = self._wire
        if wire.field.kind == "image":
            if isinstance(items, np.ndarray) and _are_files(items):
                return feature_proto.byte_strings(items.tolist(), at)
            return feature_proto.byte_strings(image_files(_rows(items), self._file_format), at)
        if wire.encoding == "bytes" and isinstance(items, np.ndarray):
            return feature_proto.arrays_as_bytes(items, at)
        if wire.encoding != "none":
            raw = [row.tobytes() for row in _rows(items)]
            return feature_proto.byte_strings([zlib.compress(r) for r in raw] if wire.encoding == "zlib" else raw, at)
        if isinstance(items, Ragged):
            elements, at = items.values, items.splits[at]
        else:
            at = at * int(np.prod(items.shape[1:], dtype=np.int64))
            elements = items.reshape(-1)
        if wire.field.dtype == BYTES:
            return feature_proto.byte_strings(elements.tolist(), at)
        if elements.dtype.kind in "iub":
            self._check_labels(elements, levels)
            return feature_proto.integers(elements, at)
        return feature_proto.floats(self._as_float32(elements, items, levels), at)

    def _as_float32(self, values: np.ndarray, items: _Items, levels: list[np.ndarray]) -> np.ndarray:
        if values.dtype.itemsize <= 4:
            return values
        with np.errstate(over="ignore", invalid="ignore"):
            kept = values.astype(np.float32)
            lost = np.flatnonzero((kept != values) & ~(np.isnan(values) & np.isnan(kept)))
        if not len(lost):
            return kept
        splits = items.splits if isinstance(items, Ragged) else np.arange(len(items) + 1) * (len(values) // len(items))
        item = int(np.searchsorted(splits, lost[0], "right")) - 1
        raise self._error(
            item,
            levels,
            f"holds {values[lost[0]]!r}, but TFDS stores {values.dtype.name} as float32, which cannot; "
            "give the feature encoding='bytes', or delete the attribute 'features', and it is given it",
        )

    def _check_labels(self, values: np.ndarray, levels: list[np.ndarray]) -> None:
        if self._classes is None or not len(values):
            return
        # TFDS takes -1 for "no label".
        unsigned = values.dtype.kind == "u"
        if values.max() >= self._classes or (not unsigned and values.min() < -1):
            wrong = (values >= self._classes) | (values < (0 if unsigned else -1))
            first = int(np.flatnonzero(wrong)[0])
            raise self._error(first, levels, f"holds the label {values[first]}, but there are {self._classes} classes")

    def _error(self, item: int, levels: Sequence[np.ndarray], problem: str) -> KabukiError:
        """An error about the row that an item stands in."""
        for level in reversed(levels):
            item = int(np.searchsorted(row_splits(level), item, "right")) - 1
        what, row = ("step field", "row") if self.in_steps else ("episode field", "episode")
        return KabukiError(f"{what} {self.path!r}: {row} {self._rows_before + item} {problem}")


def _without_lists(column: Column, depth: int) -> tuple[list[np.ndarray], _Items]:
    """Takes the lists within the rows apart.

    Returns:
      for each level the lengths of its lists, outermost first; and all items end to end.
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
    return items.dtype == BYTES


def _rows(items: _Items) -> Sequence[np.ndarray]:
    """Each item as an array."""
    if isinstance(items, np.ndarray):
        return list(items)
    splits = items.splits.tolist()
    shapes = items.shapes.tolist()
    return [items.values[a:b].reshape(s) for a, b, s in zip(splits[:-1], splits[1:], shapes, strict=True)]
