"""Reads the chunks of a dataset without the HDF5 library: several threads at a time, and in bounded memory.

The library holds a global lock while it reads. It also decompresses a chunk to any size, however small the dataset
says that the chunk is.
"""

from __future__ import annotations

import functools
import math
import os
from typing import Any

import h5py
import numpy as np
from h5py._objects import phil

from kabuki_rlds.formats.hdf5 import chunks
from kabuki_rlds.formats.safe_hdf5.direct_chunks import read_chunk, write_chunk
from kabuki_rlds.formats.safe_hdf5.filters import are_own_filters

#: Rows that are spread over several chunks are read together up to this size.
_MAX_RUN_BYTES = 32 << 20

UNKNOWN_FILL = "rows that were never written have a fill value of variable length, which is not read"
#: Parts of HDF5's error messages for a chunk that was never written.
_NEVER_WRITTEN = ("address isn't defined", "storage is not initialized", "storage is not allocated")
_BEYOND_END = "a chunk reaches beyond the end of the file"


class StoredChunks:
    """The chunks of a dataset. Can be used by several threads while the HDF5 file is open.

    Args:
      dataset: the dataset.
      dtype: dtype of the elements as they are stored.
      fill: the value of rows that were never written; None if it is not known.

    Attributes:
      run_rows: the number of rows to read together: those of a chunk, or fewer if rows are spread over several chunks.
    """

    def __init__(self, dataset: h5py.Dataset, dtype: np.dtype, fill: Any):
        self._dataset = dataset.id
        properties = dataset.id.get_create_plist()
        self._filters = [properties.get_filter(i) for i in range(properties.get_nfilters())]
        self._dtype, self._fill = dtype, fill
        self._shape: tuple[int, ...] = dataset.shape
        self._chunk: tuple[int, ...] = dataset.chunks
        self._grid = tuple(-(-n // c) for n, c in zip(self._shape, self._chunk, strict=True))
        self._across = math.prod(self._grid[1:])
        self._chunk_nbytes = math.prod(self._chunk) * self._dtype.itemsize
        self._has_whole_rows = self._shape[1:] == self._chunk[1:]
        #: HDF5 (1.10 to 2.0) lists wrong places for the chunks of some datasets whose rows can grow.
        self._lists_chunks = dataset.maxshape[1:] == self._shape[1:]
        self.run_rows = int(self._chunk[0])
        if not self._has_whole_rows:
            row_nbytes = math.prod(self._shape[1:]) * self._dtype.itemsize
            self.run_rows = max(min(self.run_rows, _MAX_RUN_BYTES // max(row_nbytes, 1)), 1)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Returns rows: (stop - start, *shape of a row). Those after the end of the dataset are arbitrary.

        Raises:
          OSError, ValueError, RuntimeError: a chunk is damaged.
        """
        first, end = start // self._chunk[0], -(-stop // self._chunk[0])
        begin, after = np.searchsorted(self._index[0], [first * self._across, end * self._across]).tolist()
        is_one = after - begin == 1 and self._has_whole_rows
        if is_one and (start, stop) == (first * self._chunk[0], end * self._chunk[0]):
            return self._unpacked(begin)
        rows = np.empty((stop - start, *self._shape[1:]), self._dtype)
        if after - begin != (end - first) * self._across:
            if self._fill is None:
                raise ValueError(UNKNOWN_FILL)
            rows[:] = self._fill
        for i in range(begin, after):
            place = np.unravel_index(int(self._index[0][i]), self._grid)
            low = [int(p) * c for p, c in zip(place, self._chunk, strict=True)]
            # The last chunk of a dimension may reach beyond the shape.
            shape = (stop, *self._shape[1:])
            high = [min(a + c, n) for a, c, n in zip(low, self._chunk, shape, strict=True)]
            skipped = max(start - low[0], 0)
            inner = [slice(a, b) for a, b in zip(low[1:], high[1:], strict=True)]
            taken = (slice(skipped, high[0] - low[0]), *(slice(b - a) for a, b in zip(low[1:], high[1:], strict=True)))
            rows[(slice(low[0] + skipped - start, high[0] - start), *inner)] = self._unpacked(i)[taken]
        return rows

    @functools.cached_property
    def row_offsets(self) -> np.ndarray | None:
        """Offset in the file of the first row of each chunk, if the rows are stored as they are: int64, (chunks,).

        None if chunks are compressed or missing, do not contain whole rows, or cannot be read without the library.

        Raises:
          ValueError: a chunk has another size than the dataset declares.
        """
        numbers, offsets, sizes, _ = self._index
        if self._filters or self._descriptor is None or not self._has_whole_rows:
            return None
        if len(numbers) != self._grid[0]:
            return None
        wrong = sizes != self._chunk_nbytes
        if wrong.any():
            raise ValueError(f"a chunk has {int(sizes[wrong][0])} bytes, expected {self._chunk_nbytes}")
        return offsets

    def read_into(self, target: np.ndarray, offset: int) -> None:
        """Fills a C-contiguous uint8 array with the bytes of the file from `offset` on. For use with `row_offsets`.

        Raises:
          ValueError: the bytes reach beyond the end of the file.
        """
        assert self._descriptor is not None
        if os.preadv(self._descriptor, [target.data], offset) != target.nbytes:
            raise ValueError(_BEYOND_END)

    @functools.cached_property
    def _descriptor(self) -> int | None:
        """Descriptor of the open file, which belongs to the HDF5 library; None if it does not read a plain file.

        Also None if the file has a user block: HDF5 1.14 does not count it in the offsets of chunks.
        """
        if not self._lists_chunks:
            return None
        try:
            with phil:
                file = h5py.h5i.get_file_id(self._dataset)
                descriptor = file.get_vfd_handle()
                is_plain = file.get_create_plist().get_userblock() == 0
        except (RuntimeError, ValueError, TypeError, NotImplementedError, OverflowError):
            return None
        return descriptor if is_plain and isinstance(descriptor, int) else None

    @functools.cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Number, offset in the file, stored size, and mask of skipped filters of each chunk: int64, (chunks,).

        Chunks are numbered in row-major order, and sorted by number. Chunks that were never written are missing. If
        HDF5 does not list the chunks correctly, all chunks have an entry, and only the numbers are known.
        """
        if not self._lists_chunks:
            numbers = np.arange(math.prod(self._grid))
            return (numbers, *np.zeros((3, 1), np.int64).repeat(len(numbers), 1))
        found: list[tuple[int, int, int, int]] = []

        def note(chunk: h5py.h5d.StoreInfo) -> None:
            number = 0
            for at, size, count in zip(chunk.chunk_offset, self._chunk, self._grid, strict=True):
                if at // size >= count:
                    # HDF5 never reads a chunk outside of the shape.
                    return
                number = number * count + at // size
            found.append((number, chunk.byte_offset or 0, chunk.size, chunk.filter_mask))

        with phil:
            self._dataset.chunk_iter(note)
        try:
            numbers, offsets, sizes, masks = np.array(sorted(found), np.int64).reshape(-1, 4).T
        except OverflowError:
            # An offset is larger than any file.
            raise ValueError(_BEYOND_END) from None
        if (numbers[1:] == numbers[:-1]).any():
            raise ValueError("the index of chunks has several chunks at the same place")
        return numbers, offsets, sizes, masks

    def _unpacked(self, i: int) -> np.ndarray:
        """Returns the elements of the chunk at position `i` of the index: (*chunk)."""
        number, offset, size, mask = (int(column[i]) for column in self._index)
        if self._descriptor is not None:
            if size > os.fstat(self._descriptor).st_size:
                raise ValueError(_BEYOND_END)
            stored = os.pread(self._descriptor, size, offset)
            if len(stored) != size:
                raise ValueError(_BEYOND_END)
        else:
            place = np.unravel_index(number, self._grid)
            corner = tuple(int(p) * c for p, c in zip(place, self._chunk, strict=True))
            try:
                mask, stored = read_chunk(self._dataset, corner)
            except (OSError, RuntimeError, MemoryError) as e:
                # Some versions of h5py allocate the zero bytes of a chunk that was never written, and raise a
                # MemoryError without a text.
                is_empty = isinstance(e, MemoryError) and not str(e)
                if self._lists_chunks or not (is_empty or any(part in str(e) for part in _NEVER_WRITTEN)):
                    raise
                if self._fill is None:
                    raise ValueError(UNKNOWN_FILL) from None
                return np.full(self._chunk, self._fill, self._dtype)
        applied = tuple(number for bit, (number, *_) in enumerate(self._filters) if not mask >> bit & 1)
        if not are_own_filters(applied):
            return self._unpack_by_hdf5(stored, mask)
        raw = chunks.unpack(
            stored,
            self._chunk_nbytes,
            self._dtype.itemsize,
            shuffled=h5py.h5z.FILTER_SHUFFLE in applied,
            deflated=h5py.h5z.FILTER_DEFLATE in applied,
            has_checksum=h5py.h5z.FILTER_FLETCHER32 in applied,
        )
        return raw.view(self._dtype).reshape(self._chunk)

    def _unpack_by_hdf5(self, stored: bytes, mask: int) -> np.ndarray:
        """Undoes any filters that HDF5 has.

        Copies the chunk to a dataset in memory whose elements are of this dtype. So HDF5 does not follow references.
        """
        same = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        same.set_chunk(self._chunk)
        for number, flags, values, _ in self._filters:
            same.set_filter(number, flags, values)
        with phil, h5py.File(f"chunk-{id(same)}", "w", driver="core", backing_store=False) as memory:
            space = h5py.h5s.create_simple(self._chunk)
            copy = h5py.h5d.create(memory.id, b"chunk", h5py.h5t.py_create(self._dtype), space, same)
            write_chunk(copy, (0,) * len(self._chunk), stored, mask)
            # HDF5 2.0 applies the mask of skipped filters only after the dataset is opened again.
            del copy
            return np.asarray(memory["chunk"][()])
