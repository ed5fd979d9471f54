"""A folder that one process at a time writes to."""

from __future__ import annotations

import contextlib
import os
import pathlib

from kabuki_rlds.errors import KabukiError
from kabuki_rlds.files import locks


class LockedFolder:
    """Creates a folder, with those above it, and locks it.

    Args:
      path: the folder.

    Raises:
      KabukiError: it cannot be created, or another process has locked it.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._created = [at for at in (path, *path.parents) if not at.exists()]
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            self.remove_created()
            raise KabukiError(f"{path}: cannot be made ({e.strerror})") from e
        self._lock = self._locked()

    def sync(self) -> None:
        """Waits until the names in the folder are on the disk."""
        os.fsync(self._lock)

    @property
    def is_locked(self) -> bool:
        """Whether it is still locked by this object."""
        return self._lock >= 0

    def unlock(self) -> None:
        """Lets other processes write to it."""
        if self.is_locked:
            lock, self._lock = self._lock, -1
            os.close(lock)

    def remove_created(self) -> None:
        """Removes the folders that were created, if they are empty."""
        for folder in self._created:
            # It was not created after all, or others use it by now.
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _locked(self) -> int:
        ended = f"{self.path}: another process has just ended a recording there; run again"
        try:
            lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            raise KabukiError(ended) from None
        locks.lock(lock, self.path, "another process records there; wait for it, or name another")
        if not self.path.exists() or not os.path.samestat(os.stat(self.path), os.fstat(lock)):
            os.close(lock)
            raise KabukiError(ended)
        return lock
