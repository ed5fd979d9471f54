"""Creates the column of a field, and groups the columns of a dict, tuple or list of fields."""

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
    mismatch,
)
from kabuki_rlds.recording.image_column import ImageColumn


def new_column(field: Field, path: str, image_format: str | None = None) -> GrowingColumn:
    """An empty column for a field.

    Args:
      field: the dtype and shape of a row.
      path: the path of the field.
      image_format: "png" or "jpeg" to store the rows as image files; None to store arrays. It applies only to images
        of a fixed shape.

    Raises:
      KabukiError: fields of this kind cannot be recorded.
    """
    if field.nested:
        raise KabukiError(f"field {path!r}: {field.describe()} in lists of lists cannot be recorded")
    if field.dtype == BYTES:
        return TextColumn(field, path)
    if image_format is not None and field.is_fixed and len(field.shape) == 3:
        return ImageColumn(field, path, image_format)
    return ArrayColumn(field, path) if field.is_fixed else VariableColumn(field, path)


class ColumnGroup:
    """The columns of a dict of fields, or of a tuple or list whose fields are named by their index.

    Args:
      path: the path of the group.
      fields: the key or index of each field to its column.
    """

    def __init__(self, path: str, fields: dict[Any, GrowingColumn]):
        self._path = path
        self._fields = tuple(fields.items())

    def put(self, row: int, value: Any) -> None:
        try:
            for key, column in self._fields:
                column.put(row, value[key])
            matches = len(value) == len(self._fields)
        except (KeyError, IndexError, TypeError):
            matches = False
        if not matches:
            expected = ", ".join(str(key) for key, _ in self._fields)
            raise mismatch(self._path, _names(value), f"the fields {expected}")

    def pad(self, row: int) -> None:
        for _, column in self._fields:
            column.pad(row)

    def columns(self, rows: int) -> dict[str, Column]:
        made: dict[str, Column] = {}
        for _, column in self._fields:
            made |= column.columns(rows)
        return made


def _names(value: Any) -> str:
    if hasattr(value, "keys"):
        return f"the fields {', '.join(map(str, value))}" if len(value) else "no fields"
    return f"{len(value)} items" if isinstance(value, (list, tuple)) else described(value)
