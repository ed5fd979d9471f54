"""Paths, and what is asked of the file system so that files are safe from other processes and from a crash."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import re
from collections.abc import Iterator

from kabuki_rlds.errors import KabukiError

#: The beginning of a URL, also as `pathlib` writes it, with one slash. `./gs:/x` is a path.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")


def local_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """A path that a user gives, with `~` expanded.

    Raises:
      KabukiError: it is a URL. As a path, it would name a local folder like `gs:`.
    """
    text = os.fspath(path)
    found = _URL.match(text)
    if found is not None:
        raise KabukiError(
            f"{text}: a URL ({found[1]}:), and only local files are supported; copy the data to a local disk, and give "
            "its path"
        )
    local = pathlib.Path(os.path.expanduser(text))
    # `pathlib` leaves out the `./` that tells it from a URL.
    return local.absolute() if _URL.match(os.fspath(local)) else local


def subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folders in a folder, those that links lead to among them, and none twice.

    Links to folders above it are left out, and links to folders below it, which are found there.
    """
    here = os.path.realpath(folder)
    found: dict[str, pathlib.Path] = {}
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_symlink(), path)):
        if path.is_dir():
            target = os.path.realpath(path)
            if not path.is_symlink() or os.path.commonpath([here, target]) not in (here, target):
                found.setdefault(target, path)
    return list(found.values())


def lock(descriptor: int, path: str | os.PathLike[str], busy: str) -> None:
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


def is_locked(path: str | os.PathLike[str]) -> bool:
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


def sync(path: str | os.PathLike[str]) -> None:
    """Waits until a file or folder is on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Says what could not be written, where the file system does not.

    Raises:
      KabukiError: it could not.
    """
    try:
        yield
    except OSError as e:
        raise KabukiError(f"{os.fspath(path)}: cannot be written ({e.strerror or e})") from e
