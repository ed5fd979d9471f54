"""Probes untrusted HDF5 files in a separate process, before this process opens them.

The HDF5 library can crash, hang or exhaust the memory when it opens a damaged or hostile file. A worker process makes
the calls first, under limits. If it fails, only the worker is lost, and the file is rejected.

The worker starts when the first file is probed, probes all further files, and ends after a minute without work.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from typing import IO

from kabuki_rlds.errors import KabukiError
from kabuki_rlds.formats.safe_hdf5.verdicts import Verdict

#: Limits of the worker: virtual memory in bytes; CPU time for one file in seconds, and bytes of the file for each
#: further second.
MAX_MEMORY_BYTES = 1 << 30
MAX_CPU_SECONDS = 10
BYTES_PER_CPU_SECOND = 8 << 20
#: The worker ends when it has had no work for so many seconds.
IDLE_SECONDS = 60

#: `import kabuki_rlds` imports the whole package, which takes longer than probing most files. An empty package of the
#: same name and folder avoids that.
_PROGRAM = """
import json, sys, types
sys.path[:] = json.loads(sys.argv[1])
package = types.ModuleType("kabuki_rlds")
package.__path__ = [sys.argv[2]]
sys.modules["kabuki_rlds"] = package
try:
    from kabuki_rlds.formats.safe_hdf5 import probe_worker
except Exception as e:
    sys.exit(print(" ".join(str(e).split())))
probe_worker.main()
"""
_PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class _WorkerEndedError(Exception):
    """The worker process ended before it answered. The message says why."""


class _Worker:
    """A worker process."""

    def __init__(self) -> None:
        # Without the current folder, which may contain a hostile `numpy.py`.
        folders = [os.path.abspath(folder) for folder in sys.path if folder]
        command = [sys.executable, "-I", "-S", "-c", _PROGRAM, json.dumps(folders), _PACKAGE]
        # Each thread of OpenBLAS reserves memory. A new session, because Ctrl-C goes to all processes of a session.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        try:
            with _starting:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env=environment,
                    start_new_session=True,
                )
        except (OSError, ValueError) as e:
            raise KabukiError(f"cannot start the process that checks HDF5 files ({e})") from e
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests: IO[bytes] = self._process.stdin
        self._answers: IO[bytes] = self._process.stdout
        try:
            started = self._answers.readline()
        except BaseException:
            self.stop()
            raise
        if started != b"ready\n":
            self.stop()
            why = started.decode(errors="replace").strip() or "it ended at once"
            raise KabukiError(f"cannot start the process that checks HDF5 files ({why})")
        self.has_probed = False

    def probe(self, path: str, cpu_seconds: float) -> Verdict:
        """Returns the verdict on a file.

        Raises:
          _WorkerEndedError: the process ended.
        """
        try:
            # Not through the buffer of `_requests`: closing it would raise the error again.
            os.write(self._requests.fileno(), json.dumps([path, cpu_seconds]).encode() + b"\n")
            answer = self._answers.readline()
        except BrokenPipeError:
            answer = b""
        if not answer.endswith(b"\n"):
            raise _WorkerEndedError(self._why_ended())
        self.has_probed = True
        return Verdict.from_json(answer)

    def _why_ended(self) -> str:
        code = self._process.wait()
        if code == -signal.SIGXCPU:
            return "takes too long to read its structure"
        if code == -signal.SIGKILL:
            return "needs more memory than there is to read its structure"
        name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return f"crashes the HDF5 library ({name})"

    def stop(self) -> None:
        """Kills the process."""
        self._process.kill()
        self._process.wait()
        self._requests.close()
        self._answers.close()

    def leave(self) -> None:
        """Closes the pipes of a process that belongs to the parent process."""
        # `Popen` must not wait for a process that is not a child of this one.
        self._process.returncode = 0
        self._requests.close()
        self._answers.close()


_worker: _Worker | None = None
_lock = threading.Lock()
#: Held while a worker starts. A process that is forked meanwhile would keep the worker's ends of the pipes open, and
#: the end of the worker would not be noticed. It is an `RLock`, because a signal handler may fork.
_starting = threading.RLock()


def probe(path: str, file_bytes: int) -> Verdict:
    """Opens a file in the worker process and checks its structure there.

    Args:
      path: the file. It has the signature of HDF5.
      file_bytes: size of the file.

    Raises:
      KabukiError: the worker process cannot be started.
    """
    global _worker
    path = os.path.abspath(path)
    cpu_seconds = MAX_CPU_SECONDS + file_bytes / BYTES_PER_CPU_SECOND
    with _lock:
        while True:
            if _worker is None:
                _worker = _Worker()
            is_new = not _worker.has_probed
            try:
                return _worker.probe(path, cpu_seconds)
            except _WorkerEndedError as e:
                _stop()
                # An earlier file may have damaged the worker, or it ended because it was idle.
                if is_new:
                    return Verdict(f"{e}; get an intact copy of the file", is_damaged=True)
            except BaseException:
                # For example Ctrl-C: the answer would arrive for the next file.
                _stop()
                raise


def _stop() -> None:
    global _worker
    worker, _worker = _worker, None
    if worker is not None:
        worker.stop()


def _forget_after_fork() -> None:
    """In a forked process: the worker belongs to the parent, and another thread may have held the lock."""
    global _worker, _lock, _starting
    worker, _worker = _worker, None
    _lock, _starting = threading.Lock(), threading.RLock()
    if worker is not None:
        worker.leave()


os.register_at_fork(
    before=lambda: _starting.acquire(),
    after_in_parent=lambda: _starting.release(),
    after_in_child=_forget_after_fork,
)
atexit.register(_stop)
