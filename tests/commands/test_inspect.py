"""`inspect` returns the same numbers as a loop over the file with h5py."""

from __future__ import annotations

import dataclasses
import json

import h5py
import numpy as np
import pytest

import kabuki_rlds
from kabuki_rlds.commands.inspect import to_text
from kabuki_rlds.formats.hdf5 import source as hdf5_source
from tests import handmade
from tests.handmade import Stored


def by_a_loop(path) -> dict:
    """Returns lengths, returns and episode ends, computed row by row."""
    lengths, returns, terminal = [], [], 0
    with h5py.File(path) as f:
        is_step = f["episodes/last_is_step"][:] if "episodes/last_is_step" in f else np.zeros(len(f["is_first"]), bool)
        for t in range(len(f["is_first"])):
            if f["is_first"][t]:
                lengths.append(0)
                returns.append(0.0)
            lengths[-1] += 1
            if not f["is_last"][t] or is_step[len(lengths) - 1]:
                returns[-1] += f["reward"][t]
            terminal += int(f["is_terminal"][t])
    return {"lengths": lengths, "returns": returns, "terminal": terminal, "truncated": len(lengths) - terminal}


def assert_agrees(path) -> None:
    summary, want = kabuki_rlds.inspect(path), by_a_loop(path)
    assert (summary.num_steps, summary.num_episodes) == (sum(want["lengths"]), len(want["lengths"]))
    for name in ("lengths", "returns"):
        values = np.array(want[name], float)
        expected = (values.min(), values.mean(), values.max())
        np.testing.assert_allclose(dataclasses.astuple(getattr(summary, name)), expected, rtol=1e-6)
    assert (summary.terminal, summary.truncated) == (want["terminal"], want["truncated"])


@pytest.mark.parametrize("name", ["plain", "one_step", "oxe_style"])
def test_lengths_returns_and_episode_ends_match_a_loop_over_episodes(name, dataset, tmp_path):
    kabuki_rlds.convert(dataset(name), tmp_path / "f.hdf5")
    assert_agrees(tmp_path / "f.hdf5")


def test_inspect_reads_a_file_without_index_and_attributes(tmp_path):
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields())
    assert_agrees(file)
    summary = kabuki_rlds.inspect(file)
    assert (summary.format_version, summary.created_by) == ("", "")
    assert [source["path"] for source in summary.sources] == [str(file)]


def test_returns_exclude_padding_rows(tmp_path):
    fields = handmade.fields()
    fields["reward"][fields["is_last"]] = 1e9
    summary = kabuki_rlds.inspect(handmade.write(tmp_path / "f.hdf5", fields))
    assert dataclasses.astuple(summary.returns) == (0.0, (0.5 + 0 + 7.5) / 3, 7.5)  # type: ignore[arg-type]


def test_returns_are_summed_across_blocks(tmp_path, monkeypatch):

    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 50, 30)
    fields = handmade.fields(lengths, rng.random(30) < 0.5)  # type: ignore[arg-type]
    fields["reward"] = rng.standard_normal(sum(lengths))
    file = handmade.write(tmp_path / "f.hdf5", fields | handmade.index(lengths))  # type: ignore[arg-type]
    monkeypatch.setattr(hdf5_source, "_BLOCK_ROWS", 16)
    assert_agrees(file)


def test_empty_episodes_are_neither_terminated_nor_truncated(dataset, tmp_path):
    kabuki_rlds.convert(dataset("no_steps"), tmp_path / "f.hdf5")
    summary = kabuki_rlds.inspect(tmp_path / "f.hdf5")
    assert (summary.num_episodes, summary.lengths.min, summary.lengths.max) == (6, 0, 3)  # type: ignore[union-attr]
    with h5py.File(tmp_path / "f.hdf5") as f:
        assert summary.terminal == f["is_terminal"][:].sum()
    assert summary.terminal + summary.truncated == 2  # type: ignore[operator]


def test_empty_split_has_no_lengths_and_no_returns(dataset, tmp_path):
    kabuki_rlds.convert(dataset("empty_split"), tmp_path / "f.hdf5", split="nothing")
    summary = kabuki_rlds.inspect(tmp_path / "f.hdf5")
    assert (summary.num_steps, summary.num_episodes, summary.terminal, summary.truncated) == (0, 0, 0, 0)
    assert summary.lengths is None and summary.returns is None
    assert "0 steps in 0 episodes" in to_text(summary)


def test_inspect_reads_an_empty_handwritten_file(tmp_path):
    summary = kabuki_rlds.inspect(handmade.write(tmp_path / "f.hdf5", handmade.fields((), ())))
    assert (summary.num_steps, summary.num_episodes, summary.lengths) == (0, 0, None)


def test_sizes_match_the_file_and_the_arrays(dataset, tmp_path):
    kabuki_rlds.convert(dataset("plain"), tmp_path / "f.hdf5")
    summary = kabuki_rlds.inspect(tmp_path / "f.hdf5")
    assert summary.num_bytes == (tmp_path / "f.hdf5").stat().st_size
    memory = 0
    with h5py.File(tmp_path / "f.hdf5") as f:
        for column in summary.columns:
            assert column.num_bytes == f[column.path].id.get_storage_size()
            if h5py.check_string_dtype(f[column.path].dtype):
                assert column.memory_bytes is None
            else:
                assert column.memory_bytes == f[column.path][:].nbytes
                memory += column.memory_bytes  # type: ignore[operator]
    assert summary.memory_bytes == memory


@pytest.fixture(scope="module")
def every_kind(dataset, tmp_path_factory):
    """Returns the converted dataset `every_kind`."""
    return kabuki_rlds.convert(dataset("every_kind"), tmp_path_factory.mktemp("every_kind") / "f.hdf5").path


def test_every_field_is_listed(every_kind):
    summary = kabuki_rlds.inspect(every_kind)
    names: list[str] = []
    with h5py.File(every_kind) as f:
        f.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    indexed = {f"episodes/{name}" for name in ("start", "length", "source", "last_is_step")}
    stored = {name for name in names if not name.startswith("companion/")} - indexed
    assert {column.path for column in summary.columns} == stored
    holds = {column.path: column.holds for column in summary.columns}
    assert holds["observation/a/b/c"] == "float32 (2,)"
    assert holds["action/gripper"] == "label int64 of 3 classes"
    assert holds["language_embedding"] == "bfloat16 (4,)"
    assert holds["episodes/metadata/episode_metadata/camera/picture"] == "image uint8 (?, ?, 3)"
    assert holds["episodes/metadata/agent"] == "text"


KEYS = {
    *(
        "path",
        "format",
        "format_version",
        "info",
        "num_steps",
        "num_episodes",
        "lengths",
        "returns",
        "terminal",
        "truncated",
    ),
    *(
        "num_bytes",
        "memory_bytes",
        "columns",
        "sources",
        "skipped",
        "created_by",
        "last_steps",
        "notes",
        "nan_actions",
    ),
}


def read_json(text: str) -> dict:
    """Reads standard JSON. Unlike Python's default, NaN and Infinity are errors."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_has_the_documented_keys(every_kind):
    found = read_json(kabuki_rlds.inspect(every_kind).to_json())
    assert found.keys() == KEYS
    assert found["info"].keys() == {"name", "version", "description", "citation", "homepage", "environment"}
    assert found["columns"][0].keys() == {"path", "holds", "num_bytes", "memory_bytes", "derived"}
    assert found["info"]["name"] == "every_kind"
    assert found["sources"][0]["split"] == "train"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinite_returns_are_null_in_json(bad, tmp_path):
    fields = handmade.fields()
    fields["reward"][0] = bad
    summary = kabuki_rlds.inspect(handmade.write(tmp_path / "f.hdf5", fields))
    assert f"max {bad}" in to_text(summary)
    assert read_json(summary.to_json())["returns"]["max"] is None


def test_no_returns_unless_reward_is_one_number_per_step(tmp_path):
    for reward in (np.zeros((8, 2)), np.array([b"much"] * 8)):
        summary = kabuki_rlds.inspect(handmade.write(tmp_path / "f.hdf5", handmade.fields() | {"reward": reward}))
        assert summary.returns is None
        assert summary.lengths is not None


@pytest.mark.parametrize("missing", ["reward", "is_first", "is_terminal", "observation"])
def test_inspect_reads_a_file_with_a_missing_field(missing, tmp_path):
    fields = handmade.fields()
    del fields[missing]
    summary = kabuki_rlds.inspect(handmade.write(tmp_path / "f.hdf5", fields))
    assert (summary.num_steps, summary.num_episodes) == (8, 3)
    assert (summary.returns is None) == (missing == "reward")
    assert (summary.terminal is None) == (missing == "is_terminal")


def test_text_contains_the_main_facts(tmp_path):
    root = handmade.attributes() | {"name": "hands", "version": "2.0.0", "description": "Made by hand.\nAll of it."}
    more = Stored(["go"] * 8, {"dtype": h5py.string_dtype()}, {"derived": "out of thin air"})
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields() | handmade.index() | {"more": more}, root)
    lines = [" ".join(line.split()) for line in to_text(kabuki_rlds.inspect(file)).splitlines()]
    assert lines[0] == f"{file}: Kabuki 1.0, hands 2.0.0"
    assert lines[1:6] == [
        "Made by hand.",
        "8 steps in 3 episodes",
        "lengths min 1, mean 2.667, max 4",
        "returns min 0, mean 2.667, max 7.5",
        "endings 2 terminated, 1 truncated",
    ]
    assert "source /by/hand" in lines
    assert "made by a hand" in lines
    assert "observation float32 (2,) 64 bytes 64 bytes" in lines
    assert "more text (out of thin air) 128 bytes varies" in lines
    assert "episodes/metadata/seed int64 24 bytes 24 bytes" in lines


def test_blank_description_is_not_printed(tmp_path):
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields(), {"description": " \n"})
    assert "8 steps" in to_text(kabuki_rlds.inspect(file)).splitlines()[1]


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ({}, "has no datasets"),
        ({"a": np.float32(1)}, "'a': is a single value"),
        ({"a": np.zeros(3), "is_first": np.ones(4, bool)}, "all step fields must have the same number of rows"),
        ({"a": np.zeros(3)}, "cannot find the episodes"),
        ({"a": np.zeros(3), "episodes/start": [1, 2]}, "episodes/start is not an ascending list"),
        ({"a": np.zeros(3), "episodes/start": [0, 4]}, "episodes/start is not an ascending list"),
        ({"a": np.zeros(3), "episodes/start": [0, 2, 1]}, "episodes/start is not an ascending list"),
        (
            {"a": np.zeros(3), "episodes/start": [0, (1 << 63) - 2, 2 - (1 << 63), 1]},
            "episodes/start is not an ascending list",
        ),
        ({"a": np.zeros(3), "episodes/start": [[0, 2]]}, "episodes/start is not an ascending list"),
        ({"a": np.zeros(3), "episodes/start": np.int64(0)}, "episodes/start is not an ascending list"),
        ({"a": np.zeros(3), "episodes/start": np.array([], int)}, "episodes/start is empty"),
        ({"a": np.zeros(3), "episodes/start": [0], "episodes/metadata/b": np.zeros(2)}, "has 2 rows"),
        ({"a": np.zeros(3), "episodes/start": [0], "episodes/metadata/b": np.float64(2)}, "b"),
        ({"a": np.zeros(3, [("b", "i4")]), "episodes/start": [0]}, "expected numbers"),
    ],
)
def test_file_without_step_fields_is_rejected(datasets, message, tmp_path):
    with pytest.raises(kabuki_rlds.KabukiError, match=message):
        kabuki_rlds.inspect(handmade.write(tmp_path / "f.hdf5", datasets))


def test_damaged_reward_is_rejected_and_named(tmp_path):
    fields = handmade.fields()
    file = handmade.write(tmp_path / "f.hdf5", fields | {"reward": handmade.chunked(fields["reward"])})
    with pytest.raises(kabuki_rlds.KabukiError, match="field 'reward': rows 0 to 7 cannot be read"):
        kabuki_rlds.inspect(handmade.put_chunk(file, "reward", b"no zlib stream"))


def test_damaged_index_is_rejected_and_named(tmp_path):
    found = handmade.fields() | handmade.index()
    found["episodes/start"] = handmade.chunked(found["episodes/start"])
    file = handmade.put_chunk(handmade.write(tmp_path / "f.hdf5", found), "episodes/start", b"no zlib stream")
    with pytest.raises(kabuki_rlds.KabukiError, match="episodes/start"):
        kabuki_rlds.inspect(file)
