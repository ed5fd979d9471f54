"""Opening HDF5 files that may come from anyone."""

from __future__ import annotations

import functools
import logging
import os

import h5py

from kabuki_rlds.errors import KabukiError, SourceNotFoundError
from kabuki_rlds.files.locks import is_locked
from kabuki_rlds.files.paths import local_path
from kabuki_rlds.files.placeholders import placeholder
from kabuki_rlds.formats.safe_hdf5 import plugins
from kabuki_rlds.formats.safe_hdf5.attributes import AXES
from kabuki_rlds.formats.safe_hdf5.heaps_and_btrees import check_ends
from kabuki_rlds.formats.safe_hdf5.structure import Unread, check_structure

_log = logging.getLogger("kabuki_rlds")

#: What the HDF5 library says of a file whose consistency flags are set.
_STILL_OPEN = "file is already open for write"

#: So many attributes are named in a warning.
_NAMED = 5


def open_file(path: str | os.PathLike[str], *, quiet: bool = False) -> h5py.File:
    """Opens an HDF5 file for reading. No other place in this package does.

    Args:
      path: the file.
      quiet: do not warn of attributes that are not read, because the file was opened for the same purpose before.

    Raises:
      KabukiError: there is no such file, another program has it open for writing, it is not HDF5, or it is unsafe.
    """
    path = os.fspath(local_path(path))
    if not os.path.exists(path):
        raise SourceNotFoundError(f"{path}: no such file")
    if os.path.isdir(path):
        raise KabukiError(f"{path}: a folder, not an HDF5 file")
    if not os.path.isfile(path):
        # A pipe, say, from which nothing may ever come.
        raise KabukiError(f"{path}: not a regular file")
    # First, since what a writer has not yet written looks like damage.
    if is_locked(path):
        raise KabukiError(f"{path}: another program has this file open for writing; close it there, then run again")
    unread = _look_at(path, *_stamp(path))
    if unread and not quiet:
        named = ", ".join(f"{name!r} of {item or '/'} ({reason})" for item, name, reason in unread[:_NAMED])
        more = f" and {len(unread) - _NAMED:,} more" if len(unread) > _NAMED else ""
        _log.warning("%s: attributes with types that h5py cannot read are ignored: %s%s", path, named, more)
    with plugins.shut_out():
        return _open(path)


def _stamp(path: str) -> tuple[int, ...]:
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@functools.lru_cache(256)
def _look_at(path: str, *_stamp: int) -> list[Unread]:
    """Looks at how a file is built; one that has not changed since is not looked at again.

    Returns:
      the attributes that are not read, apart from those by which HDF5 names axes: they are references too.
    """
    if os.access(path, os.R_OK):
        check_ends(path)
    with plugins.shut_out(), _open(path) as file:
        try:
            unread = check_structure(file, path)
        except (OSError, RuntimeError, ValueError, KeyError) as e:
            raise KabukiError(
                f"{path}: the HDF5 library cannot read how this file is built, it is damaged ({e})"
            ) from e
    return [each for each in unread if each[1] not in AXES]


def _open(path: str) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as e:
        if not os.access(path, os.R_OK):
            raise KabukiError(f"{path}: no permission to read it") from e
        with open(path, "rb") as f:
            is_hdf5 = f.read(8) == b"\x89HDF\r\n\x1a\n"
        if _STILL_OPEN in str(e):
            raise KabukiError(
                f"{path}: is marked as open for writing: another program has it open, or ended without closing it; "
                f"close it there, or remove the mark with `h5clear -s {path}` (one of HDF5's own tools)"
            ) from e
        if not is_hdf5:
            instead = placeholder(path)
            raise KabukiError(f"{path}: not an HDF5 file{f', but {instead}' if instead else ''}") from e
        raise KabukiError(f"{path}: the HDF5 library cannot open this file, it is damaged or cut short ({e})") from e
