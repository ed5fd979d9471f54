"""How long rows of variable length say that they are, before HDF5 believes it.

Such a row stands in its dataset as its number of elements, and where in a heap these
are. HDF5 takes memory for so many elements before it looks into the heap, so that one
flipped bit asks for gigabytes. It looks twice at text, but all rows may name one and the same. Heaps are
not compressed: no rows together hold more than their file. (Source: "Variable-length Types" of the HDF5 File Format
Specification.)
"""

from __future__ import annotations

import itertools
import math
import os

import h5py
import numpy as np

from kabuki_rlds.formats.safe_hdf5 import object_headers

_REFERENCE = np.dtype([("elements", "<u4"), ("heap", "<u8"), ("index", "<u4")])

#: A few texts, of which none is longer than the file, are not worth the time that it takes to look.
_UNCHECKED_TEXT_BYTES = 256 << 20


def check_claims(dataset: h5py.Dataset, start: int, stop: int) -> None:
    """Adds up what some rows of a dataset of variable length say.

    What is stored within the header of its dataset is passed over: it is small.

    Raises:
      ValueError: they say that they hold more than the file does.
    """
    kind = dataset.id.get_type()
    is_text = isinstance(kind, h5py.h5t.TypeStringID)
    size = dataset.file.id.get_filesize()
    count = (stop - start) * math.prod(dataset.shape[1:])
    if is_text and (not kind.is_variable_str() or count * size <= _UNCHECKED_TEXT_BYTES):
        return
    claimed = int(_references(dataset, start, stop)["elements"].sum(dtype=np.int64))
    nbytes = claimed if is_text else claimed * int(kind.get_super().get_size())
    if nbytes > size:
        raise ValueError(f"they say that they hold {nbytes:,} bytes, but the file has {size:,}")


def claimed_by_attributes(file: int, address: int) -> int:
    """The bytes that the attributes of an object say that they hold, but for those that are not in its header."""
    claimed = 0
    for element, stored in object_headers.variable_attributes(file, address):
        claimed = max(claimed, element * int(_whole_references(stored)["elements"].sum(dtype=np.int64)))
    return claimed


def _whole_references(stored: bytes) -> np.ndarray:
    return np.frombuffer(stored, _REFERENCE, len(stored) // _REFERENCE.itemsize)


def _references(dataset: h5py.Dataset, start: int, stop: int) -> np.ndarray:
    """What stands in the dataset for each element of some rows; nothing where HDF5 has it in another form."""
    nothing = np.empty(0, _REFERENCE)
    kind = dataset.id.get_type()
    # Of text HDF5 says how large it is in memory, so that addresses have to tell.
    if isinstance(kind, h5py.h5t.TypeStringID):
        is_known = dataset.file.id.get_create_plist().get_sizes()[0] == _REFERENCE["heap"].itemsize
    else:
        is_known = kind.get_size() == _REFERENCE.itemsize
    if not is_known or 0 in dataset.shape or start >= stop:
        return nothing
    if dataset.chunks is not None:
        return _in_chunks(dataset, start, stop)
    offset = dataset.id.get_offset()
    if offset is None:
        return nothing
    with open(dataset.file.filename, "rb") as file:
        row_bytes = math.prod(dataset.shape[1:]) * _REFERENCE.itemsize
        return _whole_references(os.pread(file.fileno(), (stop - start) * row_bytes, offset + start * row_bytes))


def _in_chunks(dataset: h5py.Dataset, start: int, stop: int) -> np.ndarray:
    """The same chunks as those of a dataset in memory whose elements are no rows, so that HDF5 looks into no heap."""
    rows = dataset.chunks[0]
    # The chunks that hold these rows, and no more: one of a dataset that nothing was written of is not there.
    first, last = start - start % rows, min(stop + -stop % rows, dataset.shape[0])
    properties = dataset.id.get_create_plist()
    same = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    same.set_chunk(dataset.chunks)
    for i in range(properties.get_nfilters()):
        number, flags, values, _ = properties.get_filter(i)
        same.set_filter(number, flags, values)
    with h5py.File(f"references-{id(same)}", "w", driver="core", backing_store=False) as memory:
        shape = (last - first, *dataset.shape[1:])
        # A chunk may be larger than what there is, if that may grow.
        space = h5py.h5s.create_simple(shape, (h5py.h5s.UNLIMITED,) * dataset.ndim)
        element = h5py.h5t.py_create(_REFERENCE)
        copy = h5py.h5d.create(memory.id, b"references", element, space, same)
        others = (range(0, size, chunk) for size, chunk in zip(dataset.shape[1:], dataset.chunks[1:], strict=True))
        for row, *at in itertools.product(range(first, last, rows), *others):
            try:
                skipped, stored = dataset.id.read_direct_chunk((row, *at))
            except (OSError, RuntimeError, ValueError):
                # It was never written.
                continue
            copy.write_direct_chunk((row - first, *at), stored, skipped)
        # HDF5 2.0 forgets which filters a chunk went without until the dataset is opened anew.
        del copy
        return np.asarray(memory["references"][start - first : stop - first]).reshape(-1)
