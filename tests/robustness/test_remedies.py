"""The remedies that messages suggest work and lose no data."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

import kabuki_rlds
from kabuki_rlds import KabukiError, build, convert
from kabuki_rlds.commands.export import export
from tests import datasets, handmade, layout_files, tfrecords
from tests.places import FIXTURES

_ROWS = sum(handmade.LENGTHS)


def quoted(error: pytest.ExceptionInfo[KabukiError]) -> list[str]:
    """Returns the parts of a message that are in backticks."""
    return str(error.value).split("`")[1::2]


# --- required fields under another name ---


@pytest.mark.parametrize(
    ("missing", "name"),
    [("observation", "obs"), ("observation", "states"), ("action", "actions"), ("reward", "rewards")],
)
@pytest.mark.parametrize("inner", ["", "/arm"])
def test_remedy_for_a_field_under_another_name_is_renaming(tmp_path, missing, name, inner):
    fields = handmade.fields()
    fields[name + inner] = fields.pop(missing)
    source = handmade.write(tmp_path / "in.hdf5", fields)
    with pytest.raises(KabukiError, match=f"no '{missing}'; if it is '{name}', rename it with a recipe") as e:
        convert(source, tmp_path / "out.hdf5")
    assert "fill=" not in str(e.value)
    (recipe,) = quoted(e)
    (tmp_path / "r.yaml").write_text(recipe)
    convert(source, tmp_path / "out.hdf5", recipe=tmp_path / "r.yaml")
    with h5py.File(source) as theirs, h5py.File(tmp_path / "out.hdf5") as ours:
        np.testing.assert_array_equal(ours[missing + inner][:], theirs[name + inner][:])
        assert name not in ours


@pytest.mark.parametrize("dtype", [bool, np.uint8])
def test_remedy_for_flags_under_another_name_is_renaming(tmp_path, dtype):
    fields = handmade.fields()
    del fields["discount"]
    fields["done"] = fields.pop("is_terminal").astype(dtype)
    source = handmade.write(tmp_path / "in.hdf5", fields)
    with pytest.raises(KabukiError, match="no 'is_terminal'; if it is 'done', rename it with a recipe") as e:
        build(source, tmp_path / "rlds", name="x", fill={"reward": 0})
    (tmp_path / "r.yaml").write_text(quoted(e)[0])
    convert(source, tmp_path / "out.hdf5", recipe=tmp_path / "r.yaml")
    assert kabuki_rlds.inspect(tmp_path / "out.hdf5").terminal == sum(handmade.TERMINAL)


def test_remedy_for_a_missing_field_is_fill(tmp_path):
    fields = handmade.fields()
    for name in ("observation", "action", "reward", "is_terminal", "discount"):
        del fields[name]
    source = handmade.write(tmp_path / "in.hdf5", fields)
    fill: dict[str, float] = {}
    while len(fill) < 4:
        with pytest.raises(KabukiError, match="fill=") as e:
            convert(source, tmp_path / "out.hdf5", fill=fill)
        suggested = re.search("fill=({.*?})", str(e.value))
        assert suggested is not None
        fill |= eval(suggested[1])
    assert convert(source, tmp_path / "out.hdf5", fill=fill).num_steps == _ROWS


# --- files that are there in place of data ---

LFS = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
INSTEAD = {
    "a Git LFS pointer": (LFS, "a Git LFS pointer; run `git lfs pull`"),
    "a git-annex pointer": (b"/annex/objects/MD5E-s1--abc.hdf5\n", "a git-annex pointer; run `git annex get .`"),
    "an HTML page": (b"\n<!DOCTYPE html>\n<html><title>Log in</title></html>", "a web page; download the data again"),
    "an XML error": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page; download"),
    "a text": (b"Invalid username or password.", "text that begins with 'Invalid username or password.'"),
    "a gzip file": (gzip.compress(b"x" * 1000), "a gzip file; decompress it first"),
}


def _hdf5(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields())
    yield file, file
    for number in range(2):
        layout_files.aloha(tmp_path / f"episode_{number}.hdf5", 3)
    yield tmp_path / "episode_*.hdf5", tmp_path / "episode_1.hdf5"


def _rlds(tmp_path: Path, dataset: Callable[[str], Path]) -> Iterator[tuple[Path, Path]]:
    for name in ("plain", "array_record"):
        folder = shutil.copytree(dataset(name), tmp_path / name / "1.0.0")
        yield folder, sorted(folder.glob("*train*"))[1]
        for other in ("features.json", "dataset_info.json"):
            yield folder, folder / other


def _log(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    log = shutil.copytree(FIXTURES / "acme_dqn_catch", tmp_path / "log")
    yield log, next(log.rglob("steps.riegeli"))
    yield log, next(log.rglob("metadata.riegeli"))


def _minari(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    folder = layout_files.minari_arrow(tmp_path / "minari", [3, 4])
    yield folder, next((folder / "data/1").glob("*.parquet"))
    yield folder, folder / "data/metadata.json"


@pytest.mark.parametrize("kind", INSTEAD)
def test_error_about_a_pointer_or_text_file_does_not_suggest_copying_it_again(tmp_path, dataset, kind):
    content, says = INSTEAD[kind]
    for source, file in (*_hdf5(tmp_path), *_rlds(tmp_path, dataset), *_log(tmp_path), *_minari(tmp_path)):
        if file.suffix == ".json" and kind in ("a text", "a gzip file"):
            continue  # JSON is text itself, and TFDS says that it is none.
        kept = file.read_bytes()
        # A shard with the same number of bytes passes the size check.
        for padded in (content, content + b"\n" * max(len(kept) - len(content), 0)):
            file.write_bytes(padded)
            with pytest.raises(KabukiError, match=f"{re.escape(file.name)}: .*but {says}") as e:
                convert(source, tmp_path / "out.hdf5")
            assert "copy" not in str(e.value) and "skip_bad" not in str(e.value)
        file.write_bytes(kept)


def test_broken_git_annex_link_is_reported(tmp_path, dataset):
    folder = shutil.copytree(dataset("plain"), tmp_path / "plain" / "1.0.0")
    shard = sorted(folder.glob("*train*"))[1]
    shard.unlink()
    shard.symlink_to("../../.git/annex/objects/aB/1d/MD5E-s1--abc/MD5E-s1--abc")
    with pytest.raises(KabukiError, match=f"{shard.name}: not the data, but a git-annex pointer; run `git annex get"):
        convert(folder, tmp_path / "out.hdf5")


def test_shard_that_is_a_git_lfs_pointer_is_skipped_and_reported(tmp_path, dataset):
    folder = shutil.copytree(dataset("plain"), tmp_path / "plain" / "1.0.0")
    sorted(folder.glob("*train*"))[1].write_bytes(LFS)
    result = convert(folder, tmp_path / "out.hdf5", skip_bad_episodes=True)
    (loss,) = result.skipped
    assert loss.why.startswith("not the data, but a Git LFS pointer") and result.num_episodes + loss.count == 10


# --- RLDS datasets that lack shards, or whose features are not theirs ---


@pytest.mark.parametrize("gone", [[0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]])
def test_suggested_split_reads_the_existing_shards(tmp_path, dataset, gone):
    folder = shutil.copytree(dataset("plain"), tmp_path / "plain" / "1.0.0")
    shards = sorted(folder.glob("*train*"))
    counts = [len(tfrecords.read(shard)) for shard in shards]
    for number in gone:
        shards[number].unlink()
    with pytest.raises(KabukiError, match="this shard is missing; copy the whole dataset, then run again") as e:
        convert(folder, tmp_path / "out.hdf5")
    found = re.search(r"split='(.*)'", str(e.value))
    if len(gone) == 3:
        assert found is None
        return
    assert convert(folder, tmp_path / "out.hdf5", split=found[1]).num_episodes == sum(counts) - sum(  # type: ignore[index]
        counts[n] for n in gone
    )


def test_features_are_blamed_if_every_record_fails_on_one_field(tmp_path, dataset):
    folder = shutil.copytree(dataset("plain"), tmp_path / "plain" / "1.0.0")
    path = folder / "features.json"
    text = path.read_text()
    # A position has 3 numbers per step.
    assert '"3"' in text
    path.write_text(text.replace('"3"', '"7"'))
    says = r"record 0: field 'observation/position': .*; all \d other records that were tried fail too"
    with pytest.raises(KabukiError, match=says) as e:
        convert(folder, tmp_path / "out.hdf5")
    assert "copy" not in str(e.value) and "skip_bad" not in str(e.value)
    path.write_text(text)
    assert convert(folder, tmp_path / "out.hdf5").num_episodes == 10


def test_single_failing_record_is_reported_as_damaged(tmp_path, dataset):
    folder = shutil.copytree(dataset("plain"), tmp_path / "plain" / "1.0.0")
    shard = sorted(folder.glob("*train*"))[1]
    tfrecords.edit(shard, 1, lambda example: example.features.feature["steps/reward"].float_list.value.pop())
    with pytest.raises(
        KabukiError, match="copy this shard again, or convert with skip_bad_episodes=True, which leaves it"
    ):
        convert(folder, tmp_path / "out.hdf5")
    assert convert(folder, tmp_path / "out.hdf5", skip_bad_episodes=True).num_episodes == 9


def test_remedy_for_an_unlisted_shard_is_moving_it(tmp_path, dataset):
    folder = shutil.copytree(dataset("plain"), tmp_path / "plain" / "1.0.0")
    shard = sorted(folder.glob("*train*"))[0]
    extra = shutil.copy(shard, folder / shard.name.replace("00000-of-00003", "00007-of-00009"))
    with pytest.raises(KabukiError, match=r"dataset_info.json does not list this shard; move it to another folder"):
        convert(folder, tmp_path / "out.hdf5")
    shutil.move(extra, tmp_path)
    assert convert(folder, tmp_path / "out.hdf5").num_episodes == 10


# --- exports ---


def _exported(tmp_path: Path, source: Path, layout: str, says: str) -> None:
    """Exports with the recipe that the error without it suggests."""
    with pytest.raises(KabukiError, match=says) as e:
        export(source, tmp_path / "without.hdf5", layout)  # type: ignore[arg-type]
    recipe = tmp_path / f"{layout}.yaml"
    recipe.write_text(quoted(e)[-1])
    export(source, tmp_path / f"{layout}.hdf5", layout, recipe=recipe)  # type: ignore[arg-type]


def test_suggested_recipe_joins_a_group_and_keeps_its_images(tmp_path):
    fields = handmade.fields((3, 5), (True, False))
    for name in ("action", "observation"):
        fields |= {f"{name}/{part}": np.ones((_ROWS, 2)) for part in ("arm", "hand 1")}
    fields["observation/camera"] = np.arange(_ROWS * 48, dtype=np.uint8).reshape(_ROWS, 4, 4, 3)
    del fields["action"], fields["observation"]
    source = handmade.write(tmp_path / "in.hdf5", fields)
    _exported(tmp_path, source, "robomimic", "'action' is a dict, and robomimic takes one array")
    (tmp_path / "action.yaml").write_text((tmp_path / "robomimic.yaml").read_text())
    convert(source, tmp_path / "one_action.hdf5", recipe=tmp_path / "action.yaml")
    _exported(tmp_path, tmp_path / "one_action.hdf5", "d4rl", "'observation' is a dict, and D4RL takes one array")
    with h5py.File(tmp_path / "d4rl.hdf5") as file:
        assert (file["observations"].shape[1:], file["actions"].shape[1:]) == ((4,), (4,))
        assert file["observation_camera"].shape[1:] == (4, 4, 3)


def test_suggested_recipe_decodes_image_files(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (4, 48, 64, 3), np.uint8)
    files = [tf.io.encode_png(picture).numpy() for picture in pictures]
    source = layout_files.aloha(tmp_path / "episode_0.hdf5", 4, files)
    convert(source, tmp_path / "in.hdf5", images="encoded", fill={"reward": 0})
    _exported(tmp_path, tmp_path / "in.hdf5", "robomimic", "'observation/images/top', encoded image .* has no form in")
    with h5py.File(tmp_path / "robomimic.hdf5") as file:
        np.testing.assert_array_equal(file["data/demo_0/obs/images/top"][:], pictures)


def test_suggested_recipe_renames_next_obs(tmp_path):
    source = layout_files.robomimic(tmp_path / "in.hdf5", {0: 3, 1: 4})
    convert(source, tmp_path / "k.hdf5", assume={"next_obs": "keep"})
    _exported(tmp_path, tmp_path / "k.hdf5", "robomimic", "'next_obs/.*': next_obs are made anew here")
    with h5py.File(source) as theirs, h5py.File(tmp_path / "robomimic.hdf5") as ours:
        np.testing.assert_array_equal(
            ours["data/demo_0/stored_next_obs/eef_pos"][:], theirs["data/demo_0/next_obs/eef_pos"][:]
        )


def test_suggested_recipe_keeps_two_fields_with_one_name(tmp_path):
    source = handmade.write(
        tmp_path / "in.hdf5", handmade.fields((3, 5), (True, False)) | {"actions": np.arange(_ROWS)}
    )
    _exported(tmp_path, source, "d4rl", "'action' and 'actions' would both be 'actions' in D4RL's layout")
    with h5py.File(tmp_path / "d4rl.hdf5") as file:
        assert "other_name" in file


# --- other remedies ---


def test_suggested_recipe_renames_rlds_fields_with_invalid_hdf5_names(tmp_path):
    numbers = {name: tfds.features.Scalar(np.float32) for name in ("observation", "action", "reward", "discount")}
    flags = dict.fromkeys(("is_first", "is_last", "is_terminal"), np.bool_)
    features = {
        "steps": tfds.features.Dataset({**numbers, **flags, "episodes": np.int64, "companion": {"x": np.int64}})
    }
    step = {**dict.fromkeys(numbers, 1.0), **dict.fromkeys(flags, True), "episodes": 7, "companion": {"x": 8}}
    made = datasets.Recipe("reserved", tfds.features.FeaturesDict(features), {"train": [{"steps": [step]}]})
    source = datasets.write(made, tmp_path)
    for renamed in ("", "  task_episodes: {from: episodes}\n"):
        (tmp_path / "r.yaml").write_text(f"steps:\n  reward:\n{renamed}")
        with pytest.raises(
            KabukiError, match=r"reserves the name '(episodes|companion)'; rename the field with a recipe"
        ):
            convert(source, tmp_path / "out.hdf5", recipe=tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text("steps:\n  task_episodes: {from: episodes}\n  mate: {from: companion}\n")
    convert(source, tmp_path / "out.hdf5", recipe=tmp_path / "r.yaml")
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert (file["task_episodes"][:].tolist(), file["mate/x"][:].tolist()) == ([7], [8])


@pytest.mark.parametrize("name", ["steps", "steps/more"])
def test_suggested_recipe_renames_episode_fields_invalid_in_rlds(tmp_path, name):
    fields = handmade.fields() | handmade.index() | {f"episodes/metadata/{name}": np.arange(3)}
    source = handmade.write(tmp_path / "in.hdf5", fields)
    with pytest.raises(
        KabukiError, match="RLDS reserves the name 'steps' for the steps; rename the field with a recipe"
    ):
        build(source, tmp_path / "rlds", name="x")
    (tmp_path / "r.yaml").write_text("episode: {counts: {from: steps}}\n")
    built = build(source, tmp_path / "rlds", name="x", recipe=tmp_path / "r.yaml")
    episodes = tfds.builder_from_directory(str(built.path)).as_dataset(split="train")
    counts = [episode["counts"] for episode in episodes]
    assert [int(each["more"] if isinstance(each, dict) else each) for each in counts] == [0, 1, 2]


def test_splits_in_both_recipe_and_sources_are_rejected(tmp_path):
    source = layout_files.robomimic(tmp_path / "demo.hdf5", {0: 3, 1: 2}, masks={"train": [0], "valid": [1]})
    (tmp_path / "r.yaml").write_text("split: {train: train, val: valid}\n")
    with pytest.raises(KabukiError, match=r"both the recipe \(train, val\) and the sources \(.*\) define splits"):
        build({"all_of_it": source}, tmp_path / "rlds", name="x", recipe=tmp_path / "r.yaml")
    assert build(source, tmp_path / "rlds", name="x", recipe=tmp_path / "r.yaml").splits == {"train": 1, "val": 1}
    assert build({"everything": source}, tmp_path / "other", name="x").splits == {"everything": 2}


def test_remedy_for_exporting_several_datasets_is_convert(tmp_path):
    for number in range(2):
        ends = np.array([0, 0, 1], bool)
        layout_files.d4rl(tmp_path / f"hopper_{number}.hdf5", terminals=ends, timeouts=np.zeros(3, bool))
    with pytest.raises(KabukiError, match="contains several datasets; merge them with `convert` first"):
        export(tmp_path / "hopper_*.hdf5", tmp_path / "demo.hdf5", "robomimic")
    convert(tmp_path / "hopper_*.hdf5", tmp_path / "all.hdf5")
    assert export(tmp_path / "all.hdf5", tmp_path / "demo.hdf5", "robomimic").num_steps == 6


def test_remedy_for_float64_values_outside_the_stated_features(tmp_path):
    fields = handmade.fields()
    fields["reward"] += 0.1
    kinds = {
        "observation": tfds.features.Tensor(shape=(2,), dtype=np.float32),
        "action": np.int32,
        "reward": np.float64,
    }
    kinds |= {"discount": np.float32, **dict.fromkeys(("is_first", "is_last", "is_terminal"), np.bool_)}
    features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(kinds)})
    source = handmade.write(tmp_path / "in.hdf5", fields, {"features": json.dumps(features.to_json())})
    with pytest.raises(KabukiError, match="give the feature encoding='bytes', or delete the attribute 'features'"):
        build(source, tmp_path / "rlds", name="x")
    with h5py.File(source, "a") as file:
        del file.attrs["features"]
    built = build(source, tmp_path / "rlds", name="x")
    (first, *_) = tfds.builder_from_directory(str(built.path)).as_dataset(split="train")
    np.testing.assert_array_equal([step["reward"] for step in first["steps"].as_numpy_iterator()], fields["reward"][:3])
