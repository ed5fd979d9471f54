"""Sources, files and episodes with different fields: which differences are errors, and which are combined."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

import kabuki_rlds
from kabuki_rlds import KabukiError
from tests import layout_files
from tests.formats.test_kabuki_source import steps, write


def kabuki(path: Path, **more: np.ndarray) -> Path:
    """Writes a Kabuki file with one episode of three steps."""
    return write(path, steps(3) | more)


def set_field(path: Path, name: str, values: np.ndarray, **attributes: object) -> None:
    with h5py.File(path, "a") as f:
        if name in f:
            del f[name]
        f[name] = values
        f[name].attrs.update(attributes)


# --- shapes that must agree ---


def robomimic_in_one_file(folder: Path) -> list[Path]:
    path = layout_files.robomimic(folder / "demo.hdf5", {0: 3, 1: 4, 2: 5})
    set_field(path, "data/demo_2/actions", np.zeros((5, 6)))
    return [path]


def robomimic_in_two_files(folder: Path) -> list[Path]:
    paths = [layout_files.robomimic(folder / f"{name}.hdf5", {0: 3}) for name in ("a", "b")]
    set_field(paths[1], "data/demo_0/actions", np.zeros((3, 6)))
    return paths


def aloha(folder: Path) -> list[Path]:
    paths = [layout_files.aloha(folder / f"episode_{i}.hdf5", 4) for i in range(3)]
    set_field(paths[2], "action", np.zeros((4, 7), np.float32))
    return paths


def minari(folder: Path) -> list[Path]:
    path = layout_files.minari(folder / "main_data.hdf5", [3, 4])
    set_field(path, "episode_1/actions", np.zeros((4, 3), np.float32))
    return [path]


def d4rl(folder: Path) -> list[Path]:
    ends = {"terminals": np.array([False, True]), "timeouts": np.zeros(2, bool)}
    paths = [layout_files.d4rl(folder / f"{name}.hdf5", **ends) for name in ("a", "b")]
    set_field(paths[1], "actions", np.zeros((2, 9), np.float32))
    return paths


def of_kabuki(folder: Path) -> list[Path]:
    return [kabuki(folder / f"{n}.hdf5", action=np.zeros((3, n), np.float32)) for n in (6, 7)]


def of_rlds(folder: Path) -> list[Path]:
    return [kabuki_rlds.build(path, folder, name=f"robot{i}").path for i, path in enumerate(of_kabuki(folder))]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            robomimic_in_one_file,
            r"'action' is float64 \(7,\) in .*demo.hdf5: data/demo_0, but float64 \(6,\) in .*demo_2",
        ),
        (
            robomimic_in_two_files,
            r"'action' is float64 \(7,\) in .*a.hdf5: data/demo_0, but float64 \(6,\) in .*b.hdf5: ",
        ),
        (aloha, r"'action' is float32 \(14,\) in .*episode_0.hdf5: .*, but float32 \(7,\) in .*episode_2.hdf5"),
        (minari, r"'action' is float32 \(2,\) in .*episode_0, but float32 \(3,\) in .*episode_1"),
        (
            d4rl,
            r"b.hdf5 does not fit .*a.hdf5: .*'action' is float32 \(2,\) in .*a.hdf5, but float32 \(9,\) in .*b.hdf5",
        ),
        (
            of_kabuki,
            r"7.hdf5 does not fit .*6.hdf5: .*'action' is float32 \(6,\) in .*6.hdf5, but float32 \(7,\) in .*7",
        ),
        (
            of_rlds,
            r"robot1/1.0.0 \(train\) does not fit .*: step field 'action' is float32 \(6,\) in .* \(7,\) in .*robot1",
        ),
    ],
)
def test_different_action_shapes_are_rejected(tmp_path, make, message):
    fill = {"reward": 0.0} if make is aloha else {}
    with pytest.raises(KabukiError, match=rf"step field {message}" if message.startswith("'") else message):
        kabuki_rlds.convert(make(tmp_path), tmp_path / "out.hdf5", fill=fill)
    with pytest.raises(KabukiError, match=r"step field 'action' is float"):
        kabuki_rlds.build(sorted(tmp_path.glob("*.hdf5")), tmp_path / "data", name="x", fill=fill)
    assert not (tmp_path / "out.hdf5").exists() and not (tmp_path / "data/x").exists()


def test_all_differing_fields_are_listed(tmp_path):
    a = kabuki(tmp_path / "a.hdf5", state=np.zeros((3, 4)), image=np.zeros((3, 2, 2, 3), np.uint8))
    b = kabuki(tmp_path / "b.hdf5", state=np.zeros((3, 5)), image=np.zeros((3, 4, 2, 3), np.uint8))
    with pytest.raises(
        KabukiError, match=r"b.hdf5 does not fit .*a.hdf5: step field 'image' is .*; step field 'state' is"
    ):
        kabuki_rlds.convert([a, b], tmp_path / "out.hdf5")
    for read in (kabuki_rlds.load, lambda paths: kabuki_rlds.load_steps(paths, 2, as_numpy=True)):
        with pytest.raises(KabukiError, match=r"'state' is float64 \(4,\) in .*a.hdf5, but float64 \(5,\) in .*b.hdf5"):
            read([a, b])


def test_different_ranks_are_rejected(tmp_path):
    paths = [kabuki(tmp_path / f"{i}.hdf5", x=np.zeros((3, *[2] * (i + 1)))) for i in range(2)]
    with pytest.raises(KabukiError, match=r"'x' is float64 \(2,\) in .*0.hdf5, but float64 \(2, 2\) in .*1.hdf5"):
        kabuki_rlds.convert(paths, tmp_path / "out.hdf5")


# --- fields that are missing in some sources ---


def test_fields_missing_in_some_files_are_listed(tmp_path, monkeypatch):
    # Short paths, because long messages are cut.
    monkeypatch.chdir(tmp_path)
    paths = [kabuki(Path(f"{name}.hdf5"), **{name: np.zeros(3), "state": np.zeros(3)}) for name in ("a", "b", "c")]
    with h5py.File(paths[1], "a") as f:
        del f["state"]
    a, b, c = map(re.escape, map(str, paths))
    with pytest.raises(
        KabukiError,
        match=rf"^{b} does not fit {a}: step field 'a' is in {a}, but not in {b} and {c}; step field 'state' is in {a} "
        rf"and {c}, but not in {b}; step field 'b' is in {b}, but not in {a} and {c}; step field 'c' is in {c}",
    ):
        kabuki_rlds.convert(paths, tmp_path / "out.hdf5")


def test_fields_missing_in_some_demonstrations_are_listed(tmp_path):
    paths = [layout_files.robomimic(tmp_path / f"{name}.hdf5", {0: 3, 1: 3}, next_obs=False) for name in ("a", "b")]
    set_field(paths[0], "data/demo_1/obs/depth", np.zeros((3, 2)))
    for demo in (0, 1):
        set_field(paths[1], f"data/demo_{demo}/obs/force", np.zeros((3, 6)))
    with pytest.raises(
        KabukiError,
        match=r"'observation/depth' is in .*a.hdf5: data/demo_1, but not in .*a.hdf5: data/demo_0; "
        r".*'observation/force' is in .*b.hdf5: data/demo_0, but not in .*a.hdf5: data/demo_0$",
    ):
        kabuki_rlds.convert(paths, tmp_path / "out.hdf5")


# --- differences that are allowed with a warning ---


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (3, height, width, 3), np.uint8)


def images_of(path: Path, name: str) -> list[np.ndarray]:
    """The images of a field as arrays, step by step."""
    return [
        np.asarray(step[name]) for episode in kabuki_rlds.load(path) for step in episode["steps"].as_numpy_iterator()
    ]


@pytest.mark.parametrize("kind", ["image", "array"])
def test_images_of_different_sizes_are_combined_with_a_warning(tmp_path, caplog, kind):
    wide, high = picture(40, 50), picture(64, 33, seed=1)
    attributes = {"kind": "image"} if kind == "image" else {}
    paths = []
    for name, pixels in (("wide", wide), ("high", high)):
        paths.append(kabuki(tmp_path / f"{name}.hdf5"))
        set_field(paths[-1], "camera", pixels, **attributes)
    result = kabuki_rlds.convert(paths, tmp_path / "out.hdf5")
    described = r"(image )?uint8 \(40, 50, 3\) in .*wide.hdf5, but (image )?uint8 \(64, 33, 3\) in .*high.hdf5"
    assert re.search(rf"step field 'camera' is {described}; it is stored with rows of different shapes", caplog.text)
    assert kabuki_rlds.validate(result.path) == []
    assert kabuki_rlds.compare(result.path, paths) == []
    for got, want in zip(images_of(result.path, "camera"), [*wide, *high], strict=True):
        np.testing.assert_array_equal(got, want)
    with h5py.File(result.path) as f:
        assert f["camera"].attrs["kind"] == "image"
        shape = f["companion/camera/shape"][4]
        np.testing.assert_array_equal(f["camera"][4].reshape(shape), high[1])
    # Building directly, and loading the files together, give the same result.
    built = kabuki_rlds.build(paths, tmp_path / "data", name="mixed").path
    feature = tfds.builder_from_directory(built).info.features["steps"]["camera"]
    assert isinstance(feature, tfds.features.Image) and feature.shape == (None, None, 3)
    read = [
        step["camera"].numpy()
        for episode in tfds.builder_from_directory(built).as_dataset(split="train", shuffle_files=False)
        for step in episode["steps"]
    ]
    loaded = [step["camera"].numpy() for episode in kabuki_rlds.load(paths) for step in episode["steps"]]
    for got in (read, loaded):  # type: ignore[assignment]
        for one, want in zip(got, [*wide, *high], strict=True):
            np.testing.assert_array_equal(one, want)


def test_images_with_different_channels_are_rejected(tmp_path):
    paths = [kabuki(tmp_path / f"{c}.hdf5", camera=np.zeros((3, 40, 40, c), np.uint8)) for c in (1, 3)]
    with pytest.raises(KabukiError, match=r"'camera' is uint8 \(40, 40, 1\) in .*, but uint8 \(40, 40, 3\) in"):
        kabuki_rlds.convert(paths, tmp_path / "out.hdf5")


def test_demonstrations_with_images_of_different_sizes_are_combined(tmp_path, caplog):
    path = layout_files.robomimic(tmp_path / "demo.hdf5", {0: 3, 1: 3}, next_obs=False)
    other = picture(50, 60)
    set_field(path, "data/demo_1/obs/camera/agentview_image", other)
    result = kabuki_rlds.convert(path, tmp_path / "out.hdf5", assume={"last_observation": "none"})
    assert re.search(
        r"agentview_image' is uint8 \(40, 32, 3\) in .*demo_0, but uint8 \(50, 60, 3\) in .*demo_1;", caplog.text
    )
    assert kabuki_rlds.compare(result.path, path, assume={"last_observation": "none"}) == []
    built = kabuki_rlds.build(result.path, tmp_path / "data", name="x").path
    features = tfds.builder_from_directory(built).info.features
    assert features["steps"]["observation"]["camera"]["agentview_image"].shape == (None, None, 3)


@pytest.mark.parametrize("images", ["arrays", "encoded"])
def test_rlds_datasets_with_images_of_different_sizes_are_combined(tmp_path, caplog, images):
    folders = []
    for name, pixels in (("a", picture(40, 50)), ("b", picture(64, 33))):
        folders.append(kabuki_rlds.build(kabuki(tmp_path / f"{name}.hdf5", camera=pixels), tmp_path, name=name).path)
    result = kabuki_rlds.convert(folders, tmp_path / "out.hdf5", images=images)
    assert "it is stored with rows of different shapes" in caplog.text
    assert kabuki_rlds.compare(result.path, folders) == []
    for got, want in zip(images_of(result.path, "camera"), [*picture(40, 50), *picture(64, 33)], strict=True):
        np.testing.assert_array_equal(got, want)
    # The features equal those of the source except for the image size.
    built = kabuki_rlds.build(result.path, tmp_path / "data", name="x").path
    before = tfds.builder_from_directory(folders[0]).info.features["steps"]
    after = tfds.builder_from_directory(built).info.features["steps"]
    assert after["camera"].shape == (None, None, 3)
    assert {name: repr(after[name]) for name in dict(after) if name != "camera"} == {
        name: repr(before[name]) for name in dict(before) if name != "camera"
    }


def test_fields_declared_as_variable_by_one_source_are_combined(tmp_path, caplog):
    points = [np.arange(2 * n, dtype=np.float32) for n in (3, 0, 5)]
    a = kabuki(tmp_path / "a.hdf5")
    with h5py.File(a, "a") as f:
        dataset = f.create_dataset("points", (3,), h5py.vlen_dtype(np.float32))
        for i, row in enumerate(points):
            dataset[i] = row
    b = kabuki(tmp_path / "b.hdf5", points=np.full((3, 4), 7, np.float32))
    for order in ([a, b], [b, a]):
        caplog.clear()
        result = kabuki_rlds.convert(order, tmp_path / "out.hdf5", overwrite=True)
        assert "'points' is float32 (" in caplog.text and "rows of different shapes" in caplog.text
        with h5py.File(result.path) as f:
            rows = [row.tolist() for row in f["points"][:]]
        want = {a: [row.tolist() for row in points], b: [[7.0] * 4] * 3}
        assert rows == [row for path in order for row in want[path]]
        built = kabuki_rlds.build(order, tmp_path / "data", name="x", overwrite=True).path
        ds = tfds.builder_from_directory(built).as_dataset(split="train", shuffle_files=False)
        assert [step["points"].numpy().tolist() for e in ds for step in e["steps"]] == rows


def test_features_with_a_variable_dimension_are_kept(tmp_path, caplog):
    """If one dataset declares the shape (None,) and another (4,), the result has (None,)."""

    def dataset(name: str, length: int | None) -> Path:
        field = tfds.features.Tensor(shape=(length,), dtype=np.float32, encoding="bytes")
        flags = dict.fromkeys(("is_first", "is_last", "is_terminal"), np.bool_)
        numbers = dict.fromkeys(("observation", "action", "reward", "discount"), np.float32)
        features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset({**flags, **numbers, "x": field})})
        rows = [
            dict.fromkeys(numbers, 1.0) | {"is_first": t == 0, "is_last": t == 1, "is_terminal": False} for t in (0, 1)
        ]
        for row in rows:
            row["x"] = np.ones(length or 3, np.float32)  # type: ignore[assignment]
        builder = tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version="1.0.0",
            features=features,
            split_datasets={"train": [(0, {"steps": rows})]},
            data_dir=tmp_path,
        )
        return Path(builder.data_dir)

    free, fixed = dataset("free", None), dataset("fixed", 4)
    for order in ([free, fixed], [fixed, free]):
        result = kabuki_rlds.convert(order, tmp_path / "out.hdf5", overwrite=True)
        built = kabuki_rlds.build(result.path, tmp_path / "data", name="x", overwrite=True).path
        feature = tfds.builder_from_directory(built).info.features["steps"]["x"]
        assert feature.shape == (None,)
        assert kabuki_rlds.compare(result.path, order) == []
    assert "are not stored" not in caplog.text


def test_text_arrays_of_different_lengths_are_combined(tmp_path):
    texts = [np.array([[f"{i}{j}" for j in range(n)] for i in range(3)], object) for n in (2, 3)]
    paths = []
    for i, rows in enumerate(texts):
        paths.append(kabuki(tmp_path / f"{i}.hdf5"))
        with h5py.File(paths[-1], "a") as f:
            f.create_dataset("words", data=rows, dtype=h5py.string_dtype())
    result = kabuki_rlds.convert(paths, tmp_path / "out.hdf5")
    assert kabuki_rlds.compare(result.path, paths) == []
    words = [step["words"].numpy().tolist() for e in kabuki_rlds.load(result.path) for step in e["steps"]]
    assert words == [[word.encode() for word in row] for rows in texts for row in rows.tolist()]


def test_encoded_images_of_different_sizes_are_combined_across_layouts(tmp_path):
    def files(height: int, width: int) -> list[bytes]:
        return [tf.io.encode_png(pixels).numpy() for pixels in picture(height, width)]

    paths = [
        layout_files.aloha(tmp_path / f"episode_{i}.hdf5", 3, files(*size)) for i, size in enumerate([(8, 9), (12, 7)])
    ]
    result = kabuki_rlds.convert(paths, tmp_path / "out.hdf5", fill={"reward": 0})
    want = [*picture(8, 9), *picture(12, 7)]
    got = [s["observation"]["images"]["top"].numpy() for e in kabuki_rlds.load(result.path) for s in e["steps"]]
    for one, right in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, right)


def test_array_attributes_may_differ_in_length_between_episodes(tmp_path, caplog):
    path = layout_files.robomimic(tmp_path / "demo.hdf5", {0: 5, 1: 6})
    with h5py.File(path, "a") as f:
        for demo, count in ((0, 2), (1, 3)):
            f[f"data/demo_{demo}/src_demo_inds"] = np.arange(count)
    result = kabuki_rlds.convert(path, tmp_path / "out.hdf5")
    assert re.search(
        r"episode field 'attributes/src_demo_inds' is .*; it is stored with rows of different shapes", caplog.text
    )
    with h5py.File(result.path) as f:
        assert [row.tolist() for row in f["episodes/metadata/attributes/src_demo_inds"]] == [[0, 1], [0, 1, 2]]
    set_field(path, "data/demo_0/pose", np.zeros((1, 7)))
    set_field(path, "data/demo_1/pose", np.zeros((1, 6)))
    with pytest.raises(KabukiError, match=r"episode field 'attributes/pose' is float64 \(1, 7\) in .*demo_0, but"):
        kabuki_rlds.convert(path, tmp_path / "other.hdf5")
