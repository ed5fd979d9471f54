"""Image files in HDF5: detection, checks, decoding and conversion, in all layouts and storage types."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

import kabuki_rlds
from kabuki_rlds import KabukiError, build, convert, validate
from kabuki_rlds.cli.main import main
from kabuki_rlds.images import png
from tests import handmade, layout_files

HEIGHT, WIDTH = 40, 48


def pixels(rows: int, channels: int = 3, dtype: Any = np.uint8) -> np.ndarray:
    """Smooth images that all differ: (rows, height, width, channels)."""
    t, y, x, c = np.meshgrid(*map(np.arange, (rows, HEIGHT, WIDTH, channels)), indexing="ij")
    most = np.iinfo(dtype).max
    return (most * (0.5 + 0.4 * np.sin(x / 7 + t + c) * np.cos(y / 9 - t))).astype(dtype)


def jpegs(rows: int) -> list[bytes]:
    return [tf.io.encode_jpeg(each).numpy() for each in pixels(rows)]


def pngs(rows: int, channels: int = 3, dtype: Any = np.uint8) -> list[bytes]:
    return [png.file(each) for each in pixels(rows, channels, dtype)]


def decoded(files: Sequence[bytes]) -> np.ndarray:
    return np.stack([tf.io.decode_image(file).numpy() for file in files])


# --- storage types ---


def _strings(group: h5py.Group, name: str, files: Sequence[bytes], padding: int) -> None:
    size = max(map(len, files)) + 1
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(size)
    kind.set_strpad(padding)
    pad = b" " if padding == h5py.h5t.STR_SPACEPAD else b"\0"
    space = h5py.h5s.create_simple((len(files),))
    parent = group.require_group(name.rpartition("/")[0]) if "/" in name else group
    stored = h5py.h5d.create(parent.id, name.rpartition("/")[2].encode(), kind, space)
    stored.write(space, space, np.array([file.ljust(size, pad) for file in files], f"S{size}"), mtype=kind)


def _lists(group: h5py.Group, name: str, files: Sequence[bytes], dtype: Any = np.uint8) -> None:
    stored = group.create_dataset(name, (len(files),), h5py.vlen_dtype(dtype))
    for row, file in enumerate(files):
        stored[row] = np.frombuffer(file, dtype)


def _padded(files: Sequence[bytes]) -> np.ndarray:
    longest = max(map(len, files)) + 3
    return np.array([np.frombuffer(file.ljust(longest, b"\0"), np.uint8) for file in files])


def _put(group: h5py.Group, name: str, values: np.ndarray, **options: Any) -> None:
    group.create_dataset(name, data=values, **options)


FORMS: dict[str, Callable[[h5py.Group, str, Sequence[bytes]], None]] = {
    "uint8 of variable length": _lists,
    "int8 of variable length": lambda g, n, f: _lists(g, n, f, np.int8),
    "strings padded with NULs": lambda g, n, f: _put(g, n, np.array(f, f"S{max(map(len, f))}")),
    "strings ended by a NUL": lambda g, n, f: _strings(g, n, f, h5py.h5t.STR_NULLTERM),
    "strings padded with spaces": lambda g, n, f: _strings(g, n, f, h5py.h5t.STR_SPACEPAD),
    "strings in gzip": lambda g, n, f: _put(g, n, np.array(f, f"S{max(map(len, f))}"), chunks=(2,), compression=4),
    "opaque": lambda g, n, f: _put(g, n, np.array(f, f"V{max(map(len, f)) + 2}")),
    "padded rows": lambda g, n, f: _put(g, n, _padded(f)),
    "padded rows in gzip": lambda g, n, f: _put(g, n, _padded(f), chunks=(2, 100), compression="gzip"),
    "padded columns": lambda g, n, f: _put(g, n, _padded(f)[..., None]),
    "characters": lambda g, n, f: _put(g, n, _padded(f).view("S1")),
}


def variable_length(group: h5py.Group, name: str, files: Sequence[bytes]) -> None:
    """Stores image files as uint8 of variable length, which may be empty."""
    _lists(group, name, files)


def aloha(path: Path, files: Sequence[bytes], form: Callable[..., None] = variable_length) -> Path:
    layout_files.aloha(path, len(files))
    with h5py.File(path, "a") as file:
        del file["observations/images/top"]
        form(file["observations"], "images/top", files)
    return path


CAMERA = "observation/images/top"


def read(path: Path, name: str = CAMERA) -> tuple[Any, dict[str, Any]]:
    with h5py.File(path) as file:
        stored = file[name]
        attributes = dict(stored.attrs)
        return [row.tobytes() for row in stored[:]] if attributes.get("encoded") else stored[:], attributes


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make", [jpegs, pngs])
def test_image_files_are_found_in_every_form_of_storage(form, make, tmp_path):
    files = make(7)
    source = aloha(tmp_path / "episode_0.hdf5", files, FORMS[form])
    kind = "jpeg" if make is jpegs else "png"
    convert(source, tmp_path / "arrays.hdf5", fill={"reward": 0})
    stored, attributes = read(tmp_path / "arrays.hdf5")
    np.testing.assert_array_equal(stored, decoded(files))
    assert attributes == {"kind": "image", "file_format": kind}
    convert(source, tmp_path / "encoded.hdf5", fill={"reward": 0}, images="encoded")
    stored, attributes = read(tmp_path / "encoded.hdf5")
    assert stored == files
    assert (attributes["file_format"], attributes["shape"].tolist()) == (kind, [HEIGHT, WIDTH, 3])
    assert validate(tmp_path / "encoded.hdf5") == []


def _several(group: h5py.Group, name: str, rows: Sequence[Sequence[bytes]], form: str) -> None:
    longest = max(len(file) for row in rows for file in row)
    if form != "lists":
        _put(group, name, np.array(rows, f"{'S' if form == 'strings' else 'V'}{longest}"))
        return
    stored = group.create_dataset(name, (len(rows), len(rows[0])), h5py.vlen_dtype(np.uint8))
    for at, row in enumerate(rows):
        for camera, file in enumerate(row):
            stored[at, camera] = np.frombuffer(file, np.uint8)


@pytest.mark.parametrize("form", ["strings", "opaque", "lists"])
def test_rows_with_several_image_files_are_lists_of_images(form, tmp_path):
    rows = [list(pair) for pair in zip(jpegs(5), reversed(jpegs(5)), strict=True)]
    source = aloha(tmp_path / "episode_0.hdf5", rows, lambda group, name, files: _several(group, name, files, form))  # type: ignore[arg-type]
    convert(source, tmp_path / "arrays.hdf5", fill={"reward": 0})
    stored, attributes = read(tmp_path / "arrays.hdf5")
    np.testing.assert_array_equal(stored, [decoded(row) for row in rows])
    assert attributes["kind"] == "image"
    file = convert(source, tmp_path / "encoded.hdf5", fill={"reward": 0}, images="encoded").path
    assert validate(file) == []
    (batch,) = kabuki_rlds.load_steps(file, 9, keep_last=True, as_numpy=True)
    np.testing.assert_array_equal(batch["observation"]["images"]["top"], stored)
    builder = tfds.builder_from_directory(build(source, tmp_path / "rlds", name="made", fill={"reward": 0}).path)
    feature = builder.info.features["steps"]["observation"]["images"]["top"]
    assert isinstance(feature, tfds.features.Sequence) and isinstance(feature.feature, tfds.features.Image)
    rows[3][1] = rows[3][1][:-9]
    aloha(source, rows, lambda group, name, files: _several(group, name, files, form))  # type: ignore[arg-type]
    with pytest.raises(KabukiError, match=r"row 3: field 'observation/images/top': image 1 is a truncated JPEG"):
        convert(source, tmp_path / "again.hdf5", fill={"reward": 0}, images="encoded")


# --- layouts ---


def _robomimic(path: Path, files: Sequence[bytes], **options: Any) -> Path:
    layout_files.robomimic(path, {0: 3, 1: len(files) - 3}, next_obs=False, **options)
    with h5py.File(path, "a") as file:
        FORMS["strings padded with NULs"](file["data/demo_0/obs"], "top", files[:3])
        FORMS["strings padded with NULs"](file["data/demo_1/obs"], "top", files[3:])
    return path


def _with_next_obs(path: Path, files: Sequence[bytes]) -> Path:
    layout_files.robomimic(path, {0: len(files) - 1})
    with h5py.File(path, "a") as file:
        FORMS["padded rows"](file["data/demo_0/obs"], "top", files[:-1])
        FORMS["opaque"](file["data/demo_0/next_obs"], "top", files[1:])
    return path


def _libero(path: Path, files: Sequence[bytes]) -> Path:
    return _robomimic(path, files, success=[0, 1], attributes={"bddl_file_name": "x.bddl", "problem_info": "{}"})


def _robosuite(path: Path, files: Sequence[bytes]) -> Path:
    layout_files.robosuite(path, {1: len(files)})
    with h5py.File(path, "a") as file:
        FORMS["opaque"](file["data/demo_1"], "top", files)
    return path


def _minari(path: Path, files: Sequence[bytes]) -> Path:
    layout_files.minari(path, [2, len(files) - 4])
    with h5py.File(path, "a") as file:
        FORMS["strings padded with NULs"](file["episode_0/observations"], "top", files[:3])
        FORMS["strings padded with NULs"](file["episode_1/observations"], "top", files[3:])
    return path


def _d4rl(path: Path, files: Sequence[bytes]) -> Path:
    ends = np.arange(len(files)) % 4 == 3
    layout_files.d4rl(path, terminals=ends, timeouts=np.zeros(len(files), bool))
    with h5py.File(path, "a") as file:
        FORMS["opaque"](file, "infos/top", files)
    return path


def _d4rl_observations(path: Path, files: Sequence[bytes]) -> Path:
    ends = np.arange(len(files) - 1) == len(files) - 2
    layout_files.d4rl(path, terminals=ends, timeouts=np.zeros(len(files) - 1, bool))
    with h5py.File(path, "a") as file:
        del file["observations"]
        FORMS["strings padded with NULs"](file, "observations", files[:-1])
        FORMS["padded rows"](file, "next_observations", files[1:])
    return path


def _by_hand(path: Path, files: Sequence[bytes]) -> Path:
    fields = handmade.fields([3, len(files) - 3], [True, False])
    del fields["observation"]
    handmade.write(path, fields)
    with h5py.File(path, "a") as file:
        FORMS["strings padded with NULs"](file, "observation", files)
    return path


LAYOUTS = {
    "robomimic": (_robomimic, "observation/top", {}),
    "robomimic with next_obs": (_with_next_obs, "observation/top", {}),
    "libero": (_libero, "observation/top", {}),
    "robosuite": (_robosuite, "top", {"fill": {"reward": 0}}),
    "minari": (_minari, "observation/top", {}),
    "d4rl": (_d4rl, "infos/top", {}),
    "d4rl with next_observations": (_d4rl_observations, "observation", {}),
    "made by hand": (_by_hand, "observation", {}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_image_files_are_found_in_every_layout(layout, tmp_path):
    make, name, options = LAYOUTS[layout]
    files = jpegs(8)
    source = make(tmp_path / "demo.hdf5", files)
    convert(source, tmp_path / "arrays.hdf5", **options)  # type: ignore[arg-type]
    stored, attributes = read(tmp_path / "arrays.hdf5", name)
    np.testing.assert_array_equal(stored, decoded(files))
    assert attributes == {"kind": "image", "file_format": "jpeg"}
    convert(source, tmp_path / "encoded.hdf5", images="encoded", **options)  # type: ignore[arg-type]
    assert read(tmp_path / "encoded.hdf5", name)[0] == files


@pytest.mark.parametrize("layout", ["robomimic with next_obs", "d4rl", "minari", "made by hand"])
def test_image_files_become_image_features_in_rlds(layout, tmp_path):
    make, name, options = LAYOUTS[layout]
    files = jpegs(8)
    built = build(make(tmp_path / "demo.hdf5", files), tmp_path / "rlds", name="made", **options)  # type: ignore[arg-type]
    builder = tfds.builder_from_directory(built.path)
    feature = builder.info.features["steps"]
    for part in name.split("/"):
        feature = feature[part]
    assert isinstance(feature, tfds.features.Image)
    assert (feature.shape, feature.np_dtype, feature.encoding_format) == ((HEIGHT, WIDTH, 3), np.uint8, "jpeg")
    decoders = {"steps": {name: tfds.decode.SkipDecoding()}} if "/" not in name else None
    rows = []
    for episode in builder.as_dataset(split="train", decoders=decoders):
        for step in episode["steps"].as_numpy_iterator():
            for part in name.split("/"):
                step = step[part]
            rows.append(step)
    if decoders:
        assert rows == files
    else:
        np.testing.assert_array_equal(rows, decoded(files))


def test_images_of_a_file_without_attributes_are_decoded(tmp_path):
    files = jpegs(8)
    source = _by_hand(tmp_path / "k.hdf5", files)
    assert validate(source) == []
    (batch,) = kabuki_rlds.load_steps(source, 20, keep_last=True, as_numpy=True)
    np.testing.assert_array_equal(batch["observation"], decoded(files))
    shuffled = list(kabuki_rlds.load_steps(source, 20, shuffle=True, seed=1, keep_last=True, as_numpy=True))
    assert shuffled[0]["observation"].shape == (8, HEIGHT, WIDTH, 3)
    steps = [step for episode in kabuki_rlds.load(source) for step in episode["steps"].as_numpy_iterator()]
    np.testing.assert_array_equal([step["observation"] for step in steps], decoded(files))


# --- bit depth and channels ---


def _saved(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


_RGB = Image.fromarray(pixels(1)[0])
_GRAY = _RGB.convert("L")
_PALETTE = _RGB.quantize(7)
KINDS: dict[str, tuple[bytes, int, Any, Any]] = {
    "gray JPEG": (_saved(_GRAY, "JPEG"), 1, np.uint8, None),
    "progressive JPEG": (_saved(_RGB, "JPEG", progressive=True), 3, np.uint8, None),
    "CMYK JPEG": (_saved(_RGB.convert("CMYK"), "JPEG"), 3, np.uint8, None),
    "gray PNG": (_saved(_GRAY), 1, np.uint8, np.asarray(_GRAY)[..., None]),
    "black and white PNG": (_saved(_GRAY.point(lambda v: 255 * (v > 99), "1")), 1, np.uint8, None),
    "gray PNG with alpha": (_saved(_GRAY.convert("LA")), 4, np.uint8, np.asarray(_GRAY.convert("RGBA"))),
    "RGBA PNG": (_saved(_RGB.convert("RGBA")), 4, np.uint8, np.asarray(_RGB.convert("RGBA"))),
    "palette PNG": (_saved(_PALETTE), 3, np.uint8, np.asarray(_PALETTE.convert("RGB"))),
    "palette PNG with alpha": (
        _saved(_PALETTE, transparency=2), 4, np.uint8,
        np.asarray(Image.open(io.BytesIO(_saved(_PALETTE, transparency=2))).convert("RGBA")),
    ),
    "16-bit gray PNG": (pngs(1, 1, np.uint16)[0], 1, np.uint16, pixels(1, 1, np.uint16)[0]),
    "16-bit RGB PNG": (pngs(1, 3, np.uint16)[0], 3, np.uint16, pixels(1, 3, np.uint16)[0]),
    "16-bit RGBA PNG": (pngs(1, 4, np.uint16)[0], 4, np.uint16, pixels(1, 4, np.uint16)[0]),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_images_keep_their_bit_depth_and_channels(kind, tmp_path):
    file, channels, dtype, want = KINDS[kind]
    source = aloha(tmp_path / "episode_0.hdf5", [file] * 3)
    convert(source, tmp_path / "arrays.hdf5", fill={"reward": 0})
    stored, _ = read(tmp_path / "arrays.hdf5")
    assert (stored.shape, stored.dtype) == ((3, HEIGHT, WIDTH, channels), dtype)
    if want is not None:
        np.testing.assert_array_equal(stored[1], want)
    built = build(source, tmp_path / "rlds", name="made", fill={"reward": 0})
    builder = tfds.builder_from_directory(built.path)
    feature = builder.info.features["steps"]["observation"]["images"]["top"]
    assert (feature.shape, feature.np_dtype) == ((HEIGHT, WIDTH, channels), dtype)
    (episode,) = builder.as_dataset(split="train")
    for step in episode["steps"].as_numpy_iterator():
        np.testing.assert_array_equal(step["observation"]["images"]["top"], stored[0])


def test_images_of_a_column_must_have_the_same_bit_depth(tmp_path):
    files = pngs(5, 1, np.uint16)
    files[3] = pngs(1, 1)[0]
    source = aloha(tmp_path / "episode_0.hdf5", [*files, *files])
    for images in ("arrays", "encoded"):
        with pytest.raises(KabukiError, match=r"row 3: field '.*top': the image has 1 channels of 8 bits, not 1 of 16"):
            convert(source, tmp_path / "k.hdf5", fill={"reward": 0}, images=images)


def test_images_of_different_sizes_are_kept(tmp_path):
    files = pngs(6)
    files[2] = png.file(pixels(1)[0][:20, :30])
    source = aloha(tmp_path / "episode_0.hdf5", files)
    convert(source, tmp_path / "k.hdf5", fill={"reward": 0})
    with h5py.File(tmp_path / "k.hdf5") as file:
        assert file[CAMERA].attrs["shape"].tolist() == [-1, -1, 3]
        assert file[f"companion/{CAMERA}/shape"][2].tolist() == [20, 30, 3]
        np.testing.assert_array_equal(file[CAMERA][1], pixels(2)[1].reshape(-1))


# --- detection ---


BLACK = pngs(1)[0]


@pytest.mark.parametrize(
    ("row", "file", "says"),
    [
        (0, b"", "is empty (0 bytes)"),
        (0, bytes(90), "is not a PNG, JPEG, GIF, BMP or WebP file"),
        (0, BLACK[:200], "is a truncated or damaged PNG file: 200 bytes, without an end"),
        (0, b"no image at all", "is not a PNG"),
        (4, b"", "is empty (0 bytes)"),
        (5, BLACK[:-20] + b"\1" + BLACK[-19:], "is a damaged PNG file: the checksum of its chunk at byte"),
    ],
    ids=["first empty", "first zeros", "first truncated", "first garbage", "fifth empty", "sixth changed"],
)
@pytest.mark.parametrize("images", ["arrays", "encoded"])
def test_a_damaged_row_does_not_hide_that_a_column_has_images(row, file, says, images, tmp_path, capsys):
    files = pngs(7)
    files[row] = file
    folder = tmp_path / "data"
    folder.mkdir()
    aloha(folder / "episode_0.hdf5", pngs(4))
    source = aloha(folder / "episode_1.hdf5", files)
    arguments = ["convert", str(folder), str(tmp_path / "k.hdf5"), "--fill", "reward=0", "--images", images]
    assert main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith(f"kabuki-rlds: error: {source}: the episode: row {row}: field '{CAMERA}': the image {says}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
    with pytest.raises(KabukiError, match=f"the episode: row {row}: field"):
        build(folder, tmp_path / "rlds", name="made", fill={"reward": 0})


def test_an_episode_with_no_images_is_reported(tmp_path):
    files = jpegs(4)
    source = _robomimic(tmp_path / "demo.hdf5", [b""] * 3 + files)
    with pytest.raises(KabukiError, match=r"demo.hdf5: data/demo_0: row 0: field 'observation/top': .* is empty"):
        convert(source, tmp_path / "k.hdf5")


@pytest.mark.parametrize("make", [_d4rl, _by_hand])
def test_a_damaged_image_is_reported_with_the_number_of_its_episode(make, tmp_path):
    files = jpegs(8)
    files[6] = files[6][:300]
    source = make(tmp_path / "demo.hdf5", files)
    episode, row = (1, 2) if make is _d4rl else (1, 3)
    for images in ("arrays", "encoded"):
        with pytest.raises(KabukiError, match=rf"demo.hdf5: episode {episode}: row {row}: field .* truncated JPEG"):
            convert(source, tmp_path / "k.hdf5", images=images)
    with pytest.raises(KabukiError, match=rf"demo.hdf5: episode {episode}: row {row}: field .* truncated JPEG"):
        build(source, tmp_path / "rlds", name="made")


def _plain(path: Path, **columns: np.ndarray) -> Path:
    layout_files.aloha(path, len(next(iter(columns.values()))))
    with h5py.File(path, "a") as file:
        for name, values in columns.items():
            file[f"observations/{name}"] = values
    return path


def test_text_and_numbers_are_not_detected_as_images(tmp_path):
    rng = np.random.default_rng(0)
    count = 12
    texts = np.array([b"BMW, drive on", b"", b"RIFF", b"GIF89a"] * 3, "S200")
    texts[5] = jpegs(1)[0][:200]
    numbers = rng.integers(0, 256, (count, 128), np.uint8)
    numbers[4, :3] = (255, 216, 255)
    one_image = rng.integers(1, 256, (count, len(BLACK)), np.uint8)
    one_image[0] = np.frombuffer(BLACK, np.uint8)
    gray = np.zeros((count, 70, 70), np.uint8)
    columns = {
        "texts": texts,
        "numbers": numbers,
        "one_image": one_image,
        "zeros": np.zeros((count, 100), np.uint8),
        "no_text": np.zeros(count, "S99"),
        "gray": gray,
    }
    source = _plain(tmp_path / "episode_0.hdf5", **columns)
    with h5py.File(source, "a") as file:
        points = file.create_dataset("observations/points", (count,), h5py.vlen_dtype(np.uint8))
        for row in range(count):
            points[row] = np.frombuffer(b"\xff\xd8\xff\x00" + bytes(row), np.uint8)
    convert(source, tmp_path / "k.hdf5", fill={"reward": 0})
    with h5py.File(tmp_path / "k.hdf5") as file:
        for name in ("numbers", "one_image", "zeros", "gray"):
            assert "kind" not in file[f"observation/{name}"].attrs
            np.testing.assert_array_equal(file[f"observation/{name}"][:], columns[name])
        assert file["observation/texts"].attrs["kind"] == "text"
        assert file["observation/texts"][0] == b"BMW, drive on"
        assert file["observation/no_text"][:].tolist() == [b""] * count
        assert file["observation/points"][3].tobytes() == b"\xff\xd8\xff\x00" + bytes(3)


def test_a_column_with_few_images_is_found(tmp_path):
    # None of the rows that are sampled first holds an image.
    files = [b""] * 400
    files[201], files[333] = pngs(2)
    source = aloha(tmp_path / "episode_0.hdf5", files)
    with pytest.raises(KabukiError, match=r"row 0: field 'observation/images/top': the image is empty"):
        convert(source, tmp_path / "k.hdf5", fill={"reward": 0})


def test_image_files_without_a_decoder_are_kept_as_bytes_with_a_warning(tmp_path, caplog):
    gifs = [_saved(Image.fromarray(each), "GIF") for each in pixels(5)]
    source = aloha(tmp_path / "episode_0.hdf5", gifs, FORMS["strings padded with NULs"])
    convert(source, tmp_path / "k.hdf5", fill={"reward": 0})
    assert "observations/images/top: has image files that TFDS cannot decode (GIF)" in caplog.text
    (batch,) = kabuki_rlds.load_steps(tmp_path / "k.hdf5", 9, keep_last=True, as_numpy=True)
    assert batch["observation"]["images"]["top"].tolist() == gifs


def test_image_files_truncated_by_variable_length_strings_are_reported(tmp_path, caplog):
    cut = [file.partition(b"\0")[0] for file in jpegs(4)]

    def store(group: h5py.Group, name: str, files: Sequence[bytes]) -> None:
        group.create_dataset(name, data=np.array(files, object), dtype=h5py.string_dtype())

    convert(aloha(tmp_path / "episode_0.hdf5", cut, store), tmp_path / "k.hdf5", fill={"reward": 0})
    assert "observations/images/top: has only the first bytes of image files" in caplog.text


def test_opaque_hdf5_values_are_read_as_bytes(tmp_path):
    source = layout_files.aloha(tmp_path / "episode_0.hdf5", 3)
    with h5py.File(source, "a") as file:
        file["observations/key"] = np.array([b"a\0b", b"\0", b"xyz"], "V4")
        file["blob"] = np.void(b"\1\0")
    convert(source, tmp_path / "k.hdf5", fill={"reward": 0})
    (batch,) = kabuki_rlds.load_steps(tmp_path / "k.hdf5", 9, keep_last=True, as_numpy=True)
    assert batch["observation"]["key"].tolist() == [b"a\0b\0", b"\0\0\0\0", b"xyz\0"]


# --- the format of the original files ---


def test_build_encodes_decoded_images_in_their_original_format(tmp_path, caplog):
    for kind, files in (("jpeg", jpegs(5)), ("png", pngs(5)), ("", [jpegs(1)[0], *pngs(5)])):
        source = aloha(tmp_path / f"episode_{len(kind)}.hdf5", files)
        file = convert(source, tmp_path / f"{kind or 'mixed'}.hdf5", fill={"reward": 0}).path
        assert read(file)[1].get("file_format", "") == kind
        # Also through a Kabuki file.
        again = convert(file, tmp_path / f"{kind or 'mixed'}2.hdf5").path
        assert read(again)[1] == read(file)[1]
        caplog.clear()
        built = build(again, tmp_path / "rlds", name=f"made_{kind or 'mixed'}")
        feature = tfds.builder_from_directory(built.path).info.features["steps"]["observation"]["images"]["top"]
        assert feature.encoding_format == (kind or "png")
        assert (f"encoded as JPEG again, like their original files, which slightly changes pixels: {CAMERA}"
                in caplog.text) == (kind == "jpeg")  # fmt: skip
        back = convert(built.path, tmp_path / f"{kind or 'mixed'}3.hdf5").path
        assert read(back)[1]["file_format"] == (kind or "png")
        difference = np.abs(read(back)[0].astype(int) - read(file)[0])
        assert difference.max() == 0 if kind != "jpeg" else difference.mean() < 3
    built = build(tmp_path / "jpeg.hdf5", tmp_path / "lossless", name="made", encode="png")
    back = convert(built.path, tmp_path / "lossless.hdf5").path
    np.testing.assert_array_equal(read(back)[0], read(tmp_path / "jpeg.hdf5")[0])


def test_images_of_mixed_formats_are_built_as_png(tmp_path):
    files = []
    for number, images in enumerate((jpegs(4), pngs(4))):
        source = aloha(tmp_path / f"episode_{number}.hdf5", images)
        files.append(convert(source, tmp_path / f"{number}.hdf5", fill={"reward": 0}).path)
    stitched = convert(files, tmp_path / "both.hdf5").path
    assert "file_format" not in read(stitched)[1]
    for sources in (stitched, files, [tmp_path / "episode_0.hdf5", tmp_path / "episode_1.hdf5"]):
        built = build(sources, tmp_path / "rlds", name="made", fill={"reward": 0}, overwrite=True)
        feature = tfds.builder_from_directory(built.path).info.features["steps"]["observation"]["images"]["top"]
        # Files of both formats are kept unchanged.
        assert feature.encoding_format == (None if len(str(sources)) > 200 or "episode_0" in str(sources) else "png")


def test_a_rare_second_image_format_gives_a_warning(tmp_path, caplog):
    files = jpegs(40)
    files[7] = pngs(1)[0]
    convert(aloha(tmp_path / "episode_0.hdf5", files), tmp_path / "k.hdf5", fill={"reward": 0}, images="encoded")
    assert "some images are jpeg and png files, but the field states the format jpeg" in caplog.text


# --- damaged files in Kabuki files ---


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda file: b"", "is empty (0 bytes)"),
    "truncated": (lambda file: file[: len(file) // 2], "is a truncated"),
    "end missing": (lambda file: file[:-2], "is a truncated"),
    "zeros at the end": (lambda file: file[:-400] + bytes(400), "is a "),
    "not an image": (lambda file: b"x" * len(file), "is not a PNG"),
    "another size": (lambda file: jpegs(1)[0].replace(HEIGHT.to_bytes(2, "big"), b"\0\7", 1), "is 7 x 48 pixels"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("make", [jpegs, pngs])
def test_damaged_images_of_a_kabuki_file_are_reported(make, damage, tmp_path, capsys):
    change, says = DAMAGE[damage]
    for number in range(3):
        aloha(tmp_path / f"episode_{number}.hdf5", make(4 + number))
    file = convert(tmp_path / "episode_?.hdf5", tmp_path / "k.hdf5", fill={"reward": 0}, images="encoded").path
    with h5py.File(file, "r+") as opened:
        for row in (6, 11):
            opened[CAMERA][row] = np.frombuffer(change(opened[CAMERA][row].tobytes()), np.uint8)
    assert main(["validate", str(file)]) == 1
    (line,) = [each for each in capsys.readouterr().out.splitlines() if "rule 9" in each]
    assert line.startswith(f"{file}: rule 9: {CAMERA}: episode 1: row 2: the image {says}")
    assert "; episode 2: row 2: the image is" in line
    assert line.endswith(" (2 rows: 6, 11)")
    for run in (
        lambda: convert(file, tmp_path / "again.hdf5", images="encoded"),
        lambda: convert([file, file], tmp_path / "again.hdf5"),
        lambda: build(file, tmp_path / "rlds"),
    ):
        with pytest.raises(KabukiError) as error:
            run()
        assert str(error.value).startswith(f"{file}: episode 1: row 2: field '{CAMERA}': the image {says}")
    assert not (tmp_path / "again.hdf5").exists()


@pytest.mark.parametrize("at", [0.3, 0.6, 0.95])
def test_any_changed_byte_of_a_png_is_detected(at, tmp_path):
    files = pngs(4)
    changed = bytearray(files[2])
    changed[int(at * len(changed))] ^= 1
    files[2] = bytes(changed)
    with pytest.raises(KabukiError, match=r"row 2: .*checksum"):
        convert(aloha(tmp_path / "episode_0.hdf5", files), tmp_path / "k.hdf5", fill={"reward": 0}, images="encoded")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 100, "subsampling": 0}, {"optimize": True}])
def test_intact_jpeg_files_of_all_types_are_accepted(options, tmp_path):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8) for _ in range(4)]
    files = [_saved(Image.fromarray(each), "JPEG", **options) for each in noise]
    # Bytes of all ones before a marker, a comment, and something after the end are all allowed.
    files[1] = files[1][:2] + b"\xff\xff\xfe\0\6\xff\xd9!!" + files[1][2:-2] + b"\xff\xff\xd9" + b"more"
    files[2] += b"\0\0"
    source = aloha(tmp_path / "episode_0.hdf5", files)
    convert(source, tmp_path / "k.hdf5", fill={"reward": 0})
    np.testing.assert_array_equal(read(tmp_path / "k.hdf5")[0], decoded(files))
    convert(source, tmp_path / "e.hdf5", fill={"reward": 0}, images="encoded")
    assert validate(tmp_path / "e.hdf5") == []
