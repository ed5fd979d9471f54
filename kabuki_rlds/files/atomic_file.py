"""A file that appears whole or not at all."""

from __future__ import annotations

import errno
import os
import pathlib

from kabuki_rlds.errors import DestinationExistsError, InvalidArgumentError, KabukiError
from kabuki_rlds.files import disk, locks
from kabuki_rlds.files.paths import StrPath, local_path


class StagedFile:
    """Writes beside the destination, and renames at the end.

    The partial file is `<destination>.partial`, locked while its writer lives, so
    that a second writer to one destination is refused and one that was killed is
    cleaned up after by the next.

    Args:
      destination: the file to make.
      overwrite: replace a file that is there.

    Raises:
      KabukiError: the destination exists, is being written, or cannot be written.
    """

    def __init__(self, destination: StrPath, *, overwrite: bool):
        self.destination = destination_of(destination)
        self.partial = self.destination.with_name(self.destination.name + ".partial")
        self._overwrite = overwrite
        self._check_free()
        if os.path.isdir(self.destination):
            raise InvalidArgumentError(f"{self.destination}: a folder; name the HDF5 file to write")
        if os.path.exists(self.destination) and not os.path.isfile(self.destination):
            # Whoever names /dev/null does not mean that it should be a file from now on.
            raise InvalidArgumentError(f"{self.destination}: not a regular file; name the HDF5 file to write")
        if not os.path.isdir(self.destination.parent):
            raise InvalidArgumentError(
                f"{self.destination}: the folder {self.destination.parent} does not exist; make it first"
            )
        self._lock = self._acquire()
        if os.fstat(self._lock).st_nlink > 1:
            # Killed between the two steps of `_rename_to_new`: it is the finished file's other name.
            self.partial.unlink()
            os.close(self._lock)
            self._lock = self._acquire()

    def _acquire(self) -> int:
        """Opens and locks the partial file."""
        try:
            # In a folder that others write to, a link could lead to any file of the user's.
            lock = os.open(self.partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as e:
            why = "it is a link" if e.errno == errno.ELOOP else e.strerror
            raise KabukiError(f"{self.partial}: cannot be written ({why})") from e
        locks.lock(lock, self.destination, "another process is writing this file; wait for it to end")
        if not self._is(lock):
            os.close(lock)
            raise KabukiError(
                f"{self.destination}: another process has just written this file; run again if you want to"
            )
        return lock

    def fileno(self) -> int:
        """A descriptor of the partial file."""
        return self._lock

    def reserve(self, start: int, nbytes: int) -> None:
        """Makes sure that the disk holds `nbytes` more from `start` on.

        Raises:
          KabukiError: it does not.
        """
        disk.reserve(self._lock, start, nbytes, self.destination)

    def truncate(self, size: int) -> None:
        """Gives back what was reserved beyond `size`."""
        os.ftruncate(self._lock, min(size, os.fstat(self._lock).st_size))

    def commit(self) -> None:
        """Gives the file its name. It is on the disk when this returns.

        Raises:
          KabukiError: the disk does not take it, or somebody else made the file meanwhile.
        """
        with disk.writing(self.destination):
            os.fsync(self._lock)
            if self._overwrite:
                os.replace(self.partial, self.destination)
            else:
                self._rename_to_new()
            disk.sync(self.destination.parent)

    def abort(self) -> None:
        """Removes the partial file, unless it was committed."""
        if self._lock < 0:
            return
        if self._is(self._lock):
            self.partial.unlink()
        os.close(self._lock)
        self._lock = -1

    def _is(self, lock: int) -> bool:
        """Whether the partial file is still the one that was locked."""
        try:
            return os.path.samestat(os.stat(self.partial), os.fstat(lock))
        except FileNotFoundError:
            return False

    def _check_free(self) -> None:
        # A link that leads nowhere is there too, for what gives the file its name.
        if not self._overwrite and os.path.lexists(self.destination):
            raise DestinationExistsError(f"{self.destination}: already there; --overwrite replaces it")

    def _rename_to_new(self) -> None:
        try:
            # Unlike a rename, a link fails where somebody else made the file meanwhile.
            os.link(self.partial, self.destination)
            self.partial.unlink()
        except FileExistsError:
            self._check_free()
            raise
        except OSError:
            # A file system without hard links.
            self._check_free()
            os.rename(self.partial, self.destination)


def destination_of(name: StrPath) -> pathlib.Path:
    """The path of a file to make, `~` expanded.

    Raises:
      KabukiError: no file can have such a name.
    """
    path = local_path(name)
    # A path leaves out a slash at the end.
    if path.name in ("", "..") or os.fspath(name).endswith("/"):
        raise InvalidArgumentError(f"{os.fspath(name)!r}: the name of a folder; name the HDF5 file to write")
    return path
