"""Recipes that drop, rename or concatenate fields: results, reports, and errors for conflicts."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from kabuki_rlds import KabukiError, build, compare, convert, validate
from kabuki_rlds.cli.main import main
from tests import handmade

_ROWS = sum(handmade.LENGTHS)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file whose actions and observations are groups, as in Open X-Embodiment."""
    fields = handmade.fields()
    del fields["action"], fields["observation"]
    rng = np.random.default_rng(0)
    for path, size in (("world_vector", 3), ("rotation_delta", 3), ("gripper", 1)):
        fields[f"action/{path}"] = rng.normal(size=(_ROWS, size)).astype(np.float32)
    for path, size in (("qpos", 7), ("qvel", 7)):
        fields[f"observation/{path}"] = rng.normal(size=(_ROWS, size))
    return handmade.write(tmp_path / "source.hdf5", fields | handmade.index())


def _recipe(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return path


# --- a field and a group with the same path ---


@pytest.mark.parametrize("rest", ["keep", "drop"])
def test_a_field_can_replace_the_group_it_is_concatenated_from(source, tmp_path, rest):
    recipe = _recipe(
        tmp_path,
        "steps:\n"
        "  action: {concatenate: [action/world_vector, action/rotation_delta, action/gripper]}\n"
        "  observation: {concatenate: [observation/qpos, observation/qvel]}\n"
        f"  reward:\n  discount:\nrest: {rest}\n",
    )
    out = convert(source, tmp_path / "out.hdf5", recipe=recipe).path
    with h5py.File(source) as theirs, h5py.File(out) as ours:
        for name, parts in (
            ("action", ("world_vector", "rotation_delta", "gripper")),
            ("observation", ("qpos", "qvel")),
        ):
            np.testing.assert_array_equal(ours[name][:], np.concatenate([theirs[f"{name}/{p}"][:] for p in parts], 1))
    assert validate(out) == []
    assert compare(out, source, recipe=recipe) == []
    assert build(source, tmp_path / "rlds", name="joined", recipe=recipe).num_steps == _ROWS


def test_a_group_can_replace_the_field_it_is_made_from(source, tmp_path):
    recipe = _recipe(
        tmp_path,
        "steps:\n"
        "  action/world_vector/x: {from: action/world_vector, select: [0]}\n"
        "  action/world_vector/yz: {from: action/world_vector, select: '1:3'}\n",
    )
    with h5py.File(source) as theirs, h5py.File(convert(source, tmp_path / "out.hdf5", recipe=recipe).path) as ours:
        np.testing.assert_array_equal(ours["action/world_vector/yz"][:], theirs["action/world_vector"][:, 1:])
        np.testing.assert_array_equal(ours["action/gripper"][:], theirs["action/gripper"][:])


def test_a_path_that_is_field_and_group_is_rejected_with_a_working_remedy(source, tmp_path):
    joined = "steps:\n\n  action:\n    concatenate: [action/world_vector, action/rotation_delta]\n"
    recipe = _recipe(tmp_path, joined)
    with pytest.raises(
        KabukiError, match=r"r.yaml:3: action: a file cannot hold both 'action' and 'action/gripper'"
    ) as e:
        convert(source, tmp_path / "out.hdf5", recipe=recipe)
    remedy = str(e.value).split("`")[1]
    assert remedy == "action_gripper: {from: action/gripper}"
    recipe.write_text(f"{joined}  {remedy}\n")
    convert(source, tmp_path / "out.hdf5", recipe=recipe)
    with h5py.File(source) as theirs, h5py.File(tmp_path / "out.hdf5") as ours:
        np.testing.assert_array_equal(ours["action_gripper"][:], theirs["action/gripper"][:])
        assert ours["action"].shape == (_ROWS, 6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps:\n  task: {constant: 1}\n  task/step: {constant: 2}\n", "r.yaml:3: task/step: a file cannot hold both"),
        (
            "steps:\n  reward/task: {constant: 1}\n",
            "r.yaml:2: reward/task: .* 'reward', .*give this field another name",
        ),
        ("steps:\n  episodes: {constant: 1}\n", "r.yaml:2: episodes: .*reserves the name 'episodes'"),
        ("steps:\n  a/./b: {constant: 1}\n", "r.yaml:2: a/./b: .*HDF5 does not allow this name"),
        ("steps:\n  action/: {constant: 1}\n", "r.yaml:2: 'action/' is not the path of a field"),
        ("episode:\n  /seed: {from: seed}\n", "r.yaml:2: '/seed' is not the path of a field"),
        ("episode:\n  seed/first: {constant: 1}\n", "r.yaml:2: seed/first: a file cannot hold both"),
        (
            "steps:\n  a: {from: reward}\n  b: {from: a}\n",
            "r.yaml:3: b: .* has no 'a' .*; the recipe makes this field",
        ),
    ],
)
def test_a_conflicting_field_is_rejected_with_its_line(source, tmp_path, text, message):
    with pytest.raises(KabukiError, match=message):
        convert(source, tmp_path / "out.hdf5", recipe=_recipe(tmp_path, text))
    assert not (tmp_path / "out.hdf5").exists()


# --- required fields that the recipe does not keep ---


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("drop: [reward]\n", "r.yaml:1: drop"),
        (
            "steps:\n  of_task: {from: reward}\n  action: {from: action/gripper}\n  observation/qpos:\nrest: drop\n",
            "r.yaml:2: of_task",
        ),
        ("steps:\n  observation/qpos:\n  action: {from: action/gripper}\nrest: drop\n", "r.yaml:4: rest: drop"),
    ],
)
def test_a_reward_dropped_by_the_recipe_is_reported_as_dropped(source, tmp_path, text, where):
    for make in (
        lambda: convert(source, tmp_path / "out.hdf5", recipe=_recipe(tmp_path, text)),
        lambda: build(source, tmp_path / "rlds", name="x", recipe=_recipe(tmp_path, text)),
    ):
        with pytest.raises(KabukiError) as e:
            make()
        message = str(e.value)
        assert message.startswith(f"{tmp_path}/{where}") and "does not keep 'reward' of" in message
        assert "no 'reward'" not in message and "fill" not in message


def test_the_remedy_for_a_dropped_required_field_works(source, tmp_path):
    text = "steps:\n  reward:\n  observation/qpos:\n{}rest: drop\n"
    with pytest.raises(KabukiError, match="does not keep 'action'") as e:
        convert(source, tmp_path / "out.hdf5", recipe=_recipe(tmp_path, text.format("")))
    assert str(e.value).endswith("to keep it, add `action:` under `steps`")
    convert(source, tmp_path / "out.hdf5", recipe=_recipe(tmp_path, text.format("  action:\n")))
    with h5py.File(source) as theirs, h5py.File(tmp_path / "out.hdf5") as ours:
        np.testing.assert_array_equal(ours["action/gripper"][:], theirs["action/gripper"][:])


@pytest.mark.parametrize("keep", ["rest: keep", "rest: drop"])
def test_fill_does_not_replace_a_field_that_the_recipe_does_not_mention(source, tmp_path, capsys, keep):
    recipe = _recipe(
        tmp_path, f"steps:\n  action: {{from: action/gripper}}\n  observation/qpos:\ndrop: [action]\n{keep}\n"
    )
    code = main(["convert", str(source), str(tmp_path / "out.hdf5"), "--recipe", str(recipe), "--fill", "reward=0"])
    said = capsys.readouterr()
    if keep == "rest: keep":
        assert code == 0
        with h5py.File(source) as theirs, h5py.File(tmp_path / "out.hdf5") as ours:
            np.testing.assert_array_equal(ours["reward"][:], theirs["reward"][:])
    else:
        assert code == 1
        assert "r.yaml:5: rest: drop: the recipe does not keep 'reward'" in said.err


def test_fill_replaces_a_field_that_the_recipe_drops(source, tmp_path, capsys):
    recipe = _recipe(tmp_path, "fill: {reward: 0}\nsteps: {sparse_reward: {from: reward}}\ndrop: [reward, discount]\n")
    assert main(["convert", str(source), str(tmp_path / "out.hdf5"), "--recipe", str(recipe)]) == 0
    said = capsys.readouterr().out
    assert "not in the source" not in said
    assert f"reward: left out by the recipe ({recipe}:3: drop), filled with 0.0\n" in said
    assert f"discount: left out by the recipe ({recipe}:3: drop), by the rules for discount\n" in said
    with h5py.File(source) as theirs, h5py.File(tmp_path / "out.hdf5") as ours:
        np.testing.assert_array_equal(ours["sparse_reward"][:], theirs["reward"][:])
        assert not ours["reward"][:].any()
