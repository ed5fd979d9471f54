"""Locks that prevent two processes from writing to the same file or folder."""

from __future__ import annotations

import fcntl
import os

from kabuki_rlds.errors import KabukiError
from kabuki_rlds.files.paths import StrPath


def lock(descriptor: int, path: StrPath, busy: str) -> None:
    """Locks an open file or folder until it is closed. Closes the descriptor if that fails.

    Args:
      descriptor: the open file or folder.
      path: the path for messages.
      busy: the message if another process holds the lock.

    Raises:
      KabukiError: another process holds the lock, or the file system does not support locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        os.close(descriptor)
        if isinstance(e, BlockingIOError):
            raise KabukiError(f"{path}: {busy}") from e
        # For example, a network file system without a lock server.
        raise KabukiError(f"{path}: cannot be locked ({e.strerror}); write to another disk") from e


def is_locked(path: StrPath) -> bool:
    """Whether another process holds an exclusive lock on a file, as the HDF5 library does while it writes."""
    try:
        opened = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    return not _can_lock(opened, fcntl.LOCK_SH)


def can_lock(path: StrPath) -> bool:
    """Whether no other program has a file locked, as the HDF5 library locks a file that it reads or writes."""
    return _can_lock(os.open(path, os.O_RDONLY), fcntl.LOCK_EX)


def _can_lock(descriptor: int, operation: int) -> bool:
    """Tries to lock an open file, and closes it. Returns True if the file system does not support locks."""
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return True
