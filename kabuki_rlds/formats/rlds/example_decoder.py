"""Decodes the fields of `tf.train.Example`s written by TFDS into columns.

TFDS writes each episode as one `tf.train.Example`. The step field `observation/state`
becomes the list `steps/observation/state`, with the values of all steps concatenated.
Numbers are int64 or float32 lists. Images, texts and tensors with an `encoding` are lists
of byte strings, one per item. Nested lists (a Sequence within the steps) have their items
in `…/ragged_flat_values` and the lengths of the inner lists in `…/ragged_row_lengths_0`,
`_1`, …. A tensor with two or more unknown dimensions has `…/value` and `…/shape`.
(Source: `example_serializer.py` and `tensor_feature.py` of tensorflow_datasets.)

This module works on NumPy arrays of whole batches of episodes. It does not need
TensorFlow and does not loop over steps.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
from isal import isal_zlib

from kabuki_rlds.data.block import Column, Nested, Ragged, row_splits
from kabuki_rlds.data.schema import BYTES, Field
from kabuki_rlds.errors import DamagedDataError

#: The list types of a `tf.train.Feature`.
ListType = Literal["int64", "float32", "string"]

Encoding = Literal["none", "bytes", "zlib"]

#: Decompressed zlib tensors of unknown shape in one batch may have at most `_MAX_INFLATED` bytes, or `_MAX_RATIO` times
#: their compressed size if that is more.
_MAX_INFLATED = 256 << 20
_MAX_RATIO = 64


@dataclasses.dataclass(frozen=True)
class FeatureLists:
    """The lists of one key in a batch of examples.

    Attributes:
      values: the lists of all examples, concatenated: int64, float32 or `bytes` objects.
      splits: the list of example i is `values[splits[i]:splits[i + 1]]`: int64, (examples + 1,).
    """

    values: np.ndarray
    splits: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """The length of each example's list: int64, (examples,)."""
        return np.diff(self.splits)


@dataclasses.dataclass(frozen=True)
class ExampleField:
    """The storage layout of one field in the examples.

    Attributes:
      path: path of the field, without the leading `steps/`.
      key: key of the field in the example.
      field: dtype, shape and kind of a row of the decoded column.
      in_steps: True if a row is a step, False if a row is an episode.
      item_shape: shape of one item, without the lists that contain it. None marks an unknown dimension.
      list_lengths: fixed length of each list within a row, outermost first. None if the length varies.
      encoding: the `encoding` of the TFDS feature: "none" stores the numbers in lists, "bytes" and "zlib" store
        each item as a byte string.
    """

    path: str
    key: str
    field: Field
    in_steps: bool
    item_shape: tuple[int | None, ...]
    list_lengths: tuple[int | None, ...] = ()
    encoding: Encoding = "none"

    @property
    def _depth(self) -> int:
        """The number of lists that contain an item in the example, including the list of steps."""
        return len(self.list_lengths) + self.in_steps

    @property
    def _is_dynamic(self) -> bool:
        return self.item_shape.count(None) > 1

    @property
    def value_key(self) -> str:
        key = f"{self.key}/value" if self._is_dynamic else self.key
        return f"{key}/ragged_flat_values" if self._depth > 1 else key

    @property
    def _length_keys(self) -> list[str]:
        return [f"{self.key}/ragged_row_lengths_{i}" for i in range(self._depth - 1)]

    @property
    def keys(self) -> dict[str, ListType]:
        """The keys of this field in the example, with their list types."""
        keys: dict[str, ListType] = {self.value_key: self._list_type}
        if self._is_dynamic:
            keys[f"{self.key}/shape"] = "int64"
        return keys | dict.fromkeys(self._length_keys, "int64")

    @property
    def _item_is_bytes(self) -> bool:
        """Whether an item is stored as one byte string."""
        return self.field.kind == "image" or self.encoding != "none"

    @property
    def _list_type(self) -> ListType:
        if self.field.dtype == BYTES or self._item_is_bytes:
            return "string"
        return "int64" if self.field.dtype.kind in "iub" else "float32"

    @property
    def determines_steps(self) -> bool:
        """Whether the number of steps follows from this field. It does not if items have zero elements."""
        return bool(self._length_keys) or self._item_is_bytes or _size(self.item_shape) > 0

    def steps_per_episode(self, lists: Mapping[str, FeatureLists]) -> np.ndarray | None:
        """Returns the number of steps of each example: int64, (examples,), or None unless `determines_steps`.

        Raises:
          DamagedDataError: the number of elements is not a multiple of the size of an item.
        """
        if not self.determines_steps:
            return None
        if self._length_keys:
            return lists[self._length_keys[0]].counts
        counts = lists[self.value_key].counts
        if self._item_is_bytes:
            return counts
        size = _size(self.item_shape)
        if (counts % size).any():
            raise DamagedDataError(
                f"field {self.path!r}: the number of elements is not a multiple of the item size {size}",
                field=self.path,
            )
        return counts // size

    def column(self, lists: Mapping[str, FeatureLists], rows: int) -> Column:
        """Decodes this field in a batch of examples.

        Args:
          lists: key to lists, of the whole batch.
          rows: number of steps in the batch, or of episodes if the field is not `in_steps`.

        Returns:
          a column of `rows` rows. An image is the bytes of its file, a list of images is a ragged row of such bytes.

        Raises:
          DamagedDataError: the lists do not match the feature.
        """
        column = self._column(lists, rows)
        if not isinstance(column, np.ndarray) and not column.is_consistent:
            raise DamagedDataError(
                f"field {self.path!r}: the stored lengths or shapes do not match the number of elements",
                field=self.path,
            )
        return column

    def _column(self, lists: Mapping[str, FeatureLists], rows: int) -> Column:
        lengths = [lists[key].values for key in self._length_keys]
        if not self.in_steps and self.list_lengths:
            # TFDS does not store the length of an episode field's outermost list: count its items.
            outermost = lists[self._length_keys[0]] if lengths else lists[self.value_key]
            size = 1 if lengths or self._item_is_bytes else _size(self.item_shape)
            lengths.insert(0, outermost.counts // max(size, 1))
        if any((level < 0).any() for level in lengths):
            raise DamagedDataError(f"field {self.path!r}: a list has a negative length", field=self.path)
        self._check_counts(lists)
        items = self._items(lists, int(lengths[-1].sum()) if lengths else rows)
        if not lengths:
            return items
        assert isinstance(items, np.ndarray), "lists of ragged items are read by TFDS"
        for level, fixed in zip(lengths, self.list_lengths, strict=True):
            if fixed is not None and (level != fixed).any():
                wrong = int(level[level != fixed][0])
                raise DamagedDataError(
                    f"field {self.path!r}: a list has {wrong} items, expected {fixed} by its feature", field=self.path
                )
        if self.field.kind == "image":
            return Ragged(items, lengths[0][:, None])
        if self.field.is_fixed:
            return items.reshape(rows, *(d for d in self.field.shape if d is not None))
        if self.field.nested:
            return Nested(items, tuple(lengths))
        inner = np.broadcast_to(np.array(items.shape[1:], np.int64), (rows, items.ndim - 1))
        return Ragged(items.reshape(-1), np.column_stack([lengths[0], inner]))

    def _check_counts(self, lists: Mapping[str, FeatureLists]) -> None:
        """Checks that the list lengths of each example agree.

        The check is per example. Checking only the total would let surplus items of one example move to the next.

        Raises:
          DamagedDataError: an example has too many or too few items.
        """
        values = lists[self.value_key].counts
        size = 1 if self._item_is_bytes else _size(self.item_shape)
        items = values // max(size, 1) if self.in_steps or self.list_lengths else np.ones_like(values)
        for outer, inner in itertools.pairwise([*self._length_keys, self.value_key]):
            items = np.diff(row_splits(lists[outer].values)[lists[outer].splits])
            if inner != self.value_key:
                self._check_count(lists[inner].counts, items, "lists")
        if self._item_is_bytes or None not in self.item_shape:
            what = "images" if self.field.kind == "image" else "items" if self._item_is_bytes else "elements"
            self._check_count(values, items * size, what)
        if self._is_dynamic:
            self._check_count(lists[f"{self.key}/shape"].counts, items * len(self.item_shape), "dimensions")

    def _check_count(self, found: np.ndarray, expected: np.ndarray, what: str) -> None:
        wrong = np.flatnonzero(found != expected)
        if len(wrong):
            first = wrong[0]
            raise DamagedDataError(
                f"field {self.path!r}: an episode has {found[first]} {what}, expected {expected[first]}",
                field=self.path,
            )

    def _items(self, lists: Mapping[str, FeatureLists], count: int) -> Column:
        """Returns all items as the rows of one column."""
        found = lists[self.value_key]
        if self.field.kind == "image":
            return found.values
        if self.encoding != "none":
            return self._decode_bytes(found.values, lists)
        values = found.values if found.values.dtype == self.field.dtype else found.values.astype(self.field.dtype)
        if None in self.item_shape:
            shapes = np.array([self._shape_of(n) for n in found.counts], np.int64).reshape(-1, len(self.item_shape))
            return Ragged(values, shapes)
        return values.reshape(count, *(d for d in self.item_shape if d is not None))

    def _decode_bytes(self, values: np.ndarray, lists: Mapping[str, FeatureLists]) -> Column:
        """Returns the items that are stored as the byte strings `values`."""
        if self.encoding == "zlib":
            values = self._decompress(values)
        sizes = np.fromiter(map(len, values), np.int64, len(values))
        itemsize = self.field.dtype.itemsize
        if None not in self.item_shape:
            if (sizes != _size(self.item_shape) * itemsize).any():
                raise DamagedDataError(
                    f"field {self.path!r}: the number of bytes of an item does not match its shape {self.item_shape}",
                    field=self.path,
                )
            elements = _from_bytes(values, self.field.dtype)
            return elements.reshape(len(values), *(d for d in self.item_shape if d is not None))
        if self._is_dynamic:
            shapes = lists[f"{self.key}/shape"].values.reshape(-1, len(self.item_shape))
        else:
            known = _size(self.item_shape)
            unknown = sizes // itemsize // known if known else np.zeros_like(sizes)
            shapes = np.column_stack([unknown if d is None else np.full_like(sizes, d) for d in self.item_shape])
        if (shapes.prod(axis=1) * itemsize != sizes).any():
            raise DamagedDataError(
                f"field {self.path!r}: the number of bytes of an item does not match its shape", field=self.path
            )
        return Ragged(_from_bytes(values, self.field.dtype), shapes)

    def _decompress(self, values: np.ndarray) -> np.ndarray:
        """Decompresses zlib items.

        The decompressed size is limited to the size of the item shape, or to `_MAX_INFLATED` and `_MAX_RATIO` if the
        shape varies.
        """
        stored = values.tolist()
        if None in self.item_shape:
            limit = left = max(_MAX_INFLATED, _MAX_RATIO * sum(map(len, stored)))
        else:
            limit = _size(self.item_shape) * self.field.dtype.itemsize
            left = limit * len(stored)
        inflated = np.empty(len(stored), object)
        for i, item in enumerate(stored):
            inflater = isal_zlib.decompressobj()
            try:
                # One byte more than the limit, to detect items that are too long.
                data = inflater.decompress(item, min(limit, left) + 1)
            except isal_zlib.IsalError as e:  # type: ignore[misc]  # the stub does not declare it as an exception
                raise DamagedDataError(
                    f"field {self.path!r}: item {i} is not a valid zlib stream ({e})", field=self.path
                ) from e
            left -= len(data)
            if len(data) > limit or left < 0:
                raise DamagedDataError(
                    f"field {self.path!r}: item {i} of {len(item):,} bytes decompresses to more than the {limit:,} "
                    "bytes that its feature allows",
                    field=self.path,
                )
            if not inflater.eof:
                raise DamagedDataError(f"field {self.path!r}: item {i} is a truncated zlib stream", field=self.path)
            inflated[i] = data
        return inflated

    def _shape_of(self, elements: int) -> list[int]:
        """Returns the shape of an item with at most one unknown dimension, from its number of elements."""
        known = _size(self.item_shape)
        return [elements // known if d is None and known else d or 0 for d in self.item_shape]


def _size(shape: tuple[int | None, ...]) -> int:
    return math.prod(d for d in shape if d is not None)


def _from_bytes(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns the elements of all byte strings, concatenated."""
    # Via uint8, because `np.frombuffer` rejects an empty buffer for bfloat16.
    return np.frombuffer(b"".join(values.tolist()), np.uint8).view(dtype)
