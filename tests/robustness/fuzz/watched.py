"""Processes that try files out, and are watched: what crashes, hangs or takes too much memory is seen as such.

    python -m tests.robustness.fuzz.watched [MODULE ...]

imports the modules, reads lines `["reader", "path"]` from its input, and prints for each what came of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib
import json
import math
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import kabuki_rlds
from tests.robustness.fuzz import readers

#: The limit of an attempt, in CPU time, since other programs may use the machine. A dataset is converted
#: twice, and two processors work at it.
SECONDS = 10.0
SECONDS_WITH_TENSORFLOW = 30.0
#: Who waits for something that never comes uses none, so there is a limit to the time without any too. It is counted
#: in looks at the process, for a machine may be stopped, with all that runs on it.
PATIENCE = 60.0
_LOOK = 0.5
MEMORY = 1 << 30
#: The length of an error message, without escapes. A terminal wraps it to a few lines.
MESSAGE_CHARACTERS = 850


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The result of one attempt to read a file.

    Attributes:
      kind: "accepted", "rejected", or what went wrong: "fault", "crash", "hang", "memory", "outside".
      message: the error, or where it went wrong.
      memory: the peak memory in bytes of the process, or of a process that it started.
      seconds: the duration.
    """

    kind: str
    message: str = ""
    memory: int = 0
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        return self.kind in ("accepted", "rejected")


class Worker:
    """A process that tries files out, and is replaced when it dies.

    Args:
      secret: a folder of which nothing may be read, or None.
      prepare: modules that it imports before it counts memory and time.
      seconds: the processor time that one attempt may take.

    Attributes:
      process: the process, None before the first file and after it died.
    """

    def __init__(self, secret: Path | None, prepare: Sequence[str] = (), seconds: float = SECONDS):
        self._secret = None if secret is None else Opened(secret)
        self._prepare = prepare
        self._seconds = seconds
        self.process: subprocess.Popen[bytes] | None = None
        # What it complains of. Nobody reads it while it runs, so that a pipe would fill up and hold it.
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115

    def try_out(self, reader: str, path: Path) -> Verdict:
        """Tries one file out with one of `readers.READERS`."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-m", "tests.robustness.fuzz.watched", *self._prepare],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            )
            self._answer(60)
        self._complaints.seek(0)
        self._complaints.truncate()
        process = self.process
        assert process.stdin is not None
        begin = time.monotonic()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(f"{json.dumps((reader, str(path)))}\n".encode())
            process.stdin.flush()
        answer = self._answer(self._seconds)
        opened = self._secret.take() if self._secret else []
        if not answer:
            # What died may still be about to say where.
            died = None if answer is None else _wait(process, 10)
            # It then says where it is.
            process.send_signal(signal.SIGABRT)
            process.send_signal(signal.SIGCONT)
            _wait(process, 5)
            process.kill()
            process.communicate()
            self.process = None
            self._complaints.seek(0)
            said = self._complaints.read().decode(errors="replace")
            where = " | ".join(said[max(said.find("Fatal Python error"), 0) :].split("\n")[:40])
            return Verdict("hang" if died is None else "crash", f"{died}: {where}", 0, time.monotonic() - begin)
        if opened:
            return Verdict("outside", f"{opened} was opened")
        return Verdict(**json.loads(answer))

    def _answer(self, seconds: float) -> bytes | None:
        """A line that the process prints; an empty one where it dies, None where it is not done in time."""
        assert self.process is not None and self.process.stdout is not None
        begin = used = _processor_seconds(self.process.pid)
        idle = 0
        while idle < math.ceil(PATIENCE / _LOOK):
            ready, _, _ = select.select([self.process.stdout], [], [], _LOOK)
            if ready:
                return self.process.stdout.readline()
            before, used = used, _processor_seconds(self.process.pid)
            idle = idle + 1 if used == before else 0
            if used - begin > seconds:
                break
        return None

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None
        self._complaints.close()
        if self._secret:
            self._secret.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _processor_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def tensorflow_worker(secret: Path | None) -> Worker:
    """A worker for RLDS datasets. It may take longer, because TensorFlow traces how to decode each dataset."""
    return Worker(secret, ["tensorflow_datasets"], SECONDS_WITH_TENSORFLOW)


def try_all(worker: Worker, names: Sequence[str], paths: Iterable[Path]) -> Iterator[tuple[Path, str, Verdict]]:
    """Tries each file out with each of the readers, and yields (path, reader, verdict)."""
    for path in paths:
        for name in names:
            yield path, name, worker.try_out(name, path)


class Opened:
    """Which files of a folder are opened, by whomever: the HDF5 library asks no one."""

    _OPEN = 0x20

    def __init__(self, folder: Path):
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._events = self._libc.inotify_init1(os.O_NONBLOCK)
        if self._libc.inotify_add_watch(self._events, os.fsencode(folder), self._OPEN) < 0:
            raise OSError(ctypes.get_errno(), "inotify")

    def take(self) -> list[str]:
        """The names of those that were opened since it was last asked; "" is the folder itself."""
        names = []
        try:
            events = os.read(self._events, 1 << 16)
        except BlockingIOError:
            return []
        while events:
            length = struct.unpack_from("iIII", events)[3]
            names.append(os.fsdecode(events[16 : 16 + length].rstrip(b"\0")))
            events = events[16 + length :]
        return names

    def close(self) -> None:
        os.close(self._events)


# --- within the process ---


def _attempt(reader: str, path: Path, folder: Path) -> Verdict:
    before, ended_before = _reset_peaks(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    begin = time.monotonic()
    kind, message = "accepted", ""
    try:
        readers.READERS[reader](path, folder)
    except kabuki_rlds.KabukiError as e:
        kind, message = "rejected", str(e)
        # A message is printed on one line, which a terminal wraps.
        if "\n" in message or len(message) > MESSAGE_CHARACTERS:
            kind = "fault"
            message = f"the message is too long: {message}"
    except BaseException as e:
        frames = traceback.extract_tb(e.__traceback__)[-6:]
        where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
        kind, message = "fault", f"{type(e).__name__}: {str(e)[:1000]}, at {where}"
    seconds = time.monotonic() - begin
    own, children = _peak(os.getpid()), max(map(_peak, _children()), default=0)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    if ended > ended_before:
        children = max(children, ended << 10)
    # TensorFlow alone takes half a GiB, so the memory that this process used before is not counted.
    if max(own - before, children) >= MEMORY:
        kind, message = "memory", f"{max(own, children):,} bytes; {kind}: {message}"
    return Verdict(kind, message, max(own, children), seconds)


def _children() -> list[int]:
    """The processes that this one started and that run, for example the one that opens untrusted files first."""
    numbers: list[int] = []
    for task in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # The thread ended.
            numbers += map(int, task.read_text().split())
    return numbers


def _reset_peaks() -> int:
    """Sets the peak memory of this process and its children to what they use now. Returns that of this process."""
    for process in (os.getpid(), *_children()):
        with contextlib.suppress(OSError):
            Path(f"/proc/{process}/clear_refs").write_text("5")
    return _peak(os.getpid())


def _peak(process: int) -> int:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:  # It ended.
        return 0
    return next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def _serve(prepare: Sequence[str]) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for module in prepare:
        importlib.import_module(module)
    print("ready", file=answers)
    with tempfile.TemporaryDirectory() as folder:
        for line in sys.stdin:
            reader, path = json.loads(line)
            verdict = _attempt(reader, Path(path), Path(folder))
            print(json.dumps(dataclasses.asdict(verdict)), file=answers)


if __name__ == "__main__":
    _serve(sys.argv[1:])
