"""Writing to the disk: wait until it holds the data, reserve space, and say what it refused."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator

from kabuki_rlds.errors import KabukiError
from kabuki_rlds.files.paths import StrPath


def sync(path: StrPath) -> None:
    """Waits until a file or folder is on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextlib.contextmanager
def writing(path: StrPath) -> Iterator[None]:
    """Says what could not be written, where the file system does not.

    Raises:
      KabukiError: it could not.
    """
    try:
        yield
    except OSError as e:
        raise KabukiError(f"{os.fspath(path)}: cannot be written ({e.strerror or e})") from e


def reserve(file: int, start: int, nbytes: int, destination: pathlib.Path) -> None:
    """Makes sure that the disk holds `nbytes` more of a file from `start` on.

    HDF5 cannot even close a file that it fails to write to: it ends the process.

    Raises:
      KabukiError: it does not.
    """
    try:
        os.posix_fallocate(file, start, nbytes)
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise KabukiError(f"{destination}: {e.strerror}; nothing was written") from e
        # A file system that cannot reserve: what it cannot hold shows when it is written.
