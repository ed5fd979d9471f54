"""Decodes columns of image files to columns of pixels."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Mapping

import numpy as np

from kabuki_rlds.arguments import argument
from kabuki_rlds.data.block import Column, Ragged
from kabuki_rlds.data.schema import Field
from kabuki_rlds.errors import DamagedDataError, KabukiError, MissingDependencyError
from kabuki_rlds.images.damage import DamagedImageError, check_files
from kabuki_rlds.images.decode_file import UndecodableImageError, decode_file

#: Number of files in one task of a decoding thread.
_FILES = 32
_REMEDY = "leave this field out: list the other fields in `fields`"


def decoded(field: Field) -> Field:
    """The field after its image files are decoded. A field without image files is returned unchanged."""
    shape = field.shape if len(field.shape) > 2 else (None, None, 3)
    return dataclasses.replace(field, shape=shape, encoded=False) if field.encoded else field


class ImageDecoder:
    """Decodes the columns that hold image files.

    Args:
      fields: path to field, as stored. Fields without image files are ignored.
      label: name of the dataset, for error messages.
    """

    def __init__(self, fields: Mapping[str, Field], label: str):
        self._label = label
        self._fields = {path: decoded(field) for path, field in fields.items() if field.encoded}

    def decode(self, columns: dict[str, Column], threads: concurrent.futures.Executor) -> dict[str, Column]:
        """The columns, with pixels instead of image files. Identical files in a column are decoded once.

        Args:
          columns: path to column, as stored.
          threads: the thread pool that decodes.

        Raises:
          KabukiError: a file is damaged, or its image does not have the shape that its field states.
        """
        made = dict(columns)
        for path in self._fields.keys() & columns.keys():
            try:
                made[path] = self.decode_column(path, columns[path], threads)
            except MissingDependencyError as e:
                raise MissingDependencyError(f"{self._label}: field {path!r}: {e}") from e
            except (DamagedImageError, KabukiError) as e:
                raise DamagedDataError(f"field {path!r}: {e}", file=self._label, field=path) from e
        return made

    def decode_column(self, path: str, column: Column, threads: concurrent.futures.Executor) -> Column:
        """One column, with pixels instead of image files.

        Raises:
          DamagedImageError: a file is damaged, or its image does not have the shape that its field states.
          KabukiError: the images of one row differ in size, or TensorFlow is needed and not installed.
        """
        return decode_column(column, self._fields[path], threads, _REMEDY)


def decode_column(
    column: Column,
    field: Field,
    threads: concurrent.futures.Executor | None = None,
    remedy: str = "",
) -> Column:
    """The pixels of a column of image files, or of lists of image files. Identical files are decoded once.

    Args:
      column: the bytes of one image file, or of a list of them, in each row.
      field: the decoded field: shape and dtype of the pixels of a row.
      threads: the thread pool that decodes; None decodes in the thread of the caller.
      remedy: what the error message suggests if the images of a row differ in size. By default, it suggests to keep
        the image files.

    Raises:
      DamagedImageError: a file is damaged, or its image does not have the size that the field states.
      KabukiError: the images of one row differ in size, or TensorFlow is needed and not installed.
    """
    files = (column if isinstance(column, np.ndarray) else column.values).tolist()
    check_files(files, field.shape, decodes=True)
    rows_of: dict[bytes, list[int]] = {}
    for row, file in enumerate(files):
        rows_of.setdefault(file, []).append(row)
    shape = field.shape[-3:]
    # If all images have the same size, write each into the final array. This saves a copy of large data.
    fixed = None if None in shape else np.empty((len(files), *(d or 0 for d in shape)), field.dtype)
    images: list[np.ndarray] = [] if fixed is not None else [np.empty(0)] * len(files)

    def decode(part: list[tuple[bytes, list[int]]]) -> None:
        for file, rows in part:
            try:
                image = decode_file(file, shape, field.dtype)
            except UndecodableImageError as e:
                raise DamagedImageError(rows[0], f"cannot be decoded: {e}") from e
            for row in rows:
                (images if fixed is None else fixed)[row] = image

    different = list(rows_of.items())
    parts = [different[start : start + _FILES] for start in range(0, len(different), _FILES)]
    for _ in (map if threads is None else threads.map)(decode, parts):
        pass
    if fixed is not None and field.is_fixed:
        return fixed.reshape(len(column), *(d or 0 for d in field.shape))
    flat = np.concatenate([np.empty(0, field.dtype), *(each.reshape(-1) for each in images)])
    sizes = [image.shape for image in images] if fixed is None else [fixed.shape[1:]] * len(files)
    return Ragged(flat if fixed is None else fixed.reshape(-1), _shapes(sizes, column, field, remedy))


def _shapes(sizes: list[tuple[int, ...]], column: Column, field: Field, remedy: str) -> np.ndarray:
    """The shape of each row: int64 (rows, dimensions).

    `sizes` holds (height, width, channels) of each image of the column.

    Raises:
      KabukiError: the images of one row differ in size.
    """
    if not field.is_list_of_images:
        return np.array(sizes, np.int64).reshape(len(column), len(field.shape))
    counts = column.shapes[:, 0].tolist() if isinstance(column, Ragged) else [1] * len(column)
    shapes = []
    at = 0
    for count in counts:
        of_row = sizes[at : at + count]
        at += count
        if len(set(of_row)) > 1:
            found = ", ".join(sorted({str(size) for size in of_row}))
            remedy = remedy or f"{argument('images', 'encoded')} keeps the image files"
            raise KabukiError(f"images of different sizes in one row ({found}) cannot form an array; {remedy}")
        shapes.append((count, *(of_row[0] if of_row else (d or 0 for d in field.shape[-3:]))))
    return np.array(shapes, np.int64).reshape(len(column), len(field.shape))
