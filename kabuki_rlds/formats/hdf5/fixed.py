"""Writes and reads columns whose rows all have the same shape, as HDF5 datasets (rows, *shape)."""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import itertools
import math
import os
from collections.abc import Callable, Sequence
from typing import TypeAlias

import h5py
import numpy as np

from kabuki_rlds.data.schema import BFLOAT16, Field
from kabuki_rlds.formats.hdf5 import chunks, layout
from kabuki_rlds.formats.hdf5.stored_chunks import StoredChunks
from kabuki_rlds.formats.safe_hdf5.filters import are_own_filters

#: The number of chunks that may wait for the threads that unpack them.
_AHEAD = 16
#: The total size of the chunks that readers keep. Larger chunks than `_MAX_CHUNK_IN_THREAD` are unpacked one at a time.
_MAX_KEPT_BYTES = 128 << 20
_MAX_CHUNK_IN_THREAD = 32 << 20
#: In uncompressed chunks, rows of at least so many bytes are read without the rest of their chunk.
_LARGE_ROW_BYTES = 4096

#: The filters of the chunks that `chunks.pack` can write.
_OWN_FILTERS = ((), (h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE))

_Unpacked: TypeAlias = "concurrent.futures.Future[np.ndarray]"


class FixedWriter:
    """Appends rows to a dataset. Creates the dataset if it does not exist.

    Args:
      file: the file to write to.
      path: path of the dataset.
      field: dtype and shape of its rows.
      compression: the filter of the chunks of a new dataset.
      pool: packs and writes the chunks.
      num_columns: the number of datasets that are written at the same time. Each holds back a chunk.
    """

    def __init__(
        self,
        file: h5py.File,
        path: str,
        field: Field,
        compression: chunks.Compression,
        pool: chunks.ChunkPool,
        num_columns: int = 1,
    ):
        self._file = file
        self._path = path
        self._dtype = field.dtype.newbyteorder("<") if field.dtype != BFLOAT16 else field.dtype
        self._shape = tuple(d for d in field.shape if d is not None)
        self._rows = 0
        self._pieces: list[np.ndarray] = []
        self._buffered = 0
        self._pool = pool
        self._direct = compression != "lzf"
        self._deflate = compression == "gzip"
        self._type = layout.element_type(field.dtype)
        row_nbytes = math.prod(self._shape) * field.dtype.itemsize
        self._chunk_rows = layout.chunk_rows(row_nbytes, num_columns)
        self._dataset: h5py.h5d.DatasetID | None = None
        if path in file:
            self._open(file[path])
        elif row_nbytes:
            space = h5py.h5s.create_simple((0, *self._shape), (h5py.h5s.UNLIMITED, *self._shape))
            properties = chunks.create_properties((self._chunk_rows, *self._shape), field.dtype.itemsize, compression)
            self._dataset = _create(file, path, self._type, space, properties)

    def _open(self, dataset: h5py.Dataset) -> None:
        """Opens an existing dataset, and loads the rows of its last chunk if the chunk is not full."""
        self._rows = len(dataset)
        if not dataset.chunks:
            # The rows have no elements. `close` creates the dataset again with the new number of rows.
            del self._file[self._path]
            return
        # The stored type of a flag may differ from the type of the field.
        stored = layout.element_dtype(dataset)
        self._dtype = stored if stored == BFLOAT16 else stored.newbyteorder("<")
        self._type = layout.element_type(stored)
        filters = _filters_of(dataset) if dataset.chunks[1:] == dataset.shape[1:] else None
        is_deflated_bytes = filters == (h5py.h5z.FILTER_DEFLATE,) and self._dtype.itemsize == 1
        self._direct = filters in _OWN_FILTERS or is_deflated_bytes
        self._deflate = bool(filters)
        self._chunk_rows = dataset.chunks[0]
        self._dataset = dataset.id
        self._buffered = self._rows % self._chunk_rows
        if self._buffered:
            with concurrent.futures.ThreadPoolExecutor(1) as executor:
                rows = FixedReader(dataset, executor).read(self._rows - self._buffered, self._rows)
            self._pieces = [rows.astype(self._dtype, copy=False)]

    def write(self, column: np.ndarray) -> None:
        """Appends rows.

        Args:
          column: the rows: (rows, *shape) of the field's dtype.
        """
        self._rows += len(column)
        if self._dataset is None or not len(column):
            return
        column = column.astype(self._dtype, copy=False)
        self._buffered += len(column)
        self._pieces.append(column)
        if self._buffered < self._chunk_rows:
            return
        start = self._rows - self._buffered
        self._dataset.set_extent((self._rows, *self._shape))
        taken: list[np.ndarray] = []
        room = self._chunk_rows
        for piece in self._pieces:
            at = 0
            while len(piece) - at >= room:
                self._write_chunk(start, [*taken, piece[at : at + room]])
                at += room
                start += self._chunk_rows
                taken, room = [], self._chunk_rows
            if at < len(piece):
                # A view would keep all rows of the block in memory.
                taken.append(piece[at:].copy() if at else piece)
                room -= len(piece) - at
        self._pieces = taken
        self._buffered = self._chunk_rows - room

    def close(self) -> None:
        """Writes the last, incomplete chunk."""
        if self._dataset is None:
            # HDF5 does not allow chunks of 0 bytes. Therefore a dataset without elements is not chunked, and is created
            # when the number of rows is known.
            _create(self._file, self._path, self._type, h5py.h5s.create_simple((self._rows, *self._shape)), None)
            return
        self._dataset.set_extent((self._rows, *self._shape))
        if self._pieces:
            self._write_chunk(self._rows - self._buffered, self._pieces)

    def _write_chunk(self, row: int, pieces: list[np.ndarray]) -> None:
        assert self._dataset is not None
        if self._direct:
            self._pool.write(self._dataset, row, pieces, self._chunk_rows, deflate=self._deflate)
            return
        rows = np.ascontiguousarray(np.concatenate(pieces))
        memory, space = h5py.h5s.create_simple(rows.shape), self._dataset.get_space()
        space.select_hyperslab((row,) + (0,) * len(self._shape), rows.shape)
        self._dataset.write(memory, space, _as_stored(rows), mtype=self._type)


class ChunkMemory:
    """The memory for the chunks that readers keep. Readers of thousands of fields share it.

    Attributes:
      free: bytes that are not used.
    """

    def __init__(self) -> None:
        self.free = _MAX_KEPT_BYTES


class FixedReader:
    """Reads rows of a dataset from any writer.

    Unpacks chunks in threads if they have no filters other than shuffle and gzip. Otherwise
    the HDF5 library reads the rows.

    Args:
      dataset: the dataset.
      executor: the threads.
      dtype: dtype of the returned rows. None uses the dtype of the dataset.
      memory: the memory for chunks, which several readers share. None gives this reader its own.
    """

    def __init__(
        self,
        dataset: h5py.Dataset,
        executor: concurrent.futures.Executor,
        dtype: np.dtype | None = None,
        memory: ChunkMemory | None = None,
    ):
        self._dataset = dataset
        self._executor = executor
        self._dtype = layout.element_dtype(dataset)
        self._output_dtype = self._dtype if dtype is None else dtype
        self._shape: tuple[int, ...] = dataset.shape[1:]
        filters = _filters_of(dataset) if self._dtype.kind != "O" else None
        self._chunks = None if filters is None else StoredChunks(dataset, self._dtype, dataset.fillvalue)
        if self._chunks is not None:
            self._run_rows = self._chunks.run_rows
        else:
            self._run_rows = int(dataset.chunks[0]) if dataset.chunks else layout.chunk_rows(self._row_nbytes)
        self._run_nbytes = self._run_rows * self._row_nbytes
        #: The first row of a chunk, and the chunk. It is kept because more of its rows are likely to be read.
        self._recent: tuple[int, _Unpacked] | None = None
        self._num_kept = 0
        self._memory = memory or ChunkMemory()

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns the rows `start` to `stop`: (stop - start, *shape), in native byte order.

        Raises:
          OSError, ValueError, RuntimeError: a chunk is damaged.
        """
        # Unpacking a single chunk takes less time than starting a thread.
        in_thread = stop > start - start % self._run_rows + self._run_rows
        return self._begin(start, stop, in_thread)()

    def begin(self, start: int, stop: int) -> Callable[[], np.ndarray]:
        """Starts reading rows in threads. Returns a function that waits for the rows and returns them."""
        return self._begin(start, stop, True)

    def _begin(self, start: int, stop: int, in_thread: bool) -> Callable[[], np.ndarray]:
        if self._chunks is None or start >= stop:
            return functools.partial(self._read_by_hdf5, start, stop)
        if self._run_nbytes > _MAX_CHUNK_IN_THREAD:
            joined = np.concatenate([self._part(offset, start, stop) for offset in self._offsets(start, stop)])
            return functools.partial(joined.astype, self._output_dtype, copy=False)
        todo = [(offset, self._unpacked(offset, in_thread)) for offset in self._offsets(start, stop)]
        self._keep(*todo[-1], stop)

        def finish() -> np.ndarray:
            parts = [chunk.result()[max(start - offset, 0) : stop - offset] for offset, chunk in todo]
            # A view of some rows would keep the whole chunk in memory.
            joined = parts[0] if len(parts) == 1 and len(parts[0]) == self._run_rows else np.concatenate(parts)
            return joined.astype(self._output_dtype, copy=False)

        return finish

    def _offsets(self, start: int, stop: int) -> range:
        """Returns the first row of each chunk that contains rows from `start` to `stop`."""
        return range(start - start % self._run_rows, stop, self._run_rows)

    def _part(self, offset: int, start: int, stop: int) -> np.ndarray:
        """Copies rows from a large chunk, so that only one such chunk is in memory, and one that is kept."""
        unpacked = self._unpacked(offset, False)
        self._keep(offset, unpacked, stop)
        return unpacked.result()[max(start - offset, 0) : stop - offset].copy()

    def _unpacked(self, offset: int, in_thread: bool) -> _Unpacked:
        """Returns the chunk whose first row is `offset`: the kept one, or unpacked now or in a thread."""
        # Another thread may replace it meanwhile.
        recent = self._recent
        if recent is not None and recent[0] == offset:
            return recent[1]
        if in_thread:
            return self._executor.submit(self._unpack, offset // self._run_rows)
        unpacked: _Unpacked = concurrent.futures.Future()
        unpacked.set_result(self._unpack(offset // self._run_rows))
        return unpacked

    def _keep(self, offset: int, unpacked: _Unpacked, stop: int) -> None:
        """Keeps a chunk for the next call, unless its last row was read or too many bytes are kept already."""
        self._memory.free += self._num_kept
        is_complete = stop >= min(offset + self._run_rows, len(self._dataset))
        keeps = not is_complete and self._run_nbytes <= self._memory.free
        self._recent = (offset, unpacked) if keeps else None
        self._num_kept = self._run_nbytes if keeps else 0
        self._memory.free -= self._num_kept

    def take_into(self, out: np.ndarray, rows: np.ndarray, places: np.ndarray) -> None:
        """Copies row `rows[i]` to `out[places[i]]`. Reads each chunk once.

        Args:
          out: the destination: (any, *shape) of the field's dtype.
          rows: row numbers, ascending: int64, (count,).
          places: indices in `out`: int64, (count,).

        Raises:
          OSError, ValueError, RuntimeError: a chunk is damaged.
        """
        if not out.size:
            return
        stored = self._chunks
        is_large = self._row_nbytes >= _LARGE_ROW_BYTES and out.flags.c_contiguous
        # Booleans are checked, and other types may have to be converted.
        is_large &= out.dtype == self._dtype and out.dtype.kind != "b"
        offsets = stored.row_offsets if stored is not None and is_large else None
        if stored is not None and offsets is not None:
            self._take_single_rows(stored, offsets, out, rows, places)
            return
        pending: collections.deque[concurrent.futures.Future[None]] = collections.deque()
        cuts = np.flatnonzero(np.diff(rows // self.run_rows)) + 1
        for a, b in itertools.pairwise([0, *cuts.tolist(), len(rows)]):
            run, start, stop = int(rows[a]) // self.run_rows, int(rows[a]), int(rows[b - 1]) + 1
            if stored is None:
                out[places[a:b]] = self._read_by_hdf5(start, stop)[rows[a:b] - start]
                continue
            pending.append(
                self._executor.submit(self._unpack_into, run, out, rows[a:b] - run * self.run_rows, places[a:b])
            )
            if len(pending) > _AHEAD:
                pending.popleft().result()
        for placed in pending:
            placed.result()

    def _take_single_rows(
        self, stored: StoredChunks, run_offsets: np.ndarray, out: np.ndarray, rows: np.ndarray, places: np.ndarray
    ) -> None:
        """Reads single rows of uncompressed chunks, without the other rows of the chunks.

        Args:
          stored: the chunks.
          run_offsets: their `row_offsets`.
          out: as for `take_into`.
          rows: as for `take_into`.
          places: as for `take_into`.
        """
        nbytes = self._row_nbytes
        run = rows // self.run_rows
        offsets = run_offsets[run] + (rows - run * self.run_rows) * nbytes
        # Rows that are adjacent both in the file and in `out` are read together.
        cuts = np.flatnonzero((np.diff(offsets) != nbytes) | (np.diff(places) != 1)) + 1
        first, end = np.concatenate([[0], cuts]), np.concatenate([cuts, [len(rows)]])
        runs = list(zip(offsets[first].tolist(), places[first].tolist(), (end - first).tolist(), strict=True))
        flat = out.reshape(len(out), -1).view(np.uint8)

        def read(some: Sequence[tuple[int, int, int]]) -> None:
            for offset, place, count in some:
                stored.read_into(flat[place : place + count], offset)

        parts = min(len(runs), os.cpu_count() or 1)
        list(self._executor.map(read, [runs[i::parts] for i in range(parts)]))

    @property
    def run_rows(self) -> int:
        """The number of rows that are read together if one of them is requested: the rows of a chunk."""
        return self._run_rows

    @property
    def _row_nbytes(self) -> int:
        return math.prod(self._shape) * self._dtype.itemsize

    def _unpack_into(self, run: int, out: np.ndarray, rows: np.ndarray, places: np.ndarray) -> None:
        out[places] = self._unpack(run)[rows]

    def _unpack(self, run: int) -> np.ndarray:
        assert self._chunks is not None
        return _check_booleans(self._chunks.rows(run * self._run_rows, (run + 1) * self._run_rows))

    def _read_by_hdf5(self, start: int, stop: int) -> np.ndarray:
        if self._dtype == BFLOAT16:
            rows = np.empty((stop - start, *self._shape), np.uint16)
            if rows.size:
                space = self._dataset.id.get_space()
                space.select_hyperslab((start,) + (0,) * len(self._shape), rows.shape)
                stored_type = self._dataset.id.get_type()
                self._dataset.id.read(h5py.h5s.create_simple(rows.shape), space, rows, mtype=stored_type)
                if stored_type.get_order() == h5py.h5t.ORDER_BE:
                    rows.byteswap(inplace=True)
            return rows.view(BFLOAT16)
        found = _check_booleans(np.asarray(self._dataset[start:stop]).astype(self._dtype, copy=False))
        return found.astype(self._output_dtype, copy=False)


def _filters_of(dataset: h5py.Dataset) -> tuple[int, ...] | None:
    """Returns the numbers of the filters of a chunked dataset, or None if only the HDF5 library can undo them.

    Only the library can read the chunks if it has to convert the elements, or if there are uncommon filters.
    """
    if not dataset.chunks or 0 in dataset.shape[1:] or not _is_native(dataset):
        return None
    properties = dataset.id.get_create_plist()
    filters = tuple(properties.get_filter(i)[0] for i in range(properties.get_nfilters()))
    return filters if are_own_filters(filters) else None


def _is_native(dataset: h5py.Dataset) -> bool:
    """Returns whether the stored bytes of an element are the same as NumPy's."""
    dtype, stored = layout.element_dtype(dataset), dataset.id.get_type()
    if isinstance(stored, h5py.h5t.TypeEnumID) and dtype.kind != "b":
        stored = stored.get_super()
    # An HDF5 integer may use only part of its bits, and a float may have a nonstandard exponent.
    native: bool = stored.equal(layout.element_type(dtype))
    return native


def _check_booleans(rows: np.ndarray) -> np.ndarray:
    """Returns `rows`. Raises `ValueError` if a boolean is stored as a byte other than 0 and 1."""
    if rows.dtype.kind == "b" and rows.size and rows.view(np.uint8).max() > 1:
        raise ValueError("a boolean is neither 0 nor 1")
    return rows


def _as_stored(rows: np.ndarray) -> np.ndarray:
    """Returns bfloat16 rows as uint16, because h5py does not accept bfloat16 arrays. Returns other rows unchanged."""
    return rows.view(np.uint16) if rows.dtype == BFLOAT16 else rows


def _create(
    file: h5py.File,
    path: str,
    element: h5py.h5t.TypeID,
    space: h5py.h5s.SpaceID,
    properties: h5py.h5p.PropDCID | None,
) -> h5py.h5d.DatasetID:
    group, _, name = path.rpartition("/")
    parent = file.require_group(group) if group else file
    return h5py.h5d.create(parent.id, name.encode(), element, space, properties)
