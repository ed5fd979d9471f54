"""All commands count and report NaN in actions."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

import kabuki_rlds
from kabuki_rlds import build, convert
from kabuki_rlds.cli.main import main
from kabuki_rlds.data.block import Block, Ragged, as_nested
from kabuki_rlds.data.nan_actions import NanActionCounter, find_nan_actions
from kabuki_rlds.data.schema import BFLOAT16, Field
from tests import handmade, layout_files

LENGTHS = (3, 5, 4)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file with NaN in rows 1, 4 and 5 of `action/arm` and in row 9 of `action/hand`; rows 2 and 11 are padding."""
    fields = handmade.fields(LENGTHS, (True, False, True))
    del fields["action"]
    fields["action/arm"] = np.ones((12, 7), np.float32)
    fields["action/arm"][[1, 4, 5, 2, 11], 3] = np.nan
    fields["action/hand"] = np.ones(12)
    fields["action/hand"][9] = np.nan
    fields["observation"][:] = np.nan
    return handmade.write(tmp_path / "in.hdf5", fields | handmade.index(LENGTHS))


ARM, HAND = "action/arm: NaN in 3 rows (1, 4, 5)", "action/hand: NaN in 1 row (9)"


def test_every_command_reports_nan_actions(source, tmp_path, capsys):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("steps: {action: {concatenate: [action/arm, action/hand]}}\n")
    out = tmp_path / "out.hdf5"
    for words, arm in (
        (["convert", source, out], ARM),
        (["validate", out], ARM),
        (["build", out, "--out", tmp_path / "rlds", "--name", "x"], ARM),
        (
            ["export", out, tmp_path / "demo.hdf5", "--to", "robomimic", "--recipe", recipe],
            "action: NaN in 4 rows (1, 4",
        ),
        (["inspect", out], ARM),
    ):
        assert main([*map(str, words)]) == 0
        said = capsys.readouterr()
        where = said.out if words[0] == "inspect" else said.err
        assert where.count("NaN in") == 2 - ("action: " in arm)
        assert arm in where
        if "action: " not in arm:
            assert HAND in where
    assert main(["inspect", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["nan_actions"] == [
        {"field": "action/arm", "count": 3, "rows": [1, 4, 5]},
        {"field": "action/hand", "count": 1, "rows": [9]},
    ]


def test_results_contain_the_nan_counts(source, tmp_path):
    found = [("action/arm", 3), ("action/hand", 1)]
    result = convert(source, tmp_path / "out.hdf5")
    assert [(each.field, each.count) for each in result.nan_actions] == found
    built = build({"train": source, "val": source}, tmp_path / "rlds", name="x")
    assert {split: [(each.field, each.count) for each in nan] for split, nan in built.nan_actions.items()} == {
        "train": found, "val": found,
    }  # fmt: skip
    assert convert([source, source], tmp_path / "two.hdf5").nan_actions[0].count == 6


def test_a_file_with_nan_actions_is_valid(source, tmp_path):
    assert kabuki_rlds.validate(convert(source, tmp_path / "out.hdf5").path) == []


def test_nan_in_a_last_row_that_is_a_step_counts(source, tmp_path):
    result = convert(source, tmp_path / "out.hdf5", last_row="step")
    assert [(each.field, each.count, each.rows) for each in result.nan_actions] == [
        ("action/arm", 5, (1, 2, 4, 5, 11)), ("action/hand", 1, (9,)),
    ]  # fmt: skip
    with kabuki_rlds.formats.hdf5.source.KabukiSource(result.path) as opened:
        assert find_nan_actions(opened) == result.nan_actions


def test_nan_from_fill_is_not_reported(tmp_path, caplog):
    fields = handmade.fields(LENGTHS, (True, False, True))
    del fields["action"]
    source = handmade.write(tmp_path / "in.hdf5", fields)
    assert convert(source, tmp_path / "out.hdf5", fill={"action": float("nan")}).nan_actions == []
    assert "NaN" not in caplog.text


def test_nan_actions_of_third_party_layouts_are_reported(tmp_path):
    layout_files.robomimic(tmp_path / "demo.hdf5", {0: 3, 1: 4}, next_obs=False)
    with h5py.File(tmp_path / "demo.hdf5", "a") as file:
        file["data/demo_1/actions"][3, 0] = np.nan
    (found,) = convert(tmp_path / "demo.hdf5", tmp_path / "out.hdf5").nan_actions
    assert str(found) == "action: NaN in 1 row (6)"


@pytest.mark.parametrize("cuts", [(), (1,), (3,), (4, 5), (1, 2, 3, 4, 5, 6, 7)])
def test_nan_counts_do_not_depend_on_block_boundaries(cuts):
    starts, is_step = np.array([0, 3, 3, 7]), np.array([True, False, True, False])
    dtypes = {"action": np.float64, "action/low": BFLOAT16, "action/none": np.int64}
    counter = NanActionCounter({path: Field(np.dtype(dtype)) for path, dtype in dtypes.items()})  # type: ignore[call-overload]
    action = np.arange(8.0)
    # Rows 2, 6 and 7 are the last rows of episodes 0, 2 and 3. Only the last rows of episodes 0 and 2 are steps.
    action[[0, 2, 5, 6, 7]] = np.nan
    for begin, end in itertools.pairwise([0, *cuts, 8]):
        steps = {path: action[begin:end].astype(dtype) for path, dtype in dtypes.items() if dtype != np.int64}  # type: ignore[call-overload]
        inside = starts[(starts >= begin) & (starts < end)] - begin
        counter.observe(Block(steps | {"action/none": np.zeros(end - begin, int)}, end - begin, inside, {}))
    found = counter.finish(is_step)
    assert [(each.field, each.count, each.rows) for each in found] == [
        ("action", 4, (0, 2, 5, 6)), ("action/low", 4, (0, 2, 5, 6)),
    ]  # fmt: skip


def test_nan_is_found_in_rows_of_different_shapes():
    values = np.array([1, np.nan, 3, 4, np.nan, 6])
    ragged = Ragged(values, np.array([[2], [0], [3], [1]]))
    counter = NanActionCounter(
        {"action/a": Field(np.dtype(float), (None,)), "action/b": Field(np.dtype(float), (None,), nested=1)}
    )
    steps = {"action/a": ragged, "action/b": as_nested(ragged)}
    counter.observe(Block(steps, 4, np.array([0]), {}))  # type: ignore[arg-type]
    assert [(each.count, each.rows) for each in counter.finish(np.array([True]))] == [(2, (0, 2))] * 2
