"""Keeps the HDF5 library from loading plugins.

A file names the filters of its chunks by number. One that the library lacks it looks
for among the shared libraries of the folders that `HDF5_PLUGIN_PATH` names, or of one
of its own, and runs their code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import h5py
from h5py._objects import phil


@contextlib.contextmanager
def shut_out() -> Iterator[None]:
    """Within, HDF5 finds no plugin; it has those filters that the program itself registered.

    All threads share where HDF5 looks, so that none uses it meanwhile.
    """
    with phil:
        folders = [h5py.h5pl.get(i) for i in range(h5py.h5pl.size())]
        for _ in folders:
            h5py.h5pl.remove(0)
        try:
            yield
        finally:
            for folder in folders:
                h5py.h5pl.append(folder)
