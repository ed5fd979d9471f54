"""What is asked of the file system so that files are safe from other processes, and from the death of this one."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from kabuki_rlds.errors import KabukiError


def lock(descriptor: int, path: str | os.PathLike[str], busy: str) -> None:
    """Locks what is open, for as long as the process has it open; or else closes it.

    Args:
      descriptor: of the file or folder.
      path: what to call it in a message.
      busy: what to say where another process has locked it.

    Raises:
      KabukiError: another process has locked it, or nothing on its disk can be locked.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        os.close(descriptor)
        if isinstance(e, BlockingIOError):
            raise KabukiError(f"{path}: {busy}") from e
        # A network's file system, say, without a server for them.
        raise KabukiError(f"{path}: cannot be locked ({e.strerror}); write to another disk") from e


def sync(path: str | os.PathLike[str]) -> None:
    """Waits until a file or folder is on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Says what could not be written, where the file system does not.

    Raises:
      KabukiError: it could not.
    """
    try:
        yield
    except OSError as e:
        raise KabukiError(f"{os.fspath(path)}: cannot be written ({e.strerror or e})") from e
