"""Opens untrusted HDF5 files for reading."""

from __future__ import annotations

import errno
import logging
import os
import pathlib

import h5py

from kabuki_rlds.errors import DamagedDataError, KabukiError, SourceNotFoundError, system_error
from kabuki_rlds.files import disk
from kabuki_rlds.files.journaled_file import recover
from kabuki_rlds.files.locks import is_locked
from kabuki_rlds.files.paths import local_path
from kabuki_rlds.files.placeholders import placeholder
from kabuki_rlds.formats.safe_hdf5 import caches, plugins, verdicts
from kabuki_rlds.formats.safe_hdf5.probe import probe
from kabuki_rlds.formats.safe_hdf5.verdicts import Verdict

_log = logging.getLogger("kabuki_rlds")

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
#: The signature follows a user block of 0, 512, 1,024, ... bytes.
_MIN_USER_BLOCK = 512

#: A file that changes while it is probed is probed again, at most so many times.
_MAX_PROBES = 3

#: The maximum number of attributes listed in a warning.
_MAX_LISTED = 5


def open_file(path: str | os.PathLike[str], *, quiet: bool = False) -> h5py.File:
    """Opens an HDF5 file for reading, after safety checks. All code of the package opens HDF5 files with it.

    A file that this process did not write is first opened in the worker process (see `probe`), once for each version
    of the file.

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
    try:
        verdict = _verdict_on(path)
    except KabukiError:
        raise
    except OSError as e:
        raise KabukiError(f"{path}: {disk.unreadable(e.errno or errno.EIO)}") from e
    _check_verdict(path, verdict)
    if verdict.unreadable and not quiet:
        listed = ", ".join(
            f"{name!r} of {item or '/'} ({reason})" for item, name, reason in verdict.unreadable[:_MAX_LISTED]
        )
        more = f" and {len(verdict.unreadable) - _MAX_LISTED:,} more" if len(verdict.unreadable) > _MAX_LISTED else ""
        _log.warning("%s: attributes with types that h5py cannot read are ignored: %s%s", path, listed, more)
    try:
        with plugins.disabled():
            return _open_locked_if_possible(path)
    except OSError as e:
        # Another program began to write after the first check.
        if is_locked(path):
            raise _being_written(path) from e
        number = system_error(e)
        if number is not None:
            raise KabukiError(f"{path}: {disk.unreadable(number)}") from e
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
            return _open(path, locking)
        except BlockingIOError:
            raise
        except OSError as e:
            if "lock" not in str(e):
                raise
    return _open(path, True)


def _open(path: str, locking: bool | None) -> h5py.File:
    # The driver is given, because rows are also read from its file descriptor, and HDF5_DRIVER may name another one.
    return caches.limit_metadata_cache(h5py.File(path, "r", driver="sec2", locking=locking, **caches.CHUNK_CACHE))


def _being_written(path: str) -> KabukiError:
    return KabukiError(f"{path}: another program has this file open for writing; close it there, then run again")


def _verdict_on(path: str) -> Verdict:
    """Returns the verdict on a file, from an earlier probe of this version or from a new one."""
    for _ in range(_MAX_PROBES):
        version = verdicts.file_version(path)
        verdict = verdicts.find(version)
        if verdict is not None:
            return verdict
        _check_is_hdf5(path)
        verdict = probe(path, os.path.getsize(path))
        if verdict.problem and is_locked(path):
            raise _being_written(path)
        if verdict.problem and not verdict.is_damaged:
            # The reason is not the file: it may be readable later.
            return verdict
        if verdicts.file_version(path) == version:
            verdicts.add(version, verdict)
    raise KabukiError(f"{path}: changes while it is read; wait until it is complete, then run again")


def _check_is_hdf5(path: str) -> None:
    """Checks that a file can be read and has the signature of HDF5.

    Raises:
      KabukiError: it does not. The message says what the file is, if that is known.
    """
    try:
        with open(path, "rb") as file:
            size, at = os.fstat(file.fileno()).st_size, 0
            while at < size:
                if os.pread(file.fileno(), len(_SIGNATURE), at) == _SIGNATURE:
                    return
                at = at * 2 or _MIN_USER_BLOCK
    except PermissionError as e:
        raise KabukiError(f"{path}: no permission to read it") from e
    instead = placeholder(path)
    raise KabukiError(f"{path}: not an HDF5 file{f', but {instead}' if instead else ''}")


def _check_verdict(path: str, verdict: Verdict) -> None:
    """Checks that a file is safe, and that this process has all filters that its datasets need."""
    if verdict.is_damaged:
        raise DamagedDataError(verdict.problem, file=path)
    if verdict.problem:
        raise KabukiError(f"{path}: {verdict.problem}")
    # The program may have registered filters that the worker process does not have. A query for a filter would load a
    # plugin if plugins were not disabled.
    with plugins.disabled():
        for number, dataset in verdict.filters:
            if not h5py.h5z.filter_avail(number):
                raise DamagedDataError(
                    f"{dataset}: filter {number} needs a plugin, and plugins are not loaded; make a file without it "
                    "with h5repack -f GZIP=4; file rejected",
                    file=path,
                )
