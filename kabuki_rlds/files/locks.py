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
    try:
        fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        # The file system does not support locks.
        return False
    finally:
        os.close(opened)
    return False


def can_lock(path: StrPath) -> bool:
    """Whether no other program has a file locked, as the HDF5 library locks a file that it reads or writes."""
    opened = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # The file system has no locks.
        return True
    finally:
        os.close(opened)
    return True
