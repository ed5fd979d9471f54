"""The process that `probe` starts. It opens files with the HDF5 library and checks their structure, under limits.

Each line of standard input is, as JSON, the path of a file and its limit of CPU time in seconds. Each line of standard
output is the verdict on it as JSON.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import select
import shlex
import signal
import sys
import time

import h5py

from kabuki_rlds.errors import DamagedDataError, one_line, system_error
from kabuki_rlds.files import disk
from kabuki_rlds.formats.safe_hdf5 import plugins
from kabuki_rlds.formats.safe_hdf5.probe import IDLE_SECONDS, MAX_MEMORY_BYTES
from kabuki_rlds.formats.safe_hdf5.structure import check_structure
from kabuki_rlds.formats.safe_hdf5.verdicts import Verdict

#: Part of HDF5's error message for a file whose consistency flags are set.
_STILL_OPEN = "file is already open for write"

#: The process ends after a file that needed more memory.
_MAX_KEPT_BYTES = MAX_MEMORY_BYTES // 4


def main() -> None:
    """Probes files until standard input ends."""
    _limit(resource.RLIMIT_AS, MAX_MEMORY_BYTES)
    _limit(resource.RLIMIT_CORE, 0)
    # The parent process may have blocked or ignored the signal, which this process inherits.
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGXCPU])
    print("ready", flush=True)
    with plugins.disabled():
        while line := _next_line(sys.stdin.fileno()):
            path, cpu_seconds = json.loads(line)
            # Beyond this limit, the system ends the process.
            _limit(resource.RLIMIT_CPU, math.ceil(time.process_time() + cpu_seconds))
            print(_probe(path).to_json(), flush=True)
            if _peak_bytes() > _MAX_KEPT_BYTES:
                # The HDF5 library may keep the memory, and the next file would have less. A new process has all of it.
                return


def _peak_bytes() -> int:
    """The largest memory of this process so far; 0 if it is not known.

    `getrusage` would include the memory of the parent process before this program started.
    """
    with contextlib.suppress(OSError), open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) << 10
    return 0


def _limit(resource_type: int, limit: int) -> None:
    """Sets a limit of this process, or keeps the one that the parent process has, if it is lower."""
    _, hard = resource.getrlimit(resource_type)
    resource.setrlimit(resource_type, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _next_line(requests: int) -> bytes:
    """Returns the next line, or nothing if no line arrives for `IDLE_SECONDS`."""
    line = b""
    while not line.endswith(b"\n"):
        # Without a buffer, because `select` does not see what a buffer holds.
        if not select.select([requests], [], [], IDLE_SECONDS)[0]:
            return b""
        part = os.read(requests, select.PIPE_BUF)
        if not part:
            return b""
        line += part
    return line


def _probe(path: str) -> Verdict:
    try:
        # A lock here would keep the process that wrote the file from opening it again.
        file = h5py.File(path, "r", driver="sec2", locking=False)
    except Exception as e:
        if _STILL_OPEN in str(e):
            return Verdict(
                "marked as open for writing: another program has the file open, or ended without closing it; close the "
                f"file there, or remove the mark with `h5clear -s {shlex.quote(path)}` (a tool of the HDF5 project)"
            )
        return _damaged("damaged or truncated: the HDF5 library cannot open this file", e)
    try:
        with file:
            return check_structure(file)
    except DamagedDataError as e:
        return Verdict(e.problem, True)
    except Exception as e:
        return _damaged("damaged: the HDF5 library cannot read the structure of the file", e)


def _damaged(problem: str, error: Exception) -> Verdict:
    if isinstance(error, MemoryError):
        return Verdict(f"needs more than {MAX_MEMORY_BYTES:,} bytes of memory to read its structure", True)
    number = system_error(error)
    if number is not None:
        return Verdict(disk.unreadable(number))
    return Verdict(f"{problem} ({one_line(error)}); restore the file from an intact copy", True)
