"""Appending to a Kabuki file in place: the result, and what is left wherever the process is killed."""

from __future__ import annotations

import os
import pathlib
import shutil

import h5py
import numpy as np
import pytest

import kabuki_rlds
from kabuki_rlds import KabukiError
from kabuki_rlds.data.last_row import LastRows
from kabuki_rlds.files import journaled_file
from kabuki_rlds.formats.hdf5.appending_sink import AppendingSink, check_appendable
from kabuki_rlds.formats.hdf5.source import KabukiSource
from tests import handmade


def source_file(path: pathlib.Path, first: int = 0) -> pathlib.Path:
    """A file by `convert` whose fields have all kinds of columns, 8 rows twenty times."""
    made = path.with_suffix(".in.hdf5")
    numbers = np.arange(first, first + sum(handmade.LENGTHS))
    fields = handmade.fields() | handmade.index() | handmade.companions()
    fields |= {
        "reward": numbers.astype(np.float64),
        "pixels": np.random.default_rng(first).integers(0, 255, (len(numbers), 40, 40, 3), np.uint8),
        "empty": np.zeros((len(numbers), 0), np.float32),
        "text": handmade.Stored([f"step {n}" for n in numbers], {"dtype": h5py.string_dtype()}),
    }
    kabuki_rlds.convert([handmade.write(made, fields)] * 20, path)
    return path


def append(path: pathlib.Path, other: pathlib.Path) -> None:
    with KabukiSource(path) as there, KabukiSource(other) as source:
        check_appendable(there)
        schema = there.schema
        there.close()
        with AppendingSink(path, schema, source.origins) as sink:
            for block in source.blocks():
                sink.write(block)
            sink.commit(LastRows.of_all(False, source.num_episodes, ""))


@pytest.mark.parametrize("times", [1, 3])
def test_an_appended_file_equals_one_converted_at_once(tmp_path, times):
    path, other = source_file(tmp_path / "a.hdf5"), source_file(tmp_path / "b.hdf5", 1000)
    for _ in range(times):
        append(path, other)
    whole = kabuki_rlds.convert(
        [tmp_path / "a.in.hdf5"] * 20 + [tmp_path / "b.in.hdf5"] * 20 * times, tmp_path / "c.hdf5"
    ).path
    assert handmade.contents(path) == handmade.contents(whole)
    assert kabuki_rlds.validate(path) == []


def test_wherever_the_process_is_killed_the_file_is_the_old_or_the_new_one(tmp_path, monkeypatch):
    """The folder is copied before each call that changes it, and after half of each write."""
    work = tmp_path / "work"
    work.mkdir()
    path, other = source_file(work / "a.hdf5"), source_file(tmp_path / "b.hdf5", 1000)
    (work / "a.in.hdf5").unlink()
    copies: list[pathlib.Path] = []

    def copied() -> None:
        copies.append(tmp_path / f"copy{len(copies)}")
        shutil.copytree(work, copies[-1])

    def watched(call, halves=False):
        def watching(*args, **options):
            copied()
            if halves and len(args[1]) > 1:
                call(args[0], bytes(args[1])[: len(args[1]) // 2], args[2])
                copied()
            return call(*args, **options)

        return watching

    old = handmade.contents(path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", watched(os.pwrite, halves=True))
        patched.setattr(os, "ftruncate", watched(os.ftruncate))
        patched.setattr(os, "fsync", watched(os.fsync))
        patched.setattr(pathlib.Path, "unlink", watched(pathlib.Path.unlink))
        append(path, other)
    new = handmade.contents(path)
    assert [p.name for p in work.iterdir()] == ["a.hdf5"]
    assert len(copies) > 20
    states = []
    for copy in copies:
        # Readers outside of this package, which know of no journal, see the old file until the last moment.
        journaled_file.recover(copy / "a.hdf5")
        assert [p.name for p in copy.iterdir()] == ["a.hdf5"]
        found = handmade.contents(copy / "a.hdf5")
        assert found in (old, new)
        states.append(found == new)
    assert states == sorted(states)  # Once new, it stays new.
    assert set(states) == {False, True}


def test_without_commit_the_file_is_as_it_was(tmp_path):
    path, other = source_file(tmp_path / "a.hdf5"), source_file(tmp_path / "b.hdf5", 1000)
    before = path.read_bytes()
    with KabukiSource(path) as there, KabukiSource(other) as source:
        schema = there.schema
        there.close()
        with AppendingSink(path, schema, source.origins) as sink:
            for block in source.blocks():
                sink.write(block)
    assert path.read_bytes() == before
    assert not (tmp_path / "a.hdf5.journal").exists()


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path, other = source_file(tmp_path / "a.hdf5"), source_file(tmp_path / "b.hdf5", 1000)
    before = path.read_bytes()
    write = os.pwrite

    def full(file, data, at):
        if at > len(before) + 2000:
            raise OSError(28, "No space left on device")
        return write(file, data, at)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(KabukiError, match=r"a.hdf5: cannot be written \(No space left on device\)"):
        append(path, other)
    monkeypatch.undo()
    assert path.read_bytes() == before
    append(path, other)
    assert kabuki_rlds.validate(path) == []


def test_a_file_that_another_program_has_open_is_not_changed(tmp_path):
    path, other = source_file(tmp_path / "a.hdf5"), source_file(tmp_path / "b.hdf5", 1000)
    with h5py.File(path), pytest.raises(KabukiError, match="another program has this file open; close it there"):
        append(path, other)
    append(path, other)


def test_a_file_without_room_to_grow_is_refused_with_a_remedy_that_works(tmp_path):
    path, other = source_file(tmp_path / "a.hdf5"), source_file(tmp_path / "b.hdf5", 1000)
    with h5py.File(path, "a") as file:
        rewards = file["reward"][:]
        del file["reward"]
        file["reward"] = rewards
    with KabukiSource(path) as there, pytest.raises(KabukiError) as error:
        check_appendable(there)
    copy = tmp_path / "a-copy.hdf5"
    assert str(error.value) == (
        f"{path}: '/reward' has a fixed number of rows, so it cannot be appended to; `kabuki-rlds convert {path} "
        f"{copy}` makes a copy that can"
    )
    kabuki_rlds.convert(path, copy)
    append(copy, other)
    assert kabuki_rlds.validate(copy) == []
