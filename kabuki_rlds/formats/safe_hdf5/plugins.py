"""Prevents the HDF5 library from loading plugins.

A file refers to the filters of its chunks by number. If the library does not have a
filter, it loads shared libraries from the folders in `HDF5_PLUGIN_PATH`, or from its
default plugin folder, and runs their code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import h5py
from h5py._objects import phil


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Disables the plugin search inside the `with` block. Filters that the program registered itself stay available."""
    # All threads share the search path. h5py's global lock keeps other threads out of HDF5.
    with phil:
        folders = [h5py.h5pl.get(i) for i in range(h5py.h5pl.size())]
        for _ in folders:
            h5py.h5pl.remove(0)
        try:
            yield
        finally:
            for folder in folders:
                h5py.h5pl.append(folder)
