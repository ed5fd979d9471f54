"""Full memory, full and read-only disks, forked processes, and files that change while they are read."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

import kabuki_rlds
from kabuki_rlds.cli.main import main
from kabuki_rlds.formats.hdf5.source import KabukiSource
from tests import handmade, layout_files
from tests.disks import small_disk


@pytest.fixture
def small(tmp_path) -> Path:
    return handmade.write(tmp_path / "small.hdf5", handmade.fields())


@pytest.fixture
def other_disk(tmp_path) -> Iterator[Path]:
    """A folder on another file system."""
    with small_disk(tmp_path / "disk", "8m") as folder:
        yield folder


def test_convert_and_build_work_on_another_file_system(small, other_disk):
    path = kabuki_rlds.convert(small, other_disk / "out.hdf5", resume=True).path
    assert [entry.name for entry in other_disk.iterdir()] == ["out.hdf5"]
    assert kabuki_rlds.build(path, other_disk).num_steps == 8
    assert kabuki_rlds.compare(path, small) == []


def test_a_read_only_disk_is_reported(small, other_disk, capsys):
    subprocess.run(["mount", "-o", "remount,ro", other_disk], check=True)
    for command in (["convert", small, other_disk / "out.hdf5"], ["build", small, "--out", other_disk]):
        assert main([*map(str, command), "--quiet"]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "cannot be written (Read-only file system)" in line
    assert list(other_disk.iterdir()) == []


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
@pytest.mark.parametrize("lengths", [(300_000,), (1_000,) * 300])
def test_a_disk_that_another_process_fills_is_reported(lengths, file_format, other_disk, tmp_path, capsys, monkeypatch):
    fields = handmade.fields(lengths, (True,) * len(lengths))
    fields["observation"] = np.random.default_rng(0).random((300_000, 8), np.float32)
    file = handmade.write(tmp_path / "large.hdf5", fields)
    free = shutil._ntuple_diskusage(1 << 40, 0, 1 << 40)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    command = ["build", str(file), "--out", str(other_disk), "--file-format", file_format, "--quiet"]
    assert main(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    shard = other_disk / "large" / "1.0.0.partial" / f"large-train.{file_format}-00000"
    assert line.startswith(f"kabuki-rlds: error: {shard}: cannot be written (")
    assert "No space left on device" in line
    assert list(other_disk.iterdir()) == []


@pytest.mark.parametrize("command", ["convert", "build"])
def test_out_of_memory_is_reported_in_one_line(command, small, tmp_path, capsys, monkeypatch):
    blocks = KabukiSource.blocks

    def fail_later(self, only=None, **options):
        yield from blocks(self, only, **options)
        raise MemoryError

    monkeypatch.setattr(KabukiSource, "blocks", fail_later)
    folder = tmp_path / "made"
    folder.mkdir()
    dest = [str(folder / "out.hdf5")] if command == "convert" else ["--out", str(folder)]
    assert main([command, str(small), *dest, "--quiet"]) == 1
    assert capsys.readouterr().err == "kabuki-rlds: error: out of memory; nothing was written\n"
    assert list(folder.iterdir()) == []


def test_a_source_changed_during_build_is_reported(small, tmp_path, monkeypatch):
    from kabuki_rlds.formats.rlds.sink import SplitSink

    write = SplitSink.write

    def change(self, block) -> None:
        write(self, block)
        small.touch()

    monkeypatch.setattr(SplitSink, "write", change)
    folder = tmp_path / "built"
    with pytest.raises(kabuki_rlds.KabukiError, match=r"small.hdf5: changed while it was read"):
        kabuki_rlds.build(small, folder)
    assert not folder.exists()


def test_a_source_deleted_during_convert_is_reported(small, tmp_path, monkeypatch):
    from kabuki_rlds.formats.hdf5.sink import KabukiSink

    write = KabukiSink.write

    def remove(self, block) -> None:
        write(self, block)
        small.unlink(missing_ok=True)

    monkeypatch.setattr(KabukiSink, "write", remove)
    with pytest.raises(kabuki_rlds.KabukiError, match=r"small.hdf5: changed while it was read"):
        kabuki_rlds.convert(small, tmp_path / "out.hdf5")
    assert [path.name for path in tmp_path.iterdir()] == []


def _sum_of(path: str, start: int, stop: int) -> tuple[float, int]:
    """The data that a forked worker reads: rows of an open file, and the whole file with this package."""
    with h5py.File(path) as file:
        part = float(file["reward"][start:stop].sum())
    with KabukiSource(path) as source:
        return part, sum(block.num_steps for block in source.blocks())


def test_forked_readers_of_one_file_read_the_same_data(tmp_path):
    """Like the workers of a `torch.utils.data.DataLoader` whose parent process has read the file before."""
    n = 20_000
    fields = handmade.fields([n], [True])
    fields["reward"] = handmade.Stored(np.arange(n, dtype=np.float64), {"chunks": (1000,), "compression": "gzip"})
    path = os.fspath(kabuki_rlds.convert(handmade.write(tmp_path / "in.hdf5", fields), tmp_path / "f.hdf5").path)
    with KabukiSource(path) as source:
        next(source.blocks())
        jobs = [(path, start, start + 1000) for start in range(0, n, 1000)]
        with multiprocessing.get_context("fork").Pool(4) as pool:
            found = pool.starmap_async(_sum_of, jobs).get(60)
        assert sum(block.num_steps for block in source.blocks()) == n
    assert sum(part for part, _ in found) == n * (n - 1) / 2
    assert {steps for _, steps in found} == {n}


_WRITER = """
import sys, h5py
file = h5py.File(sys.argv[1], sys.argv[2], libver=sys.argv[3])
file["more"] = range(9)
if "flush" in sys.argv:
    file.flush()
if "swmr" in sys.argv:
    file.swmr_mode = True
print("open", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def held_open(path: Path, *how: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that has a file open for writing."""
    command = [sys.executable, "-c", _WRITER, str(path), *how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process
        process.kill()


@pytest.mark.parametrize("how", [("a", "earliest"), ("a", "latest"), ("w", "earliest"), ("w", "latest", "flush")])
@pytest.mark.parametrize("layout", ["kabuki", "robomimic"])
def test_a_file_that_another_program_has_open_is_not_reported_as_damaged(small, tmp_path, how, layout, capsys):
    path = small if layout == "kabuki" else layout_files.robomimic(tmp_path / "demo.hdf5", {0: 3})
    commands = [["convert", path, tmp_path / "out.hdf5"], ["validate", path], ["inspect", path]]
    with held_open(path, *how):
        for command in commands:
            assert main(list(map(str, command))) == 1
            assert capsys.readouterr().err == (
                f"kabuki-rlds: error: {path}: another program has this file open for writing; close it there, "
                "then run again\n"
            )


@pytest.mark.parametrize("how", [("latest", "flush"), ("latest", "flush", "swmr")])
@pytest.mark.parametrize("lives", [True, False])
def test_a_file_marked_as_open_is_reported(tmp_path, how, lives):
    path = tmp_path / "x.hdf5"
    with held_open(path, "w", *how) as process:
        if not lives:
            process.kill()
            process.wait()
        with pytest.raises(kabuki_rlds.KabukiError, match=r"has this file open for writing|marked as open .*h5clear"):
            kabuki_rlds.inspect(path)
