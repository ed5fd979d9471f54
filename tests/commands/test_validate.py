"""`validate` with handwritten files: valid files, and one file for each way to violate a rule."""

from __future__ import annotations

import contextlib
import functools
import itertools
import shutil
import subprocess
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import h5py
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import kabuki_rlds
from kabuki_rlds.data.rules import RuleChecker
from tests import datasets, handmade
from tests.handmade import LENGTHS, Stored, chunked


def broken(path) -> list[tuple]:
    """Returns (rule, field, rows, count) of each violation."""
    return [(v.rule, v.field, v.rows, v.count) for v in kabuki_rlds.validate(path)]


# --- valid files ---


def test_file_with_only_step_fields_is_valid(tmp_path):
    assert kabuki_rlds.validate(handmade.write(tmp_path / "f.hdf5", handmade.fields())) == []


def test_consistent_index_and_attributes_are_valid(tmp_path):
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields() | handmade.index(), handmade.attributes())
    assert kabuki_rlds.validate(file) == []


def test_observation_and_action_may_be_groups(tmp_path):
    fields = handmade.fields()
    fields["observation/camera/depth"], fields["action/arm"] = fields.pop("observation"), fields.pop("action")
    assert kabuki_rlds.validate(handmade.write(tmp_path / "f.hdf5", fields)) == []


def test_empty_file_is_valid(tmp_path):
    datasets = handmade.fields((), ()) | handmade.index(())
    assert kabuki_rlds.validate(handmade.write(tmp_path / "f.hdf5", datasets, handmade.attributes(()))) == []


def test_index_may_contain_empty_episodes(tmp_path):
    index = handmade.index((0, 3, 0, 1, 4, 0))
    assert kabuki_rlds.validate(handmade.write(tmp_path / "f.hdf5", handmade.fields() | index)) == []


@pytest.mark.parametrize(
    "values",
    [
        np.ones((8, 2, 2), ">f8"),
        np.array([b"text"] * 8),
        np.array(["text"] * 8, h5py.string_dtype()),
        Stored([np.arange(i) for i in range(8)], {"dtype": h5py.vlen_dtype("int32")}),
        chunked(np.ones((8, 3), np.float16), shuffle=True, fletcher32=True),
        np.zeros((8, 0)),
        np.ones(8, complex),
    ],
    ids=["big-endian", "fixed text", "text", "vlen", "fletcher32", "zero size", "complex"],
)
def test_fields_may_have_any_common_hdf5_type(values, tmp_path):
    assert broken(handmade.write(tmp_path / "f.hdf5", handmade.fields() | {"more": values})) == []


def test_discount_may_have_shape_1_and_values_between_0_and_1(tmp_path):
    fields = handmade.fields()
    fields["discount"] = np.where(fields["discount"] == 1, 0.99, 0)[:, None]
    assert broken(handmade.write(tmp_path / "f.hdf5", fields)) == []


def test_discount_of_padding_rows_may_be_any_value(tmp_path):
    fields = handmade.fields()
    for value in (0, 1, np.nan):
        fields["discount"][fields["is_last"]] = value
        assert broken(handmade.write(tmp_path / "f.hdf5", fields)) == []


# These datasets violate rule 4: a terminal row follows a discount of 1.
NOT_VALID_AT_THE_SOURCE = {"image_lists", "oxe_style", "every_kind", "uncovered"}


@pytest.fixture(scope="module")
def converted(dataset, tmp_path_factory):
    """Returns a function: `converted("plain", "arrays")` is the `Conversion` of that dataset."""
    folder = tmp_path_factory.mktemp("converted")

    @functools.cache
    def convert(name: str, images: Literal["arrays", "encoded"]) -> kabuki_rlds.Conversion:
        fill = {"reward": 0.0} if name == "no_reward" else None
        return kabuki_rlds.convert(dataset(name), folder / f"{name}-{images}.hdf5", fill=fill, images=images)

    return convert


@pytest.mark.parametrize("name", datasets.READ_BY_TFDS)
def test_converted_files_are_valid_except_for_violations_of_the_source(name, converted):
    result = converted(name, "arrays")
    # The file lists these violations in its notes.
    assert kabuki_rlds.validate(result.path) == []
    found = {(v.rule, v.field) for v in result.warnings}
    assert found == ({(4, "discount")} if name in NOT_VALID_AT_THE_SOURCE else set())
    with h5py.File(result.path, "a") as f:
        notes = f.attrs.pop("notes", None)
    try:
        assert kabuki_rlds.validate(result.path) == result.warnings
    finally:
        if notes is not None:
            with h5py.File(result.path, "a") as f:
                f.attrs["notes"] = notes


# --- violations of a single rule ---


def edited(**changes) -> dict:
    """Returns the fields of a valid file with some replaced. Fields that are None are left out."""
    return {name: value for name, value in (handmade.fields() | changes).items() if value is not None}


def put(name: str, row: int, value) -> dict:
    """Returns the fields of a valid file with one value replaced."""
    fields = handmade.fields()
    fields[name][row] = value
    return fields


RULES_1_AND_2 = {
    "a field is short": (edited(reward=np.zeros(7)), (1, "reward", (), 0)),
    "a field is long": (edited(is_first=np.zeros(9, bool)), (1, "is_first", (), 0)),
    "a field of a group is short": (
        edited(observation=None) | {"observation/a": np.zeros(8), "observation/b": np.zeros(3)},
        (1, "observation/b", (), 0),
    ),
    "a step field beyond the standard ones is short": (edited(more=np.zeros(1)), (1, "more", (), 0)),
    "a dataset is a scalar": (edited(more=np.float32(3)), (1, "more", (), 0)),
    "a dataset has a null dataspace": (edited(more=h5py.Empty("f4")), (1, "more", (), 0)),
    "a dataset is compound": (edited(more=np.zeros(8, [("a", "i4")])), (1, "more", (), 0)),
    "a dataset is opaque": (edited(more=np.zeros(8, "V3")), (1, "more", (), 0)),
    "a dataset has references": (edited(more=Stored([h5py.Reference()] * 8, {"dtype": h5py.ref_dtype})), (1, "more")),
    **{f"no {name}": (edited(**{name: None}), (2, name, (), 0)) for name in handmade.fields()},
    "is_first is 2": (edited(is_first=handmade.fields()["is_first"] * np.uint8(2)), (2, "is_first")),
    "is_last has floats": (edited(is_last=handmade.fields()["is_last"].astype(np.float32)), (2, "is_last")),
    "is_terminal has shape (rows, 1)": (
        edited(is_terminal=handmade.fields()["is_terminal"][:, None]),
        (2, "is_terminal"),
    ),
    "is_terminal has shape (rows, 2)": (edited(is_terminal=np.zeros((8, 2), bool)), (2, "is_terminal")),
    "is_last is text": (edited(is_last=np.array([b"yes"] * 8)), (2, "is_last")),
    "is_first is a group": (
        edited(is_first=None) | {"is_first/now": handmade.fields()["is_first"]},
        (2, "is_first", (), 0),
    ),
    "the reward is a group": (edited(reward=None) | {"reward/a": np.zeros(8)}, (2, "reward")),
    "the discount is text": (edited(discount=np.array([b"1"] * 8)), (2, "discount")),
    "the discount has shape (rows, 2)": (edited(discount=np.ones((8, 2))), (2, "discount")),
    "the discount is boolean": (edited(discount=handmade.fields()["discount"].astype(bool)), (2, "discount")),
    "the discount is a group": (edited(discount=None) | {"discount/a": np.ones(8)}, (2, "discount")),
}

# Episodes end at rows 2, 3 and 7; those that end at 2 and 7 are terminal.
RULES_4_AND_5 = {
    "a discount of 1 before a terminal row": (put("discount", 1, 1), (4, "discount", (1,), 1)),
    "a discount of nearly 0 before a terminal row": (put("discount", 6, 1e-30), (4, "discount", (6,), 1)),
    "a NaN discount before a terminal row": (put("discount", 6, np.nan), (4, "discount", (6,), 1)),
    "discount 0 with no terminal row after it": (put("discount", 4, 0), (4, "discount", (4,), 1)),
    "discount -0.0 with no terminal row after it": (put("discount", 5, -0.0), (4, "discount", (5,), 1)),
    "discounts of 0 before rows that are not last": (
        edited(discount=np.zeros(8, np.float32)),
        (4, "discount", (0, 4, 5), 3),
    ),
    "the first row is not is_first": (put("is_first", 0, False), (5, "is_first", (0,), 1)),
    "no is_first after an is_last row": (put("is_first", 3, False), (5, "is_first", (3,), 1)),
    "is_first inside an episode": (put("is_first", 5, True), (5, "is_first", (5,), 1)),
    "the last row is not is_last": (
        edited(is_last=np.arange(8) < 4, is_first=np.arange(8) < 5, is_terminal=np.zeros(8, bool), discount=np.ones(8)),
        (5, "is_last", (7,), 1),
    ),
    "a terminal row is not last": (put("is_terminal", 4, True), (5, "is_terminal", (4,), 1)),
}


@pytest.mark.parametrize("case", [*RULES_1_AND_2, *RULES_4_AND_5])
def test_violation_of_a_step_rule_is_reported_with_rows(case, tmp_path):
    fields, violation = (RULES_1_AND_2 | RULES_4_AND_5)[case]
    found = broken(handmade.write(tmp_path / "f.hdf5", fields))
    assert [v[: len(violation)] for v in found] == [violation]


def test_only_the_first_rows_are_listed_and_all_are_counted(tmp_path):
    fields = handmade.fields([1] * 1000, [False] * 1000)
    fields["is_first"][100:] = False
    file = handmade.write(tmp_path / "f.hdf5", fields)
    assert broken(file) == [(5, "is_first", (100, 101, 102, 103, 104), 900)]
    assert str(kabuki_rlds.validate(file)[0]).endswith("(900 rows: 100, 101, 102, 103, 104, …)")


def test_violations_are_sorted_by_rule(tmp_path):
    fields = edited(reward=None, more=np.zeros(3)) | {"discount": put("discount", 1, 1)["discount"]}
    file = handmade.write(tmp_path / "f.hdf5", fields, {"num_steps": 3})
    assert [rule for rule, *_ in broken(file)] == [1, 2, 4, 7]


INDEX = {
    "episodes is a dataset": ({"episodes": np.zeros(3)}, "episodes"),
    "no start": ({"episodes/start": None}, "episodes/start"),
    "no length": ({"episodes/length": None}, "episodes/length"),
    "no source": ({"episodes/source": None}, "episodes/source"),
    "start has floats": ({"episodes/start": np.array([0.0, 3.0, 4.0])}, "episodes/start"),
    "length has shape (episodes, 1)": ({"episodes/length": np.array(LENGTHS)[:, None]}, "episodes/length"),
    "source is a scalar": ({"episodes/source": np.int64(0)}, "episodes/source"),
    "length has too many rows": ({"episodes/length": np.array([3, 1, 4, 0])}, "episodes/length"),
    "source has too few rows": ({"episodes/source": np.zeros(2, int)}, "episodes/source"),
    "a metadata field has too few rows": ({"episodes/metadata/seed": np.zeros(2)}, "episodes/metadata/seed"),
    "a metadata field is a scalar": ({"episodes/metadata/seed": np.float64(1)}, "episodes/metadata/seed"),
    "a metadata field is compound": (
        {"episodes/metadata/seed": np.zeros(3, [("a", "i4")])},
        "episodes/metadata/seed",
    ),
    "start is not the sum of the lengths": ({"episodes/start": np.array([0, 2, 4])}, "episodes/start"),
    "start does not begin at 0": ({"episodes/start": np.array([1, 4, 5])}, "episodes/start"),
    "a length is negative": (
        {"episodes/length": np.array([3, -1, 6]), "episodes/start": np.array([0, 3, 2])},
        "episodes/start",
    ),
    "the lengths are too short": ({"episodes/length": np.array([3, 1, 3])}, "episodes/length"),
    "the sum of the lengths overflows int64": (
        {
            "episodes/start": (np.arange(5) << 62).astype(np.int64),
            "episodes/length": np.array([1 << 62] * 4 + [8]),
            "episodes/source": np.zeros(5, int),
            "episodes/metadata/seed": None,
        },
        "episodes/start",
    ),
    "the lengths are too long": ({"episodes/length": np.array([3, 1, 5])}, "episodes/length"),
    "a source number is too large": ({"episodes/source": np.array([0, 1, 0])}, "episodes/source"),
    "a source number is negative": ({"episodes/source": np.array([0, -1, 0])}, "episodes/source"),
}


@pytest.mark.parametrize("case", INDEX)
def test_violation_of_rule_6_is_reported(case, tmp_path):
    changes, field = INDEX[case]
    found = {name: item for name, item in (handmade.index() | changes).items() if item is not None}  # type: ignore[operator]
    if "episodes" in changes:  # type: ignore[operator]
        found = changes  # type: ignore[assignment]
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields() | found, {"sources": handmade.attributes()["sources"]})
    assert broken(file) == [(6, field, (), 0)]


def test_index_that_contradicts_is_first_is_reported_with_rows(tmp_path):
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields() | handmade.index((3, 2, 3)))
    assert broken(file) == [(6, "episodes/start", (4, 5), 2)]


ATTRIBUTES = {
    "another format": {"format": "minari"},
    "another version": {"format_version": "7.0"},
    "not complete": {"complete": False},
    "too few steps": {"num_steps": 7},
    "too many episodes": {"num_episodes": 4},
    "num_steps is text": {"num_steps": "many"},
    "num_steps is two numbers": {"num_steps": np.array([8, 8])},
    "num_steps is empty": {"num_steps": h5py.Empty("i8")},
    "complete is empty": {"complete": h5py.Empty("i8")},
    "complete is text": {"complete": "true"},
    "features that are not JSON": {"features": "{"},
    "sources that are not JSON": {"sources": "/a/path"},
    "sources that are not a list": {"sources": "3"},
    "a source that is not an object": {"sources": '["/a/path"]'},
    "a source without a path": {"sources": '[{"path": "/a"}, {"name": "x"}]'},
    "a source with an unknown key": {"sources": '[{"path": "/a", "size": "3"}]'},
    "a source whose via is not a list": {"sources": '[{"path": "/a", "via": "/b"}]'},
    "a source whose split is a number": {"sources": '[{"path": "/a", "split": 1}]'},
    "a skipped entry without a reason": {"skipped": '[{"path": "/a", "record": 0, "count": 1}]'},
    "a skipped entry whose count is a boolean": {"skipped": '[{"path": "/a", "record": 0, "count": true, "why": "x"}]'},
    "an environment that is not JSON": {"environment": "Hopper-v5"},
}


@pytest.mark.parametrize("case", ATTRIBUTES)
def test_violation_of_rule_7_is_reported(case, tmp_path):
    changes = ATTRIBUTES[case]
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields() | handmade.index(), handmade.attributes() | changes)  # type: ignore[operator]
    assert broken(file) == [(7, next(iter(changes)), (), 0)]  # type: ignore[call-overload]


def test_attribute_may_be_an_array_of_one_element_or_empty(tmp_path):
    root = handmade.attributes() | {"description": h5py.Empty("S1"), "environment": h5py.Empty("S1")}
    root |= {name: np.array([root[name]]) for name in ("num_steps", "num_episodes", "complete")}
    root["format"] = np.array(["kabuki"], h5py.string_dtype())
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields() | handmade.index(), root)
    assert broken(file) == []
    copy = kabuki_rlds.convert(file, tmp_path / "copy.hdf5")
    assert (copy.num_steps, kabuki_rlds.inspect(copy.path).info.description) == (8, "")


def test_num_episodes_is_checked_without_an_index(tmp_path):
    assert broken(handmade.write(tmp_path / "f.hdf5", handmade.fields(), {"num_episodes": 3})) == []
    file = handmade.write(tmp_path / "g.hdf5", handmade.fields(), {"num_episodes": 4})
    assert broken(file) == [(7, "num_episodes", (), 0)]


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("reward", {"compression": "lzf"}),
        ("observation/deep", {"compression": "lzf", "shuffle": True}),
        ("episodes/metadata/seed", {"compression": "lzf"}),
        ("more", {"scaleoffset": 2}),
    ],
)
def test_plugin_filter_violates_rule_8(path, options, tmp_path):
    length = 3 if path.startswith("episodes") else 8
    values = Stored(np.zeros(length, np.float32), {"chunks": (length,), **options})
    found = handmade.fields() | handmade.index()
    if path.startswith("observation"):
        del found["observation"]
    assert broken(handmade.write(tmp_path / "f.hdf5", found | {path: values})) == [(8, path, (), 0)]


# --- damaged and hostile files ---

DAMAGED = {
    "garbage": lambda rows: b"these bytes are not a zlib stream",
    "a flipped bit": handmade.gzip_with_a_flipped_bit,
    "half a stream": lambda rows: (stored := zlib.compress(rows.tobytes()))[: len(stored) // 2],
    "a stream without its checksum": lambda rows: zlib.compress(rows.tobytes())[:-4],
    "too few rows": lambda rows: zlib.compress(rows[:-1].tobytes()),
    "too many rows": lambda rows: zlib.compress(rows.tobytes() + b"\0"),
}


@pytest.mark.parametrize("path", ["observation", "discount", "is_last", "more"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_chunk_violates_rule_1(path, damage, tmp_path):
    fields = handmade.fields([40, 60], [True, True])
    fields |= {"more": np.random.default_rng(0).integers(0, 99, 100)}
    rows = fields[path]
    file = handmade.write(tmp_path / "f.hdf5", fields | {path: chunked(rows)})
    handmade.put_chunk(file, path, DAMAGED[damage](rows))
    assert broken(file) == [(1, path, (), 0)]


def test_damaged_chunk_read_by_hdf5_violates_rule_1(tmp_path):
    file = handmade.write(tmp_path / "f.hdf5", edited(reward=chunked(np.arange(8.0), fletcher32=True)))
    assert broken(handmade.put_chunk(file, "reward", b"none of this was ever packed")) == [(1, "reward", (), 0)]


@pytest.mark.parametrize("path", ["episodes/start", "episodes/length", "episodes/source", "episodes/metadata/seed"])
def test_damaged_chunk_of_the_index_violates_rule_6(path, tmp_path):
    index = handmade.index()
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields() | index | {path: chunked(index[path])})
    assert broken(handmade.put_chunk(file, path, b"no zlib stream")) == [(6, path, (), 0)]


VLEN = {"dtype": h5py.vlen_dtype("uint8")}
LACKING = {
    "its companion is missing": {"companion": "/companion/more"},
    "its companion is a number": {"companion": 3},
    "nested lists without their lengths": {"nested": 2, "shape": [-1, -1]},
    "text without its lengths": {"dtype": "text", "shape": [-1]},
}
STRANGE = {
    "a dtype other than the stored one": {"dtype": "int64"},
    "a dtype that fields cannot have": {"dtype": "M8[s]"},
    "text stored as numbers": {"dtype": "text", "nested": 1},
    "a shape without a varying dimension": {"shape": [0]},
    "nested is 1": {"nested": 1},
    "nested is negative": {"nested": -1},
    "nested is greater than the rank": {"nested": 1 << 40},
    "nested lists of items that vary": {"nested": 2, "shape": [-1, -1, -1]},
    "class names that are numbers": {"class_names": [1, 2]},
    "class names of rank 2": {"class_names": [[b"a"], [b"b"]]},
    "an unknown dtype": {"dtype": "float7"},
    "a shape that is text": {"shape": "three"},
    "a fixed shape for variable-length rows": {"shape": [5]},
    "nested is text": {"nested": "deep"},
}


@pytest.mark.parametrize("case", [*STRANGE, *LACKING])
def test_invalid_attributes_violate_rule_1_and_a_missing_companion_rule_9(case, tmp_path):
    rows = Stored([np.arange(i, dtype=np.uint8) for i in range(8)], VLEN, (STRANGE | LACKING)[case])  # type: ignore[arg-type]
    file = handmade.write(tmp_path / "f.hdf5", edited(more=rows))
    assert [(v[:2]) for v in broken(file)] == [(9 if case in LACKING else 1, "more")]


def test_dangling_link_violates_rule_1(tmp_path):
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields())
    with h5py.File(file, "r+") as f:
        f["more"] = h5py.SoftLink("/nowhere")
        f["elsewhere"] = h5py.SoftLink("/more")
    assert [v[:2] for v in broken(file)] == [(1, "elsewhere"), (1, "more")]


def test_group_that_contains_itself_does_not_hang_validate(tmp_path):
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields())
    with h5py.File(file, "r+") as f:
        loop = f.create_group("loop")
        loop["again"] = loop
    with contextlib.suppress(kabuki_rlds.KabukiError):
        kabuki_rlds.validate(file)


@pytest.mark.parametrize("size", [0, 100, 2000])
def test_truncated_file_is_rejected_in_one_line(size, tmp_path):
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields() | handmade.index(), handmade.attributes())
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(kabuki_rlds.KabukiError, match=r"not an HDF5 file|damaged or truncated"):
        kabuki_rlds.validate(file)


# --- rules 4 and 5 against a loop ---


def by_a_loop(is_first, is_last, is_terminal, discount) -> dict[tuple[int, str, str], list[int]]:
    """Checks rules 4 and 5 as docs/format.md states them. Maps each violation to its rows."""
    n = len(is_first)
    found: dict[tuple[int, str, str], list[int]] = {}

    def note(rule: int, field: str, message: str, row: int) -> None:
        found.setdefault((rule, field, message), []).append(row)

    for t in range(n):
        if t == 0 and not is_first[t]:
            note(5, "is_first", "false on the first row", t)
        if t == n - 1 and not is_last[t]:
            note(5, "is_last", "false on the last row", t)
        if is_terminal[t] and not is_last[t]:
            note(5, "is_terminal", "true where is_last is false", t)
        if t + 1 < n:
            if is_last[t] and not is_first[t + 1]:
                note(5, "is_first", "false where is_last is true on the previous row", t + 1)
            if is_first[t + 1] and not is_last[t]:
                note(5, "is_first", "true where is_last is false on the previous row", t + 1)
            if not is_last[t] and discount[t] != 0 and is_terminal[t + 1]:
                note(4, "discount", "not 0 where the next row is terminal", t)
            if not is_last[t] and discount[t] == 0 and not is_terminal[t + 1]:
                note(4, "discount", "0 where the next row is not terminal", t)
    return found


@st.composite
def columns(draw: Callable, longest: int = 30) -> list[np.ndarray]:
    """Draws flags and discounts of valid episodes with some values changed."""
    lengths = draw(st.lists(st.integers(1, 6), max_size=longest // 6))
    terminal = draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    fields = handmade.fields(lengths, terminal)
    found = [fields[name].copy() for name in ("is_first", "is_last", "is_terminal", "discount")]
    for column, row in draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, longest)), max_size=10)):
        if row < sum(lengths):
            found[column][row] = 1 - found[column][row]
    return found


def as_loop(violations) -> dict:
    return {(v.rule, v.field, v.message): (v.rows, v.count) for v in violations}


@given(columns())
@settings(max_examples=60)
def test_rules_4_and_5_match_a_loop_over_rows(tmp_path_factory, found):
    names = ("is_first", "is_last", "is_terminal", "discount")
    n = len(found[0])
    fields = {"observation": np.zeros(n), "action": np.zeros(n), "reward": np.zeros(n)}
    file = handmade.write(tmp_path_factory.getbasetemp() / "loop.hdf5", fields | dict(zip(names, found, strict=True)))
    want = {key: (tuple(rows[:5]), len(rows)) for key, rows in by_a_loop(*found).items()}
    assert as_loop(kabuki_rlds.validate(file)) == want


@given(columns(), st.lists(st.integers(0, 30), max_size=6), st.booleans())
def test_result_does_not_depend_on_block_sizes(found, cuts, is_step):
    whole, pieces = RuleChecker(), RuleChecker()
    whole.check(*found)
    for start, stop in itertools.pairwise([0, *sorted(cuts), len(found[0])]):
        pieces.check(*(column[start:stop] for column in found))
    for checker in (whole, pieces):
        checker.decide(is_step)
    assert pieces.finish() == whole.finish()


@given(columns())
def test_without_a_discount_only_rule_5_is_checked(found):
    checker = RuleChecker()
    checker.check(*found[:3], None)  # type: ignore[call-arg]
    want = {key: rows for key, rows in by_a_loop(*found).items() if key[0] == 5}
    assert as_loop(checker.finish()) == {key: (tuple(rows[:5]), len(rows)) for key, rows in want.items()}


@given(columns(), st.sampled_from([1, 0.5, np.nan]), st.integers(1, 40))
@example([np.arange(3) == row for row in (0, 2, 2)] + [np.ones(3, np.float32)], np.nan, 2)
@settings(max_examples=60)
def test_conform_fixes_all_violations_and_counts_the_rows(tmp_path_factory, found, discount, block_rows):
    names = ("is_first", "is_last", "is_terminal", "discount")
    n = len(found[0])
    found = [*found[:3], np.where(found[3] == 1, np.float32(discount), found[3])]
    fields = {"observation": np.arange(n), "action": np.arange(n), "reward": np.zeros(n)}
    folder = tmp_path_factory.getbasetemp()
    file = handmade.write(folder / "broken.hdf5", fields | dict(zip(names, found, strict=True)))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("kabuki_rlds.formats.hdf5.source._BLOCK_ROWS", block_rows)
        result = kabuki_rlds.convert(file, folder / "mended.hdf5", conform=True, overwrite=True)
    assert kabuki_rlds.validate(folder / "mended.hdf5") == result.warnings == []
    changed: dict[str, Any] = {}
    with h5py.File(folder / "mended.hdf5") as f:
        assert f["observation"][:].tolist() == list(range(n))
        for name, old in zip(names, found, strict=True):
            new = f[name][:]
            same = (old == new) | ((old != old) & (new != new))  # NaN is not itself.
            changed |= {name: n - int(same.sum())} if not same.all() else {}
    assert result.changed == changed


# --- another reader ---


def dumped(*arguments) -> str:
    if shutil.which("h5dump") is None:
        pytest.skip("h5dump is not installed (Debian: hdf5-tools)")
    return subprocess.run(["h5dump", *map(str, arguments)], capture_output=True, text=True, check=True).stdout


def test_h5dump_prints_the_numbers_that_h5py_reads(converted):
    path = converted("plain", "arrays").path
    text = dumped("-y", "-w", "0", "-m", "%.9g", "-d", "/reward", path)
    data = text.partition("DATA {")[2].partition("}")[0]
    with h5py.File(path) as f:
        assert np.array(data.replace(",", " ").split(), np.float32).tolist() == f["reward"][:].tolist()


@pytest.mark.parametrize(("name", "images"), [("every_kind", "arrays"), ("uncovered", "encoded")])
def test_h5dump_lists_every_dataset_with_its_type(name, images, converted):
    path = converted(name, images).path
    lines = [line.split() for line in dumped("-n", path).splitlines()]
    listed = {words[-1] for words in lines if words[:1] == ["dataset"]}
    header = dumped("-H", path)
    with h5py.File(path) as f:
        names = list(_datasets(f))
    assert header.count("DATASET ") == len(names)
    assert {f"/{name}".split()[-1] for name in names} == listed
    assert "UNKNOWN" not in header


def _datasets(group: h5py.Group, prefix: str = "") -> Iterator[str]:
    for name, item in group.items():
        if isinstance(item, h5py.Dataset):
            yield prefix + name
        else:
            yield from _datasets(item, f"{prefix}{name}/")
