"""Options that cannot apply to the command or to the source are errors."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow as tf

import kabuki_rlds
from kabuki_rlds import KabukiError, build, compare, convert
from kabuki_rlds.cli.main import main
from kabuki_rlds.commands.export import export
from tests import handmade, layout_files
from tests.places import FIXTURES


def _log(folder: Path) -> Path:
    return shutil.copytree(FIXTURES / "acme_dqn_catch", folder / "log")


def _kabuki(folder: Path) -> Path:
    return handmade.write(folder / "in.hdf5", handmade.fields() | handmade.index())


@pytest.mark.parametrize("make", [_log, _kabuki, lambda folder: layout_files.minari(folder / "m.hdf5", [3])])
def test_data_dir_without_a_dataset_name_is_rejected(tmp_path, data_dir, make):
    source = make(tmp_path)
    for call in (
        lambda: convert(source, tmp_path / "out.hdf5", data_dir=data_dir),
        lambda: export(source, tmp_path / "out.hdf5", "robomimic", data_dir=data_dir),
    ):
        with pytest.raises(KabukiError, match=r"data_dir: no source is the name of a dataset in .*: .* is a path"):
            call()
    assert not (tmp_path / "out.hdf5").exists()


def test_data_dir_is_used_if_one_source_is_a_name(tmp_path, dataset, data_dir):
    dataset("plain")
    path = convert(dataset("plain"), tmp_path / "in.hdf5").path
    assert convert([path, "plain"], tmp_path / "out.hdf5", data_dir=data_dir).num_episodes == 20


def test_conform_requires_against(tmp_path, capsys):
    with pytest.raises(SystemExit) as e:
        main(["validate", str(_kabuki(tmp_path)), "--conform"])
    assert e.value.code == 2
    assert "--conform requires --against" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["validate", "inspect"])
@pytest.mark.parametrize("option", ["--split=test", "--data-dir=.", "--recipe=d4rl", "--assume=a=b"])
def test_options_that_cannot_apply_to_a_kabuki_file_are_rejected(tmp_path, capsys, command, option):
    assert main([command, str(_kabuki(tmp_path)), option]) == 1
    assert capsys.readouterr().err


# --- splits of sources without splits ---


@pytest.mark.parametrize("make", [_log, _kabuki])
def test_split_is_rejected_for_sources_without_splits(tmp_path, make):
    source = make(tmp_path)
    (tmp_path / "r.yaml").write_text("split: {train: first, val: second}\n")
    for call in (
        lambda: convert(source, tmp_path / "out.hdf5", split="first"),
        lambda: export(source, tmp_path / "out.hdf5", "robomimic", split="first"),
        lambda: compare(_kabuki(tmp_path), source, split="first"),
        lambda: build(source, tmp_path / "rlds", name="x", recipe=tmp_path / "r.yaml"),
    ):
        with pytest.raises(KabukiError, match="first"):
            call()


# --- images ---


def test_images_encoded_requires_encoded_images(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (4, 48, 64, 3), np.uint8)
    source = layout_files.aloha(tmp_path / "episode_0.hdf5", 4)
    says = r"images: the images of .* are stored as arrays \(observation/images/top\)"
    with pytest.raises(KabukiError, match=says) as e:
        convert(source, tmp_path / "out.hdf5", images="encoded", fill={"reward": 0})
    # The recipe suggested by the error encodes the images.
    (tmp_path / "r.yaml").write_text(re.findall("`(.*?)`", str(e.value))[0])
    convert(source, tmp_path / "out.hdf5", recipe=tmp_path / "r.yaml", fill={"reward": 0})
    with h5py.File(source) as theirs, h5py.File(tmp_path / "out.hdf5") as ours:
        assert ours["observation/images/top"].attrs["file_format"] == "png"
        made = tf.io.decode_png(ours["observation/images/top"][2].tobytes()).numpy()
        np.testing.assert_array_equal(made, theirs["observations/images/top"][2])
    files = [tf.io.encode_png(picture).numpy() for picture in pictures]
    source = layout_files.aloha(tmp_path / "episode_1.hdf5", 4, files)
    assert convert(source, tmp_path / "files.hdf5", images="encoded", fill={"reward": 0}).num_steps


# --- assumptions ---


@pytest.mark.parametrize(
    ("make", "assume", "why"),
    [
        (lambda path: layout_files.robosuite(path, {0: 3}), {"dones": "reward"}, "'dones' says nothing of files laid"),
        (lambda path: _without(path, "dones"), {"dones": "reward"}, "dones=reward cannot apply, since no demonstr"),
        (lambda path: _without(path, "next_obs"), {"next_obs": "keep"}, "next_obs=keep cannot apply, since no"),
        (lambda path: _without(path, "x"), {"last_observation": "repeat"}, "cannot apply, since next_obs have the"),
        (lambda path: _d4rl(path, next_observations=np.zeros((4, 3), np.float32)), {"last_observation": "repeat"},
         "last_observation=repeat cannot apply, since next_observations have"),
        (lambda path: _d4rl(path, timeouts=None), {"timeouts": "terminal", "max_episode_steps": "2"},
         "timeouts=terminal cannot apply, since there are no timeouts"),
        (lambda path: layout_files.libero(path, {0: 3}, "open it"), {"instruction": "fold"},
         "instruction=fold cannot apply, since the file has the instruction 'open it'"),
    ],
)  # fmt: skip
def test_assumptions_that_cannot_apply_are_rejected(tmp_path, make, assume, why):
    source = make(tmp_path / "in.hdf5")
    with pytest.raises(KabukiError, match=why):
        convert(source, tmp_path / "out.hdf5", assume=assume, fill={"reward": 0})
    # A recipe may contain the assumption for other files.
    if "instruction" not in assume and "says nothing" not in why:
        pairs = ", ".join(f"{name}: {value}" for name, value in assume.items())
        (tmp_path / "r.yaml").write_text(f"assume: {{{pairs}}}\n")
        convert(source, tmp_path / "out.hdf5", recipe=tmp_path / "r.yaml", fill={"reward": 0})


def _without(path: Path, name: str) -> Path:
    """Writes a robomimic file whose demonstrations do not have the dataset or group `name`."""
    layout_files.robomimic(path, {0: 3, 1: 2})
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            if name in demo:
                del demo[name]
    return path


def _d4rl(path: Path, **arrays: object) -> Path:
    ends = np.array([0, 1, 0, 1], bool)
    made = {"terminals": np.zeros(4, bool), "timeouts": ends, **arrays}
    return layout_files.d4rl(path, **{name: value for name, value in made.items() if value is not None})


def test_an_assumption_may_apply_to_only_one_of_the_files(tmp_path):
    _without(tmp_path / "demo_0.hdf5", "next_obs")
    layout_files.robomimic(tmp_path / "demo_1.hdf5", {0: 3})
    for folder in (tmp_path / "demo_*.hdf5",):
        assert convert(folder, tmp_path / "out.hdf5", assume={"last_observation": "repeat"}).num_steps == 3 + 2 + 2 + 4


# --- options without effect ---


def test_options_without_effect_are_accepted(tmp_path, dataset):
    source = dataset("plain")
    convert(
        source, tmp_path / "a.hdf5", images="encoded", fill={"reward": 0}, conform=True, skip_bad_episodes=True,
        resume=True, overwrite=True,
    )  # fmt: skip
    assert kabuki_rlds.validate(tmp_path / "a.hdf5") == []
    build(tmp_path / "a.hdf5", tmp_path / "rlds", name="x", encode="jpeg", fill={"reward": 0}, overwrite=True)
    source = handmade.write(tmp_path / "k.hdf5", handmade.fields((3, 5), (True, False)))
    export(source, tmp_path / "b.hdf5", "robomimic", fill={"reward": 0}, overwrite=True)


def test_build_writes_to_out_and_looks_up_names_in_data_dir(tmp_path, dataset, data_dir):
    dataset("plain")
    built = build("plain", tmp_path / "rlds", name="x", data_dir=data_dir, split="train[:2]")
    assert built.path.parent.parent == tmp_path / "rlds"
    assert built.splits == {"train": 2}


def test_deprecated_arguments_of_build_work_with_a_warning(tmp_path, capsys):
    file = handmade.write(tmp_path / "k.hdf5", handmade.fields())
    with pytest.warns(DeprecationWarning, match="use out='.*a'") as caught:
        assert build(file, data_dir=tmp_path / "a", name="x").path.is_relative_to(tmp_path / "a")
    assert caught[0].filename == __file__
    with pytest.warns(DeprecationWarning, match="images='jpeg' is deprecated; use encode='jpeg'"):
        build(file, tmp_path / "b", name="x", images="jpeg")
    with pytest.raises(kabuki_rlds.InvalidArgumentError, match="out is required: the parent folder of the dataset"):
        build(file)
    assert main(["build", str(file), "--data-dir", str(tmp_path / "c"), "--name", "x", "--images", "png"]) == 0
    said = capsys.readouterr().err
    assert "warning: --data-dir as the folder for the dataset is deprecated; use --out " in said
    assert "warning: --images png is deprecated; use --encode png" in said
    with pytest.raises(SystemExit):
        main(["build", str(file)])
    assert "required: --out" in capsys.readouterr().err


def test_deprecated_result_attributes_work_with_a_warning(tmp_path):
    result = convert(handmade.write(tmp_path / "f.hdf5", handmade.fields()), tmp_path / "k.hdf5")
    with pytest.warns(DeprecationWarning, match="Conversion.steps is deprecated; use num_steps") as caught:
        assert result.steps == result.num_steps == 8
    assert caught[0].filename == __file__
    with pytest.warns(DeprecationWarning):
        assert kabuki_rlds.inspect(tmp_path / "k.hdf5").episodes == 3
