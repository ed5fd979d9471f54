"""Empty episodes are always left out, and damaged episodes on request, for every kind of source."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

import kabuki_rlds
from kabuki_rlds import KabukiError
from kabuki_rlds.cli.main import main
from kabuki_rlds.images import decode_file, png
from tests import layout_files
from tests.formats.test_kabuki_source import steps, write
from tests.places import CASES


def skipped(path: Path) -> list[tuple[str, int]]:
    """Returns (file name, episode number) of the left-out episodes that a Kabuki file lists."""
    with h5py.File(path) as f:
        return [(Path(loss["path"]).name, loss["record"]) for loss in json.loads(f.attrs.get("skipped", "[]"))]


def damage(path: Path, dataset: str, row: int) -> None:
    """Damages the chunk of a dataset that contains the given row."""
    with h5py.File(path) as f:
        at = f[dataset].id.get_chunk_info_by_coord((row, *[0] * (f[dataset].ndim - 1)))
    with open(path, "r+b") as file:
        file.seek(at.byte_offset + at.size // 2)
        file.write(b"\xff" * max(8, at.size // 4))


def in_chunks(path: Path, dataset: str) -> None:
    with h5py.File(path, "a") as f:
        values = f[dataset][:]
        del f[dataset]
        shape = (min(2, len(values)), *values.shape[1:])
        f.create_dataset(dataset, data=values, chunks=shape, compression="gzip", fletcher32=True)


# --- empty ones ---


def empty_robomimic(folder: Path) -> Path:
    path = layout_files.robomimic(folder / "demo.hdf5", {0: 3, 1: 4, 2: 5})
    with h5py.File(path, "a") as f:
        del f["data/demo_1"]
        f.create_group("data/demo_1").attrs["num_samples"] = 0
        f["data"].attrs["total"] = 8
    return path


def empty_robosuite(folder: Path) -> Path:
    path = layout_files.robosuite(folder / "demo.hdf5", {0: 3, 1: 4, 2: 5})
    with h5py.File(path, "a") as f:
        for name in ("states", "actions"):
            values = f[f"data/demo_1/{name}"][:0]
            del f[f"data/demo_1/{name}"]
            f[f"data/demo_1/{name}"] = values
    return path


def empty_aloha(folder: Path) -> Path:
    for i in range(3):
        layout_files.aloha(folder / f"episode_{i}.hdf5", 3)
    with h5py.File(folder / "episode_1.hdf5", "w") as f:
        f["action"], f["observations/qpos"] = np.zeros((0, 14), np.float32), np.zeros((0, 14))
        f["observations/images/top"] = np.zeros((0, 48, 64, 3), np.uint8)
    return folder


def empty_minari(folder: Path) -> Path:
    path = layout_files.minari(folder / "main_data.hdf5", [3, 4, 5])
    with h5py.File(path, "a") as f:
        del f["episode_1"]
        group = f.create_group("episode_1")
        group.attrs["total_steps"] = 0
        group["observations/joints"] = np.zeros((1, 3))
        group["terminations"] = np.zeros(0, bool)
    return path


@pytest.mark.parametrize("make", [empty_robomimic, empty_robosuite, empty_aloha, empty_minari])
def test_empty_episode_is_skipped_and_reported(tmp_path, make, caplog):
    (tmp_path / "in").mkdir()
    source = make(tmp_path / "in")
    fill = {"reward": 0.0} if make in (empty_robosuite, empty_aloha) else {}
    result = kabuki_rlds.convert(source, tmp_path / "out.hdf5", fill=fill)
    assert result.num_episodes == 2
    at = ("episode_1.hdf5", 0) if make is empty_aloha else (source.name, 1)
    assert skipped(result.path) == [at]
    assert "so no steps; left out" in caplog.text
    assert kabuki_rlds.compare(result.path, source) == []
    assert kabuki_rlds.validate(result.path) == []


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the shared inputs")
def test_isaac_lab_file_with_an_empty_demonstration(tmp_path, capsys):
    source = CASES / "isaaclab_empty_demo" / "dataset.hdf5"
    assert main(["convert", str(source), str(tmp_path / "out.hdf5"), "--fill", "reward=0"]) == 0
    err = capsys.readouterr().err
    assert "data/demo_2: no actions, so no steps; left out" in err and "1 episode was left out" in err
    with h5py.File(tmp_path / "out.hdf5") as f:
        assert f["episodes/length"][:].tolist() == [8, 6]


def test_file_with_only_empty_episodes_is_rejected(tmp_path):
    path = layout_files.robomimic(tmp_path / "demo.hdf5", {0: 3, 1: 4})
    with h5py.File(path, "a") as f:
        for name in list(f["data"]):
            del f[f"data/{name}"]
            f.create_group(f"data/{name}")
        f["data/demo_0/actions"] = np.zeros((0, 7))
        f["data"].attrs["total"] = 0
    with pytest.raises(KabukiError, match=r"none of the 2 episodes can be read; the first: .*no actions, so no steps"):
        kabuki_rlds.convert(path, tmp_path / "out.hdf5")


# --- damaged ones ---


def damaged_robomimic(folder: Path) -> Path:
    path = layout_files.robomimic(folder / "demo.hdf5", {0: 6, 1: 6, 2: 6}, next_obs=False)
    in_chunks(path, "data/demo_1/actions")
    damage(path, "data/demo_1/actions", 4)
    return path


def robomimic_with_rows_missing(folder: Path) -> Path:
    path = layout_files.robomimic(folder / "demo.hdf5", {0: 6, 1: 6, 2: 6}, next_obs=False)
    with h5py.File(path, "a") as f:
        values = f["data/demo_1/obs/eef_pos"][:4]
        del f["data/demo_1/obs/eef_pos"]
        f["data/demo_1/obs/eef_pos"] = values
    return path


def truncated_aloha(folder: Path) -> Path:
    for i in range(3):
        layout_files.aloha(folder / f"episode_{i}.hdf5", 3)
    data = (folder / "episode_1.hdf5").read_bytes()
    (folder / "episode_1.hdf5").write_bytes(data[: len(data) // 2])
    return folder


def damaged_minari(folder: Path) -> Path:
    path = layout_files.minari(folder / "main_data.hdf5", [6, 6, 6])
    in_chunks(path, "episode_1/rewards")
    damage(path, "episode_1/rewards", 3)
    return path


def damaged_minari_table(folder: Path) -> Path:
    path = layout_files.minari_arrow(folder, [6, 6, 6])
    (table,) = (path / "data" / "1").glob("*.parquet")
    table.write_bytes(table.read_bytes()[:-40])
    return path


def damaged_d4rl(folder: Path) -> Path:
    ends = np.isin(np.arange(18), [5, 11, 17])
    path = layout_files.d4rl(folder / "d4rl.hdf5", terminals=ends, timeouts=np.zeros(18, bool))
    in_chunks(path, "observations")
    damage(path, "observations", 8)
    return path


def damaged_d4rl_with_next(folder: Path) -> Path:
    ends = np.isin(np.arange(18), [5, 11, 17])
    seen = np.random.default_rng(0).normal(size=(19, 3)).astype(np.float32)
    path = layout_files.d4rl(
        folder / "d4rl.hdf5", terminals=ends, timeouts=~ends & False, observations=seen[:-1], next_observations=seen[1:]
    )
    in_chunks(path, "next_observations")
    damage(path, "next_observations", 8)
    return path


def damaged_kabuki(folder: Path) -> Path:
    columns = {name: np.concatenate([steps(6)[name]] * 3) for name in steps(6)}
    path = write(folder / "k.hdf5", columns | {"state": np.random.default_rng(0).normal(size=(18, 4))})
    in_chunks(path, "state")
    damage(path, "state", 8)
    return path


DAMAGED: list[Callable[[Path], Path]] = [
    *(damaged_robomimic, robomimic_with_rows_missing, truncated_aloha, damaged_minari, damaged_minari_table),
    *(damaged_d4rl, damaged_d4rl_with_next, damaged_kabuki),
]


@pytest.mark.parametrize("make", DAMAGED)
def test_skip_bad_episodes_leaves_out_a_damaged_episode(tmp_path, make, caplog):
    (tmp_path / "in").mkdir()
    source = make(tmp_path / "in")
    fill = {"reward": 0.0} if make is truncated_aloha else {}
    with pytest.raises(KabukiError):
        kabuki_rlds.convert(source, tmp_path / "out.hdf5", fill=fill)
    assert not (tmp_path / "out.hdf5").exists()
    result = kabuki_rlds.convert(source, tmp_path / "out.hdf5", fill=fill, skip_bad_episodes=True)
    assert result.num_episodes == 2
    (loss,) = skipped(result.path)
    assert loss[1] == (0 if make is truncated_aloha else 1)
    assert "left out" in caplog.text
    assert kabuki_rlds.validate(result.path) == []
    assert kabuki_rlds.compare(result.path, source) == []
    built = kabuki_rlds.build(source, tmp_path / "data", name="x", fill=fill, skip_bad_episodes=True)
    assert built.num_episodes == 2


@pytest.mark.parametrize("make", [damaged_robomimic, damaged_d4rl, damaged_kabuki, damaged_minari])
def test_source_with_only_damaged_episodes_is_rejected(tmp_path, make):
    (tmp_path / "in").mkdir()
    path = make(tmp_path / "in")
    with h5py.File(path) as f:
        names: list[str] = []
        f.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) and item.chunks else None)
    (damaged,) = names
    for other in {damaged.replace("_1/", f"_{i}/") for i in range(3)}:
        if other != damaged:
            in_chunks(path, other)
        with h5py.File(path) as f:
            rows = len(f[other])
        for row in range(0, rows, 2):
            damage(path, other, row)
    with pytest.raises(KabukiError, match="none of the 3 episodes can be read; the first: "):
        kabuki_rlds.convert(path, tmp_path / "out.hdf5", skip_bad_episodes=True)
    assert not (tmp_path / "out.hdf5").exists()


def test_skip_bad_episodes_leaves_out_a_damaged_file(tmp_path):
    good, bad = (write(tmp_path / f"{name}.hdf5", steps(4)) for name in ("good", "bad"))
    bad.write_bytes(bad.read_bytes()[:300])
    result = kabuki_rlds.convert([bad, good], tmp_path / "out.hdf5", skip_bad_episodes=True)
    assert (result.num_episodes, skipped(result.path)) == (1, [("bad.hdf5", 0)])
    with pytest.raises(KabukiError, match=r"bad.hdf5: "):
        kabuki_rlds.convert(bad, tmp_path / "other.hdf5", skip_bad_episodes=True)
    # Other errors are still raised.
    with pytest.raises(KabukiError, match="no split 'val'"):
        kabuki_rlds.convert([good, good], tmp_path / "other.hdf5", split="val", skip_bad_episodes=True)


def test_an_assumption_that_cannot_apply_is_not_taken_for_damage(tmp_path):
    ends = np.array([0, 0, 1, 0, 0, 1], bool)
    good = layout_files.d4rl(tmp_path / "good.hdf5", terminals=ends, timeouts=np.zeros(6, bool))
    bad = layout_files.d4rl(tmp_path / "bad.hdf5", terminals=ends)
    with pytest.raises(kabuki_rlds.InvalidArgumentError, match=r"bad\.hdf5: .*timeouts=terminal cannot apply"):
        kabuki_rlds.convert([good, bad], tmp_path / "o.hdf5", assume={"timeouts": "terminal"}, skip_bad_episodes=True)


def test_a_missing_package_is_not_taken_for_damage(tmp_path, monkeypatch):
    """Only the images of the second file need TensorFlow."""
    paths = [write(tmp_path / f"{name}.hdf5", steps(4)) for name in ("without", "with")]
    images = [png.file(np.full((4, 4, 3), value, np.uint8)) for value in (1, 2)]
    for path, image in zip(paths, images, strict=True):
        with h5py.File(path, "a") as file:
            file["image"] = np.array([image] * len(file["reward"]), "S")
    decode = decode_file._decode_png

    def not_installed(*_, **__):
        raise kabuki_rlds.MissingDependencyError("decoding needs tensorflow")

    monkeypatch.setattr(decode_file, "require", not_installed)
    monkeypatch.setattr(
        decode_file, "_decode_png", lambda file, *rest: decode(file, *rest) if file == images[0] else None
    )
    with pytest.raises(kabuki_rlds.MissingDependencyError, match=r"with\.hdf5: field 'image': decoding needs"):
        kabuki_rlds.convert(paths, tmp_path / "o.hdf5", images="arrays", skip_bad_episodes=True)


def test_recipe_error_names_the_file_and_the_episode(tmp_path):
    paths = [layout_files.robomimic(tmp_path / f"{name}.hdf5", {0: 3, 1: 3}, next_obs=False) for name in "ab"]
    for i, path in enumerate(paths):
        with h5py.File(path, "a") as f:
            for demo in (0, 1):
                f[f"data/demo_{demo}"].attrs["task"] = "odd" if (i, demo) == (1, 1) else "task 7"
    recipe = tmp_path / "r.yaml"
    recipe.write_text("steps:\n  number: {from: attributes/task, match: 'task (.*)'}\n")
    with pytest.raises(KabukiError, match=rf"r.yaml:2: number: {paths[1]}: data/demo_1: "):
        kabuki_rlds.convert(paths, tmp_path / "out.hdf5", recipe=recipe)


def test_error_for_all_files_names_the_first_and_the_last(tmp_path):
    for i in range(4):
        layout_files.aloha(tmp_path / f"episode_{i}.hdf5", 3)
    with pytest.raises(
        KabukiError, match=r"episode_0.hdf5 to .*episode_3.hdf5 \(4 files\): the steps have no 'reward'"
    ):
        kabuki_rlds.convert(tmp_path, tmp_path.parent / "left_out_joined.hdf5")


def test_damaged_image_error_names_its_file_among_several(tmp_path):
    import tensorflow as tf

    files = [tf.io.encode_png(np.full((8, 9, 3), i, np.uint8)).numpy() for i in range(4)]
    sources = [layout_files.minari(tmp_path / f"{name}.hdf5", [3, 3], files) for name in "ab"]
    paths = []
    for source in sources:
        paths.append(kabuki_rlds.convert(source, source.with_name(f"k{source.name}"), images="encoded").path)
    with h5py.File(paths[1], "a") as f:
        camera = f["observation/camera"]
        camera[5] = camera[5][:-20]
    batches = kabuki_rlds.load_steps(paths, 4, as_numpy=True)
    with pytest.raises(KabukiError, match=rf"^{paths[1]}: episode 1: row 1: field 'observation/camera'"):
        list(batches)


# --- episodes that a file states but does not have ---


@pytest.mark.parametrize("data_format", ["hdf5", "parquet"])
def test_missing_minari_episodes_are_counted_as_skipped(tmp_path, data_format, caplog):
    if data_format == "hdf5":
        data = tmp_path / "data"
        data.mkdir()
        layout_files.minari(data / "main_data.hdf5", [4, 1, 3])
    else:
        data = layout_files.minari_arrow(tmp_path, [4, 1, 3], data_format) / "data"
    stated = {"total_episodes": 5, "total_steps": 20, "data_format": data_format}
    (data / "metadata.json").write_text(json.dumps(stated))
    with pytest.raises(KabukiError, match="says total_episodes 5, but there are 3"):
        kabuki_rlds.convert(data, tmp_path / "k.hdf5")
    done = kabuki_rlds.convert(data, tmp_path / "k.hdf5", skip_bad_episodes=True)
    assert done.episodes == 3
    assert [(loss.record, loss.count) for loss in done.skipped] == [(3, 2)]
    assert "says total_episodes 5, but there are 3" in done.skipped[0].why
    assert "records 3 to 4" in caplog.text


@pytest.mark.parametrize(
    ("attribute", "stated"), [("total", 9), ("total", 2), ("num_demos", 1), ("total", np.zeros(2))]
)
def test_wrong_robomimic_count_is_a_warning(tmp_path, attribute, stated, caplog):
    path = layout_files.robomimic(tmp_path / "demo.hdf5", {0: 3, 1: 4})
    with h5py.File(path, "a") as f:
        f["data"].attrs[attribute] = stated
    with pytest.raises(KabukiError, match=f"data says {attribute} "):
        kabuki_rlds.convert(path, tmp_path / "k.hdf5")
    done = kabuki_rlds.convert(path, tmp_path / "k.hdf5", skip_bad_episodes=True)
    assert (done.episodes, done.skipped) == (2, [])
    assert f"demo.hdf5: data says {attribute} " in caplog.text


def test_damaged_demonstration_with_fewer_actions_than_the_stated_total(tmp_path):
    path = layout_files.robomimic(tmp_path / "demo.hdf5", {0: 3, 1: 4})
    with h5py.File(path, "a") as f:
        del f["data/demo_1/actions"]
    done = kabuki_rlds.convert(path, tmp_path / "k.hdf5", skip_bad_episodes=True)
    assert done.episodes == 1
    assert skipped(done.path) == [("demo.hdf5", 1)]
