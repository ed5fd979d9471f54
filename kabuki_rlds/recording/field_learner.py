"""What the fields of a recording are, learned from the first values and what is known beforehand.

A dict becomes a group of fields; so does a tuple or list, whose fields are named 0, 1,
…, unless all in it are plain numbers or texts: then it is an array. A `/` in a key
separates, as it does in paths.

What is known beforehand is either *declared*, by the dataset that is appended to or a
`DatasetConfig`: then it is so; or a *hint*, by an environment's specs: then values may
be of a wider type than it says, which many environments do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kabuki_rlds.data.schema import BFLOAT16, BYTES, Field
from kabuki_rlds.errors import InvalidArgumentError, SchemaMismatchError
from kabuki_rlds.recording.column_groups import ColumnGroup, rows_of
from kabuki_rlds.recording.growing_columns import GrowingColumn

#: Path to what is known of the field.
Fields = Mapping[str, Field]

_FLOAT64 = np.dtype(np.float64)


class FieldLearner:
    """Learns fields from values.

    Args:
      hints: what an environment says that its values are.
      declared: the fields of which each must be, or None where none are declared.

    Attributes:
      fields: path to field, of all values learned from so far.
    """

    def __init__(self, hints: Fields, declared: Fields | None):
        self._hints = hints
        self._declared = declared
        self.fields: dict[str, Field] = {}

    def learn(self, value: Any, path: str, *, as_float: bool = False) -> None:
        """Learns the fields of a value that stands at a path.

        Args:
          value: the value.
          path: its path; "" where it is a dict of step fields.
          as_float: Python's numbers, and any integers, are float64: rewards.

        Raises:
          KabukiError: a part of it can be no field, or is not as declared.
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
                f"field {path!r} is not in the dataset that is recorded into; it has {have}", fields=(path,)
            )
        return self._declared[path]

    def rows(self, value: Any, path: str, image_formats: Mapping[str, str]) -> GrowingColumn:
        """Empty columns for what was learned from a value at a path.

        Args:
          value: the value.
          path: its path.
          image_formats: path of a field of images to the format of their files.
        """
        items = _items(value, path, self._known)
        if items is None:
            return rows_of(self.fields[path], path, image_formats.get(path))
        return ColumnGroup(
            path, {key: self.rows(inner, _join(path, key), image_formats) for key, inner in items.items()}
        )

    def check_complete(self) -> None:
        """Sees to it that every declared field was learned.

        Raises:
          KabukiError: one was not.
        """
        missing = sorted(set(self._declared or ()) - set(self.fields))
        if missing:
            raise SchemaMismatchError(
                f"the dataset that is recorded into has the field {missing[0]!r}, but no value was given",
                fields=(missing[0],),
            )

    @property
    def _known(self) -> Fields:
        return self._hints if self._declared is None else self._declared


def leaves(value: Any, path: str, known: Mapping[str, object]) -> dict[str, Any]:
    """Path to value, of each field in a value that stands at a path.

    Args:
      value: a value, or dicts, tuples and lists of them.
      path: its path; "" where it is a dict of fields.
      known: what is known of fields: where one is, a value is taken whole.
    """
    items = _items(value, path, known)
    if items is None:
        return {path: value}
    found: dict[str, Any] = {}
    for key, inner in items.items():
        more = leaves(inner, _join(path, key), known)
        for at in more:
            if any(name == at or name.startswith(f"{at}/") or at.startswith(f"{name}/") for name in found):
                raise InvalidArgumentError(f"field {at!r}: there is another of this name, or within it; rename it")
        found |= more
    return found


def _items(value: Any, path: str, known: Mapping[str, object]) -> dict[Any, Any] | None:
    """The parts of a dict, tuple or list; None for a value that is one field."""
    if path in known:
        return None
    if isinstance(value, Mapping):
        if not value and path:
            raise InvalidArgumentError(f"field {path!r}: an empty dict holds nothing to record")
        return dict(value)
    if isinstance(value, (tuple, list)):
        within = f"{path}/"
        if any(name.startswith(within) for name in known) or not _is_array(value):
            return dict(enumerate(value))
    return None


def _is_array(value: Any) -> bool:
    """Whether a tuple or list is an array: of numbers or texts, perhaps in lists of equal length."""
    if not value:
        return False
    if all(isinstance(item, (tuple, list)) for item in value):
        return all(map(_is_array, value)) and len({len(item) for item in value}) == 1
    numbers = (int, float, np.number, np.bool_)
    return all(isinstance(item, numbers) for item in value) or all(isinstance(item, (str, bytes)) for item in value)


def _join(path: str, key: Any) -> str:
    name = str(key)
    if not name or "" in name.split("/"):
        within = f"field {path!r}: {key!r} in it" if path else repr(key)
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
                f"field {path!r}: a {type(value).__name__} ({_short(value)}) is nothing to record"
            )
        dtype = BYTES
    elif array.dtype.kind in "biuf" or array.dtype == BFLOAT16:
        dtype = array.dtype.newbyteorder("=")
    else:
        raise InvalidArgumentError(f"field {path!r}: {array.dtype} cannot be recorded")
    shape: tuple[int | None, ...] = array.shape
    if hint is not None:
        dtype = _wider(hint.dtype, dtype, isinstance(value, (bool, int)))
        # Where a space says that a dimension varies, it does.
        if None in hint.shape and len(hint.shape) == len(shape):
            shape = hint.shape
    return Field(dtype, shape, "text" if dtype == BYTES else "array")


def _wider(hint: np.dtype, found: np.dtype, is_python_int: bool) -> np.dtype:
    """A type that holds what is promised and what came."""
    if BYTES in (hint, found) or hint == found:
        return found
    if BFLOAT16 in (hint, found):
        return found
    if is_python_int and hint.kind in "iuf":
        return hint
    both = np.promote_types(hint, found)
    # An int64 and an uint64 have no common integer.
    return hint if both.kind == "f" and hint.kind != "f" and found.kind != "f" else both


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:56] + " …"
