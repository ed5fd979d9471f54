"""Where the language instruction of an episode comes from: the file, a JSON file next to it, a name, or the user."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow_datasets as tfds

from kabuki_rlds import KabukiError, build, convert
from kabuki_rlds.cli.main import main
from kabuki_rlds.formats.demos.instruction import task_in
from tests import layout_files
from tests.places import CASES, ROOT

BUILT_IN = ["aloha", "d4rl", "libero-openvla", "robomimic"]


def _instructions(file: Path) -> list[str]:
    with h5py.File(file) as f:
        starts = f["episodes/start"][:]
        return [f["language_instruction"].asstr()[start] for start in starts]


# --- LIBERO ---


def _without_attributes(path: Path, lengths: dict[int, int]) -> Path:
    """A LIBERO file as OpenVLA's script writes it without idle steps: no attributes."""
    rng = np.random.default_rng(len(path.name))
    with h5py.File(path, "w") as file:
        for number, length in lengths.items():
            demo = file.create_group(f"data/demo_{number}")
            demo["actions"], demo["states"] = rng.normal(size=(length, 7)), rng.normal(size=(length, 92))
            demo["robot_states"] = rng.normal(size=(length, 9))
            for name, size in (
                ("ee_states", 6),
                ("gripper_states", 2),
                ("joint_states", 7),
                ("ee_pos", 3),
                ("ee_ori", 3),
            ):
                demo[f"obs/{name}"] = rng.normal(size=(length, size))
            for name in ("agentview_rgb", "eye_in_hand_rgb"):
                demo[f"obs/{name}"] = rng.integers(0, 256, (length, 64, 64, 3), np.uint8)
            demo["dones"] = demo["rewards"] = (np.arange(length) == length - 1).astype(np.uint8)
    return path


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("open_the_middle_drawer_of_the_cabinet_demo.hdf5", "open the middle drawer of the cabinet"),
        ("KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5", "turn on the stove"),
        ("LIVING_ROOM_SCENE10_put_the_soup_in_the_basket_demo.hdf5", "put the soup in the basket"),
        ("STUDY_SCENE1_pick_up_the_book.hdf5", "pick up the book"),
    ],
)
def test_libero_without_attributes_is_what_openvla_reads(tmp_path, name, told):
    _without_attributes(tmp_path / name, {0: 4, 3: 3})
    built = build(str(tmp_path / "*.hdf5"), tmp_path / "rlds", name="libero", recipe="libero-openvla")
    episodes = list(tfds.builder_from_directory(str(built.path)).as_dataset(split="train"))
    assert [len(list(e["steps"])) for e in episodes] == [4, 3]
    for episode in episodes:
        rows = list(episode["steps"].as_numpy_iterator())
        assert {row["language_instruction"].decode() for row in rows} == {told}
        assert rows[0]["observation"]["image"].shape == (256, 256, 3)
        assert rows[0]["observation"]["state"].shape == (8,)
        assert [row["reward"] for row in rows] == [row["is_terminal"] for row in rows] == [0] * (len(rows) - 1) + [1]


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not there")
def test_the_case_of_libero_without_idle_steps(tmp_path):
    sources = CASES / "libero_spatial_no_noops" / "*.hdf5"
    built = build(str(sources), tmp_path, name="libero", recipe="libero-openvla")
    told = [
        next(iter(e["steps"]))["language_instruction"].numpy().decode()
        for e in tfds.builder_from_directory(str(built.path)).as_dataset(split="train")
    ]
    place = "and place it on the plate"
    assert told == [f"pick up the black bowl {w} {place}" for w in ("next to the plate",) * 2 + ("on the stove",) * 2]


def test_the_attribute_of_libero_takes_precedence_over_its_name(tmp_path):
    path = layout_files.libero(tmp_path / "some_other_words_demo.hdf5", {0: 3}, "open the drawer")
    convert(path, tmp_path / "k.hdf5", assume={"instruction": "name"})
    with h5py.File(tmp_path / "k.hdf5") as f:
        assert f["episodes/metadata/language_instruction"].asstr()[:].tolist() == ["open the drawer"]


@pytest.mark.parametrize("name", ["demo.hdf5", "merged_data.hdf5", "libero_demo.hdf5", "KITCHEN_SCENE3_demo.hdf5"])
def test_a_name_that_is_no_task_is_not_an_instruction(tmp_path, name):
    path = _without_attributes(tmp_path / name, {0: 3})
    with pytest.raises(
        KabukiError, match=r"does not read as one; give it with assume={'instruction': 'fold the shirt'}"
    ):
        build(path, tmp_path / "rlds", name="x", recipe="libero-openvla")
    convert(path, tmp_path / "k.hdf5", recipe="libero-openvla", assume={"instruction": "fold the shirt"})
    assert _instructions(tmp_path / "k.hdf5") == ["fold the shirt"]


# --- ALOHA ---


def _aloha(folder: Path, **datasets: object) -> Path:
    """Two episodes in a folder, with further datasets, and attributes by names that end in `_`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, length in enumerate((3, 4)):
        with h5py.File(layout_files.aloha(folder / f"episode_{number}.hdf5", length), "a") as file:
            for name, value in datasets.items():
                if name.endswith("_"):
                    file.attrs[name[:-1]] = value
                else:
                    file[name] = np.repeat(np.bytes_("wave"), length) if value == "steps" else value
    return folder


def _told(folder: Path, **options: object) -> list[str]:
    out = folder.parent / "out.hdf5"
    convert(folder, out, recipe="aloha", overwrite=True, **options)  # type: ignore[arg-type]
    return _instructions(out)


@pytest.mark.parametrize(
    "datasets",
    [
        {"instruction": "wave"},
        {"instruction": np.bytes_("wave")},
        {"language_raw": np.array([b"wave"])},
        {"instruction": "steps"},
        {"instruction_": "wave"},
        {"task_description_": np.bytes_("wave")},
    ],
)
def test_the_file_has_the_instruction(tmp_path, datasets):
    assert _told(_aloha(tmp_path / "fold_shirt", **datasets)) == ["wave", "wave"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("instruction.json", "wave"),
        ("instruction.json", {"instruction": "wave"}),
        ("instructions.json", {"instructions": ["wave", "move your hand"]}),
        ("expanded_instruction_gpt-4-turbo.json", {"instruction": "wave", "expanded_instruction": ["greet"]}),
        ("instructions.json", {"episode_0": "wave", "episode_1": "wave"}),
        ("instructions.json", {"seen": ["wave"], "unseen": ["greet"]}),
    ],
)
def test_a_json_file_next_to_it_has_the_instruction(tmp_path, name, value):
    folder = _aloha(tmp_path / "episodes")
    (folder / name).write_text(json.dumps(value))
    assert _told(folder) == ["wave", "wave"]


def test_each_episode_may_have_a_json_file(tmp_path):
    folder = _aloha(tmp_path / "data")
    for number, told in enumerate(("wave", "sit down")):
        (folder / f"episode_{number}.json").write_text(json.dumps({"language_instruction": told}))
    assert _told(folder) == ["wave", "sit down"]


@pytest.mark.parametrize(
    "name",
    ["episodes", "episode 0", "episode_0", "data", "train", "2024-05-01", "my_dataset", "success_episodes", "run3"],
)
def test_a_folder_that_is_no_task_is_not_an_instruction(tmp_path, name):
    folder = _aloha(tmp_path / name)
    with pytest.raises(KabukiError, match=f"no instruction in the file .* name '{name}' does not read as one"):
        _told(folder)
    assert _told(folder, assume={"instruction": "fold the shirt"}) == ["fold the shirt"] * 2
    # Without the recipe, nothing needs an instruction.
    convert(folder, tmp_path / "k.hdf5", fill={"reward": 0})


def test_a_folder_that_is_a_task_is_used_and_reported(tmp_path, caplog):
    assert _told(_aloha(tmp_path / "fold_the_shirt")) == ["fold the shirt"] * 2
    (warning,) = [r.getMessage() for r in caplog.records if "instruction" in r.getMessage()]
    assert (
        "the name of the folder is taken as the instruction, 'fold the shirt'; assume={'instruction': 'TEXT'}"
        in warning
    )


def test_an_instruction_that_no_file_needs_is_an_error(tmp_path):
    folder = _aloha(tmp_path / "episodes", instruction="wave")
    says = r"episode_0.hdf5: assume: instruction=fold cannot apply, since the file has the instruction 'wave'"
    with pytest.raises(KabukiError, match=says):
        _told(folder, assume={"instruction": "fold"})
    with h5py.File(folder / "episode_1.hdf5", "a") as file:
        del file["instruction"]
    # The files that have one keep it.
    assert _told(folder, assume={"instruction": "fold"}) == ["wave", "fold"]


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "9" * (2 << 20)])
def test_a_json_file_that_cannot_be_read_is_passed_over(tmp_path, caplog, text):
    folder = _aloha(tmp_path / "episodes")
    (folder / "instruction.json").write_text(text)
    assert _told(folder, assume={"instruction": "fold"}) == ["fold", "fold"]
    (message,) = caplog.messages
    assert "instruction.json: " in message and "not searched for the instruction of an episode" in message


@pytest.mark.parametrize(
    ("name", "task"),
    [("put_it_down", "put it down"), ("fold-the-shirt", "fold the shirt"), ("wave", ""), ("", ""), ("SCENE1_", "")],
)
def test_tasks_in_names(name, task):
    assert task_in(name) == task


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not there")
def test_the_case_of_rdt(tmp_path):
    convert(CASES / "rdt_ft", tmp_path / "k.hdf5", recipe="aloha", images="encoded")
    assert _instructions(tmp_path / "k.hdf5") == ["close the glasses box"] * 2


# --- the command `recipe` ---


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_recipe_is_printed(tmp_path, capsys, monkeypatch, name):
    assert main(["recipe", name]) == 0
    text = capsys.readouterr().out
    assert text == (ROOT / f"kabuki_rlds/transforms/recipes/library/{name}.yaml").read_text()
    # A folder of the same name does not hide it.
    monkeypatch.chdir(tmp_path)
    _aloha(Path(name))
    assert main(["recipe", name]) == 0
    said = capsys.readouterr()
    assert (said.out, f"of that name, use ./{name}" in said.err) == (text, True)
    assert main(["recipe", f"./{name}"]) == 0
    assert "drafted for" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["recipe", "aloha", "--assume", "ends=cut"], ["recipe", "--assume", "ends=cut"]])
def test_an_assumption_does_not_apply_to_a_built_in_recipe(capsys, arguments):
    with pytest.raises(SystemExit) as e:
        main(arguments)
    assert e.value.code == 2
    assert "--assume needs a SOURCE that a recipe is drafted for" in capsys.readouterr().err
