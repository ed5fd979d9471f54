"""Writes and reads columns whose rows vary in size: text, ragged arrays, encoded images, nested lists.

A text column is a dataset of HDF5 strings. Other columns are a dataset (rows,) of HDF5's
variable-length type, with the flattened elements of each row. Further data that is needed
to read the rows is stored under `/companion/<path>`:

    exact_row, exact_bytes   the texts that contain a NUL, where HDF5 strings end: their
                             index in the flattened column, and all their bytes
    shape                    shape of each row, (rows, rank), if it does not follow from
                             the number of elements
    lengths_1, lengths_2, …  for nested lists, the lengths of the inner lists of each row,
                             level by level; for lists of texts, the last level is the
                             number of bytes of each text
"""

from __future__ import annotations

import functools
import itertools
import math

import h5py
import numpy as np

from kabuki_rlds.data.block import Column, Nested, Ragged, concatenate, row_splits, take
from kabuki_rlds.data.schema import BYTES, Field
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.formats.hdf5 import image_files, layout
from kabuki_rlds.formats.hdf5.sequences import SequenceReader, has_sequences
from kabuki_rlds.formats.safe_hdf5.vlen_rows import VlenRows, has_vlen_rows

_INT64 = np.dtype(np.int64)
_UINT8 = np.dtype(np.uint8)

#: Gaps of up to so many rows are read too, because that is faster than a second read.
_GAP_ROWS = 16


class CompanionError(ValueError):
    """The companion of a dataset is missing, or does not match its rows (rule 9)."""


class TextWriter:
    """Appends texts to a dataset. Creates the dataset if it does not exist."""

    def __init__(self, file: h5py.File, path: str, field: Field):
        self._file = file
        self._path = path
        self._shape = tuple(d for d in field.shape if d is not None)
        self._dataset = file[path] if path in file else self._create()
        self._rows = len(self._dataset)
        self._exact: tuple[_RaggedDataset, _Int64Dataset] | None = None

    def _create(self) -> h5py.Dataset:
        return self._file.create_dataset(
            self._path,
            (0, *self._shape),
            h5py.string_dtype(),
            maxshape=(None, *(d or None for d in self._shape)),  # HDF5 requires fixed extents >= the chunk extents
            chunks=(layout.variable_chunk_rows(math.prod(self._shape)), *(d or 1 for d in self._shape)),
            compression="gzip",
            compression_opts=1,
        )

    def write(self, column: np.ndarray) -> None:
        start, self._rows = self._rows, self._rows + len(column)
        if not column.size:
            return
        texts = column.reshape(-1).tolist()
        if b"\0" in b"".join(texts):
            self._keep_exact(texts, start * int(np.prod(self._shape)))
            texts = [text.partition(b"\0")[0] for text in texts]
        rows = np.empty(len(texts), object)
        rows[:] = texts
        _append(self._dataset, start, rows.reshape(column.shape), h5py.h5t.py_create(h5py.string_dtype()))

    def close(self) -> None:
        self._dataset.resize(self._rows, axis=0)

    def _keep_exact(self, texts: list[bytes], first: int) -> None:
        if self._exact is None:
            group = f"{layout.COMPANION}/{self._path}"
            self._dataset.attrs["companion"] = f"/{group}"
            self._exact = (
                _RaggedDataset(self._file, f"{group}/exact_bytes", _UINT8),
                _Int64Dataset(self._file, f"{group}/exact_row"),
            )
        found = [i for i, text in enumerate(texts) if b"\0" in text]
        values, rows = self._exact
        values.append(_joined_bytes([texts[i] for i in found]), np.array([len(texts[i]) for i in found], np.int64))
        rows.append(np.array(found, np.int64) + first)


class ImageFileWriter:
    """Appends encoded image files, one per row, to a dataset."""

    def __init__(self, file: h5py.File, path: str):
        self._dataset = _RaggedDataset(file, path, _UINT8)

    def write(self, column: np.ndarray) -> None:
        files = column.tolist()
        self._dataset.append(_joined_bytes(files), np.fromiter(map(len, files), np.int64, len(files)))

    def close(self) -> None:
        """Nothing is held back."""


class RaggedWriter:
    """Appends ragged rows (arrays of varying shape) of numbers, texts or image files."""

    def __init__(self, file: h5py.File, path: str, field: Field):
        self._is_bytes = field.dtype == BYTES or field.encoded
        group = f"{layout.COMPANION}/{path}"
        self._dataset = _RaggedDataset(file, path, _UINT8 if self._is_bytes else field.dtype)
        needs_shape = not field.encoded and _needs_shape(field)
        self._shapes = _Int64Dataset(file, f"{group}/shape", len(field.shape)) if needs_shape else None
        self._lengths = _RaggedDataset(file, f"{group}/lengths_1", _INT64) if self._is_bytes else None
        if self._shapes or self._lengths:
            file[path].attrs["companion"] = f"/{group}"

    def write(self, column: Ragged) -> None:
        counts = column.shapes.prod(axis=1, dtype=np.int64)
        values = column.values
        if self._shapes:
            self._shapes.append(column.shapes)
        if self._lengths:
            sizes = np.fromiter(map(len, values), np.int64, len(values))
            self._lengths.append(sizes, counts)
            counts = _group_sums(sizes, counts)
            values = _joined_bytes(values.tolist())
        self._dataset.append(values, counts)

    def close(self) -> None:
        """Nothing is held back."""


class NestedWriter:
    """Appends rows that are nested lists."""

    def __init__(self, file: h5py.File, path: str, field: Field):
        self._is_text = field.dtype == BYTES
        self._dataset = _RaggedDataset(file, path, _UINT8 if self._is_text else field.dtype)
        group = f"{layout.COMPANION}/{path}"
        levels = field.nested - 1 + self._is_text
        self._levels = [_RaggedDataset(file, f"{group}/lengths_{i + 1}", _INT64) for i in range(levels)]
        file[path].attrs["companion"] = f"/{group}"

    def write(self, column: Nested) -> None:
        counts = column.lengths[0]
        values = column.values.reshape(-1)
        item = int(np.prod(column.values.shape[1:]))
        inner = list(column.lengths[1:])
        if self._is_text:
            inner.append(np.fromiter(map(len, values), np.int64, len(values)))
            values = _joined_bytes(values.tolist())
        for level, (dataset, lengths) in enumerate(zip(self._levels, inner, strict=True)):
            if self._is_text and level == len(inner) - 1:
                counts = counts * item
            dataset.append(lengths, counts)
            counts = _group_sums(lengths, counts)
        self._dataset.append(values, counts if self._is_text else counts * item)

    def close(self) -> None:
        """Nothing is held back."""


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


class _RaggedDataset:
    """Appends variable-length rows to a dataset. Creates the dataset if it does not exist."""

    def __init__(self, file: h5py.File, path: str, element: np.dtype):
        self._itemsize = element.itemsize
        self._type = h5py.h5t.vlen_create(layout.element_type(element))
        self._dataset = file[path] if path in file else self._create(file, path)
        self._rows = len(self._dataset)

    def _create(self, file: h5py.File, path: str) -> h5py.Dataset:
        group, _, name = path.rpartition("/")
        parent = file.require_group(group) if group else file
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((layout.VARIABLE_CHUNK_ROWS,))
        properties.set_deflate(1)
        properties.set_obj_track_times(False)
        space = h5py.h5s.create_simple((0,), (h5py.h5s.UNLIMITED,))
        return h5py.Dataset(h5py.h5d.create(parent.id, name.encode(), self._type, space, properties))

    def append(self, values: np.ndarray, counts: np.ndarray) -> None:
        """Appends rows.

        Args:
          values: the elements of all rows, concatenated.
          counts: number of elements of each row: int64, (rows,).

        Raises:
          KabukiError: the sum of `counts` is not the number of elements.
        """
        start, self._rows = self._rows, self._rows + len(counts)
        if not len(counts):
            return
        if (counts < 0).any() or counts.sum() != len(values):
            # HDF5 gets pointers to the elements, and would read beyond the array.
            raise KabukiError(f"{self._dataset.name}: the lengths of the rows do not match the number of elements")
        values = np.ascontiguousarray(values)
        # The in-memory form of HDF5's variable-length rows: (number of elements, pointer to the elements).
        pointers = np.empty((len(counts), 2), np.uint64)
        pointers[:, 0] = counts
        pointers[:, 1] = values.ctypes.data + (np.cumsum(counts) - counts) * self._itemsize
        _append(self._dataset, start, pointers.reshape(-1).view("V16"), self._type)


class _Int64Dataset:
    """Appends int64 rows to a dataset, (rows,) or (rows, width). Creates the dataset if it does not exist."""

    def __init__(self, file: h5py.File, path: str, width: int | None = None):
        shape = () if width is None else (width,)
        self._dataset = (
            file[path]
            if path in file
            else file.create_dataset(
                path,
                (0, *shape),
                np.int64,
                maxshape=(None, *shape),
                chunks=(layout.VARIABLE_CHUNK_ROWS, *shape),
                compression="gzip",
                compression_opts=1,
            )
        )

    def append(self, rows: np.ndarray) -> None:
        start = len(self._dataset)
        self._dataset.resize(start + len(rows), axis=0)
        self._dataset[start:] = rows


def _append(dataset: h5py.Dataset, start: int, rows: np.ndarray, memory_type: h5py.h5t.TypeID) -> None:
    dataset.id.set_extent((start + len(rows), *rows.shape[1:]))
    space = dataset.id.get_space()
    space.select_hyperslab((start,) + (0,) * (rows.ndim - 1), rows.shape)
    dataset.id.write(h5py.h5s.create_simple(rows.shape), space, rows, mtype=memory_type)


def row_companions(field: Field) -> list[str]:
    """Returns the names of the companion datasets that have one row per row of the field."""
    is_bytes = field.dtype == BYTES or field.encoded
    if field.is_fixed or (field.encoded and not field.is_list_of_images):
        return []
    if field.nested:
        return [f"lengths_{i + 1}" for i in range(field.nested - 1 + (field.dtype == BYTES))]
    return ["shape"] * (not field.encoded and _needs_shape(field)) + ["lengths_1"] * is_bytes


def _needs_shape(field: Field) -> bool:
    """Returns whether the shape of a row does not follow from its number of elements."""
    return field.shape.count(None) > 1 or 0 in field.shape


def _span(dataset: h5py.Dataset, rows: np.ndarray) -> np.ndarray:
    """Returns consecutive rows of a dataset that are given by their row numbers."""
    return np.asarray(dataset[int(rows[0]) : int(rows[-1]) + 1] if len(rows) else dataset[:0])


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


def _group_sums(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns the sum of each group of consecutive values. Group i has `counts[i]` values."""
    totals = row_splits(values)
    ends = np.cumsum(counts)
    return totals[ends] - totals[ends - counts]


def _joined_bytes(texts: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(texts), np.uint8)


def _split(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Splits concatenated bytes into byte strings of the given sizes."""
    joined = values.astype(np.uint8, copy=False).tobytes()
    ends = np.cumsum(sizes).tolist()
    texts = np.empty(len(ends), object)
    texts[:] = [joined[end - size : end] for end, size in zip(ends, sizes.tolist(), strict=True)]
    return texts
