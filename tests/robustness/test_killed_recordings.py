"""The next recording recovers the episodes of a killed recording, and `convert` reads them."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st

import kabuki_rlds
from kabuki_rlds import KabukiError
from kabuki_rlds.files import records
from kabuki_rlds.recording import rlds_recording as recorded_dataset
from kabuki_rlds.recording.logger import Logger
from tests import expected


def log(logger, numbers, steps=3, metadata=None):
    for n in numbers:
        logger.reset(np.int64(n))
        if metadata is not None:
            logger.set_episode_metadata(metadata)
        for t in range(steps):
            logger.step(0, 0.1 * t, np.int64(n), last=t == steps - 1)


def numbers(folder):
    """The number of each episode, read by TFDS."""
    found = expected.read(folder)
    starts = np.cumsum([0, *found.lengths[:-1]]).astype(int)
    return [int(found.steps["observation"][start]) for start in starts]


def converted(folder, tmp_path):
    """The number of each episode, read by `convert`."""
    import h5py

    path = kabuki_rlds.convert(folder, tmp_path / "converted.hdf5", overwrite=True).path
    assert kabuki_rlds.validate(path) == []
    with h5py.File(path) as f:
        return f["observation"][:][f["episodes/start"][:]].tolist()


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A dataset with episodes 0 to 2 in a shard and 3 to 5 in the journal, and the end of each in the journal."""
    folder = tmp_path_factory.mktemp("killed") / "x" / "1.0.0"
    with Logger(folder) as logger:
        log(logger, range(3))
    logger = Logger(folder)
    ends = []
    for n in range(3, 6):
        log(logger, [n])
        ends.append((folder / "x-train.recording").stat().st_size)
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy)
    logger.close()
    return copy, ends


def copy_of(killed, tmp_path):
    folder = tmp_path / "x" / "1.0.0"
    shutil.copytree(killed[0], folder)
    return folder


def test_an_episode_is_on_disk_when_its_last_step_returns(killed, tmp_path):
    folder = copy_of(killed, tmp_path)
    assert numbers(folder) == [0, 1, 2]  # TFDS ignores the journal.
    assert converted(folder, tmp_path) == [0, 1, 2, 3, 4, 5]


def test_the_next_recording_recovers_the_journal_of_a_killed_recording(killed, tmp_path):
    folder = copy_of(killed, tmp_path)
    logger = Logger(folder)
    assert numbers(folder) == [0, 1, 2, 3, 4, 5]
    log(logger, [6])
    logger.close()
    assert numbers(folder) == [0, 1, 2, 3, 4, 5, 6]
    assert not list(folder.glob("*.recording*"))


def test_an_incomplete_record_at_the_end_of_a_journal_is_removed(killed, tmp_path):
    _, ends = killed
    before = ends[0]
    for size in (before, *(before + n for n in (1, 8, 12, 13, 400)), *(ends[1] + n for n in (-5, -1, 0, 5))):
        folder = copy_of(killed, tmp_path)
        os.truncate(folder / "x-train.recording", size)
        whole = [0, 1, 2, 3] if size < ends[1] else [0, 1, 2, 3, 4]
        assert converted(folder, tmp_path) == whole, size
        Logger(folder).close()
        assert numbers(folder) == whole, size
        shutil.rmtree(folder.parent)


def test_a_record_with_zero_bytes_after_a_power_failure_is_removed(killed, tmp_path):
    folder = copy_of(killed, tmp_path)
    with open(folder / "x-train.recording", "rb+") as journal:
        journal.seek(killed[1][1] + 40)
        journal.write(bytes(100))
    Logger(folder).close()
    assert numbers(folder) == [0, 1, 2, 3, 4]


def test_a_shard_missing_in_dataset_info_is_recovered(killed, tmp_path):
    folder = copy_of(killed, tmp_path)
    (folder / "x-train.recording").rename(folder / "x-train.tfrecord-00001")
    assert converted(folder, tmp_path) == [0, 1, 2, 3, 4, 5]
    Logger(folder).close()
    assert numbers(folder) == [0, 1, 2, 3, 4, 5]


def test_a_journal_without_any_shard_is_recovered(tmp_path):
    folder = tmp_path / "x" / "1.0.0"
    logger = Logger(folder)
    log(logger, [0])
    copy = tmp_path / "copy" / "1.0.0"
    shutil.copytree(folder, copy)
    logger.close()
    assert converted(copy, tmp_path) == [0]
    Logger(copy).close()
    assert numbers(copy) == [0]


def test_a_dataset_without_episodes_can_get_other_fields(tmp_path, monkeypatch):
    folder = tmp_path / "x" / "1.0.0"
    logger = Logger(folder)
    with monkeypatch.context() as patched:
        patched.setattr(recorded_dataset.RldsRecording, "append", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            log(logger, [0])
    logger.close()
    with Logger(folder) as logger:
        logger.reset("other")
        logger.step(0, 0.0, "fields", last=True)
    assert expected.read(folder).steps["observation"] == [b"other", b"fields"]


@pytest.mark.parametrize("killed_after", ["link", "info"])
def test_a_kill_while_shards_are_renamed_loses_nothing(dataset, tmp_path, monkeypatch, killed_after):
    folder = tmp_path / "plain" / "1.0.0"
    shutil.copytree(dataset("plain"), folder)
    before = expected.read(folder).steps["reward"]
    with monkeypatch.context() as patched:
        if killed_after == "link":
            patched.setattr(
                recorded_dataset.RldsRecording, "_commit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
            )
        else:
            patched.setattr(Path, "unlink", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Logger(folder)
    assert expected.read(folder).steps["reward"] == before
    Logger(folder).close()
    assert expected.read(folder).steps["reward"] == before
    assert not list(folder.glob("plain-train*-of-*"))


def test_a_large_journal_becomes_a_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(recorded_dataset, "_SHARD_BYTES", 2000)
    with Logger(tmp_path / "x") as logger:
        log(logger, range(20))
    folder = tmp_path / "x" / "1.0.0"
    info = tfds.builder_from_directory(folder).info.splits["train"]
    assert info.num_shards == 3
    assert sum(info.shard_lengths) == 20
    assert info.num_bytes == sum(
        p.stat().st_size - 16 * n for p, n in zip(sorted(folder.glob("*.tfrecord*")), info.shard_lengths, strict=True)
    )
    assert numbers(folder) == list(range(20))


def test_a_full_disk_loses_one_episode_and_raises(tmp_path, monkeypatch):
    folder = tmp_path / "x" / "1.0.0"
    write = os.pwrite

    def full(file, data, at):
        write(file, data[:100], at)
        raise OSError(28, "No space left on device")

    with Logger(folder) as logger:
        log(logger, [0])
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", full)
            with pytest.raises(
                KabukiError,
                match=r"x-train.recording: .* \(the disk is full\) and is lost; the earlier episodes are safe",
            ):
                log(logger, [1])
        log(logger, [2])
    assert numbers(folder) == [0, 2]


@pytest.mark.parametrize(
    ("suffix", "failing"), [*(("", n) for n in range(1, 11)), *((".hdf5", n) for n in range(1, 5))]
)
def test_a_failed_fsync_loses_no_written_episode(tmp_path, monkeypatch, suffix, failing):
    """The n-th call of fsync fails, during the recording or at its end."""
    path = tmp_path / f"x{suffix}"
    monkeypatch.setattr(recorded_dataset, "_SHARD_BYTES", 600)
    sync, waits = os.fsync, 0

    def full(file):
        nonlocal waits
        waits += 1
        if waits == failing:
            raise OSError(28, "No space left on device")
        sync(file)

    monkeypatch.setattr(os, "fsync", full)
    written, said = [], []
    logger = Logger(path)
    for n in range(8):
        try:
            log(logger, [n])
            written.append(n)
        except KabukiError as e:
            said.append(str(e))
    try:
        logger.close()
    except KabukiError as e:
        said.append(str(e))
    monkeypatch.undo()
    # The third call for a file is that for its folder, after the file has its name: a warning.
    assert len(said) == ((suffix, failing) != (".hdf5", 3))
    for message in said:
        assert message.startswith(str(path))
        assert "No space left on device" in message
    Logger(path).close()
    folder = path / "1.0.0"
    if suffix:
        folder = path.with_name("again") / "1.0.0"
        kabuki_rlds.build(path, folder.parent.parent, name="again")
    assert numbers(folder) == written


def test_a_shard_missing_in_dataset_info_is_not_overwritten(dataset, tmp_path, monkeypatch):
    folder = tmp_path / "plain" / "1.0.0"
    shutil.copytree(dataset("plain"), folder)
    taken = folder / "plain-train.tfrecord-00000"
    taken.write_bytes(b"of another")
    with pytest.raises(
        KabukiError, match=r"plain-train.tfrecord-00000: exists, but dataset_info.json does not list it"
    ):
        Logger(folder)
    assert taken.read_bytes() == b"of another"
    taken.unlink()

    def refuses(*paths):
        raise PermissionError(1, "Operation not permitted")

    # Simulates a file system without hard links.
    monkeypatch.setattr(os, "link", refuses)
    with pytest.raises(
        KabukiError, match=r"cannot create a hard link plain-train.tfrecord-00000 to this file \(Operation not"
    ):
        Logger(folder)
    monkeypatch.undo()
    assert expected.read(folder).lengths
    Logger(folder).close()


def test_a_journal_without_dataset_info_is_not_changed(killed, tmp_path):
    folder = copy_of(killed, tmp_path)
    (folder / "dataset_info.json").unlink()
    before = (folder / "x-train.recording").read_bytes()
    with pytest.raises(KabukiError) as error:
        Logger(folder)
    message = f"{folder}: has x-train.recording but no dataset_info.json to read it with; use another folder"
    assert str(error.value) == message
    assert (folder / "x-train.recording").read_bytes() == before


def _splits(**changes):
    return lambda info: info["splits"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (None, ": TFDS cannot open this dataset: Failed to load JSON: "),
        (lambda info: info.update(version="x"), ": TFDS cannot open this dataset: Invalid version 'x'"),
        (_splits(filepathTemplate="x{NOPE}"), "/dataset_info.json: shards of 'train': Could not format template"),
        (_splits(filepathTemplate="../{SHARD_INDEX}"), "/dataset_info.json: names the shard '.*', which is outside"),
        (lambda info: info.update(name="../x"), "/dataset_info.json: names the shard '.*', which is outside"),
    ],
)
def test_an_invalid_dataset_is_not_changed(killed, tmp_path, change, says):
    folder = copy_of(killed, tmp_path)
    # A file outside the dataset that a malicious dataset_info.json names as a shard.
    (folder.parent / "00000").write_bytes(b"of another")
    file = folder / "dataset_info.json"
    info = json.loads(file.read_text())
    if change is not None:
        change(info)
    file.write_text("{" if change is None else json.dumps(info))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    # Try twice: the first failure must release the lock.
    for _ in range(2):
        with pytest.raises(KabukiError, match=says) as error:
            Logger(folder)
        assert str(error.value).startswith(str(folder))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_dataset_without_steps_is_rejected(killed, tmp_path):
    folder = copy_of(killed, tmp_path)
    features = json.loads((folder / "features.json").read_text())
    inner = features["featuresDict"]["features"]
    inner["stairs"] = inner.pop("steps")
    (folder / "features.json").write_text(json.dumps(features))
    for _ in range(2):
        with pytest.raises(KabukiError, match=f"^{folder}: not an RLDS dataset: no feature 'steps'"):
            Logger(folder)


@pytest.mark.parametrize("when", ["mkdir", "flock"])
def test_a_folder_removed_by_another_recording_is_reported(tmp_path, monkeypatch, when):
    """A recording without episodes removes the folder that it created."""
    folder = tmp_path / "x" / "1.0.0"
    module = {"mkdir": Path, "flock": fcntl}[when]
    call = getattr(module, when)

    def late(*args, **options):
        if when == "mkdir":
            call(*args, **options)
        folder.rmdir()
        if when == "flock":
            call(*args, **options)

    folder.parent.mkdir()
    monkeypatch.setattr(module, when, late)
    with pytest.raises(KabukiError) as error:
        Logger(folder)
    assert str(error.value) == f"{folder}: another process has just ended a recording there; run again"
    monkeypatch.undo()
    with Logger(folder) as logger:
        log(logger, [0])
    assert numbers(folder) == [0]


def test_other_files_in_the_folder_of_the_log_are_not_removed(tmp_path):
    path = tmp_path / "x.hdf5"
    logger = Logger(path)
    log(logger, [0])
    (tmp_path / "x.hdf5.recording" / "notes").touch()
    with pytest.raises(KabukiError, match=r"x.hdf5.recording: cannot be removed \(.* not empty\); the episodes are in"):
        logger.close()
    assert kabuki_rlds.inspect(path).num_episodes == 1
    assert [p.name for p in (tmp_path / "x.hdf5.recording").iterdir()] == ["notes"]


def test_a_journal_that_cannot_be_created_is_reported(tmp_path):
    folder = tmp_path / "x" / "1.0.0"
    with Logger(folder) as logger:
        log(logger, [0])
    journal = folder / "x-train.recording"
    with Logger(folder) as logger:
        journal.mkdir()
        with pytest.raises(KabukiError, match=rf"{journal}: cannot be written \(Is a directory\)"):
            log(logger, [1])
    with pytest.raises(KabukiError, match=rf"{journal}: the recording cannot be continued \(Is a directory\)"):
        Logger(folder)
    journal.rmdir()
    with Logger(folder) as logger:
        log(logger, [2])
    assert numbers(folder) == [0, 2]


_RECORDER = """
import sys, numpy as np
from kabuki_rlds.recording.logger import Logger
logger = Logger(sys.argv[1])
for n in range(int(sys.argv[2]), 1 << 62):
    logger.reset(np.int64(n))
    for t in range(n % 7 + 1):
        logger.step(0, 0.1 * t, np.int64(n), last=t == n % 7)
    print(n, flush=True)
"""


@pytest.mark.parametrize("suffix", ["", ".hdf5"])
def test_every_finished_episode_survives_sigkill(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    last = -1
    for seen in (1, 200):
        arguments = [sys.executable, "-c", _RECORDER, path, str(last + 1)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            for _ in range(seen):
                last = int(process.stdout.readline())  # type: ignore[union-attr]
            process.send_signal(signal.SIGKILL)
            # The process may have finished and printed more episodes before the signal.
            last = max([last, *map(int, process.stdout.read().split())])  # type: ignore[union-attr]
    folder = tmp_path / "x" / "1.0.0"
    found = converted([path, tmp_path / "x.hdf5.recording"] if suffix else folder, tmp_path)
    assert found[: last + 1] == list(range(last + 1))
    assert len(found) <= last + 2  # One more may have been finished but not printed.
    with Logger(path) as logger:
        log(logger, [-1])
    if suffix:
        assert sorted(p.name for p in tmp_path.iterdir()) == ["converted.hdf5", "x.hdf5"]
        assert kabuki_rlds.inspect(path).num_episodes == len(found) + 1
    else:
        assert numbers(folder) == [*found, -1]


def test_episodes_of_a_log_are_not_appended_twice(tmp_path, monkeypatch):
    path = tmp_path / "x.hdf5"
    unlink = Path.unlink

    def killed(file, **options):
        if file.name == "episodes.log":
            raise KeyboardInterrupt
        unlink(file, **options)

    logger = Logger(path)
    log(logger, [0, 1])
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            logger.close()
    assert (tmp_path / "x.hdf5.recording" / "episodes.log").exists()
    with Logger(path) as logger:
        log(logger, [2])
    assert kabuki_rlds.inspect(path).num_episodes == 3
    assert [p.name for p in tmp_path.iterdir()] == ["x.hdf5"]


@given(st.binary(min_size=4, max_size=5000))
def test_the_record_checksum_equals_that_of_tensorflow(data):
    assert records.checksum(data) == _masked_by_tensorflow(data)


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 1, 3_000_000])
def test_the_checksum_of_a_large_record_equals_that_of_tensorflow(size):
    data = np.random.default_rng(0).bytes(size)
    assert records.checksum(data) == _masked_by_tensorflow(data)


def _masked_by_tensorflow(data):
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        with tf.io.TFRecordWriter(file.name) as writer:
            writer.write(data)
        return struct.unpack("<I", Path(file.name).read_bytes()[-4:])[0]


@pytest.mark.parametrize("is_new", [False, True], ids=["existing fields", "new fields"])
def test_an_episode_survives_a_kill_while_its_metadata_is_written(tmp_path, monkeypatch, is_new):
    """Simulates a kill: copies the folder before each writing call and, for pwrite, after half of the data."""
    folder = tmp_path / "x" / "1.0.0"
    copies: list[Path] = []

    def copied() -> None:
        copies.append(tmp_path / f"copy{len(copies)}" / "1.0.0")
        shutil.copytree(folder, copies[-1])

    def watched(call):
        def watching(*args, **options):
            copied()
            if call is write:
                file, data, at = args
                call(file, data[: len(data) // 2], at)
                copied()
            return call(*args, **options)

        return watching

    write = os.pwrite
    with Logger(folder) as logger:
        if not is_new:
            log(logger, [0], metadata={"place": "a"})
        log(logger, [1])
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", watched(os.pwrite))
            patched.setattr(os, "replace", watched(os.replace))
            patched.setattr(Path, "write_bytes", watched(Path.write_bytes))
            patched.setattr(Path, "unlink", watched(Path.unlink))
            logger.set_episode_metadata({"place": "a place whose name is so long that its record is longer"})
    assert len(copies) > 1
    for copy in copies:
        Logger(copy).close()
        assert numbers(copy) == ([1] if is_new else [0, 1])
        assert not list(copy.glob("*.kept"))
    assert numbers(folder) == ([1] if is_new else [0, 1])
    assert expected.read(folder).episodes["place"][-1].startswith(b"a place whose")


def test_an_episode_that_cannot_be_replaced_is_kept(tmp_path, monkeypatch):
    folder = tmp_path / "x" / "1.0.0"
    write = os.pwrite
    with Logger(folder) as logger:
        log(logger, [0], metadata={"place": "a"})
        log(logger, [1], metadata={"place": "b"})
        with monkeypatch.context() as patched:

            def full(file, data, at):
                if b"another" in bytes(data):
                    write(file, data[: len(data) // 2], at)
                    raise OSError(28, "No space left on device")
                return write(file, data, at)

            patched.setattr(os, "pwrite", full)
            with pytest.raises(KabukiError, match=r"cannot be replaced \(the disk is full\); its old content is kept"):
                logger.set_episode_metadata({"place": "another, of which there is more"})
        log(logger, [2], metadata={"place": "c"})
    assert numbers(folder) == [0, 1, 2]
    assert expected.read(folder).episodes["place"] == [b"a", b"b", b"c"]
