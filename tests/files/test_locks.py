"""Readers and writers of one file at the same time, and file systems without locks."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import h5py
import pytest

import kabuki_rlds
from kabuki_rlds.files import disk
from kabuki_rlds.files.atomic_file import StagedFile
from kabuki_rlds.files.atomic_folder import StagedFolder
from kabuki_rlds.files.journaled_file import JournaledFile
from tests import handmade
from tests.preload import build_library


@pytest.fixture
def file(tmp_path) -> Path:
    return handmade.write(tmp_path / "in.hdf5", handmade.fields([3, 4], [True, False]))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_reader_can_open_a_file_as_soon_as_it_has_its_name(file, tmp_path, monkeypatch, overwrite):
    dest = tmp_path / "out.hdf5"
    if overwrite:
        shutil.copy(file, dest)
    sync = disk.sync
    opened = []

    def read_before_the_writer_ends(path) -> None:
        if path == dest.parent:
            with h5py.File(dest) as stored:
                opened.append(int(stored.attrs["num_steps"]))
            opened.append(kabuki_rlds.inspect(dest).num_steps)
        sync(path)

    monkeypatch.setattr(disk, "sync", read_before_the_writer_ends)
    kabuki_rlds.convert([file, file], dest, overwrite=overwrite)
    assert opened == [14, 14]


def test_a_complete_file_is_still_locked_for_other_writers(file, tmp_path, monkeypatch):
    dest = tmp_path / "out.hdf5"
    link = os.link

    def convert_again(*args) -> None:
        with pytest.raises(kabuki_rlds.KabukiError, match="another process is writing this file"):
            kabuki_rlds.convert(file, dest, overwrite=True)
        link(*args)

    monkeypatch.setattr(os, "link", convert_again)
    kabuki_rlds.convert(file, dest)
    assert kabuki_rlds.inspect(dest).num_steps == 7


def test_a_reader_waits_for_a_writer_that_ends_soon(file):
    with open(file, "rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        threading.Timer(0.3, fcntl.flock, [writer, fcntl.LOCK_UN]).start()
        assert kabuki_rlds.inspect(file).num_steps == 7


def test_a_lock_that_is_taken_after_the_first_check_is_not_reported_as_damage(file, monkeypatch):
    open_hdf5 = h5py.File
    with open(file, "rb") as writer:

        def opened_late(*args, **options):
            fcntl.flock(writer, fcntl.LOCK_EX)
            return open_hdf5(*args, **options)

        monkeypatch.setattr(h5py, "File", opened_late)
        with pytest.raises(kabuki_rlds.KabukiError, match="another program has this file open for writing; close it"):
            kabuki_rlds.inspect(file)


@pytest.mark.parametrize("locking", [None, False, True, "best-effort"])
def test_a_file_that_the_process_has_open_with_any_locking_option_can_be_read(file, locking):
    with h5py.File(file, locking=locking):
        assert kabuki_rlds.inspect(file).num_steps == 7


_NO_LOCKS = """
#include <errno.h>
#include <stdlib.h>
int flock(int file, int operation) { errno = atoi(getenv("FLOCK_ERROR")); return -1; }
"""

_USE = """
import sys
from pathlib import Path
import kabuki_rlds
from kabuki_rlds import Logger
file, folder = Path(sys.argv[1]), Path(sys.argv[2])
for overwrite in (False, True):
    for dest in (folder / "out.hdf5", folder / "killed.hdf5"):
        kabuki_rlds.convert(file, dest, overwrite=overwrite)
        assert not kabuki_rlds.validate(dest)
    kabuki_rlds.build(file, folder / "built", name="x", overwrite=overwrite)
    kabuki_rlds.export(file, folder / "exported.hdf5", "robomimic", overwrite=overwrite)
for dest in (folder / "recorded.hdf5", folder / "recorded"):
    for run in range(2):
        with Logger(dest) as logger:
            logger.reset(0.0)
            logger.step(1, 1.0, 1.0, terminal=True)
    assert kabuki_rlds.inspect(dest).num_episodes == 2
"""


@pytest.fixture(scope="module")
def no_locks(tmp_path_factory) -> Path:
    """A library to preload in which `flock` fails."""
    code = tmp_path_factory.mktemp("no_locks") / "no_locks.c"
    code.write_text(_NO_LOCKS)
    return build_library(code, code.parent)


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOSYS], ids=errno.errorcode.get)
def test_file_systems_without_locks_are_supported(file, no_locks, tmp_path, error):
    (tmp_path / "made").mkdir()
    # The remains of a killed writer.
    (tmp_path / "made" / "killed.hdf5.partial").write_bytes(bytes(100))
    run = subprocess.run(
        [sys.executable, "-c", _USE, file, tmp_path / "made"],
        env=os.environ | {"LD_PRELOAD": os.fspath(no_locks), "FLOCK_ERROR": str(error)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert f"does not support locks ({os.strerror(error)}); make sure that no other process" in run.stderr
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [
        "built", "exported.hdf5", "killed.hdf5", "out.hdf5", "recorded", "recorded.hdf5",
    ]  # fmt: skip


@pytest.fixture
def without_locks(monkeypatch) -> None:
    def fails(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fails)


def test_without_locks_a_file_written_by_two_processes_is_complete(file, tmp_path, monkeypatch, without_locks):
    dest = tmp_path / "out.hdf5"
    commit = StagedFile.commit

    def after_another_writer(self) -> None:
        monkeypatch.setattr(StagedFile, "commit", commit)
        kabuki_rlds.convert([file, file], dest)
        commit(self)

    monkeypatch.setattr(StagedFile, "commit", after_another_writer)
    with pytest.raises(kabuki_rlds.KabukiError, match=r"out.hdf5.partial: another process has deleted or replaced"):
        kabuki_rlds.convert(file, dest, overwrite=True)
    assert kabuki_rlds.inspect(dest).num_steps == 14
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.hdf5", "out.hdf5"]


def test_without_locks_a_folder_written_by_two_processes_is_complete(file, tmp_path, monkeypatch, without_locks):
    commit = StagedFolder.commit

    def after_another_writer(self) -> None:
        monkeypatch.setattr(StagedFolder, "commit", commit)
        kabuki_rlds.build([file, file], tmp_path / "d", name="x")
        commit(self)

    monkeypatch.setattr(StagedFolder, "commit", after_another_writer)
    with pytest.raises(kabuki_rlds.KabukiError, match=r"1.0.0.partial: another process has deleted or replaced"):
        kabuki_rlds.build(file, tmp_path / "d", name="x", overwrite=True)
    assert kabuki_rlds.inspect(tmp_path / "d" / "x").num_steps == 14
    assert [path.name for path in (tmp_path / "d" / "x").iterdir()] == ["1.0.0"]


def test_without_locks_a_reader_does_not_undo_an_unfinished_append(file, tmp_path, without_locks):
    """The process that appends may still run."""
    dest = kabuki_rlds.convert(file, tmp_path / "out.hdf5").path
    journaled = JournaledFile(dest)
    journaled.seek(0, os.SEEK_END)
    journaled.write(memoryview(bytes(5000)))
    size = dest.stat().st_size
    assert kabuki_rlds.inspect(dest).num_steps == 7
    assert dest.stat().st_size == size
    journaled.commit()
    assert kabuki_rlds.inspect(dest).num_steps == 7
