"""Errors of the disk while an HDF5 file is written.

The HDF5 library (1.14, 2.0) may crash if it cannot write while it closes a file, and h5py prints tracebacks.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import h5py

from kabuki_rlds.errors import KabukiError, system_error
from kabuki_rlds.files import disk
from kabuki_rlds.files.paths import StrPath


@contextlib.contextmanager
def writing(path: StrPath) -> Iterator[None]:
    """Turns an error of the disk within the block into a `KabukiError` that names `path`.

    Raises:
      KabukiError: the block raised `OSError`, or the HDF5 library could not write.
    """
    with disk.writing(path):
        try:
            yield
        except (OSError, RuntimeError, ValueError, KeyError) as e:
            # h5py raises exceptions of various types.
            number = system_error(e)
            if number is None or isinstance(e, KabukiError):
                raise
            raise OSError(number, os.strerror(number)) from e


def discard(file: h5py.File) -> None:
    """Closes an incomplete file that was opened by its path. Data that the HDF5 library has not written yet is lost."""
    lost = os.memfd_create("discarded")
    os.dup2(lost, file.id.get_vfd_handle())
    os.close(lost)
    # After a failed flush, HDF5 may fail to close the file, too.
    with contextlib.suppress(RuntimeError):
        file.close()
