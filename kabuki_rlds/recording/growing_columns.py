"""The columns of the current episode, which grow by one row per step.

A column checks that a value matches the field, and copies the value, because
environments reuse their arrays. These two operations are most of the cost of recording
a step. In the common case, an array of the right dtype and shape, the check is one
comparison of each.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from kabuki_rlds.data.block import Column, Ragged
from kabuki_rlds.data.schema import Field, has_shape
from kabuki_rlds.errors import InvalidArgumentError, SchemaMismatchError

#: Name of a dtype to the Python type whose values can be stored without conversion.
_PYTHON_TYPE = {"float64": float, "bool": bool, "int64": int}


class GrowingColumn(Protocol):
    """The column of one field, or the columns of a dict or list of fields."""

    def put(self, row: int, value: Any) -> None:
        """Sets a row. All earlier rows must be set.

        Raises:
          KabukiError: the value does not match the field. The message names the field.
        """

    def pad(self, row: int) -> None:
        """Sets a row to padding: zeros or empty text."""

    def columns(self, rows: int) -> dict[str, Column]:
        """Path to column, with the first `rows` rows. The result may share memory with this object."""


class ArrayColumn:
    """A column of numeric arrays of one shape. The capacity doubles when it is full."""

    def __init__(self, field: Field, path: str, capacity: int = 64):
        self._path = path
        self._dtype = field.dtype
        self._shape = tuple(d or 0 for d in field.shape)
        self._python_type = _PYTHON_TYPE.get(field.dtype.name) if not field.shape else None
        self._rows = np.zeros((capacity, *self._shape), field.dtype)

    def put(self, row: int, value: Any) -> None:
        kind = value.__class__
        if kind is np.ndarray:
            if value.dtype != self._dtype or value.shape != self._shape:
                value = self._fitted(value)
        elif kind is not self._python_type:
            value = self._fitted(value)
        try:
            self._rows[row] = value
        except IndexError:
            self._grow()
            self._rows[row] = value
        except OverflowError:
            raise InvalidArgumentError(f"field {self._path!r}: {value} does not fit {self._dtype.name}") from None

    def pad(self, row: int) -> None:
        if row >= len(self._rows):
            self._grow()
        self._rows[row] = 0

    def columns(self, rows: int) -> dict[str, Column]:
        return {self._path: self._rows[:rows]}

    def _grow(self) -> None:
        rows = np.zeros((2 * len(self._rows), *self._shape), self._dtype)
        rows[: len(self._rows)] = self._rows
        self._rows = rows

    def _fitted(self, value: Any) -> np.ndarray:
        array = exact(value, self._dtype, self._path)
        if array.shape != self._shape:
            raise mismatch(self._path, f"shape {array.shape}", f"shape {self._shape}")
        return array


class VariableColumn:
    """A column of numeric arrays of one rank. Dimensions that are None in the field's shape differ between rows."""

    def __init__(self, field: Field, path: str):
        self._path = path
        self._field = field
        self._values: list[np.ndarray] = []

    def put(self, row: int, value: Any) -> None:
        array = exact(value, self._field.dtype, self._path)
        if not has_shape(array.shape, self._field.shape):
            raise mismatch(self._path, f"shape {array.shape}", self._field.describe())
        del self._values[row:]
        self._values.append(array.copy() if array is value else array)

    def pad(self, row: int) -> None:
        self.put(row, np.zeros([d or 0 for d in self._field.shape], self._field.dtype))

    def columns(self, rows: int) -> dict[str, Column]:
        values = self._values[:rows]
        shapes = np.array([v.shape for v in values], np.int64).reshape(rows, len(self._field.shape))
        flat = [np.empty(0, self._field.dtype), *(v.reshape(-1) for v in values)]
        return {self._path: Ragged(np.concatenate(flat), shapes)}


class TextColumn:
    """A column of text or byte strings, or of arrays of them."""

    def __init__(self, field: Field, path: str):
        self._path = path
        self._shape = field.shape
        self._rank = len(field.shape)
        self._values: list[Any] = []

    def put(self, row: int, value: Any) -> None:
        del self._values[row:]
        if not self._rank:
            self._values.append(_bytes(value, self._path))
            return
        array = np.asarray(value, object)
        if not has_shape(array.shape, self._shape):
            raise mismatch(self._path, f"shape {array.shape}", f"text of shape {self._shape}")
        made = np.empty(array.shape, object)
        for at, text in np.ndenumerate(array):
            made[at] = _bytes(text, self._path)
        self._values.append(made)

    def pad(self, row: int) -> None:
        del self._values[row:]
        self._values.append(np.full([d or 0 for d in self._shape], b"", object) if self._rank else b"")

    def columns(self, rows: int) -> dict[str, Column]:
        values = self._values[:rows]
        if None in self._shape:
            shapes = np.array([v.shape for v in values], np.int64).reshape(rows, self._rank)
            return {self._path: Ragged(np.concatenate([np.empty(0, object), *(v.reshape(-1) for v in values)]), shapes)}
        column = np.empty((rows, *(d or 0 for d in self._shape)), object)
        for row, value in enumerate(values):
            column[row] = value
        return {self._path: column}


def exact(value: Any, dtype: np.dtype, path: str) -> np.ndarray:
    """A value as an array of a dtype, without loss of precision.

    Raises:
      KabukiError: the dtype cannot hold the value exactly.
    """
    array = np.asarray(value)
    if array.dtype == dtype:
        return array
    if array.dtype.kind not in "biufV":
        raise mismatch(path, described(value), dtype.name)
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(dtype)
        same = cast.astype(array.dtype) == array
        if array.dtype.kind in "fV":
            same |= (array != array) & (cast != cast)  # NaN is not equal to itself.
        # Reject integers over 2^53 for float dtypes: near the limits of int64, the cast back may overflow to the same
        # value although the float is different.
        if not same.all() or (dtype.kind == "f" and array.dtype.kind in "iu" and (np.abs(cast) > 2.0**53).any()):
            raise mismatch(path, described(value), f"{dtype.name}, which cannot hold this value")
    return cast


def mismatch(path: str, found: str, expected: str) -> SchemaMismatchError:
    """The error for a value that does not match its field."""
    return SchemaMismatchError(
        f"field {path!r} does not match the recording: got {found}, expected {expected}", fields=(path,)
    )


def _bytes(value: Any, path: str) -> bytes:
    if isinstance(value, bytes):
        return bytes(value)
    if isinstance(value, np.ndarray) and value.shape == ():
        return _bytes(value.item(), path)
    if not isinstance(value, str):
        raise mismatch(path, described(value), "text")
    try:
        return value.encode()
    except UnicodeEncodeError as e:
        raise InvalidArgumentError(f"field {path!r}: text is not valid Unicode ({e}); pass bytes instead") from e


def described(value: Any) -> str:
    """A short description of a value, for error messages: dtype and shape, or type and repr."""
    if isinstance(value, (np.ndarray, np.generic)) and value.size != 1:
        return f"{value.dtype.name} {value.shape}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) < 40 else text[:36] + ' …'}"
