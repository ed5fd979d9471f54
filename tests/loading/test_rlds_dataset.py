"""`load`, compared with TFDS on the same dataset."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

import kabuki_rlds
from kabuki_rlds.formats.hdf5 import source as hdf5_source
from tests import datasets, expected, handmade
from tests.project.test_datasets import assert_same, same

#: A dataset that cannot be stored as arrays and that TFDS cannot read.
APART = ("mixed_images", "unencoded_ragged")
WITH_IMAGES = ("oxe_style", "uncovered", "image_lists")


def by_tfds(folder: Path, split: str = "train") -> tf.data.Dataset:
    """The episodes read by TFDS, in the order of the shards."""
    builder = tfds.builder_from_directory(folder)
    if builder.info.file_format is tfds.core.FileFormat.ARRAY_RECORD:
        # TFDS cannot read these as a tf.data.Dataset. Decode each record as TFDS would.
        source = tf.data.Dataset.from_generator(
            lambda: _array_records(folder, split), output_signature=tf.TensorSpec([], tf.string)
        )
        return source.map(builder.info.features.deserialize_example)
    config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    return builder.as_dataset(split=split, read_config=config, shuffle_files=False)


def _array_records(folder: Path, split: str) -> Any:
    from array_record.python import array_record_module

    for shard in sorted(folder.glob(f"*-{split}.array_record*")):
        yield from array_record_module.ArrayRecordReader(str(shard)).read_all()


def plain(value: Any) -> Any:
    """A value with tensors converted to arrays, and datasets to lists."""
    if isinstance(value, dict):
        return {name: plain(value[name]) for name in sorted(value)}
    if isinstance(value, tf.data.Dataset):
        return [plain(element) for element in value]
    if isinstance(value, tf.RaggedTensor):
        return value.to_list()
    return value.numpy() if isinstance(value, tf.Tensor) else value


def equal(a: Any, b: Any) -> bool:
    """Whether two results of `plain` are equal bit by bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[name], b[name]) for name in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return same(a, b)


@pytest.fixture
def by_hand(tmp_path) -> Path:
    """A file without features, index and attributes."""
    return handmade.write(tmp_path / "hand.hdf5", handmade.fields())


# --- the same as TFDS ---


@pytest.mark.parametrize(
    ("name", "images"),
    [
        *[(name, "arrays") for name in datasets.READ_BY_TFDS if name != "no_reward"],
        *[(name, "encoded") for name in WITH_IMAGES],
    ],
)
def test_elements_equal_those_of_tfds(name, images, dataset, converted, expected):
    episodes = kabuki_rlds.load(converted(name, images))
    reference = by_tfds(dataset(name))
    assert episodes.element_spec == reference.element_spec
    assert isinstance(episodes.element_spec["steps"], tf.data.DatasetSpec)
    want = expected(name)
    assert episodes.cardinality() == len(want.lengths)
    assert_same(_collect(episodes, dataset(name)), want)


@pytest.mark.parametrize(
    ("name", "images"),
    [(name, "arrays") for name in datasets.NOT_READ_BY_TFDS if name not in APART] + [("static_sequence", "encoded")],
)
def test_features_that_tfds_cannot_read_are_read(name, images, dataset, converted, expected):
    assert_same(_collect(kabuki_rlds.load(converted(name, images)), dataset(name)), expected(name))


def test_all_types_of_encoded_images_are_decoded(converted, expected):
    everything = expected("every_kind")
    want = {path: column for path, column in everything.steps.items() if path.startswith("observation/image/")}
    episodes = kabuki_rlds.load(converted("every_kind", "encoded"), fields="observation/image")
    steps = [_by_path(plain(step)) for step in _steps(episodes)]
    assert len(steps) == sum(everything.lengths)
    for t, images in enumerate(steps):
        assert images.keys() == want.keys()
        assert all(equal(images[path], column[t]) for path, column in want.items())


def test_a_list_of_images_of_different_sizes_can_be_deselected(dataset, tmp_path):
    file = kabuki_rlds.convert(dataset("mixed_images"), tmp_path / "out.hdf5", images="encoded").path
    rewards = [step["reward"].numpy() for step in _steps(kabuki_rlds.load(file, fields="reward"))]
    assert rewards == [0.5, -1.0] * 4


def test_an_empty_split_has_the_same_element_spec(dataset, converted, tmp_path):
    kabuki_rlds.convert(dataset("empty_split"), tmp_path / "out.hdf5", split="nothing")
    episodes = kabuki_rlds.load(tmp_path / "out.hdf5")
    assert episodes.element_spec == kabuki_rlds.load(converted("empty_split")).element_spec
    assert episodes.cardinality() == 0
    assert plain(episodes) == []


def test_derived_fields_are_returned_only_if_selected(dataset, converted, tmp_path):
    assert "discount" not in kabuki_rlds.load(converted("no_discount")).element_spec["steps"].element_spec
    episodes = kabuki_rlds.load(converted("no_discount"), fields=["discount", "reward", "is_last"])
    spec = episodes.element_spec["steps"].element_spec
    assert spec["discount"] == tf.TensorSpec([], tf.float32)
    assert set(spec) == {"discount", "reward", "is_last"}
    with h5py.File(converted("no_discount")) as f:
        assert [step["discount"].numpy() for step in _steps(episodes)] == f["discount"][:].tolist()
    kabuki_rlds.convert(dataset("no_reward"), tmp_path / "out.hdf5", fill={"reward": 0.5})
    assert kabuki_rlds.load(tmp_path / "out.hdf5").element_spec == by_tfds(dataset("no_reward")).element_spec


@pytest.mark.parametrize(
    ("name", "rows"), [("plain", 1), ("plain", 8), ("no_steps", 1), ("no_steps", 2), ("uncovered", 2)]
)
def test_episodes_do_not_depend_on_block_size(name, rows, dataset, converted, expected, monkeypatch):

    monkeypatch.setattr(hdf5_source, "_BLOCK_ROWS", rows)
    assert_same(_collect(kabuki_rlds.load(converted(name)), dataset(name)), expected(name))


# --- the rlds library ---


def _shifted(steps: tf.data.Dataset) -> tf.data.Dataset:
    import rlds

    return rlds.transformations.shift_keys(steps, ["action", "reward"], 1)


def _truncated(steps: tf.data.Dataset) -> tf.data.Dataset:
    import rlds

    return rlds.transformations.truncate_after_condition(steps, lambda step: step["reward"] > 1)


def _absorbing(steps: tf.data.Dataset) -> tf.data.Dataset:
    import rlds

    return rlds.transformations.concat_if_terminal(
        steps, lambda step: tf.data.Dataset.from_tensors({**step, "reward": tf.constant(7.0)}).repeat(2)
    )


def _flat_fields(step: dict[str, Any]) -> Any:
    import rlds

    step = {**step, "observation": step["observation"]["position"]}
    return rlds.transformations.sar_fields_mask(step)


def _transitions(step: dict[str, Any]) -> Any:
    return {
        "observation": tf.nest.map_structure(lambda x: x[-2], step["observation"]),
        "action": step["action"][-2],
        "next": tf.nest.map_structure(lambda x: x[-1], step["observation"]),
    }


TRANSFORMATIONS = {
    "batch": lambda t, ds: ds.map(lambda e: {**e, "steps": t.batch(e["steps"], 3, shift=2)}),
    "batch with a stride": lambda t, ds: ds.flat_map(lambda e: t.batch(e["steps"], 2, 1, 2, True)),
    "truncate": lambda t, ds: t.apply_nested_steps(ds, _truncated),
    "episode length": lambda t, ds: ds.map(lambda e: t.episode_length(e["steps"])),
    "final step": lambda t, ds: ds.map(lambda e: t.final_step(e["steps"])),
    "mean and std": lambda t, ds: t.mean_and_std(ds, _flat_fields),
    "pattern map": lambda t, ds: t.pattern_map_from_transform(ds, _transitions),
    "pattern map across episodes": lambda t, ds: t.pattern_map_from_transform(
        ds, _transitions, respect_episode_boundaries=False
    ),
    "map nested steps": lambda t, ds: t.map_nested_steps(ds, lambda step: {"twice": 2 * step["reward"]}),
    "map steps": lambda t, ds: t.map_steps(ds.flat_map(lambda e: e["steps"]), lambda step: step["observation"]),
    "sum dataset": lambda t, ds: ds.map(lambda e: t.sum_dataset(e["steps"], lambda step: step["reward"])),
    "sum nested steps": lambda t, ds: t.sum_nested_steps(ds, lambda step: step["action"]),
    "alignment": lambda t, ds: t.map_nested_steps(ds, lambda step: t.add_alignment_to_step(step, t.AlignmentType.SAR)),
    "shift keys": lambda t, ds: t.apply_nested_steps(ds, _shifted),
    "absorbing states": lambda t, ds: t.apply_nested_steps(ds, _absorbing),
    "concatenate": lambda t, ds: ds.map(
        lambda e: {"steps": t.concatenate(e["steps"], e["steps"].map(lambda step: {"extra": step["reward"], **step}))}
    ),
    "zeros": lambda t, ds: t.zero_dataset_like(t.map_steps(ds.flat_map(lambda e: e["steps"]), lambda step: step)),
}


@pytest.fixture(scope="module")
def two_loaded(dataset, converted) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """A few episodes of a dataset, loaded by this package and by TFDS."""
    return kabuki_rlds.load(converted("in_order")).take(4), by_tfds(dataset("in_order")).take(4)


@pytest.mark.reference
@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
def test_rlds_transformations_give_the_same_results_as_with_tfds(transformation, two_loaded):
    from rlds import transformations

    got, want = (TRANSFORMATIONS[transformation](transformations, episodes) for episodes in two_loaded)
    assert getattr(got, "element_spec", None) == getattr(want, "element_spec", None)
    got, want = (list(map(plain, x)) if isinstance(x, tuple) else plain(x) for x in (got, want))
    assert not isinstance(want, list) or want
    assert equal(got, want)


@pytest.mark.reference
def test_rlds_patterns_work_with_images(dataset, converted):
    from rlds import transformations

    def last_two(step: dict[str, Any]) -> Any:
        return {"images": step["observation"]["image"][-2:], "text": step["language_instruction"][-1]}

    want = plain(transformations.pattern_map_from_transform(by_tfds(dataset("oxe_style")), last_two))
    assert len(want) == 22 - 4
    for images in ("arrays", "encoded"):
        episodes = kabuki_rlds.load(converted("oxe_style", images))
        assert equal(plain(transformations.pattern_map_from_transform(episodes, last_two)), want)


# --- tf.data ---


def test_a_dataset_can_be_iterated_repeatedly(converted):
    episodes = kabuki_rlds.load(converted("plain"))
    first = plain(episodes)
    assert equal(plain(episodes), first)
    assert equal(plain(episodes.repeat(2)), first + first)
    assert episodes.repeat(3).cardinality() == 30
    at_once = list(zip(episodes, episodes, strict=True))  # Two iterators read the same file.
    assert equal([plain(a) for a, _ in at_once], first) and equal([plain(b) for _, b in at_once], first)


def test_steps_can_be_iterated_later_and_repeatedly(converted):
    episodes = kabuki_rlds.load(converted("plain"))
    want = plain(episodes)
    kept = list(episodes)
    for _ in range(2):
        assert equal([plain(episode) for episode in reversed(kept)], want[::-1])


def test_tf_data_transformations_work(converted):
    episodes = kabuki_rlds.load(converted("plain"))
    ids = [int(episode["episode_id"]) for episode in episodes]
    shuffled = episodes.shuffle(10, seed=1).prefetch(2).map(lambda e: e["episode_id"], num_parallel_calls=2)
    assert sorted(shuffled.as_numpy_iterator()) == sorted(ids)
    assert list(shuffled.as_numpy_iterator()) != ids
    read_twice = tf.data.Dataset.range(2).interleave(lambda _: episodes, cycle_length=2, num_parallel_calls=2)
    assert [int(e["episode_id"]) for e in read_twice] == [i for i in ids for _ in range(2)]
    lengths = episodes.map(lambda e: e["steps"].cardinality())
    assert [int(n) for n in lengths] == [len(episode["steps"]) for episode in plain(episodes)]


def test_datasets_work_in_graph_mode(converted):
    episodes = kabuki_rlds.load(converted("plain"))

    @tf.function
    def total() -> tf.Tensor:
        result = tf.constant(0.0, tf.float64)
        for episode in episodes:
            for step in episode["steps"]:
                result += tf.cast(step["reward"], tf.float64)
        return result

    want = sum(float(step["reward"]) for episode in plain(episodes) for step in episode["steps"])
    assert float(total()) == want


def open_files(path: Path) -> int:
    """The number of file descriptors of this process for the file."""
    found = 0
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            found += os.path.samefile(f"/proc/self/fd/{descriptor}", path)
        except OSError:
            continue  # The descriptor was closed in the meantime.
    return found


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="Linux tells which files are open")
def test_files_are_closed_after_iteration(converted, monkeypatch):

    monkeypatch.setattr(hdf5_source, "_BLOCK_ROWS", 4)
    episodes = kabuki_rlds.load(converted("plain"))
    assert open_files(converted("plain")) == 0
    plain(episodes)
    assert open_files(converted("plain")) == 0
    iterator = iter(episodes)
    next(iterator)
    assert open_files(converted("plain")) == 1
    del iterator
    assert open_files(converted("plain")) == 0
    plain(episodes.take(1))
    assert open_files(converted("plain")) == 0


# --- fields ---


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        ("reward", {"reward"}),
        (["observation/position", "action"], {"observation/position", "action"}),
        (["observation"], {"observation/position", "observation/velocity"}),
    ],
)
def test_only_selected_step_fields_are_returned(fields, want, dataset, converted):
    episodes = kabuki_rlds.load(converted("plain"), fields=fields)
    spec = dict(expected._leaves(episodes.element_spec["steps"].element_spec))
    assert spec.keys() == want
    assert {"agent", "episode_id"} < episodes.element_spec.keys()
    whole = plain(by_tfds(dataset("plain")))
    for got, episode in zip(plain(episodes), whole, strict=True):
        for step, all_of_it in zip(got["steps"], episode["steps"], strict=True):
            flat = dict(expected._leaves(all_of_it))
            assert all(same(value, flat[path]) for path, value in expected._leaves(step))


def test_fields_of_a_nested_dataset_can_be_selected(dataset, converted):
    episodes = kabuki_rlds.load(converted("uncovered"), fields="dataset/x")
    assert episodes.element_spec["steps"].element_spec == {
        "dataset": tf.data.DatasetSpec({"x": tf.TensorSpec([], tf.int32)})
    }
    whole = [step["dataset"] for step in _steps(by_tfds(dataset("uncovered")))]
    got = [plain(step["dataset"]) for step in _steps(episodes)]
    assert got == [[{"x": inner["x"].numpy()} for inner in inners] for inners in whole]


@pytest.mark.parametrize("fields", ["rewards", ["reward", "observation/pos"], "", []])
def test_an_unknown_field_or_none_is_rejected(fields, converted):
    problem = "no step field is selected" if fields == [] else "has no step field"
    with pytest.raises(
        kabuki_rlds.KabukiError, match=rf"plain-arrays\.hdf5: {problem}.*the fields are .*observation/velocity"
    ):
        kabuki_rlds.load(converted("plain"), fields=fields)


# --- files without features, several files ---


def test_a_file_without_features_is_loaded(by_hand):
    episodes = kabuki_rlds.load(by_hand)
    assert episodes.element_spec == {
        "steps": tf.data.DatasetSpec(
            {
                "observation": tf.TensorSpec([2], tf.float32),
                "action": tf.TensorSpec([], tf.int32),
                "reward": tf.TensorSpec([], tf.float64),
                "discount": tf.TensorSpec([], tf.float32),
                **{name: tf.TensorSpec([], tf.bool) for name in ("is_first", "is_last", "is_terminal")},
            }
        )
    }
    assert [len(episode["steps"]) for episode in plain(episodes)] == list(handmade.LENGTHS)
    steps = list(_steps(episodes))
    for name, column in handmade.fields().items():
        np.testing.assert_array_equal([step[name] for step in steps], column)


def test_a_file_without_features_may_have_all_types(tmp_path):
    n = sum(handmade.LENGTHS)
    texts = [f"größer {i}" for i in range(n)]
    ragged = np.empty(n, object)
    ragged[:] = [np.arange(i % 3, dtype=np.int16) for i in range(n)]
    labels = np.arange(2 * n, dtype=np.uint8).reshape(n, 2) % 3
    pixels = np.arange(n * 32 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(n, 32, 32, 3)
    fields = {
        **handmade.fields(),
        "observation/text": handmade.Stored(texts, {"dtype": h5py.string_dtype()}),
        "observation/label": handmade.Stored(
            labels, attributes={"kind": "label", "class_names": np.array(["a", "b", "c"], h5py.string_dtype())}
        ),
        "observation/ragged": handmade.Stored(ragged, {"dtype": h5py.vlen_dtype(np.int16)}),
        "observation/pixels": pixels,
        "observation/half": np.arange(n, dtype=">f2"),
    }
    del fields["observation"]
    file = handmade.write(tmp_path / "hand.hdf5", {**fields, **handmade.index()})
    episodes = kabuki_rlds.load(file)
    assert episodes.element_spec["steps"].element_spec["observation"] == {
        "text": tf.TensorSpec([], tf.string),
        "label": tf.TensorSpec([None], tf.int64),
        "ragged": tf.TensorSpec([None], tf.int16),
        "pixels": tf.TensorSpec([32, 32, 3], tf.uint8),
        "half": tf.TensorSpec([], tf.float16),
    }
    assert [int(episode["seed"]) for episode in episodes] == [0, 1, 2]
    steps = [plain(step["observation"]) for step in _steps(episodes)]
    assert [step["text"].decode() for step in steps] == texts
    assert [step["ragged"].tolist() for step in steps] == [row.tolist() for row in ragged]
    for name, column in (("label", labels), ("pixels", pixels), ("half", np.arange(n))):
        np.testing.assert_array_equal([step[name] for step in steps], column)


def test_label_lists_without_features_match_tfds(tmp_path):
    n = sum(handmade.LENGTHS)
    labels = np.arange(6 * n, dtype=np.int8).reshape(n, 3, 2) % 2
    names = {"kind": "label", "class_names": np.array(["a", "b"], h5py.string_dtype())}
    file = handmade.write(
        tmp_path / "hand.hdf5", {**handmade.fields(), "labels": handmade.Stored(labels, attributes=names)}
    )
    episodes = kabuki_rlds.load(file, fields=["labels"])
    assert episodes.element_spec["steps"].element_spec == {"labels": tf.RaggedTensorSpec([None, None], tf.int64, 1)}
    assert [step["labels"].to_list() for step in _steps(episodes)] == labels.tolist()


def test_a_field_without_a_tfds_feature_can_be_deselected(tmp_path):
    fields = handmade.fields()
    file = handmade.write(tmp_path / "hand.hdf5", {**fields, "spectrum": np.ones(len(fields["reward"]), np.complex64)})
    with pytest.raises(
        kabuki_rlds.KabukiError, match=r"hand\.hdf5: field 'spectrum': TFDS cannot read back any feature for complex64"
    ):
        kabuki_rlds.load(file)
    assert len(list(_steps(kabuki_rlds.load(file, fields="reward")))) == len(fields["reward"])


def test_episodes_of_several_files_are_concatenated(dataset, converted, tmp_path):
    kabuki_rlds.convert(dataset("plain"), tmp_path / "test.hdf5", split="test")
    nothing = kabuki_rlds.convert(dataset("empty_split"), tmp_path / "nothing.hdf5", split="nothing").path
    train, test = plain(by_tfds(dataset("plain"))), plain(by_tfds(dataset("plain"), "test"))
    episodes = kabuki_rlds.load([nothing, tmp_path / "test.hdf5", converted("plain"), nothing, tmp_path / "test.hdf5"])
    assert episodes.cardinality() == 18
    assert equal(plain(episodes), test + train + test)


def test_load_rejects_files_with_different_fields(converted):
    with pytest.raises(
        kabuki_rlds.KabukiError,
        match=r"oxe_style-arrays\.hdf5 does not fit \S*plain-arrays\.hdf5: "
        r"step field 'observation/position' is in \S*plain-arrays\.hdf5, but not in \S*oxe_style-arrays\.hdf5; ",
    ):
        kabuki_rlds.load([converted("plain"), converted("oxe_style")])
    with pytest.raises(kabuki_rlds.KabukiError, match="path is empty; give at least one file"):
        kabuki_rlds.load([])


def test_relative_paths_refer_to_the_folder_at_the_call(by_hand, tmp_path, monkeypatch):
    monkeypatch.chdir(by_hand.parent)
    episodes = kabuki_rlds.load(by_hand.name)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(plain(episodes)) == len(handmade.LENGTHS)


# --- incomplete files ---


def test_an_incomplete_file_is_rejected(dataset, converted, tmp_path):
    for path, message in (
        (tmp_path / "none.hdf5", "no such file"),
        (dataset("plain"), "a folder, not an HDF5 file"),
        (dataset("plain") / "features.json", "not an HDF5 file"),
    ):
        with pytest.raises(kabuki_rlds.KabukiError, match=message):
            kabuki_rlds.load(path)
    broken = tmp_path / "broken.hdf5"
    for attribute, value, message in (
        ("complete", False, "not complete"),
        ("num_steps", 3, "the attribute num_steps is 3, but the file has 139"),
        ("features", "{}", r"broken\.hdf5: attribute 'features'"),
    ):
        broken.write_bytes(converted("plain").read_bytes())
        with h5py.File(broken, "r+") as f:
            f.attrs[attribute] = value
        with pytest.raises(kabuki_rlds.KabukiError, match=message):
            kabuki_rlds.load([converted("plain"), broken] if attribute != "features" else broken)


def test_damage_found_during_iteration_is_reported_with_the_field(tmp_path):
    reward = handmade.fields()["reward"]
    file = handmade.write(tmp_path / "hand.hdf5", {**handmade.fields(), "reward": handmade.chunked(reward)})
    handmade.put_chunk(file, "reward", handmade.gzip_with_a_flipped_bit(reward))
    whole = handmade.write(tmp_path / "whole.hdf5", handmade.fields())
    iterator = iter(kabuki_rlds.load([whole, file]))
    for _ in handmade.LENGTHS:
        next(iterator)
    with pytest.raises(tf.errors.OpError) as error:
        next(iterator)
    first_line = error.value.message.splitlines()[0]
    assert f"DamagedDataError: {file}: field 'reward': rows 0 to 7 cannot be read" in first_line
    assert len(plain(kabuki_rlds.load(file, fields="observation"))) == len(handmade.LENGTHS)


def test_a_file_changed_after_load_is_rejected(by_hand):
    episodes = kabuki_rlds.load(by_hand)
    handmade.write(by_hand, handmade.fields((2, 3), (True, True)))
    with pytest.raises(tf.errors.OpError, match=r"hand\.hdf5: was changed since it was loaded; load it again"):
        plain(episodes)


def test_an_image_of_the_wrong_size_is_rejected(converted, tmp_path):
    file = tmp_path / "encoded.hdf5"
    file.write_bytes(converted("oxe_style", "encoded").read_bytes())
    with h5py.File(file, "r+") as f:
        f["observation/image"][0] = np.frombuffer(tf.io.encode_jpeg(np.zeros((2, 2, 3), np.uint8)).numpy(), np.uint8)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"\[2,2,3\]"):
        plain(kabuki_rlds.load(file))


def _collect(episodes: tf.data.Dataset, folder: Path) -> expected.Expected:
    return expected.collect(episodes, tfds.builder_from_directory(folder).info.features)


def _steps(episodes: tf.data.Dataset) -> Any:
    for episode in episodes:
        yield from episode["steps"]


def _by_path(step: dict[str, Any]) -> dict[str, Any]:
    return dict(expected._leaves(step))
