"""`demo` runs all steps, and its output matches the file."""

from __future__ import annotations

import re
import subprocess
import sys

import gymnasium
import h5py
import numpy as np
import pytest

import kabuki_rlds
from kabuki_rlds.cli.main import main


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Returns (folder, output of the demo)."""
    folder = tmp_path_factory.mktemp("demo") / "here"
    done = subprocess.run(
        [sys.executable, "-m", "kabuki_rlds.cli", "demo", folder], capture_output=True, text=True, check=False
    )
    # The size depends on the recorded episodes, which depend on the version of MuJoCo.
    unexpected = [line for line in done.stderr.splitlines() if not re.search(r"steps, \d\.\d MB as arrays", line)]
    assert (done.returncode, unexpected) == (0, [])
    return folder, done.stdout


def test_demo_prints_each_step(demo):
    folder, printed = demo
    headings = [line for line in printed.splitlines() if line.startswith("== ")]
    assert [heading.split()[1] for heading in headings] == [
        "Recording",
        "kabuki-rlds",
        "kabuki-rlds",
        "kabuki-rlds",
        "Reading",
    ]
    assert [heading.split()[2] for heading in headings[1:4]] == ["convert", "validate", "inspect"]
    assert f"{folder / 'hopper.hdf5'}: valid" in printed
    assert "Hopper-v5 of Gymnasium under a noisy controller" in printed


def test_demo_prints_the_numbers_of_the_file(demo):
    folder, printed = demo
    with h5py.File(folder / "hopper.hdf5") as f:
        steps, start, length = len(f["reward"]), f["episodes/start"][:], f["episodes/length"][:]
        reward = f["reward"][:]
        terminal = f["is_terminal"][:][start + length - 1]
        returns = np.array([reward[a : a + n - 1].sum() for a, n in zip(start, length, strict=True)])
        observation = f["observation"]
        assert (observation.dtype, observation.shape[1:]) == (np.float64, (11,))
    assert 20_000 <= steps < 21_100
    text = " ".join(printed.split())
    assert f"{steps:,} steps in {len(start):,} episodes" in text
    assert f"{folder / 'hopper' / '1.0.0'}: {len(start):,} episodes" in text
    assert f"lengths min {length.min():,}, mean {length.mean():,.4g}, max {length.max():,}" in text
    assert f"returns min {returns.min():,.4g}, mean {returns.mean():,.4g}, max {returns.max():,.4g}" in text
    assert f"endings {terminal.sum():,} terminated, {(~terminal).sum():,} truncated" in text
    assert f"observation ({length[-1]}, 11) float64" in text
    assert f"action ({length[-1]}, 3) float32" in text
    assert f"return {returns[-1]:.3f}" in text
    assert ("ends terminated" if terminal[-1] else "ends truncated") in text


def test_demo_episodes_are_terminated_or_truncated_and_last_rows_are_padding(demo):
    folder, _ = demo
    with h5py.File(folder / "hopper.hdf5") as f:
        last = f["episodes/start"][:] + f["episodes/length"][:] - 1
        assert f["is_terminal"][:][last].any()
        assert not f["reward"][:][last].any()
        assert (f["observation"][:][last] != 0).any(axis=1).all()  # The last observation is there.
        before = f["discount"][:][last - 1]
    assert set(before.tolist()) <= {0.0, 1.0}


def test_demo_file_is_valid_and_lists_its_source(demo):
    folder, _ = demo
    assert kabuki_rlds.validate(folder / "hopper.hdf5") == []
    summary = kabuki_rlds.inspect(folder / "hopper.hdf5")
    assert summary.info.homepage == "https://gymnasium.farama.org/environments/mujoco/hopper/"
    assert [source["path"] for source in summary.sources] == [str((folder / "hopper" / "1.0.0").resolve())]


def test_demo_does_not_change_a_folder_with_other_files(tmp_path):
    from kabuki_rlds.commands import demo

    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(kabuki_rlds.KabukiError, match="is not empty and not from an earlier demo"):
        demo.run(tmp_path)
    with pytest.raises(kabuki_rlds.KabukiError, match=re.escape(str(tmp_path / "thesis.tex"))):
        demo.run(tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_demo_reports_a_gymnasium_without_hopper(tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(gymnasium.registry, "Hopper-v5")
    assert main(["demo", str(tmp_path / "demo")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "the demo needs MuJoCo's Hopper" in line
    assert line.endswith("pip install 'kabuki_rlds[environments]'")
    assert list(tmp_path.iterdir()) == []


class Praise(gymnasium.Env):
    """An environment whose rewards are strings, which breaks the rules."""

    observation_space = gymnasium.spaces.Box(-1, 1, (11,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)

    def reset(self, *, seed=None, options=None):
        return np.zeros(11), {}

    def step(self, action):
        return np.zeros(11), "good", True, False, {}


def test_demo_fails_if_the_recording_breaks_the_rules(tmp_path, monkeypatch, capsys):
    from kabuki_rlds.commands import demo

    spec = gymnasium.envs.registration.EnvSpec("Hopper-v5", entry_point=Praise, disable_env_checker=True)  # type: ignore[arg-type]
    monkeypatch.setitem(gymnasium.registry, "Hopper-v5", spec)
    monkeypatch.setitem(sys.modules, "envlogger", None)
    monkeypatch.setattr(demo, "_STEPS", 10)
    assert main(["demo", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert "hopper.hdf5: the recording breaks 1 rules of the format" in err.splitlines()[-1]
    assert "reward" in out.splitlines()[-1]


def test_demo_can_be_repeated_in_its_folder(tmp_path, monkeypatch, capsys):
    from kabuki_rlds.commands import demo

    monkeypatch.setattr(demo, "_STEPS", 300)
    for _ in range(2):
        demo.run(tmp_path / "demo")
        assert f"{tmp_path / 'demo' / 'hopper.hdf5'}: valid" in capsys.readouterr().out
    assert kabuki_rlds.inspect(tmp_path / "demo" / "hopper.hdf5").num_steps >= 300


def test_demo_works_without_envlogger(tmp_path, monkeypatch, capsys):
    from kabuki_rlds.commands import demo

    monkeypatch.setattr(demo, "_STEPS", 300)
    monkeypatch.setitem(sys.modules, "envlogger", None)
    demo.run(tmp_path / "demo")
    printed = capsys.readouterr().out
    assert "Hopper-v5 with kabuki_rlds.record, as an RLDS dataset" in printed
    assert f"{tmp_path / 'demo' / 'hopper.hdf5'}: valid" in printed
