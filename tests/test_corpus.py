"""One file for each rule of docs/format.md, broken in that rule alone; `validate` names it, and no other.

Rule 3, how rows are aligned, is about what numbers mean, which no file tells. Rules 10
and 11 are about converters. `tests/test_validate.py` has more ways to break each.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

import kabuki_rlds
from kabuki_rlds.cli.main import main
from tests import handmade


def whole(path: Path) -> Path:
    """A file that keeps all rules, with a field whose rows need a companion."""
    lists = np.empty(8, object)
    lists[:] = [np.arange(i, dtype=np.int64) for i in range(8)]
    vlen = h5py.vlen_dtype("i8")
    attributes = {"shape": np.array([-1, -1]), "dtype": "int64", "companion": "/companion/boxes"}
    fields = handmade.fields() | handmade.index()
    fields["boxes"] = handmade.Stored(lists, {"dtype": vlen}, attributes)
    fields["companion/boxes/shape"] = np.array([[i, 1] for i in range(8)])
    return handmade.write(path, fields, handmade.attributes())


def replace(name: str, values: object, **options: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        attributes = dict(file[name].attrs)
        del file[name]
        file.create_dataset(name, data=values, **options).attrs.update(attributes)

    return change


def put(name: str, row: object, value: object) -> Callable[[h5py.File], None]:
    return lambda file: file[name].__setitem__(row, value)


def attribute(name: str, value: object) -> Callable[[h5py.File], None]:
    return lambda file: file.attrs.__setitem__(name, value)


def without(name: str) -> Callable[[h5py.File], None]:
    return lambda file: file.__delitem__(name)


CORPUS: dict[str, tuple[int, Callable[[h5py.File], None]]] = {
    "rule 1, rows are lacking": (1, replace("action", np.zeros(7))),
    "rule 1, a dataset is a single value": (1, lambda file: file.create_dataset("more", data=3.0)),
    "rule 2, a field is lacking": (2, without("reward")),
    "rule 2, a flag is no boolean": (2, replace("is_first", handmade.fields()["is_first"].astype(np.int32))),
    "rule 4, no 0 before a terminal row": (4, put("discount", 1, 1)),
    "rule 4, a 0 elsewhere": (4, put("discount", 4, 0)),
    "rule 5, a terminal row that is not last": (5, put("is_terminal", 4, True)),
    "rule 6, lengths that do not add up": (6, put("episodes/length", slice(None), [3, 1, 3])),
    "rule 6, an episode of no source": (6, put("episodes/source", 1, 4)),
    "rule 7, another version": (7, attribute("format_version", "0.1")),
    "rule 7, another number of steps": (7, attribute("num_steps", 9)),
    "rule 7, what was left out is no list": (7, attribute("skipped", '{"path": "x"}')),
    "rule 8, a filter that others lack": (8, replace("reward", np.zeros(8), chunks=(8,), compression="lzf")),
    "rule 9, a companion is lacking": (9, without("companion")),
    "rule 9, a companion of other shapes": (9, put("companion/boxes/shape", 3, [5, 1])),
    "rule 9, a companion of shapes below nothing": (9, put("companion/boxes/shape", 4, [-4, -1])),
}


def test_the_file_that_keeps_all_rules(tmp_path):
    assert kabuki_rlds.validate(whole(tmp_path / "f.hdf5")) == []


@pytest.mark.parametrize("case", CORPUS)
def test_validate_names_the_rule_and_no_other(case, tmp_path, capsys):
    rule, change = CORPUS[case]
    path = whole(tmp_path / "f.hdf5")
    with h5py.File(path, "r+") as file:
        change(file)
    assert {violation.rule for violation in kabuki_rlds.validate(path)} == {rule}
    assert main(["validate", str(path)]) == 1
    assert all(line.startswith(f"{path}: rule {rule}: ") for line in capsys.readouterr().out.splitlines())
