"""Error messages that no other test covers. Each names the problem and its place."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow_datasets as tfds

import kabuki_rlds
from kabuki_rlds.cli.main import main
from kabuki_rlds.commands.export import export
from kabuki_rlds.commands.tfds_builder import KabukiBuilder, KabukiConfig
from kabuki_rlds.data.block import Block, Ragged
from kabuki_rlds.data.schema import Field, Schema
from kabuki_rlds.data.source import Origin
from kabuki_rlds.formats.hdf5 import source as hdf5_source
from kabuki_rlds.formats.hdf5.sink import KabukiSink
from kabuki_rlds.formats.hdf5.source import KabukiSource
from kabuki_rlds.formats.safe_hdf5 import structure
from kabuki_rlds.recording import hdf5_destination
from tests import handmade, layout_files
from tests.environments import Endless


def edited(**changes) -> dict:
    """Returns the fields and the index of a file with some replaced. Entries that are None are left out."""
    fields = handmade.fields() | handmade.index() | {name.replace("__", "/"): value for name, value in changes.items()}
    return {name: value for name, value in fields.items() if value is not None}


@pytest.mark.parametrize("name", ["x" * 1_000_000, "\x1b" * 60_000], ids=["long", "escaped"])
def test_long_names_in_a_file_do_not_make_long_messages(name, tmp_path, capsys):
    path = handmade.write(tmp_path / "f.hdf5", handmade.fields() | {name: np.zeros(8, [("a", "i4")])})
    assert main(["inspect", str(path)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and len(error) < 1000
    assert str(path) in error and " characters) … " in error


def inside(folder: Path) -> Path:
    made = folder / "in"
    made.mkdir()
    return made


def garbled(values: np.ndarray) -> handmade.Stored:
    return handmade.chunked(np.asarray(values))


HDF5 = {
    "a discount with several fields": (edited(discount=None, discount__a=np.ones(8)), "'discount' is a dict of fields"),
    "neither a terminal flag nor a discount": (
        edited(discount=None, is_terminal=None),
        "neither 'is_terminal' nor 'discount'",
    ),
    "lengths that contradict the starts": (
        edited(episodes__length=np.array([3, 2, 3])),
        "episodes/length does not match",
    ),
    "lengths of shape (episodes, 2)": (edited(episodes__length=np.ones((3, 2), int)), "episodes/length does not match"),
    "starts of rank 2": (
        edited(episodes__start=np.ones((3, 2), int)),
        "episodes/start is not an ascending list",
    ),
}


@pytest.mark.parametrize("case", HDF5)
def test_inconsistent_kabuki_file_is_rejected(case, tmp_path):
    fields, says = HDF5[case]
    file = handmade.write(tmp_path / "f.hdf5", fields)
    with pytest.raises(kabuki_rlds.KabukiError) as error:
        kabuki_rlds.convert(file, tmp_path / "out.hdf5")
    assert says in str(error.value)


@pytest.mark.parametrize("name", ["episodes/length", "episodes/source", "episodes/start", "is_first"])
def test_damaged_index_dataset_is_named(name, tmp_path):
    found = handmade.fields() | handmade.index()
    values = found[name]
    if name == "is_first":
        # The flags then define the episode boundaries.
        found = handmade.fields()
    found[name] = garbled(values)
    file = handmade.write(tmp_path / "f.hdf5", found, {"sources": handmade.attributes()["sources"]})
    handmade.put_chunk(file, name, b"no zlib stream")
    with pytest.raises(kabuki_rlds.KabukiError, match=f"f.hdf5: {name} cannot be read"):
        kabuki_rlds.convert(file, tmp_path / "out.hdf5")


@pytest.mark.parametrize("name", ["sources", "skipped"])
def test_malformed_attribute_is_ignored_with_a_warning(name, tmp_path, caplog):
    attributes = {name: '[{"path": 3}]'}
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields() | handmade.index(), attributes)
    kabuki_rlds.convert(file, tmp_path / "out.hdf5")
    assert f"f.hdf5: the attribute '{name}' is ignored: entry 0: " in caplog.text
    assert kabuki_rlds.inspect(tmp_path / "out.hdf5").skipped == []


def test_conform_rejects_several_discounts_per_step(tmp_path):
    file = handmade.write(tmp_path / "f.hdf5", edited(discount=np.ones((8, 2))))
    with pytest.raises(kabuki_rlds.KabukiError, match="'discount' does not have one value per step"):
        kabuki_rlds.convert(file, tmp_path / "out.hdf5", conform=True)


def test_dangling_link_is_rejected(tmp_path):
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields())
    with h5py.File(file, "r+") as f:
        f["more"] = h5py.SoftLink("/nowhere")
    with pytest.raises(kabuki_rlds.KabukiError, match="'more': dangling link"):
        kabuki_rlds.convert(file, tmp_path / "out.hdf5")


def test_missing_companion_is_named(tmp_path):
    rows = np.empty(8, object)
    rows[:] = [np.arange(i) for i in range(8)]
    stored = handmade.Stored(rows, {"dtype": h5py.vlen_dtype("i8")}, {"companion": "/nowhere"})
    file = handmade.write(tmp_path / "f.hdf5", edited(more=stored))
    with pytest.raises(
        kabuki_rlds.KabukiError, match="dataset '/more' cannot be read: its companion /nowhere is missing"
    ):
        kabuki_rlds.convert(file, tmp_path / "out.hdf5")


def test_pipe_is_rejected(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(kabuki_rlds.KabukiError, match="not a regular file"):
        kabuki_rlds.validate(tmp_path / "pipe")


def test_convert_without_sources_is_rejected(tmp_path):
    with pytest.raises(kabuki_rlds.KabukiError, match="no source to convert"):
        kabuki_rlds.convert([], tmp_path / "out.hdf5")


@pytest.mark.parametrize("made", ["convert", "build"])
def test_assume_is_rejected_for_files_that_do_not_support_it(made, tmp_path):
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields())
    with pytest.raises(kabuki_rlds.KabukiError, match="assume: dones: said of no file, since none is in a layout of"):
        getattr(kabuki_rlds, made)(file, tmp_path / "out.hdf5", assume={"dones": "reward"})
    assert not (tmp_path / "out.hdf5").exists()


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("a//b", "HDF5 does not allow this name"),
        ("a/.", "HDF5 does not allow"),
        ("episodes/x", "reserves the name 'episodes'"),
    ],
)
def test_invalid_and_reserved_field_names_are_rejected(path, says, tmp_path):
    with pytest.raises(kabuki_rlds.KabukiError, match=says):
        KabukiSink(tmp_path / "out.hdf5", Schema({path: Field(np.dtype(int))}, {}), [Origin("here")])
    assert list(tmp_path.iterdir()) == []


def test_sink_rejects_columns_of_different_lengths(tmp_path):
    """Tests the check of the writer. Without it, HDF5 would read memory beyond the arrays."""
    fields = {"a": Field(np.dtype(int)), "b": Field(np.dtype(int), (None,))}
    good = Ragged(np.arange(3), np.array([[1], [2]]))

    def write(steps: dict, metadata: dict) -> None:
        schema = Schema(fields, {"seed": Field(np.dtype(int))})
        with KabukiSink(tmp_path / "out.hdf5", schema, [Origin("here")]) as writer:
            writer.write(Block(steps, 2, np.array([0]), metadata))

    seed = {"seed": np.array([7])}
    for steps, metadata, says in (
        ({"a": np.arange(3), "b": good}, seed, "field 'a': has 3 rows, expected 2"),
        ({"a": np.arange(2), "b": good}, {"seed": np.arange(2)}, "episode field 'seed': has 2 rows, expected 1"),
        ({"a": np.arange(2), "b": Ragged(np.arange(3), np.array([[1], [5]]))}, seed, "/b: the lengths of the rows"),
    ):
        with pytest.raises(kabuki_rlds.KabukiError, match=says):
            write(steps, metadata)
    assert list(tmp_path.iterdir()) == []


def test_field_with_too_many_dimensions_for_hdf5_is_rejected(tmp_path):
    schema = Schema({"deep": Field(np.dtype(int), (1,) * 32)}, {})
    with pytest.raises(kabuki_rlds.KabukiError, match="field 'deep': HDF5 cannot store int64"):
        KabukiSink(tmp_path / "out.hdf5", schema, [Origin("here")])
    assert list(tmp_path.iterdir()) == []


def test_unreadable_group_is_rejected(tmp_path):
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields())
    stored = file.read_bytes()
    # What a group of older files holds its links in.
    file.write_bytes(stored.replace(b"SNOD", b"LOST"))
    with pytest.raises(
        kabuki_rlds.KabukiError, match=r"f.hdf5: damaged: the HDF5 library cannot read the structure of the file"
    ):
        kabuki_rlds.validate(file)


@pytest.mark.parametrize(("make", "given"), [("convert", 2), ("convert", 4), ("build", 2), ("build", 4), ("export", 2)])
def test_wrong_stated_number_of_episodes_is_rejected(make, given, tmp_path, monkeypatch):
    """This happens if a file changes but keeps its size and modification time."""
    file = handmade.write(inside(tmp_path) / "f.hdf5", handmade.fields((2, 2, 4)) | handmade.index((2, 2, 4)))
    blocks = KabukiSource.blocks
    monkeypatch.setattr(hdf5_source, "_BLOCK_ROWS", 4)

    def changed(*args, **options):
        before, after = itertools.tee(blocks(*args, **options))
        # Two episodes begin in the first of the two blocks, and one in the second.
        return itertools.islice(before, 1) if given == 2 else itertools.chain(before, itertools.islice(after, 1, 2))

    monkeypatch.setattr(KabukiSource, "blocks", changed)
    making = {
        "convert": lambda: kabuki_rlds.convert(file, tmp_path / "out.hdf5"),
        "build": lambda: kabuki_rlds.build(file, tmp_path / "out", name="x"),
        "export": lambda: export(file, tmp_path / "out.hdf5", "d4rl"),
    }
    with pytest.raises(kabuki_rlds.KabukiError, match=f"states 3 episodes, but {given} were"):
        making[make]()
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_export_rejects_several_datasets(tmp_path):
    for i in range(2):
        layout_files.d4rl(tmp_path / f"{i}.hdf5", terminals=np.array([0, 1], bool), timeouts=np.zeros(2, bool))
    with pytest.raises(kabuki_rlds.KabukiError, match="contains several datasets; merge them with `convert` first"):
        export(tmp_path, tmp_path / "out.hdf5", "d4rl")


def test_destination_written_by_another_process_is_rejected(tmp_path, monkeypatch):
    """Between the opening of a partial file or folder and its lock, whoever held that gave it its name."""
    file = handmade.write(inside(tmp_path) / "f.hdf5", handmade.fields())
    lock = fcntl.flock

    def late(descriptor: int, how: int) -> None:
        for left in (tmp_path / "out.hdf5.partial", tmp_path / "d" / "x" / "1.0.0.partial"):
            if left.exists():
                left.rename(left.with_name("another"))
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(kabuki_rlds.KabukiError, match="another process has just written this file; run again"):
        kabuki_rlds.convert(file, tmp_path / "out.hdf5")
    with pytest.raises(kabuki_rlds.KabukiError, match="another process has just written this dataset; run again"):
        kabuki_rlds.build(file, tmp_path / "d", name="x")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["a", "a"], "two classes have the same name"),
        (["a", " b"], r"TFDS cannot store the class name ' b' \(.*\); rename"),
        (["a", ""], "TFDS cannot store the class name ''"),
        (["a\nb", "c"], r"TFDS cannot store the class name 'a\\nb'"),
    ],
)
def test_class_names_that_tfds_cannot_store_are_rejected(names, says, tmp_path):
    stored = np.array(names, h5py.string_dtype())
    label = handmade.Stored(np.arange(8) % 2, {}, {"kind": "label", "class_names": stored})
    file = handmade.write(tmp_path / "f.hdf5", edited(more=label))
    with pytest.raises(kabuki_rlds.KabukiError, match=f"{file}: field 'more': {says}"):
        kabuki_rlds.build(file, tmp_path / "d", name="x")
    assert not (tmp_path / "d").exists()


def lists() -> handmade.Stored:
    rows = np.empty(8, object)
    rows[:] = [np.arange(i) for i in range(8)]
    return handmade.Stored(rows, {"dtype": h5py.vlen_dtype("i8")})


LIST = {"more": tfds.features.Sequence({"a": np.int64})}
NAMES = {
    "field inside a list": (
        {"features": json.dumps(tfds.features.FeaturesDict({"steps": tfds.features.Dataset(LIST)}).to_json())},
        {"more/a": lists(), "more/b": np.zeros(8, int)},
        "field 'more/b': in RLDS, 'more' cannot be both a field and a group; rename one",
    ),
    "episode field named steps": (
        {},
        {"episodes/metadata/steps": np.arange(3)},
        "episode field 'steps': RLDS reserves the name 'steps' for the steps",
    ),
    "episode field below steps": (
        {},
        {"episodes/metadata/steps/more": np.arange(3)},
        "episode field 'steps/more': RLDS reserves",
    ),
}


@pytest.mark.parametrize("case", NAMES)
def test_field_names_that_rlds_does_not_allow_are_rejected(case, tmp_path):
    attributes, more, says = NAMES[case]
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields() | handmade.index() | more, attributes)  # type: ignore[operator]
    with pytest.raises(kabuki_rlds.KabukiError, match=f"{file}: {says}"):
        kabuki_rlds.build(file, tmp_path / "d", name="x")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (("more", "more/b"), "recipe.yaml:4: more/b: a file cannot hold both 'more/b' and 'more'"),
        (("more/b", "more"), "recipe.yaml:4: more: a file cannot hold both 'more' and 'more/b'"),
    ],
)
def test_recipe_field_inside_another_field_is_rejected(fields, says, tmp_path):
    file = layout_files.d4rl(tmp_path / "f.hdf5", terminals=np.array([0, 1], bool), timeouts=np.zeros(2, bool))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("for: d4rl\nsteps:\n" + "".join(f"  {name}: {{from: action}}\n" for name in fields))
    with pytest.raises(kabuki_rlds.KabukiError, match=says):
        kabuki_rlds.build(file, tmp_path / "d", name="x", recipe=recipe)
    assert not (tmp_path / "d").exists()


def test_step_field_may_be_named_steps(tmp_path):
    file = handmade.write(tmp_path / "f.hdf5", edited(steps=np.arange(8)))
    built = kabuki_rlds.build(file, tmp_path / "d", name="x")
    (first, *_) = tfds.builder_from_directory(built.path).as_dataset(split="train")
    assert [int(step["steps"]) for step in first["steps"]] == [0, 1, 2]


def recorded(path: Path, text: object = "b", *, unfinished: str = "keep", metadata: dict | None = None) -> None:
    with kabuki_rlds.Logger(path, unfinished=unfinished) as logger:  # type: ignore[arg-type]
        logger.reset({"a": 1.0, "text": "a"}, metadata=metadata)
        logger.step(1, 0.5, {"a": 1.0, "text": text}, last=True, metadata=metadata)


RECORDED = {
    "unfinished": ({"unfinished": "maybe"}, "unfinished: 'maybe' is neither 'keep' nor 'drop'"),
    "a number for a text": (
        {"text": 3},
        "field 'observation/text' does not match the recording: got .*, expected text",
    ),
    "a surrogate": ({"text": "\udcff"}, "field 'observation/text': text is not valid Unicode"),
    "metadata named like a field": ({"metadata": {"reward": 1}}, "step metadata 'reward': this name is reserved"),
}


@pytest.mark.parametrize("case", RECORDED)
def test_invalid_recordings_are_rejected(case, tmp_path):
    options, says = RECORDED[case]
    with pytest.raises(kabuki_rlds.KabukiError, match=says):
        recorded(tmp_path / "x", **options)  # type: ignore[arg-type]


def test_recording_is_kept_if_its_conversion_fails(tmp_path, monkeypatch):
    def fails(*args: object, **options: object) -> None:
        raise kabuki_rlds.KabukiError("the disk is full")

    monkeypatch.setattr(hdf5_destination, "transfer", fails)
    with pytest.raises(kabuki_rlds.KabukiError, match=r"the disk is full; the episodes are safe in (.*), which"):
        recorded(tmp_path / "x.hdf5")
    monkeypatch.undo()
    (left,) = tmp_path.iterdir()
    assert kabuki_rlds.convert(left, tmp_path / "saved.hdf5").num_episodes == 1


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (("--assume", "dones"), "'dones' is not KEY=VALUE"),
        (("--fill", "reward=much"), "'much' is not a number"),
        (("--fill", "rewards=0"), "'rewards' is not one of observation, action, reward, discount, is_terminal"),
    ],
)
def test_invalid_options_are_rejected(option, says, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(tmp_path / "in.hdf5"), str(tmp_path / "out.hdf5"), *option])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_file_with_too_many_objects_is_rejected(tmp_path, monkeypatch):
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields())
    monkeypatch.setattr(structure, "_MAX_OBJECTS", 6)
    # The process that probes files does not see the changed limit.
    with (
        h5py.File(file) as opened,
        pytest.raises(kabuki_rlds.DamagedDataError, match="/: the file has more than 6 obj"),
    ):
        structure.check_structure(opened)


def test_demo_without_mujoco_names_the_remedy(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    assert main(["demo", str(tmp_path / "demo")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "the demo, which records MuJoCo's Hopper, needs gymnasium (" in line
    assert "pip install 'kabuki_rlds[environments]'" in line


FEATURES = {
    "a text feature": (
        tfds.features.Text(),
        "attribute 'features': is a Text, expected a FeaturesDict. Delete the attribute",
    ),
    "a tensor that TFDS cannot read back": (
        tfds.features.FeaturesDict(
            {"steps": tfds.features.Dataset({"more": tfds.features.Tensor(shape=(None, None), dtype=np.float32)})}
        ),
        "attribute 'features': field 'more': TFDS cannot read a tensor of unknown shape",
    ),
}


@pytest.mark.parametrize("case", FEATURES)
def test_features_attribute_that_is_not_rlds_is_rejected(case, tmp_path):
    features, says = FEATURES[case]
    attributes = {"features": json.dumps(features.to_json())}
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields() | handmade.index(), attributes)
    with pytest.raises(kabuki_rlds.KabukiError, match=says):
        kabuki_rlds.build(file, tmp_path / "d", name="x")


def test_invalid_tfds_build_config_is_rejected(tmp_path):
    with pytest.raises(kabuki_rlds.KabukiError, match="encode: 'gif' is neither 'png' nor 'jpeg'"):
        KabukiConfig(name="x", encode="gif")  # type: ignore[arg-type]

    class Builder(KabukiBuilder):
        BUILDER_CONFIGS = [KabukiConfig(name="no_files")]  # noqa: RUF012  # TFDS's attribute

    with pytest.raises(kabuki_rlds.KabukiError, match="no file to build is given: pass --config"):
        Builder(data_dir=tmp_path, config="no_files", version="1.0.0").download_and_prepare()


def test_info_must_be_a_list_of_names(tmp_path):
    with pytest.raises(kabuki_rlds.KabukiError, match=r"info: give a list of names, \['time'\]"):
        kabuki_rlds.record(Endless(), tmp_path / "x", info="time")


def no_split(info: dict) -> None:
    info["splits"] = []


def another_format(info: dict) -> None:
    info["fileFormat"] = "parquet"


@pytest.mark.parametrize(
    ("change", "says"), [(no_split, "dataset_info.json: lists no splits"), (another_format, "'parquet' cannot be read")]
)
def test_dataset_without_splits_or_of_another_format_is_rejected(
    change: Callable[[dict], None], says, dataset, tmp_path
):
    folder = Path(shutil.copytree(dataset("plain"), tmp_path / "copy"))
    info = json.loads((folder / "dataset_info.json").read_text())
    change(info)
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(kabuki_rlds.KabukiError, match=says):
        kabuki_rlds.convert(folder, tmp_path / "out.hdf5")


def test_dataset_without_steps_is_rejected(dataset, tmp_path):
    folder = Path(shutil.copytree(dataset("plain"), tmp_path / "copy"))
    features = json.loads((folder / "features.json").read_text())
    inner = features["featuresDict"]["features"]
    inner["stairs"] = inner.pop("steps")
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(kabuki_rlds.KabukiError, match="not an RLDS dataset: no feature 'steps'"):
        kabuki_rlds.convert(folder, tmp_path / "out.hdf5")


def test_dataset_without_a_field_that_determines_steps_is_rejected(dataset, tmp_path):
    folder = Path(shutil.copytree(dataset("plain"), tmp_path / "copy"))
    steps = tfds.features.Dataset({"nothing": tfds.features.Tensor(shape=(0,), dtype=np.float32)})
    (folder / "features.json").write_text(json.dumps(tfds.features.FeaturesDict({"steps": steps}).to_json()))
    fill = dict.fromkeys(("observation", "action", "reward", "discount", "is_terminal"), 0.0)
    for skip in (False, True):
        with pytest.raises(kabuki_rlds.KabukiError, match=f"{folder}: the number of steps is unknown"):
            kabuki_rlds.convert(folder, tmp_path / "out.hdf5", fill=fill, skip_bad_episodes=skip)


@pytest.mark.parametrize("kind", [tfds.features.Sequence, tfds.features.Dataset])
def test_unsupported_feature_nesting_is_named(kind, dataset, tmp_path):
    folder = Path(shutil.copytree(dataset("plain"), tmp_path / "copy"))
    features = tfds.builder_from_directory(folder).info.features
    steps = tfds.features.Dataset(
        {**features["steps"].feature, "more": {"inner": kind(tfds.features.Dataset({"x": np.int32}))}}
    )
    features = tfds.features.FeaturesDict({**features, "steps": steps})
    (folder / "features.json").write_text(json.dumps(features.to_json()))
    with pytest.raises(kabuki_rlds.KabukiError, match=f"{folder}: field 'more/inner': a Dataset inside a Sequence or"):
        kabuki_rlds.convert(folder, tmp_path / "out.hdf5")
