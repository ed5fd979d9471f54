"""Disk operations: sync files, reserve space, and report write errors."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import pathlib
from collections.abc import Iterator

from kabuki_rlds.errors import KabukiError
from kabuki_rlds.files.paths import StrPath

_log = logging.getLogger("kabuki_rlds")


def sync(path: StrPath) -> None:
    """Waits until the content of a file or folder is on the disk (`fsync`)."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def sync_name(path: pathlib.Path) -> None:
    """Waits until the name of a new file or folder is on the disk. Warns if that fails, because it is in place."""
    try:
        sync(path.parent)
    except OSError as e:
        # Some file systems cannot sync folders.
        if e.errno != errno.EINVAL:
            _log.warning(
                "%s: is complete and in place, but the disk does not confirm its name (%s); check the disk, and that "
                "the name exists after a power failure",
                path, e.strerror,
            )  # fmt: skip


#: Remedies for some errors of the system, by number.
_REMEDIES = {
    errno.EIO: "check the disk and its connection",
    errno.ESTALE: "the file was replaced on the server; run again",
    errno.EMFILE: "raise the limit, for example with `ulimit -n 65536`",
}


def unreadable(number: int) -> str:
    """Describes the system's error with a number, for example `errno.EIO`, when a file is read."""
    remedy = _REMEDIES.get(number)
    return f"cannot be read ({os.strerror(number)})" + (f"; {remedy}" if remedy else "")


@contextlib.contextmanager
def writing(path: StrPath) -> Iterator[None]:
    """Turns an `OSError` of the block into a `KabukiError` that names `path`.

    Raises:
      KabukiError: the block raised `OSError`.
    """
    try:
        yield
    except KabukiError:
        # Some derive from `OSError` too.
        raise
    except OSError as e:
        raise KabukiError(f"{os.fspath(path)}: cannot be written ({e.strerror or e})") from e


def reserve(file: int, start: int, nbytes: int, destination: pathlib.Path) -> None:
    """Reserves `nbytes` of disk space for a file, from offset `start` on.

    Space is reserved before HDF5 writes, because a write error inside the HDF5 library ends the process.

    Args:
      file: file descriptor.
      start: offset in bytes.
      nbytes: number of bytes.
      destination: the path for messages.

    Raises:
      KabukiError: the disk does not have the space.
    """
    try:
        os.posix_fallocate(file, start, nbytes)
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise KabukiError(f"{destination}: {e.strerror}; nothing was written") from e
        # Other errors mean that the file system cannot reserve space. A full disk then shows when data are written.
