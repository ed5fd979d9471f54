"""Reads and writes raw chunks while the thread holds h5py's lock.

Not every version of h5py takes its global lock in `read_direct_chunk` and `write_direct_chunk`. Without the lock, two
calls in two threads at the same time can crash the HDF5 library, or fail on an undamaged chunk.
"""

from __future__ import annotations

import h5py
import numpy as np
from h5py._objects import phil


def read_chunk(dataset: h5py.h5d.DatasetID, offset: tuple[int, ...]) -> tuple[int, bytes]:
    """Returns (mask of skipped filters, stored bytes) of the chunk whose first element is at `offset`.

    Raises:
      OSError, RuntimeError, ValueError: HDF5 cannot read the chunk, or it does not exist.
    """
    with phil:
        skipped, stored = dataset.read_direct_chunk(offset)
    return skipped, stored


def write_chunk(
    dataset: h5py.h5d.DatasetID, offset: tuple[int, ...], chunk: bytes | np.ndarray, skipped_filters: int = 0
) -> None:
    """Writes the stored bytes of the chunk whose first element is at `offset`."""
    with phil:
        dataset.write_direct_chunk(offset, chunk, skipped_filters)
