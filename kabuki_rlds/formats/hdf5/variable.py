"""Writes columns whose rows vary in size: text, ragged arrays, encoded images, nested lists.

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

import math

import h5py
import numpy as np

from kabuki_rlds.data.block import Nested, Ragged, row_splits
from kabuki_rlds.data.schema import BYTES, Field
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.formats.hdf5 import layout

_INT64 = np.dtype(np.int64)
_UINT8 = np.dtype(np.uint8)


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


def _group_sums(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns the sum of each group of consecutive values. Group i has `counts[i]` values."""
    totals = row_splits(values)
    ends = np.cumsum(counts)
    return totals[ends] - totals[ends - counts]


def _joined_bytes(texts: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(texts), np.uint8)
