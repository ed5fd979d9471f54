"""Kills conversions, builds and exports at random times, and looks at what they leave.

    python -m tests.robustness.fuzz.kills [--kills 200] [--seed 0]

After each kill the destination is the old file, the whole new file, or absent, and
nothing else lies there but what the next run cleans up. After `--resume` the file
equals that of a conversion that was never disturbed.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from kabuki_rlds.cli.main import main as run_command
from kabuki_rlds.commands import resume
from kabuki_rlds.data.last_row import LastRows
from kabuki_rlds.formats.hdf5 import source
from kabuki_rlds.formats.hdf5.appending_sink import AppendingSink
from tests import handmade

OLD = b"the old file, which need not be HDF5"
#: No command takes longer than this here.
LIMIT = 120.0


class Command:
    """A command that makes one file or folder.

    Args:
      arguments: the command line.
      dest: what it makes.
      reads: tells whether `dest` is whole and right.
      leaves: names beside `dest` that a kill may leave.
    """

    def __init__(self, arguments: Sequence[str], dest: Path, reads: Callable[[Path], bool], leaves: set[str]):
        self.arguments = list(map(str, arguments))
        self.dest = dest
        self.reads = reads
        self.leaves = leaves
        self.said = dest.parent.with_name(f"{dest.parent.name}.err")

    def run(self, seconds: float | None = None) -> int | None:
        """Runs it in a process of its own, and kills that after so many seconds.

        Returns:
          The exit code; None where it was killed.
        """
        code = run_and_kill(lambda: run_command(self.arguments), LIMIT if seconds is None else seconds, self.said)
        if code is None and seconds is None:
            raise AssertionError(f"{self.arguments}: hangs")
        return code

    def check(self, had_old: bool) -> str:
        """What there is at the destination: "old", "new" or "absent"."""
        beside = {path.name for path in self.dest.parent.iterdir()} - {self.dest.name}
        assert beside <= self.leaves, (self.arguments, beside)
        if not self.dest.exists():
            # In the moment between two renames an old folder stands beside.
            assert not had_old or f"{self.dest.name}.old" in beside, (self.arguments, "the old one is lost")
            return "absent"
        if self.dest.is_file() and self.dest.read_bytes() == OLD:
            return "old"
        assert self.reads(self.dest), (self.arguments, "neither old nor new")
        return "new"


def run_and_kill(action: Callable[[], int], seconds: float, said: Path) -> int | None:
    """Runs an action in a process of its own, and kills that after so many seconds.

    Args:
      action: returns the exit code.
      seconds: how long it may take.
      said: the file for its stderr.

    Returns:
      The exit code; None where it was killed.
    """
    process = os.fork()
    if not process:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os._exit(action())
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.0005)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def same(whole: Path) -> Callable[[Path], bool]:
    """Tells whether a Kabuki file holds what `whole` does."""

    def reads(path: Path) -> bool:
        with h5py.File(path) as mine, h5py.File(whole) as other:
            names: list[str] = []
            other.visit(names.append)
            found: list[str] = []
            mine.visit(found.append)
            datasets = [name for name in names if isinstance(other[name], h5py.Dataset)]
            return (
                names == found
                and dict(mine.attrs).keys() == dict(other.attrs).keys()
                and all(np.array_equal(mine[name][...], other[name][...]) for name in datasets)
            )

    return reads


def holds(shards: dict[str, bytes]) -> Callable[[Path], bool]:
    """Tells whether a folder has these shards."""
    return lambda folder: {path.name: path.read_bytes() for path in folder.glob("*.tfrecord*")} == shards


def commands(folder: Path) -> dict[str, Command]:
    """The commands, each with a folder of its own, and all that they make made once."""
    source = handmade.write(
        folder / "in.hdf5", handmade.fields([1000] * 400, [True] * 400) | handmade.index([1000] * 400)
    )
    whole = folder / "whole.hdf5"
    assert run_command(["convert", str(source), str(whole), "--quiet"]) == 0
    assert run_command(["build", str(whole), "--out", str(folder / "built"), "--name", "x", "--quiet"]) == 0
    (built,) = (folder / "built" / "x").iterdir()
    shards = {path.name: path.read_bytes() for path in built.glob("*.tfrecord*")}
    made: dict[str, Command] = {}
    for name, options in (("convert", []), ("resume", ["--resume"])):
        dest = folder / name / "out.hdf5"
        dest.parent.mkdir()
        arguments = ["convert", source, dest, "--quiet", "--overwrite", *options]
        made[name] = Command(arguments, dest, same(whole), {"out.hdf5.partial", "out.hdf5.parts"})  # type: ignore[arg-type]
    dest = folder / "build" / "x" / built.name
    dest.parent.mkdir(parents=True)
    arguments = ["build", whole, "--out", folder / "build", "--name", "x", "--quiet", "--overwrite"]
    made["build"] = Command(arguments, dest, holds(shards), {f"{built.name}.partial", f"{built.name}.old"})  # type: ignore[arg-type]
    exported = folder / "exported.hdf5"
    assert run_command(["export", str(whole), str(exported), "--to", "d4rl", "--quiet"]) == 0
    dest = folder / "export" / "out.hdf5"
    dest.parent.mkdir()
    arguments = ["export", whole, dest, "--to", "d4rl", "--quiet", "--overwrite"]
    made["export"] = Command(arguments, dest, same(exported), {"out.hdf5.partial"})  # type: ignore[arg-type]
    return made


def search(kills: int, seed: int, folder: Path) -> Counter[str]:
    """Kills so many commands, and counts what was found after them.

    Raises:
      AssertionError: what was found is none of what may be.
    """
    rng = random.Random(seed)
    # Its own lock is one that processes share, and who is killed does not give it back.
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0
    # So that a file of this size has many parts, and many blocks.
    resume._PART_BYTES = 100_000
    source._BLOCK_ROWS = 1 << 13
    found: Counter[str] = Counter()
    made = commands(folder)
    takes = {}
    for name, command in made.items():
        begin = time.monotonic()
        assert command.run() == 0, name
        takes[name] = time.monotonic() - begin
    killed = 0
    while killed < kills:
        name = rng.choice(tuple(made))
        command = made[name]
        had_old = rng.random() < 0.5
        if not had_old:
            shutil.rmtree(command.dest) if command.dest.is_dir() else command.dest.unlink(missing_ok=True)
        elif not command.dest.exists():
            if name == "build":
                assert command.run() == 0
            else:
                command.dest.write_bytes(OLD)
        begin = time.monotonic()
        code = command.run(rng.uniform(0, takes[name]))
        killed += code is None
        if code is not None:
            takes[name] = min(takes[name], time.monotonic() - begin)
        assert code in (None, 0), (name, code, command.said.read_text())
        state = command.check(had_old)
        assert code is None or state == "new", (name, "it ended, but did nothing")
        found[f"{name}: {'killed' if code is None else 'ended'}, {state}"] += 1
        if rng.random() < 0.4:
            # The next run goes through, and cleans up.
            assert command.run() == 0
            assert command.check(had_old) == "new"
            assert [path.name for path in command.dest.parent.iterdir()] == [command.dest.name]
    return found


def append(path: Path, more: Path) -> int:
    """Appends the episodes of one file to another."""
    with source.KabukiSource(path) as there:
        schema = there.schema
    with source.KabukiSource(more) as episodes, AppendingSink(path, schema, episodes.origins) as sink:
        for block in episodes.blocks():
            sink.write(block)
        sink.commit(LastRows.of_all(False, episodes.num_episodes, ""))
    return 0


def search_appends(kills: int, seed: int, folder: Path) -> Counter[str]:
    """Kills so many processes that append to a file, and counts whether the file is the old or the new one.

    Raises:
      AssertionError: it is neither.
    """
    rng = random.Random(seed)
    source._BLOCK_ROWS = 1 << 13
    more = handmade.write(folder / "in.hdf5", handmade.fields([1000] * 40, [True] * 40) | handmade.index([1000] * 40))
    old, new, path = folder / "old.hdf5", folder / "new.hdf5", folder / "grows.hdf5"
    assert run_command(["convert", str(more), str(old), "--quiet"]) == 0
    shutil.copy(old, new)
    append(new, more)
    found: Counter[str] = Counter()
    takes = 1.0
    while found["killed, old"] + found["killed, new"] < kills:
        shutil.copy(old, path)
        begin = time.monotonic()
        code = run_and_kill(lambda: append(path, more), rng.uniform(0.5, 1.1) * takes, folder / "err")
        takes = max(time.monotonic() - begin, 0.01) if code is not None else takes
        assert code in (None, 0), (folder / "err").read_text()
        with source.KabukiSource(path) as there:
            there.check_complete()
        assert not path.with_name("grows.hdf5.journal").exists()
        state = "old" if same(old)(path) else "new"
        assert state == "old" or same(new)(path), "neither old nor new"
        assert code is None or state == "new", "it ended, but did nothing"
        found[f"{'killed' if code is None else 'ended'}, {state}"] += 1
    return found


def main() -> None:
    """Searches, and prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = search(arguments.kills, arguments.seed, Path(folder))
        (Path(folder) / "append").mkdir()
        appends = search_appends(arguments.kills, arguments.seed, Path(folder) / "append")
        found += Counter({f"append: {what}": count for what, count in appends.items()})
    for what, count in sorted(found.items()):
        print(f"{count:5} {what}")


if __name__ == "__main__":
    main()
