"""Writes a file atomically: it appears complete, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib

from kabuki_rlds.arguments import argument
from kabuki_rlds.errors import DestinationExistsError, InvalidArgumentError, KabukiError
from kabuki_rlds.files import disk, locks
from kabuki_rlds.files.paths import StrPath, local_path


class StagedFile:
    """Writes to `<destination>.partial`; `commit` renames it to `destination`.

    The partial file is locked until its writer commits, aborts or dies. So a second
    writer to the same destination gets an error, and the partial file of a killed
    writer is replaced by the next one.

    Args:
      destination: path of the file.
      overwrite: whether to replace an existing file. A symbolic link is replaced, not the file that it leads to.

    Raises:
      KabukiError: the destination exists, another process writes it, or it cannot be written.
    """

    def __init__(self, destination: StrPath, *, overwrite: bool):
        self.destination = destination_of(destination)
        self.partial = self.destination.with_name(self.destination.name + ".partial")
        self._overwrite = overwrite
        self._check_free()
        if os.path.isdir(self.destination):
            raise InvalidArgumentError(f"{self.destination}: is a folder; give the path of the HDF5 file to write")
        if os.path.exists(self.destination) and not os.path.isfile(self.destination):
            # Do not replace a device such as /dev/null by a file.
            raise InvalidArgumentError(
                f"{self.destination}: is not a regular file; give the path of the HDF5 file to write"
            )
        if not os.path.isdir(self.destination.parent):
            raise InvalidArgumentError(
                f"{self.destination}: the folder {self.destination.parent} does not exist; create it first"
            )
        self._lock = self._acquire()
        if os.fstat(self._lock).st_nlink > 1:
            # A writer was killed between the two steps of `_rename_to_new`. The partial file is then a second name
            # of the complete file, so remove only this name.
            self.partial.unlink()
            os.close(self._lock)
            self._lock = self._acquire()

    def _acquire(self) -> int:
        """Opens and locks the partial file."""
        lock = self._open_partial()
        if not locks.lock(lock, self.destination, "another process is writing this file; wait until it ends"):
            # Do not write to the file of another process. `commit` of that process will raise an error.
            os.close(lock)
            self.partial.unlink(missing_ok=True)
            lock = self._open_partial(os.O_EXCL)
        if not self._is_locked_file(lock):
            os.close(lock)
            raise KabukiError(
                f"{self.destination}: another process has just written this file; run again to replace it"
            )
        return lock

    def _open_partial(self, flags: int = 0) -> int:
        try:
            # O_NOFOLLOW: in a shared folder, another user could place a link to any file of this user.
            return os.open(self.partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | flags, 0o666)
        except OSError as e:
            why = "it is a symbolic link" if e.errno == errno.ELOOP else e.strerror
            raise KabukiError(f"{self.partial}: cannot be written ({why})") from e

    def fileno(self) -> int:
        """The file descriptor of the partial file."""
        return self._lock

    def reserve(self, start: int, nbytes: int) -> None:
        """Reserves `nbytes` of disk space from offset `start` on.

        Raises:
          KabukiError: the disk does not have the space.
        """
        disk.reserve(self._lock, start, nbytes, self.destination)

    def truncate(self, size: int) -> None:
        """Frees the reserved space beyond `size` bytes."""
        os.ftruncate(self._lock, min(size, os.fstat(self._lock).st_size))

    def commit(self) -> None:
        """Renames the partial file to the destination, and waits until it is on the disk.

        Raises:
          KabukiError: writing failed, or the destination was created in the meantime.
        """
        with disk.writing(self.destination):
            os.fsync(self._lock)
            if not self._is_locked_file(self._lock):
                raise KabukiError(
                    f"{self.partial}: another process has deleted or replaced this file; nothing was written"
                )
            # The file is complete: readers need not wait until this process has closed it.
            locks.share(self._lock)
            if self._overwrite:
                os.replace(self.partial, self.destination)
            else:
                self._rename_to_new()
        disk.sync_name(self.destination)

    def abort(self) -> None:
        """Removes the partial file if it was not committed."""
        if self._lock < 0:
            return
        # If the disk fails, report the first error. The next writer replaces the partial file.
        with contextlib.suppress(OSError):
            if self._is_locked_file(self._lock):
                self.partial.unlink()
        os.close(self._lock)
        self._lock = -1

    def _is_locked_file(self, lock: int) -> bool:
        """Whether the partial file is still the one that was locked."""
        try:
            return os.path.samestat(os.stat(self.partial), os.fstat(lock))
        except FileNotFoundError:
            return False

    def _check_free(self) -> None:
        # `lexists`: the final rename would also fail on, or replace, a link to a missing file.
        if not self._overwrite and os.path.lexists(self.destination):
            raise DestinationExistsError(
                f"{self.destination}: already exists; {argument('overwrite', True)} replaces it"
            )

    def _rename_to_new(self) -> None:
        try:
            # Unlike a rename, a link fails if the destination was created in the meantime.
            os.link(self.partial, self.destination)
        except FileExistsError:
            self._check_free()
            raise
        except OSError:
            # The file system does not support hard links.
            self._check_free()
            os.rename(self.partial, self.destination)
        else:
            # If it fails, the next writer removes the second name.
            with contextlib.suppress(OSError):
                self.partial.unlink()


def destination_of(name: StrPath) -> pathlib.Path:
    """The path of a file to write, with `~` expanded.

    Raises:
      KabukiError: the path names a folder, for example "all/".
    """
    path = local_path(name)
    # `Path` drops a trailing slash, so check the text.
    if path.name in ("", "..") or os.fspath(name).endswith("/"):
        raise InvalidArgumentError(f"{os.fspath(name)!r}: is a folder; give the path of the HDF5 file to write")
    return path
