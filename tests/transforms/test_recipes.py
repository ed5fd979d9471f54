"""Recipes: the resulting fields, and errors that name the line of the recipe."""

import json
import re

import h5py
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from kabuki_rlds import KabukiError, build, compare, convert, validate
from kabuki_rlds.cli.main import main
from tests import layout_files


def _libero(path, lengths, instruction):
    layout_files.libero(path, lengths, instruction)
    rng = np.random.default_rng(0)
    with h5py.File(path, "a") as file:
        for number, length in lengths.items():
            obs = file[f"data/demo_{number}/obs"]
            for name in ("agentview_rgb", "eye_in_hand_rgb"):
                # A dark image with a bright corner. LIBERO stores images upside down, so the corner is at the top left.
                pixels = np.full((length, 128, 128, 3), 20, np.uint8)
                pixels[:, :32, :48] = (250, 40, 90)
                obs[name] = pixels
            for name, size in (("ee_states", 6), ("gripper_states", 2), ("joint_states", 7)):
                obs[name] = rng.normal(size=(length, size))
    return path


def test_the_libero_recipe_gives_the_features_that_openvla_reads(tmp_path):
    lengths = {"pick_up_the_cup": {0: 3, 5: 2}, "open_the_drawer": {1: 4}}
    for task, of in lengths.items():
        _libero(tmp_path / f"{task}_demo.hdf5", of, task.replace("_", " "))
    built = build(str(tmp_path / "*.hdf5"), tmp_path / "rlds", name="libero_spatial", recipe="libero-openvla")
    assert (built.splits, built.num_steps) == ({"train": 3}, 9)
    builder = tfds.builder_from_directory(str(built.path))
    picture = tfds.features.Image(shape=(256, 256, 3), encoding_format="jpeg")
    steps = {
        "observation": {
            "image": picture,
            "wrist_image": picture,
            "state": tfds.features.Tensor(shape=(8,), dtype=np.float32),
            "joint_state": tfds.features.Tensor(shape=(7,), dtype=np.float32),
        },
        "action": tfds.features.Tensor(shape=(7,), dtype=np.float32),
        **dict.fromkeys(("reward", "discount"), np.float32),
        **dict.fromkeys(("is_first", "is_last", "is_terminal"), np.bool_),
        "language_instruction": tfds.features.Text(),
    }
    expected = tfds.features.FeaturesDict(
        {"steps": tfds.features.Dataset(steps), "episode_metadata": {"file_path": tfds.features.Text()}}
    )
    assert repr(builder.info.features) == repr(expected)
    assert builder.info.features["steps"].feature["observation"]["image"].encoding_format == "jpeg"
    episodes = list(builder.as_dataset(split="train"))
    told = []
    for episode, (task, number, length) in zip(
        episodes, [("open_the_drawer", 1, 4), ("pick_up_the_cup", 0, 3), ("pick_up_the_cup", 5, 2)], strict=True
    ):
        rows = list(episode["steps"].as_numpy_iterator())
        assert len(rows) == length
        assert episode["episode_metadata"]["file_path"].numpy().decode().endswith(f"{task}_demo.hdf5")
        told += [row["language_instruction"].decode() for row in rows]
        assert [row["is_terminal"] for row in rows] == [False] * (length - 1) + [True]
        assert [row["reward"] for row in rows] == [0] * (length - 1) + [1]
        assert {row["discount"] for row in rows} == {1}
        with h5py.File(tmp_path / f"{task}_demo.hdf5") as file:
            demo = file[f"data/demo_{number}"]
            state = np.concatenate([demo["obs/ee_states"][:], demo["obs/gripper_states"][:]], 1).astype(np.float32)
            np.testing.assert_array_equal([row["observation"]["state"] for row in rows], state)
            np.testing.assert_array_equal([row["action"] for row in rows], demo["actions"][:].astype(np.float32))
        for row in rows:
            for name in ("image", "wrist_image"):
                seen = row["observation"][name]
                assert np.abs(seen[200:, 170:].astype(int) - (250, 40, 90)).max() < 12
                assert np.abs(seen[:180, :150].astype(int) - 20).max() < 12
    assert told == ["open the drawer"] * 4 + ["pick up the cup"] * 5


def _recipe(path, text):
    path.write_text(text)
    return path


def test_each_operation(tmp_path):
    source = layout_files.robomimic(tmp_path / "lift_the_cube.hdf5", {0: 3, 1: 2}, next_obs=False)
    recipe = _recipe(
        tmp_path / "r.yaml",
        """
about: all of them
for: [robomimic, libero]
assume: {last_observation: none}
steps:
  observation/up: {from: observation/camera/agentview_image, flip: vertical}
  observation/mirrored: {from: observation/camera/agentview_image, flip: horizontal}
  observation/turned: {from: observation/camera/agentview_image, rotate: 180}
  observation/red: {from: observation/camera/agentview_image, swap: bgr}
  observation/small: {from: observation/camera/agentview_image, resize: [10, 8]}
  observation/png: {from: observation/camera/agentview_image, encode: png}
  observation/jpeg: {from: observation/camera/agentview_image, encode: {jpeg: 80}}
  arm: {from: action, select: '0:6', cast: float32}
  grip: {from: action, select: [6, 0]}
  both: {concatenate: [states, reward, observation/eef_pos]}
  whole: {from: dones, cast: bool}
  number: {constant: 3}
  list: {constant: [1.5, 2]}
  says: {constant: grasp}
  task: {from: file_path, match: '([^/]+)[.]hdf5', replace: {_: ' '}}
  env: {from: file/env_args, json: env_name}
  action:
episode:
  which: {from: episode}
drop: [states, attributes/model_file]
""",
    )
    convert(source, tmp_path / "k.hdf5", recipe=recipe)
    assert not [v for v in validate(tmp_path / "k.hdf5") if v.rule != 4]
    with h5py.File(source) as theirs, h5py.File(tmp_path / "k.hdf5") as ours:

        def stored(name):
            return np.concatenate([theirs[f"data/demo_{i}/{name}"][:] for i in (0, 1)])

        pixels, actions = stored("obs/camera/agentview_image"), stored("actions")
        np.testing.assert_array_equal(ours["observation/up"][:], pixels[:, ::-1])
        np.testing.assert_array_equal(ours["observation/mirrored"][:], pixels[:, :, ::-1])
        np.testing.assert_array_equal(ours["observation/turned"][:], pixels[:, ::-1, ::-1])
        np.testing.assert_array_equal(ours["observation/red"][:], pixels[..., ::-1])
        assert ours["observation/small"].shape == (5, 10, 8, 3)
        assert np.abs(ours["observation/small"][:].mean() - pixels.mean()) < 1
        for row, file in enumerate(ours["observation/png"][:]):
            np.testing.assert_array_equal(tf.io.decode_png(file.tobytes()).numpy(), pixels[row])
        assert ours["observation/jpeg"].attrs["file_format"] == "jpeg"
        assert ours["observation/jpeg"][0].tobytes()[:2] == b"\xff\xd8"
        np.testing.assert_array_equal(ours["arm"][:], actions[:, :6].astype(np.float32))
        np.testing.assert_array_equal(ours["grip"][:], actions[:, [6, 0]])
        both = np.concatenate([stored("states"), stored("rewards")[:, None], stored("obs/eef_pos")], 1)
        np.testing.assert_array_equal(ours["both"][:], both)
        np.testing.assert_array_equal(ours["whole"][:], stored("dones").astype(bool))
        assert ours["number"][:].tolist() == [3] * 5
        assert ours["list"][0].tolist() == [1.5, 2]
        assert ours["says"].asstr()[4] == "grasp"
        assert set(ours["task"].asstr()[:]) == {"lift the cube"}
        assert set(ours["env"].asstr()[:]) == {"Lift"}
        np.testing.assert_array_equal(ours["action"][:], actions)
        metadata = ours["episodes/metadata"]
        assert metadata["which"].asstr()[:].tolist() == ["demo_0", "demo_1"]
        assert "states" not in ours
        assert "model_file" not in metadata["attributes"]
        assert "file" in metadata
    assert main(["validate", str(tmp_path / "k.hdf5"), "--against", str(source), "--recipe", str(recipe)]) in (0, 1)


def test_an_episode_field_can_become_a_step_field(tmp_path):
    # Some episodes take several blocks, and some blocks have several episodes.
    lengths = dict(enumerate([5000, 3, 1, 4, 9000, 2, 2]))
    source = layout_files.robomimic(tmp_path / "demo.hdf5", lengths)
    recipe = _recipe(tmp_path / "r.yaml", "steps: {name: {from: episode}}\n")
    convert(source, tmp_path / "k.hdf5", recipe=recipe, compression="none")
    with h5py.File(tmp_path / "k.hdf5") as ours:
        expected = [f"demo_{i}" for i, length in lengths.items() for _ in range(length + 1)]
        assert ours["name"].asstr()[:].tolist() == expected


def test_a_recipe_maps_splits_to_masks(tmp_path):
    masks = {"train": [0, 2], "valid": [1]}
    source = layout_files.robomimic(tmp_path / "demo.hdf5", {0: 3, 1: 2, 2: 4}, masks=masks)
    recipe = _recipe(tmp_path / "r.yaml", "split: {train: train, val: valid}\n")
    built = build(source, tmp_path / "rlds", name="lift", recipe=recipe)
    assert built.splits == {"train": 2, "val": 1}
    assert convert(source, tmp_path / "k.hdf5", recipe=recipe, split="val").num_steps == 3
    with pytest.raises(KabukiError, match="the recipe makes the splits train, val; choose one with split"):
        convert(source, tmp_path / "l.hdf5", recipe=recipe)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps:\n  a: {from: nothing}\n", r"r.yaml:2: a: .*demo.hdf5 has no 'nothing' \(it has action, "),
        ("steps:\n\n  a: {from: action, turn: 180}\n", "r.yaml:3: a: unknown operation 'turn'; expected from, conc"),
        ("steps:\n  a:\n    from: action\n    rotate: 90\n", "r.yaml:4: a: rotate: expected 180 degrees"),
        ("steps:\n  a: {from: action, rotate: 180}\n", r"r.yaml:2: a: float64 \(7,\) is not an image of uint8"),
        ("steps:\n  a: {from: action, select: [7]}\n", r"r.yaml:2: a: index 7 is out of range for float64 \(7,\)"),
        ("steps:\n  a: {from: action, cast: int32}\n", "r.yaml:2: a: .*cannot be converted to int32"),
        ("steps:\n  a: {from: episode, json: x}\n", "r.yaml:2: a: .*'demo_0' has no x"),
        ("steps:\n  a: {from: episode, match: 'x(y)'}\n", "r.yaml:2: a: .*does not match 'demo_0'"),
        ("step:\n  a: 1\n", "r.yaml:2: unknown key 'step'; expected about"),
        ("rest: some\n", "r.yaml:1: rest: expected keep or drop"),
        ("steps:\n  a: {from: action}\n  a: {from: reward}\n", "r.yaml:3: steps: 'a' is given twice"),
        ("steps: [1, 2\n", "r.yaml:2: not valid YAML"),
        ("a: &x 1\nb: *x\n", "r.yaml:2: YAML aliases are not allowed"),
        ("drop: [nothing]\n", "r.yaml:1: drop: .* has no 'nothing'"),
        ("for: aloha\n", "has the layout robomimic, but the recipe .*r.yaml is for aloha"),
        ("assume: {dones: perhaps}\n", "assume: dones is terminal or reward or end"),
        ("- 1\n", "r.yaml:1: expected a dict with some of the keys about"),
        ("fill: {reward: much}\n", "r.yaml:1: fill: reward: expected a number"),
        ("fill: {reward: [1]}\n", r"r.yaml:1: fill: reward: expected a number, not \[1\]$"),
        ("steps:\n  a: {select: [0], constant: 3}\n", "r.yaml:2: a: constant: must be the first entry"),
        ("steps:\n  a: {rotate: 180, from: action}\n", "r.yaml:2: a: from: must be the first entry"),
        ("steps:\n  a: {from: [action, reward]}\n", "r.yaml:2: a: from: expected the path of one field"),
        ("steps:\n  a: {concatenate: action}\n", "r.yaml:2: a: concatenate: expected a list of two or more fields"),
        ("steps:\n  a: {concatenate: [action, file/env_args]}\n", "r.yaml:2: a: step fields and episode fields cannot"),
        ("steps:\n  a: {concatenate: [action, IMAGE]}\n", "r.yaml:2: a: uint8 .* is not a scalar or a vector"),
        ("steps:\n  a: {constant: {b: 1}}\n", "r.yaml:2: a: constant: expected a number, true or false, a text"),
        ("steps:\n  a: {from: action, select: 3}\n", "r.yaml:2: a: select: expected a list of indices"),
        ("steps:\n  a: {from: reward, select: [0]}\n", "r.yaml:2: a: float64 has no last axis"),
        ("steps:\n  a: {from: action, cast: float}\n  b: {from: action, cast: }\n", "r.yaml:3: b: cast: None is not"),
        ("steps:\n  a: {from: action, cast: text}\n", "r.yaml:2: a: cast: 'text' is not a numeric dtype"),
        ("steps:\n  a: {from: action, cast: str}\n", "r.yaml:2: a: cast: 'str' is not a numeric dtype"),
        ("steps:\n  a: {from: episode, cast: int8}\n", "r.yaml:2: a: text is not an array of numbers"),
        ("steps:\n  a: {from: IMAGE, flip: up}\n", "r.yaml:2: a: flip: expected vertical or horiz"),
        ("steps:\n  a: {from: IMAGE, swap: rgb}\n", "r.yaml:2: a: swap: expected bgr, which"),
        ("steps:\n  a: {from: IMAGE, resize: 9}\n", r"r.yaml:2: a: resize: expected \[height, width"),
        ("steps:\n  a: {from: IMAGE, encode: gif}\n", "r.yaml:2: a: encode: expected png, jpeg"),
        ("steps:\n  a: {from: IMAGE, select: [0], encode: png, swap: bgr}\n",
         r"r.yaml:2: a: encoded image uint8 \(40, 32, 1\) is not an image of uint8"),
        ("steps:\n  a: {from: IMAGE, select: [0], swap: bgr}\n", "a: .* does not have three chan"),
        ("steps:\n  a: {from: IMAGE, select: [0, 1], encode: png}\n", r"a: uint8 \(40, 32, 2\) is not an image"),
        ("steps:\n  a: {from: action, encode: png}\n", r"a: float64 \(7,\) is not an image of uint8 or uint16"),
        ("steps:\n  a: {from: IMAGE, transpose: 1}\n", r"r.yaml:2: a: transpose: expected a list of axes such as \[1"),
        ("steps:\n  a: {from: IMAGE, transpose: [1, 2, 3]}\n", "a: transpose: .* is not a permutation of the axes"),
        ("steps:\n  a: {from: IMAGE, transpose: [1, 0]}\n", r"a: uint8 \(40, 32, 3\) does not have 2 axes"),
        ("steps:\n  a: {from: episode, transpose: [1, 0]}\n", "a: text does not have 2 axes"),
        ("steps:\n  a: {from: action, match: x}\n", r"r.yaml:2: a: float64 \(7,\) is not a text"),
        ("steps:\n  a: {from: episode, match: '('}\n", "r.yaml:2: a: match: not a valid regular expression"),
        ("steps:\n  a: {from: episode, replace: x}\n", "r.yaml:2: a: replace: expected a dict from text to text"),
        ("steps:\n  a: {from: episode, json: [1]}\n", "r.yaml:2: a: json: expected keys such as language_instruction"),
        ("steps:\n  a: {from: attributes/points}\n", "r.yaml:2: a: the episode field 'attributes/points'"),
        ("steps: [a]\n", "r.yaml:1: steps: expected a dict"),
        ("about: [a]\n", "r.yaml:1: about: expected a text"),
        ("steps:\n  a: {constant: 2000-13-45}\n", "r.yaml:2: not a valid value: month must be"),
    ],
)  # fmt: skip
def test_an_invalid_recipe_is_rejected_with_its_line(tmp_path, text, message):
    source = layout_files.robomimic(tmp_path / "demo.hdf5", {0: 3, 1: 4})
    with h5py.File(source, "a") as file:
        for number in range(2):
            file[f"data/demo_{number}/points"] = np.zeros((7 + number, 2))
    text = text.replace("IMAGE", "observation/camera/agentview_image")
    with pytest.raises(KabukiError, match=message):
        convert(source, tmp_path / "k.hdf5", recipe=_recipe(tmp_path / "r.yaml", text))
    assert not (tmp_path / "k.hdf5").exists()


CHANNELS_FIRST = ["rotate: 180", "flip: vertical", "flip: horizontal", "swap: bgr", "resize: [8, 8]", "encode: png"]


@pytest.mark.parametrize("operation", CHANNELS_FIRST)
@pytest.mark.parametrize("shape", [(3, 40, 32), (1, 40, 32), (40, 32, 2), (40, 32, 7), (9, 40, 32)])
def test_image_operations_reject_arrays_that_are_not_images(operation, shape, tmp_path):
    source = layout_files.robomimic(tmp_path / "demo.hdf5", {0: 3}, next_obs=False)
    with h5py.File(source, "a") as file:
        file["data/demo_0/obs/camera/first"] = np.zeros((3, *shape), np.uint8)
    recipe = _recipe(tmp_path / "r.yaml", f"steps:\n  observation/camera/first: {{{operation}}}\n")
    message = re.escape(f"r.yaml:2: observation/camera/first: uint8 {shape} is not an image (height, width, 1, 3 or 4)")
    with pytest.raises(KabukiError, match=message) as error:
        convert(source, tmp_path / "k.hdf5", recipe=recipe)
    assert ("transpose: [1, 2, 0]" in str(error.value)) == (shape[0] in (1, 3))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_channels_first_images_can_be_transposed_for_image_operations(dtype, tmp_path):
    source = layout_files.robomimic(tmp_path / "demo.hdf5", {0: 3}, next_obs=False)
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (3, 3, 40, 32), dtype, endpoint=True)
    with h5py.File(source, "a") as file:
        file["data/demo_0/obs/first"] = pixels
        file["data/demo_0/obs/pose"] = np.arange(36.0).reshape(3, 4, 3)
    recipe = _recipe(
        tmp_path / "r.yaml",
        """
assume: {last_observation: none}
steps:
  observation/last: {from: observation/first, transpose: [1, 2, 0]}
  observation/turned: {from: observation/first, transpose: [1, 2, 0], rotate: 180}
  observation/small: {from: observation/first, transpose: [1, 2, 0], resize: [20, 16]}
  observation/file: {from: observation/first, transpose: [1, 2, 0], swap: bgr, encode: png}
  observation/pose: {transpose: [1, 0]}
""",
    )
    convert(source, tmp_path / "k.hdf5", recipe=recipe)
    last = pixels.transpose(0, 2, 3, 1)
    with h5py.File(tmp_path / "k.hdf5") as ours:
        np.testing.assert_array_equal(ours["observation/last"][:], last)
        np.testing.assert_array_equal(ours["observation/turned"][:], last[:, ::-1, ::-1])
        assert (ours["observation/small"].shape, ours["observation/small"].dtype) == ((3, 20, 16, 3), dtype)
        assert np.abs(ours["observation/small"][:].mean() / last.mean() - 1) < 0.05
        for row, file in enumerate(ours["observation/file"][:]):
            decoded = tf.io.decode_png(file.tobytes(), dtype=tf.as_dtype(dtype)).numpy()
            np.testing.assert_array_equal(decoded, last[row, ..., ::-1])
        np.testing.assert_array_equal(ours["observation/pose"][:], np.arange(36.0).reshape(3, 4, 3).transpose(0, 2, 1))
    # In the RLDS dataset the field is an image.
    built = build(source, tmp_path / "rlds", name="first", recipe=recipe)
    feature = tfds.builder_from_directory(built.path).info.features["steps"]["observation"]["file"]
    assert (feature.shape, feature.np_dtype) == ((40, 32, 3), dtype)


def test_a_draft_transposes_channels_first_images(tmp_path, capsys):
    source = layout_files.robomimic(tmp_path / "demo.hdf5", {0: 3}, next_obs=False)
    with h5py.File(source, "a") as file:
        file["data/demo_0/obs/first"] = np.zeros((3, 3, 40, 32), np.uint8)
        file["data/demo_0/obs/voxels"] = np.zeros((3, 5, 6, 7), np.uint8)
    assert main(["recipe", str(source)]) == 0
    text = capsys.readouterr().out
    assert text.count("# transpose: [1, 2, 0]") == 1
    assert text.count("# rotate: 180") == 2
    # The operations suggested by the draft match the types of their fields.
    wanted = re.sub("# (transpose|rotate|resize|encode)", r"\1", text)
    convert(source, tmp_path / "k.hdf5", recipe=_recipe(tmp_path / "r.yaml", wanted))
    with h5py.File(tmp_path / "k.hdf5") as file:
        assert file["observation/first"].attrs["shape"].tolist() == [256, 256, 3]


def test_empty_recipe_sections_are_ignored(tmp_path):
    source = layout_files.robomimic(tmp_path / "demo.hdf5", {0: 3})
    recipe = _recipe(tmp_path / "r.yaml", "about:\nfor:\nassume:\nfill:\nsplit:\nsteps:\nepisode:\ndrop:\nrest:\n")
    assert convert(source, tmp_path / "k.hdf5", recipe=recipe).num_steps == 4


@pytest.mark.parametrize("value", [(1 << 24) + 1, 1 << 62])
def test_a_cast_to_float32_must_keep_integers_exact(tmp_path, value):
    source = layout_files.robomimic(tmp_path / "demo.hdf5", {0: 2})
    with h5py.File(source, "a") as file:
        file["data/demo_0/count"] = np.array([value, 3])
    recipe = _recipe(tmp_path / "r.yaml", "steps: {count: {cast: float32}}\n")
    if value % 2:
        with pytest.raises(KabukiError, match=r"r.yaml:1: count: .*16777217.* cannot be converted to float32"):
            convert(source, tmp_path / "k.hdf5", recipe=recipe)
        return
    convert(source, tmp_path / "k.hdf5", recipe=recipe)
    with h5py.File(tmp_path / "k.hdf5") as ours:
        assert ours["count"][:].tolist() == [value, 3, 0]


def test_recipe_files_that_are_too_large_or_not_text_are_rejected(tmp_path):
    source = layout_files.robomimic(tmp_path / "demo.hdf5", {0: 3})
    for text, message in (
        (b"about: " + b"x" * (1 << 20), "more than the limit of 1,048,576"),
        (b"\xff", "cannot be read"),
    ):
        (tmp_path / "r.yaml").write_bytes(text)
        with pytest.raises(KabukiError, match=message):
            convert(source, tmp_path / "k.hdf5", recipe=tmp_path / "r.yaml")


def test_an_unknown_recipe_name_is_rejected(tmp_path):
    source = layout_files.robomimic(tmp_path / "demo.hdf5", {0: 3})
    with pytest.raises(KabukiError, match=r"nothing: is not a file and not a built-in recipe .aloha, d4rl, "):
        convert(source, tmp_path / "k.hdf5", recipe="nothing")


@pytest.mark.parametrize("make", ["robomimic", "aloha", "d4rl", "robosuite"])
def test_a_drafted_recipe_converts_its_source(tmp_path, capsys, make):
    path = tmp_path / "some demo_1.hdf5"
    if make == "robomimic":
        layout_files.robomimic(path, {0: 3, 1: 4})
    elif make == "aloha":
        layout_files.aloha(path, 4)
    elif make == "d4rl":
        layout_files.d4rl(path, terminals=np.zeros(4, bool), timeouts=np.array([0, 0, 0, 1], bool))
    else:
        layout_files.robosuite(path, {0: 3})
    assert main(["recipe", str(path)]) == 0
    recipe = _recipe(tmp_path / "draft.yaml", capsys.readouterr().out)
    assert main(["convert", str(path), str(tmp_path / "k.hdf5"), "--recipe", str(recipe)]) == 0
    assert not validate(tmp_path / "k.hdf5")


def test_the_recipe_command_lists_built_in_recipes(capsys):
    assert main(["recipe"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "aloha", "d4rl", "libero-openvla", "robomimic",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["aloha", "d4rl", "robomimic"])
def test_built_in_recipes_convert_their_layouts(tmp_path, name):
    path = tmp_path / "put_it_down" / "episode_0.hdf5"
    path.parent.mkdir()
    if name == "aloha":
        rng = np.random.default_rng(0)
        files = [tf.io.encode_jpeg(rng.integers(0, 99, (48, 64, 3), np.uint8)).numpy() for _ in range(4)]
        layout_files.aloha(path, 4, files)
    elif name == "d4rl":
        layout_files.d4rl(path, terminals=np.zeros(4, bool), timeouts=np.array([0, 0, 0, 1], bool))
    else:
        layout_files.robomimic(path, {0: 3}, next_obs=False)
        with h5py.File(path, "a") as file:
            for key in ("agentview_image", "robot0_eye_in_hand_image"):
                file[f"data/demo_0/obs/{key}"] = np.zeros((3, 84, 84, 3), np.uint8)
            for key, size in (("eef_pos", 3), ("eef_quat", 4), ("gripper_qpos", 2)):
                file[f"data/demo_0/obs/robot0_{key}"] = np.ones((3, size))
    built = build(path, tmp_path / "rlds", name=name, recipe=name)
    (episode,) = tfds.builder_from_directory(str(built.path)).as_dataset(split="train")
    steps = list(episode["steps"].as_numpy_iterator())
    if name == "aloha":
        assert steps[0]["language_instruction"] == b"put it down"
        assert steps[0]["observation"]["images"]["top"].shape == (48, 64, 3)
        assert json.loads(json.dumps(float(steps[0]["reward"]))) == 0
    elif name == "d4rl":
        assert steps[0]["observation"].dtype == np.float32
    else:
        assert steps[0]["observation"]["state"].shape == (9,)


def test_large_results_are_made_in_parts(tmp_path, monkeypatch):
    source = layout_files.robomimic(tmp_path / "f.hdf5", {0: 3, 1: 1, 2: 5})
    recipe = tmp_path / "r.yaml"
    recipe.write_text("for: robomimic\nsteps: {large: {constant: [1.0, 2.0]}}\nrest: keep\n")
    whole = convert(source, tmp_path / "whole.hdf5", recipe=recipe)
    monkeypatch.setattr("kabuki_rlds.transforms.recipes.recipe_source._MAX_MADE_BYTES", 32)
    parts = convert(source, tmp_path / "parts.hdf5", recipe=recipe)
    assert parts.num_steps == whole.num_steps and compare(whole.path, parts.path) == []


def test_result_that_is_too_large_is_rejected(tmp_path):
    source = layout_files.robomimic(tmp_path / "f.hdf5", {0: 3})
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "for: robomimic\nsteps:\n  large: {from: observation/camera/agentview_image, resize: [10, 4097]}\nrest: keep\n"
    )
    with pytest.raises(KabukiError, match="at most 4,096 pixels"):
        convert(source, tmp_path / "out.hdf5", recipe=recipe)
