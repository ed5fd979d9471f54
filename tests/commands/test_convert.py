"""h5py reads the same values from a converted file that TFDS decodes from its source."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

import kabuki_rlds
from tests import by_hand, datasets
from tests.expected import Expected
from tests.project.test_datasets import same


def as_h5py_gives(value: Any) -> Any:
    """Converts a value that TFDS decodes to the types of h5py."""
    value = np.asarray(value) if isinstance(value, np.generic) else value
    if isinstance(value, np.ndarray) and value.dtype == object:
        return value.tolist()
    if isinstance(value, np.ndarray) and value.dtype == ml_dtypes.bfloat16:
        value = value.astype(np.float32)  # HDF5 turns its 16-bit type into the next that NumPy knows.
        return np.where(np.isnan(value), np.float32(np.nan), value)
    if isinstance(value, list):
        return [as_h5py_gives(item) for item in value]
    return value


def assert_holds(path: Path, want: Expected, derived: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Asserts that every element of every field is equal bit by bit."""
    steps, episodes = by_hand.read(path)
    assert steps.keys() == want.steps.keys() | derived
    assert episodes.keys() == want.episodes.keys()
    for got, columns in ((steps, want.steps), (episodes, want.episodes)):
        for name, values in columns.items():
            assert len(got[name]) == len(values), name
            for row, (a, b) in enumerate(zip(got[name], map(as_h5py_gives, values), strict=True)):
                a = np.asarray(a) if isinstance(b, np.ndarray) else a
                if isinstance(values[row], np.ndarray) and values[row].dtype == ml_dtypes.bfloat16:
                    a = np.where(np.isnan(a), np.float32(np.nan), a)  # HDF5 makes one NaN of all.
                assert same(a, b), (name, row, a, b)
    with h5py.File(path) as f:
        assert f["episodes/length"][:].tolist() == want.lengths
        assert f["episodes/start"][:].tolist() == [sum(want.lengths[:i]) for i in range(len(want.lengths))]
        assert f.attrs["num_steps"] == sum(want.lengths)
        assert f.attrs["num_episodes"] == len(want.lengths)
        assert f.attrs["complete"]


# These need an option, or cannot be stored as arrays. Each has a separate test below.
APART = {"mixed_images", "unencoded_ragged", "no_reward", "no_discount"}
KINDS = [name for name in (*datasets.READ_BY_TFDS, *datasets.NOT_READ_BY_TFDS) if name not in APART]


@pytest.mark.parametrize("name", KINDS)
def test_convert_keeps_every_value_of_every_field(name, converted, expected):
    assert_holds(converted(name), expected(name))


@pytest.mark.parametrize("split", ["train", "test"])
def test_convert_reads_a_dataset_of_tfds_4_4(old_dataset, expected, tmp_path, split):
    from tests import expected as module

    kabuki_rlds.convert(old_dataset, tmp_path / "out.hdf5", split=split)
    assert_holds(tmp_path / "out.hdf5", module.read(old_dataset, split))


@pytest.mark.reference
def test_convert_reads_an_envlogger_recording(tmp_path):
    from tests import expected as module

    folder = datasets.record_catch(tmp_path / "catch", episodes=7)
    kabuki_rlds.convert(folder, tmp_path / "out.hdf5")
    assert_holds(tmp_path / "out.hdf5", module.read(folder))
    assert kabuki_rlds.validate(tmp_path / "out.hdf5") == []


@pytest.mark.parametrize("name", ["every_kind", "uncovered", "zero_size", "static_sequence", "no_steps", "oxe_style"])
@pytest.mark.parametrize("images", ["arrays", "encoded"])
def test_convert_accepts_a_kabuki_file(name, images, converted, tmp_path):
    first, second = converted(name, images), tmp_path / "second.hdf5"
    kabuki_rlds.convert(first, second)
    for a, b in zip(by_hand.read(first), by_hand.read(second), strict=True):
        assert a.keys() == b.keys()
        for path in a:
            assert all(map(same, map(as_h5py_gives, a[path]), map(as_h5py_gives, b[path]))), path
    with h5py.File(first) as f, h5py.File(second) as g:
        assert json.loads(f.attrs["features"]) == json.loads(g.attrs["features"])
        assert json.loads(g.attrs["sources"])[0]["via"] == [str(first)]
        attributes: list[tuple[str, str]] = []
        f.visititems(lambda path, item: attributes.extend((path, name) for name in item.attrs))
        for path, attribute in attributes:
            np.testing.assert_array_equal(f[path].attrs[attribute], g[path].attrs[attribute])


@pytest.mark.parametrize("name", ["every_kind", "oxe_style", "uncovered"])
def test_encoded_images_are_the_original_file_bytes(name, converted, expected):
    steps, episodes = by_hand.read(converted(name, "encoded"))
    want = expected(name)
    found = 0
    with h5py.File(converted(name, "encoded")) as f:
        for prefix, got, columns in (("", steps, want.steps), ("episodes/metadata/", episodes, want.episodes)):
            for path, values in columns.items():
                if not f[prefix + path].attrs.get("encoded") or f[prefix + path].attrs["dtype"] == "float32":
                    continue
                found += 1
                channels = int(f[prefix + path].attrs["shape"][-1])
                for files, value in zip(got[path], values, strict=True):
                    images = [value] if isinstance(files, bytes) else list(value)
                    for file, image in zip([files] if isinstance(files, bytes) else files, images, strict=True):
                        decoded = tf.io.decode_image(file, channels, tf.as_dtype(image.dtype)).numpy()
                        np.testing.assert_array_equal(decoded, image)
    assert found


def test_images_of_different_sizes_in_one_row_require_encoded_images(dataset, tmp_path):
    with pytest.raises(kabuki_rlds.KabukiError, match=r"'images': images of different sizes .* images='encoded'"):
        kabuki_rlds.convert(dataset("mixed_images"), tmp_path / "out.hdf5")
    kabuki_rlds.convert(dataset("mixed_images"), tmp_path / "out.hdf5", images="encoded")
    steps, _ = by_hand.read(tmp_path / "out.hdf5")
    assert [len(row) for row in steps["images"]] == [2, 1, 3, 2, 1, 3, 2, 1]


def test_nested_lists_of_arrays_of_unknown_shape_are_rejected(tmp_path):
    rng = np.random.default_rng(0)
    item = tfds.features.Tensor(shape=(None,), dtype=np.int32, encoding="zlib")
    items = tfds.features.Sequence(tfds.features.Sequence(item))
    steps = datasets._standard_fields(rng) | {"words": datasets.Field(items, lambda: [[np.int32([1, 2])], []])}  # type: ignore[arg-type, operator]
    folder = datasets.write(datasets._recipe_of_tables("lists", {"train": [2]}, steps, {}), tmp_path)
    with pytest.raises(kabuki_rlds.KabukiError, match=r"1.0.0: field 'words': nested lists of arrays of unknown"):
        kabuki_rlds.convert(folder, tmp_path / "out.hdf5")


def test_fields_that_tfds_cannot_decode_are_rejected(dataset, tmp_path):
    with pytest.raises(kabuki_rlds.KabukiError, match=r"field 'rows': TFDS cannot read .* encoding='zlib'"):
        kabuki_rlds.convert(dataset("unencoded_ragged"), tmp_path / "out.hdf5")


@pytest.mark.parametrize(
    ("split", "parts"),
    [
        ("train", [("train", slice(None))]),
        ("test", [("test", slice(None))]),
        ("train[:50%]", [("train", slice(0, 5))]),
        ("train[2:9]", [("train", slice(2, 9))]),
        ("train[-1:]", [("train", slice(9, None))]),
        ("train+test", [("train", slice(None)), ("test", slice(None))]),
        ("test+train[3:4]", [("test", slice(None)), ("train", slice(3, 4))]),
    ],
)
@pytest.mark.parametrize("name", ["plain", "array_record"])
def test_split_accepts_tfds_syntax(name, split, parts, dataset, expected, tmp_path):
    kabuki_rlds.convert(dataset(name), tmp_path / "out.hdf5", split=split)
    assert_holds(tmp_path / "out.hdf5", _joined([_episodes(expected(name, s), rows) for s, rows in parts]))


@pytest.mark.parametrize("split", ["train[5:3]", "test+train[9:8]", "train[80%:20%]"])
def test_split_that_ends_before_its_start_is_rejected(split, dataset, tmp_path):
    with pytest.raises(
        kabuki_rlds.KabukiError,
        match=r"1.0.0: split '.*': the slice of 'train' ends at episode \d+, before its start at",
    ):
        kabuki_rlds.convert(dataset("plain"), tmp_path / "out.hdf5", split=split)


def test_empty_split_is_converted_to_a_valid_file_without_steps(dataset, expected, tmp_path):
    kabuki_rlds.convert(dataset("empty_split"), tmp_path / "out.hdf5", split="nothing")
    assert_holds(tmp_path / "out.hdf5", expected("empty_split", "nothing"))
    assert kabuki_rlds.validate(tmp_path / "out.hdf5") == []


def test_sources_are_concatenated_in_order(dataset, expected, tmp_path):
    file = tmp_path / "test.hdf5"
    kabuki_rlds.convert(dataset("plain"), file, split="test")
    kabuki_rlds.convert([dataset("plain"), file, dataset("array_record")], tmp_path / "out.hdf5")
    train, test = expected("plain"), expected("plain", "test")
    assert_holds(tmp_path / "out.hdf5", _joined([train, test, train]))
    with h5py.File(tmp_path / "out.hdf5") as f:
        sources = json.loads(f.attrs["sources"])
        assert [(s["name"], s["split"]) for s in sources] == [
            ("plain/1.0.0", "train"),
            ("plain/1.0.0", "test"),
            ("array_record/1.0.0", "train"),
        ]
        assert sources[1]["via"] == [str(file)]
        counts = [len(e.lengths) for e in (train, test, train)]
        assert f["episodes/source"][:].tolist() == np.repeat([0, 1, 2], counts).tolist()
    assert kabuki_rlds.validate(tmp_path / "out.hdf5") == []


def test_incompatible_sources_are_rejected_and_the_field_is_named(dataset, tmp_path):
    with pytest.raises(kabuki_rlds.KabukiError, match=r"does not fit .*: (step|episode) field '.*' is"):
        kabuki_rlds.convert([dataset("plain"), dataset("oxe_style")], tmp_path / "out.hdf5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("batch", [1, 3])
def test_converted_file_does_not_depend_on_block_size(batch, dataset, expected, tmp_path, monkeypatch):
    from kabuki_rlds.formats.hdf5 import layout
    from kabuki_rlds.formats.hdf5 import source as hdf5_source
    from kabuki_rlds.formats.rlds import pipeline, source

    monkeypatch.setattr(source, "_BATCH_EPISODES", batch)
    monkeypatch.setattr(pipeline, "_WINDOW_BYTES", 1)
    monkeypatch.setattr(pipeline, "_WINDOW_OF_UNKNOWN", 2)
    monkeypatch.setattr(layout, "CHUNK_BYTES", 64)
    monkeypatch.setattr(hdf5_source, "_BLOCK_ROWS", 2)
    for name in ("uncovered", "no_steps", "oxe_style", *(["every_kind"] if batch == 1 else [])):
        kabuki_rlds.convert(dataset(name), tmp_path / f"{name}.hdf5")
        assert_holds(tmp_path / f"{name}.hdf5", expected(name))
        kabuki_rlds.convert(tmp_path / f"{name}.hdf5", tmp_path / f"{name}-again.hdf5")
        assert_holds(tmp_path / f"{name}-again.hdf5", expected(name))
        assert [v for v in kabuki_rlds.validate(tmp_path / f"{name}-again.hdf5") if v.rule not in (4, 5)] == []


@pytest.mark.parametrize("compression", ["gzip", "lzf", "none"])
def test_every_compression_keeps_the_values(compression, dataset, expected, tmp_path):
    kabuki_rlds.convert(dataset("uncovered"), tmp_path / "out.hdf5", compression=compression)
    assert_holds(tmp_path / "out.hdf5", expected("uncovered"))
    with h5py.File(tmp_path / "out.hdf5") as f:
        assert f["reward"].compression == (None if compression == "none" else compression)


def test_dataset_metadata_is_stored_in_attributes(dataset, converted):
    info = tfds.builder_from_directory(dataset("every_kind")).info
    with h5py.File(converted("every_kind")) as f:
        assert f.attrs["format"] == "kabuki"
        assert f.attrs["format_version"] == "1.1"
        assert f.attrs["name"] == info.name
        assert f.attrs["version"] == str(info.version)
        assert f.attrs["description"] == info.description
        features = tfds.features.FeaturesDict.from_json(json.loads(f.attrs["features"]))
        assert repr(features) == repr(info.features)
        labels = [name for name, item in _datasets(f).items() if item.attrs.get("kind") == "label"]
        assert labels
        for name in labels:
            feature = info.features if name.startswith("episodes/") else info.features["steps"]
            for part in name.removeprefix("episodes/metadata/").split("/"):
                feature = feature[part]
            while not isinstance(feature, tfds.features.ClassLabel):
                feature = feature.feature
            # TFDS would number the classes of a label without names.
            names = [] if feature._int2str is None else feature.names
            assert list(f[name].attrs.get("class_names", ())) == names


# --- what a source lacks, and what breaks the rules ---


def test_missing_discount_is_derived_from_episode_ends(dataset, expected, tmp_path):
    result = kabuki_rlds.convert(dataset("no_discount"), tmp_path / "out.hdf5")
    assert set(result.derived) == {"discount"}
    assert (result.num_steps, result.num_episodes) == (139, 10)
    assert_holds(tmp_path / "out.hdf5", expected("no_discount"), derived={"discount"})
    assert kabuki_rlds.validate(tmp_path / "out.hdf5") == []
    with h5py.File(tmp_path / "out.hdf5") as f:
        features = tfds.features.FeaturesDict.from_json(json.loads(f.attrs["features"]))
        assert "discount" not in features["steps"]
        assert f["discount"].attrs["derived"]


def test_missing_reward_is_rejected_unless_filled(dataset, expected, tmp_path):
    with pytest.raises(kabuki_rlds.KabukiError, match=r"have no 'reward' .* fill={'reward': 0}"):
        kabuki_rlds.convert(dataset("no_reward"), tmp_path / "out.hdf5")
    kabuki_rlds.convert(dataset("no_reward"), tmp_path / "out.hdf5", fill={"reward": 0.5})
    assert_holds(tmp_path / "out.hdf5", expected("no_reward"), derived={"reward"})
    with h5py.File(tmp_path / "out.hdf5") as f:
        assert (f["reward"][:] == 0.5).all()
        assert f["reward"].dtype == np.float32


def test_fill_does_not_change_an_existing_field(dataset, expected, tmp_path):
    kabuki_rlds.convert(dataset("plain"), tmp_path / "out.hdf5", fill={"reward": 7.0})
    assert_holds(tmp_path / "out.hdf5", expected("plain"))


def test_rule_violations_of_the_source_are_kept_with_a_warning(dataset, expected, tmp_path):
    result = kabuki_rlds.convert(dataset("oxe_style"), tmp_path / "out.hdf5")
    assert_holds(tmp_path / "out.hdf5", expected("oxe_style"))
    assert [(v.rule, v.field, v.count) for v in result.warnings] == [(4, "discount", 4)]
    # The file lists it in its notes, so it is not a violation.
    assert kabuki_rlds.validate(tmp_path / "out.hdf5") == []


def test_conform_changes_only_values_that_break_the_rules(dataset, expected, tmp_path):
    result = kabuki_rlds.convert(dataset("oxe_style"), tmp_path / "out.hdf5", conform=True)
    want = expected("oxe_style")
    ends = np.cumsum(want.lengths)
    discount = [np.asarray(value) for value in want.steps["discount"]]
    for end, length in zip(ends, want.lengths, strict=True):
        if length > 1 and want.steps["is_terminal"][end - 1]:
            # Its last rows are steps, so the last discount of a terminated episode is 0.
            discount[end - 1] = np.zeros_like(discount[end - 1])
    conformed = dataclasses.replace(want, steps=want.steps | {"discount": discount})
    assert_holds(tmp_path / "out.hdf5", conformed)
    assert result.last_rows.is_step.all()
    assert result.changed == {"discount": sum(length > 1 for length in want.lengths)}
    assert result.warnings == []
    assert kabuki_rlds.validate(tmp_path / "out.hdf5") == []


def test_rules_are_checked_for_bfloat16(tmp_path):
    rng = np.random.default_rng(0)
    one = datasets.Field(
        tfds.features.Tensor(shape=(), dtype=tf.bfloat16, encoding="bytes"), lambda: np.array(1.5, ml_dtypes.bfloat16)
    )
    steps = datasets._standard_fields(rng) | {"reward": one, "discount": one}  # type: ignore[operator]
    recipe = datasets._recipe_of_tables("half", {"train": [3, 2]}, steps, {}, in_order=True)
    file = tmp_path / "out.hdf5"
    # The first episode is terminal, the second is not.
    # The last rows carry rewards and rule 4 is broken, so they are steps.
    for conform, expected in ((False, [1.5, 1.5, 1.5, 1.5, 1.5]), (True, [1.5, 1.5, 0, 1.5, 1.5])):
        folder = datasets.write(recipe, tmp_path / str(conform))
        result = kabuki_rlds.convert(folder, file, conform=conform, overwrite=True)
        broken = [] if conform else [(4, "discount", (2,))]
        assert [(v.rule, v.field, v.rows) for v in result.warnings] == broken
        assert kabuki_rlds.validate(file) == []
        with h5py.File(file) as f:
            assert f["discount"][:].tolist() == expected
    assert kabuki_rlds.inspect(file).returns.max == 4.5  # type: ignore[union-attr]


# --- what is said before the work ---


def test_convert_logs_the_estimated_size(dataset, tmp_path, caplog):
    caplog.set_level("INFO", "kabuki_rlds")
    kabuki_rlds.convert(dataset("plain"), tmp_path / "out.hdf5")
    assert "steps" in caplog.text and "out.hdf5" in caplog.text


def test_warning_if_decoded_images_are_much_larger_than_the_source(dataset, tmp_path, caplog, monkeypatch):
    # `kabuki_rlds.convert` is the function; the module of that name stands behind it.
    monkeypatch.setattr(sys.modules["kabuki_rlds.formats.hdf5.size_estimate"], "_MUCH_LARGER", 0.01)
    kabuki_rlds.convert(dataset("oxe_style"), tmp_path / "out.hdf5")
    assert "images='encoded'" in caplog.text
    caplog.clear()
    kabuki_rlds.convert(dataset("oxe_style"), tmp_path / "encoded.hdf5", images="encoded")
    assert "images='encoded'" not in caplog.text


def _episodes(want: Expected, part: slice) -> Expected:
    """Returns some episodes of a split."""
    ends = np.cumsum(want.lengths)
    chosen = range(len(want.lengths))[part]
    rows = [row for i in chosen for row in range(ends[i] - want.lengths[i], ends[i])]
    return Expected(
        steps={path: [values[row] for row in rows] for path, values in want.steps.items()},
        episodes={path: [values[i] for i in chosen] for path, values in want.episodes.items()},
        lengths=[want.lengths[i] for i in chosen],
    )


def _joined(parts: list[Expected]) -> Expected:
    first = parts[0]
    return Expected(
        steps={path: [value for part in parts for value in part.steps[path]] for path in first.steps},
        episodes={path: [value for part in parts for value in part.episodes[path]] for path in first.episodes},
        lengths=[length for part in parts for length in part.lengths],
    )


def _datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    found: dict[str, h5py.Dataset] = {}
    file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
    return found
