"""Reads the references that variable-length datasets store for their rows.

Each row is stored as the number of its elements and a reference to an object of a global
heap. The HDF5 library does not return references, but follows them. Therefore this module
reads the storage of the dataset, and decompresses it. Source: "Variable-length Types" in the
HDF5 File Format Specification.
"""

from __future__ import annotations

import functools
import itertools
import math

import h5py
import numpy as np
from h5py._objects import phil

from kabuki_rlds.formats.hdf5 import chunks
from kabuki_rlds.formats.safe_hdf5.compact_storage import compact_bytes
from kabuki_rlds.formats.safe_hdf5.direct_chunks import read_chunk, write_chunk
from kabuki_rlds.formats.safe_hdf5.stored_file import StoredFile

#: The rows of a dataset without chunks that are read together.
_RUN_ROWS = 1024
#: The limit for the references that are kept in memory, per dataset.
_KEPT_BYTES = 16 << 20

#: The filters that are undone here, in the order in which writers apply them.
_FILTERS = (h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE)


class StoredReferences:
    """The references of the rows of a dataset. Can be used by several threads.

    Args:
      dataset: a dataset of variable-length rows or texts.
      file: the file of the dataset.

    Raises:
      ValueError: the file has addresses of an unusual size.
    """

    def __init__(self, dataset: h5py.Dataset, file: StoredFile):
        if file.address_bytes not in (2, 4, 8):
            raise ValueError(f"addresses of {file.address_bytes} bytes are not supported")
        self._dtype = np.dtype([("elements", "<u4"), ("heap", f"<u{file.address_bytes}"), ("index", "<u4")])
        self._per_row = math.prod(dataset.shape[1:])
        runs = _Runs(dataset, file, self._dtype)
        self._run_rows = runs.rows
        # The cache must not refer to this object: a cycle would delay closing the file.
        run_bytes = max(runs.rows * self._per_row * self._dtype.itemsize, 1)
        self._run = functools.lru_cache(max(_KEPT_BYTES // run_bytes, 1))(runs)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Returns the references of the given rows.

        Args:
          rows: row numbers, ascending: int64, (count,).

        Returns:
          an array with the fields `elements`, `heap` and `index`: (count * references per row,).

        Raises:
          ValueError, OSError, RuntimeError: the storage is damaged.
        """
        if not len(rows) or not self._per_row:
            return np.empty(0, self._dtype)
        runs = rows // self._run_rows
        cuts = [0, *(np.flatnonzero(runs[1:] != runs[:-1]) + 1).tolist(), len(rows)]
        parts = []
        for a, b in itertools.pairwise(cuts):
            run = int(runs[a])
            parts.append(self._run(run)[rows[a:b] - run * self._run_rows].reshape(-1))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


class _Runs:
    """Reads the references of a run of rows: the rows of a chunk.

    Attributes:
      rows: the number of rows in a run.
    """

    def __init__(self, dataset: h5py.Dataset, file: StoredFile, dtype: np.dtype):
        self._dataset, self._file, self._dtype = dataset, file, dtype
        self._shape: tuple[int, ...] = dataset.shape or (1,)
        self._chunk: tuple[int, ...] = dataset.chunks or ()
        self.rows = self._chunk[0] if self._chunk else _RUN_ROWS
        properties = dataset.id.get_create_plist()
        self._has_fill = properties.fill_value_defined() == h5py.h5d.FILL_VALUE_USER_DEFINED
        self._values: bytes | None = None
        self._offset: int | None = None
        if self._chunk:
            self._grid = tuple(-(-n // c) for n, c in zip(self._shape, self._chunk, strict=True))
            self._filters = [properties.get_filter(i) for i in range(properties.get_nfilters())]
            self._numbers, self._offsets, self._sizes, self._masks = self._find_chunks()
        elif properties.get_layout() == h5py.h5d.COMPACT:
            self._values = compact_bytes(dataset, file)
        else:
            offset = dataset.id.get_offset()
            # If nothing was written, HDF5 adds the size of the user block to the undefined address -1.
            self._offset = None if offset is None or offset < file.base else offset - file.base

    def __call__(self, run: int) -> np.ndarray:
        """Returns the references of run number `run`: (rows, *shape of a row)."""
        if self._chunk:
            return self._of_chunks(run)
        first = run * self.rows
        shape = (min(self.rows, self._shape[0] - first), *self._shape[1:])
        row_bytes = math.prod(shape[1:]) * self._dtype.itemsize
        nbytes = shape[0] * row_bytes
        if self._values is not None:
            stored = self._values[first * row_bytes :][:nbytes]
        elif self._offset is not None:
            stored = self._file.read(self._offset + first * row_bytes, nbytes)
        else:
            return self._unwritten(shape)
        if len(stored) < nbytes:
            raise ValueError("the dataset stores fewer rows than it declares")
        return np.frombuffer(stored, self._dtype, math.prod(shape)).reshape(shape)

    def _unwritten(self, shape: tuple[int, ...]) -> np.ndarray:
        """Returns references of empty rows, for rows that were never written."""
        if self._has_fill:
            raise ValueError("rows that were never written have a fill value of variable length, which is not read")
        return np.zeros(shape, self._dtype)

    def _find_chunks(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Returns number, offset in the file, stored size and mask of skipped filters of each chunk that was written.

        Chunks are numbered in row-major order, and sorted by number.
        """
        found: list[tuple[int, int, int, int]] = []

        def note(chunk: h5py.h5d.StoreInfo) -> None:
            number = 0
            for at, size, count in zip(chunk.chunk_offset, self._chunk, self._grid, strict=True):
                number = number * count + at // size
            found.append((number, chunk.byte_offset or 0, chunk.size, chunk.filter_mask))

        with phil:
            self._dataset.id.chunk_iter(note)
        numbers, offsets, sizes, masks = np.array(sorted(found), np.int64).reshape(-1, 4).T
        return numbers, offsets, sizes, masks

    def _of_chunks(self, run: int) -> np.ndarray:
        across = math.prod(self._grid[1:])
        begin, end = np.searchsorted(self._numbers, [run * across, (run + 1) * across]).tolist()
        if end - begin == across == 1 and self._shape[1:] == self._chunk[1:]:
            return self._unpacked(begin, (run, *(0,) * (len(self._shape) - 1)))
        shape = (self.rows, *self._shape[1:])
        references = np.empty(shape, self._dtype) if end - begin == across else self._unwritten(shape)
        for i in range(begin, end):
            place = tuple(map(int, np.unravel_index(int(self._numbers[i]), self._grid)))
            at = tuple(slice(p * c, (p + 1) * c) for p, c in zip(place[1:], self._chunk[1:], strict=True))
            target = references[(slice(None), *at)]
            # The last chunk of a dimension may reach beyond the shape.
            target[:] = self._unpacked(i, place)[tuple(map(slice, target.shape))]
        return references

    def _unpacked(self, i: int, place: tuple[int, ...]) -> np.ndarray:
        """Returns the references of a chunk.

        Args:
          i: its index in `_numbers`.
          place: its position in the grid of chunks.
        """
        size, mask = int(self._sizes[i]), int(self._masks[i])
        if size > self._file.num_bytes:
            raise ValueError("a chunk is larger than the file")
        if self._file.base:
            # HDF5 1.14 does not count the user block in the offset of a chunk.
            offset = tuple(p * c for p, c in zip(place, self._chunk, strict=True))
            _, stored = read_chunk(self._dataset.id, offset)
        else:
            stored = self._file.read(int(self._offsets[i]), size)
        applied = [number for j, (number, *_) in enumerate(self._filters) if not mask >> j & 1]
        if applied != [number for number in _FILTERS if number in applied]:
            return self._unpack_by_hdf5(stored, mask)
        raw = chunks.unpack(
            stored,
            math.prod(self._chunk) * self._dtype.itemsize,
            self._dtype.itemsize,
            shuffled=h5py.h5z.FILTER_SHUFFLE in applied,
            deflated=h5py.h5z.FILTER_DEFLATE in applied,
        )
        return raw.view(self._dtype).reshape(self._chunk)

    def _unpack_by_hdf5(self, stored: bytes, mask: int) -> np.ndarray:
        """Undoes any filters that HDF5 has.

        Copies the chunk to a dataset in memory whose element type is a reference. HDF5 then does not follow it.
        """
        same = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        same.set_chunk(self._chunk)
        for number, flags, values, _ in self._filters:
            same.set_filter(number, flags, values)
        with phil, h5py.File(f"references-{id(same)}", "w", driver="core", backing_store=False) as memory:
            space = h5py.h5s.create_simple(self._chunk)
            copy = h5py.h5d.create(memory.id, b"references", h5py.h5t.py_create(self._dtype), space, same)
            write_chunk(copy, (0,) * len(self._chunk), stored, mask)
            # HDF5 2.0 applies the mask of skipped filters only after the dataset is opened again.
            del copy
            return np.asarray(memory["references"][()])
