"""How TFDS lays a feature out in `tf.train.Example`, read back as columns.

TFDS writes an episode as one `tf.train.Example`. A leaf `observation/state` of its
steps becomes the list `steps/observation/state`, all steps end to end. Numbers
are int64 or float32 lists; images, text and tensors with an `encoding` are lists
of bytes, one for each item. Lists in lists (a Sequence within the steps) have
their items in `…/ragged_flat_values` and the lengths of the inner lists in
`…/ragged_row_lengths_0`, `_1`, …; a tensor with two or more unknown dimensions
has `…/value` and `…/shape`. (Source: `example_serializer.py` and
`tensor_feature.py` of tensorflow_datasets.)

Nothing here needs TensorFlow: what is read are NumPy arrays of whole batches of
episodes, and nothing loops over steps.
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

#: The three kinds of list that a `tf.train.Feature` can be.
ListType = Literal["int64", "float32", "string"]

Encoding = Literal["none", "bytes", "zlib"]

#: Tensors of unknown shape in the episodes of a batch unpack to no more bytes than this, or than so many times what
#: is stored.
_MAX_INFLATED = 256 << 20
_MAX_RATIO = 64


@dataclasses.dataclass(frozen=True)
class FeatureLists:
    """One key of a batch of examples.

    Attributes:
      values: the lists of all examples end to end: int64, float32 or `bytes` objects.
      splits: where the list of each example begins, and the end: int64, (examples + 1,).
    """

    values: np.ndarray
    splits: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        return np.diff(self.splits)


@dataclasses.dataclass(frozen=True)
class ExampleField:
    """How one field stands in the examples.

    Attributes:
      path: the field's path, without the leading `steps/`.
      key: the field's key in the example.
      field: what a row of the decoded column is.
      in_steps: a row is a step; else a row is an episode.
      item_shape: shape of one item, the lists around it taken off.
      list_lengths: for each list within a row, outermost first, its fixed length
        or None.
      encoding: how an item is put into bytes; "none" for numbers in lists.
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
        """How many lists stand around an item in the example, that of the steps included."""
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
        """The keys of the example that this reads, with the type of each list."""
        keys: dict[str, ListType] = {self.value_key: self._list_type}
        if self._is_dynamic:
            keys[f"{self.key}/shape"] = "int64"
        return keys | dict.fromkeys(self._length_keys, "int64")

    @property
    def _item_is_bytes(self) -> bool:
        """Whether an item is one byte string, whatever it decodes to."""
        return self.field.kind == "image" or self.encoding != "none"

    @property
    def _list_type(self) -> ListType:
        if self.field.dtype == BYTES or self._item_is_bytes:
            return "string"
        return "int64" if self.field.dtype.kind in "iub" else "float32"

    @property
    def tells_steps(self) -> bool:
        """Whether it says how many steps an episode has, which items without elements do not."""
        return bool(self._length_keys) or self._item_is_bytes or _size(self.item_shape) > 0

    def steps_per_episode(self, lists: Mapping[str, FeatureLists]) -> np.ndarray | None:
        """How many steps each example has, by this field: int64, (examples,).

        None where the field does not tell.
        """
        if not self.tells_steps:
            return None
        if self._length_keys:
            return lists[self._length_keys[0]].counts
        counts = lists[self.value_key].counts
        if self._item_is_bytes:
            return counts
        size = _size(self.item_shape)
        if (counts % size).any():
            raise DamagedDataError(
                f"field {self.path!r}: the number of elements is no multiple of its size, {size}", field=self.path
            )
        return counts // size

    def column(self, lists: Mapping[str, FeatureLists], rows: int) -> Column:
        """The rows of this field in a batch: `rows` steps, or episodes.

        An image is the bytes of its file; a list of images is a ragged row of such.

        Raises:
          KabukiError: the lists do not hold what the features promise.
        """
        column = self._column(lists, rows)
        if not isinstance(column, np.ndarray) and not column.is_consistent:
            raise DamagedDataError(
                f"field {self.path!r}: the lengths or shapes of its items are not those of their elements",
                field=self.path,
            )
        return column

    def _column(self, lists: Mapping[str, FeatureLists], rows: int) -> Column:
        lengths = [lists[key].values for key in self._length_keys]
        if not self.in_steps and self.list_lengths:
            # The length of an episode's outermost list is not written: count its items.
            outermost = lists[self._length_keys[0]] if lengths else lists[self.value_key]
            size = 1 if lengths or self._item_is_bytes else _size(self.item_shape)
            lengths.insert(0, outermost.counts // max(size, 1))
        if any((level < 0).any() for level in lengths):
            raise DamagedDataError(f"field {self.path!r}: the length of a list is less than 0", field=self.path)
        self._check_counts(lists)
        items = self._items(lists, int(lengths[-1].sum()) if lengths else rows)
        if not lengths:
            return items
        assert isinstance(items, np.ndarray), "lists of ragged items are read by TFDS"
        for level, fixed in zip(lengths, self.list_lengths, strict=True):
            if fixed is not None and (level != fixed).any():
                raise DamagedDataError(
                    f"field {self.path!r}: a list has not the length {fixed} that its feature promises", field=self.path
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
        """Refuses an example whose lists are not as long as one another say.

        Each is looked at: what one has too many and the next too few would go from the one to the other.
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
                f"field {self.path!r}: {found[first]} {what} in an episode where {expected[first]} should be",
                field=self.path,
            )

    def _items(self, lists: Mapping[str, FeatureLists], count: int) -> Column:
        """All items end to end, as the rows of a column."""
        found = lists[self.value_key]
        if self.field.kind == "image":
            return found.values
        if self.encoding != "none":
            return self._decoded(found.values, lists)
        values = found.values if found.values.dtype == self.field.dtype else found.values.astype(self.field.dtype)
        if None in self.item_shape:
            shapes = np.array([self._shape_of(n) for n in found.counts], np.int64).reshape(-1, len(self.item_shape))
            return Ragged(values, shapes)
        return values.reshape(count, *(d for d in self.item_shape if d is not None))

    def _decoded(self, values: np.ndarray, lists: Mapping[str, FeatureLists]) -> Column:
        if self.encoding == "zlib":
            values = self._inflated(values)
        sizes = np.fromiter(map(len, values), np.int64, len(values))
        itemsize = self.field.dtype.itemsize
        if None not in self.item_shape:
            if (sizes != _size(self.item_shape) * itemsize).any():
                raise DamagedDataError(
                    f"field {self.path!r}: the bytes of an item are not those of shape {self.item_shape}",
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
                f"field {self.path!r}: the bytes of an item are not those of its shape", field=self.path
            )
        return Ragged(_from_bytes(values, self.field.dtype), shapes)

    def _inflated(self, values: np.ndarray) -> np.ndarray:
        """The items unpacked: no more bytes than their shape has, or, where it varies, than is sensible."""
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
                # One byte more is asked for, so that what is too long shows.
                data = inflater.decompress(item, min(limit, left) + 1)
            except isal_zlib.IsalError as e:  # type: ignore[misc]  # its stub hides that it is an exception
                raise DamagedDataError(
                    f"field {self.path!r}: item {i} is no zlib stream, or a damaged one ({e})", field=self.path
                ) from e
            left -= len(data)
            if len(data) > limit or left < 0:
                raise DamagedDataError(
                    f"field {self.path!r}: item {i} of {len(item):,} bytes unpacks to more than {limit:,}, "
                    "and is not what its feature says",
                    field=self.path,
                )
            if not inflater.eof:
                raise DamagedDataError(
                    f"field {self.path!r}: item {i} is a zlib stream that is cut short", field=self.path
                )
            inflated[i] = data
        return inflated

    def _shape_of(self, elements: int) -> list[int]:
        known = _size(self.item_shape)
        return [elements // known if d is None and known else d or 0 for d in self.item_shape]


def _size(shape: tuple[int | None, ...]) -> int:
    return math.prod(d for d in shape if d is not None)


def _from_bytes(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The elements in byte strings, end to end."""
    # Through uint8: NumPy's frombuffer does not take bfloat16 from an empty buffer.
    return np.frombuffer(b"".join(values.tolist()), np.uint8).view(dtype)
