"""Opens untrusted HDF5 files for reading."""

from __future__ import annotations

import functools
import logging
import os
import pathlib

import h5py

from kabuki_rlds.errors import DamagedDataError, KabukiError, SourceNotFoundError
from kabuki_rlds.files.journaled_file import recover
from kabuki_rlds.files.locks import is_locked
from kabuki_rlds.files.paths import local_path
from kabuki_rlds.files.placeholders import placeholder
from kabuki_rlds.formats.safe_hdf5 import plugins
from kabuki_rlds.formats.safe_hdf5.attributes import DIMENSION_SCALES
from kabuki_rlds.formats.safe_hdf5.heaps_and_btrees import check_heaps_and_btrees
from kabuki_rlds.formats.safe_hdf5.structure import UnreadableAttribute, check_structure

_log = logging.getLogger("kabuki_rlds")

#: Part of HDF5's error message for a file whose consistency flags are set.
_STILL_OPEN = "file is already open for write"

#: The maximum number of attributes listed in a warning.
_MAX_LISTED = 5


def open_file(path: str | os.PathLike[str], *, quiet: bool = False) -> h5py.File:
    """Opens an HDF5 file for reading, after safety checks. All code of the package opens HDF5 files with it.

    Args:
      path: the file.
      quiet: do not warn about unreadable attributes, because an earlier open already did.

    Raises:
      SourceNotFoundError: the file does not exist.
      KabukiError: another program has the file open for writing, it is not HDF5, or it is damaged or unsafe.
    """
    path = os.fspath(local_path(path))
    if not os.path.exists(path):
        raise SourceNotFoundError(f"{path}: no such file")
    if os.path.isdir(path):
        raise KabukiError(f"{path}: a folder, not an HDF5 file")
    if not os.path.isfile(path):
        # Reading a pipe, for example, could block forever.
        raise KabukiError(f"{path}: not a regular file")
    # This check comes first, because a partially written file looks damaged.
    if is_locked(path):
        raise _being_written(path)
    # A recording that was killed while it appended may have left the file between two states.
    recover(pathlib.Path(path))
    unreadable = _check_file(path, *_file_version(path))
    if unreadable and not quiet:
        listed = ", ".join(f"{name!r} of {item or '/'} ({reason})" for item, name, reason in unreadable[:_MAX_LISTED])
        more = f" and {len(unreadable) - _MAX_LISTED:,} more" if len(unreadable) > _MAX_LISTED else ""
        _log.warning("%s: attributes with types that h5py cannot read are ignored: %s%s", path, listed, more)
    with plugins.disabled():
        return _open(path)


def _file_version(path: str) -> tuple[int, ...]:
    """Returns numbers that change whenever the file changes."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@functools.lru_cache(256)
def _check_file(path: str, *_version: int) -> list[UnreadableAttribute]:
    """Checks the structure of a file. The cache avoids checking an unchanged file again.

    Returns:
      the attributes that h5py cannot read. Attributes of dimension scales, which contain references, are not listed.
    """
    if os.access(path, os.R_OK):
        check_heaps_and_btrees(path)
    with plugins.disabled(), _open(path) as file:
        try:
            unreadable = check_structure(file, path)
        except (OSError, RuntimeError, ValueError, KeyError) as e:
            raise DamagedDataError(
                f"damaged: the HDF5 library cannot read the structure of the file ({e}); "
                "restore the file from an intact copy",
                file=path,
            ) from e
    return [each for each in unreadable if each[1] not in DIMENSION_SCALES]


def _open(path: str) -> h5py.File:
    try:
        return _open_locked_if_possible(path)
    except OSError as e:
        # Another program began to write after the first check.
        if is_locked(path):
            raise _being_written(path) from e
        if not os.access(path, os.R_OK):
            raise KabukiError(f"{path}: no permission to read it") from e
        with open(path, "rb") as f:
            is_hdf5 = f.read(8) == b"\x89HDF\r\n\x1a\n"
        if _STILL_OPEN in str(e):
            raise KabukiError(
                f"{path}: marked as open for writing: another program has the file open, or ended without closing it; "
                f"close the file there, or remove the mark with `h5clear -s {path}` (a tool of the HDF5 project)"
            ) from e
        if not is_hdf5:
            instead = placeholder(path)
            raise KabukiError(f"{path}: not an HDF5 file{f', but {instead}' if instead else ''}") from e
        raise DamagedDataError(
            f"damaged or truncated: the HDF5 library cannot open this file ({e}); restore the file from an intact copy",
            file=path,
        ) from e


def _open_locked_if_possible(path: str) -> h5py.File:
    """Opens a file with HDF5's lock, which keeps other programs from writing to the file while it is read.

    Without a lock, if the file system does not support locks. If this process has already opened the file with other
    options for locking (`h5py.File(path, locking=False)`), HDF5 requires the same options again.
    """
    for locking in (None, False):
        try:
            return h5py.File(path, "r", locking=locking)
        except BlockingIOError:
            raise
        except OSError as e:
            if "lock" not in str(e):
                raise
    return h5py.File(path, "r", locking=True)


def _being_written(path: str) -> KabukiError:
    return KabukiError(f"{path}: another program has this file open for writing; close it there, then run again")
