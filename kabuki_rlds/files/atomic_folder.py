"""Writes a dataset folder atomically: it appears complete, or not at all."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import shutil
from types import TracebackType

from kabuki_rlds.arguments import argument
from kabuki_rlds.errors import DestinationExistsError, KabukiError
from kabuki_rlds.files import disk, locks

_log = logging.getLogger("kabuki_rlds")


class StagedFolder:
    """Writes to the folder `<destination>.partial`; `commit` renames it to `destination`.

    The partial folder is locked until its writer commits, aborts or dies. So a second
    writer to the same destination gets an error, and the partial folder of a killed
    writer is replaced by the next one. While a folder is replaced, the old one is named
    `<destination>.old`. TFDS does not recognize the partial and old folders as versions
    of a dataset.

    Args:
      destination: path of the folder. Missing parent folders are created.
      overwrite: whether to replace an existing folder. A symbolic link is replaced, not the folder that it leads to.
      mark: name of a file that an existing folder must have to be replaced.
      what: what a folder with that file is, for the error message.

    Raises:
      KabukiError: the destination exists, another process writes it, or it cannot be written.
    """

    def __init__(
        self,
        destination: pathlib.Path,
        *,
        overwrite: bool,
        mark: str = "features.json",
        what: str = "TFDS dataset",
    ):
        self.destination = destination
        self._mark, self._what = mark, what
        self.partial = destination.with_name(f"{destination.name}.partial")
        self._old = destination.with_name(f"{destination.name}.old")
        self._overwrite = overwrite
        self._check_free()
        self._made: list[pathlib.Path] = []
        self._lock = -1
        try:
            self._make_parents()
            self._acquire()
        except OSError as e:
            self.abort()
            raise KabukiError(f"{self.partial}: cannot be written ({e.strerror})") from e
        except BaseException:
            self.abort()
            raise

    def _make_parents(self) -> None:
        missing = [folder for folder in self.destination.parents if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            self._made.append(folder)

    def _acquire(self) -> None:
        lock = self._open_partial()
        if not locks.lock(lock, self.destination, "another process is writing this dataset; wait until it ends"):
            # Do not write to the folder of another process. `commit` of that process will raise an error.
            os.close(lock)
            shutil.rmtree(self.partial)
            lock = self._open_partial()
        self._lock = lock
        if not self._is_locked_folder():
            raise KabukiError(
                f"{self.destination}: another process has just written this dataset; run again to replace it"
            )
        # Clean up after a killed writer: it left partial files, or died between the two renames of `commit`, when
        # the old folder has no other name.
        for left in self.partial.iterdir():
            left.unlink()
        if os.path.lexists(self._old):
            if os.path.lexists(self.destination):
                _remove(self._old)
            else:
                os.rename(self._old, self.destination)

    def _open_partial(self) -> int:
        self.partial.mkdir(exist_ok=True)
        # O_NOFOLLOW: the content is deleted later, so a link to another folder must not be followed.
        return os.open(self.partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)

    def commit(self) -> None:
        """Renames the partial folder to the destination, and waits until it is on the disk.

        Raises:
          KabukiError: writing failed, or the destination was created in the meantime.
        """
        with disk.writing(self.destination):
            if not self._is_locked_folder():
                raise KabukiError(
                    f"{self.partial}: another process has deleted or replaced this folder; nothing was written"
                )
            for path in (*self.partial.iterdir(), self.partial):
                disk.sync(path)
            self._check_free()
            if os.path.lexists(self.destination):
                # A rename cannot replace a folder that is not empty.
                os.rename(self.destination, self._old)
            try:
                os.rename(self.partial, self.destination)
            except BaseException:
                if os.path.lexists(self._old):
                    os.rename(self._old, self.destination)
                raise
        self._made = []
        disk.sync_name(self.destination)
        if os.path.lexists(self._old):
            try:
                _remove(self._old)
            except OSError as e:
                _log.warning("%s: the replaced folder cannot be deleted (%s); delete it", self._old, e.strerror)

    def abort(self) -> None:
        """Removes the partial folder and the parent folders created for it, if it was not committed."""
        if self._lock >= 0:
            # If the disk fails, report the first error. The next writer replaces the partial folder.
            with contextlib.suppress(OSError):
                if self._is_locked_folder():
                    shutil.rmtree(self.partial)
            os.close(self._lock)
            self._lock = -1
        for folder in reversed(self._made):
            try:
                folder.rmdir()
            except OSError:
                # Another writer has created files in it.
                break
        self._made = []

    def __enter__(self) -> StagedFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _is_locked_folder(self) -> bool:
        """Whether the partial folder is still the one that was locked."""
        try:
            return os.path.samestat(os.stat(self.partial), os.fstat(self._lock))
        except FileNotFoundError:
            return False

    def _check_free(self) -> None:
        if not os.path.lexists(self.destination):
            return
        if not self._overwrite:
            raise DestinationExistsError(
                f"{self.destination}: already exists; {argument('overwrite', True)} replaces it"
            )
        is_broken_link = self.destination.is_symlink() and not self.destination.exists()
        if not is_broken_link and not (self.destination / self._mark).is_file():
            raise DestinationExistsError(
                f"{self.destination}: exists, but is not a {self._what}; move it away, or choose another destination"
            )


def _remove(folder: pathlib.Path) -> None:
    """Deletes a folder. Of a symbolic link to a folder, only the link is deleted."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)
