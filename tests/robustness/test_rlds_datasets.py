"""Damaged RLDS datasets: errors name the damage, and `skip_bad_episodes` converts the other episodes."""

from __future__ import annotations

import dataclasses
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

import kabuki_rlds
from kabuki_rlds.cli.main import main
from kabuki_rlds.files import records
from kabuki_rlds.formats.rlds.shards import check_lengths
from tests import datasets, tfrecords

#: Training episodes of the dataset "plain", which has three shards.
EPISODES = 10


@pytest.fixture
def damaged(dataset, tmp_path) -> Path:
    """A copy of the dataset "plain", to be damaged."""
    return Path(shutil.copytree(dataset("plain"), tmp_path / "copy" / "plain" / "1.0.0"))


@pytest.fixture(scope="module")
def first_of(dataset) -> list[int]:
    """The number of the first episode of each shard of "plain"."""
    counts = [len(tfrecords.read(shard)) for shard in tfrecords.shards(dataset("plain"))]
    assert sum(counts) == EPISODES and min(counts) >= 3
    return np.cumsum([0, *counts]).tolist()


def flip_data(folder: Path) -> None:
    shard = tfrecords.shards(folder)[1]
    tfrecords.flip(shard, tfrecords.read(shard)[1].start + 30)


def flip_checksum(folder: Path) -> None:
    shard = tfrecords.shards(folder)[1]
    tfrecords.flip(shard, tfrecords.read(shard)[2].start - 1)


def flip_length(folder: Path) -> None:
    shard = tfrecords.shards(folder)[1]
    tfrecords.flip(shard, tfrecords.read(shard)[1].start)


def truncate_shard(folder: Path) -> None:
    shard = tfrecords.shards(folder)[1]
    shard.write_bytes(shard.read_bytes()[: tfrecords.read(shard)[1].start + 40])


def truncate_header(folder: Path) -> None:
    shard = tfrecords.shards(folder)[1]
    shard.write_bytes(shard.read_bytes()[: tfrecords.read(shard)[1].start + 5])


def remove_last_records(folder: Path) -> None:
    shard = tfrecords.shards(folder)[1]
    shard.write_bytes(shard.read_bytes()[: tfrecords.read(shard)[1].start])


def empty(folder: Path) -> None:
    tfrecords.shards(folder)[1].write_bytes(b"")


def missing(folder: Path) -> None:
    tfrecords.shards(folder)[1].unlink()


def huge_length(folder: Path) -> None:
    # The checksum of the length is right, so TensorFlow would allocate this much memory.
    shard = tfrecords.shards(folder)[1]
    length = struct.pack("<Q", 1 << 50)
    head = length + struct.pack("<I", records.checksum(length))
    shard.write_bytes(shard.read_bytes()[: tfrecords.read(shard)[1].start] + head + bytes(100))


def edited(change: Callable[[Any], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tfrecords.edit(tfrecords.shards(folder)[1], 1, lambda example: change(example.features.feature))

    return damage


def no_example(folder: Path) -> None:
    shard = tfrecords.shards(folder)[1]
    examples = [record.data for record in tfrecords.read(shard)]
    tfrecords.write(shard, [examples[0], b"\x0a\xff not protobuf", *examples[2:]])


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to damage the dataset.

    Attributes:
      damage: function that damages the second shard.
      says: part of the expected message.
      lost: the episodes of that shard that are lost.
    """

    damage: Callable[[Path], None]
    says: str
    lost: slice


ONE, REST, ALL = slice(1, 2), slice(1, None), slice(None)
CASES = {
    "a flipped bit": Case(flip_data, "record 1: the data is damaged (wrong checksum)", ONE),
    "a flipped bit of a checksum": Case(flip_checksum, "record 1: the data is damaged (wrong checksum)", ONE),
    "a flipped bit of a length": Case(flip_length, "the length of the record is damaged", REST),
    "a truncated shard": Case(truncate_shard, "the shard is truncated", REST),
    "a truncated record header": Case(truncate_header, "", REST),
    "missing records at the end": Case(remove_last_records, "dataset_info.json", REST),
    "an empty file": Case(empty, "dataset_info.json", ALL),
    "a missing file": Case(missing, "this shard is missing", ALL),
    "a huge record length": Case(huge_length, "the shard is truncated", REST),
    "no example": Case(no_example, "record 1: not a valid tf.train.Example", ONE),
    "integers for floats": Case(
        edited(lambda f: f["steps/reward"].int64_list.value.append(3)),
        "record 1: field 'reward': stored as int64_list, expected float_list by its feature",
        ONE,
    ),
    "a missing reward": Case(edited(lambda f: f["steps/reward"].float_list.value.pop()), "'reward' has ", ONE),
    "an incomplete observation": Case(
        edited(lambda f: f["steps/observation/position"].float_list.value.pop()),
        "record 1: field 'observation/position': the number of elements is not a multiple of the item size 3",
        ONE,
    ),
    "no observation": Case(
        edited(lambda f: f["steps/observation/velocity"].Clear()), "'observation/velocity' has 0; ", ONE
    ),
    "two names of an agent": Case(edited(lambda f: f["agent"].bytes_list.value.append(b"b")), "field 'agent'", ONE),
    "no name of an agent": Case(edited(lambda f: f.pop("agent")), "field 'agent'", ONE),
}


@pytest.mark.parametrize("case", CASES)
def test_damage_is_reported_and_other_episodes_are_converted(case, damaged, first_of, converted, tmp_path, caplog):
    shard = tfrecords.shards(damaged)[1]
    CASES[case].damage(damaged)
    with pytest.raises(kabuki_rlds.KabukiError) as error:
        kabuki_rlds.convert(damaged, tmp_path / "out.hdf5")
    assert str(error.value).startswith(f"{shard}: ")
    assert CASES[case].says in str(error.value)
    assert "\n" not in str(error.value)

    lost = list(range(first_of[1], first_of[2])[CASES[case].lost])
    result = kabuki_rlds.convert(damaged, tmp_path / "out.hdf5", skip_bad_episodes=True)
    assert result.num_episodes == EPISODES - len(lost)
    assert [loss.path for loss in result.skipped] == [str(shard)]
    (loss,) = result.skipped
    assert (loss.record, loss.count) == (lost[0] - first_of[1], len(lost))
    assert f"{loss}; left out" in caplog.text
    assert kabuki_rlds.validate(result.path) == []
    assert kabuki_rlds.compare(result.path, damaged) == []
    with h5py.File(result.path) as new, h5py.File(converted("plain")) as whole:
        assert json.loads(new.attrs["skipped"]) == [dataclasses.asdict(loss)]
        left = np.setdiff1d(np.arange(EPISODES), lost)
        assert (new["episodes/metadata/episode_id"][:] == whole["episodes/metadata/episode_id"][:][left]).all()
        starts, stops = whole["episodes/start"][:], whole["episodes/start"][:] + whole["episodes/length"][:]
        rows = np.concatenate([np.arange(starts[i], stops[i]) for i in left])
        for field in ("observation/velocity", "action", "reward", "is_first"):
            assert (new[field][:] == whole[field][:][rows]).all()


def test_intact_datasets_have_no_skipped_episodes(dataset, converted, tmp_path):
    for name in ("plain", "every_kind", "oxe_style", "array_record", "uncovered"):
        result = kabuki_rlds.convert(dataset(name), tmp_path / f"{name}.hdf5", skip_bad_episodes=True)
        assert result.skipped == []
        assert kabuki_rlds.compare(result.path, converted(name)) == []
        with h5py.File(result.path) as file:
            assert "skipped" not in file.attrs


def test_damaged_array_record_is_skipped(dataset, tmp_path):
    folder = Path(shutil.copytree(dataset("array_record"), tmp_path / "copy" / "array_record" / "1.0.0"))
    shard = tfrecords.shards(folder)[1]
    stored = bytearray(shard.read_bytes())
    # ArrayRecord pads its files with zeros. Changing the padding would not be damage.
    data = [i for i, byte in enumerate(stored[100:-100]) if byte]
    stored[100 + data[len(data) // 2]] ^= 4
    shard.write_bytes(stored)
    with pytest.raises(kabuki_rlds.KabukiError, match=f"{shard.name}: record 1: cannot be read"):
        kabuki_rlds.convert(folder, tmp_path / "out.hdf5")
    result = kabuki_rlds.convert(folder, tmp_path / "out.hdf5", skip_bad_episodes=True)
    assert [(loss.path, loss.record, loss.count) for loss in result.skipped] == [(str(shard), 1, 1)]
    assert result.num_episodes == EPISODES - 1
    shard.write_bytes(b"no ArrayRecord")
    result = kabuki_rlds.convert(folder, tmp_path / "out.hdf5", skip_bad_episodes=True, overwrite=True)
    assert result.num_episodes + sum(loss.count for loss in result.skipped) == EPISODES


def test_damaged_first_record_is_reported(damaged, dataset, tmp_path):
    shard = tfrecords.shards(damaged)[0]
    tfrecords.flip(shard, 30)
    with pytest.raises(
        kabuki_rlds.KabukiError, match=rf"{shard.name}: record 0: the data is damaged \(wrong checksum\)"
    ):
        kabuki_rlds.convert(damaged, tmp_path / "out.hdf5")
    folder = Path(shutil.copytree(dataset("array_record"), tmp_path / "copy" / "array_record" / "1.0.0"))
    shard = tfrecords.shards(folder)[0]
    shard.write_bytes(b"no ArrayRecord")
    with pytest.raises(kabuki_rlds.KabukiError, match=f"{shard.name}: records 0 to .*: the shard cannot be"):
        kabuki_rlds.convert(folder, tmp_path / "out.hdf5")
    assert not (tmp_path / "out.hdf5").exists()


def test_check_lengths_rejects_a_record_longer_than_the_file(damaged):
    """Calls `check_lengths` directly, because coverage does not measure TensorFlow's threads."""
    huge_length(damaged)
    shard = tfrecords.shards(damaged)[1]
    check_lengths(str(shard), 1)
    with pytest.raises(kabuki_rlds.KabukiError, match=f"{shard.name}: record 1: the shard is truncated"):
        check_lengths(str(shard), 2)


def test_split_that_starts_after_the_last_stored_record_is_rejected(damaged, tmp_path):
    shard = tfrecords.shards(damaged)[0]
    tfrecords.write(shard, [tfrecords.read(shard)[0].data])
    with pytest.raises(kabuki_rlds.KabukiError) as error:
        kabuki_rlds.convert(damaged, tmp_path / "out.hdf5", split="train[1:2]")
    says = f"{shard}: record 1: dataset_info.json lists more episodes than the 1 in this shard"
    assert str(error.value).startswith(says)


def test_damage_outside_of_the_split_is_ignored(damaged, first_of, tmp_path):
    flip_data(damaged)
    bad = first_of[1] + 1
    for split, lost in ((f"train[:{bad}]", 0), (f"train[{bad + 1}:]", 0), (f"train[{bad}:{bad + 2}]", 1)):
        dest = tmp_path / f"{split}.hdf5"
        result = kabuki_rlds.convert(damaged, dest, split=split, skip_bad_episodes=True)
        assert sum(loss.count for loss in result.skipped) == lost
        stated = {f"train[:{bad}]": bad, f"train[{bad + 1}:]": EPISODES - bad - 1}.get(split, 2)
        assert result.num_episodes == stated - lost


def test_unlisted_shard_is_rejected_or_skipped(damaged, tmp_path, caplog):
    shards = tfrecords.shards(damaged)
    extra = shards[0].with_name("plain-train.tfrecord-00003-of-00004")
    shutil.copy(shards[0], extra)
    with pytest.raises(kabuki_rlds.KabukiError, match=f"{extra.name}: dataset_info.json does not list this shard"):
        kabuki_rlds.convert(damaged, tmp_path / "out.hdf5")
    result = kabuki_rlds.convert(damaged, tmp_path / "out.hdf5", skip_bad_episodes=True)
    assert result.num_episodes == EPISODES
    assert [loss.path for loss in result.skipped] == [str(extra)]
    assert result.skipped[0].count == len(tfrecords.read(extra))


@pytest.mark.parametrize("count", ["1000000000000", "-5", "0", "9223372036854775807"])
def test_wrong_episode_count_is_rejected(count, damaged, tmp_path):
    tfrecords.edit_info(damaged, lambda train: train["shardLengths"].__setitem__(1, count))
    with pytest.raises(kabuki_rlds.KabukiError):
        kabuki_rlds.convert(damaged, tmp_path / "out.hdf5")
    if int(count) >= 0:
        result = kabuki_rlds.convert(damaged, tmp_path / "out.hdf5", skip_bad_episodes=True)
        assert result.num_episodes == EPISODES
        assert ["dataset_info.json lists more episodes" in loss.why for loss in result.skipped] == [True] * (
            count != "0"
        )


def test_negative_episode_count_is_rejected(damaged, tmp_path):
    tfrecords.edit_info(damaged, lambda train: train.update(shardLengths=["1", "-5", "1"]))
    with pytest.raises(
        kabuki_rlds.KabukiError, match=r"dataset_info.json: split 'train': a shard has a negative number of episodes"
    ):
        kabuki_rlds.convert(damaged, tmp_path / "out.hdf5")


def test_episodes_in_a_split_listed_as_empty_are_an_error(damaged, tmp_path):
    tfrecords.edit_info(damaged, lambda train: train.update(shardLengths=["0", "0", "0"]))
    with pytest.raises(kabuki_rlds.KabukiError, match=r"has at least \d+ episodes, expected 0 by dataset_info.json"):
        kabuki_rlds.convert(damaged, tmp_path / "out.hdf5")


def test_unlisted_episodes_of_a_shard_are_converted_with_a_warning(damaged, tmp_path, caplog):
    tfrecords.edit_info(damaged, lambda train: train["shardLengths"].__setitem__(1, "1"))
    result = kabuki_rlds.convert(damaged, tmp_path / "out.hdf5", skip_bad_episodes=True)
    assert (result.num_episodes, result.skipped) == (EPISODES, [])
    assert "more episodes than dataset_info.json lists" in caplog.text


def test_dataset_without_readable_episodes_is_rejected(damaged, tmp_path):
    for shard in tfrecords.shards(damaged):
        shard.write_bytes(b"")
    with pytest.raises(kabuki_rlds.KabukiError, match=f"none of the {EPISODES} episodes can be read; the first: "):
        kabuki_rlds.convert(damaged, tmp_path / "out.hdf5", skip_bad_episodes=True)
    assert not (tmp_path / "out.hdf5").exists()


def test_command_line_lists_skipped_episodes(damaged, tmp_path, capfd):
    flip_data(damaged)
    out = tmp_path / "out.hdf5"
    assert main(["convert", str(damaged), str(out), "--quiet", "--skip-bad-episodes"]) == 0
    error = capfd.readouterr().err
    shard = tfrecords.shards(damaged)[1]
    assert f"kabuki-rlds: warning: {shard}: record 1: the data is damaged (wrong checksum); left out\n" in error
    assert error.endswith("kabuki-rlds: warning: 1 episode was left out (empty or damaged); inspect names them\n")
    assert main(["inspect", str(out)]) == 0
    assert f"  left out  {shard}: record 1: the data is damaged (wrong checksum)\n" in capfd.readouterr().out
    assert main(["validate", str(out), "--against", str(damaged)]) == 0
    assert "matches its source, except for 1 damaged episodes that were left out" in capfd.readouterr().out


def test_stitched_files_keep_the_list_of_skipped_episodes(damaged, tmp_path):
    flip_data(damaged)
    first = kabuki_rlds.convert(damaged, tmp_path / "a.hdf5", skip_bad_episodes=True)
    second = kabuki_rlds.convert([first.path, first.path], tmp_path / "b.hdf5")
    assert second.skipped == [*first.skipped, *first.skipped]


def test_compare_reports_skipped_episodes_after_the_source_is_repaired(damaged, dataset, tmp_path):
    flip_data(damaged)
    result = kabuki_rlds.convert(damaged, tmp_path / "a.hdf5", skip_bad_episodes=True)
    (lost,) = kabuki_rlds.compare(result.path, dataset("plain"))
    assert (lost.message, lost.count) == ("in the source, but not in the file", 1)


# --- images and encoded tensors ---


def with_pictures(shape: tuple[int | None, ...] = (8, 8, 3), **observation: Any) -> datasets.Recipe:
    """Three episodes of an image, and other fields, a step."""
    features = tfds.features.FeaturesDict(
        {
            "steps": tfds.features.Dataset(
                {
                    **{
                        "observation": {
                            "image": tfds.features.Image(shape=shape),
                            **{name: feature for name, (feature, _) in observation.items()},
                        },
                        "action": np.float32,
                        "reward": np.float32,
                        "discount": np.float32,
                    },
                    **dict.fromkeys(("is_first", "is_last", "is_terminal"), np.bool_),
                }
            ),
        }
    )
    image = np.zeros((8, 8, 3), np.uint8)
    steps = [
        {
            "observation": {"image": image, **{name: value for name, (_, value) in observation.items()}},
            "action": 0,
            "reward": 0,
            "discount": 1,
            "is_first": t == 0,
            "is_last": t == 3,
            "is_terminal": False,
        }
        for t in range(4)
    ]
    return datasets.Recipe("pictures", features, {"train": [{"steps": steps}] * 3}, in_order=True)


def png(height: int, width: int, pixels: bytes = zlib.compress(bytes(1000))) -> bytes:
    """A file of few bytes, whatever the size that it states."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + pixels
    chunks = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data, b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def jpeg(height: int, width: int) -> bytes:
    file = bytearray(tf.io.encode_jpeg(np.zeros((8, 8, 3), np.uint8)).numpy())
    at = file.index(b"\xff\xc0")
    struct.pack_into(">HH", file, at + 5, height, width)
    return bytes(file)


def gif(height: int, width: int) -> bytes:
    return (
        b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\2"
    )


def bmp(height: int, width: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, -height, 1, 24, 0, 0, 0, 0, 0, 0)


BOMBS = {"png": png, "jpeg": jpeg, "gif": gif, "bmp": bmp}
LARGE = 30_000


def put_image(folder: Path, file: bytes) -> None:
    """Puts an image file in the place of the third image of the second episode."""
    (shard,) = folder.glob("*-train*")
    key = "steps/observation/image"
    tfrecords.edit(shard, 1, lambda e: e.features.feature[key].bytes_list.value.__setitem__(2, file))


@pytest.mark.parametrize("shape", [(8, 8, 3), (None, None, 3)])
@pytest.mark.parametrize("kind", BOMBS)
def test_image_with_a_huge_stated_size_is_not_decoded(kind, shape, tmp_path):
    folder = datasets.write(with_pictures(shape), tmp_path)
    put_image(folder, BOMBS[kind](LARGE, LARGE))
    with pytest.raises(kabuki_rlds.KabukiError) as error:
        kabuki_rlds.convert(folder, tmp_path / "out.hdf5")
    assert f"record 1: field 'observation/image': row 2 is {LARGE} x {LARGE} pixels" in str(error.value)
    result = kabuki_rlds.convert(folder, tmp_path / "out.hdf5", skip_bad_episodes=True)
    assert (result.num_episodes, result.skipped[0].record) == (2, 1)


@pytest.mark.parametrize("images", ["arrays", "encoded"])
@pytest.mark.parametrize(
    ("file", "says"),
    [
        (b"", "row 2 is empty (0 bytes)"),
        (b"\x89PNG\r\n\x1a\n", "row 2 is not a PNG, JPEG, GIF, BMP or WebP file, or its header is damaged"),
        (b"\xff\xd8\xff\xe0\0\x10", "row 2 is not a PNG"),
        (b"these are the bytes of no image", "row 2 is not a PNG"),
        (png(8, 9), "row 2 is 8 x 9 pixels, not 8 x 8 as its field states"),
        (png(8, 8)[:60], "row 2 is a truncated or damaged PNG file: 60 bytes, without an end"),
        (png(8, 8)[:45] + b"\0" + png(8, 8)[46:], "row 2 is a damaged PNG file: the checksum of its chunk at byte 33"),
        (jpeg(8, 8)[:-2], "row 2 is a truncated JPEG file: "),
        (jpeg(8, 8)[:-20].ljust(2000, b"\0"), "row 2 is a truncated JPEG file: 2,000 bytes, without an end marker"),
    ],
    ids=[
        "empty", "a PNG without a header", "a JPEG without a frame", "text", "another size", "truncated PNG",
        "changed PNG", "truncated JPEG", "JPEG with zeros at the end",
    ],
)  # fmt: skip
def test_damaged_image_is_reported_with_episode_and_row(file, says, images, tmp_path):
    folder = datasets.write(with_pictures(), tmp_path)
    put_image(folder, file)
    with pytest.raises(kabuki_rlds.KabukiError) as error:
        kabuki_rlds.convert(folder, tmp_path / "out.hdf5", images=images)
    assert f"record 1: field 'observation/image': {says}" in str(error.value)
    result = kabuki_rlds.convert(folder, tmp_path / "out.hdf5", images=images, skip_bad_episodes=True)
    assert (result.num_episodes, result.skipped[0].record) == (2, 1)


def test_undecodable_image_is_reported(tmp_path):
    folder = datasets.write(with_pictures(), tmp_path)
    # Its chunks are whole, but its pixels are not compressed.
    put_image(folder, png(8, 8, b"no deflate stream"))
    with pytest.raises(kabuki_rlds.KabukiError, match=r"record 1: field 'observation/image': row 2 cannot be decoded"):
        kabuki_rlds.convert(folder, tmp_path / "out.hdf5")
    assert kabuki_rlds.convert(folder, tmp_path / "out.hdf5", skip_bad_episodes=True).num_episodes == 2


def tensor(shape: tuple[int | None, ...]) -> tuple[Any, np.ndarray]:
    return tfds.features.Tensor(shape=shape, dtype=np.float64, encoding="zlib"), np.ones((4, 3))


@pytest.mark.parametrize("shape", [(4, 3), (None, 3), (None, None)])
@pytest.mark.parametrize(
    ("item", "says"),
    [
        (zlib.compress(bytes(300 << 20)), "decompresses to more than"),
        (zlib.compress(bytes(96))[:-6], "a truncated zlib stream"),
        (b"no zlib", "not a valid zlib stream"),
        (
            zlib.compress(bytes(95)),
            "field 'observation/depth': the number of bytes of an item does not match its shape",
        ),
        (
            zlib.compress(bytes(88)),
            "field 'observation/depth': the number of bytes of an item does not match its shape",
        ),
    ],
    ids=["decompression bomb", "truncated", "not zlib", "half a number", "missing number"],
)
def test_damaged_encoded_tensor_is_rejected(item, says, shape, tmp_path):
    folder = datasets.write(with_pictures(depth=tensor(shape)), tmp_path)
    (shard,) = folder.glob("*-train*")
    key = "steps/observation/depth/value" if shape == (None, None) else "steps/observation/depth"
    tfrecords.edit(shard, 1, lambda e: e.features.feature[key].bytes_list.value.__setitem__(2, item))
    with pytest.raises(kabuki_rlds.KabukiError) as error:
        kabuki_rlds.convert(folder, tmp_path / "out.hdf5")
    assert "record 1: " in str(error.value) and says in str(error.value)
    result = kabuki_rlds.convert(folder, tmp_path / "out.hdf5", skip_bad_episodes=True)
    assert (result.num_episodes, result.skipped[0].record) == (2, 1)


# --- wrong lengths: only memory of the record is read ---


def lists(change: Callable[[list[int]], list[int]]) -> Callable[[Any], None]:
    def edit(feature: Any) -> None:
        values = feature[LENGTHS].int64_list.value
        values[:] = change(list(values))

    return edit


LENGTHS = "steps/observation/boxes/ragged_row_lengths_1"
FILES = "steps/observation/pictures/ragged_flat_values"


@pytest.mark.parametrize(
    "change",
    [
        lambda lengths: [1 << 40, *lengths[1:]],
        lambda lengths: [-1, *lengths[1:]],
        lambda lengths: [lengths[0] + 10, lengths[1] - 10, *lengths[2:]],
        lambda lengths: lengths[1:],
        lambda lengths: [*lengths, 1],
        lambda lengths: [1 << 62] * len(lengths),
    ],
    ids=["huge", "negative", "shifted between lists", "too few", "too many", "sum overflows int64"],
)
def test_wrong_list_lengths_are_rejected(change, tmp_path):
    inner = tfds.features.Sequence(tfds.features.Sequence(np.float32))
    folder = datasets.write(with_pictures(boxes=(inner, [[1.0, 2.0], [3.0]])), tmp_path)
    (shard,) = folder.glob("*-train*")
    assert LENGTHS in tf.train.Example.FromString(tfrecords.read(shard)[0].data).features.feature
    tfrecords.edit(shard, 1, lambda example: lists(change)(example.features.feature))
    with pytest.raises(kabuki_rlds.KabukiError, match=r"record 1: field 'observation/boxes'"):
        kabuki_rlds.convert(folder, tmp_path / "out.hdf5")
    result = kabuki_rlds.convert(folder, tmp_path / "out.hdf5", skip_bad_episodes=True)
    assert (result.num_episodes, result.skipped[0].record) == (2, 1)


def test_wrong_number_of_list_items_or_images_is_rejected(tmp_path):
    pictures = tfds.features.Sequence(tfds.features.Image(shape=(8, 8, 3)))
    recipe = with_pictures(pictures=(pictures, [np.zeros((8, 8, 3), np.uint8)] * 2))
    corners = tfds.features.Sequence(np.int16, length=4)
    recipe = dataclasses.replace(
        recipe,
        features=tfds.features.FeaturesDict({**recipe.features, "corners": corners}),
        splits={"train": [{**episode, "corners": [1, 2, 3, 4]} for episode in recipe.splits["train"]]},
    )
    folder = datasets.write(recipe, tmp_path)
    (shard,) = folder.glob("*-train*")
    tfrecords.edit(shard, 0, lambda e: e.features.feature["corners"].int64_list.value.append(5))
    tfrecords.edit(shard, 1, lambda e: e.features.feature[FILES].bytes_list.value.pop())
    with pytest.raises(kabuki_rlds.KabukiError, match="record 0: field 'corners': a list has 5 items, expected 4"):
        kabuki_rlds.convert(folder, tmp_path / "out.hdf5")
    result = kabuki_rlds.convert(folder, tmp_path / "out.hdf5", skip_bad_episodes=True)
    assert [(loss.record, loss.count) for loss in result.skipped] == [(0, 1), (1, 1)]
    assert "field 'observation/pictures': an episode has 7 images, expected 8" in result.skipped[1].why


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("text", "field 'text': an episode has 2 elements, expected 1"),
        ("tensor", "field 'tensor': an episode has 2 items, expected 1"),
        ("lists/ragged_row_lengths_1", "field 'lists': an episode has 2 lists, expected 1"),
        ("lists/ragged_flat_values", "field 'lists': an episode has 3 elements, expected 2"),
        ("steps/list/ragged_flat_values", "field 'list': an episode has 5 elements, expected 4"),
        ("steps/depth/shape", "field 'depth': an episode has 9 dimensions, expected 8"),
    ],
)
def test_length_mismatch_across_episodes_is_rejected(key, says, tmp_path):
    recipe = with_pictures()
    steps = {
        "list": tfds.features.Sequence(np.int32),
        "depth": tfds.features.Tensor(shape=(None, None), dtype=np.float32, encoding="bytes"),
    }
    metadata = {
        "text": tfds.features.Text(),
        "tensor": tfds.features.Tensor(shape=(2,), dtype=np.float64, encoding="bytes"),
        "lists": tfds.features.Sequence(tfds.features.Sequence(tfds.features.Sequence(np.int32))),
    }
    features = {**recipe.features, **metadata, "steps": {**recipe.features["steps"].feature, **steps}}
    features["steps"] = tfds.features.Dataset(features["steps"])
    episodes = [
        {
            "steps": [{**step, "list": [number], "depth": np.ones((1, 1), np.float32)} for step in episode["steps"]],
            "text": f"episode {number}",
            "tensor": np.full(2, number, float),
            "lists": [[[number, number]]],
        }
        for number, episode in enumerate(recipe.splits["train"])
    ]
    recipe = dataclasses.replace(
        recipe, features=tfds.features.FeaturesDict(features), splits={"train": episodes}, in_order=True
    )
    folder = datasets.write(recipe, tmp_path)
    (shard,) = folder.glob("*-train*")

    def values(example: Any) -> Any:
        feature = example.features.feature[key]
        return getattr(feature, feature.WhichOneof("kind")).value

    tfrecords.edit(shard, 0, lambda example: values(example).append(values(example)[0]))
    tfrecords.edit(shard, 1, lambda example: values(example).pop())
    with pytest.raises(kabuki_rlds.KabukiError) as error:
        kabuki_rlds.convert(folder, tmp_path / "out.hdf5")
    assert str(error.value).startswith(f"{shard}: record 0: {says}; ")
    result = kabuki_rlds.convert(folder, tmp_path / "out.hdf5", skip_bad_episodes=True)
    assert [loss.record for loss in result.skipped] == [0, 1]
    with h5py.File(result.path) as file:
        assert file["episodes/metadata/text"].asstr()[:].tolist() == ["episode 2"]


# --- fields that TFDS decodes ---


@pytest.mark.parametrize("kind", ["Sequence", "Dataset"])
@pytest.mark.parametrize(
    ("file", "says"),
    [
        (png(LARGE, LARGE), f"field 'observation/pictures': image 3 is {LARGE} x {LARGE} pixels, not 8 x 8"),
        (b"", "field 'observation/pictures': image 3 is empty"),
        (png(8, 8)[:60], "field 'observation/pictures': image 3 is a truncated"),
        (png(8, 8, b"no deflate stream"), "TFDS cannot decode an episode's 'observation/pictures': "),
    ],
    ids=["huge", "empty", "truncated", "not decodable"],
)
def test_damaged_image_in_nested_lists_is_rejected(file, says, kind, tmp_path):
    image = tfds.features.Image(shape=(8, 8, 3))
    pictures = getattr(tfds.features, kind)(tfds.features.Sequence(image))
    folder = datasets.write(with_pictures(pictures=(pictures, [[np.zeros((8, 8, 3), np.uint8)]])), tmp_path)
    (shard,) = folder.glob("*-train*")
    tfrecords.edit(shard, 1, lambda e: e.features.feature[FILES].bytes_list.value.__setitem__(3, file))
    with pytest.raises(kabuki_rlds.KabukiError) as error:
        kabuki_rlds.convert(folder, tmp_path / "out.hdf5")
    assert str(error.value).startswith(f"{shard}: record 1: {says}")
    assert "\n" not in str(error.value) and "{{" not in str(error.value)
    result = kabuki_rlds.convert(folder, tmp_path / "out.hdf5", skip_bad_episodes=True)
    assert (result.num_episodes, result.skipped[0].record) == (2, 1)


def test_wrong_shape_of_a_value_decoded_by_tfds_is_rejected(tmp_path, monkeypatch):
    folder = datasets.write(with_pictures(sound=(tfds.features.Audio(shape=(2,)), [1, 2])), tmp_path)
    decode = tfds.features.Audio.decode_example
    monkeypatch.setattr(tfds.features.Audio, "decode_example", lambda self, value: decode(self, value)[:, None])
    says = r"field 'observation/sound': has shape \(2, 1\), expected \(2,\) by its feature"
    with pytest.raises(kabuki_rlds.KabukiError, match=says):
        kabuki_rlds.convert(folder, tmp_path / "out.hdf5")


@pytest.mark.parametrize("shape", [(1 << 32, 1 << 32), (-4, -3), (12,), (4, 4)])
def test_wrong_stored_tensor_shape_is_rejected(shape, tmp_path):
    folder = datasets.write(with_pictures(depth=tensor((None, None))), tmp_path)
    (shard,) = folder.glob("*-train*")

    def change(example: Any) -> None:
        values = example.features.feature["steps/observation/depth/shape"].int64_list.value
        values[:] = [*shape, *list(values)[2:]]

    tfrecords.edit(shard, 1, change)
    with pytest.raises(kabuki_rlds.KabukiError, match=r"record 1: field 'observation/depth'"):
        kabuki_rlds.convert(folder, tmp_path / "out.hdf5")


# --- untrusted datasets ---


def template(text: str) -> Callable[[dict[str, Any]], object]:
    return lambda train: train.update(filepathTemplate=text)


@pytest.mark.parametrize(
    "text",
    [
        "../{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "a/../../../{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "/etc/{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    ],
)
@pytest.mark.parametrize("skip", [False, True])
def test_shards_outside_of_the_folder_are_not_read(text, skip, damaged, tmp_path):
    for shard in tfrecords.shards(damaged):
        shutil.copy(shard, damaged.parent / shard.name)
    tfrecords.edit_info(damaged, template(text))
    with pytest.raises(kabuki_rlds.KabukiError, match="outside of the dataset's folder"):
        kabuki_rlds.convert(damaged, tmp_path / "out.hdf5", skip_bad_episodes=skip)


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
def test_oversized_metadata_file_is_rejected(name, damaged, tmp_path):
    with open(damaged / name, "ab") as file:
        file.truncate(10 << 30)
    with pytest.raises(kabuki_rlds.KabukiError, match=f"{name}: has .* bytes, more than the limit of 16,777,216"):
        kabuki_rlds.convert(damaged, tmp_path / "out.hdf5")


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
def test_deeply_nested_metadata_is_rejected(name, damaged, tmp_path):
    (damaged / name).write_text("[" * 200_000)
    with pytest.raises(kabuki_rlds.KabukiError):
        kabuki_rlds.convert(damaged, tmp_path / "out.hdf5")


@pytest.mark.parametrize(
    ("size", "count", "says"),
    [
        ("8", 1, "field 'observation/image': a row of image uint8 .* expected 0 to 268,435,456"),
        ("8", 2, "field 'observation/image': a row of image uint8 .* expected 0 to 268,435,456"),
        ("7", 2, "field 'observation/more': a row of float32 .* expected 0 to 268,435,456"),
    ],
)
def test_oversized_feature_shape_is_rejected(size, count, says, tmp_path):
    more = tfds.features.Tensor(shape=(7, 7), dtype=np.float32)
    folder = datasets.write(with_pictures(more=(more, np.zeros((7, 7), np.float32))), tmp_path)
    text = (folder / "features.json").read_text()
    (folder / "features.json").write_text(text.replace(f'"{size}"', '"1099511627776"', count))
    assert (folder / "features.json").read_text() != text
    with pytest.raises(kabuki_rlds.KabukiError, match=says):
        kabuki_rlds.convert(folder, tmp_path / "out.hdf5")


def test_class_named_in_features_json_is_not_imported(damaged, tmp_path, monkeypatch):
    (tmp_path / "stranger.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    features = json.loads((damaged / "features.json").read_text())
    features["pythonClassName"] = "stranger.Features"
    (damaged / "features.json").write_text(json.dumps(features))
    with pytest.raises(kabuki_rlds.KabukiError, match=r"has the class 'stranger.Features'"):
        kabuki_rlds.convert(damaged, tmp_path / "out.hdf5")


# --- a source that changes ---


@pytest.mark.parametrize("name", ["features.json", "plain-train.tfrecord-00002-of-00003"])
def test_source_that_changes_during_conversion_is_rejected(name, damaged, tmp_path, monkeypatch):
    from kabuki_rlds.formats.hdf5.sink import KabukiSink

    write = KabukiSink.write

    def change(self, block) -> None:
        write(self, block)
        (damaged / name).touch()

    monkeypatch.setattr(KabukiSink, "write", change)
    with pytest.raises(kabuki_rlds.KabukiError, match=f"{name}: changed while it was read"):
        kabuki_rlds.convert(damaged, tmp_path / "out.hdf5")
    assert not (tmp_path / "out.hdf5").exists()
