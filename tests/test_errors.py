"""Errors that no other test reaches: each names what, and where."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

import kabuki_rlds
from kabuki_rlds.formats.hdf5.writer import KabukiWriter
from kabuki_rlds.formats.source import Origin
from kabuki_rlds.schema import Field, Schema
from tests import handmade


def edited(**changes) -> dict:
    """The fields and the index of a file, with some replaced, or left out where None."""
    fields = handmade.fields() | handmade.index() | {name.replace("__", "/"): value for name, value in changes.items()}
    return {name: value for name, value in fields.items() if value is not None}


def garbled(values: np.ndarray) -> handmade.Stored:
    return handmade.chunked(np.asarray(values))


HDF5 = {
    "a discount of several fields": (edited(discount=None, discount__a=np.ones(8)), "'discount' is a dict of fields"),
    "neither a terminal flag nor a discount": (
        edited(discount=None, is_terminal=None),
        "neither 'is_terminal' nor 'discount'",
    ),
    "lengths that do not fit": (edited(episodes__length=np.array([3, 2, 3])), "episodes/length does not fit"),
    "lengths of two columns": (edited(episodes__length=np.ones((3, 2), int)), "episodes/length does not fit"),
    "starts that are a table": (
        edited(episodes__start=np.ones((3, 2), int)),
        "episodes/start is not an ascending list",
    ),
}


@pytest.mark.parametrize("case", HDF5)
def test_a_kabuki_file_that_cannot_be_converted(case, tmp_path):
    fields, says = HDF5[case]
    file = handmade.write(tmp_path / "f.hdf5", fields)
    with pytest.raises(kabuki_rlds.KabukiError) as error:
        kabuki_rlds.convert(file, tmp_path / "out.hdf5")
    assert says in str(error.value)


@pytest.mark.parametrize("name", ["episodes/length", "episodes/source", "episodes/start", "is_first"])
def test_damaged_numbers_of_the_index_are_named(name, tmp_path):
    found = handmade.fields() | handmade.index()
    values = found[name]
    if name == "is_first":
        # Then it is the flags that tell where episodes begin.
        found = handmade.fields()
    found[name] = garbled(values)
    file = handmade.write(tmp_path / "f.hdf5", found, {"sources": handmade.attributes()["sources"]})
    handmade.put_chunk(file, name, b"no zlib stream")
    with pytest.raises(kabuki_rlds.KabukiError, match=f"f.hdf5: {name} cannot be read"):
        kabuki_rlds.convert(file, tmp_path / "out.hdf5")


def test_a_conform_that_cannot_be(tmp_path):
    file = handmade.write(tmp_path / "f.hdf5", edited(discount=np.ones((8, 2))))
    with pytest.raises(kabuki_rlds.KabukiError, match="'discount' is not one value a step"):
        kabuki_rlds.convert(file, tmp_path / "out.hdf5", conform=True)


def test_a_link_that_leads_nowhere(tmp_path):
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields())
    with h5py.File(file, "r+") as f:
        f["more"] = h5py.SoftLink("/nowhere")
    with pytest.raises(kabuki_rlds.KabukiError, match="'more' is a link that leads nowhere"):
        kabuki_rlds.convert(file, tmp_path / "out.hdf5")


def test_a_companion_that_is_missing_is_named(tmp_path):
    rows = np.empty(8, object)
    rows[:] = [np.arange(i) for i in range(8)]
    stored = handmade.Stored(rows, {"dtype": h5py.vlen_dtype("i8")}, {"companion": "/nowhere"})
    file = handmade.write(tmp_path / "f.hdf5", edited(more=stored))
    with pytest.raises(
        kabuki_rlds.KabukiError, match="dataset '/more' cannot be read: its companion /nowhere is missing"
    ):
        kabuki_rlds.convert(file, tmp_path / "out.hdf5")


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(kabuki_rlds.KabukiError, match="not a regular file"):
        kabuki_rlds.validate(tmp_path / "pipe")


def test_nothing_to_convert(tmp_path):
    with pytest.raises(kabuki_rlds.KabukiError, match="no source to convert"):
        kabuki_rlds.convert([], tmp_path / "out.hdf5")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("a//b", "cannot hold a field of this name"),
        ("a/.", "cannot hold"),
        ("episodes/x", "keeps 'episodes' for itself"),
    ],
)
def test_names_that_hdf5_or_the_format_cannot_hold(path, says, tmp_path):
    with pytest.raises(kabuki_rlds.KabukiError, match=says):
        KabukiWriter(tmp_path / "out.hdf5", Schema({path: Field(np.dtype(int))}, {}), [Origin("here")])
    assert list(tmp_path.iterdir()) == []


def no_split(info: dict) -> None:
    info["splits"] = []


def another_format(info: dict) -> None:
    info["fileFormat"] = "parquet"


@pytest.mark.parametrize(
    ("change", "says"), [(no_split, "the dataset says of no split"), (another_format, "'parquet' cannot be read")]
)
def test_a_dataset_that_cannot_be_read_at_all(change: Callable[[dict], None], says, dataset, tmp_path):
    folder = Path(shutil.copytree(dataset("plain"), tmp_path / "copy"))
    info = json.loads((folder / "dataset_info.json").read_text())
    change(info)
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(kabuki_rlds.KabukiError, match=says):
        kabuki_rlds.convert(folder, tmp_path / "out.hdf5")


def test_a_dataset_that_is_not_of_episodes_is_said(dataset, tmp_path):
    folder = Path(shutil.copytree(dataset("plain"), tmp_path / "copy"))
    features = json.loads((folder / "features.json").read_text())
    inner = features["featuresDict"]["features"]
    inner["stairs"] = inner.pop("steps")
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(kabuki_rlds.KabukiError, match="this is no RLDS dataset: its features have no 'steps'"):
        kabuki_rlds.convert(folder, tmp_path / "out.hdf5")
