"""The HDF5 filters that the package undoes itself, in bounded memory. Data behind others is read while it is probed."""

from __future__ import annotations

from collections.abc import Sequence

import h5py

#: In the order in which writers apply them.
OWN_FILTERS = (h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32)


def are_own_filters(filters: Sequence[int]) -> bool:
    """Returns whether all filters of a dataset are own filters, and in the usual order."""
    return list(filters) == [number for number in OWN_FILTERS if number in filters]
