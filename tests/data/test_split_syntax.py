"""Slices in TFDS's syntax, for sources that TFDS does not read."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow_datasets as tfds

import kabuki_rlds
from kabuki_rlds import KabukiError
from kabuki_rlds.cli.main import main
from kabuki_rlds.commands.export import export
from tests import layout_files
from tests.formats.test_kabuki_source import steps, write
from tests.places import FIXTURES

LENGTHS = [3, 7, 2, 5, 4, 3, 6, 2, 3, 8]
SPLITS = [
    *("train", "all", "train[17:18]", "train[:10%]", "train[-3:]", "train[:-95%]", "train[33.3%:66.6%]", "train[4:4]"),
    *("train[5:8]+train[:2]", "train[:3] + train[1:4]", "train[1_0:12]", "train[50%:]+train[:50%]"),
]
WRONG = [
    *(
        "test",
        "train[",
        "train[:]",
        "train[21:]",
        "train[:-21]",
        "train[101%:]",
        "train[8:2]",
        "train[1.5:]",
        "train[a:b]",
    ),
    *("train[1]", "", "train+", "train[1:2:3]"),
]


@pytest.fixture(scope="module")
def kabuki(tmp_path_factory) -> Path:
    """A file with 20 episodes. The observation is the index of the episode."""
    lengths = LENGTHS * 2
    columns = {name: np.concatenate([steps(length)[name] for length in lengths]) for name in steps(3)}
    columns["observation"] = np.repeat(np.arange(len(lengths), dtype=np.float32), lengths)
    return write(tmp_path_factory.mktemp("split") / "in.hdf5", columns)


@pytest.fixture(scope="module")
def rlds(kabuki, tmp_path_factory) -> Path:
    return kabuki_rlds.build(kabuki, tmp_path_factory.mktemp("rlds"), name="x").path


def episodes(path: Path) -> list[int]:
    """The original indices of the episodes of a file, in order."""
    assert kabuki_rlds.validate(path) == []
    with h5py.File(path) as f:
        return f["observation"][:][f["is_first"][:]].tolist()


def test_a_percentage_above_100_is_rejected_as_too_large(kabuki, tmp_path):
    with pytest.raises(kabuki_rlds.InvalidArgumentError, match=r"'train\[101%:\]': 101% is more than 100 %$"):
        kabuki_rlds.convert(kabuki, tmp_path / "out.hdf5", split="train[101%:]")


@pytest.mark.parametrize("split", SPLITS)
def test_slices_of_kabuki_files_equal_those_of_tfds(kabuki, rlds, tmp_path, split):
    result = kabuki_rlds.convert(kabuki, tmp_path / "out.hdf5", split=split)
    right = kabuki_rlds.convert(rlds, tmp_path / "right.hdf5", split=split)
    assert episodes(result.path) == episodes(right.path)
    assert (result.num_steps, result.num_episodes) == (right.num_steps, right.num_episodes)
    if "+" not in split and result.num_episodes:
        by_tfds = tfds.builder_from_directory(rlds).as_dataset(split=split, shuffle_files=False)
        first = [next(iter(episode["steps"]))["observation"].numpy().item() for episode in by_tfds]
        assert episodes(result.path) == first
    assert kabuki_rlds.compare(result.path, kabuki, split=split) == []


@pytest.mark.parametrize("split", WRONG)
def test_slices_that_tfds_rejects_are_rejected(kabuki, rlds, tmp_path, split):
    with pytest.raises(KabukiError, match=r"in.hdf5: (has no split|split)"):
        kabuki_rlds.convert(kabuki, tmp_path / "out.hdf5", split=split)
    with pytest.raises(KabukiError):
        kabuki_rlds.convert(rlds, tmp_path / "out.hdf5", split=split)
    assert not (tmp_path / "out.hdf5").exists()


@pytest.mark.parametrize("split", ["train[0shard]", "train[:1shard]", "train[-1shard:]"])
def test_only_tfds_datasets_have_shards(kabuki, tmp_path, split):
    with pytest.raises(KabukiError, match="only TFDS datasets have shards"):
        kabuki_rlds.convert(kabuki, tmp_path / "out.hdf5", split=split)


def test_a_slice_applies_to_each_source(kabuki, rlds, tmp_path):
    result = kabuki_rlds.convert([rlds, kabuki], tmp_path / "out.hdf5", split="train[3:5]")
    assert episodes(result.path) == [3, 4, 3, 4]


def test_the_original_split_name_selects_the_file(rlds, tmp_path):
    built = kabuki_rlds.build({"val": kabuki_rlds.convert(rlds, tmp_path / "all.hdf5").path}, tmp_path, name="y").path
    whole = kabuki_rlds.convert(built, tmp_path / "val.hdf5", split="val").path
    for split in ("val[1:3]", "train[1:3]", "all[1:3]"):
        assert episodes(kabuki_rlds.convert(whole, tmp_path / "o.hdf5", split=split, overwrite=True).path) == [1, 2]


def test_every_command_with_a_split_option_accepts_slices(kabuki, tmp_path, capsys):
    out = tmp_path / "out.hdf5"
    assert main(["convert", str(kabuki), str(out), "--split", "train[17:18]", "--quiet"]) == 0
    assert episodes(out) == [17]
    assert main(["validate", str(out), "--against", str(kabuki), "--split", "train[17:18]"]) == 0
    assert main(["validate", str(out), "--against", str(kabuki), "--split", "train[16:17]"]) == 1
    capsys.readouterr()
    assert main(["inspect", str(kabuki), "--split", "train[17:18]", "--json"]) == 0
    part, alone = json.loads(capsys.readouterr().out), json.loads(kabuki_rlds.inspect(out).to_json())
    for name in ("num_steps", "num_episodes", "lengths", "returns", "terminal", "truncated", "memory_bytes"):
        assert part[name] == alone[name]
    assert main(["inspect", str(kabuki), "--split", "test"]) == 1
    assert export(kabuki, tmp_path / "d4rl.hdf5", "d4rl", split="train[17:18]").num_episodes == 1
    capsys.readouterr()


def test_a_sliced_conversion_can_be_resumed(kabuki, tmp_path, monkeypatch):
    from kabuki_rlds.commands import resume

    monkeypatch.setattr(resume, "_PART_BYTES", 700)
    split = "train[12:]+train[2:9]"
    right = kabuki_rlds.convert(kabuki, tmp_path / "right.hdf5", split=split)
    result = kabuki_rlds.convert(kabuki, tmp_path / "out.hdf5", split=split, resume=True)
    assert episodes(result.path) == episodes(right.path) == [*range(12, 20), *range(2, 9)]


def test_masks_can_be_sliced(tmp_path):
    path = layout_files.robomimic(
        tmp_path / "demo.hdf5", {i: 2 + i for i in range(10)}, masks={"train": range(7), "valid": [7, 8]}
    )

    def taken(split: str | None) -> list[str]:
        result = kabuki_rlds.convert(path, tmp_path / "out.hdf5", split=split, overwrite=True)
        assert kabuki_rlds.compare(result.path, path, split=split) == []
        with h5py.File(result.path) as f:
            return [name.removeprefix("demo_") for name in f["episodes/metadata/episode"].asstr()[:]]

    assert taken("train[2:4]") == ["2", "3"]
    assert taken("valid+train[-1:]") == ["7", "8", "6"]
    assert taken("all[8:]") == ["8", "9"]
    assert taken("train[5:]+train[:2]") == ["5", "6", "0", "1"]
    with pytest.raises(
        KabukiError, match=r"no split 'test'; the splits are train \(7 episodes\), valid \(2 episodes\)"
    ):
        taken("test")


def test_demonstrations_in_several_files_are_sliced_as_one_source(tmp_path):
    for i in range(5):
        layout_files.aloha(tmp_path / f"episode_{i}.hdf5", 3 + i)
    result = kabuki_rlds.convert(
        tmp_path, tmp_path.parent / "split_joined.hdf5", split="train[1:3]", fill={"reward": 0}
    )
    assert (result.num_episodes, result.num_steps) == (2, 9)


@pytest.mark.parametrize("timeouts", [True, False])
def test_d4rl_files_can_be_sliced(tmp_path, timeouts):
    ends = np.isin(np.arange(12), [2, 6, 11])
    more = {"next_observations": np.zeros((12, 3), np.float32)} if timeouts else {}
    path = layout_files.d4rl(tmp_path / "d4rl.hdf5", terminals=ends, timeouts=np.zeros(12, bool), **more)
    whole = kabuki_rlds.convert(path, tmp_path / "whole.hdf5")
    for split, numbers in (("train[1:2]", [1]), ("train[2:]+train[:1]", [2, 0])):
        result = kabuki_rlds.convert(path, tmp_path / "out.hdf5", split=split, overwrite=True)
        assert kabuki_rlds.compare(result.path, path, split=split) == []
        with h5py.File(result.path) as got, h5py.File(whole.path) as all_of_it:
            starts, lengths = all_of_it["episodes/start"][:], all_of_it["episodes/length"][:]
            rows = np.concatenate([np.arange(starts[n], starts[n] + lengths[n]) for n in numbers])
            np.testing.assert_array_equal(got["action"][:], all_of_it["action"][:][rows])


def test_envlogger_logs_can_be_sliced(tmp_path):
    log = FIXTURES / "acme_dqn_catch"
    whole = kabuki_rlds.convert(log, tmp_path / "whole.hdf5")
    for split in ("train[17:18]", "train[-2:]+train[40:45]"):
        result = kabuki_rlds.convert(log, tmp_path / "out.hdf5", split=split, overwrite=True)
        right = kabuki_rlds.convert(whole.path, tmp_path / "right.hdf5", split=split, overwrite=True)
        assert kabuki_rlds.compare(result.path, right.path) == []
        assert kabuki_rlds.compare(result.path, log, split=split) == []
