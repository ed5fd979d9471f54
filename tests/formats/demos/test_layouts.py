"""Demonstrations in the layouts of others: every value arrives, at its row, and episodes end as they ended."""

import json
import re

import h5py
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from kabuki_rlds import KabukiError, build, convert, load_steps, load_transitions, validate
from kabuki_rlds.cli.main import main
from kabuki_rlds.commands.export import export
from tests import layout_files


def _episodes(file):
    starts, lengths = file["episodes/start"][:], file["episodes/length"][:]
    return [slice(start, start + length) for start, length in zip(starts, lengths, strict=True)]


def test_robomimic_with_next_obs(tmp_path):
    lengths = {0: 5, 2: 1, 10: 4}
    source = layout_files.robomimic(
        tmp_path / "demo.hdf5", lengths, success=[2], masks={"train": [0, 10], "valid": [2]}
    )
    result = convert(source, tmp_path / "k.hdf5")
    assert (result.num_episodes, result.num_steps, result.warnings) == (3, 5 + 1 + 4 + 3, [])
    assert not validate(tmp_path / "k.hdf5")
    with h5py.File(source) as theirs, h5py.File(tmp_path / "k.hdf5") as ours:
        for number, rows in zip(lengths, _episodes(ours), strict=True):
            demo = theirs[f"data/demo_{number}"]
            body = slice(rows.start, rows.stop - 1)
            for name in ("eef_pos", "camera/agentview_image"):
                seen = ours[f"observation/{name}"][rows]
                np.testing.assert_array_equal(seen[:-1], demo[f"obs/{name}"][:])
                np.testing.assert_array_equal(seen[1:], demo[f"next_obs/{name}"][:])
                assert seen.dtype == demo[f"obs/{name}"].dtype
            for name, stored in (
                ("action", "actions"),
                ("reward", "rewards"),
                ("states", "states"),
                ("dones", "dones"),
            ):
                np.testing.assert_array_equal(ours[name][body], demo[stored][:])
                assert not ours[name][rows.stop - 1].any()
            assert ours["is_terminal"][rows].tolist() == [False] * lengths[number] + [number == 2]
            assert ours["discount"][rows.stop - 2] == (number != 2)
        metadata = ours["episodes/metadata"]
        assert metadata["episode"].asstr()[:].tolist() == ["demo_0", "demo_2", "demo_10"]
        assert metadata["attributes/model_file"].asstr()[1] == "<mujoco model='2'/>"
        assert json.loads(metadata["file/env_args"].asstr()[0]) == {"env_name": "Lift", "type": 1}
        assert metadata["mask/valid"][:].tolist() == [False, True, False]
        assert json.loads(ours.attrs["environment"])["env_name"] == "Lift"
        assert json.loads(ours.attrs["sources"])[0]["format"] == "robomimic"


def test_what_is_of_no_step_is_of_the_episode(tmp_path, caplog):
    source = layout_files.robomimic(tmp_path / "demo.hdf5", {0: 3, 1: 4})
    with h5py.File(source, "a") as file:
        # In the second, `counters` has as many rows as there are actions, by chance.
        for number, count in ((0, 5), (1, 4)):
            file[f"data/demo_{number}/controller/counters"] = np.arange(count)
            file[f"data/demo_{number}/controller/forces"] = np.zeros(3 + number)
            file[f"data/demo_{number}/version"] = "2"
        file["data/demo_1/only/here"] = np.ones(4)
        file["data/demo_1"].attrs["ep_meta"] = "{}"
    convert(source, tmp_path / "k.hdf5")
    assert "1 of 2 episodes have no 'attributes/ep_meta', 'attributes/only/here'; zeros and empty" in caplog.text
    with h5py.File(tmp_path / "k.hdf5") as ours:
        metadata = ours["episodes/metadata/attributes"]
        assert [row.tolist() for row in metadata["controller/counters"][:]] == [list(range(5)), list(range(4))]
        assert metadata["version"].asstr()[:].tolist() == ["2", "2"]
        assert metadata["ep_meta"].asstr()[:].tolist() == ["", "{}"]
        assert [row.tolist() for row in metadata["only/here"][:]] == [[0] * 4, [1] * 4]
        assert "controller/counters" not in ours
        assert len(ours["controller/forces"]) == 3 + 4 + 2


def test_a_wider_type_holds_all(tmp_path, caplog):
    source = layout_files.robomimic(tmp_path / "demo.hdf5", {0: 3, 1: 4})
    with h5py.File(source, "a") as file:
        file["data/demo_0/force"] = np.array([0.1, 0.2, 0.3])
        file["data/demo_1/force"] = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    convert(source, tmp_path / "k.hdf5")
    assert "'force' is of several types, and all of it float64 now" in caplog.text
    with h5py.File(tmp_path / "k.hdf5") as ours:
        assert ours["force"][:3].tolist() == [0.1, 0.2, 0.3]
        assert ours["force"][4:8].tolist() == np.array([0.1, 0.2, 0.3, 0.4], np.float32).tolist()


def test_a_mask_is_a_split(tmp_path):
    source = layout_files.robomimic(tmp_path / "demo.hdf5", {1: 3, 2: 4}, masks={"train": [2], "valid": [1]})
    assert convert(source, tmp_path / "v.hdf5", split="valid").num_steps == 4
    with pytest.raises(
        KabukiError, match=r"demo.hdf5: has no split 'test'; the splits are train .1 episode., valid .1 episode."
    ):
        convert(source, tmp_path / "t.hdf5", split="test")


@pytest.mark.parametrize(
    ("assume", "steps", "terminal"),
    [
        ({}, 3 + 4, [False, True]),
        ({"dones": "reward"}, 3 + 4, [False, True]),
        ({"dones": "end"}, 3 + 4, [False, False]),
        ({"last_observation": "repeat"}, 3 + 4 + 2, [False, True]),
    ],
)
def test_robomimic_without_next_obs_as_assumed(tmp_path, assume, steps, terminal):
    source = layout_files.robomimic(tmp_path / "demo.hdf5", {0: 3, 1: 4}, next_obs=False, success=[1])
    assert convert(source, tmp_path / "k.hdf5", assume=assume).num_steps == steps
    with h5py.File(tmp_path / "k.hdf5") as ours:
        rows = _episodes(ours)
        assert [bool(ours["is_terminal"][r.stop - 1]) for r in rows] == terminal
        lengths = [r.stop - r.start for r in rows]
        for length, stored, r in zip(lengths, (3, 4), rows, strict=True):
            if length > stored:
                seen = ours["observation/eef_pos"][r]
                np.testing.assert_array_equal(seen[-1], seen[-2])


def test_the_reward_of_the_last_action_is_served(tmp_path):
    source = layout_files.libero(tmp_path / "put_the_cup_away_demo.hdf5", {0: 6, 7: 3}, "put the cup away")
    convert(source, tmp_path / "k.hdf5")
    batches = list(load_transitions(tmp_path / "k.hdf5", 100).as_numpy_iterator())
    assert len(batches) == 1
    np.testing.assert_array_equal(batches[0]["reward"], [0, 0, 0, 0, 0, 1, 0, 0, 1])
    np.testing.assert_array_equal(batches[0]["discount"], [1, 1, 1, 1, 1, 0, 1, 1, 0])


def test_many_libero_files_become_one_rlds_dataset(tmp_path):
    lengths = {}
    for task in range(12):
        lengths[f"task_{task}"] = {number: 2 + number % 3 for number in range(task, task + 9, 3)}
        layout_files.libero(tmp_path / f"task_{task}_demo.hdf5", lengths[f"task_{task}"], f"do task {task}")
    built = build(str(tmp_path / "*_demo.hdf5"), tmp_path / "rlds", name="libero")
    assert built.splits == {"train": 36}
    assert built.num_steps == sum(sum(of.values()) for of in lengths.values())
    dataset = tfds.builder_from_directory(str(built.path)).as_dataset(split="train")
    told = [json.loads(episode["file"]["problem_info"].numpy())["language_instruction"] for episode in dataset]
    # In the order of the tasks' numbers: task_2 is before task_10.
    assert told == [f"do task {task}" for task in range(12) for _ in range(3)]
    first = next(iter(dataset))
    with h5py.File(tmp_path / "task_0_demo.hdf5") as theirs:
        steps = list(first["steps"].as_numpy_iterator())
        pictures = theirs["data/demo_0/obs/camera/agentview_image"][:]
        np.testing.assert_array_equal([step["observation"]["camera"]["agentview_image"] for step in steps], pictures)
        np.testing.assert_array_equal([step["action"] for step in steps], theirs["data/demo_0/actions"][:])
        assert [step["reward"] for step in steps] == [0.0] * (len(steps) - 1) + [1.0]


def test_robosuite_needs_a_reward(tmp_path):
    source = layout_files.robosuite(tmp_path / "demo.hdf5", {1: 4, 2: 3})
    with pytest.raises(KabukiError, match=r"no 'reward' .*fill={'reward': 0}"):
        convert(source, tmp_path / "k.hdf5")
    assert convert(source, tmp_path / "k.hdf5", fill={"reward": 0}, assume={"ends": "terminal"}).num_steps == 7
    with h5py.File(source) as theirs, h5py.File(tmp_path / "k.hdf5") as ours:
        np.testing.assert_array_equal(ours["observation/states"][4:7], theirs["data/demo_2/states"][:])
        assert np.flatnonzero(ours["is_terminal"][:]).tolist() == [3, 6]
        np.testing.assert_array_equal(ours["action"][:4], theirs["data/demo_1/actions"][:])


def test_a_folder_of_aloha(tmp_path):
    folder = tmp_path / "episodes"
    folder.mkdir()
    for number, length in ((0, 3), (2, 5), (10, 4)):
        layout_files.aloha(folder / f"episode_{number}.hdf5", length)
    assert convert(folder, tmp_path / "k.hdf5", fill={"reward": 0}).num_episodes == 3
    with h5py.File(tmp_path / "k.hdf5") as ours:
        assert ours["episodes/length"][:].tolist() == [3, 5, 4]
        assert not ours["is_terminal"][:].any()
        assert not ours["episodes/metadata/file/sim"][:].any()
        assert ours["episodes/source"][:].tolist() == [0, 1, 2]
        with h5py.File(folder / "episode_2.hdf5") as theirs:
            np.testing.assert_array_equal(ours["action"][3:8], theirs["action"][:])
            np.testing.assert_array_equal(ours["observation/images/top"][3:8], theirs["observations/images/top"][:])
            np.testing.assert_array_equal(ours["observation/qpos"][3:8], theirs["observations/qpos"][:])


@pytest.mark.parametrize("images", ["arrays", "encoded"])
def test_compressed_aloha(tmp_path, images):
    rng = np.random.default_rng(0)
    files = [tf.io.encode_jpeg(rng.integers(0, 1 + 60 * i, (48, 64, 3), np.uint8)).numpy() for i in range(4)]
    source = layout_files.aloha(tmp_path / "episode_0.hdf5", 4, files)
    assume = {"last_observation": "repeat"}
    convert(source, tmp_path / "k.hdf5", fill={"reward": 0}, images=images, assume=assume)
    with h5py.File(tmp_path / "k.hdf5") as ours:
        stored = ours["observation/images/top"]
        assert len(stored) == 5
        for row, file in zip(range(5), [*files, files[-1]], strict=True):
            if images == "encoded":
                assert stored[row].tobytes() == file
            else:
                np.testing.assert_array_equal(stored[row], tf.io.decode_jpeg(file).numpy())


def _make_wrong(path, change):
    layout_files.robomimic(path, {0: 3, 1: 4}, masks={"train": [0]})
    with h5py.File(path, "a") as file:
        change(file)


def test_an_image_that_states_a_huge_size_is_not_decoded(tmp_path):
    files = [tf.io.encode_png(np.zeros((48, 64, 3), np.uint8)).numpy() for _ in range(3)]
    huge = bytearray(files[1])
    huge[16:24] = (60_000).to_bytes(4, "big") * 2
    source = layout_files.aloha(tmp_path / "episode_0.hdf5", 3, [files[0], bytes(huge), files[2]])
    for images in ("arrays", "encoded"):
        with pytest.raises(
            KabukiError, match=r"row 1: field 'observation/images/top': the image is 60000 x 60000 pixels, not 48 x 64"
        ):
            convert(source, tmp_path / "k.hdf5", fill={"reward": 0}, images=images)
    source = layout_files.aloha(tmp_path / "episode_0.hdf5", 3, files)
    convert(source, tmp_path / "k.hdf5", fill={"reward": 0}, images="encoded")
    with h5py.File(tmp_path / "k.hdf5", "r+") as file:
        file["observation/images/top"][1] = np.frombuffer(bytes(huge), np.uint8)
    with pytest.raises(tf.errors.UnknownError, match=r"KabukiError: .*row 1: field .* the image is 60000 x 60000"):
        list(load_steps(tmp_path / "k.hdf5", 2))


def _replace(file, path, values):
    del file[path]
    file[path] = values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f["data"].attrs.modify("total", 9), "data says total 9, but there are 7"),
        (lambda f: f["data/demo_1"].attrs.modify("num_samples", 5), "demo_1: says num_samples 5, but has 4 actions"),
        (lambda f: f.__setitem__("mask/valid", np.array([b"demo_5"])), "mask/valid lists 'demo_5', which data"),
        (lambda f: _replace(f, "data/demo_1/dones", np.zeros(3)), "dones: 3 rows, where there are 4 actions"),
        (lambda f: f.__delitem__("data/demo_1/rewards"), "field 'reward' is in .*demo_0, but not in .*demo_1"),
        (lambda f: f.__setitem__("data/demo_1/more", h5py.SoftLink("/x")), "demo_1/more' is a link that leads now"),
        (lambda f: f.__delitem__("data/demo_1/actions"), "data/demo_1: no actions"),
        (lambda f: f.__delitem__("data/demo_1/next_obs/eef_pos"), "'eef_pos' is in only one of obs and next_obs"),
    ],
)  # fmt: skip
def test_what_is_not_whole_is_refused(tmp_path, change, message):
    _make_wrong(tmp_path / "demo.hdf5", change)
    with pytest.raises(KabukiError, match=message):
        convert(tmp_path / "demo.hdf5", tmp_path / "k.hdf5")
    assert [path.name for path in tmp_path.iterdir()] == ["demo.hdf5"]


def test_what_cannot_be_assumed_is_refused(tmp_path):
    source = layout_files.robomimic(tmp_path / "demo.hdf5", {0: 3})
    with pytest.raises(KabukiError, match=r"'done' says nothing of .* robomimic; there is dones, last_observation"):
        convert(source, tmp_path / "k.hdf5", assume={"done": "end"})
    with pytest.raises(KabukiError, match=r"dones is terminal or reward or end, not 'success'"):
        convert(source, tmp_path / "k.hdf5", assume={"dones": "success"})
    with pytest.raises(KabukiError, match=r"no file or folder matches this pattern"):
        convert(tmp_path / "*.h5", tmp_path / "k.hdf5")


def test_long_episodes_are_read_in_parts(tmp_path):
    lengths = {0: 9000, 1: 2500}
    source = layout_files.robomimic(tmp_path / "demo.hdf5", lengths, success=[0, 1], next_obs=False)
    convert(source, tmp_path / "k.hdf5", compression="none")
    with h5py.File(source) as theirs, h5py.File(tmp_path / "k.hdf5") as ours:
        assert ours["episodes/length"][:].tolist() == [9000, 2500]
        for number, rows in zip(lengths, _episodes(ours), strict=True):
            for name in ("eef_pos", "camera/agentview_image"):
                stored = theirs[f"data/demo_{number}/obs/{name}"][:]
                np.testing.assert_array_equal(ours[f"observation/{name}"][rows], stored)


def test_next_obs_that_are_others_are_told_of(tmp_path):
    source = layout_files.robomimic(tmp_path / "demo.hdf5", {0: 3, 1: 4})
    with h5py.File(source, "a") as file:
        file["data/demo_1/next_obs/eef_pos"][1, 2] += 1
        stored = file["data/demo_1/next_obs/eef_pos"][:]
    with pytest.raises(
        KabukiError, match=r"next_obs/eef_pos: rows 0 to 2 are not the obs.*assume={'next_obs': 'keep'}"
    ):
        convert(source, tmp_path / "k.hdf5")
    convert(source, tmp_path / "k.hdf5", assume={"next_obs": "keep"})
    with h5py.File(tmp_path / "k.hdf5") as ours:
        np.testing.assert_array_equal(ours["next_obs/eef_pos"][4:8], stored)
        np.testing.assert_array_equal(ours["observation/eef_pos"][8], stored[-1])
    with pytest.raises(KabukiError, match=r"'next_obs/.*': next_obs are made anew here"):
        export(tmp_path / "k.hdf5", tmp_path / "back.hdf5", "robomimic")


@pytest.mark.parametrize(
    ("path", "values", "message"),
    [
        ("next_obs/eef_pos", np.zeros((4, 3), np.float32), r"next_obs/eef_pos is of another type or shape"),
        ("next_obs/eef_pos", np.zeros((5, 3)), r"next_obs/eef_pos has 5 rows, where .*obs/eef_pos has 4"),
        ("next_obs/eef_pos", 1.0, r"next_obs/eef_pos has no rows"),
        ("dones", np.array([b"no"] * 4), r"demo_1/dones is of type \|S2, and no flag"),
        ("actions", np.zeros((0, 7)), r"demo_1.*"),
        ("obs/eef_pos", np.zeros(4, [("x", "f4")]), r"obs/eef_pos': has the type .*, expected numbers"),
        ("states", 3.0, r"demo_1/states: no rows, where there are 4 actions"),
        ("actions", np.zeros((4, 7, 2)), r"'action' is float64 \(7,\) in .*demo_0, but float64 \(7, 2\) in .*demo_1"),
    ],
)
def test_what_makes_no_sense_is_one_line(tmp_path, capsys, path, values, message):
    source = layout_files.robomimic(tmp_path / "demo.hdf5", {0: 3, 1: 4})
    with h5py.File(source, "a") as file:
        _replace(file, f"data/demo_1/{path}", values)
    assert main(["convert", str(source), str(tmp_path / "k.hdf5")]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert re.search(message, line)
    assert "this is a bug" not in line


def test_a_file_without_episodes(tmp_path):
    source = layout_files.robomimic(tmp_path / "demo.hdf5", {})
    with pytest.raises(
        KabukiError, match=r"demo.hdf5: neither a Kabuki file .* nor in the layout of libero, .*\(it has data\)"
    ):
        convert(source, tmp_path / "k.hdf5")


def test_dones_by_reward_need_rewards(tmp_path):
    source = layout_files.robomimic(tmp_path / "demo.hdf5", {0: 3}, rewards=False)
    with pytest.raises(KabukiError, match=r"data/demo_0: no rewards, which dones=reward goes by"):
        convert(source, tmp_path / "k.hdf5", assume={"dones": "reward"}, fill={"reward": 0})


def test_what_no_layout_knows_is_named(tmp_path, caplog):
    source = layout_files.robomimic(tmp_path / "demo.hdf5", {0: 3, 1: 2})
    with h5py.File(source, "a") as file:
        file["calibration"], file["data/demo_final/actions"] = np.eye(3), np.zeros((2, 7))
        file.attrs["lab"] = "ours"
        file["data/demo_0/obs"].attrs["hz"] = 20
        file["data/demo_0/actions"].attrs["unit"] = "rad"
    convert(source, tmp_path / "k.hdf5")
    assert caplog.text.count("calibration: not in the layout, and left out") == 1
    assert caplog.text.count("data/demo_final: not in the layout, and left out") == 1
    with h5py.File(tmp_path / "k.hdf5") as ours:
        metadata = ours["episodes/metadata"]
        assert metadata["file/lab"].asstr()[:].tolist() == ["ours", "ours"]
        assert metadata["attributes/obs/hz"][:].tolist() == [20, 0]
        assert metadata["attributes/actions/unit"].asstr()[:].tolist() == ["rad", ""]


def test_inspect_and_validate_read_files_of_other_layouts(tmp_path, capsys):
    source = layout_files.robosuite(tmp_path / "demo.hdf5", {0: 3})
    assert main(["inspect", str(source)]) == 0
    assert "3 steps in 1 episode" in capsys.readouterr().out
    # Such a file has no rewards.
    assert main(["validate", str(source)]) == 1
    assert f"{source}: rule 2: reward: the steps have no 'reward'" in capsys.readouterr().out


def test_attributes_of_nothing(tmp_path):
    source = layout_files.robomimic(tmp_path / "demo.hdf5", {0: 3})
    with h5py.File(source, "a") as file:
        file["data/demo_0"].attrs["note"] = h5py.Empty("f4")
        file["data/demo_0"].attrs["tags"] = np.zeros(0)
        file["data/demo_0"].attrs["model_file"] = "<mujoco>" + " " * 200_000
    convert(source, tmp_path / "k.hdf5")
    with h5py.File(tmp_path / "k.hdf5") as ours:
        metadata = ours["episodes/metadata/attributes"]
        assert metadata["note"].asstr()[0] == ""
        assert metadata["tags"].shape == (1, 0)
        assert len(metadata["model_file"].asstr()[0]) == 200_008


def test_mobile_aloha_with_a_depth_camera(tmp_path):
    rng = np.random.default_rng(0)
    files = [tf.io.encode_jpeg(np.full((48, 64, 3), 40 * i, np.uint8)).numpy() for i in range(4)]
    folder = tmp_path / "wipe_table"
    folder.mkdir()
    depth = rng.integers(0, 1 << 16, (2, 4, 48, 64), np.uint16)
    for number in range(2):
        with h5py.File(layout_files.aloha(folder / f"episode_{number}.hdf5", 4, files), "a") as file:
            file["base_action"] = np.full((4, 2), number, np.float32)
            file["observations/effort"] = rng.normal(size=(4, 14))
            # A camera that is not compressed, and has no row in `compress_len`.
            file["observations/images_depth/top"] = depth[number]
            file["instruction"] = "wipe"
    convert(folder, tmp_path / "k.hdf5", fill={"reward": 0}, assume={"ends": "terminal"})
    with h5py.File(tmp_path / "k.hdf5") as ours:
        assert ours["episodes/length"][:].tolist() == [4, 4]
        assert ours["is_terminal"][:].tolist() == ([False] * 3 + [True]) * 2
        np.testing.assert_array_equal(ours["observation/images_depth/top"][:].reshape(2, 4, 48, 64), depth)
        assert ours["base_action"][:, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
        assert ours["episodes/metadata/file/instruction"].asstr()[:].tolist() == ["wipe", "wipe"]
        assert ours["episodes/metadata/file/compress"][:].tolist() == [True, True]


def test_red_and_blue_of_compressed_aloha_are_swapped_by_a_recipe(tmp_path):
    orange = np.broadcast_to(np.array([250, 120, 10], np.uint8), (48, 64, 3))
    # As OpenCV writes what it takes for blue, green, red.
    file = tf.io.encode_jpeg(orange[..., ::-1], quality=100).numpy()
    source = layout_files.aloha(tmp_path / "episode_0.hdf5", 2, [file, file])
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "fill: {reward: 0}\nsteps:\n  observation/images/top: {from: observation/images/top, swap: bgr, encode: png}\n"
    )
    built = build(source, tmp_path / "rlds", name="aloha", recipe=recipe)
    (episode,) = tfds.builder_from_directory(str(built.path)).as_dataset(split="train")
    for step in episode["steps"].as_numpy_iterator():
        assert np.abs(step["observation"]["images"]["top"].astype(int) - orange).max() <= 3


def test_attributes_of_kabuki_s_in_a_layout_of_others(tmp_path):
    source = layout_files.aloha(tmp_path / "episode_0.hdf5", 3)
    with h5py.File(source, "a") as file:
        file["action"].attrs.update({"kind": "image", "encoded": True})
    with pytest.raises(KabukiError, match=r"action.*image files"):
        convert(source, tmp_path / "k.hdf5", fill={"reward": 0})
