"""Readers of the rows of one step field in one episode: stored rows, perhaps with one more row after them."""

from __future__ import annotations

import concurrent.futures
from typing import Literal, Protocol, TypeAlias

import h5py
import numpy as np

from kabuki_rlds.data.block import Column, Ragged, concatenate
from kabuki_rlds.data.schema import BYTES, Field
from kabuki_rlds.errors import DamagedDataError
from kabuki_rlds.formats.demos.hdf5_values import num_rows
from kabuki_rlds.formats.hdf5 import image_files, layout
from kabuki_rlds.formats.hdf5.column_reader import column_reader

#: The value of the last row of an episode where the layout does not store it: "zero" (padding) or "repeat" (the row
#: before). "" means that there is no such row.
LastRowValue: TypeAlias = Literal["", "zero", "repeat"]


class RowReader(Protocol):
    """Reads the rows of one step field in one episode.

    Attributes:
      field: dtype, shape and kind of a row.
      is_blank: whether all rows are empty. They may stand for missing image files.
    """

    field: Field
    is_blank: bool

    def __len__(self) -> int:
        """Returns the number of rows."""

    def read(self, start: int, stop: int, threads: concurrent.futures.Executor) -> Column:
        """Reads rows `start` to `stop`."""


class StoredRows:
    """The rows of a dataset, perhaps with one more row after them.

    Args:
      dataset: (rows, …).
      last_row: the row after them: a dataset, whose last row is used, or a value. Image files cannot be padded with
        zeros, so the last one is repeated instead.

    Raises:
      KabukiError: no field can have the dataset's dtype, the last row has another dtype or shape, or an attribute
        wrongly states that the dataset holds image files.
    """

    def __init__(self, dataset: h5py.Dataset, last_row: h5py.Dataset | LastRowValue = ""):
        content = image_files.content_of(dataset)
        self.field = content.field or _field_by_dtype(dataset)
        self.is_blank = content.is_blank
        if self.field.encoded and last_row == "zero":
            last_row = "repeat"
        self._dataset = dataset
        self._last_row = last_row
        self._num_stored = len(dataset)
        if isinstance(last_row, h5py.Dataset) and not self._has_same_field(last_row):
            raise DamagedDataError(
                f"{last_row.name} is of another type or shape than {dataset.name}", file=dataset.file.filename
            )

    def _has_same_field(self, other: h5py.Dataset) -> bool:
        if self.field.encoded:
            # The longest files may differ in length.
            return image_files.form_of(other) is not None
        mine = self._dataset
        return other.shape is not None and (other.dtype, other.shape[1:]) == (mine.dtype, mine.shape[1:])

    def __len__(self) -> int:
        return self._num_stored + (self._last_row != "")

    def read(self, start: int, stop: int, threads: concurrent.futures.Executor) -> Column:
        parts: list[Column] = []
        if start < self._num_stored:
            parts.append(self._read(self._dataset, start, min(stop, self._num_stored), threads))
        if stop > self._num_stored:
            parts.append(self._read_last_row(threads))
        return concatenate(parts)

    def _read_last_row(self, threads: concurrent.futures.Executor) -> Column:
        if isinstance(self._last_row, h5py.Dataset):
            return self._read(self._last_row, len(self._last_row) - 1, len(self._last_row), threads)
        if self._last_row == "repeat" and self._num_stored:
            return self._read(self._dataset, self._num_stored - 1, self._num_stored, threads)
        return padding(self.field)

    def _read(self, dataset: h5py.Dataset, start: int, stop: int, threads: concurrent.futures.Executor) -> Column:
        return column_reader(dataset, self.field, threads).read(start, stop)


class ObservationRows(StoredRows):
    """Observations from a pair of datasets: the observations before each action, and those after it.

    The last observation after an action becomes the last row. All others must equal the next observation before an
    action, so they are not stored twice.

    Args:
      dataset: the observations before each action: (rows, …).
      following: the observations after each action: (rows, …).
      remedy: what a message suggests where they differ; "" if they may differ.

    Raises:
      KabukiError: the datasets differ in length, dtype or shape, or no field can have the dtype.
    """

    def __init__(self, dataset: h5py.Dataset, following: h5py.Dataset, remedy: str):
        if num_rows(following) != len(dataset):
            raise DamagedDataError(
                f"{following.name[1:]} has {num_rows(following) or 'no'} rows, "
                f"where {dataset.name[1:]} has {len(dataset)}",
                file=dataset.file.filename,
            )
        super().__init__(dataset, following)
        self._following = following
        self._remedy = remedy

    def read(self, start: int, stop: int, threads: concurrent.futures.Executor) -> Column:
        column = super().read(start, stop, threads)
        first, last = max(start, 1), min(stop, self._num_stored)
        if first < last and self._remedy:
            after = self._read(self._following, first - 1, last - 1, threads)
            if not are_equal(column[first - start : last - start], after):
                raise DamagedDataError(
                    f"{self._following.name[1:]}: rows {first - 1} to {last - 2} are "
                    f"not the observations one row later; {self._remedy}",
                    file=self._following.file.filename,
                    rows=range(first - 1, last - 1),
                )
        return column


class ArrayRows:
    """Rows that are computed, not stored.

    Args:
      values: (rows, …).
      derived: how they were computed, if the layout has no such field.
    """

    def __init__(self, values: np.ndarray, derived: str = ""):
        kind: Literal["text", "array"] = "text" if values.dtype == BYTES else "array"
        self.field = Field(values.dtype, values.shape[1:], kind, derived=derived)
        self.is_blank = False
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def read(self, start: int, stop: int, threads: concurrent.futures.Executor) -> Column:
        return self._values[start:stop]


def is_terminal_rows(length: int, terminated: bool, derived: str = "") -> ArrayRows:
    """Returns the rows of `is_terminal`: true in the last row of an episode that terminated, else false."""
    flags = np.zeros(length, bool)
    flags[-1:] = terminated
    return ArrayRows(flags, derived)


def _field_by_dtype(dataset: h5py.Dataset) -> Field:
    """Returns the field of a dataset according to its dtype and shape.

    Raises:
      KabukiError: no field can have this dtype, or an attribute wrongly states that the dataset holds image files.
    """
    if image_files.is_opaque(dataset.dtype):
        return Field(BYTES, dataset.shape[1:], "text")
    field = layout.read_field(dataset)
    if field.encoded:
        raise DamagedDataError(
            f"{dataset.name[1:]}: an attribute of Kabuki's says that it holds image "
            "files, which it does not; remove the attribute",
            file=dataset.file.filename,
        )
    return field


def padding(field: Field) -> Column:
    """Returns a column with one row of zeros or empty text."""
    row = padding_row(field)[None]
    return row if None not in field.shape else Ragged(row.reshape(-1), np.array([row.shape[1:]], np.int64))


def padding_row(field: Field) -> np.ndarray:
    """Returns a row of zeros or empty text. Dimensions of variable size have length 0."""
    shape = tuple(d or 0 for d in field.shape)
    return np.full(shape, b"", object) if field.dtype == BYTES else np.zeros(shape, field.dtype)


def are_equal(a: Column, b: Column) -> bool:
    """Returns whether two columns are equal bit by bit, so that NaN equals NaN."""
    if isinstance(a, Ragged) and isinstance(b, Ragged):
        return np.array_equal(a.shapes, b.shapes) and are_equal(a.values, b.values)
    if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
        return False
    return np.array_equal(a, b) if a.dtype == BYTES else a.tobytes() == b.tobytes()
