"""Compresses and decompresses chunks of HDF5 datasets outside the HDF5 library.

HDF5 filters one chunk at a time, under a global lock. This module shuffles and deflates
chunks in threads, with ISA-L, and passes the result to HDF5. The result is the same format
that HDF5's shuffle and gzip filters use, so any HDF5 reader can read it.
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

from kabuki_rlds.formats.safe_hdf5.direct_chunks import write_chunk

Compression = Literal["gzip", "lzf", "none"]

#: ISA-L has levels 0 to 3. Level 1 compresses floats as well as level 3, at twice the speed.
_LEVEL = 1

#: The bytes of a Fletcher-32 checksum, and the number of 16-bit words that are summed together without an overflow.
_CHECKSUM_BYTES = 4
_CHECKSUM_WORDS = 1 << 20
#: The file is synced to the disk whenever so many bytes were written.
_SYNC_BYTES = 32 << 20
#: The limit for chunks in memory that wait for a thread or for the disk.
_PENDING_BYTES = 16 << 20


def create_properties(chunk: tuple[int, ...], itemsize: int, compression: Compression) -> h5py.h5p.PropDCID:
    """Returns the creation properties of a chunked dataset. All filters are built into HDF5."""
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
    """Returns the stored bytes of one chunk.

    Args:
      pieces: consecutive rows of one dtype and row shape.
      rows: rows in a chunk. Missing rows are filled with zeros.
      deflate: shuffle and deflate. Otherwise the bytes are stored unchanged.
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


def unpack(
    stored: bytes, nbytes: int, itemsize: int, *, shuffled: bool, deflated: bool, has_checksum: bool = False
) -> np.ndarray:
    """Returns the bytes of a stored chunk: uint8, (nbytes,). The inverse of `pack`.

    Args:
      stored: what the file holds.
      nbytes: the bytes of the chunk's elements.
      itemsize: the bytes of an element.
      shuffled: whether the filter "shuffle" was applied.
      deflated: whether the filter "deflate" (gzip) was applied.
      has_checksum: whether the filter "fletcher32" was applied, which adds a checksum.

    Raises:
      ValueError: the chunk is damaged, or does not have `nbytes` bytes.
    """
    if has_checksum:
        stored = _without_checksum(stored)
    if deflated:
        inflater = isal_zlib.decompressobj()
        try:
            # The limit protects the memory. One byte more than expected detects chunks that are too large.
            stored = inflater.decompress(stored, nbytes + 1)
        except isal_zlib.IsalError as e:  # type: ignore[misc]  # the stub does not declare it as an exception
            raise ValueError(f"a compressed chunk is damaged ({e})") from e
        if not inflater.eof and len(stored) <= nbytes:
            # The checksum at the end is missing.
            raise ValueError("a compressed chunk is truncated")
    if len(stored) != nbytes:
        raise ValueError(f"a chunk has {len(stored)} bytes, expected {nbytes}")
    raw = np.frombuffer(stored, np.uint8)
    if shuffled and itemsize > 1:
        shuffled_bytes = raw.reshape(itemsize, -1)
        elements = np.empty(shuffled_bytes.shape[::-1], np.uint8)
        for i, nth_bytes in enumerate(shuffled_bytes):
            # This loop takes a quarter of the time of copying the transposed array.
            elements[:, i] = nth_bytes
        raw = elements.reshape(-1)
    return raw


def _without_checksum(stored: bytes) -> bytes:
    """Checks and removes the Fletcher-32 checksum at the end of a chunk."""
    data, checksum = stored[:-_CHECKSUM_BYTES], stored[-_CHECKSUM_BYTES:]
    words = np.frombuffer(data + b"\0" * (len(data) % 2), ">u2").astype(np.uint64)
    first = second = 0
    for start in range(0, len(words), _CHECKSUM_WORDS):
        block = words[start : start + _CHECKSUM_WORDS]
        weighted = int((np.arange(len(block), 0, -1, dtype=np.uint64) * block).sum())
        second = (second + len(block) * first + weighted) % 0xFFFF
        first = (first + int(block.sum())) % 0xFFFF
    # Before HDF5 1.6.3, the bytes of each half were swapped.
    for order in ("<u2", ">u2"):
        if [half % 0xFFFF for half in np.frombuffer(checksum, order).tolist()] == [first, second]:
            return data
    raise ValueError("the checksum of a chunk does not match its data")


class ChunkPool:
    """Packs chunks in threads, and writes them to their datasets in the order of the calls.

    Args:
      file: descriptor of the HDF5 file. The pool syncs it to the disk during writing, so that the final sync is short.
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
        """Queues one chunk. The dataset must already extend to the end of the chunk's rows.

        Args:
          dataset: the dataset.
          row: first row of the chunk.
          pieces: as for `pack`.
          rows: as for `pack`.
          deflate: as for `pack`.
        """
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
        """The bytes of the queued chunks before compression."""
        return self._pending_bytes

    def drain(self) -> None:
        """Writes all queued chunks, and waits for the running sync."""
        while self._pending:
            self._write_oldest()
        if self._sync is not None:
            self._sync.result()

    def close(self) -> None:
        """Discards queued chunks, and stops the threads."""
        self._pending.clear()
        self._executor.shutdown(cancel_futures=True)

    def _write_oldest(self) -> None:
        dataset, row, packed, nbytes = self._pending.popleft()
        self._write(dataset, row, packed.result())
        self._pending_bytes -= nbytes

    def _write(self, dataset: h5py.h5d.DatasetID, row: int, chunk: bytes | np.ndarray) -> None:
        write_chunk(dataset, (row,) + (0,) * (dataset.rank - 1), chunk)
        self._unsynced += len(chunk)
        if self._unsynced > _SYNC_BYTES and (self._sync is None or self._sync.done()):
            if self._sync is not None:
                # Raises the error of a failed sync. The operating system reports such an error only once.
                self._sync.result()
            self._unsynced = 0
            self._sync = self._executor.submit(os.fdatasync, self._file)
