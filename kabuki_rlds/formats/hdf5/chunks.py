"""Chunks of HDF5 datasets, filtered outside the HDF5 library.

HDF5 filters one chunk at a time under a global lock. Here chunks are shuffled and
deflated in threads, by ISA-L, and handed to HDF5 as they are to stand in the file.
What comes out is what HDF5's own shuffle and gzip filters write and read, so that
any HDF5 reader reads it.
"""

from __future__ import annotations

import collections
import concurrent.futures
import os
from collections.abc import Sequence
from typing import Literal

import h5py
import numpy as np
from isal import isal_zlib

Compression = Literal["gzip", "lzf", "none"]

#: ISA-L's levels are 0 to 3; 1 deflates floats as small as 3 does, at twice the speed.
_LEVEL = 1
#: What was written is sent on to the disk whenever it is this much.
_SYNC_BYTES = 32 << 20
#: Chunks that wait for a thread or for the disk hold no more than this.
_PENDING_BYTES = 32 << 20


def create_properties(chunk: tuple[int, ...], itemsize: int, compression: Compression) -> h5py.h5p.PropDCID:
    """The creation properties of a chunked dataset with only filters that HDF5 itself has."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk(chunk)
    properties.set_fill_time(h5py.h5d.FILL_TIME_IFSET)
    properties.set_obj_track_times(False)
    if compression != "none" and itemsize > 1:
        properties.set_shuffle()
    if compression == "gzip":
        properties.set_deflate(_LEVEL)
    elif compression == "lzf":
        properties.set_filter(h5py.h5z.FILTER_LZF, h5py.h5z.FLAG_OPTIONAL)
    return properties


def pack(pieces: Sequence[np.ndarray], rows: int, *, deflate: bool) -> bytes | np.ndarray:
    """One chunk as it stands in the file.

    Args:
      pieces: consecutive rows of one dtype and row shape.
      rows: rows in a chunk; what `pieces` lack is filled with zeros.
      deflate: shuffle and deflate; else the bytes as they are.
    """
    have = sum(map(len, pieces))
    if have < rows:
        pieces = [*pieces, np.zeros((rows - have, *pieces[0].shape[1:]), pieces[0].dtype)]
    chunk = np.ascontiguousarray(pieces[0] if len(pieces) == 1 else np.concatenate(pieces))
    raw = chunk.reshape(-1).view(np.uint8)
    if not deflate:
        return raw
    if chunk.itemsize > 1:
        raw = np.ascontiguousarray(raw.reshape(-1, chunk.itemsize).T)
    packed: bytes = isal_zlib.compress(raw, _LEVEL)
    return packed


def unpack(stored: bytes, nbytes: int, itemsize: int, *, shuffled: bool, deflated: bool) -> np.ndarray:
    """The bytes of a chunk: the inverse of `pack`, as uint8.

    Raises:
      ValueError: the chunk does not hold `nbytes` bytes.
    """
    if deflated:
        inflater = isal_zlib.decompressobj()
        try:
            # One byte more than is due is asked for, so that a chunk cannot claim all memory.
            stored = inflater.decompress(stored, nbytes + 1)
        except isal_zlib.IsalError as e:  # type: ignore[misc]  # its stub hides that it is an exception
            raise ValueError(f"a compressed chunk is damaged ({e})") from e
        if not inflater.eof and len(stored) <= nbytes:
            # Its checksum stands at its end.
            raise ValueError("a compressed chunk is cut short")
    if len(stored) != nbytes:
        raise ValueError(f"a chunk holds {len(stored)} bytes where {nbytes} should be")
    raw = np.frombuffer(stored, np.uint8)
    if shuffled and itemsize > 1:
        shuffled_bytes = raw.reshape(itemsize, -1)
        elements = np.empty(shuffled_bytes.shape[::-1], np.uint8)
        for i, nth_bytes in enumerate(shuffled_bytes):
            # One by one takes a quarter of the time that a copy of the transposed array does.
            elements[:, i] = nth_bytes
        raw = elements.reshape(-1)
    return raw


class ChunkPool:
    """Packs chunks in threads and writes them to their datasets, in the order they came.

    Args:
      file: descriptor of the file that holds the datasets. What was written is sent
        on to the disk meanwhile, so that little is left to wait for at the end.
    """

    def __init__(self, file: int) -> None:
        self._file = file
        self._unsynced = 0
        self._sync: concurrent.futures.Future[None] | None = None
        self._executor = concurrent.futures.ThreadPoolExecutor((os.cpu_count() or 1) + 1, "kabuki-chunks")
        self._pending: collections.deque[
            tuple[h5py.h5d.DatasetID, int, concurrent.futures.Future[bytes | np.ndarray], int]
        ]
        self._pending = collections.deque()
        self._pending_bytes = 0

    def write(
        self, dataset: h5py.h5d.DatasetID, row: int, pieces: Sequence[np.ndarray], rows: int, *, deflate: bool
    ) -> None:
        """Takes the chunk whose first row is `row`; the dataset must already reach that far."""
        if not deflate:
            self._write(dataset, row, pack(pieces, rows, deflate=False))
            return
        nbytes = rows * pieces[0].nbytes // len(pieces[0])
        self._pending.append((dataset, row, self._executor.submit(pack, pieces, rows, deflate=True), nbytes))
        self._pending_bytes += nbytes
        while self._pending_bytes > _PENDING_BYTES or (self._pending and self._pending[0][2].done()):
            self._write_oldest()

    @property
    def pending_bytes(self) -> int:
        """What is queued, not yet compressed."""
        return self._pending_bytes

    def drain(self) -> None:
        """Writes all that is queued."""
        while self._pending:
            self._write_oldest()
        if self._sync is not None:
            self._sync.result()

    def close(self) -> None:
        """Drops what is still queued, and ends the threads."""
        self._pending.clear()
        self._executor.shutdown(cancel_futures=True)

    def _write_oldest(self) -> None:
        dataset, row, packed, nbytes = self._pending.popleft()
        self._write(dataset, row, packed.result())
        self._pending_bytes -= nbytes

    def _write(self, dataset: h5py.h5d.DatasetID, row: int, chunk: bytes | np.ndarray) -> None:
        dataset.write_direct_chunk((row,) + (0,) * (dataset.rank - 1), chunk)
        self._unsynced += len(chunk)
        if self._unsynced > _SYNC_BYTES and (self._sync is None or self._sync.done()):
            if self._sync is not None:
                # The system tells of a failure once.
                self._sync.result()
            self._unsynced = 0
            self._sync = self._executor.submit(os.fdatasync, self._file)
