"""What is odd or hostile in HDF5 files that are read as Kabuki's: each is said in one line, and nothing is misread."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

import kabuki_rlds
from kabuki_rlds import KabukiError
from tests import handmade
from tests.handmade import Stored


def a_file(path: Path, **more) -> Path:
    return handmade.write(path, handmade.fields() | handmade.index() | more, handmade.attributes())


def read_all(file: Path, folder: Path) -> None:
    """Each way to read a file, which gives something or a line."""
    for read in (
        kabuki_rlds.validate,
        kabuki_rlds.inspect,
        lambda path: kabuki_rlds.convert(path, folder / "out.hdf5", overwrite=True),
        lambda path: list(kabuki_rlds.load_steps(path, 3, as_numpy=True)),
    ):
        try:
            read(file)
        except KabukiError as e:
            assert str(file) in str(e)


# --- types that NumPy does not have ---


@pytest.mark.parametrize("name", sorted(handmade.attributes()))
def test_an_attribute_of_a_type_that_numpy_does_not_have(name, tmp_path):
    file = a_file(tmp_path / "f.hdf5")
    with h5py.File(file, "r+") as opened:
        del opened.attrs[name]
        h5py.h5a.create(opened.id, name.encode(), h5py.h5t.UNIX_D32LE, h5py.h5s.create(h5py.h5s.SCALAR))
    read_all(file, tmp_path)
    says = [violation.field for violation in kabuki_rlds.validate(file)]
    assert says == ([name] if name in ("complete", "num_steps", "num_episodes") else [])


@pytest.mark.parametrize("name", ["reward", *handmade.index()])
def test_a_dataset_of_a_type_that_numpy_does_not_have(name, tmp_path):
    file = a_file(tmp_path / "f.hdf5")
    with h5py.File(file, "r+") as opened:
        space = opened[name].id.get_space()
        del opened[name]
        h5py.h5d.create(opened.id, name.encode(), h5py.h5t.UNIX_D32LE, space)
    read_all(file, tmp_path)
    assert name in [violation.field for violation in kabuki_rlds.validate(file)]


# --- attributes of fields ---


def described(path: Path, values, options=None, **attributes):
    file = a_file(path, more=Stored(values, options or {}, attributes))
    return kabuki_rlds.convert(file, path.with_name("out.hdf5")).path


def test_one_class_name_is_not_taken_apart(tmp_path):
    copy = described(tmp_path / "f.hdf5", np.zeros(8, int), kind="label", class_names="cat")
    with h5py.File(copy) as file:
        assert file["more"].attrs["class_names"].tolist() == ["cat"]


def test_class_names_in_a_companion_are_found_by_text_of_fixed_length(tmp_path):
    more = Stored(np.zeros(8, int), {}, {"kind": "label", "companion": np.bytes_("/companion/more")})
    file = a_file(tmp_path / "f.hdf5", more=more, **{"companion/more/class_names": [b"cat", b"dog"]})
    with h5py.File(kabuki_rlds.convert(file, tmp_path / "out.hdf5").path) as opened:
        assert opened["more"].attrs["class_names"].tolist() == ["cat", "dog"]


def test_encoded_is_no_text(tmp_path):
    rows = np.empty(8, object)
    rows[:] = [np.arange(i, dtype=np.uint8) for i in range(8)]
    options = {"dtype": h5py.vlen_dtype(np.uint8)}
    copy = described(tmp_path / "f.hdf5", rows, options, kind="image", shape=[-1, 1, 1], encoded="false")
    with h5py.File(copy) as file:
        assert "encoded" not in file["more"].attrs and file["more"][3].tolist() == [0, 1, 2]


def test_numbers_are_no_text(tmp_path):
    copy = described(tmp_path / "f.hdf5", np.arange(8.0), kind="text")
    with h5py.File(copy) as file:
        assert "kind" not in file["more"].attrs and file["more"][3] == 3
    assert "float64" in {c.path: c.holds for c in kabuki_rlds.inspect(copy).columns}["more"]


def test_several_arrays_a_row_are_named(tmp_path):
    file = a_file(tmp_path / "f.hdf5")
    with h5py.File(file, "r+") as opened:
        opened.create_dataset("more", (8, 3), h5py.vlen_dtype("f4"))
    with pytest.raises(KabukiError, match=r"f.hdf5: dataset '/more' .*variable length"):
        kabuki_rlds.convert(file, tmp_path / "out.hdf5")
