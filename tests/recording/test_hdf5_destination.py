"""Recording to an HDF5 file: its content equals a converted RLDS recording; interrupted recordings are recovered."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap

import h5py
import numpy as np
import pytest
import tensorflow_datasets as tfds

import kabuki_rlds
from kabuki_rlds import KabukiError
from kabuki_rlds.formats.episode_log import codec
from kabuki_rlds.formats.hdf5.sink import KabukiSink
from kabuki_rlds.recording import hdf5_destination
from kabuki_rlds.recording.environments import record
from kabuki_rlds.recording.logger import Logger
from tests import handmade
from tests.environments import Episodes, Everything, act


def log(logger, numbers, steps=3, **metadata):
    for n in numbers:
        logger.reset({"n": np.int64(n), "camera": picture(n)})
        for t in range(steps):
            logger.step(np.float32(t), t, {"n": np.int64(n), "camera": picture(n + t)}, last=t == steps - 1)
        if metadata:
            logger.set_episode_metadata(metadata)


def picture(n):
    return np.random.default_rng(n).integers(0, 255, (40, 50, 3), np.uint8)


def numbers(path):
    assert kabuki_rlds.validate(path) == []
    with h5py.File(path) as file:
        return file["observation/n"][:][file["episodes/start"][:]].tolist()


def contents(path):
    """The content of a file without the origins of its episodes and the additions of TFDS."""
    found = handmade.contents(path, without=("sources", "features", "homepage", "environment"))
    with h5py.File(path) as file:
        found["environment"] = json.loads(file.attrs["environment"] or "{}")
    return found


def features_after_build(path, folder):
    kabuki_rlds.build(path, folder, name="x")
    return tfds.builder("x", data_dir=folder).info.features.to_json()


def record_everything(path, **options):
    for _ in range(2):
        with record(Everything(length=70), path, info=["time", "note"], description="All.", **options) as env:
            env.action_space.seed(0)
            for goal in ("red", "blue"):
                act(env, 1, Episodes(), ("time", "note"))
                env.set_episode_metadata({"goal": goal, "score": {"a": np.float32(0.5)}})


def log_the_rest(path, **options):
    """Logs values that no Gymnasium space has: text with NULs, several images per row, values that break rule 4."""
    for _ in range(2):
        with Logger(path, metadata={"robot": {"joints": 7}}, **options) as logger:
            for e in range(2):
                logger.reset({"text": "a\0b", "views": np.full((2, 40, 40, 3), e, np.uint8), "x": np.uint64(2**64 - 1)})
                for t in range(4):
                    observation = {"text": "é" * t, "views": np.full((2, 40, 40, 3), t, np.uint8), "x": np.uint64(t)}
                    logger.step([b"\xff", b"b"], 0.1, observation, discount=0.0 if t == 1 else 0.5, last=t == 3)
                logger.set_episode_metadata({"map": np.full((40, 40, 1), e, np.uint8)})


@pytest.mark.parametrize("recorded", [record_everything, log_the_rest])
def test_the_file_equals_a_converted_rlds_recording(tmp_path, recorded):
    recorded(tmp_path / "x")
    recorded(tmp_path / "x.hdf5")
    (tmp_path / "converted").mkdir()
    converted = kabuki_rlds.convert(tmp_path / "x", tmp_path / "converted" / "x.hdf5").path
    assert contents(tmp_path / "x.hdf5") == contents(converted)
    assert features_after_build(tmp_path / "x.hdf5", tmp_path / "a") == features_after_build(converted, tmp_path / "b")


def test_images_have_the_format_that_build_uses(tmp_path):
    with Logger(tmp_path / "x.hdf5", images={"observation/camera": "jpeg"}) as logger:
        log(logger, [1])
    with h5py.File(tmp_path / "x.hdf5") as file:
        assert file["observation/camera"].attrs["file_format"] == "jpeg"
        assert (file["observation/camera"][0] == picture(1)).all()  # The pixels are lossless.
    kabuki_rlds.build(tmp_path / "x.hdf5", tmp_path / "built", name="x")
    features = tfds.builder("x", data_dir=tmp_path / "built").info.features
    assert features["steps"]["observation"]["camera"].encoding_format == "jpeg"


def test_a_config_declares_the_features_of_a_file(tmp_path):
    config = tfds.rlds.rlds_base.DatasetConfig(
        name="mine",
        overall_description="About it.",
        observation_info=tfds.features.Tensor(shape=(None,), dtype=np.float32, encoding="bytes"),
        action_info=tfds.features.ClassLabel(names=["left", "right"]),
        reward_info=np.float64,
        discount_info=np.float32,
        episode_metadata_info={"who": tfds.features.Text()},
    )
    for path in (tmp_path / "x", tmp_path / "x.hdf5"):
        with Logger(path, config=config) as logger:
            logger.reset([0.5])
            logger.set_episode_metadata({"who": "me"})
            logger.step(1, 0.1, [0.5, 1], last=True)
    (tmp_path / "converted").mkdir()
    converted = kabuki_rlds.convert(tmp_path / "x", tmp_path / "converted" / "x.hdf5").path
    assert contents(tmp_path / "x.hdf5") == contents(converted)
    with h5py.File(tmp_path / "x.hdf5") as file, h5py.File(converted) as other:
        assert file.attrs["description"] == "About it."
        assert json.loads(file.attrs["features"]) == json.loads(other.attrs["features"])


def test_recording_to_hdf5_needs_no_tensorflow(tmp_path):
    code = """
        import sys
        sys.modules["tensorflow"] = sys.modules["tensorflow_datasets"] = None
        import numpy as np
        import kabuki_rlds
        for _ in range(2):
            with kabuki_rlds.Logger("x.hdf5") as logger:
                logger.reset({"camera": np.zeros((40, 40, 3), np.uint8), "text": "go"})
                logger.step(0, 1.0, {"camera": np.ones((40, 40, 3), np.uint8), "text": "stop"}, terminal=True)
                logger.set_episode_metadata({"goal": "red"})
        assert kabuki_rlds.validate("x.hdf5") == []
        print(len(kabuki_rlds.open("x.hdf5")) if hasattr(kabuki_rlds, "open") else 2)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("2\n", "")


def test_a_large_log_is_appended_during_the_recording(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5_destination, "_LOG_BYTES", 60_000)
    path = tmp_path / "x.hdf5"
    with Logger(path) as logger:
        log(logger, range(5), goal="red")
        assert path.exists()
        before = numbers(path)
        assert before == list(range(len(before)))
        assert 0 < len(before) < 5
        logger.discard_episode()  # The last one can still be discarded.
        log(logger, [5], goal="blue")
        assert logger.num_episodes == 5
    assert numbers(path) == [0, 1, 2, 3, 5]


def test_a_file_does_not_change_while_another_program_reads_it(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5_destination, "_LOG_BYTES", 60_000)
    path = tmp_path / "x.hdf5"
    with Logger(path) as logger:
        log(logger, [0])
    with h5py.File(path) as file:
        before = path.read_bytes()
        with Logger(path) as logger:
            log(logger, range(1, 5))
            assert path.read_bytes() == before
        # The reader still sees the old file; other programs see the new one.
        assert file["observation/n"][:].tolist() == [0] * 4
    assert numbers(path) == [0, 1, 2, 3, 4]
    assert [p.name for p in tmp_path.iterdir()] == ["x.hdf5"]


def test_a_file_that_cannot_be_written_does_not_stop_the_recording(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(hdf5_destination, "_LOG_BYTES", 60_000)

    def full(*_):
        raise KabukiError("x.hdf5: cannot be written (No space left on device)")

    with Logger(tmp_path / "x.hdf5") as logger:
        with monkeypatch.context() as patched:
            patched.setattr(KabukiSink, "commit", full)
            log(logger, range(5))
        assert not (tmp_path / "x.hdf5").exists()
        assert 1 <= sum("The recording continues" in message for message in caplog.messages) < 4
        log(logger, [5])
    assert numbers(tmp_path / "x.hdf5") == list(range(6))


def test_convert_reads_the_log_of_a_recording(tmp_path):
    path = tmp_path / "x.hdf5"
    with Logger(path) as logger:
        log(logger, [0, 1, 2], goal="red")
        logger.reset({"n": np.int64(3), "camera": picture(3)})
        kabuki_rlds.convert(tmp_path / "x.hdf5.recording", tmp_path / "y.hdf5")
        kabuki_rlds.convert(tmp_path / "x.hdf5.recording", tmp_path / "z.hdf5", split="train[1:]")
    assert numbers(tmp_path / "y.hdf5") == [0, 1, 2]
    assert numbers(tmp_path / "z.hdf5") == [1, 2]
    assert {k: v for k, v in contents(path).items() if k != "attributes"} == {
        k: v for k, v in contents(tmp_path / "y.hdf5").items() if k != "attributes"
    }


def test_convert_skips_a_log_whose_episodes_are_in_the_file(tmp_path, monkeypatch, caplog):
    path = tmp_path / "x.hdf5"
    with Logger(path) as logger:
        log(logger, [0, 1])
        shutil.copytree(tmp_path / "x.hdf5.recording", tmp_path / "copy")
    os.rename(tmp_path / "copy", tmp_path / "x.hdf5.recording")
    kabuki_rlds.convert([path, tmp_path / "x.hdf5.recording"], tmp_path / "y.hdf5")
    assert numbers(tmp_path / "y.hdf5") == [0, 1]
    assert f"{path}.recording: left out, since {path} has its episodes" in caplog.messages


@pytest.mark.parametrize("has_file", [False, True])
@pytest.mark.parametrize("images", ["arrays", "encoded"])
def test_a_recording_of_the_previous_version_is_continued(tmp_path, has_file, images):
    """The previous version recorded RLDS datasets next to the file, and appended them to the file at the end."""
    path = tmp_path / "x.hdf5"
    first = 0
    if has_file:
        with Logger(tmp_path / "x") as logger:
            log(logger, [0], goal="old")
        kabuki_rlds.convert(tmp_path / "x", path, images=images)
        shutil.rmtree(tmp_path / "x")
        first = 1
    elif images == "encoded":
        pytest.skip("a new file has arrays")
    left = Logger(tmp_path / "x.hdf5.recording" / "1.0.0")
    log(left, [first], goal="left")
    shutil.copytree(tmp_path / "x.hdf5.recording", tmp_path / "copy")
    left.close()
    shutil.rmtree(tmp_path / "x.hdf5.recording")
    os.rename(tmp_path / "copy", tmp_path / "x.hdf5.recording")
    with Logger(path) as logger:
        log(logger, [first + 1], goal="new")
    assert numbers(path) == list(range(first + 2))
    with h5py.File(path) as file:
        assert file["episodes/metadata/goal"].asstr()[-2:].tolist() == ["left", "new"]
    assert [p.name for p in tmp_path.iterdir()] == ["x.hdf5"]


def test_episodes_that_the_previous_version_added_are_not_added_twice(tmp_path):
    """The previous version was killed after it wrote the file and before it removed the folder."""
    path, folder = tmp_path / "x.hdf5", tmp_path / "x.hdf5.recording" / "1.0.0"
    with Logger(folder) as logger:
        log(logger, [0, 1])
    kabuki_rlds.convert(folder, path)
    with Logger(path) as logger:
        log(logger, [2])
    assert numbers(path) == [0, 1, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["x.hdf5"]


def test_episodes_of_the_previous_version_without_dataset_info_are_kept(tmp_path):
    folder = tmp_path / "x.hdf5.recording" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "x-train.recording").write_bytes(b"episodes")
    with pytest.raises(KabukiError, match=r"x.hdf5.recording/1.0.0: has episodes but no dataset_info.json; move it"):
        Logger(tmp_path / "x.hdf5")
    assert (folder / "x-train.recording").read_bytes() == b"episodes"


def test_the_first_episode_is_kept_if_a_new_field_cannot_be_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with Logger(tmp_path / "x.hdf5") as logger:
        log(logger, [0])
        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", full)
            with pytest.raises(KabukiError, match=r"episodes.log: cannot be written \(No space left on device\)"):
                logger.set_episode_metadata({"goal": "red"})
        log(logger, [1])
    assert numbers(tmp_path / "x.hdf5") == [0, 1]


@pytest.mark.parametrize("record", [0, 2], ids=["head", "episode"])
def test_an_invalid_log_is_reported_and_kept(tmp_path, record):
    path = tmp_path / "x.hdf5"
    logger = Logger(path)
    log(logger, [0, 1])
    folder = codec.folder_of(path)
    from kabuki_rlds.files import records

    stored = list(records.read(folder / codec.NAME))
    stored[record] = b"\x02\0\0\0{}" + stored[record][6:]
    (folder / codec.NAME).write_bytes(b"".join(map(records.framed, stored)))
    before = (folder / codec.NAME).read_bytes()
    logger._recorder._destination.release()
    with pytest.raises(KabukiError, match=rf"x.hdf5.recording/episodes.log: record {record} is not"):
        Logger(path)
    assert (folder / codec.NAME).read_bytes() == before


def test_a_file_of_fixed_size_is_rejected_before_recording(tmp_path):
    path = tmp_path / "x.hdf5"
    with Logger(path) as logger:
        log(logger, [0])
    with h5py.File(path, "a") as file:
        rewards = file["reward"][:]
        del file["reward"]
        file["reward"] = rewards
    with pytest.raises(KabukiError, match=r"'/reward' has a fixed number of rows, so it cannot be appended to; "):
        Logger(path)
    assert [p.name for p in tmp_path.iterdir()] == ["x.hdf5"]
    kabuki_rlds.convert(path, tmp_path / "x-copy.hdf5")
    with Logger(tmp_path / "x-copy.hdf5") as logger:
        log(logger, [1])
    assert numbers(tmp_path / "x-copy.hdf5") == [0, 1]
