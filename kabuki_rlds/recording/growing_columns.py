"""The columns of an open episode, which grow by a row a step.

A column takes a value, sees to it that it fits the field, and copies it: environments
use their arrays again. That is most of what recording a step costs, so the common
case, an array of the right type and shape, takes one comparison of each.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from kabuki_rlds.data.block import Column, Ragged
from kabuki_rlds.data.schema import Field, has_shape
from kabuki_rlds.errors import InvalidArgumentError, SchemaMismatchError

#: Python's own numbers, which fit a column of this type as they are.
_PYTHON_TYPE = {"float64": float, "bool": bool, "int64": int}


class GrowingColumn(Protocol):
    """The rows of one field, or of a dict or list of fields."""

    def put(self, row: int, value: Any) -> None:
        """Sets a row, of which all before are set.

        Raises:
          KabukiError: the value does not fit the field; it names the field.
        """

    def pad(self, row: int) -> None:
        """Sets a row that means nothing: zeros, or an empty text."""

    def columns(self, rows: int) -> dict[str, Column]:
        """Path to column, of the first rows. They share the memory."""


class ArrayColumn:
    """Numbers of one shape, in an array that doubles when it is full."""

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
            raise misfit(self._path, f"its shape is {array.shape}", f"{self._shape}")
        return array


class VariableColumn:
    """Numbers of one rank, whose shape differs from row to row where the field does not say it."""

    def __init__(self, field: Field, path: str):
        self._path = path
        self._field = field
        self._values: list[np.ndarray] = []

    def put(self, row: int, value: Any) -> None:
        array = exact(value, self._field.dtype, self._path)
        if not has_shape(array.shape, self._field.shape):
            raise misfit(self._path, f"its shape is {array.shape}", self._field.describe())
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
    """Texts and byte strings, alone or in arrays."""

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
            raise misfit(self._path, f"its shape is {array.shape}", f"texts of shape {self._shape}")
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
    """A value as an array of a type, in which it is what it was to the bit.

    Raises:
      KabukiError: the type cannot hold it.
    """
    array = np.asarray(value)
    if array.dtype == dtype:
        return array
    if array.dtype.kind not in "biufV":
        raise misfit(path, f"it is {described(value)}", dtype.name)
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(dtype)
        same = cast.astype(array.dtype) == array
        if array.dtype.kind in "fV":
            same |= (array != array) & (cast != cast)  # NaN is not itself.
        # An int64 as float64, say, comes back as another near its end.
        if not same.all() or (dtype.kind == "f" and array.dtype.kind in "iu" and (np.abs(cast) > 2.0**53).any()):
            raise misfit(path, f"it is {described(value)}", f"{dtype.name}, which cannot hold it")
    return cast


def misfit(path: str, found: str, expected: str) -> SchemaMismatchError:
    """A value that is not of the field's kind."""
    return SchemaMismatchError(
        f"field {path!r} does not fit the recording: {found}, where all before were {expected}", fields=(path,)
    )


def _bytes(value: Any, path: str) -> bytes:
    if isinstance(value, bytes):
        return bytes(value)
    if isinstance(value, np.ndarray) and value.shape == ():
        return _bytes(value.item(), path)
    if not isinstance(value, str):
        raise misfit(path, f"it is {described(value)}", "text")
    try:
        return value.encode()
    except UnicodeEncodeError as e:
        raise InvalidArgumentError(
            f"field {path!r}: a text that is no valid Unicode ({e}); give its bytes instead"
        ) from e


def described(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, (np.ndarray, np.generic)) and value.size != 1:
        return f"{value.dtype.name} {value.shape}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) < 40 else text[:36] + ' …'}"
