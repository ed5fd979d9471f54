"""A file that is changed in place: what a reader finds after a kill, and journals that are damaged or strange."""

from __future__ import annotations

import os
import shutil
import struct

import h5py
import numpy as np
import pytest

import kabuki_rlds
from kabuki_rlds import KabukiError
from kabuki_rlds.files import journaled_file, records
from kabuki_rlds.files.journaled_file import JournaledFile
from tests import handmade


@pytest.fixture
def killed(tmp_path):
    """A file whose process was killed when its journal was complete, after half of the pages were written."""
    path = handmade.write(tmp_path / "x.hdf5", handmade.fields() | handmade.index())
    changed = JournaledFile(path)
    with h5py.File(changed, "r+") as file:
        file["reward"][:] = 7
        file.attrs["description"] = "x" * 20_000
    copy = tmp_path / "killed" / "x.hdf5"
    copy.parent.mkdir()

    def stop(file, data, at):
        shutil.copy(path, copy)
        shutil.copy(journaled_file.journal_path(path), journaled_file.journal_path(copy))
        return write(file, data, at)

    write, os.pwrite = os.pwrite, stop
    try:
        changed.commit()
    finally:
        os.pwrite = write
    return copy


def rewards(path):
    with h5py.File(path) as file:
        return file["reward"][:].tolist()


def test_a_file_without_commit_is_as_it_was(tmp_path):
    path = handmade.write(tmp_path / "x.hdf5", handmade.fields() | handmade.index())
    before = path.read_bytes()
    changed = JournaledFile(path)
    with h5py.File(changed, "r+") as file:
        file["reward"][:] = 7
        file["more"] = np.arange(100_000)
        assert file["reward"][:].tolist() == [7] * 8
    assert path.stat().st_size > len(before)
    assert path.read_bytes()[: len(before)] == before
    changed.abort()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.hdf5"]


def test_a_reader_completes_a_change_that_was_interrupted(killed):
    assert kabuki_rlds.inspect(killed).info.description == "x" * 20_000
    assert rewards(killed) == [7] * 8
    assert [p.name for p in killed.parent.iterdir()] == ["x.hdf5"]


def test_a_reader_without_permission_says_what_to_do(killed, monkeypatch):
    opens = os.open

    def refuses(path, flags, *args, **options):
        if flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied")
        return opens(path, flags, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuses)
        with pytest.raises(KabukiError) as error:
            kabuki_rlds.validate(killed)
    assert str(error.value).startswith(f"{killed}: ")
    assert f"run `kabuki-rlds inspect {killed}` once with permission to write to it" in str(error.value)
    assert kabuki_rlds.validate(killed) == []


def test_a_reader_without_permission_reads_the_old_file_if_the_journal_is_incomplete(killed, monkeypatch):
    journal = journaled_file.journal_path(killed)
    os.truncate(journal, journal.stat().st_size - 1)
    monkeypatch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    journaled_file.recover(killed)
    assert journal.exists()


def test_a_file_that_took_the_place_of_another_is_not_changed(killed):
    handmade.write(killed, handmade.fields((2, 3), (True, True)) | handmade.index((2, 3)))
    before = killed.read_bytes()
    with pytest.raises(
        KabukiError, match=r"x.hdf5.journal: does not match the content of x.hdf5; .* delete the journal"
    ):
        kabuki_rlds.validate(killed)
    assert killed.read_bytes() == before
    journaled_file.journal_path(killed).unlink()
    assert kabuki_rlds.validate(killed) == []


def test_the_head_of_a_journal_does_not_cut_a_file_that_was_changed_since(killed):
    journal = journaled_file.journal_path(killed)
    os.truncate(journal, journal.stat().st_size - 1)
    with h5py.File(killed, "a") as file:
        file["companion/notes"] = np.arange(10_000)
    assert kabuki_rlds.inspect(killed).num_steps == 8
    with h5py.File(killed) as file:
        assert file["companion/notes"][-1] == 9999
    assert not journal.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda before, after: [b"", after],
        lambda before, after: [before, b""],
        lambda before, after: [before, struct.pack("<Q", 1 << 60) + after[8:]],
        lambda before, after: [before, after[:-5]],
    ],
    ids=["no head", "no size", "a huge size", "a page cut short"],
)
def test_a_journal_that_makes_no_sense_changes_nothing(killed, change):
    journal = journaled_file.journal_path(killed)
    journal.write_bytes(b"".join(map(records.framed, change(*records.read(journal)))))
    size = killed.stat().st_size
    with pytest.raises(KabukiError, match="does not match the content of"):
        kabuki_rlds.validate(killed)
    assert killed.stat().st_size == size


def test_a_journal_that_is_a_link_or_too_large_is_not_read(killed, tmp_path):
    journal = journaled_file.journal_path(killed)
    journal.rename(tmp_path / "elsewhere")
    journal.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KabukiError, match="does not match the content of"):
        kabuki_rlds.validate(killed)
    journal.unlink()
    with open(journal, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(KabukiError, match="does not match the content of"):
        kabuki_rlds.validate(killed)
