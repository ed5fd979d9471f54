"""Property tests of columns, blocks and chunks: slicing, concatenating and compressing lose nothing."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import h5py
import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kabuki_rlds
from kabuki_rlds.data.block import Block, Column, Nested, Ragged, concatenate
from kabuki_rlds.data.last_row import LastRows
from kabuki_rlds.data.rules import RuleChecker
from kabuki_rlds.data.schema import BFLOAT16, BYTES, Field, Schema
from kabuki_rlds.data.source import Origin
from kabuki_rlds.formats.hdf5 import chunks, layout
from kabuki_rlds.formats.hdf5.sink import KabukiSink
from kabuki_rlds.formats.hdf5.source import KabukiSource
from kabuki_rlds.transforms.required_fields import CompletedSource

DTYPES = [
    np.dtype(name) for name in ("?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8", "c16")
]
DTYPES.append(np.dtype(ml_dtypes.bfloat16))

dims = st.lists(st.integers(0, 3), max_size=3).map(tuple)


@st.composite
def columns(draw: st.DrawFn, rows: int) -> tuple[Field, Column]:
    """Draws a field, and a column of it with `rows` rows."""
    dtype = draw(st.sampled_from([*DTYPES, BYTES]))
    form = draw(st.sampled_from(["fixed", "ragged", "nested"]))
    if form == "fixed":
        shape = draw(dims)
        return Field(dtype, shape, kind=_kind(dtype)), draw(elements(dtype, (rows, *shape)))
    if form == "ragged":
        sizes = st.lists(st.none() | st.integers(0, 3), min_size=1, max_size=3)
        varying: list[int | None] = draw(sizes.filter(lambda s: None in s))
        shapes = np.array(
            [[draw(st.integers(0, 3)) if d is None else d for d in varying] for _ in range(rows)], np.int64
        ).reshape(rows, len(varying))
        values = draw(elements(dtype, (int(shapes.prod(axis=1).sum()),)))
        return Field(dtype, tuple(varying), kind=_kind(dtype)), Ragged(values, shapes)
    depth, item = draw(st.integers(2, 3)), draw(st.lists(st.integers(1, 2), max_size=1).map(tuple))
    lengths, count = [], rows
    for _ in range(depth):
        level = np.array(draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)), np.int64)
        lengths.append(level)
        count = int(level.sum())
    return Field(dtype, (None,) * depth + item, kind=_kind(dtype), nested=depth), Nested(
        draw(elements(dtype, (count, *item))), tuple(lengths)
    )


@st.composite
def elements(draw: st.DrawFn, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Draws elements with arbitrary bits or bytes."""
    size = int(np.prod(shape))
    if dtype == BYTES:
        array = np.empty(size, object)
        array[:] = draw(st.lists(st.binary(max_size=5), min_size=size, max_size=size))
        return array.reshape(shape)
    if dtype.kind == "b":
        return draw(hnp.arrays(dtype, shape))
    return draw(hnp.arrays(np.uint8, size * dtype.itemsize)).view(dtype).reshape(shape)


def _kind(dtype: np.dtype) -> Any:
    return "text" if dtype == BYTES else "array"


def assert_equal(a: Any, b: Any, exact: bool = True) -> None:
    assert type(a) is type(b)
    if isinstance(a, Ragged):
        np.testing.assert_array_equal(a.shapes, b.shapes)
        a, b = a.values, b.values
    elif isinstance(a, Nested):
        for x, y in zip(a.lengths, b.lengths, strict=True):
            np.testing.assert_array_equal(x, y)
        a, b = a.values, b.values
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    if a.dtype == object:
        assert a.tolist() == b.tolist()
    elif exact:
        assert np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()
    else:
        np.testing.assert_array_equal(a.astype(np.float32), b.astype(np.float32))


cuts = st.lists(st.integers(0, 12), max_size=4).map(sorted)


@given(st.data(), st.integers(0, 12), cuts)
def test_slicing_and_concatenating_a_column_is_lossless(data, rows, at):
    _, column = data.draw(columns(rows))
    bounds = [0, *(min(a, rows) for a in at), rows]
    pieces = [column[a:b] for a, b in itertools.pairwise(bounds)]
    assert [len(piece) for piece in pieces] == [b - a for a, b in itertools.pairwise(bounds)]
    assert_equal(concatenate(pieces), column)


@settings(max_examples=150)
@given(st.data(), st.integers(0, 12), cuts, st.sampled_from(["gzip", "lzf", "none"]), st.integers(1, 40))
def test_columns_round_trip_through_hdf5_in_any_pieces(tmp_path_factory, data, rows, at, compression, chunk):
    field, column = data.draw(columns(rows))
    meta_field, meta = data.draw(columns(1))
    path = tmp_path_factory.mktemp("columns") / "out.hdf5"
    bounds = [0, *(min(a, rows) for a in at), rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "CHUNK_BYTES", chunk)
        with KabukiSink(
            path, Schema({"x": field}, {"m": meta_field}), [Origin("a")], compression=compression
        ) as writer:
            for i, (a, b) in enumerate(itertools.pairwise(bounds)):
                starts = np.zeros(int(i == 0), np.int64)
                writer.write(Block({"x": column[a:b]}, b - a, starts, {"m": meta[: len(starts)]}))
            writer.commit()
        patch.setattr("kabuki_rlds.formats.hdf5.source._BLOCK_ROWS", data.draw(st.integers(1, 5)))
        with KabukiSource(path) as source:
            assert source.schema.steps == {"x": field}
            assert source.schema.metadata == {"m": meta_field}
            blocks = list(source.blocks())
    # In rows of variable length, HDF5 converts all NaN values of bfloat16 to the same NaN.
    exact = isinstance(column, np.ndarray) or field.dtype != BFLOAT16
    assert_equal(concatenate([block.steps["x"] for block in blocks]), column, exact)
    exact = isinstance(meta, np.ndarray) or meta_field.dtype != BFLOAT16
    assert_equal(concatenate([block.metadata["m"] for block in blocks]), meta, exact)


@given(hnp.arrays(st.sampled_from([d for d in DTYPES if d != BFLOAT16]), st.integers(1, 50)), st.integers(0, 9))
def test_chunks_are_compatible_with_the_hdf5_library_both_ways(array, more):
    rows = len(array) + more
    with h5py.File.in_memory() as f:
        ours = f.create_dataset("ours", (rows,), array.dtype, chunks=(rows,), shuffle=True, compression="gzip")
        ours.id.write_direct_chunk((0,), chunks.pack([array[:7], array[7:]], rows, deflate=True))
        assert ours[: len(array)].tobytes() == array.tobytes()
        theirs = f.create_dataset(
            "theirs", data=array, chunks=(rows,), maxshape=(None,), shuffle=True, compression="gzip"
        )
        _, stored = theirs.id.read_direct_chunk((0,))
        raw = chunks.unpack(stored, rows * array.itemsize, array.itemsize, shuffled=True, deflated=True)
        assert raw.view(array.dtype)[: len(array)].tobytes() == array.tobytes()


def test_a_chunk_larger_than_its_stated_size_is_rejected():
    packed = bytes(chunks.pack([np.zeros(1 << 20)], 1 << 20, deflate=True))
    with pytest.raises(ValueError, match="a chunk has"):
        chunks.unpack(packed, 1000, 8, shuffled=True, deflated=True)


# --- required fields, compared with a plain implementation of the rules ---


class _Steps:
    """A source of flags of whole episodes, in blocks that end at any row."""

    def __init__(self, episodes: list[tuple[int, bool]], cut: list[int], lacks: set[str], broken: dict[str, Any]):
        self.label = "made up"
        self.origins = [Origin("made up")]
        self.skipped: list[Any] = []
        self.files: list[str] = []
        self.last_rows = LastRows.of_all(False, len(episodes), "made up")
        lengths = [length for length, _ in episodes]
        self.starts = np.cumsum([0, *lengths[:-1]]) if episodes else np.zeros(0, np.int64)
        self.num_episodes = len(episodes)
        self.rows = sum(lengths)
        right = by_the_rules(episodes)
        self.columns = {name: np.array(values) for name, values in (right | broken).items() if name not in lacks}
        self.columns |= {name: np.zeros(self.rows, np.float32) for name in ("observation", "action", "reward")}
        self.schema = Schema({name: Field(column.dtype) for name, column in self.columns.items()}, {})
        self.bounds = [0, *sorted(min(c, self.rows) for c in cut), self.rows]

    def blocks(self, only=None):
        taken = 0
        for a, b in itertools.pairwise(self.bounds):
            end = len(self.starts) if b == self.rows else int(np.searchsorted(self.starts, b))
            yield Block({n: c[a:b] for n, c in self.columns.items()}, b - a, self.starts[taken:end] - a, {})
            taken = end


def _completed(source: Any, *arguments: Any, **options: Any) -> CompletedSource:
    return CompletedSource(source, *arguments, **options)


def by_the_rules(episodes: list[tuple[int, bool]]) -> dict[str, np.ndarray]:
    """The correct flags and discounts of episodes, given as (length, is terminated)."""
    rows: dict[str, list[Any]] = {"is_first": [], "is_last": [], "is_terminal": [], "discount": []}
    for length, terminal in episodes:
        for t in range(length):
            last = t == length - 1
            rows["is_first"].append(t == 0)
            rows["is_last"].append(last)
            rows["is_terminal"].append(last and terminal)
            ends_next = terminal and t == length - 2
            rows["discount"].append(np.float32(0 if ends_next or (last and terminal) else 1))
    return {name: np.array(v, np.float32 if name == "discount" else bool) for name, v in rows.items()}


episodes_of = st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=6)


@given(
    episodes_of, st.lists(st.integers(0, 20), max_size=5), st.sets(st.sampled_from(["is_first", "is_last", "discount"]))
)
def test_missing_flags_and_discounts_are_derived_by_the_rules(episodes, cut, lacks):
    whole = _completed(_Steps(episodes, cut, lacks, {}))
    _assert_columns(whole, by_the_rules(episodes))


@given(episodes_of, st.lists(st.integers(0, 20), max_size=5))
def test_is_terminal_is_derived_from_the_discount(episodes, cut):
    # An episode of one step has no discount before its last row, so it is unknown how it ended.
    said = [(length, terminal and length > 1) for length, terminal in episodes]
    _assert_columns(_completed(_Steps(said, cut, {"is_terminal"}, {})), by_the_rules(said))


@given(episodes_of, st.lists(st.integers(0, 20), max_size=5), st.booleans())
def test_is_terminal_can_be_filled_with_a_constant(episodes, cut, terminal):
    said = [(length, terminal) for length, _ in episodes]
    source = _Steps(said, cut, {"is_terminal", "discount"}, {})
    _assert_columns(_completed(source, {"is_terminal": float(terminal)}), by_the_rules(said))


@given(episodes_of, st.lists(st.integers(0, 20), max_size=5), st.data())
def test_conform_corrects_any_flags(episodes, cut, data):
    rows = sum(length for length, _ in episodes)
    flags = {name: data.draw(hnp.arrays(bool, rows)) for name in ("is_first", "is_last", "is_terminal")}
    discount = data.draw(hnp.arrays(np.float32, rows, elements=st.sampled_from([0.0, 1.0, 0.5])))
    whole = _completed(_Steps(episodes, cut, set(), flags | {"discount": discount}), conform=True)
    checker = RuleChecker()
    got: dict[str, list[Any]] = {name: [] for name in (*flags, "discount")}
    for block in whole.blocks():
        columns: list[Any] = [block.steps[name] for name in ("is_first", "is_last", "is_terminal", "discount")]
        checker.check(*columns)
        for name in got:
            got[name].append(block.steps[name])
    assert checker.finish() == []
    before = flags | {"discount": discount}
    after = {name: np.concatenate([np.empty(0, before[name].dtype), *parts]) for name, parts in got.items()}
    changed = {name: int((after[name] != before[name]).sum()) for name in before}
    assert whole.changed == {name: count for name, count in changed.items() if count}


def _assert_columns(whole: CompletedSource, want: dict[str, np.ndarray]) -> None:
    blocks = list(whole.blocks())
    for name, column in want.items():
        got = np.concatenate([np.empty(0, column.dtype), *(block.steps[name] for block in blocks)])
        np.testing.assert_array_equal(got, column)
        assert got.dtype == column.dtype


def test_a_minimal_third_party_file_is_read(tmp_path: Path):
    """The file has big-endian numbers, fixed-length strings, contiguous data, no index and no attributes."""
    want = by_the_rules([(3, True), (2, False)])
    with h5py.File(tmp_path / "hand.hdf5", "w") as f:
        for name, column in want.items():
            f[name] = column
        f["reward"] = np.arange(5, dtype=">f8")
        f["observation/image"] = np.arange(5 * 12, dtype=np.uint8).reshape(5, 2, 2, 3)
        f["observation/name"] = np.array([b"a", b"bc", b"", b"d", b"e"], "S3")
        f.create_dataset("action", data=np.arange(10, dtype="<f4").reshape(5, 2), chunks=(2, 1), compression="gzip")
    assert kabuki_rlds.validate(tmp_path / "hand.hdf5") == []
    result = kabuki_rlds.convert(tmp_path / "hand.hdf5", tmp_path / "out.hdf5")
    assert (result.num_steps, result.num_episodes, result.derived) == (5, 2, {})
    with h5py.File(tmp_path / "out.hdf5") as f:
        np.testing.assert_array_equal(f["reward"][:], np.arange(5.0))
        np.testing.assert_array_equal(f["action"][:], np.arange(10, dtype="<f4").reshape(5, 2))
        np.testing.assert_array_equal(f["observation/image"][:].ravel(), np.arange(60))
        assert f["observation/name"].asstr()[:].tolist() == ["a", "bc", "", "d", "e"]
        assert f["episodes/start"][:].tolist() == [0, 3]
