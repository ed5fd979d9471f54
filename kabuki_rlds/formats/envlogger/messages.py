"""Decodes many EnvLogger messages at once into columns.

A message (`Data` in EnvLogger's storage.proto) is an array, a scalar, a list, a tuple, a dict, or empty (None). The
path of a leaf consists of the keys of dicts and the numbers of tuple items: `("pose", "0")`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, TypeAlias

import numpy as np

from kabuki_rlds.data.schema import BYTES
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.formats.envlogger import protobuf
from kabuki_rlds.formats.envlogger.protobuf import Spans
from kabuki_rlds.formats.riegeli.byte_reader import ByteReader, varints

LeafPath: TypeAlias = tuple[str, ...]

#: The numbers of the fields of `Data` and of `Datum`.
_DATUM, _ARRAY, _TUPLE, _DICT = 1, 2, 3, 4
_SHAPE, _VALUES = 1, 2
#: EnvLogger stores this instead of the dimensions of a scalar, to tell it from an array without dimensions.
_SCALAR = (-438,)

#: Number of each field of `Values` with numbers of fixed size, and their dtype.
_FIXED = {1: "<f4", 15: ">f4", 2: "<f8", 11: ">i1", 12: ">i2", 13: ">u1", 14: ">u2"}
#: Number of each field of `Values` with varints, and the dtype of their values.
_VARINTS = {3: np.int32, 4: np.int64, 5: np.uint32, 6: np.uint64, 7: np.bool_}
_TEXT, _BYTES, _INTEGERS = 8, 9, 10


@dataclasses.dataclass(frozen=True)
class MessagePiece:
    """The values of one leaf in some records, all of one dtype and shape.

    Attributes:
      rows: the numbers of the records, ascending: int64, (rows,).
      values: (rows, *shape); None if the value in these records is None.
      lists: how many of the leading dimensions of a value are lists.
    """

    rows: np.ndarray
    values: np.ndarray | None
    lists: int = 0


#: Path to the values of each leaf.
Leaves: TypeAlias = dict[LeafPath, list[MessagePiece]]


def leaves(messages: Spans, structure: Any = None) -> Leaves:
    """Decodes messages.

    Args:
      messages: one `Data` per record.
      structure: nested dicts, lists and tuples, according to the specs. A list here means that each item of the
        message's list is a leaf of its own, as in a tuple. Any other list becomes a dimension.

    Raises:
      ValueError: a message is not EnvLogger's.
      KabukiError: a message cannot be stored in columns.
    """
    found: Leaves = {}
    empty = messages.start == messages.stop
    if empty.any():
        found[()] = [MessagePiece(messages.rows[empty], None)]
    for number, part in protobuf.fields(messages):
        if number == _DATUM:
            _merge(found, (), {(): _data(part)})
        elif number == _ARRAY and not isinstance(structure, list):
            _merge(found, (), _sequences(part))
        elif number in (_ARRAY, _TUPLE):
            for i, item in enumerate(_items(part)):
                _merge(found, (str(i),), leaves(item, _inside(structure, i)))
        elif number == _DICT:
            _merge(found, (), _dicts(part, structure))
        else:
            raise ValueError(f"a message with a field {number}, which EnvLogger's have not")
    return found


def numbers(datums: list[bytes]) -> list[np.ndarray]:
    """Decodes serialized `Datum` messages that hold arrays of numbers."""
    found = []
    for datum in datums:
        data = np.frombuffer(datum, np.uint8)
        pieces = _data(Spans(data, np.zeros(1, np.int64), np.zeros(1, np.int64), np.array([len(data)])))
        found += [piece.values[0] for piece in pieces if piece.values is not None]
    return found


def _merge(into: Leaves, prefix: LeafPath, found: Leaves) -> None:
    for path, pieces in found.items():
        into.setdefault(prefix + path, []).extend(pieces)


def _inside(structure: Any, key: Any) -> Any:
    """Returns the structure of an item of a dict, list or tuple; None if it is not known."""
    try:
        return structure[key]
    except (KeyError, IndexError, TypeError):
        return None


def _items(listed: Spans) -> list[Spans]:
    """Returns the first items of all lists or tuples, the second items, and so on."""
    found = []
    for number, item in protobuf.fields(listed):
        if number != 1:
            raise ValueError("a list with a field that EnvLogger's have not")
        found.append(item)
    return found


def _dicts(dicts: Spans, structure: Any) -> Leaves:
    """Decodes dicts. Their entries may be in another order in each record."""
    found: Leaves = {}
    entries: dict[str, list[Spans]] = {}
    for number, entry in protobuf.fields(dicts):
        if number != 1:
            raise KabukiError("a dict with keys that are no text; it cannot be stored in columns by their names")
        parts = dict(protobuf.fields(entry))
        keys, values = parts.get(1), parts.get(2)
        if keys is None or values is None or len(keys) != len(entry) or len(values) != len(entry):
            raise ValueError("an entry of a dict without its key or value")
        for key, chosen in keys.groups():
            entries.setdefault(key.decode(), []).append(values[chosen])
    for name, parts_of_name in entries.items():
        if "/" in name or not name:
            raise KabukiError(f"a dict with the key {name!r}; in the name of a field, / separates")
        rows = np.concatenate([part.rows for part in parts_of_name])
        order = np.argsort(rows, kind="stable")
        whole = Spans(
            dicts.data,
            rows[order],
            np.concatenate([part.start for part in parts_of_name])[order],
            np.concatenate([part.stop for part in parts_of_name])[order],
        )
        _merge(found, (name,), leaves(whole, _inside(structure, name)))
    return found


def _sequences(lists: Spans) -> Leaves:
    """Decodes lists whose items have the same structure. The list becomes the first dimension of each leaf."""
    items = _items(lists)
    counts = np.zeros(len(lists), np.int64)
    for item in items:
        counts[np.searchsorted(lists.rows, item.rows)] += 1
    found: Leaves = {}
    for count in np.unique(counts).tolist():
        rows = lists.rows[counts == count]
        parts = [item[np.isin(item.rows, rows)] for item in items[:count]]
        _merge(found, (), _stacked([leaves(part) for part in parts], rows, parts))
    return found


def _stacked(columns: list[Leaves], rows: np.ndarray, parts: list[Spans]) -> Leaves:
    """Stacks the items of lists.

    Args:
      columns: the values of the first items, of the second items, and so on.
      rows: the numbers of the records.
      parts: the messages of these items.
    """
    found: Leaves = {}
    for path in dict.fromkeys(path for column in columns for path in column):
        pieces = [piece for column in columns for piece in column.get(path, [])]
        values = [piece.values for piece in pieces if piece.values is not None]
        if len(values) < len(pieces):
            raise KabukiError("a list that holds None")
        if len(values) == len(columns) and len({(part.dtype, part.shape) for part in values}) == 1:
            found[path] = [MessagePiece(rows, np.stack(values, axis=1), pieces[0].lists + 1)]
        elif len(rows) == 1:
            raise KabukiError("a list whose items differ in type or shape")
        else:
            # Items that differ between records may be alike within each record, so each is decoded by itself.
            found = {}
            for row in rows:
                each = [part[part.rows == row] for part in parts]
                _merge(found, (), _stacked([leaves(part) for part in each], np.array([row]), each))
            return found
    return found


def _data(data: Spans) -> list[MessagePiece]:
    """Decodes arrays and scalars."""
    shapes = values = Spans(data.data, data.rows, data.start, data.start)
    for number, part in protobuf.fields(data):
        if number == _SHAPE:
            shapes = part
        elif number == _VALUES:
            values = part
    found = []
    shape_of = np.zeros(len(data), np.int64)
    known: list[tuple[int, ...]] = [()]
    for text, chosen in shapes.groups():
        known.append(_dimensions(text))
        shape_of[np.searchsorted(data.rows, shapes.rows[chosen])] = len(known) - 1
    # An array without elements has no values.
    empty = np.setdiff1d(data.rows, values.rows[values.start < values.stop])
    if len(empty):
        found.append(MessagePiece(empty, None))
    texts: dict[int, list[Spans]] = {}
    for number, part in protobuf.fields(values):
        if number in (_TEXT, _BYTES, _INTEGERS):
            texts.setdefault(number, []).append(part)
            continue
        of_part = shape_of[np.searchsorted(data.rows, part.rows)]
        for index in np.unique(of_part).tolist():
            alike = part[of_part == index]
            found.append(MessagePiece(alike.rows, _numbers(number, alike, known[index])))
    for number, parts in texts.items():
        found += _objects(number, parts, data.rows, shape_of, known)
    return found


def _dimensions(text: bytes) -> tuple[int, ...]:
    """Decodes a `Shape`."""
    dims = []
    reader = ByteReader(text)
    while not reader.is_done:
        if reader.varint() != 2 << 3 | 2:
            raise ValueError("a shape with a field that EnvLogger's have not")
        inner = ByteReader(reader.take(reader.varint()))
        size = 0
        while not inner.is_done:
            if inner.varint() != 1 << 3:
                raise ValueError("a dimension with a field that EnvLogger's have not")
            size = inner.varint()
        dims.append(size - (1 << 64) if size >> 63 else size)
    return tuple(dims)


def _numbers(number: int, part: Spans, dims: tuple[int, ...]) -> np.ndarray:
    """Decodes field `number` of `Values`, for arrays of one shape: (records, *shape)."""
    shape = () if dims == _SCALAR else dims
    count = math.prod(shape)
    if number in _FIXED:
        dtype = np.dtype(_FIXED[number])
        if (part.lengths != count * dtype.itemsize).any():
            raise ValueError(f"an array of shape {shape} with another number of elements")
        values = part.matrix().view(dtype).astype(dtype.newbyteorder("="), copy=False)
    elif number in _VARINTS:
        values = varints(part.flat())
        if len(values) != count * len(part):
            raise ValueError(f"an array of shape {shape} with another number of elements")
        values = values.astype(_VARINTS[number])
    else:
        raise ValueError(f"values of a kind {number}, which EnvLogger's have not")
    return values.reshape(len(part), *shape)


def _objects(
    number: int, parts: list[Spans], rows: np.ndarray, shape_of: np.ndarray, known: list[tuple[int, ...]]
) -> list[MessagePiece]:
    """Decodes text, bytes and Python integers. `parts[i]` has the i-th elements of all arrays."""
    counts = np.zeros(len(rows), np.int64)
    for part in parts:
        counts[np.searchsorted(rows, part.rows)] += 1
    found = []
    for index in np.unique(shape_of[counts > 0]).tolist():
        dims = known[index]
        shape = () if dims == _SCALAR else dims
        chosen = (shape_of == index) & (counts > 0)
        if (counts[chosen] != math.prod(shape)).any():
            raise ValueError(f"an array of shape {shape} with another number of elements")
        of_rows = rows[chosen]
        if number == _INTEGERS:
            if dims != _SCALAR:
                raise ValueError("an array of integers without size, which EnvLogger does not read")
            found.append(MessagePiece(of_rows, _integers(parts[0][np.isin(parts[0].rows, of_rows)])))
            continue
        values = np.empty((len(of_rows), math.prod(shape)), BYTES)
        for i, part in enumerate(parts[: math.prod(shape)]):
            values[:, i] = part[np.isin(part.rows, of_rows)].strings()
        found.append(MessagePiece(of_rows, values.reshape(len(of_rows), *shape)))
    return found


def _integers(part: Spans) -> np.ndarray:
    """Decodes big-endian integers of any size to int64.

    Raises:
      KabukiError: an integer does not fit into 64 bits.
    """
    lengths = part.lengths
    values = np.zeros(len(part), np.int64)
    for length in np.unique(lengths).tolist():
        chosen = lengths == length
        digits = part[chosen].matrix()
        if length > 8:
            sign = np.where(digits[:, -8:-7] & 0x80, 0xFF, 0)
            if (digits[:, :-8] != sign).any():
                raise KabukiError("an integer that 64 bits do not hold")
            digits = digits[:, -8:]
        value = digits[:, 0].view(np.int8).astype(np.int64)
        for i in range(1, digits.shape[1]):
            value = value << 8 | digits[:, i]
        values[chosen] = value
    return values
