"""Where the chunks of a dataset are in the file, so that threads read them without the HDF5 library and its lock."""

from __future__ import annotations

import dataclasses
import os

import h5py
import numpy as np


@dataclasses.dataclass(frozen=True)
class ChunkPositions:
    """The chunks of a dataset whose chunks each hold whole rows, in the order of the rows.

    Attributes:
      descriptor: of the open file. It is that of the HDF5 library, so it must stay open while chunks are read.
      offsets: the first byte of each chunk in the file: int64, (chunks,).
      sizes: how many bytes each takes: int64, (chunks,).
    """

    descriptor: int
    offsets: np.ndarray
    sizes: np.ndarray

    def read(self, chunk: int) -> bytes:
        """The bytes of a chunk as they are stored.

        Raises:
          ValueError: the file ends before the chunk does.
        """
        size = int(self.sizes[chunk])
        stored = os.pread(self.descriptor, size, int(self.offsets[chunk]))
        if len(stored) != size:
            raise ValueError(_CUT_SHORT)
        return stored

    def read_into(self, target: np.ndarray, offset: int) -> None:
        """Fills an array, C-contiguous uint8, with the bytes of the file from `offset` on.

        Raises:
          ValueError: the file ends before.
        """
        if os.preadv(self.descriptor, [target.data], offset) != target.nbytes:
            raise ValueError(_CUT_SHORT)


_CUT_SHORT = "a chunk reaches beyond the end of the file"


def chunk_positions(dataset: h5py.Dataset) -> ChunkPositions | None:
    """The positions of all chunks of a dataset; None if only the HDF5 library can read them.

    That is the case if a chunk is missing or was stored without one of the filters, if the file has a user block (whose
    bytes HDF5 1.14 leaves out of the positions), or if it was not opened by the ordinary driver.
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
        descriptor = dataset.file.id.get_vfd_handle()
        dataset.id.chunk_iter(note)
        is_plain = dataset.file.id.get_create_plist().get_userblock() == 0
    except (RuntimeError, IndexError, OverflowError, ValueError, TypeError, NotImplementedError):
        # The HDF5 library says what is wrong when it reads the rows.
        return None
    if masks or not is_plain or (offsets < 0).any() or not isinstance(descriptor, int):
        return None
    return ChunkPositions(descriptor, offsets, sizes)
