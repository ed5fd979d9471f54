"""Remembers which HDF5 files are safe to open, in this process and in the processes that it starts.

A verdict belongs to one version of a file: device, inode, size, and times of the last changes. A changed file has no
verdict. A forked process inherits the verdicts. A spawned process reads them from a temporary file without a name,
which the environment variable `KABUKI_RLDS_VERDICTS` refers to through `/proc`. On systems without `/proc`, a spawned
process probes files again.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
import threading
from typing import NamedTuple, TypeAlias

#: Numbers that change whenever the file changes.
FileVersion: TypeAlias = tuple[int, ...]

_ENVIRONMENT = "KABUKI_RLDS_VERDICTS"
#: The first line of the shared file.
_HEADER = b"kabuki_rlds verdicts 1\n"


class Verdict(NamedTuple):
    """The result of probing one version of a file.

    Attributes:
      problem: why the file is rejected, without its name; "" if the file is safe.
      is_damaged: whether the problem is damage or an attack. Otherwise, for example, the file is not an HDF5 file.
      unreadable: attributes whose types h5py cannot read: (path of the object, name, unreadable part of the type).
      filters: filters that may be missing: (number, path of the first dataset that needs it).
    """

    problem: str = ""
    is_damaged: bool = False
    unreadable: tuple[tuple[str, str, str], ...] = ()
    filters: tuple[tuple[int, str], ...] = ()

    def to_json(self) -> str:
        """Returns the verdict as one line of JSON."""
        return json.dumps(self)

    @classmethod
    def from_json(cls, line: str | bytes) -> Verdict:
        """Returns the verdict that `to_json` wrote."""
        problem, is_damaged, unreadable, filters = json.loads(line)
        return cls(problem, is_damaged, tuple(map(tuple, unreadable)), tuple(map(tuple, filters)))


SAFE = Verdict()

_known: dict[FileVersion, Verdict] = {}
_lock = threading.Lock()
#: Descriptor of the shared file; None if it was not opened yet, or cannot be. It stays open until the process ends.
_shared: int | None = None
_shared_read = 0


def file_version(path: str) -> FileVersion:
    """Returns numbers that change whenever the file changes."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def find(version: FileVersion) -> Verdict | None:
    """Returns the verdict on a file, or None if this version was not probed."""
    with _lock:
        if version not in _known:
            _read_shared()
        return _known.get(version)


def add(version: FileVersion, verdict: Verdict) -> None:
    """Remembers the verdict on a file."""
    with _lock:
        _known[version] = verdict
        if _shared is None:
            _create_shared()
        if _shared is not None:
            # Without this file, another process probes again. For example, the disk is full.
            with contextlib.suppress(OSError):
                os.write(_shared, f"{json.dumps(version)}\t{verdict.to_json()}\n".encode())


def trust(path: str | os.PathLike[str]) -> None:
    """Remembers that this process wrote a file, so that it is opened without a probe."""
    # Another process may have removed the file already.
    with contextlib.suppress(OSError):
        add(file_version(os.fspath(path)), SAFE)


def _read_shared() -> None:
    """Adds the verdicts that other processes wrote since the last call."""
    global _shared, _shared_read
    name = os.environ.get(_ENVIRONMENT)
    if _shared is None and name:
        _shared = _open_shared(name)
    if _shared is None:
        return
    data = os.pread(_shared, os.fstat(_shared).st_size - _shared_read, _shared_read)
    # The last line may not be complete yet.
    data = data[: data.rfind(b"\n") + 1]
    _shared_read += len(data)
    for line in data.splitlines():
        # The first line is the header. A write to a full disk leaves part of a line.
        with contextlib.suppress(ValueError):
            version, verdict = line.split(b"\t")
            _known[tuple(json.loads(version))] = Verdict.from_json(verdict)


def _open_shared(name: str) -> int | None:
    """Opens the file of the process that started this one, or returns None if it is gone."""
    with contextlib.suppress(OSError):
        # The descriptor may belong to something else by now, for example a pipe.
        file = os.open(name, os.O_RDWR | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC)
        status = os.fstat(file)
        is_own = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
        if is_own and os.pread(file, len(_HEADER), 0) == _HEADER:
            return file
        os.close(file)
    return None


def _create_shared() -> None:
    global _shared
    with contextlib.suppress(OSError):
        handle, name = tempfile.mkstemp(prefix="kabuki_rlds-")
        try:
            os.unlink(name)
            _shared = os.open(f"/proc/self/fd/{handle}", os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        finally:
            os.close(handle)
        os.write(_shared, _HEADER)
        os.environ[_ENVIRONMENT] = f"/proc/{os.getpid()}/fd/{_shared}"


def _renew_lock() -> None:
    """In a forked process: another thread may have held the lock."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)
