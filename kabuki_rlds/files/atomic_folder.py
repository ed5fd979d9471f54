"""A dataset's folder that appears whole or not at all."""

from __future__ import annotations

import os
import pathlib
import shutil
from types import TracebackType

from kabuki_rlds.errors import DestinationExistsError, KabukiError
from kabuki_rlds.files import disk, locks


class StagedFolder:
    """Writes beside the destination, and renames at the end.

    The partial folder is `<destination>.partial`, locked while its writer lives, so
    that a second writer to one destination is refused and one that was killed is
    cleaned up after by the next. TFDS takes neither it nor the old folder, while that
    is still there, for a version of a dataset.

    Args:
      destination: the folder to make; the ones above it are made too.
      overwrite: replace a folder that is there.
      mark: the file without which a folder is none to be replaced.
      what: what a folder with it is.

    Raises:
      KabukiError: the destination exists, is being written, or cannot be written.
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
        self.partial.mkdir(exist_ok=True)
        # What lies in it is removed, so that it must not be a link to another.
        lock = os.open(self.partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        locks.lock(lock, self.destination, "another process is writing this dataset; wait for it to end")
        self._lock = lock
        if not self._is_there():
            raise KabukiError(
                f"{self.destination}: another process has just written this dataset; run again if you want to"
            )
        # What a writer left that was killed: half a dataset, or the old one in the moment between two renames.
        for left in self.partial.iterdir():
            left.unlink()
        if self._old.exists():
            if self.destination.exists():
                shutil.rmtree(self._old)
            else:
                os.rename(self._old, self.destination)

    def commit(self) -> None:
        """Gives the folder its name. It is on the disk when this returns.

        Raises:
          KabukiError: the disk does not take it, or somebody else made the folder meanwhile.
        """
        with disk.writing(self.destination):
            for path in (*self.partial.iterdir(), self.partial):
                disk.sync(path)
            self._check_free()
            if self.destination.exists():
                # A folder cannot take the place of one that is not empty.
                os.rename(self.destination, self._old)
            try:
                os.rename(self.partial, self.destination)
            except BaseException:
                if self._old.exists():
                    os.rename(self._old, self.destination)
                raise
            disk.sync(self.destination.parent)
            self._made = []
            if self._old.exists():
                shutil.rmtree(self._old)

    def abort(self) -> None:
        """Removes the partial folder, and those made for it, unless it was committed."""
        if self._lock >= 0:
            if self._is_there():
                shutil.rmtree(self.partial)
            os.close(self._lock)
            self._lock = -1
        for folder in reversed(self._made):
            try:
                folder.rmdir()
            except OSError:
                # Another writer uses it by now.
                break
        self._made = []

    def __enter__(self) -> StagedFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _is_there(self) -> bool:
        """Whether the partial folder is still the one that was locked."""
        try:
            return os.path.samestat(os.stat(self.partial), os.fstat(self._lock))
        except FileNotFoundError:
            return False

    def _check_free(self) -> None:
        if not os.path.lexists(self.destination):
            return
        if not self._overwrite:
            raise DestinationExistsError(f"{self.destination}: already there; --overwrite replaces it")
        if not (self.destination / self._mark).is_file():
            raise DestinationExistsError(
                f"{self.destination}: there, but no {self._what}; move it away, or write the new one elsewhere"
            )
