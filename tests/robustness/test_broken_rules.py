"""One file for each rule of docs/format.md, broken in that rule alone; `validate` names it, and no other.

Rule 3, how rows are aligned, is about what numbers mean, which no file tells. Rules 10
and 11 are about converters. An index says again where episodes begin, so that a file
which breaks rule 5 there has none. `tests/commands/test_validate.py` has more ways to break each.
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
    """A file that keeps all rules, with fields whose rows need a companion."""
    fields = handmade.fields() | handmade.index() | handmade.companions()
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


def unindexed(change: Callable[[h5py.File], None]) -> Callable[[h5py.File], None]:
    def both(file: h5py.File) -> None:
        del file["episodes"], file.attrs["num_episodes"]
        change(file)

    return both


CORPUS: dict[str, tuple[int, Callable[[h5py.File], None]]] = {
    "rule 1, rows are lacking": (1, replace("action", np.zeros(7))),
    "rule 1, a dataset is a single value": (1, lambda file: file.create_dataset("single", data=3.0)),
    "rule 1, rows of one length that say that they are lists of lists": (
        1,
        lambda file: file["action"].attrs.update(nested=2),
    ),
    "rule 2, a field is lacking": (2, without("reward")),
    "rule 2, a flag is no boolean": (2, replace("is_first", handmade.fields()["is_first"].astype(np.float32))),
    "rule 2, a flag is neither 0 nor 1": (2, replace("is_first", handmade.fields()["is_first"] * np.int32(2))),
    "rule 2, a reward that is text": (2, replace("reward", np.array(["1"] * 8, h5py.string_dtype()))),
    "rule 2, a discount of two numbers": (2, replace("discount", np.ones((8, 2)))),
    "rule 4, no 0 before a terminal row": (4, put("discount", 1, 1)),
    "rule 4, a 0 elsewhere": (4, put("discount", 4, 0)),
    "rule 5, a terminal row that is not last": (5, put("is_terminal", 4, True)),
    "rule 5, the first row begins no episode": (5, unindexed(put("is_first", 0, False))),
    "rule 5, no episode begins after the last row of one": (5, unindexed(put("is_first", 3, False))),
    "rule 5, an episode begins within another": (5, unindexed(put("is_first", 5, True))),
    "rule 5, the last row ends no episode": (5, put("is_last", 7, False)),
    "rule 6, the index is no group": (6, lambda file: (file.__delitem__("episodes"), file.__setitem__("episodes", 3))),  # type: ignore[dict-item]
    "rule 6, a part of the index is lacking": (6, without("episodes/source")),
    "rule 6, episodes that begin elsewhere than they do": (6, put("episodes/start", 1, 2)),
    "rule 6, a field of the episodes without a row for each": (6, replace("episodes/metadata/seed", np.zeros(2))),
    "rule 6, lengths that do not add up": (6, put("episodes/length", slice(None), [3, 1, 3])),
    "rule 6, an episode of no source": (6, put("episodes/source", 1, 4)),
    "rule 7, another format": (7, attribute("format", "minari")),
    "rule 7, never finished": (7, attribute("complete", False)),
    "rule 7, another number of episodes": (7, attribute("num_episodes", 2)),
    "rule 7, features that are no JSON": (7, attribute("features", "{")),
    "rule 7, sources that are no list": (7, attribute("sources", "{}")),
    "rule 7, an environment that is no JSON": (7, attribute("environment", "Hopper")),
    "rule 7, another version": (7, attribute("format_version", "0.1")),
    "rule 7, another number of steps": (7, attribute("num_steps", 9)),
    "rule 7, what was left out is no list": (7, attribute("skipped", '{"path": "x"}')),
    "rule 8, a filter that others lack": (8, replace("reward", np.zeros(8), chunks=(8,), compression="lzf")),
    "rule 8, a filter that others lack, in the index": (
        8,
        replace("episodes/metadata/seed", np.zeros(3), chunks=(3,), compression="lzf"),
    ),
    "rule 9, text without what its rows hold behind a NUL": (9, without("companion/notes/exact_bytes")),
    "rule 9, lists in lists without their lengths": (9, without("companion/lists/lengths_1")),
    "rule 9, lists in lists of other lengths": (9, put("companion/lists/lengths_1", 3, np.array([7]))),
    "rule 9, text without where its rows hold a NUL": (9, without("companion/notes/exact_row")),
    "rule 9, a NUL in a row that there is not": (9, put("companion/notes/exact_row", 1, 8)),
    "rule 9, lists of text of other sizes": (9, put("companion/words/lengths_1", 3, np.array([7, 7, 7]))),
    "rule 9, shapes that are a group": (  # type: ignore[dict-item]
        9,
        lambda file: (file.__delitem__("companion/boxes/shape"), file.create_group("companion/boxes/shape")),
    ),
    "rule 9, shapes that are no integers": (9, replace("companion/boxes/shape", np.zeros((8, 2), [("a", "i4")]))),
    "rule 9, shapes of another rank": (9, replace("companion/boxes/shape", np.zeros((8, 3), int))),
    "rule 9, lengths that are no integers": (
        9,
        replace("companion/lists/lengths_1", None, shape=(8,), dtype=h5py.vlen_dtype(np.dtype([("a", "i4")]))),
    ),
    "rule 9, lengths that are no lists": (9, replace("companion/lists/lengths_1", np.zeros(8, int))),
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
