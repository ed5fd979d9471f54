"""Learns the fields of a recording from the first values.

A dict becomes a group of fields. A tuple or list becomes a group whose fields are named
0, 1, …; but if it has only numbers or only text, it is an array. A `/` in a key
separates the parts of a path.

Fields can be known before the first value. *Declared* fields come from an existing
dataset or a `DatasetConfig`; values must match them. *Hints* come from the specs of an
environment; values may have a wider dtype, because many environments return one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kabuki_rlds.data.schema import BFLOAT16, BYTES, Field
from kabuki_rlds.errors import InvalidArgumentError, SchemaMismatchError
from kabuki_rlds.recording.column_groups import ColumnGroup, new_column
from kabuki_rlds.recording.growing_columns import GrowingColumn

#: Path to field.
Fields = Mapping[str, Field]

_FLOAT64 = np.dtype(np.float64)


class FieldLearner:
    """Learns fields from values.

    Args:
      hints: path to the field that the specs of the environment state.
      declared: the fields of an existing dataset or a `DatasetConfig`, which values must match; None if the fields are
        learned.

    Attributes:
      fields: path to field, for all values learned so far.
    """

    def __init__(self, hints: Fields, declared: Fields | None):
        self._hints = hints
        self._declared = declared
        self.fields: dict[str, Field] = {}

    def learn(self, value: Any, path: str, *, as_float: bool = False) -> None:
        """Adds the fields of a value to `fields`.

        Args:
          value: the value; dicts, tuples and lists may be nested.
          path: the path of the value; "" for a dict of step fields.
          as_float: whether integers and bools become float64, as for rewards.

        Raises:
          KabukiError: a part of the value cannot be recorded, or is not a declared field.
        """
        for at, leaf in leaves(value, path, self._known).items():
            self.fields[at] = self._field(leaf, at, as_float)

    def _field(self, value: Any, path: str, as_float: bool) -> Field:
        if self._declared is None:
            field = _field(value, path, self._hints.get(path))
            return Field(_FLOAT64, field.shape) if as_float and field.dtype.kind in "iub" else field
        if path not in self._declared:
            have = ", ".join(sorted(self._declared)) or "none"
            raise SchemaMismatchError(
                f"field {path!r} is not in the dataset, which has {have}; leave it out, or record to another path",
                fields=(path,),
            )
        return self._declared[path]

    def rows(self, value: Any, path: str, image_formats: Mapping[str, str]) -> GrowingColumn:
        """An empty column, or a group of empty columns, for the learned fields of a value.

        Args:
          value: a value that was passed to `learn`.
          path: the path of the value.
          image_formats: path of each field stored as image files to "png" or "jpeg".
        """
        items = _items(value, path, self._known)
        if items is None:
            return new_column(self.fields[path], path, image_formats.get(path))
        return ColumnGroup(
            path, {key: self.rows(inner, _join(path, key), image_formats) for key, inner in items.items()}
        )

    def check_complete(self) -> None:
        """Checks that every declared field has a value.

        Raises:
          KabukiError: a declared field has no value.
        """
        missing = sorted(set(self._declared or ()) - set(self.fields))
        if missing:
            raise SchemaMismatchError(
                f"the dataset has the field {missing[0]!r}, but the step has no value for it",
                fields=(missing[0],),
            )

    @property
    def _known(self) -> Fields:
        return self._hints if self._declared is None else self._declared


def leaves(value: Any, path: str, known: Mapping[str, object]) -> dict[str, Any]:
    """Path to value, for each field in a nested value.

    Args:
      value: a value, or nested dicts, tuples and lists of values.
      path: the path of the value; "" for a dict of fields.
      known: the paths of known fields. A value at such a path is one field, even if it is a tuple or list.

    Raises:
      KabukiError: a key is not a valid name, two fields have conflicting paths, or a dict is empty.
    """
    items = _items(value, path, known)
    if items is None:
        return {path: value}
    found: dict[str, Any] = {}
    for key, inner in items.items():
        more = leaves(inner, _join(path, key), known)
        for at in more:
            if any(name == at or name.startswith(f"{at}/") or at.startswith(f"{name}/") for name in found):
                raise InvalidArgumentError(
                    f"field {at!r}: the path conflicts with another field (the paths are equal, or one contains the "
                    "other); rename one of them"
                )
        found |= more
    return found


def _items(value: Any, path: str, known: Mapping[str, object]) -> dict[Any, Any] | None:
    """The items of a dict, tuple or list that is a group of fields; None for a value that is one field."""
    if path in known:
        return None
    if isinstance(value, Mapping):
        if not value and path:
            raise InvalidArgumentError(f"field {path!r}: an empty dict cannot be recorded; leave it out")
        return dict(value)
    if isinstance(value, (tuple, list)):
        within = f"{path}/"
        if any(name.startswith(within) for name in known) or not _is_array(value):
            return dict(enumerate(value))
    return None


def _is_array(value: Any) -> bool:
    """Whether a tuple or list is an array: only numbers, only text, or lists of equal length of these."""
    if not value:
        return False
    if all(isinstance(item, (tuple, list)) for item in value):
        return all(map(_is_array, value)) and len({len(item) for item in value}) == 1
    numbers = (int, float, np.number, np.bool_)
    return all(isinstance(item, numbers) for item in value) or all(isinstance(item, (str, bytes)) for item in value)


def _join(path: str, key: Any) -> str:
    name = str(key)
    if not name or "" in name.split("/"):
        within = f"field {path!r}: key {key!r}" if path else repr(key)
        raise InvalidArgumentError(f"{within} cannot be the name of a field; rename it")
    return f"{path}/{name}" if path else name


def _field(value: Any, path: str, hint: Field | None) -> Field:
    array = value if isinstance(value, np.ndarray) else np.asarray(value)
    dtype: np.dtype
    if array.dtype.kind in "SU":
        dtype = BYTES
    elif array.dtype.kind == "O":
        if not array.size or not all(isinstance(item, (str, bytes)) for item in array.reshape(-1)):
            raise InvalidArgumentError(
                f"field {path!r}: a value of type {type(value).__name__} cannot be recorded: {_short(value)}"
            )
        dtype = BYTES
    elif array.dtype.kind in "biuf" or array.dtype == BFLOAT16:
        dtype = array.dtype.newbyteorder("=")
    else:
        raise InvalidArgumentError(f"field {path!r}: dtype {array.dtype} cannot be recorded")
    shape: tuple[int | None, ...] = array.shape
    if hint is not None:
        dtype = _wider(hint.dtype, dtype, isinstance(value, (bool, int)))
        # A dimension of variable size in the hint also varies in the field.
        if None in hint.shape and len(hint.shape) == len(shape):
            shape = hint.shape
    return Field(dtype, shape, "text" if dtype == BYTES else "array")


def _wider(hint: np.dtype, found: np.dtype, is_python_int: bool) -> np.dtype:
    """A dtype that holds the values of the hint's dtype and of the dtype found."""
    if BYTES in (hint, found) or hint == found:
        return found
    if BFLOAT16 in (hint, found):
        return found
    if is_python_int and hint.kind in "iuf":
        return hint
    both = np.promote_types(hint, found)
    # NumPy promotes int64 and uint64 to float64, which does not hold them exactly. Keep the hint.
    return hint if both.kind == "f" and hint.kind != "f" and found.kind != "f" else both


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:56] + " …"
