"""`inspect` and `validate` accept every source that `convert` accepts, and agree with the converted file."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import kabuki_rlds
from kabuki_rlds.cli.main import main
from tests import handmade, layout_files
from tests.places import FIXTURES


@pytest.fixture(name="make")
def _make(tmp_path, dataset):
    """Returns a source of the given kind and the arguments to read it."""

    def make(kind: str):
        if kind == "rlds":
            return dataset("plain"), {}
        if kind == "slice":
            return dataset("plain"), {"split": "train[2:5]"}
        if kind == "envlogger":
            return shutil.copytree(FIXTURES / "acme_dqn_catch", tmp_path / "log"), {}
        if kind == "robomimic":
            return layout_files.robomimic(tmp_path / "demo.hdf5", {0: 3, 1: 4}), {}
        if kind == "minari":
            return layout_files.minari(tmp_path / "main_data.hdf5", [3, 4]), {}
        if kind == "recipe":
            recipe = tmp_path / "r.yaml"
            recipe.write_text("fill: {reward: 0}\n")
            return layout_files.aloha(tmp_path / "episode_0.hdf5", 5), {"recipe": recipe}
        file = handmade.write(tmp_path / "k.hdf5", handmade.fields())
        return file, {"split": "train[1:]"}

    return make


KINDS = ("rlds", "slice", "envlogger", "robomimic", "minari", "recipe", "kabuki")


@pytest.mark.parametrize("kind", KINDS)
def test_inspect_of_a_source_agrees_with_the_converted_file(make, tmp_path, kind):
    source, options = make(kind)
    mine = kabuki_rlds.inspect(source, **options)
    other = kabuki_rlds.inspect(kabuki_rlds.convert(source, tmp_path / "out.hdf5", **options).path)
    assert (mine.num_steps, mine.num_episodes, mine.lengths) == (other.num_steps, other.num_episodes, other.lengths)
    if mine.returns is not None and other.returns is not None:
        assert dataclasses.astuple(mine.returns) == pytest.approx(dataclasses.astuple(other.returns))
    if mine.terminal is not None:
        assert (mine.terminal, mine.truncated) == (other.terminal, other.truncated)
    if kind != "kabuki":
        assert mine.last_steps == other.last_steps
        assert mine.format in (*KINDS, "aloha")
    theirs = {column.path: column for column in other.columns}
    assert {column.path for column in mine.columns} <= set(theirs)
    assert mine.num_bytes > 0


@pytest.mark.parametrize("kind", KINDS)
def test_validate_reports_no_violations_for_a_valid_source(make, kind):
    source, options = make(kind)
    assert kabuki_rlds.validate(source, **options) == []


def test_tfds_name_is_looked_up_in_data_dir(dataset, data_dir):
    dataset("plain")
    assert kabuki_rlds.inspect("plain", data_dir=data_dir).info.name == "plain"
    assert kabuki_rlds.validate("plain", data_dir=data_dir) == []


def test_the_command_line_inspects_and_validates_any_source(make, capsys):
    source, _ = make("robomimic")
    assert main(["inspect", str(source), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "robomimic"
    assert main(["inspect", str(source)]) == 0
    assert f"{source}: robomimic" in capsys.readouterr().out
    assert main(["validate", str(source)]) == 0
    said = capsys.readouterr().out
    assert f"{source}: discount: not in the source, by the rules for discount" in said
    assert f"{source}: converts to a valid file" in said


def test_validate_names_fields_that_convert_cannot_derive(tmp_path, capsys):
    source = layout_files.aloha(tmp_path / "episode_0.hdf5", 5)
    (violation,) = kabuki_rlds.validate(source)
    assert (violation.rule, violation.field) == (2, "reward")
    assert "fill={'reward': 0}" in violation.message
    assert main(["validate", str(source)]) == 1
    assert "--fill reward=0" in capsys.readouterr().out


def test_validate_checks_the_rules_on_values_of_a_source(tmp_path):
    source = layout_files.minari(tmp_path / "main_data.hdf5", [3, 4])
    kabuki_rlds.convert(source, tmp_path / "k.hdf5")
    with h5py.File(tmp_path / "k.hdf5", "a") as file:
        file["discount"][...] = np.zeros(len(file["discount"]), np.float32)
    broken = kabuki_rlds.validate(tmp_path / "k.hdf5", split="train")
    assert [violation.rule for violation in broken] == [4]


def test_validate_reports_damaged_data_of_a_source(tmp_path, dataset):
    folder = shutil.copytree(dataset("plain"), tmp_path / "plain" / "1.0.0")
    shard: Path = sorted(folder.glob("*train*"))[0]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 0xFF
    shard.write_bytes(bytes(data))
    (violation,) = kabuki_rlds.validate(folder)
    assert violation.rule == 1 and shard.name in violation.field


def test_validate_accepts_fill(tmp_path):
    source = layout_files.aloha(tmp_path / "episode_0.hdf5", 5)
    assert kabuki_rlds.validate(source, fill={"reward": 0}) == []
    assert main(["validate", str(source), "--fill", "reward=0"]) == 0


def test_filled_and_conformed_file_matches_its_source(tmp_path):
    fields = handmade.fields()
    del fields["is_terminal"]
    fields["discount"][:] = 1
    source = handmade.write(tmp_path / "in.hdf5", fields)
    options: dict[str, Any] = {"fill": {"is_terminal": 1}, "conform": True}
    file = kabuki_rlds.convert(source, tmp_path / "k.hdf5", **options).path
    assert kabuki_rlds.compare(file, source, **options) == []
    assert kabuki_rlds.compare(file, source, conform=True)
    command = ["validate", str(file), "--against", str(source), "--fill", "is_terminal=1", "--conform"]
    assert main(command) == 0


def test_message_uses_the_singular_for_one_skipped_step(tmp_path, caplog):
    fields = handmade.fields((3,), (False,))
    file = handmade.write(tmp_path / "k.hdf5", fields | handmade.index((3,)))
    kabuki_rlds.load_transitions(file, 2, last_row="step", as_numpy=True)
    assert "1 step is not in the transitions" in caplog.text
