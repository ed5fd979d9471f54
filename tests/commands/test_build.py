"""RLDS -> HDF5 -> RLDS gives equal features and values, and handmade files become RLDS datasets.

The tests compare the values that TFDS decodes. For datasets that TFDS cannot read, they compare the records with those
that TFDS wrote.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_datasets import features as tff

import kabuki_rlds
from kabuki_rlds import KabukiError
from kabuki_rlds.cli.main import main
from tests import datasets, expected, handmade, layout_files
from tests.places import ROOT
from tests.project.test_datasets import assert_same, same

BUILDER = ROOT / "builders" / "kabuki_hdf5"

# TFDS cannot read a tensor of unknown size without an encoding, so it cannot be converted.
RECIPES = [n for n in (*datasets.READ_BY_TFDS, *datasets.NOT_READ_BY_TFDS) if n != "unencoded_ragged"]


def features_of(folder: Path) -> tff.FeaturesDict:
    return tfds.builder_from_directory(folder).info.features


def records(folder: Path, split: str = "train") -> list[tf.train.Example]:
    """Returns the records of a split, in the order of its shards."""
    info = tfds.builder_from_directory(folder).info
    found: list[bytes] = []
    for shard in info.splits[split].file_instructions if info.splits[split].num_examples else ():
        if info.file_format is tfds.core.FileFormat.ARRAY_RECORD:
            from array_record.python import array_record_module

            found += array_record_module.ArrayRecordReader(shard.filename).read_all()
        else:
            found += [record.numpy() for record in tf.data.TFRecordDataset(shard.filename)]
    return [tf.train.Example.FromString(record) for record in found]


def lists(example: tf.train.Example, without: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Maps each key to its serialized feature, for comparison bit by bit."""
    return {key: value.SerializeToString() for key, value in example.features.feature.items() if key not in without}


# --- RLDS -> HDF5 -> RLDS ---


def build_again(
    name: str, stored: str, converted: Any, dataset: Any, tmp_path: Path, **options: Any
) -> kabuki_rlds.Built:
    if name == "no_reward":
        file = kabuki_rlds.convert(dataset(name), tmp_path / "file.hdf5", fill={"reward": 0.0}).path
    else:
        file = converted(name, stored)
    return kabuki_rlds.build(file, tmp_path / "data", **options)


@pytest.mark.parametrize("name", RECIPES)
def test_round_trip_gives_identical_records(name, dataset, converted, expected, tmp_path):
    built = build_again(name, "encoded", converted, dataset, tmp_path)
    assert built.splits == {"train": len(expected(name).lengths)}
    assert built.num_steps == sum(expected(name).lengths)
    want, got = features_of(dataset(name)), features_of(built.path)
    assert (repr(got), got.to_json()) == (repr(want), want.to_json())
    # TFDS returns a value for an optional field that is missing from an episode.
    missing = ("optional",) if name == "uncovered" else ()
    for ours, theirs in zip(records(built.path), records(dataset(name)), strict=True):
        assert lists(ours, missing) == lists(theirs, missing)


@pytest.mark.parametrize("name", datasets.READ_BY_TFDS)
def test_tfds_decodes_the_same_values(name, dataset, converted, expected, tmp_path):
    # PNG keeps the pixels, so JPEG loss occurs only once.
    built = build_again(name, "arrays", converted, dataset, tmp_path, images="png")
    want = json.dumps(features_of(dataset(name)).to_json()).replace('"jpeg"}', '"png"}')
    assert features_of(built.path).to_json() == json.loads(want)
    assert_same(module_expected(built.path), expected(name))


@pytest.mark.parametrize("name", ["oxe_style", "every_kind"])
def test_decoded_images_get_the_format_of_their_original_files(name, dataset, converted, expected, tmp_path):
    built = build_again(name, "arrays", converted, dataset, tmp_path)
    assert features_of(built.path).to_json() == features_of(dataset(name)).to_json()
    with h5py.File(converted(name, "arrays")) as file:
        formats = {path: file[path].attrs.get("file_format") for path in expected(name).steps}
    assert "jpeg" in formats.values()
    got = module_expected(built.path)
    for path, want in expected(name).steps.items():
        for ours, theirs in zip(got.steps[path], want, strict=True):
            if formats[path] != "jpeg":
                assert same(ours, theirs)
                continue
            # JPEG is lossy, so the pixels are only approximately equal.
            assert np.shape(ours) == np.shape(theirs)
            assert not np.size(ours) or np.abs(np.subtract(ours, theirs, dtype=float)).mean() < 20


def module_expected(folder: Path, split: str = "train") -> expected.Expected:
    return expected.read(folder, split)


def test_class_names_round_trip(converted, tmp_path):
    features = features_of(kabuki_rlds.build(converted("every_kind"), tmp_path).path)
    assert features["steps"]["action"]["gripper"].names == ["open", "close", "stay put"]
    assert features["task"].names == ["reach", "grasp"]
    steps = features_of(kabuki_rlds.build(converted("uncovered"), tmp_path).path)["steps"]
    assert steps["segments"].names == ["floor", "wall", "cup"]
    assert steps["segments_of_any_size"].names == ["0", "1", "2", "3", "4"]


def test_description_citation_and_metadata_round_trip(dataset, converted, tmp_path):
    built = kabuki_rlds.build(converted("with_config"), tmp_path)
    assert built.path == tmp_path / "with_config" / "medium" / "1.0.0"
    want, got = (tfds.builder_from_directory(folder).info for folder in (dataset("with_config"), built.path))
    for key in ("full_name", "description", "citation", "homepage", "version"):
        assert getattr(got, key) == getattr(want, key)
    assert built.num_bytes == sum(file.stat().st_size for file in built.path.iterdir())


def test_metadata_and_version_come_from_the_file(tmp_path):
    specs = {"environment": {"name": "Hopper-v5", "dt": 0.008}, "seeds": [1, 2]}
    root = {"environment": json.dumps(specs), "version": "2.1.0", "name": "not a name of TFDS"}
    file = handmade.write(tmp_path / "my hopper-2.hdf5", handmade.fields(), root)
    built = kabuki_rlds.build(file, tmp_path / "data")
    assert built.path == tmp_path / "data" / "my_hopper_2" / "2.1.0"
    ours = {"kabuki": {"last_is_step": {"train": [[False, 3]]}}}
    assert dict(tfds.builder_from_directory(built.path).info.metadata) == specs | ours


def test_column_added_by_hand_is_built(converted, tmp_path):
    file = tmp_path / "plain.hdf5"
    shutil.copy(converted("plain"), file)
    values = np.random.default_rng(0).standard_normal((139, 2))
    with h5py.File(file, "a") as f:
        f["observation/added/later"] = values
    built = kabuki_rlds.build(file, tmp_path / "data")
    got = module_expected(built.path)
    assert np.array_equal(np.stack(got.steps["observation/added/later"]), values)
    assert "agent" in got.episodes


# --- handmade files ---


def by_hand() -> dict[str, Any]:
    """Returns the fields of a file without features and index. There is one field of each kind that h5py writes."""
    rng = np.random.default_rng(1)
    n = sum(handmade.LENGTHS)
    rows = np.empty(n, object)
    rows[:] = [rng.standard_normal(i % 3).astype(np.float32) for i in range(n)]
    gripper = handmade.Stored(np.arange(n) % 2, attributes={"kind": "label", "class_names": ["open", "closed"]})
    ragged = handmade.Stored(rows, {"dtype": h5py.vlen_dtype(np.float32)})
    camera = rng.integers(0, 256, (n, 32, 40, 3), np.uint8)
    del (fields := handmade.fields())["observation"]
    return fields | {
        "reward": rng.standard_normal(n),
        "observation/camera": camera,
        "observation/small": camera[:, :2, :2],
        "observation/state": rng.standard_normal((n, 2, 3)),
        "observation/half": rng.standard_normal(n).astype(np.float16),
        "observation/ticks": np.full(n, 2**64 - 1, np.uint64),
        "observation/ids": np.full((n, 2), 2**32 - 1, np.uint32),
        "observation/count": np.arange(n, dtype=np.int8) - 4,
        "observation/gripper": gripper,
        "observation/points": ragged,
        "observation/nothing": np.zeros((n, 0, 2), np.float32),
        "instruction": handmade.Stored([f"größer {i}" for i in range(n)], {"dtype": h5py.string_dtype()}),
        "words": handmade.Stored([["a", "", "b"]] * n, {"dtype": h5py.string_dtype()}),
    }


@pytest.fixture(scope="module")
def hand_file(tmp_path_factory) -> Path:
    return handmade.write(tmp_path_factory.mktemp("hand") / "by_hand.hdf5", by_hand())


def test_handmade_file_becomes_a_dataset(hand_file, tmp_path):
    built = kabuki_rlds.build(hand_file, tmp_path)
    assert built.path == tmp_path / "by_hand" / "1.0.0"
    got = module_expected(built.path)
    assert got.lengths == list(handmade.LENGTHS)
    with h5py.File(hand_file) as f:
        for path, values in got.steps.items():
            stored = f[path][:]
            texts = h5py.check_string_dtype(f[path].dtype) is not None
            for value, row in zip(values, stored, strict=True):
                assert same(value, row if isinstance(row, bytes) else np.asarray(row)), path
            assert texts or path == "observation/points" or values[0].dtype == stored.dtype
        assert got.steps.keys() == by_hand().keys()


def test_features_are_derived_from_dtype_and_shape(hand_file, tmp_path):
    steps = features_of(kabuki_rlds.build(hand_file, tmp_path).path)["steps"].feature
    observation = steps["observation"]
    assert isinstance(observation["camera"], tff.Image) and observation["camera"].encoding_format == "png"
    assert type(observation["small"]) is tff.Tensor  # A grid of the environment's, and no picture.
    assert observation["gripper"].names == ["open", "closed"]
    assert isinstance(steps["instruction"], tff.Text)
    for feature in (observation["state"], observation["ticks"], observation["points"], steps["reward"]):
        assert feature.to_json_content().encoding == "bytes"
    assert observation["count"].to_json_content().encoding == "none"


def test_hdf5_enumeration_becomes_class_names(tmp_path, caplog):
    phases = np.arange(8, dtype=np.int8) % 3
    counted = h5py.enum_dtype({"reach": 0, "lift": 2, "grasp": 1}, "i1")
    flags = h5py.enum_dtype({"none": 0, "slip": 4}, "u2")
    rows = np.empty(8, object)
    rows[:] = [phases[:i] for i in range(8)]
    fields = {
        "phase": handmade.Stored(phases, {"dtype": counted}),
        "phases": handmade.Stored(rows, {"dtype": h5py.vlen_dtype(counted)}),
        "trouble": handmade.Stored(phases // 2 * 4, {"dtype": flags}),
    }
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields() | fields)
    kabuki_rlds.convert(file, tmp_path / "out.hdf5")
    assert caplog.text.count("f.hdf5: 'trouble': the names of the enumeration are ignored") == 1
    with h5py.File(tmp_path / "out.hdf5") as out:
        assert out["phase"].dtype == np.int8 and h5py.check_enum_dtype(out["phase"].dtype) is None
        assert out["phase"].attrs["class_names"].tolist() == ["reach", "grasp", "lift"]
        assert out["trouble"][:].tolist() == [0, 0, 4, 0, 0, 4, 0, 0]
    for source in (file, tmp_path / "out.hdf5"):
        built = kabuki_rlds.build(source, tmp_path / "data", name="x", overwrite=True)
        steps = features_of(built.path)["steps"].feature
        assert steps["phase"].names == steps["phases"].feature.names == ["reach", "grasp", "lift"]
        got = module_expected(built.path).steps
        assert [int(value) for value in got["phase"]] == phases.tolist()
        assert [value.tolist() for value in got["phases"]] == [row.tolist() for row in rows]


def test_images_jpeg_encodes_images_as_jpeg(hand_file, converted, tmp_path):
    built = kabuki_rlds.build(hand_file, tmp_path, encode="jpeg")
    assert features_of(built.path)["steps"]["observation"]["camera"].encoding_format == "jpeg"
    file = records(built.path)[0].features.feature["steps/observation/camera"].bytes_list.value[0]
    assert file[:3] == b"\xff\xd8\xff"
    # Images that were stored losslessly stay lossless.
    images = features_of(kabuki_rlds.build(converted("every_kind"), tmp_path, encode="jpeg").path)["steps"]
    formats = {name: images["observation"]["image"][name]["fixed"].encoding_format for name in ("png_3", "jpeg_3")}
    assert formats == {"png_3": "png", "jpeg_3": "jpeg"}


_KEPT = [np.bool_, *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))]
_KEPT += [np.float16, np.float32, np.float64]
_LENGTHS = st.lists(st.integers(1, 4), min_size=1, max_size=3)


@st.composite
def columns(draw: st.DrawFn) -> tuple[list[int], dict[str, np.ndarray]]:
    """(lengths of the episodes, columns of any bits at all, NaNs of all kinds among them)."""
    lengths = draw(_LENGTHS)
    shape = (sum(lengths), *draw(st.lists(st.integers(0, 3), max_size=2)))
    made = {}
    for dtype in map(np.dtype, _KEPT):  # type: ignore[arg-type, var-annotated]
        size = int(np.prod(shape))
        if dtype.kind == "b":
            values = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)), bool)
        else:
            # Half of the rows are of the bits of small, large and special values, which few random bits are.
            bits = draw(st.binary(min_size=size * dtype.itemsize, max_size=size * dtype.itemsize))
            values = np.frombuffer(bits, dtype)
            special = datasets._values(np.random.default_rng(0), dtype)[:8]
            values = np.where(np.arange(size) % 2, values, np.resize(special, size))
        if dtype == np.uint32 and 0 in shape[2:]:
            continue  # TFDS reads no uint32 from bytes, and nothing of unknown size without.
        made[dtype.name] = values.reshape(shape)
    texts = np.empty(shape[0], object)
    texts[:] = [draw(st.binary(max_size=3)).replace(b"\0", b"-") for _ in range(shape[0])]
    return lengths, made | {"text": texts}


@given(columns())
@settings(max_examples=8)
def test_arbitrary_columns_round_trip(tmp_path_factory, drawn):
    lengths, made = drawn
    folder = tmp_path_factory.mktemp("bits")
    stored = {
        f"observation/{name}": handmade.Stored(values, {"dtype": h5py.string_dtype()} if name == "text" else {})
        for name, values in made.items()
    }
    del (fields := handmade.fields(lengths, [True] * len(lengths)))["observation"]
    built = kabuki_rlds.build(handmade.write(folder / "bits.hdf5", fields | stored), folder)
    got = module_expected(built.path)
    assert got.lengths == lengths
    for name, values in made.items():
        rows = got.steps[f"observation/{name}"]
        if name == "text":
            assert rows == values.tolist()
        else:
            assert all(row.dtype == values.dtype for row in rows)
            assert np.stack(rows).tobytes() == values.tobytes(), name


def test_episode_of_many_blocks_is_one_record(tmp_path):
    # A block has at most 65,536 rows.
    lengths = (5, 150_000, 1, 70_000)
    file = handmade.write(tmp_path / "long.hdf5", handmade.fields(lengths, (True,) * 4))
    examples = records(kabuki_rlds.build(file, tmp_path).path)
    actions = [np.array(e.features.feature["steps/action"].int64_list.value) for e in examples]
    assert [len(column) for column in actions] == list(lengths)
    assert np.array_equal(np.concatenate(actions), np.arange(sum(lengths)))


# --- splits, files, shards ---


def test_several_files_are_splits_and_are_stitched(dataset, tmp_path):
    files = {}
    for name, split in (("a", "train"), ("b", "test"), ("c", "train[2:5]")):
        files[name] = kabuki_rlds.convert(dataset("plain"), tmp_path / f"{name}.hdf5", split=split).path
    built = kabuki_rlds.build({"train": [files["a"], files["c"]], "val": files["b"]}, tmp_path, name="both")
    assert built.splits == {"train": 13, "val": 4}
    assert built.num_episodes == 17
    want = [expected.read(dataset("plain"), split) for split in ("train", "train[2:5]", "test")]
    train, val = module_expected(built.path), module_expected(built.path, "val")
    assert_same(val, want[2])
    assert train.lengths == want[0].lengths + want[1].lengths
    for path, values in train.steps.items():
        assert same(values, want[0].steps[path] + want[1].steps[path])


def test_field_of_one_of_two_sources_is_kept(dataset, tmp_path):
    # The first, whose features the file has, had no discount.
    sources = [dataset("no_discount"), dataset("plain")]
    file = kabuki_rlds.convert(sources, tmp_path / "both.hdf5").path
    got = module_expected(kabuki_rlds.build(file, tmp_path / "data").path)
    with h5py.File(file) as f:
        assert np.array_equal(np.stack(got.steps["discount"]), f["discount"][:])


def test_empty_file_becomes_an_empty_split(dataset, tmp_path):
    nothing = kabuki_rlds.convert(dataset("empty_split"), tmp_path / "nothing.hdf5", split="nothing").path
    train = kabuki_rlds.convert(dataset("empty_split"), tmp_path / "train.hdf5").path
    built = kabuki_rlds.build({"train": train, "nothing": nothing}, tmp_path)
    assert built.splits == {"train": 10, "nothing": 0}
    assert tfds.builder_from_directory(built.path).info.splits["nothing"].num_examples == 0


def test_load_rejects_files_with_different_fields(converted, hand_file, tmp_path):
    with pytest.raises(KabukiError, match=r"by_hand.hdf5 does not fit .*: step field '"):
        kabuki_rlds.build({"train": converted("plain"), "test": hand_file}, tmp_path / "data")
    other = tmp_path / "other.hdf5"
    shutil.copy(converted("plain"), other)
    with h5py.File(other, "a") as f:
        f.attrs["features"] = f.attrs["features"].replace('"encoding": "none"', '"encoding": "zlib"', 1)
    with pytest.raises(
        KabukiError, match=r"other.hdf5 is incompatible with .*: they have the same fields, but different TFDS features"
    ):
        kabuki_rlds.build([converted("plain"), other], tmp_path / "data")
    assert not (tmp_path / "data").exists()


# --- `tfds build` ---


def run_tfds(*arguments: Any) -> None:
    """Runs the TFDS command line in this process."""
    pytest.importorskip("mlcroissant", reason="the tfds command needs the extra `build`")
    from tensorflow_datasets.scripts.cli import main as tfds_main

    tfds_main.main(tfds_main._parse_flags(["tfds", "build", str(BUILDER), *map(str, arguments)]))


def config(path: Any, name: str = "plain", **more: Any) -> str:
    return json.dumps({"name": name, "path": path, **more})


def test_tfds_build_works_in_a_new_process(converted, dataset, expected, tmp_path):
    pytest.importorskip("mlcroissant", reason="the tfds command needs the extra `build`")
    command = ["-m", "tensorflow_datasets.scripts.cli.main", "build", str(BUILDER)]
    options = ["--config", config(str(converted("plain"))), "--data_dir", str(tmp_path), "--file_format=array_record"]
    subprocess.run([sys.executable, *command, *options], check=True, capture_output=True, cwd=tmp_path)
    folder = tmp_path / "kabuki_hdf5" / "plain" / "1.0.0"
    assert sorted(file.name for file in folder.iterdir()) == [
        "dataset_info.json",
        "features.json",
        "kabuki_hdf5-train.array_record-00000-of-00001",
        "metadata.json",
    ]
    info = tfds.builder("kabuki_hdf5/plain", data_dir=tmp_path).info
    assert info.description == "The test dataset plain."
    assert info.citation == "@misc{plain}"
    assert_same(module_expected(folder), expected("plain"))


def test_tfds_build_options_work(converted, dataset, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(converted("plain").parent)
    files = config({"train": ["./plain-arrays.hdf5"], "test": "plain-arrays.hdf5"}, version="3.0.0")
    options = ("--config", files, "--data_dir", tmp_path)
    folder = tmp_path / "kabuki_hdf5" / "plain" / "3.0.0"

    run_tfds(*options, "--max_examples_per_split=3")
    assert {s.name: s.num_examples for s in info_of(folder).splits.values()} == {"train": 3, "test": 3}
    run_tfds(*options)  # As any dataset that is there, it is left alone.
    assert info_of(folder).splits["train"].num_examples == 3

    run_tfds(*options, "--overwrite", "--num_shards=4")
    assert info_of(folder).splits["train"].shard_lengths == [2, 3, 3, 2]
    # The defaults of TFDS keep the order, also with several shards.
    ids = [int(episode["episode_id"]) for episode in tfds.load("kabuki_hdf5/plain", data_dir=tmp_path, split="train")]
    assert ids == [int(i) for i in expected("plain").episodes["episode_id"]]
    assert_same(module_expected(folder, "test"), expected("plain"))


def test_more_shards_than_episodes_are_rejected(hand_file, tmp_path):
    with pytest.raises(KabukiError, match="3 episodes cannot fill 4 shards; request fewer shards"):
        run_tfds("--config", config(str(hand_file)), "--data_dir", tmp_path, "--num_shards=4")
    assert not list(tmp_path.rglob("*tfrecord*"))


@pytest.mark.parametrize("beam", [False, True])
def test_file_that_changes_during_tfds_build_is_rejected(beam, tmp_path, monkeypatch):
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields())
    if beam:
        apache_beam = pytest.importorskip("apache_beam", reason="needs the extra `build`")
        changed, name = apache_beam, "Pipeline"
    else:
        changed, name = tfds.core.utils, "tqdm"
    make = getattr(changed, name)

    def later(*args: Any, **options: Any) -> Any:
        file.touch()
        return make(*args, **options)

    monkeypatch.setattr(changed, name, later)
    options = ["--beam_pipeline_options=runner=DirectRunner"] if beam else []
    with pytest.raises(KabukiError, match=f"{file}: changed while it was read"):
        run_tfds("--config", config(str(file)), "--data_dir", tmp_path / "data", *options)
    assert not list((tmp_path / "data").rglob("*tfrecord*"))


def info_of(folder: Path) -> tfds.core.DatasetInfo:
    return tfds.builder_from_directory(folder).info


def test_beam_builds_the_same_dataset(converted, tmp_path):
    pytest.importorskip("apache_beam", reason="needs the extra `build`")
    files = config({"train": [str(converted("oxe_style"))] * 2, "test": str(converted("oxe_style"))}, "kinds")
    for folder, options in (
        ("alone", ["--max_examples_per_split=7"]),
        ("beam", ["--max_examples_per_split=7", "--beam_pipeline_options=runner=DirectRunner"]),
    ):
        run_tfds("--config", files, "--data_dir", tmp_path / folder, "--num_shards=2", *options)
    alone, beam = (tmp_path / folder / "kabuki_hdf5" / "kinds" / "1.0.0" for folder in ("alone", "beam"))
    assert features_of(beam).to_json() == features_of(alone).to_json()
    for split, count in (("train", 7), ("test", 4)):
        ours = records(beam, split)
        assert len(ours) == count
        assert list(map(lists, ours)) == list(map(lists, records(alone, split)))
    assert len(info_of(beam).splits["train"].shard_lengths) == 2


def test_beam_divides_episodes_among_processes(tmp_path, hand_file):
    pytest.importorskip("apache_beam", reason="needs the extra `build`")
    lengths = (200,) * 30
    file = handmade.write(tmp_path / "many.hdf5", handmade.fields(lengths, (True,) * 30))
    options = "--beam_pipeline_options=direct_num_workers=2,direct_running_mode=multi_processing"
    run_tfds("--config", config(str(file), "many"), "--data_dir", tmp_path, options)
    examples = records(tmp_path / "kabuki_hdf5" / "many" / "1.0.0")
    actions = [np.array(e.features.feature["steps/action"].int64_list.value) for e in examples]
    assert [len(column) for column in actions] == list(lengths)
    assert np.array_equal(np.concatenate(actions), np.arange(sum(lengths)))


def test_beam_rejects_a_file_that_lost_episodes(tmp_path, monkeypatch):
    beam = pytest.importorskip("apache_beam", reason="needs the extra `build`")
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields())
    shorter = handmade.write(tmp_path / "shorter.hdf5", handmade.fields((3, 1), (True, False)))
    pipeline = beam.Pipeline

    def later(*args: Any, **options: Any) -> Any:
        shorter.replace(file)
        return pipeline(*args, **options)

    monkeypatch.setattr(beam, "Pipeline", later)
    with pytest.raises(KabukiError, match="split 'train': 2 episodes were written, expected 3"):
        run_tfds(
            *("--config", config(str(file)), "--data_dir", tmp_path / "data"),
            "--beam_pipeline_options=runner=DirectRunner",
        )
    assert not list((tmp_path / "data").rglob("*tfrecord*"))


def test_beam_accepts_only_kabuki_files(tmp_path):
    pytest.importorskip("apache_beam", reason="needs the extra `build`")
    file = layout_files.d4rl(tmp_path / "d4rl.hdf5", terminals=np.array([0, 1], bool), timeouts=np.zeros(2, bool))
    options = ("--config", config(str(file), "hopper"), "--data_dir", tmp_path / "data")
    with pytest.raises(KabukiError, match=f"{file}: a Beam build reads only Kabuki files; use `convert` first"):
        run_tfds(*options, "--beam_pipeline_options=runner=DirectRunner")
    assert not list((tmp_path / "data").rglob("*tfrecord*"))
    run_tfds(*options)
    assert len(records(tmp_path / "data" / "kabuki_hdf5" / "hopper" / "1.0.0")) == 1


def test_ranges_contain_every_episode_once(tmp_path):
    from kabuki_rlds.commands.beam_writer import ranges
    from kabuki_rlds.formats.hdf5.source import KabukiSource

    lengths = (1, 500, 1, 1, 2, 300, 7, 9, 1, 1, 1, 80)
    file = handmade.write(tmp_path / "uneven.hdf5", handmade.fields(lengths, (True,) * len(lengths)))
    for limit in (None, 0, 1, 12, 13, 20, 99):
        with KabukiSource(file) as first, KabukiSource(file) as second:
            found = ranges([first, second], limit, "png", first.schema)
        keys = [r.key + i for r in found for i in range(r.stop - r.first)]
        assert keys == list(range(min(24, 24 if limit is None else limit)))
        assert all(r.key - r.first in (0, 12) and r.stop <= 12 for r in found)


# --- rejected files and arguments ---


def broken(tmp_path: Path, converted: Any, change: Any) -> Path:
    """Returns a converted file that was changed with h5py."""
    file = tmp_path / "broken.hdf5"
    shutil.copy(converted("plain"), file)
    with h5py.File(file, "a") as f:
        change(f)
    return file


def edit(f: h5py.File, path: str, change: Any) -> None:
    """Changes a feature of the steps in the attribute `features`."""
    features = json.loads(f.attrs["features"])
    steps = features["content"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    change(steps[path])
    f.attrs["features"] = json.dumps(features)


def lossy(f: h5py.File) -> None:
    rewards = f["reward"][:].astype(np.float64)
    rewards[77] = 0.1
    del f["reward"]
    f["reward"] = rewards
    edit(f, "reward", lambda feature: feature["tensor"].update(dtype="float64"))


def missing(f: h5py.File) -> None:
    del f["reward"]


def other_shape(f: h5py.File) -> None:
    del f["action"]
    f["action"] = np.zeros((139, 3), np.float32)


def stranger(f: h5py.File) -> None:
    edit(f, "reward", lambda feature: feature.update(pythonClassName="os.path.Evil"))


def more_names(f: h5py.File) -> None:
    no_class(f)
    f["action"].attrs["class_names"] = ["left", "right", "up"]


def no_class(f: h5py.File) -> None:
    del f["action"]
    f["action"] = np.r_[np.zeros(100, np.int64), 2, np.zeros(38, np.int64)]
    classes = {"pythonClassName": "tensorflow_datasets.core.features.class_label_feature.ClassLabel"}
    edit(f, "action", lambda feature: (feature.clear(), feature.update(classes, classLabel={"numClasses": "2"})))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lossy,
            r"step field 'reward': row 77 has the value .*0\.1.*, which TFDS would round.*encoding='bytes'",
        ),
        (missing, "step field 'reward': in the attribute 'features', but not in the file"),
        (other_shape, r"step field 'action': stored as float32 \(3,\), but .* has float32 \(2,\)"),
        (
            stranger,
            "attribute 'features': feature 'steps/reward' has the class 'os.path.Evil'.*not imported. Delete the attr",
        ),
        (no_class, "step field 'action': row 100 has the label 2, but there are 2 classes"),
        (more_names, "field 'action': the class names do not match the feature"),
        (lambda f: f.attrs.update(features="{}"), "attribute 'features': names no class. Delete the attribute"),
        (lambda f: f.attrs.update(complete=False), "not complete"),
    ],
)
def test_fields_that_contradict_their_features_are_rejected(change, message, converted, tmp_path):
    file = broken(tmp_path, converted, change)
    with pytest.raises(KabukiError, match=message) as e:
        kabuki_rlds.build(file, tmp_path / "data")
    assert "\n" not in str(e.value)
    assert str(file) in str(e.value) or change in (lossy, no_class)
    assert not (tmp_path / "data").exists()


def other_boxes(f: h5py.File) -> None:
    shapes = f["companion/observation/ragged/bytes/boxes/shape"]
    # The number of elements is unchanged.
    shapes[...] = shapes[:][:, [1, 0, 2]]


def other_pairs(f: h5py.File) -> None:
    lengths = f["companion/observation/sequence/sequences_of_pairs/lengths_1"]
    row = int(np.flatnonzero([list(row) == [2, 2] for row in lengths])[0])
    lengths[row] = np.array([3, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_boxes, r"step field 'observation/ragged/bytes/boxes': row \d+ has shape \(2, \d, \d\), expected"),
        (
            other_pairs,
            r"step field 'observation/sequence/sequences_of_pairs': row \d+ has a list of \d items, expected 2",
        ),
    ],
)
def test_rows_with_a_wrong_shape_are_rejected(change, message, converted, tmp_path):
    file = tmp_path / "broken.hdf5"
    shutil.copy(converted("every_kind"), file)
    with h5py.File(file, "a") as f:
        change(f)
    with pytest.raises(KabukiError, match=message) as e:
        kabuki_rlds.build(file, tmp_path / "data")
    assert "\n" not in str(e.value)
    assert not (tmp_path / "data").exists()


def sounds() -> handmade.Stored:
    rows = np.empty(8, object)
    rows[:] = [np.arange(i) for i in range(8)]
    return handmade.Stored(rows, {"dtype": h5py.vlen_dtype(np.int64)})


@pytest.mark.parametrize(
    ("feature", "column", "message"),
    [
        (tff.Audio(), sounds(), "TFDS cannot encode an episode's 'more': .* must have the same shape"),
        (
            tff.Tensor(shape=(), dtype=np.float64, optional=True),
            np.arange(8) / 10,
            "field 'more': has the value .*0.1.*, which TFDS would round: it stores float64 as float32",
        ),
    ],
)
def test_values_that_tfds_cannot_encode_are_rejected(feature, column, message, tmp_path):
    features = tff.FeaturesDict({"steps": tff.Dataset({"more": feature})})
    attributes = {"features": json.dumps(features.to_json())}
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields() | handmade.index() | {"more": column}, attributes)
    with pytest.raises(KabukiError, match=message) as e:
        kabuki_rlds.build(file, tmp_path / "data")
    assert "\n" not in str(e.value)
    assert not (tmp_path / "data").exists()


def test_dtypes_without_a_tfds_feature_are_rejected(tmp_path):
    file = handmade.write(tmp_path / "c.hdf5", handmade.fields() | {"waves": np.zeros(8, np.complex64)})
    with pytest.raises(KabukiError, match="field 'waves': TFDS cannot read back any feature for complex64"):
        kabuki_rlds.build(file, tmp_path / "data")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "../up"}, "is not a valid dataset name"),
        ({"files": {"all": "x"}}, "'all' is not a valid split name"),
        ({"files": {"a/b": "x"}}, "'a/b' is not a valid split name"),
        ({"files": []}, "split 'train': no files are given"),
        ({"files": {}}, "^no files are given"),
        ({"file_format": "parquet"}, "shards in the format 'parquet' cannot be written"),
    ],
)
def test_wrong_arguments_are_rejected(options, message, hand_file, tmp_path):
    with pytest.raises(KabukiError, match=message):
        kabuki_rlds.build(**({"files": hand_file, "data_dir": tmp_path / "data"} | options))
    assert not (tmp_path / "data").exists()


# --- atomic output ---


def state(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_existing_dataset_is_replaced_only_with_overwrite(hand_file, converted, tmp_path):
    first = kabuki_rlds.build(hand_file, tmp_path, name="x")
    before = state(tmp_path)
    with pytest.raises(KabukiError, match="already exists; overwrite=True replaces it"):
        kabuki_rlds.build(converted("plain"), tmp_path, name="x")
    assert state(tmp_path) == before
    assert kabuki_rlds.build(converted("plain"), tmp_path, name="x", overwrite=True).path == first.path
    assert not state(tmp_path).keys() & {name for name in before if "train" in name} - {
        f"x/1.0.0/{file.name}" for file in first.path.iterdir()
    }
    assert [folder.name for folder in first.path.parent.iterdir()] == ["1.0.0"]
    assert len(records(first.path)) == 10


def test_folder_that_is_not_a_dataset_is_never_replaced(hand_file, tmp_path):
    mine = tmp_path / "x" / "1.0.0" / "thesis.tex"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(KabukiError, match="is not a TFDS dataset"):
        kabuki_rlds.build(hand_file, tmp_path, name="x", overwrite=True)
    assert list(state(tmp_path)) == ["x/1.0.0/thesis.tex"]


def test_error_during_build_keeps_the_old_dataset(hand_file, tmp_path):
    kabuki_rlds.build(hand_file, tmp_path / "data", name="x")
    before = state(tmp_path / "data")
    n = 100_000
    fields = handmade.fields((n,), (True,))
    fields["action"] = handmade.Stored(fields["action"], {"chunks": (n // 4,), "compression": "gzip"})
    file = handmade.write(tmp_path / "damaged.hdf5", fields)
    with h5py.File(file, "a") as f:
        # Change the last rows, so that most of the dataset is written before the error.
        f["action"].id.write_direct_chunk((3 * n // 4,), b"no gzip stream")
    for name, overwrite in (("x", True), ("y", False)):
        with pytest.raises(KabukiError, match=r"field 'action': rows .* cannot be read"):
            kabuki_rlds.build(file, tmp_path / "data", name=name, overwrite=overwrite)
        assert state(tmp_path / "data") == before
    assert [folder.name for folder in (tmp_path / "data").iterdir()] == ["x"]


def test_dataset_larger_than_the_disk_is_rejected_before_writing(hand_file, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 990, 10))
    with pytest.raises(KabukiError, match=r"data.*: needs about .*, but the disk has 10 bytes free"):
        kabuki_rlds.build(hand_file, tmp_path / "data", name="x")
    assert not (tmp_path / "data").exists()


def test_second_writer_is_rejected_and_files_of_a_killed_one_are_removed(hand_file, tmp_path):
    from kabuki_rlds.files.atomic_folder import StagedFolder

    folder = tmp_path / "x" / "1.0.0"
    with StagedFolder(folder, overwrite=False) as staged:
        (staged.partial / "half a shard").write_bytes(b"half")
        with pytest.raises(KabukiError, match="another process is writing this dataset"):
            kabuki_rlds.build(hand_file, tmp_path, name="x")
    assert not (tmp_path / "x").exists()

    partial = tmp_path / "x" / "1.0.0.partial"
    partial.mkdir(parents=True)
    (partial / "half a shard").write_bytes(b"half")
    built = kabuki_rlds.build(hand_file, tmp_path, name="x")
    assert [f.name for f in built.path.parent.iterdir()] == ["1.0.0"]
    assert not (built.path / "half a shard").exists()

    # The process was killed between the two renames: the old dataset still has its temporary name.
    os.rename(built.path, built.path.with_name("1.0.0.old"))
    with pytest.raises(KabukiError, match="already exists"):
        kabuki_rlds.build(hand_file, tmp_path, name="x")
    assert len(records(built.path)) == 3


def test_signal_leaves_no_output_and_prints_one_line(tmp_path):
    file = handmade.slow(tmp_path / "slow.hdf5", 20_000_000)
    command = [sys.executable, "-m", "kabuki_rlds.cli", "build", str(file), "--out", str(tmp_path / "data")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "data" / "slow" / "1.0.0.partial").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err == "kabuki-rlds: error: interrupted; nothing was written\n"
    assert not (tmp_path / "data").exists()


# --- command line ---


def test_command_line_builds_a_dataset(hand_file, converted, tmp_path, capsys):
    odd = tmp_path / "lr=3.hdf5"
    shutil.copy(hand_file, odd)
    arguments = ["build", f"train={hand_file}", str(odd), f"val={odd}", "--out", str(tmp_path), "--name", "mine"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    folder = tmp_path / "mine" / "1.0.0"
    size = sum(file.stat().st_size for file in folder.iterdir())
    *last_rows, line = out.splitlines()
    assert line == f"{folder}: 24 steps in 9 episodes (train 6, val 3), {size / 1e3:.0f} kB"
    assert [each.partition(" (")[0] for each in last_rows] == [
        "train: last rows: observations in 6 of 6 episodes",
        "val: last rows: observations in 3 of 3 episodes",
    ]
    assert err == ""
    assert main(arguments) == 1
    assert capsys.readouterr().err == f"kabuki-rlds: error: {folder}: already exists; --overwrite replaces it\n"
    assert main([*arguments, "--overwrite", "--quiet", "--file-format", "array_record"]) == 0
    assert capsys.readouterr() == ("", "")
    assert len(records(folder, "val")) == 3


def test_handmade_bfloat16_is_kept(tmp_path, converted):
    # h5py has no name for the type, so the file is one that was converted, with all that RLDS knew of it taken out.
    file = tmp_path / "kinds.hdf5"
    shutil.copy(converted("every_kind"), file)
    with h5py.File(file, "a") as f:
        f.attrs["features"] = ""
        want = f["language_embedding"][:]
        for name in ("observation", "episodes/metadata"):
            del f[name]
        f["observation"] = f["reward"][:]
    got = module_expected(kabuki_rlds.build(file, tmp_path).path)
    rows = got.steps["language_embedding"]
    assert rows[0].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(np.stack(rows).astype(np.float32), want)
