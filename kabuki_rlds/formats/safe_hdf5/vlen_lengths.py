"""Checks the declared lengths of variable-length rows before HDF5 allocates memory for them.

A dataset of variable-length rows stores a reference for each row: the number of elements
and their address in a global heap. HDF5 allocates memory for that number of elements
before it reads the heap, so a single flipped bit may request gigabytes. HDF5 does check
the length of each string, but all rows may refer to the same long string. Heaps are not
compressed, so valid rows together are not larger than the file. Source: "Variable-length
Types" in the HDF5 File Format Specification.
"""

from __future__ import annotations

import itertools
import math
import os

import h5py
import numpy as np

from kabuki_rlds.formats.safe_hdf5.direct_chunks import read_chunk, write_chunk

_REFERENCE = np.dtype([("elements", "<u4"), ("heap", "<u8"), ("index", "<u4")])

#: Strings are not checked if they cannot exceed this size in memory: each is at most as long as the file.
_UNCHECKED_TEXT_BYTES = 256 << 20


def check_lengths(dataset: h5py.Dataset, start: int, stop: int) -> None:
    """Checks the total declared length of the rows `start` to `stop` of a variable-length dataset.

    Compact datasets (stored in the object header) are small and not checked.

    Raises:
      ValueError: the rows declare more bytes than the file has.
    """
    kind = dataset.id.get_type()
    is_text = isinstance(kind, h5py.h5t.TypeStringID)
    size = dataset.file.id.get_filesize()
    count = (stop - start) * math.prod(dataset.shape[1:])
    if is_text and (not kind.is_variable_str() or count * size <= _UNCHECKED_TEXT_BYTES):
        return
    elements = int(_references(dataset, start, stop)["elements"].sum(dtype=np.int64))
    nbytes = elements if is_text else elements * int(kind.get_super().get_size())
    if nbytes > size:
        raise ValueError(f"the rows declare {nbytes:,} bytes, but the file has only {size:,}")


def _parse_references(stored: bytes) -> np.ndarray:
    return np.frombuffer(stored, _REFERENCE, len(stored) // _REFERENCE.itemsize)


def _references(dataset: h5py.Dataset, start: int, stop: int) -> np.ndarray:
    """Returns the stored references of some rows, as a flat array of `_REFERENCE`.

    The array is empty if the dataset does not store references in this form.
    """
    nothing = np.empty(0, _REFERENCE)
    kind = dataset.id.get_type()
    # For strings, HDF5 reports the size in memory instead of the stored size. The size of addresses decides then.
    if isinstance(kind, h5py.h5t.TypeStringID):
        is_known = dataset.file.id.get_create_plist().get_sizes()[0] == _REFERENCE["heap"].itemsize
    else:
        is_known = kind.get_size() == _REFERENCE.itemsize
    if not is_known or 0 in dataset.shape or start >= stop:
        return nothing
    if dataset.chunks is not None:
        return _chunked_references(dataset, start, stop)
    offset = dataset.id.get_offset()
    if offset is None:
        return nothing
    with open(dataset.file.filename, "rb") as file:
        row_bytes = math.prod(dataset.shape[1:]) * _REFERENCE.itemsize
        return _parse_references(os.pread(file.fileno(), (stop - start) * row_bytes, offset + start * row_bytes))


def _chunked_references(dataset: h5py.Dataset, start: int, stop: int) -> np.ndarray:
    """Returns the stored references of some rows of a chunked dataset.

    Copies the raw chunks to a dataset in memory whose element type is `_REFERENCE`. HDF5 then applies the filters
    without following the references into a heap.
    """
    rows = dataset.chunks[0]
    # Only the chunks that contain these rows.
    first, last = start - start % rows, min(stop + -stop % rows, dataset.shape[0])
    properties = dataset.id.get_create_plist()
    same = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    same.set_chunk(dataset.chunks)
    for i in range(properties.get_nfilters()):
        number, flags, values, _ = properties.get_filter(i)
        same.set_filter(number, flags, values)
    with h5py.File(f"references-{id(same)}", "w", driver="core", backing_store=False) as memory:
        shape = (last - first, *dataset.shape[1:])
        # HDF5 allows chunks larger than the shape only if the dataset may grow.
        space = h5py.h5s.create_simple(shape, (h5py.h5s.UNLIMITED,) * dataset.ndim)
        element = h5py.h5t.py_create(_REFERENCE)
        copy = h5py.h5d.create(memory.id, b"references", element, space, same)
        others = (range(0, size, chunk) for size, chunk in zip(dataset.shape[1:], dataset.chunks[1:], strict=True))
        for row, *at in itertools.product(range(first, last, rows), *others):
            try:
                skipped_filters, stored = read_chunk(dataset.id, (row, *at))
            except (OSError, RuntimeError, ValueError):
                # This chunk was never written.
                continue
            write_chunk(copy, (row - first, *at), stored, skipped_filters)
        # HDF5 2.0 applies the mask of skipped filters only after the dataset is opened again.
        del copy
        return np.asarray(memory["references"][start - first : stop - first]).reshape(-1)
