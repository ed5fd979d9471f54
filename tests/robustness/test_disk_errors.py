"""Errors of the disk at any call while a file is written: one line with the cause, and no partial output."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import kabuki_rlds
from kabuki_rlds.files import disk
from tests import handmade
from tests.places import ROOT
from tests.preload import build_library

#: Runs one command in a child process for each fault, and prints [exit status, output, names of the files left].
_DRIVER = """
import json, os, shutil, sys
from pathlib import Path
from kabuki_rlds.cli.main import main
folder, arguments, faults = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
for call, after in faults:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        os.environ |= {"FAULT_CALL": call, "FAULT_AFTER": str(after)}
        status = main(arguments)
        sys.stdout.flush()
        os._exit(status)
    os.close(writer)
    with open(reader) as output:
        text = output.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([status, text, sorted(path.name for path in folder.rglob("*"))]))
"""

_COMMANDS = {
    "convert": ["convert", "SOURCE", "FOLDER/x.hdf5", "--quiet"],
    "robomimic": ["export", "SOURCE", "FOLDER/x.hdf5", "--to", "robomimic", "--quiet"],
    "d4rl": ["export", "SOURCE", "FOLDER/x.hdf5", "--to", "d4rl", "--quiet"],
    "minari": ["export", "SOURCE", "FOLDER/x-v0", "--to", "minari", "--quiet"],
}


@pytest.fixture(scope="module")
def faults(tmp_path_factory) -> Path:
    """A library to preload, in which system calls fail."""
    return build_library(ROOT / "tests" / "faults.c", tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    fields = handmade.fields([50] * 60, [True] * 60)
    fields["noise"] = np.random.default_rng(0).normal(size=(3000, 30))
    return handmade.write(tmp_path_factory.mktemp("source") / "in.hdf5", fields)


@pytest.mark.parametrize("command", _COMMANDS)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_a_failed_call_is_reported_in_one_line_and_leaves_no_output(command, number, source, faults, tmp_path):
    """The space was reserved before. Some file systems accept the reservation and have no space later."""
    folder = tmp_path / "made"
    calls = [("write", after) for after in (0, 1, 5, 10, 20)] + [("fsync", 0), ("truncate", 0)]
    arguments = [part.replace("SOURCE", str(source)).replace("FOLDER", str(folder)) for part in _COMMANDS[command]]
    run = subprocess.run(
        [sys.executable, "-c", _DRIVER, folder, json.dumps(arguments), json.dumps(calls)],
        env=os.environ | {"LD_PRELOAD": str(faults), "FAULT_PATH": str(folder), "FAULT_ERRNO": str(number)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    results = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(results) == len(calls)
    for call, (status, text, left) in zip(calls, results, strict=True):
        if call[1] > 5 and status == 0:
            # There were fewer calls.
            continue
        assert (status, left) == (1, []), (call, text)
        message = f"cannot be written ({os.strerror(number)})"
        assert text.startswith(f"kabuki-rlds: error: {folder}") and text.endswith(f"{message}\n"), text
        assert text.count("\n") == 1, (call, text)


_LOADER = """
import os, sys
import kabuki_rlds
for after in range(0, 40, 3):
    if not os.fork():
        os.environ |= {"FAULT_CALL": "read", "FAULT_AFTER": str(after)}
        try:
            for batch in kabuki_rlds.load_steps(sys.argv[1], 64, as_numpy=True):
                pass
        except kabuki_rlds.KabukiError as e:
            print(e)
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""


def test_a_loader_that_cannot_read_names_the_error_of_the_disk(source, faults):
    run = subprocess.run(
        [sys.executable, "-c", _LOADER, source],
        env=os.environ | {"LD_PRELOAD": str(faults), "FAULT_PATH": source.name, "FAULT_ERRNO": str(errno.EIO)},
        capture_output=True,
        text=True,
        check=False,
    )
    messages = run.stdout.splitlines()
    assert len(messages) > 5
    assert f"{source}: cannot be read (Input/output error); check the disk and its connection" in messages
    for message in messages:
        assert message.startswith(f"{source}: ") and "Input/output error" in message and "damaged" not in message
        assert len(message) < 200 + len(str(source))


WRITERS = {
    "convert": lambda source, folder, **options: kabuki_rlds.convert(source, folder / "x.hdf5", **options),
    "build": lambda source, folder, **options: kabuki_rlds.build(source, folder, name="x", **options),
    "minari": lambda source, folder, **options: kabuki_rlds.export(source, folder / "x-v0", "minari", **options),
}


@pytest.fixture
def small(tmp_path) -> Path:
    return handmade.write(tmp_path / "in.hdf5", handmade.fields([3, 4], [True, False]))


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_failed_sync_after_the_rename_is_a_warning(kind, overwrite, small, tmp_path, monkeypatch, caplog):
    folder = tmp_path / "made"
    folder.mkdir()
    if overwrite:
        WRITERS[kind](small, folder)
    sync = disk.sync

    def fails(path) -> None:
        if Path(path).is_dir() and {child.name for child in Path(path).iterdir()} & {"x.hdf5", "1.0.0", "data"}:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(path)

    monkeypatch.setattr(disk, "sync", fails)
    WRITERS[kind](small, folder, overwrite=overwrite)
    (warning,) = [each.getMessage() for each in caplog.records if "in place" in each.getMessage()]
    assert "is complete and in place, but the disk does not confirm its name (Input/output error)" in warning
    names = {path.name for path in folder.rglob("*")}
    assert not any(name.endswith((".partial", ".old")) for name in names)
    made = kabuki_rlds.inspect(folder / {"convert": "x.hdf5", "build": "x", "minari": "x-v0"}[kind])
    assert made.num_episodes == 2


@pytest.mark.parametrize("kind", WRITERS)
def test_a_destination_folder_that_disappears_is_reported(kind, small, tmp_path, monkeypatch):
    folder = tmp_path / "made"
    folder.mkdir()
    fsync = os.fsync

    def removed(descriptor) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", removed)
    with pytest.raises(kabuki_rlds.KabukiError, match=r"deleted or replaced|No such file or directory"):
        WRITERS[kind](small, folder)
    assert not folder.exists()


def test_an_output_that_cannot_be_removed_does_not_hide_the_error(small, tmp_path, monkeypatch):
    def read_only(*args, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "fsync", read_only)
    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(kabuki_rlds.KabukiError, match=r"x.hdf5: cannot be written \(Read-only file system\)"):
        kabuki_rlds.convert(small, tmp_path / "x.hdf5")
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.hdf5", "x.hdf5.partial"]
    assert kabuki_rlds.convert(small, tmp_path / "x.hdf5").num_episodes == 2
