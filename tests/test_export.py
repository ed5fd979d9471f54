"""Exports: the values and the ends of episodes, as the loaders of those layouts find them."""

import json

import h5py
import numpy as np
import pytest

from kabuki_rlds import KabukiError, convert
from kabuki_rlds.cli.main import main
from kabuki_rlds.export import export
from tests import layout_files


@pytest.fixture(name="lift")
def _lift(tmp_path):
    """robomimic's file, and what it became."""
    source = layout_files.robomimic(
        tmp_path / "demo.hdf5", {0: 5000, 3: 4, 12: 1, 13: 7}, success=[0, 12], masks={"train": [0, 13], "valid": [3]}
    )
    convert(source, tmp_path / "k.hdf5", compression="none")
    return source, tmp_path / "k.hdf5"


def test_robomimic_gets_back_what_it_had(lift, tmp_path):
    source, kabuki = lift
    result = export(kabuki, tmp_path / "back.hdf5", "robomimic")
    assert (result.episodes, result.actions) == (4, 5012)
    with h5py.File(source) as old, h5py.File(tmp_path / "back.hdf5") as new:
        names = []
        old.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        for name in names:
            np.testing.assert_array_equal(new[name][()], old[name][()], err_msg=name)
            assert new[name].dtype.kind == old[name].dtype.kind
        assert set(new["data"]) == set(old["data"])
        assert new["data"].attrs["total"] == old["data"].attrs["total"]
        assert json.loads(new["data"].attrs["env_args"]) == json.loads(old["data"].attrs["env_args"])
        for demo in old["data"]:
            assert dict(new[f"data/{demo}"].attrs).items() >= dict(old[f"data/{demo}"].attrs).items()


def test_d4rl_gets_back_what_it_had(tmp_path):
    count = 9000
    rng = np.random.default_rng(0)
    ends = rng.random(count) < 0.01
    ends[-1] = True
    terminals = ends & (rng.random(count) < 0.5)
    seen = rng.normal(size=(count, 3)).astype(np.float32)
    following = np.roll(seen, -1, axis=0)
    following[ends] += 1
    source = layout_files.d4rl(
        tmp_path / "d.hdf5",
        terminals=terminals,
        timeouts=ends & ~terminals,
        observations=seen,
        next_observations=following,
        **{"infos/qpos": rng.normal(size=(count, 2))},
    )
    convert(source, tmp_path / "k.hdf5")
    assert main(["export", str(tmp_path / "k.hdf5"), str(tmp_path / "back.hdf5"), "--to", "d4rl"]) == 0
    with h5py.File(source) as old, h5py.File(tmp_path / "back.hdf5") as new:
        for name in ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations", "infos/qpos"):
            np.testing.assert_array_equal(new[name][:], old[name][:], err_msg=name)


def test_minari_iterates_what_was_exported(lift, tmp_path, monkeypatch):
    minari = pytest.importorskip("minari", reason="judges its own datasets")
    _, kabuki = lift
    root = tmp_path / "minari"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    assert main(["export", str(kabuki), str(root / "lab" / "lift-v0"), "--to", "minari"]) == 0
    dataset = minari.load_dataset("lab/lift-v0")
    assert (dataset.total_episodes, dataset.total_steps) == (4, 5012)
    with h5py.File(kabuki) as ours:
        for episode, start, length in zip(
            dataset.iterate_episodes(), ours["episodes/start"], ours["episodes/length"], strict=True
        ):
            rows, inner = slice(start, start + length), slice(start, start + length - 1)
            np.testing.assert_array_equal(episode.observations["eef_pos"], ours["observation/eef_pos"][rows])
            pictures = ours["observation/camera/agentview_image"][rows]
            np.testing.assert_array_equal(episode.observations["camera"]["agentview_image"], pictures)
            np.testing.assert_array_equal(episode.actions, ours["action"][inner])
            np.testing.assert_array_equal(episode.rewards, ours["reward"][inner])
            np.testing.assert_array_equal(episode.infos["states"], ours["states"][rows])
            terminal = ours["is_terminal"][start + length - 1]
            assert episode.terminations.tolist() == [False] * (length - 2) + [terminal]
            assert episode.truncations.tolist() == [False] * (length - 2) + [not terminal]
            assert dataset.observation_space.contains(
                {"eef_pos": episode.observations["eef_pos"][0], "camera": {"agentview_image": pictures[0]}}
            )


def test_minari_there_and_back(lift, tmp_path):
    _, kabuki = lift
    export(kabuki, tmp_path / "lift-v1", "minari")
    convert(tmp_path / "lift-v1", tmp_path / "back.hdf5")
    with h5py.File(kabuki) as old, h5py.File(tmp_path / "back.hdf5") as new:
        for name in ("observation/eef_pos", "action", "reward", "is_first", "is_last", "is_terminal", "discount"):
            np.testing.assert_array_equal(new[name][:], old[name][:], err_msg=name)
        assert new["episodes/metadata/attributes/episode"].asstr()[:].tolist() == [
            "demo_0",
            "demo_3",
            "demo_12",
            "demo_13",
        ]


@pytest.mark.parametrize("layout", ["robomimic", "d4rl", "minari"])
def test_an_error_leaves_nothing(tmp_path, layout):
    source = tmp_path / "k.hdf5"
    with h5py.File(source, "w") as file:
        # The second episode has one row, so no action.
        file["observation"], file["action"] = np.zeros((4, 2), np.float32), np.zeros((4, 1), np.float32)
        file["reward"], file["discount"] = np.zeros(4), np.ones(4)
        file["is_first"], file["is_last"] = [True, False, False, True], [False, False, True, True]
        file["is_terminal"] = [False] * 4
    with pytest.raises(KabukiError, match="episode 1 has no action"):
        export(source, tmp_path / "out-v0", layout)
    assert [path.name for path in tmp_path.iterdir()] == ["k.hdf5"]


def test_what_is_there_is_not_replaced(lift, tmp_path):
    _, kabuki = lift
    export(kabuki, tmp_path / "a.hdf5", "robomimic")
    before = (tmp_path / "a.hdf5").read_bytes()
    with pytest.raises(KabukiError, match="already there; --overwrite"):
        export(kabuki, tmp_path / "a.hdf5", "robomimic")
    with pytest.raises(KabukiError, match="'observation' is a dict, and D4RL has one array"):
        export(kabuki, tmp_path / "a.hdf5", "d4rl", overwrite=True)
    with pytest.raises(KabukiError, match="Minari takes a dataset by a folder of a name like hopper-v0"):
        export(kabuki, tmp_path / "lift", "minari")
    assert (tmp_path / "a.hdf5").read_bytes() == before
    assert export(kabuki, tmp_path / "a.hdf5", "robomimic", overwrite=True).episodes == 4


def test_a_minari_dataset_is_replaced_and_no_other_folder(lift, tmp_path):
    _, kabuki = lift
    dest = tmp_path / "lift-v0"
    (dest / "data").mkdir(parents=True)
    (dest / "data" / "mine").write_bytes(b"")
    with pytest.raises(KabukiError, match=r"lift-v0/data: there, but no dataset, since it has no main_data.hdf5"):
        export(kabuki, dest, "minari", overwrite=True)
    (dest / "data" / "mine").rename(dest / "data" / "main_data.hdf5")
    assert export(kabuki, dest, "minari", overwrite=True).episodes == 4
    assert sorted(path.name for path in (dest / "data").iterdir()) == ["main_data.hdf5", "metadata.json"]
