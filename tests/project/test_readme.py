"""Each command of the README's table "I have … and need …" does what it says, on data of that kind."""

import importlib.util
import pathlib
import re
import shlex
import shutil
import sys
import textwrap
import types

import numpy as np
import pytest

import kabuki_rlds
from kabuki_rlds import build, convert
from kabuki_rlds.cli.main import main
from kabuki_rlds.commands.export import export
from tests import handmade, layout_files
from tests.places import ROOT
from tests.transforms.test_recipes import _libero

TABLE = (ROOT / "README.md").read_text().partition("## I have … and need …")[2].partition("\n## ")[0]
COMMANDS = [
    command
    for line in TABLE.splitlines()
    for command in re.findall(r"`(kabuki-rlds [^`]*)`", line)
    if "recipe d" not in command
]


def _recipe(folder):
    (folder / "my.yaml").write_text("split: {train: train, val: valid}\n")


@pytest.fixture(name="home")
def _home(tmp_path, monkeypatch):
    """A folder with all that the table names."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / ".minari/datasets"))
    monkeypatch.chdir(tmp_path)
    layout_files.robomimic(tmp_path / "demo.hdf5", {0: 3, 1: 4}, masks={"train": [0], "valid": [1]})
    convert("demo.hdf5", "lift.hdf5")
    convert("demo.hdf5", "hopper.hdf5")
    build("hopper.hdf5", "tensorflow_datasets", name="hopper")
    export("lift.hdf5", ".minari/datasets/D4RL/door/human-v2", "minari")
    shutil.copytree(ROOT / "tests/fixtures/acme_dqn_catch", "runs/dqn")
    pathlib.Path("libero").mkdir()
    _libero(tmp_path / "libero/open_the_drawer_demo.hdf5", {0: 3}, "open the drawer")
    pathlib.Path("episodes").mkdir()
    for number in range(2):
        layout_files.aloha(tmp_path / f"episodes/episode_{number}.hdf5", 3)
    layout_files.d4rl(
        tmp_path / "hopper-medium-v2.hdf5", terminals=np.zeros(4, bool), timeouts=np.array([0, 0, 0, 1], bool)
    )
    _recipe(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_works(home, capsys, command):
    words = shlex.split(command)[1:]
    for name in ("hopper.hdf5", "lift.hdf5"):
        if words[0] == "convert" and words[2] == name:
            (home / name).unlink()
    if words[:2] == ["convert", "demo.hdf5"]:
        layout_files.robosuite(home / "demo.hdf5", {1: 3})
    if words[:3] == ["export", "lift.hdf5", "demo.hdf5"]:
        (home / "demo.hdf5").unlink()
    assert main(words) == 0, capsys.readouterr().err


@pytest.mark.parametrize("success_at", [3, None])
def test_the_robot_loop_tells_episodes_that_ended_from_those_cut_short(tmp_path, monkeypatch, success_at):
    (block,) = re.findall(r"\*\*A robot\*\*.*?\n\n((?:    .*\n)+)", (ROOT / "README.md").read_text())
    monkeypatch.chdir(tmp_path)
    steps = iter(range(1, 1000))

    class Robot:
        def move(self, action):
            done = next(steps) == success_at
            return float(done), done

    names = {
        "kabuki_rlds": kabuki_rlds,
        "camera": lambda: np.zeros((32, 32, 3), np.uint8),
        "joints": lambda: np.zeros(7),
        "policy": lambda observation: np.zeros(7),
        "robot": Robot(),
    }
    exec(textwrap.dedent(block), names)
    summary = kabuki_rlds.inspect("runs/robot.hdf5")
    assert (summary.terminal, summary.truncated) == ((1, 0) if success_at else (0, 1))
    assert summary.steps == (success_at or 200) + 1
    assert kabuki_rlds.validate("runs/robot.hdf5") == []


class _Torch(types.ModuleType):
    """Stands in for PyTorch where it is not installed: `from_numpy` rejects the same arrays."""

    @staticmethod
    def from_numpy(array):
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufc":
            raise TypeError(f"can't convert {getattr(array, 'dtype', type(array))}")
        return array


def test_the_pytorch_example_works_with_text_fields(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if importlib.util.find_spec("torch") is None:
        monkeypatch.setitem(sys.modules, "torch", _Torch("torch"))
    fields = handmade.fields()
    observation = fields.pop("observation")
    rows = len(observation)
    instructions = np.array([b"pick up", b"put down"] * rows, object)[:rows]
    fields |= {"observation/state": observation, "observation/instruction": instructions}
    handmade.write(tmp_path / "hopper.hdf5", fields)
    section = (ROOT / "README.md").read_text().partition("## Training from a file")[2].partition("\n## ")[0]
    (block,) = [each for each in re.findall(r"(?:^(?:    .*|)\n)+", section, re.MULTILINE) if "import torch" in each]
    seen = []
    values = {
        "kabuki_rlds": kabuki_rlds,
        "value": lambda observation: observation["state"][:, 0],
        "update": lambda observation, action, target: seen.append(observation),
    }
    exec(textwrap.dedent(block), values)
    assert {text for batch in seen for text in batch["instruction"]} == {b"pick up", b"put down"}
    assert len(seen) >= 10
