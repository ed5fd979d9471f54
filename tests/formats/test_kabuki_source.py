"""Kabuki files as sources, by our hand and by others', and what is said of columns that were made."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

import kabuki_rlds
from kabuki_rlds.data.block import Block
from kabuki_rlds.data.schema import Field, Schema
from kabuki_rlds.data.source import Origin
from kabuki_rlds.formats.hdf5.sink import KabukiSink


def steps(count: int) -> dict[str, np.ndarray]:
    """One episode that ends in a terminal state."""
    columns = {name: np.zeros(count, np.float32) for name in ("observation", "action", "reward")}
    flags = {name: np.zeros(count, bool) for name in ("is_first", "is_last", "is_terminal")}
    flags["is_first"][0] = flags["is_last"][-1] = flags["is_terminal"][-1] = True
    discount = np.ones(count, np.float32)
    discount[-2:] = 0
    return columns | flags | {"discount": discount}


def write(path: Path, columns: dict[str, np.ndarray]) -> Path:
    with h5py.File(path, "w") as f:
        for name, column in columns.items():
            f[name] = column
    return path


def test_text_attributes_of_fixed_length_are_text(tmp_path):
    file = write(tmp_path / "in.hdf5", steps(4) | {"skill": np.array([0, 1, 1, 0])})
    with h5py.File(file, "a") as f:
        f.attrs["name"] = np.bytes_("hopper")
        f.attrs["format"] = np.bytes_("kabuki")
        f["skill"].attrs["kind"] = np.bytes_("label")
        f["skill"].attrs["class_names"] = np.array([b"walk", b"run"])
    assert kabuki_rlds.validate(file) == []
    kabuki_rlds.convert(file, tmp_path / "out.hdf5")
    with h5py.File(tmp_path / "out.hdf5") as f:
        assert f.attrs["name"] == "hopper"
        assert f["skill"].attrs["kind"] == "label"
        assert list(f["skill"].attrs["class_names"]) == ["walk", "run"]


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("complete", False, "not complete"),
        ("num_steps", 5, "the attribute num_steps is 5, but the file has 4"),
        ("num_episodes", 2, "2"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_refused(tmp_path, attribute, value, message):
    file = write(tmp_path / "in.hdf5", steps(4))
    with h5py.File(file, "a") as f:
        f.attrs[attribute] = value
    with pytest.raises(kabuki_rlds.KabukiError, match=message):
        kabuki_rlds.convert(file, tmp_path / "out.hdf5")
    assert not (tmp_path / "out.hdf5").exists()


def test_an_empty_name_is_not_the_working_folder(tmp_path, monkeypatch):
    write(tmp_path / "in.hdf5", steps(4))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kabuki_rlds.KabukiError, match="the name of a source is empty"):
        kabuki_rlds.convert("", tmp_path / "out.hdf5")


def test_a_split_of_a_kabuki_file_is_refused(tmp_path):
    file = write(tmp_path / "in.hdf5", steps(4))
    with pytest.raises(kabuki_rlds.KabukiError, match=r"no split 'test'; the splits are train .1 episode."):
        kabuki_rlds.convert(file, tmp_path / "out.hdf5", split="test")


@pytest.mark.parametrize("lacking", [0, 1])
def test_a_column_that_only_some_sources_lack_says_which(tmp_path, lacking):
    files = [write(tmp_path / f"{i}.hdf5", steps(3)) for i in range(2)]
    with h5py.File(files[lacking], "a") as f:
        del f["reward"]
    result = kabuki_rlds.convert(files, tmp_path / "out.hdf5", fill={"reward": 7})
    how = f"filled with 7 in the episodes of {files[lacking]}"
    assert result.derived == {"reward": how}
    with h5py.File(tmp_path / "out.hdf5") as f:
        assert f["reward"].attrs["derived"] == how
        assert f["reward"][:].tolist() == [7 * (i == lacking) for i in (0, 1) for _ in range(3)]


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        ({"is_first": 1}, "cannot be filled"),
        ({"is_terminal": 2}, "0 or 1"),
        ({"reward": 1e300}, "too large for float32"),
    ],
)
def test_a_constant_that_cannot_stand_is_refused(tmp_path, fill, message):
    file = write(tmp_path / "in.hdf5", steps(3))
    with pytest.raises(kabuki_rlds.KabukiError, match=message):
        kabuki_rlds.convert(file, tmp_path / "out.hdf5", fill=fill)


def test_flags_that_contradict_the_index_are_warned_of(tmp_path):
    columns = {name: np.concatenate([column, column]) for name, column in steps(3).items()}
    file = write(tmp_path / "in.hdf5", columns)
    with h5py.File(file, "a") as f:
        f["episodes/start"], f["episodes/length"] = np.array([0]), np.array([6])
        f["episodes/source"] = np.array([0])
    result = kabuki_rlds.convert(file, tmp_path / "out.hdf5")
    assert [(v.rule, v.field, v.rows) for v in result.warnings] == [(6, "is_first", (3,))]


def test_more_class_names_than_an_attribute_holds(tmp_path):
    names = tuple(f"class {i}" for i in range(6000))
    schema = Schema({"x": Field(np.dtype(np.int64), kind="label", names=names)}, {})
    with KabukiSink(tmp_path / "in.hdf5", schema, [Origin("here")]) as writer:
        writer.write(Block({"x": np.arange(3)}, 3, np.zeros(1, np.int64), {}))
        writer.commit()
    with h5py.File(tmp_path / "in.hdf5") as f:
        stored = f[f["x"].attrs["companion"]]["class_names"].asstr()[:]
        assert tuple(stored) == names


@pytest.mark.parametrize("paths", [("a", "a/b"), ("a/b/c", "a/b")])
def test_a_field_within_another_is_refused(tmp_path, paths):
    schema = Schema({path: Field(np.dtype(np.int64)) for path in paths}, {})
    with pytest.raises(kabuki_rlds.KabukiError, match="cannot be both a field and a group"):
        KabukiSink(tmp_path / "out.hdf5", schema, [Origin("here")])
    assert list(tmp_path.iterdir()) == []


def store_flags(file: Path, kind: str, values: dict[str, np.ndarray]) -> None:
    """Stores flags as PyTables, Julia and others do."""
    with h5py.File(file, "a") as f:
        for name, column in values.items():
            if name in f:
                del f[name]
            if kind.startswith("bit field"):
                # h5py has no dtype of bit fields.
                properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
                if kind == "bit field in chunks":
                    properties.set_chunk((4,))
                    properties.set_shuffle()
                    properties.set_deflate(4)
                space, element = h5py.h5s.create_simple(column.shape), h5py.h5t.NATIVE_B8
                dataset = h5py.h5d.create(f.id, name.encode(), element, space, properties)
                dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, column.astype(np.uint8), mtype=element)
            else:
                f.create_dataset(name, data=column.astype(kind), chunks=(4,), compression="gzip")


KINDS_OF_FLAGS = ["uint8", "bit field", "bit field in chunks", ">u2", "int64"]


@pytest.mark.parametrize("kind", KINDS_OF_FLAGS)
def test_flags_stored_as_integers_are_booleans(tmp_path, kind):
    columns = {name: np.concatenate([steps(5)[name], steps(3)[name]]) for name in steps(3)}
    right = write(tmp_path / "right.hdf5", columns)
    file = write(tmp_path / "in.hdf5", columns)
    store_flags(file, kind, {name: columns[name] for name in ("is_first", "is_last", "is_terminal")})
    assert kabuki_rlds.validate(file) == []
    result = kabuki_rlds.convert(file, tmp_path / "out.hdf5")
    assert result.warnings == [] and kabuki_rlds.validate(result.path) == []
    assert kabuki_rlds.compare(result.path, right) == [] == kabuki_rlds.compare(file, right)
    summary = kabuki_rlds.inspect(file)
    assert (summary.num_episodes, summary.terminal) == (2, 2)
    with h5py.File(result.path) as f:
        assert all(f[name].dtype == bool for name in ("is_first", "is_last", "is_terminal"))
    for shuffle in (False, True):
        batches = {}
        for path in (right, file):
            loaded = kabuki_rlds.load_steps(path, 3, shuffle, 0, keep_last=True, as_numpy=True)
            batches[path] = [batch["is_terminal"] for batch in loaded]
        assert [batch.tolist() for batch in batches[file]] == [batch.tolist() for batch in batches[right]]
        assert {batch.dtype for batch in batches[file]} == {np.dtype(bool)}
    (first, second) = kabuki_rlds.load(file)
    assert [step["is_first"].numpy() for step in first["steps"]] == [np.True_, *[np.False_] * 4]
    assert second["steps"].element_spec["is_last"].dtype.name == "bool"


@pytest.mark.parametrize("kind", KINDS_OF_FLAGS)
def test_flags_that_are_neither_0_nor_1_break_a_rule(tmp_path, kind):
    file = write(tmp_path / "in.hdf5", steps(6))
    store_flags(file, kind, {"is_terminal": np.array([0, 0, 0, 0, 0, 3])})
    (broken,) = kabuki_rlds.validate(file)
    assert str(broken) == "rule 2: is_terminal: is not 0 or 1 (row 5)"
    assert kabuki_rlds.convert(file, tmp_path / "out.hdf5").warnings == [broken]


def test_flags_of_an_rlds_dataset_keep_their_type(tmp_path):
    import tensorflow_datasets as tfds

    numbers = dict.fromkeys(("observation", "action", "reward", "discount"), np.float32)
    flags = dict.fromkeys(("is_first", "is_last", "is_terminal"), np.uint8)
    features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset({**numbers, **flags})})
    values = {"observation": 0.0, "action": 0.0, "reward": 0.0, "discount": 1.0}
    rows = [values | {"is_first": t == 0, "is_last": t == 1, "is_terminal": 0} for t in (0, 1)]
    builder = tfds.dataset_builders.store_as_tfds_dataset(
        name="x",
        version="1.0.0",
        features=features,
        split_datasets={"train": [(0, {"steps": rows})]},
        data_dir=tmp_path,
    )
    result = kabuki_rlds.convert(builder.data_dir, tmp_path / "out.hdf5")
    assert result.warnings == [] and kabuki_rlds.validate(result.path) == []
    built = kabuki_rlds.build(result.path, tmp_path / "data").path
    assert tfds.builder_from_directory(built).info.features.to_json() == features.to_json()
    (episode,) = kabuki_rlds.load(result.path)
    assert episode["steps"].element_spec["is_first"].dtype.name == "uint8"
