"""`export` writes the values and the episode ends that the loaders of each layout expect."""

import json

import h5py
import numpy as np
import pytest

from kabuki_rlds import KabukiError, convert
from kabuki_rlds.cli.main import main
from kabuki_rlds.commands.export import export
from tests import layout_files


@pytest.fixture(name="lift")
def _lift(tmp_path):
    """Returns a robomimic file and its converted file."""
    source = layout_files.robomimic(
        tmp_path / "demo.hdf5", {0: 5000, 3: 4, 12: 1, 13: 7}, success=[0, 12], masks={"train": [0, 13], "valid": [3]}
    )
    convert(source, tmp_path / "k.hdf5", compression="none")
    return source, tmp_path / "k.hdf5"


def test_robomimic_round_trip_keeps_all_values(lift, tmp_path):
    source, kabuki = lift
    result = export(kabuki, tmp_path / "back.hdf5", "robomimic")
    assert (result.num_episodes, result.num_steps) == (4, 5012)
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


def test_d4rl_round_trip_keeps_all_values(tmp_path):
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


def test_minari_reads_the_exported_episodes(lift, tmp_path, monkeypatch):
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


def test_minari_round_trip_keeps_all_values(lift, tmp_path):
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


def _kabuki(path, **fields):
    """Writes a file of two episodes with two rows each."""
    plain = {
        "observation": np.zeros((4, 2), np.float32),
        "action": np.zeros((4, 1), np.float32),
        "reward": np.zeros(4),
        "discount": np.ones(4),
        "is_first": [True, False] * 2,
        "is_last": [False, True] * 2,
        "is_terminal": [False] * 4,
    }
    with h5py.File(path, "w") as file:
        for name, values in {**plain, **fields}.items():
            if values is not None:
                file[name] = values
    return path


@pytest.mark.parametrize(
    ("layout", "fields", "message"),
    [
        ("robomimic", {"note": np.array([b"b\0c", b"a", b"", b""], "S3")}, "a text with a NUL"),
        ("robomimic", {"actions": np.zeros(4)}, "'action' and 'actions' would both be 'actions' in robomimic's layout"),
        ("d4rl", {"observations/x": np.zeros(4)}, "'observation' and 'observations/x' would both be 'observations'"),
        ("minari", {"infos/x": np.zeros(4), "x": np.zeros(4)}, "'infos/x' and 'x' would both be 'infos/x' in Minari's"),
        ("robomimic", {"action": None, "action/arm": np.zeros(4)}, "'action' is a dict, and robomimic takes one array"),
    ],
)
def test_fields_that_a_layout_cannot_represent_are_rejected(tmp_path, layout, fields, message):
    source = _kabuki(tmp_path / "k.hdf5", **fields)
    with pytest.raises(KabukiError, match=message):
        export(source, tmp_path / "out-v0", layout)


def test_fields_of_variable_size_are_rejected(tmp_path):
    source = _kabuki(tmp_path / "k.hdf5")
    with h5py.File(source, "a") as file:
        ragged = file.create_dataset("points", 4, h5py.vlen_dtype(np.float32))
        of_episode = file.create_dataset("episodes/metadata/path", 2, h5py.vlen_dtype(np.float32))
        for i in range(4):
            ragged[i] = np.zeros(i, np.float32)
        of_episode[0], of_episode[1] = np.zeros(1, np.float32), np.zeros(2, np.float32)
        file["episodes/start"], file["episodes/length"] = [0, 2], [2, 2]
    with pytest.raises(KabukiError, match=r"step field 'points', float32 \(\?,\), has no form in D4RL's layout"):
        export(source, tmp_path / "d.hdf5", "d4rl")
    with h5py.File(source, "a") as file:
        del file["points"]
    with pytest.raises(KabukiError, match=r"episode field 'path' varies in size"):
        export(source, tmp_path / "d.hdf5", "d4rl")


def test_fields_with_zero_elements_are_exported(tmp_path):
    source = _kabuki(tmp_path / "k.hdf5", nothing=np.zeros((4, 0), np.float32))
    for layout in ("robomimic", "d4rl", "minari"):
        export(source, tmp_path / f"{layout}-v0", layout)
    with h5py.File(tmp_path / "robomimic-v0") as file:
        assert file["data/demo_1/nothing"].shape == (1, 0)


def test_export_rejects_several_datasets(tmp_path):
    folder = tmp_path / "both"
    folder.mkdir()
    _kabuki(folder / "a.hdf5")
    layout_files.robosuite(folder / "b.hdf5", {0: 3})
    with pytest.raises(KabukiError, match="contains several datasets; merge them with `convert` first"):
        export(folder, tmp_path / "out.hdf5", "robomimic", fill={"reward": 0})


@pytest.mark.parametrize("layout", ["robomimic", "d4rl", "minari"])
def test_failed_export_leaves_no_output(tmp_path, layout):
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


def test_existing_destination_is_not_replaced(lift, tmp_path):
    _, kabuki = lift
    export(kabuki, tmp_path / "a.hdf5", "robomimic")
    before = (tmp_path / "a.hdf5").read_bytes()
    with pytest.raises(KabukiError, match="already exists; overwrite=True"):
        export(kabuki, tmp_path / "a.hdf5", "robomimic")
    with pytest.raises(KabukiError, match="'observation' is a dict, and D4RL takes one array"):
        export(kabuki, tmp_path / "a.hdf5", "d4rl", overwrite=True)
    with pytest.raises(KabukiError, match="Minari takes a dataset by a folder of a name like hopper-v0"):
        export(kabuki, tmp_path / "lift", "minari")
    assert (tmp_path / "a.hdf5").read_bytes() == before
    assert export(kabuki, tmp_path / "a.hdf5", "robomimic", overwrite=True).num_episodes == 4


def test_overwrite_replaces_a_minari_dataset_but_no_other_folder(lift, tmp_path):
    _, kabuki = lift
    dest = tmp_path / "lift-v0"
    (dest / "data").mkdir(parents=True)
    (dest / "data" / "mine").write_bytes(b"")
    with pytest.raises(KabukiError, match=r"lift-v0/data: exists, but is not a Minari dataset"):
        export(kabuki, dest, "minari", overwrite=True)
    (dest / "data" / "mine").rename(dest / "data" / "metadata.json")
    assert export(kabuki, dest, "minari", overwrite=True).num_episodes == 4
    assert sorted(path.name for path in (dest / "data").iterdir()) == ["main_data.hdf5", "metadata.json"]


def test_exported_demonstrations_of_several_files_are_numbered(tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()
    for name in "ab":
        # Both have these names, and none of them is the number of the fourth in the other.
        layout_files.robomimic(folder / f"{name}.hdf5", {0: 2, 3: 4}, masks={"valid": [3]})
    convert(folder, tmp_path / "k.hdf5")
    assert export(tmp_path / "k.hdf5", tmp_path / "back.hdf5", "robomimic").num_episodes == 4
    with h5py.File(tmp_path / "back.hdf5") as new:
        assert sorted(new["data"]) == ["demo_0", "demo_1", "demo_2", "demo_3"]
        assert new["mask/valid"][:].tolist() == [b"demo_1", b"demo_3"]
        for number, (name, demo) in enumerate([("a", "demo_0"), ("a", "demo_3"), ("b", "demo_0"), ("b", "demo_3")]):
            with h5py.File(folder / f"{name}.hdf5") as old:
                np.testing.assert_array_equal(new[f"data/demo_{number}/actions"], old[f"data/{demo}/actions"])
                assert new[f"data/demo_{number}"].attrs["num_samples"] == len(old[f"data/{demo}/actions"])


@pytest.mark.parametrize(
    ("said", "names"),
    [
        # The first is called as the second is numbered.
        ([b"demo_1", b"demo_0"], ["demo_1", "demo_0"]),
        ([b"demo_1", b"demo_7"], ["demo_1", "demo_7"]),
        ([b"demo_1", b"a run"], ["demo_0", "demo_1"]),
        ([b"demo_1", b""], ["demo_0", "demo_1"]),
        ([b"demo_5", b"demo_5"], ["demo_0", "demo_1"]),
        # A group within the one before it.
        ([b"demo_0", b"demo_0/obs"], ["demo_0", "demo_1"]),
    ],
)
def test_exported_demonstrations_keep_valid_unique_names(tmp_path, said, names):
    source = _kabuki(tmp_path / "k.hdf5", action=np.arange(4.0), **{
        "episodes/start": [0, 2],
        "episodes/length": [2, 2],
        "episodes/metadata/episode": np.array(said, object).astype(h5py.string_dtype()),
        "episodes/metadata/mask/valid": [False, True],
    })  # fmt: skip
    export(source, tmp_path / "out.hdf5", "robomimic")
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert sorted(file["data"]) == sorted(names)
        assert [file[f"data/{name}/actions"][:].tolist() for name in names] == [[0], [2]]
        assert file["mask/valid"][:].tolist() == [names[1].encode()]
