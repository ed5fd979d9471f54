"""How long rows of variable length say that they are, before HDF5 believes it.

Such a row stands in its dataset as its number of elements, and where in a heap these
are. HDF5 takes memory for so many elements before it looks into the heap, so that one
flipped bit asks for gigabytes. (It looks twice at text.) But heaps are not compressed: no rows together hold
more than their file. (Source: "Variable-length Types" of the HDF5 File Format
Specification.)
"""

from __future__ import annotations

import os

import h5py
import numpy as np

from kabuki_rlds.formats.hdf5 import chunks, headers

_UNPACKED: tuple[list[int], ...] = ([], [h5py.h5z.FILTER_DEFLATE], [h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE])
_REFERENCE = np.dtype([("elements", "<u4"), ("heap", "<u8"), ("index", "<u4")])


def check_claims(dataset: h5py.Dataset, start: int, stop: int) -> None:
    """Adds up what some rows of a dataset of variable length say.

    What cannot be looked at, since it is not stored in chunks of whole rows behind shuffle
    and gzip alone, nor in one piece, is passed over.

    Raises:
      ValueError: they say that they hold more than the file does.
    """
    claimed = sum(int(part["elements"].sum(dtype=np.int64)) for part in _references(dataset, start, stop))
    nbytes = claimed * int(dataset.id.get_type().get_super().get_size())
    size = dataset.file.id.get_filesize()
    if nbytes > size:
        raise ValueError(f"they say that they hold {nbytes:,} bytes, but the file has {size:,}")


def claimed_by_attributes(file: int, address: int) -> int:
    """The bytes that the attributes of an object say that they hold, but for those that are not in its header."""
    claimed = 0
    for element, stored in headers.variable_attributes(file, address):
        references = np.frombuffer(stored[: len(stored) // _REFERENCE.itemsize * _REFERENCE.itemsize], _REFERENCE)
        claimed = max(claimed, element * int(references["elements"].sum(dtype=np.int64)))
    return claimed


def _references(dataset: h5py.Dataset, start: int, stop: int) -> list[np.ndarray]:
    if dataset.id.get_type().get_size() != _REFERENCE.itemsize or 0 in dataset.shape or start >= stop:
        return []
    per_row = int(np.prod(dataset.shape[1:], dtype=np.int64))
    properties = dataset.id.get_create_plist()
    if dataset.chunks is None:
        offset = dataset.id.get_offset()
        if offset is None:
            return []
        with open(dataset.file.filename, "rb") as file:
            row_bytes = per_row * _REFERENCE.itemsize
            stored = os.pread(file.fileno(), (stop - start) * row_bytes, offset + start * row_bytes)
        return [np.frombuffer(stored[: len(stored) // _REFERENCE.itemsize * _REFERENCE.itemsize], _REFERENCE)]
    filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    if dataset.chunks[1:] != dataset.shape[1:] or filters not in _UNPACKED:
        return []
    rows = dataset.chunks[0]
    found = []
    for offset in range(start - start % rows, stop, rows):
        try:
            skipped, stored = dataset.id.read_direct_chunk((offset,) + (0,) * (dataset.ndim - 1))
        except (OSError, RuntimeError, ValueError):
            # It was never written.
            continue
        nbytes = rows * per_row * _REFERENCE.itemsize
        # A bit says of each filter that it was left out.
        went = [number for i, number in enumerate(filters) if not skipped >> i & 1]
        shuffled, deflated = (number in went for number in (h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE))
        raw = chunks.unpack(stored, nbytes, _REFERENCE.itemsize, shuffled=shuffled, deflated=deflated)
        part = raw.view(_REFERENCE)
        found.append(part[max(start - offset, 0) * per_row : (stop - offset) * per_row])
    return found
