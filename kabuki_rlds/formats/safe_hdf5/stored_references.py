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

from kabuki_rlds.formats.hdf5.stored_chunks import UNKNOWN_FILL, StoredChunks
from kabuki_rlds.formats.safe_hdf5.compact_storage import compact_bytes
from kabuki_rlds.formats.safe_hdf5.stored_file import StoredFile

#: The rows of a dataset without chunks that are read together.
_RUN_ROWS = 1024
#: The limit for the references that are kept in memory, per dataset.
_KEPT_BYTES = 16 << 20


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
        self._file, self._dtype = file, dtype
        self._shape: tuple[int, ...] = dataset.shape or (1,)
        properties = dataset.id.get_create_plist()
        has_fill = properties.fill_value_defined() == h5py.h5d.FILL_VALUE_USER_DEFINED
        #: The references of empty rows, for rows that were never written.
        self._fill = None if has_fill else np.zeros((), dtype)
        self._chunks: StoredChunks | None = None
        self._values: bytes | None = None
        self._offset: int | None = None
        self.rows = _RUN_ROWS
        if dataset.chunks:
            self._chunks = StoredChunks(dataset, dtype, self._fill)
            self.rows = self._chunks.run_rows
        elif properties.get_layout() == h5py.h5d.COMPACT:
            self._values = compact_bytes(dataset, file)
        else:
            offset = dataset.id.get_offset()
            # If nothing was written, HDF5 adds the size of the user block to the undefined address -1.
            self._offset = None if offset is None or offset < file.base else offset - file.base

    def __call__(self, run: int) -> np.ndarray:
        """Returns the references of run number `run`: (rows, *shape of a row)."""
        first = run * self.rows
        if self._chunks is not None:
            return self._chunks.rows(first, first + self.rows)
        shape = (min(self.rows, self._shape[0] - first), *self._shape[1:])
        row_bytes = math.prod(shape[1:]) * self._dtype.itemsize
        nbytes = shape[0] * row_bytes
        if self._values is not None:
            stored = self._values[first * row_bytes :][:nbytes]
        elif self._offset is not None:
            stored = self._file.read(self._offset + first * row_bytes, nbytes)
        elif self._fill is not None:
            return np.full(shape, self._fill)
        else:
            raise ValueError(UNKNOWN_FILL)
        if len(stored) < nbytes:
            raise ValueError("the dataset stores fewer rows than it declares")
        return np.frombuffer(stored, self._dtype, math.prod(shape)).reshape(shape)
