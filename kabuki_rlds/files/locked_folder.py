"""A folder with a lock, so that only one process at a time writes to it."""

from __future__ import annotations

import contextlib
import os
import pathlib

from kabuki_rlds.errors import KabukiError
from kabuki_rlds.files import locks


class LockedFolder:
    """Creates a folder and its missing parents, and locks it.

    Args:
      path: the folder.

    Raises:
      KabukiError: the folder cannot be created, or another process has locked it.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._created = [at for at in (path, *path.parents) if not at.exists()]
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            self.remove_created()
            raise KabukiError(f"{path}: cannot be created ({e.strerror})") from e
        self._lock = self._locked()

    def sync(self) -> None:
        """Waits until the entries of the folder are on the disk (`fsync`)."""
        os.fsync(self._lock)

    @property
    def is_locked(self) -> bool:
        """Whether this object still holds the lock."""
        return self._lock >= 0

    def unlock(self) -> None:
        """Releases the lock."""
        if self.is_locked:
            lock, self._lock = self._lock, -1
            os.close(lock)

    def remove_created(self) -> None:
        """Removes the folders that were created, if they are empty."""
        for folder in self._created:
            # `rmdir` fails if the folder was not created, or if another process has written to it.
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _locked(self) -> int:
        ended = f"{self.path}: another process has just ended a recording there; run again"
        try:
            lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            raise KabukiError(ended) from None
        locks.lock(lock, self.path, "another process records there; wait until it ends, or choose another destination")
        if not self.path.exists() or not os.path.samestat(os.stat(self.path), os.fstat(lock)):
            os.close(lock)
            raise KabukiError(ended)
        return lock
