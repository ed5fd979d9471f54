"""`compare` reports the episodes and fields in which a file differs from its sources."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

import kabuki_rlds
from kabuki_rlds.cli.main import main
from tests import handmade
from tests.handmade import Stored

READABLE = ["plain", "array_record", "every_kind", "uncovered", "zero_size", "no_metadata", "no_discount", "no_steps"]


@pytest.mark.parametrize("images", ["arrays", "encoded"])
@pytest.mark.parametrize("name", READABLE)
def test_converted_file_has_no_differences(name, images, dataset, converted):
    assert kabuki_rlds.compare(converted(name, images), dataset(name)) == []


def test_several_sources_are_compared_in_order(dataset, converted, tmp_path):
    sources = [dataset("plain"), converted("plain"), dataset("array_record")]
    file = kabuki_rlds.convert(sources, tmp_path / "all.hdf5").path
    assert kabuki_rlds.compare(file, sources) == []
    other = kabuki_rlds.convert(dataset("plain"), tmp_path / "test.hdf5", split="test").path
    assert kabuki_rlds.compare(other, dataset("plain"), split="test") == []
    (order,) = kabuki_rlds.compare(kabuki_rlds.convert([file, other], tmp_path / "a.hdf5").path, [other, file])
    assert (order.what, order.message, order.count) == ("episodes", "order differs from the source", 0)


@pytest.fixture
def changed(converted, tmp_path) -> Path:
    """Returns a copy of a file that a test may change."""
    return Path(shutil.copy(converted("every_kind"), tmp_path / "changed.hdf5"))


@pytest.mark.parametrize("path", ["reward", "observation/scalar/none/int8", "observation/a/b/c", "language_embedding"])
def test_changed_row_is_reported(path, changed, dataset):
    with h5py.File(changed, "r+") as f:
        row = int(f["episodes/start"][1])
        f[path][row] = np.where(f[path][row] == 1, 2, 1)
    (difference,) = kabuki_rlds.compare(changed, dataset("every_kind"))
    assert (difference.what, difference.episodes, difference.count) == (path, (1,), 1)
    assert difference.message == "step field: 1 rows differ"


def test_values_are_compared_bit_by_bit(dataset, tmp_path):
    fields = handmade.fields()
    old = handmade.write(tmp_path / "old.hdf5", fields | {"reward": np.array([0.0, np.nan] * 4, np.float32)})
    new = handmade.write(tmp_path / "new.hdf5", fields | {"reward": np.array([-0.0, np.nan] * 4, np.float32)})
    assert kabuki_rlds.compare(old, old) == []
    (difference,) = kabuki_rlds.compare(new, old)
    assert difference.what == "reward"
    assert difference.message == "step field: 4 rows differ"


def test_missing_episodes_are_listed(dataset, tmp_path):
    all_of_it = dataset("plain")
    file = kabuki_rlds.convert(all_of_it, tmp_path / "some.hdf5", split="train[1:]").path
    (lost,) = kabuki_rlds.compare(file, all_of_it)
    assert (lost.what, lost.message) == ("episodes", "in the source, but not in the file")
    assert (lost.episodes, lost.count) == ((0,), 1)
    whole = kabuki_rlds.convert(all_of_it, tmp_path / "all.hdf5").path
    (more,) = kabuki_rlds.compare(whole, file)
    assert (more.message, more.episodes) == ("in the file, but not in the source", (0,))
    assert str(more) == "episodes: in the file, but not in the source (1 episode: 0)"


def test_comparison_does_not_depend_on_block_boundaries(tmp_path, monkeypatch):
    # Episodes of text and of rows that vary, which a block cuts at other rows once one of them is lost.
    monkeypatch.setattr(sys.modules["kabuki_rlds.formats.hdf5.source"], "_BLOCK_ROWS", 64)
    texts = np.array([f"{i}" * (i % 5) for i in range(400)], object)
    rows = np.empty(400, object)
    rows[:] = [np.arange(i % 3) for i in range(400)]
    files = []
    for name, first in (("all", 0), ("lost", 100)):
        fields = handmade.fields((100,) * ((400 - first) // 100), (True,) * ((400 - first) // 100))
        fields |= {
            "observation": np.arange(first, 400),
            "action": np.arange(first, 400),
            "reward": np.arange(first, 400.0),
            "text": Stored(texts[first:], {"dtype": h5py.string_dtype()}),
            "rows": Stored(rows[first:], {"dtype": h5py.vlen_dtype(np.int64)}),
        }
        files.append(handmade.write(tmp_path / f"{name}.hdf5", fields))
    (found,) = kabuki_rlds.compare(files[1], files[0])
    assert str(found) == "episodes: in the source, but not in the file (1 episode: 0)"


def test_differing_fields_are_listed(tmp_path):
    fields = handmade.fields()
    old = handmade.write(tmp_path / "old.hdf5", fields | {"speed": np.zeros(8, np.float32)})
    new = handmade.write(tmp_path / "new.hdf5", fields | {"reward": fields["reward"].astype(np.float32)})
    assert [str(d) for d in kabuki_rlds.compare(new, old)] == [
        "reward: step field: the file has float32, the source has float64",
        "speed: step field: the source has float32, the file does not have it",
    ]


def test_episode_fields_are_compared(converted, dataset, tmp_path):
    file = Path(shutil.copy(converted("plain"), tmp_path / "f.hdf5"))
    with h5py.File(file, "r+") as f:
        path = next(name for name in f["episodes/metadata"] if f["episodes/metadata"][name].dtype.kind in "if")
        f["episodes/metadata"][path][2] += 1
    (difference,) = kabuki_rlds.compare(file, dataset("plain"))
    assert (difference.what, difference.episodes) == (path, (2,))
    assert difference.message == "episode field: differs"


def test_derived_fields_are_not_compared(converted, dataset):
    with h5py.File(converted("no_discount")) as f:
        assert f["discount"].attrs["derived"]
    assert kabuki_rlds.compare(converted("no_discount"), dataset("no_discount")) == []


@pytest.mark.parametrize("group", ["ragged/bytes", "sequence"])
def test_differing_lists_are_reported(group, converted, dataset, tmp_path):
    file = Path(shutil.copy(converted("every_kind"), tmp_path / "f.hdf5"))
    with h5py.File(file, "r+") as f:
        fields = {n: d for n, d in f["observation"][group].items() if isinstance(d, h5py.Dataset)}
        varying = {n: d for n, d in fields.items() if h5py.check_vlen_dtype(d.dtype) in (np.float32, np.float64)}
        name, values = next(iter(varying.items()))
        row = next(row for row in range(len(values)) if len(values[row]))
        values[row] = values[row] + 1
    (difference,) = kabuki_rlds.compare(file, dataset("every_kind"))
    assert difference.what == f"observation/{group}/{name}"
    assert difference.message == "step field: 1 rows differ"


def test_validate_against_compares_the_file_with_its_source(converted, dataset, tmp_path, capsys):
    whole, source = str(converted("plain")), str(dataset("plain"))
    assert main(["validate", whole, "--against", source]) == 0
    assert capsys.readouterr().out == f"{whole}: valid\n{whole}: matches its source\n"
    some = str(kabuki_rlds.convert(source, tmp_path / "some.hdf5", split="train[:2]").path)
    assert main(["validate", some, "--against", source]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{some}: valid"
    assert lines[1].startswith(f"{some}: differs from its source: episodes: in the source, but not in the file (")
    assert main(["validate", some, "--against", source, "--split", "train[:2]"]) == 0
