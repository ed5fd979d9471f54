"""Reads columns whose rows vary in size. `variable` describes how they are stored."""

from __future__ import annotations

import functools
import itertools
import math

import h5py
import numpy as np

from kabuki_rlds.data.block import Column, Nested, Ragged, concatenate, row_range, take
from kabuki_rlds.data.schema import BYTES, Field
from kabuki_rlds.formats.hdf5 import image_files, layout
from kabuki_rlds.formats.hdf5.sequences import SequenceReader, has_sequences
from kabuki_rlds.formats.safe_hdf5.vlen_rows import VlenRows, has_vlen_rows

_INT64 = np.dtype(np.int64)
_UINT8 = np.dtype(np.uint8)

#: Gaps of up to so many rows are read too, because that is faster than a second read.
_GAP_ROWS = 16


class CompanionError(ValueError):
    """The companion of a dataset is missing, or does not match its rows (rule 9)."""


class VariableReader:
    """Reads rows of a text dataset or a variable-length dataset. For image files, see `ImageFileReader`.

    Args:
      dataset: the dataset.
      field: the field that the dataset stores.

    Raises:
      CompanionError: the companion is missing or does not match the dataset.
    """

    def __init__(self, dataset: h5py.Dataset, field: Field):
        self._dataset = dataset
        self._field = field
        #: `take` reads at most so many rows at once.
        self.run_rows = layout.variable_chunk_rows(math.prod(dataset.shape[1:]))
        self._companion: h5py.Group | None = None
        path = layout.text_attribute(dataset, "companion")
        if path:
            companion = dataset.file.get(path)
            if not isinstance(companion, h5py.Group):
                raise CompanionError(f"its companion {path} is missing")
            self._companion = companion
        self._exact_rows: np.ndarray | None = None
        if self._companion is not None and h5py.check_string_dtype(dataset.dtype):
            self._exact_rows = _exact_rows(
                self._companion_dataset("exact_row"), self._companion_dataset("exact_bytes"), dataset
            )

    def read(self, start: int, stop: int) -> Column:
        """Returns the rows `start` to `stop`.

        Raises:
          CompanionError: the companion does not match the rows.
          OSError, ValueError, RuntimeError: the rows are damaged.
        """
        return self._checked(self._read(np.arange(start, stop)))

    def take(self, rows: np.ndarray) -> Column:
        """Returns the given rows. Raises the same errors as `read`.

        Args:
          rows: row numbers, ascending, at least one: int64, (count,).
        """
        if self._reads_any_rows:
            return self._checked(self._read(rows))
        apart = (np.diff(rows) > _GAP_ROWS) | (np.diff(rows // self.run_rows) > 0)
        parts = []
        for a, b in itertools.pairwise([0, *(np.flatnonzero(apart) + 1).tolist(), len(rows)]):
            column = self.read(int(rows[a]), int(rows[b - 1]) + 1)
            parts.append(take(column, rows[a:b] - rows[a]))
        return concatenate(parts)

    @property
    def _reads_any_rows(self) -> bool:
        """Whether `_read` accepts rows that are not consecutive."""
        return has_vlen_rows(self._dataset) and not (self._companion is not None and "shape" in self._companion)

    def _checked(self, column: Column) -> Column:
        if not isinstance(column, np.ndarray) and not column.is_consistent:
            raise CompanionError("the stored shapes or lengths do not match the number of elements")
        return column

    def _read(self, rows: np.ndarray) -> Column:
        field = self._field
        if h5py.check_string_dtype(self._dataset.dtype) or image_files.is_opaque(self._dataset.dtype):
            return self._texts(rows)
        values, counts = self._sequences.read(rows)
        levels = [level.read(rows) for level in self._levels]
        if field.dtype == BYTES or field.encoded:
            sizes, counts = levels[-1]
            if (sizes < 0).any() or sizes.sum() != len(values):
                raise CompanionError("the stored sizes of texts or files do not match the number of bytes")
            values = _split(values, sizes)
        if field.encoded:
            return Ragged(values, counts[:, None])
        if field.nested:
            item = tuple(d for d in field.shape[field.nested :] if d is not None)
            lengths = [lengths for lengths, _ in levels[: field.nested - 1]]
            # The number of items comes from the lengths, because items may have zero elements.
            items = int(lengths[-1].sum())
            if items < 0 or items * math.prod(item) != len(values):
                raise CompanionError("the stored lengths of lists do not match the number of elements")
            return Nested(values.reshape(items, *item), (levels[0][1], *lengths))
        if self._companion is not None and "shape" in self._companion:
            shapes = self._companion_dataset("shape")
            if not layout.holds_integers(shapes) or shapes.shape[1:] != (len(field.shape),):
                raise CompanionError(f"{shapes.name} must have {len(field.shape)} integers per row")
            return Ragged(values, _span(shapes, rows).astype(np.int64))
        known = int(np.prod([d for d in field.shape if d is not None]))
        columns = [counts // max(known, 1) if d is None else np.full(len(counts), d) for d in field.shape]
        return Ragged(values, np.column_stack(columns).astype(np.int64))

    @functools.cached_property
    def _sequences(self) -> SequenceReader:
        is_bytes = self._field.dtype == BYTES or self._field.encoded
        return SequenceReader(self._dataset, _UINT8 if is_bytes else self._field.dtype)

    @functools.cached_property
    def _levels(self) -> list[SequenceReader]:
        """Readers of the lengths of lists, level by level: a sequence per row."""
        field = self._field
        count = max(field.nested - 1, 0) + (field.dtype == BYTES or field.encoded)
        readers = []
        for level in range(1, count + 1):
            dataset = self._companion_dataset(f"lengths_{level}")
            if not has_sequences(dataset) or h5py.check_vlen_dtype(dataset.dtype).kind not in "iu":
                raise CompanionError(f"{dataset.name} must have variable-length rows of integers")
            readers.append(SequenceReader(dataset, _INT64))
        return readers

    def _companion_dataset(self, name: str) -> h5py.Dataset:
        found = None if self._companion is None else self._companion.get(name)
        if not isinstance(found, h5py.Dataset) or not found.ndim:
            raise CompanionError(f"{name} in its companion is missing")
        return found

    @functools.cached_property
    def _vlen_texts(self) -> VlenRows | None:
        return VlenRows(self._dataset) if has_vlen_rows(self._dataset) else None

    @functools.cached_property
    def _exact_texts(self) -> VlenRows:
        return VlenRows(self._companion_dataset("exact_bytes"))

    def _texts(self, rows: np.ndarray) -> np.ndarray:
        if self._vlen_texts is not None:
            values = self._vlen_texts.read(rows)
        else:
            # `tobytes` keeps the NULs at the end of an opaque value.
            stored = _span(self._dataset, rows).reshape(-1)
            values = [value.tobytes() if isinstance(value, np.void) else value for value in stored]
        texts = np.empty(len(values), object)
        texts[:] = values
        if self._exact_rows is not None and len(self._exact_rows):
            per_row = math.prod(self._dataset.shape[1:])
            numbers = (rows[:, None] * per_row + np.arange(per_row)).reshape(-1)
            places = np.searchsorted(self._exact_rows, numbers)
            exact = np.flatnonzero(self._exact_rows[places % len(self._exact_rows)] == numbers)
            texts[exact] = self._exact_texts.read(places[exact])
        return texts.reshape(len(rows), *self._dataset.shape[1:])


def _span(dataset: h5py.Dataset, rows: np.ndarray) -> np.ndarray:
    """Returns consecutive rows of a dataset that are given by their row numbers."""
    start, stop = row_range(rows)
    return np.asarray(dataset[start:stop])


def _exact_rows(row: h5py.Dataset, texts: h5py.Dataset, dataset: h5py.Dataset) -> np.ndarray:
    """Reads and checks the indices of the texts that contain a NUL: int64, ascending.

    Args:
      row: the companion `exact_row`.
      texts: the companion `exact_bytes`.
      dataset: the text dataset.

    Raises:
      CompanionError: the companions do not match each other or the dataset.
    """
    if row.ndim == 1 and layout.holds_integers(row) and has_sequences(texts) and len(row) == len(texts):
        rows = row[:].astype(np.int64)
        if not len(rows) or (rows[0] >= 0 and rows[-1] < dataset.size and (rows[1:] > rows[:-1]).all()):
            return rows
    raise CompanionError("exact_row and exact_bytes in its companion do not match its rows")


def _split(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Splits concatenated bytes into byte strings of the given sizes."""
    joined = values.astype(np.uint8, copy=False).tobytes()
    ends = np.cumsum(sizes).tolist()
    texts = np.empty(len(ends), object)
    texts[:] = [joined[end - size : end] for end, size in zip(ends, sizes.tolist(), strict=True)]
    return texts
