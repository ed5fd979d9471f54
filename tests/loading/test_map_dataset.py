"""`kabuki_rlds.dataset`: samples by index, compared with plain loops over the file in h5py."""

from __future__ import annotations

import concurrent.futures
import itertools
import multiprocessing
import os
import pickle
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kabuki_rlds
from kabuki_rlds import KabukiError
from kabuki_rlds.errors import InvalidArgumentError
from kabuki_rlds.loading import map_dataset
from kabuki_rlds.loading.table import Table
from tests import handmade

LENGTHS = (5, 1, 9, 2)


def _file(path: Path, lengths: Sequence[int] = LENGTHS, last_is_step: bool = False, **attributes: Any) -> Path:
    n = sum(lengths)
    fields = handmade.fields(lengths, [True] * len(lengths)) | handmade.index(lengths)
    fields["image"] = np.random.default_rng(n).integers(0, 256, (n, 4, 3, 3), np.uint8)
    if last_is_step:
        fields["episodes/last_is_step"] = np.ones(len(lengths), bool)
    version = {"format_version": "1.1"}
    return handmade.write(path, fields, handmade.attributes(lengths) | version | attributes)


def _expected(
    file: Path, offsets: Mapping[str, Sequence[int]], pad: str | None, last_is_step: bool
) -> list[dict[str, Any]]:
    """All samples, by a loop over the rows."""
    with h5py.File(file) as opened:
        columns = {name: opened[name][:] for name in ("observation", "action", "reward", "image")}
        starts, lengths = opened["episodes/start"][:], opened["episodes/length"][:]
    samples = []
    for number, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        ends = {"action": length - (not last_is_step), "reward": length - (not last_is_step)}
        for t in range(ends["action"]):
            item: dict[str, Any] = {"episode_index": number, "step_index": t}
            fits = True
            for name, column in columns.items():
                if name not in offsets:
                    item[name] = column[start + t]
                    continue
                end = ends.get(name, length)
                wanted = [t + offset for offset in offsets[name]]
                is_pad = np.array([not 0 <= at < end for at in wanted])
                fits &= not is_pad.any()
                rows = np.stack([column[start + min(max(at, 0), end - 1)] for at in wanted])
                if pad == "zero":
                    rows[is_pad] = 0
                item[name] = rows
                if pad is not None:
                    item[f"{name}_is_pad"] = is_pad
            if fits or pad is not None:
                samples.append(item)
    return samples


def _assert_same(got: dict[str, Any], want: dict[str, Any]) -> None:
    for name, value in want.items():
        assert np.asarray(got[name]).dtype == np.asarray(value).dtype or name.endswith("_index"), name
        assert np.array_equal(got[name], value), name
    assert {name for name in got if name.endswith("_is_pad")} == {name for name in want if name.endswith("_is_pad")}


OFFSETS = st.lists(st.integers(-6, 6), min_size=1, max_size=4)


@settings(max_examples=30)
@given(
    offsets=st.dictionaries(st.sampled_from(["observation", "action", "reward", "image"]), OFFSETS),
    pad=st.sampled_from([None, "edge", "zero"]),
    last_is_step=st.booleans(),
    data=st.data(),
)
def test_samples_equal_a_plain_loop(
    offsets: dict[str, list[int]],
    pad: Any,
    last_is_step: bool,
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    file = _file(tmp_path_factory.mktemp("map") / "f.hdf5", last_is_step=last_is_step)
    want = _expected(file, offsets, pad, last_is_step)
    if not want:
        with pytest.raises(InvalidArgumentError, match="so there are no samples; pad='edge'"):
            kabuki_rlds.dataset(file, offsets=offsets, pad=pad)
        return
    dataset = kabuki_rlds.dataset(file, offsets=offsets, pad=pad)
    assert len(dataset) == len(want)
    indices = data.draw(st.lists(st.integers(-len(want), len(want) - 1), max_size=12))
    for index, got in zip(indices, dataset.__getitems__(indices), strict=True):
        _assert_same(got, want[index])
        _assert_same(dataset[index], want[index])
    dataset.close()


def test_samples_are_nested_like_rlds_steps_with_requested_metadata(converted: Any, dataset: Any) -> None:
    file = converted("every_kind", "encoded")
    with kabuki_rlds.open(file) as opened:
        episodes = list(opened)
    ds = kabuki_rlds.dataset(file, episode_metadata=list(episodes[0].metadata))
    for item in ds:
        episode = episodes[item.pop("episode_index")]
        step = item.pop("step_index")
        _assert_equal(item.pop("episode_metadata"), episode.metadata)
        _assert_equal(item, _row(episode.steps, step))


def _row(tree: Any, row: int) -> Any:
    return {name: _row(value, row) for name, value in tree.items()} if isinstance(tree, dict) else tree[row]


def _assert_equal(got: Any, want: Any) -> None:
    if isinstance(want, dict):
        assert got.keys() == want.keys()
        for name in want:
            _assert_equal(got[name], want[name])
    elif isinstance(want, np.ndarray) and want.dtype == object:
        assert len(got) == len(want)
        for a, b in zip(got, want, strict=True):
            _assert_equal(a, b)
    else:
        assert np.asarray(got).tobytes() == np.asarray(want).tobytes()


def test_episodes_of_several_files_are_concatenated(tmp_path: Path) -> None:
    files = [_file(tmp_path / f"{i}.hdf5", lengths) for i, lengths in enumerate([(3, 2), (4,), (2, 6)])]
    ds = kabuki_rlds.dataset(files, offsets={"observation": [-1, 0]}, pad="edge", episode_metadata="seed")
    singles = [kabuki_rlds.dataset(file, offsets={"observation": [-1, 0]}, pad="edge") for file in files]
    assert len(ds) == sum(map(len, singles))
    assert [int(item["episode_index"]) for item in ds] == [0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 4, 4]
    assert [int(item["episode_metadata"]["seed"]) for item in ds] == [0, 0, 1, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    for item, same in zip(ds, (item for single in singles for item in single), strict=True):
        assert np.array_equal(item["observation"], same["observation"]) and item["reward"] == same["reward"]


def test_offsets_in_seconds_are_converted_with_rate_hz(tmp_path: Path) -> None:
    file = _file(tmp_path / "f.hdf5", rate_hz=20.0)
    seconds = kabuki_rlds.dataset(file, offsets={"action": [-0.05, 0.0, 0.1]}, pad="zero")
    steps = kabuki_rlds.dataset(file, offsets={"action": [-1, 0, 2]}, pad="zero")
    for a, b in zip(seconds, steps, strict=True):
        assert np.array_equal(a["action"], b["action"]) and np.array_equal(a["action_is_pad"], b["action_is_pad"])
    for rate in (0, -1.0, "20"):
        with pytest.raises(KabukiError, match=f"rate_hz is .*{rate}.*, not a number of steps per second"):
            kabuki_rlds.dataset(_file(tmp_path / "wrong.hdf5", rate_hz=rate), offsets={"action": [0.05]})
    with pytest.raises(InvalidArgumentError, match=r"0\.03 s of 'action' is 0\.6 steps at 20 Hz; an offset must be"):
        kabuki_rlds.dataset(file, offsets={"action": [0.03]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offsets": {"action": [0.5]}}, "'action' has offsets in seconds, but .* has no attribute rate_hz"),
        ({"offsets": {"depth": [0]}}, "has no step field 'depth' among those that are read"),
        ({"offsets": {"action": []}}, "offsets: 'action' has no offsets"),
        ({"offsets": {"action": [0, "1"]}}, r"offsets: 'action' has \[0, '1'\]; give integers"),
        ({"offsets": {"action": [1 << 50]}}, "more than 1,099,511,627,776 steps"),
        ({"offsets": {"action": range(20)}}, "they span 20 rows, but the longest episode .* has 9"),
        ({"pad": "mirror"}, "pad is 'mirror'"),
        ({"fields": "depth"}, "depth"),
        ({"episode_metadata": "weather"}, "weather"),
    ],
)
def test_invalid_arguments_are_rejected(options: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(KabukiError, match=message):
        kabuki_rlds.dataset(_file(tmp_path / "f.hdf5"), **options)


def test_an_index_out_of_range_is_an_index_error(tmp_path: Path) -> None:
    ds = kabuki_rlds.dataset(_file(tmp_path / "f.hdf5"))
    assert len(ds) == 13
    for index in (13, -14):
        with pytest.raises(IndexError, match=f"index {index} is out of range for 13 samples"):
            ds[index]
    with pytest.raises(TypeError, match="an index must be an integer"):
        ds["0"]  # type: ignore[index]
    assert ds.__getitems__([]) == []
    assert "13 samples, 4 episodes" in repr(ds)


def test_split_puts_each_episode_in_one_part(tmp_path: Path) -> None:
    lengths = [2 + i % 5 for i in range(40)]
    ds = kabuki_rlds.dataset(_file(tmp_path / "f.hdf5", lengths))
    train, held_out = ds.split(0.75, seed=3)
    found = [{int(item["episode_index"]) for item in part} for part in (train, held_out)]
    assert len(found[0]) == 30 and len(found[1]) == 10 and not found[0] & found[1]
    assert [int(i["step_index"]) for i in ds.split(0.75, seed=3)[0]] == [int(i["step_index"]) for i in train]
    assert {int(item["episode_index"]) for item in ds.split(0.75, seed=4)[0]} != found[0]
    assert [episode.num_steps for episode in held_out.episodes] == [lengths[i] for i in sorted(found[1])]
    for fraction in (0, 1, -0.1):
        with pytest.raises(InvalidArgumentError, match="fraction"):
            ds.split(fraction)


def test_each_sample_is_in_one_shard(tmp_path: Path) -> None:
    ds = kabuki_rlds.dataset(_file(tmp_path / "f.hdf5"))
    key = lambda item: (int(item["episode_index"]), int(item["step_index"]))  # noqa: E731
    shards = [[key(item) for item in ds.shard(rank, 4)] for rank in range(4)]
    assert sorted(itertools.chain(*shards)) == [key(item) for item in ds]
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert [key(item) for item in ds.shard(1, 2).shard(0, 2)] == shards[1]
    with pytest.raises(InvalidArgumentError, match="rank is 4 and world is 4"):
        ds.shard(4, 4)


def test_episodes_returns_complete_episodes(tmp_path: Path) -> None:
    file = _file(tmp_path / "f.hdf5")
    ds = kabuki_rlds.dataset(file, episode_metadata="seed")
    assert len(ds.episodes) == 4 and [episode.num_steps for episode in ds.episodes] == list(LENGTHS)
    with h5py.File(file) as opened:
        assert np.array_equal(ds.episodes[-2].steps["observation"], opened["observation"][6:15])
    assert ds.episodes[2].metadata == {"seed": 2} and ds.episodes[2].last_is_step is False
    with pytest.raises(IndexError):
        ds.episodes[4]


def _sum_of(ds: Any, indices: list[int]) -> float:
    return float(sum(item["observation"].sum() for item in ds.__getitems__(indices)))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_the_same_samples(method: str, tmp_path: Path) -> None:
    ds = kabuki_rlds.dataset(_file(tmp_path / "f.hdf5"), offsets={"observation": [-1, 0]}, pad="edge")
    want = _sum_of(ds, list(range(len(ds))))  # This opens the files in the parent process, too.
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context(method)) as workers:
        parts = [list(range(i, len(ds), 2)) for i in range(2)]
        assert sum(workers.map(_sum_of, [ds, ds], parts)) == pytest.approx(want)


def test_a_process_that_is_forked_while_a_thread_opens_the_files_can_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = kabuki_rlds.dataset(_file(tmp_path / "f.hdf5"))
    parent = os.getpid()
    opening, forked = threading.Event(), threading.Event()

    def slow_table(*args: Any, **options: Any) -> Any:
        if os.getpid() == parent:
            opening.set()
            forked.wait()
        return Table(*args, **options)

    monkeypatch.setattr(map_dataset, "Table", slow_table)
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        here = threads.submit(_sum_of, ds, [0, 1])
        opening.wait()
        process = multiprocessing.get_context("fork").Process(target=_sum_of, args=(ds, [0, 1]))
        process.start()
        process.join(30)
        ended = process.exitcode
        process.kill()
        forked.set()
        here.result()
    assert ended == 0


def test_workers_do_not_repeat_warnings(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lengths = [3, 4]
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields(lengths, [True] * 2), handmade.attributes(lengths))
    ds = kabuki_rlds.dataset(file)
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as workers:
        workers.submit(_sum_of, ds, [0]).result()
    assert "does not say whether last rows are steps" not in capfd.readouterr().err


def test_threads_read_the_same_samples(converted: Any) -> None:
    ds = pickle.loads(pickle.dumps(kabuki_rlds.dataset(converted("oxe_style", "encoded"))))
    alone = ds.__getitems__(list(range(len(ds))))
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        for got, want in zip(threads.map(ds.__getitem__, [*range(len(ds))] * 20), alone * 20, strict=True):
            _assert_equal(got, want)


def test_a_damaged_image_is_reported_with_file_episode_and_row(converted: Any, tmp_path: Path) -> None:
    file = tmp_path / "f.hdf5"
    file.write_bytes(converted("oxe_style", "encoded").read_bytes())
    with h5py.File(file, "r+") as opened:
        (path,) = [name for name in ("observation/image",) if name in opened]
        starts = opened["episodes/start"][:]
        row = int(starts[1]) + 1
        opened[path][row] = opened[path][row][:-20]
    ds = kabuki_rlds.dataset(file, fields=[path])
    with pytest.raises(KabukiError, match=rf"f.hdf5: episode 1: row {row} \(step 1\): field 'observation/image'"):
        ds.__getitems__(list(range(len(ds))))
