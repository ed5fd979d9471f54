"""Positions of chunks in the file, with which threads read chunks without the HDF5 library and its global lock."""

from __future__ import annotations

import dataclasses
import os

import h5py
import numpy as np
from h5py._objects import phil


@dataclasses.dataclass(frozen=True)
class ChunkPositions:
    """The positions of a dataset's chunks, in row order. Each chunk contains whole rows.

    Attributes:
      descriptor: descriptor of the open file. It belongs to the HDF5 library: the HDF5 file must stay open while chunks
        are read.
      offsets: offset of each chunk in the file, in bytes: int64, (chunks,).
      sizes: stored size of each chunk in bytes: int64, (chunks,).
    """

    descriptor: int
    offsets: np.ndarray
    sizes: np.ndarray

    def read(self, chunk: int) -> bytes:
        """Returns the stored bytes of a chunk.

        Raises:
          ValueError: the chunk reaches beyond the end of the file.
        """
        size = int(self.sizes[chunk])
        stored = os.pread(self.descriptor, size, int(self.offsets[chunk]))
        if len(stored) != size:
            raise ValueError(_BEYOND_END)
        return stored

    def read_into(self, target: np.ndarray, offset: int) -> None:
        """Fills a C-contiguous uint8 array with the bytes of the file from `offset` on.

        Raises:
          ValueError: the bytes reach beyond the end of the file.
        """
        if os.preadv(self.descriptor, [target.data], offset) != target.nbytes:
            raise ValueError(_BEYOND_END)


_BEYOND_END = "a chunk reaches beyond the end of the file"


def chunk_positions(dataset: h5py.Dataset) -> ChunkPositions | None:
    """Returns the positions of all chunks of a dataset, or None if only the HDF5 library can read them.

    Only the library can read them if a chunk is missing or was stored without one of the filters, if the file has a
    user block (HDF5 1.14 does not count its bytes in the positions), or if the file was not opened by the default
    driver.
    """
    rows = dataset.chunks[0]
    count = -(-dataset.shape[0] // rows)
    offsets, sizes = np.full(count, -1, np.int64), np.zeros(count, np.int64)
    masks = 0

    def note(chunk: h5py.h5d.StoreInfo) -> None:
        nonlocal masks
        number = chunk.chunk_offset[0] // rows
        offsets[number], sizes[number] = chunk.byte_offset or -1, chunk.size
        masks |= chunk.filter_mask

    try:
        with phil:
            descriptor = dataset.file.id.get_vfd_handle()
            dataset.id.chunk_iter(note)
        is_plain = dataset.file.id.get_create_plist().get_userblock() == 0
    except (RuntimeError, IndexError, OverflowError, ValueError, TypeError, NotImplementedError):
        # The HDF5 library raises a clear error when it reads the rows.
        return None
    if masks or not is_plain or (offsets < 0).any() or not isinstance(descriptor, int):
        return None
    return ChunkPositions(descriptor, offsets, sizes)
