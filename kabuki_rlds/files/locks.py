"""Locks that prevent two processes from writing to the same file or folder.

Some file systems do not support locks, for example Lustre and NFS without a lock server. There, files are
written and read without locks, and a warning says so.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time

from kabuki_rlds.errors import KabukiError
from kabuki_rlds.files.paths import StrPath

_log = logging.getLogger("kabuki_rlds")

#: How long a reader waits for a writer to release its lock, and the time between two attempts, in seconds.
_WAIT = 1.0
_PAUSE = 0.01


def lock(descriptor: int, path: StrPath, busy: str) -> bool:
    """Locks an open file or folder until it is closed. Closes the descriptor if another process holds the lock.

    Args:
      descriptor: the open file or folder.
      path: the path for messages.
      busy: the message if another process holds the lock.

    Returns:
      whether it is locked; False if the file system does not support locks.

    Raises:
      KabukiError: another process holds the lock.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        os.close(descriptor)
        raise KabukiError(f"{path}: {busy}") from e
    except OSError as e:
        _log.warning(
            "%s: the file system does not support locks (%s); make sure that no other process writes there",
            path,
            e.strerror,
        )
        return False
    return True


def share(descriptor: int) -> None:
    """Lets other processes open a locked file for reading. They still cannot lock it for writing."""
    # On a file system without locks, the file is not locked.
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def is_locked(path: StrPath) -> bool:
    """Whether another process holds an exclusive lock on a file, as the HDF5 library does while it writes.

    Waits for up to one second until the lock is released.
    """
    end = time.monotonic() + _WAIT
    while not _can_lock(path, os.O_RDONLY, fcntl.LOCK_SH):
        if time.monotonic() > end:
            return True
        time.sleep(_PAUSE)
    return False


def can_lock(path: StrPath) -> bool:
    """Whether no other program has a file locked, as the HDF5 library locks a file that it reads or writes."""
    # NFS allows an exclusive lock only of a file that is open for writing.
    return _can_lock(path, os.O_RDWR, fcntl.LOCK_EX)


def _can_lock(path: StrPath, flags: int, operation: int) -> bool:
    """Tries to lock a file. Returns True also if it cannot be opened, or the file system does not support locks."""
    try:
        descriptor = os.open(path, flags)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return True
