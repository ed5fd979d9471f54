"""Locks that keep two processes from writing to one file or folder."""

from __future__ import annotations

import fcntl
import os

from kabuki_rlds.errors import KabukiError
from kabuki_rlds.files.paths import StrPath


def lock(descriptor: int, path: StrPath, busy: str) -> None:
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


def is_locked(path: StrPath) -> bool:
    """Whether another process has a file locked for itself, as the HDF5 library locks a file that it writes."""
    try:
        opened = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        # The file system has no locks.
        return False
    finally:
        os.close(opened)
    return False
