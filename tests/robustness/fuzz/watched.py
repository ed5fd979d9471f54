"""Processes that try files out, and are watched: what crashes, hangs or takes too much memory is seen as such.

    python -m tests.robustness.fuzz.watched hdf5|rlds

reads paths from its input, one a line, and prints for each what came of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import math
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import h5py

import kabuki_rlds

#: What one file may take: of the processor's time, since others may use the machine. A dataset is converted
#: twice, and two processors work at it.
SECONDS = {"hdf5": 10.0, "rlds": 30.0}
#: Who waits for something that never comes uses none, so there is a limit to the time without any too. It is counted
#: in looks at the process, for a machine may be stopped, with all that runs on it.
PATIENCE = 60.0
_LOOK = 0.5
MEMORY = 1 << 30

Kind = Literal["hdf5", "rlds"]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What came of one file.

    Attributes:
      kind: "converted", "refused", or what went wrong: "fault", "crash", "hang", "memory", "outside".
      message: the error, or where it went wrong.
    """

    kind: str
    message: str = ""

    @property
    def is_good(self) -> bool:
        return self.kind in ("converted", "refused")


class Worker:
    """A process that tries files out, and is replaced when it dies.

    Args:
      kind: of files.
      secret: a folder of which nothing may be read.

    Attributes:
      process: the process, None before the first file and after it died.
    """

    def __init__(self, kind: Kind, secret: Path):
        self._kind = kind
        self._secret = Opened(secret)
        self.process: subprocess.Popen[bytes] | None = None
        # What it complains of. Nobody reads it while it runs, so that a pipe would fill up and hold it.
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115

    def try_out(self, path: Path) -> Verdict:
        """Tries one file out."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-m", "tests.robustness.fuzz.watched", self._kind],
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
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(f"{path}\n".encode())
            process.stdin.flush()
        answer = self._answer(SECONDS[self._kind])
        opened = self._secret.take()
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
            return Verdict("hang" if died is None else "crash", f"{died}: {where}")
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


def try_all(kind: Kind, paths: Iterable[Path], secret: Path) -> Iterator[tuple[Path, Verdict]]:
    """Tries files out, one after the other."""
    with Worker(kind, secret) as worker:
        for path in paths:
            yield path, worker.try_out(path)


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


def _convert(path: Path, dest: Path, **options: bool) -> kabuki_rlds.Conversion:
    """Converts, and holds the file against the rules: it breaks those that it was said to break, and no other.

    What it breaks of rules 3 to 5 is in its notes.
    """
    fill = dict.fromkeys(("observation", "action", "reward", "discount", "is_terminal"), 0.0)
    result = kabuki_rlds.convert(path, dest, fill=fill, overwrite=True, **options)  # type: ignore[arg-type]
    noted = kabuki_rlds.validate(dest)
    assert not any(3 <= violation.rule <= 5 for violation in noted), (noted, result.warnings)
    with h5py.File(dest, "r+") as file:
        file.attrs.pop("notes", None)
    found = kabuki_rlds.validate(dest)
    rules, said = ({violation.rule for violation in each} for each in (found, result.warnings))
    assert rules == said, (found, result.warnings)
    return result


def _try_hdf5(path: Path, dest: Path) -> None:
    for read in (kabuki_rlds.validate, kabuki_rlds.inspect):
        try:
            read(path)
        except kabuki_rlds.KabukiError as e:
            # Files in the layouts of others can be converted, and not inspected.
            assert "\n" not in str(e), e
    _convert(path, dest)


def _try_rlds(path: Path, dest: Path) -> None:
    refused = None
    try:
        whole = _convert(path, dest)
    except kabuki_rlds.KabukiError as e:
        refused = e
    result = _convert(path, dest, skip_bad_episodes=True)
    if refused is None:
        assert (result.num_episodes, result.skipped) == (whole.num_episodes, []), "skipped what is not damaged"
    else:
        raise refused


def _attempt(kind: str, path: Path, dest: Path) -> Verdict:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # Forgets how much memory was taken before.
    before = _peak()
    try:
        (_try_hdf5 if kind == "hdf5" else _try_rlds)(path, dest)
        verdict = Verdict("converted")
    except kabuki_rlds.KabukiError as e:
        verdict = Verdict("refused", str(e)) if "\n" not in str(e) else Verdict("fault", f"more than a line: {e}")
    except BaseException:
        verdict = Verdict("fault", traceback.format_exc())
    taken = _peak() - before
    return verdict if taken < MEMORY else Verdict("memory", f"{taken:,} bytes; {verdict.kind}: {verdict.message}")


def _peak() -> int:
    """The most memory that this process took."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) << 10
    raise AssertionError


def _serve(kind: str) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    if kind == "rlds":
        import tensorflow_datasets  # noqa: F401
    print("ready", file=answers)
    with tempfile.TemporaryDirectory() as folder:
        for line in sys.stdin:
            verdict = _attempt(kind, Path(line.rstrip("\n")), Path(folder) / "out.hdf5")
            print(json.dumps(dataclasses.asdict(verdict)), file=answers)


if __name__ == "__main__":
    _serve(sys.argv[1])
