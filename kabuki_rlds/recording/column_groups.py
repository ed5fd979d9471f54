"""The column of each field of an open episode, and of groups of them."""

from __future__ import annotations

from typing import Any

from kabuki_rlds.data.block import Column
from kabuki_rlds.data.schema import BYTES, Field
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.recording.growing_columns import (
    ArrayColumn,
    GrowingColumn,
    TextColumn,
    VariableColumn,
    described,
    misfit,
)
from kabuki_rlds.recording.image_column import ImageColumn


def rows_of(field: Field, path: str, image_format: str | None = None) -> GrowingColumn:
    """An empty column for a field.

    Args:
      field: what a row is.
      path: its path.
      image_format: for images of one shape, that of their files.

    Raises:
      KabukiError: a field of this kind cannot be recorded.
    """
    if field.nested:
        raise KabukiError(f"field {path!r}: {field.describe()} in lists of lists cannot be recorded")
    if field.dtype == BYTES:
        return TextColumn(field, path)
    if image_format is not None and field.is_fixed and len(field.shape) == 3:
        return ImageColumn(field, path, image_format)
    return ArrayColumn(field, path) if field.is_fixed else VariableColumn(field, path)


class ColumnGroup:
    """A dict of fields; or a tuple or list, whose fields are named by their index.

    Args:
      path: path of the group.
      fields: key or index to the rows of it.
    """

    def __init__(self, path: str, fields: dict[Any, GrowingColumn]):
        self._path = path
        self._fields = tuple(fields.items())

    def put(self, row: int, value: Any) -> None:
        try:
            for key, rows in self._fields:
                rows.put(row, value[key])
            whole = len(value) == len(self._fields)
        except (KeyError, IndexError, TypeError):
            whole = False
        if not whole:
            raise misfit(self._path, f"it has {_names(value)}", ", ".join(str(key) for key, _ in self._fields))

    def pad(self, row: int) -> None:
        for _, rows in self._fields:
            rows.pad(row)

    def columns(self, rows: int) -> dict[str, Column]:
        made: dict[str, Column] = {}
        for _, inner in self._fields:
            made |= inner.columns(rows)
        return made


def _names(value: Any) -> str:
    if hasattr(value, "keys"):
        return ", ".join(map(str, value)) or "no fields"
    return f"{len(value)} items" if isinstance(value, (list, tuple)) else described(value)
