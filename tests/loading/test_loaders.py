"""Training loaders, compared with plain loops over the episodes of a file."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import pickle
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kabuki_rlds
from kabuki_rlds import KabukiError
from kabuki_rlds.images import decode
from kabuki_rlds.loading import batches, load_steps, load_transitions, load_windows, sample_order
from tests import datasets, handmade
from tests.expected import Expected

LOADERS: dict[str, Callable[..., Any]] = {
    "steps": load_steps,
    "transitions": load_transitions,
    "windows": lambda path, batch_size, **options: load_windows(path, batch_size, 3, **options),
}


@pytest.fixture(params=["in memory", "while it is loaded", "on disk"])
def shuffled_from(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with columns in memory, with columns that are loaded while batches are served, and from disk."""
    if request.param == "while it is loaded":
        monkeypatch.setattr(batches, "LOADED_FIRST_BYTES", 0)
    if request.param == "on disk":
        monkeypatch.setattr(batches, "HELD_BYTES", 0)
        monkeypatch.setattr(batches, "LOOK_AHEAD_BYTES", 1 << 10)
        monkeypatch.setattr(sample_order, "HELD_NUMBERS", 0)
    return request.param


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with many short episodes and all rows different."""
    lengths = [5, 0, 1, 9, 2, 0, 1, 33, 3]
    path = tmp_path_factory.mktemp("training") / "file.hdf5"
    return handmade.write(path, _fields(lengths), handmade.attributes(lengths))


def _fields(lengths: list[int], seed: int = 0) -> dict[str, Any]:
    """Random fields of episodes, some without steps. Discounts and flags are random, so they break the rules."""
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(int)
    is_first, is_last = np.zeros((2, n), bool)
    for start, end in itertools.pairwise(bounds):
        if start < end:
            is_first[start] = is_last[end - 1] = True
    return {
        "observation/state": rng.standard_normal((n, 2)).astype(np.float32),
        "observation/time": np.arange(n),
        "action": rng.integers(0, 5, (n, 1)),
        "reward": rng.standard_normal(n).astype(np.float32),
        "discount": rng.choice([0, 0.5, 1], n),
        "is_first": is_first,
        "is_last": is_last,
        "is_terminal": rng.random(n) < 0.3,
        **handmade.index(lengths),
    }


def _episodes(fields: dict[str, Any], lengths: Iterable[int]) -> list[dict[str, np.ndarray]]:
    bounds = itertools.pairwise([0, *np.cumsum(list(lengths)).tolist()])
    steps = {path: column for path, column in fields.items() if not path.startswith("episodes/")}
    return [{path: column[a:b] for path, column in steps.items()} for a, b in bounds]


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def _rows(loaded: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """All samples of all batches, as path to value."""
    found = []
    for batch in loaded:
        columns = dict(_flat(batch))
        assert len({len(column) for column in columns.values()}) == 1
        found += [{path: column[i] for path, column in columns.items()} for i in range(len(columns["reward"]))]
    return found


def _same(a: Any, b: Any) -> bool:
    """Whether two values have the same bits, dtype and shape."""
    if isinstance(a, bytes) or isinstance(b, bytes):
        return a == b
    if isinstance(a, list) or isinstance(b, list) or (a.dtype == object and b.dtype == object):
        return len(a) == len(b) and all(map(_same, list(a), list(b)))
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _assert_same(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    assert len(found) == len(wanted)
    for mine, judge in zip(found, wanted, strict=True):
        assert mine.keys() == judge.keys()
        for path, value in judge.items():
            assert _same(mine[path], value), (path, mine[path], value)


# --- steps of all field types, in file order


def _judge_steps(expected: Expected, keep_last: bool, last_is_step: Iterable[bool]) -> list[dict[str, Any]]:
    found, t = [], 0
    for length, is_step in zip(expected.lengths, last_is_step, strict=True):
        for i in range(length):
            if keep_last or is_step or i < length - 1:
                found.append({path: column[t] for path, column in expected.steps.items()})
            t += 1
    return found


KINDS = ["plain", "one_step", "no_steps", "oxe_style", "every_kind", "uncovered", *datasets.NOT_READ_BY_TFDS]
# The other datasets are converted with encoded images, or cannot be converted.
ARRAYS = [name for name in KINDS if name not in ("mixed_images", "unencoded_ragged")]


@pytest.mark.parametrize("keep_last", [False, True])
@pytest.mark.parametrize("name", ARRAYS)
def test_load_steps_equals_a_plain_loop(name: str, keep_last: bool, converted: Any, expected: Any) -> None:
    steps = load_steps(converted(name), 4, keep_last=keep_last, as_numpy=True)
    judge = _judge_steps(expected(name), keep_last, _last_is_step(converted(name)))
    found = [{path: row[path] for path in judge[0]} if judge else row for row in _rows(steps)]
    _assert_same(found, judge)


@pytest.mark.parametrize("name", ["oxe_style", "every_kind", "uncovered"])
def test_encoded_images_are_decoded(name: str, converted: Any, expected: Any) -> None:
    assert any(dataset.attrs.get("encoded", False) for dataset in _datasets(converted(name, "encoded")))
    found = _rows(load_steps(converted(name, "encoded"), 4, keep_last=True, as_numpy=True))
    judge = _judge_steps(expected(name), True, _last_is_step(converted(name)))
    _assert_same([{path: row[path] for path in judge[0]} for row in found], judge)


def _last_is_step(path: Path) -> list[bool]:
    with h5py.File(path) as file:
        flags: list[bool] = file["episodes/last_is_step"][:].tolist()
        return flags


def _datasets(path: Path) -> list[h5py.Dataset]:
    file = h5py.File(path)
    found: list[h5py.Dataset] = []
    file.visititems(lambda _, item: found.append(item) if isinstance(item, h5py.Dataset) else None)
    return found


def test_images_of_different_sizes_in_a_row_are_rejected(converted: Any) -> None:
    message = r"mixed_images-encoded\.hdf5: field 'images': .* different sizes .*list the other fields in `fields`"
    with pytest.raises(KabukiError, match=message):
        list(load_steps(converted("mixed_images", "encoded"), 4, keep_last=True, as_numpy=True))


EVERY_KIND = [("steps", "encoded"), ("transitions", "arrays"), ("windows", "encoded")]


@pytest.mark.parametrize(("loader", "images"), EVERY_KIND)
def test_tensors_equal_numpy_arrays(loader: str, images: str, converted: Any) -> None:
    path = converted("every_kind", images)
    # Steps cover the other datasets. Building a graph for each of them is slow.
    fields = {"transitions": ["language_embedding"], "windows": ["observation/ragged", "observation/image", "reward"]}
    options = {"fields": fields.get(loader)} | ({"pad": True} if loader == "windows" else {})
    tensors = LOADERS[loader](path, 4, **options)
    arrays = LOADERS[loader](path, 4, **options, as_numpy=True)
    spec = dict(_flat(tensors.element_spec))
    count = 0
    for mine, judge in zip(tensors, arrays, strict=True):
        mine, judge = dict(_flat(mine)), dict(_flat(judge))
        assert mine.keys() == judge.keys() == spec.keys()
        for field, value in judge.items():
            assert spec[field].is_compatible_with(mine[field]), field
            assert spec[field].shape[0] is None
            if isinstance(mine[field], tf.RaggedTensor):
                assert repr(mine[field].to_list()) == repr(_lists(value)), field
            else:
                assert _same(mine[field].numpy(), value), field
                assert spec[field].shape[1:].is_fully_defined()
        count += 1
    assert count == {"steps": 4, "transitions": 3, "windows": 4}[loader]


def _lists(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.tolist()
    return [_lists(v) for v in value] if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize(("loader", "images"), EVERY_KIND)
def test_all_field_types_can_be_shuffled(loader: str, images: str, converted: Any, shuffled_from: str) -> None:
    path = converted("every_kind", images)
    options = {"fields": ["observation"]} if loader == "transitions" else {}
    options |= {"pad": True} if loader == "windows" else {}  # type: ignore[dict-item]
    in_order = _rows(LOADERS[loader](path, 3, **options, as_numpy=True))
    shuffled = _rows(LOADERS[loader](path, 3, shuffle=True, seed=1, **options, as_numpy=True))
    number = {_key(row): i for i, row in enumerate(in_order)}
    assert len(number) == len(in_order) == len(shuffled)
    places = [number[_key(row)] for row in shuffled]
    assert sorted(places) == list(range(len(in_order))) != places
    _assert_same(shuffled, [in_order[place] for place in places])


def _key(row: dict[str, Any]) -> bytes:
    values = [row[path] for path in sorted(row) if not isinstance(row[path], bytes)]
    return b"".join(value.tobytes() for value in values if value.dtype != object)


# --- transitions and windows


def _judge_transitions(episodes: list[dict[str, np.ndarray]], n: int, gamma: float) -> list[dict[str, Any]]:
    found = []
    for episode in episodes:
        last = len(episode["reward"]) - 1
        for t in range(last):
            after = min(t + n, last)
            reward, factor = 0.0, 1.0
            for k in range(t, after):
                reward += factor * episode["reward"][k].astype(np.float64)
                factor *= episode["discount"][k].astype(np.float64) * (gamma if k + 1 < after else 1)
            found.append(
                {
                    "observation/state": episode["observation/state"][t],
                    "observation/time": episode["observation/time"][t],
                    "action": episode["action"][t],
                    "reward": episode["reward"].dtype.type(reward),
                    "discount": episode["discount"].dtype.type(factor),
                    "next_observation/state": episode["observation/state"][after],
                    "next_observation/time": episode["observation/time"][after],
                    "is_terminal": episode["is_terminal"][after],
                    "is_last": np.bool_(after == last),
                }
            )
    return found


def _judge_windows(episodes: list[dict[str, np.ndarray]], length: int, pad: bool) -> list[dict[str, Any]]:
    found = []
    for episode in episodes:
        rows = len(episode["reward"])
        for t in range(rows if pad else rows - length + 1):
            window: dict[str, Any] = {}
            for path, column in episode.items():
                window[path] = np.zeros((length, *column.shape[1:]), column.dtype)
                window[path][: len(column[t : t + length])] = column[t : t + length]
            masks = {"mask": np.arange(length) < rows - 1 - t, "observation_mask": np.arange(length) < rows - t}
            found.append({**window, **masks})
    return found


LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=12)
COMMON = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _assert_close(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """Like `_assert_same`, but tolerates rounding of sums."""
    assert len(found) == len(wanted)
    for mine, judge in zip(found, wanted, strict=True):
        for path in ("reward", "discount"):
            assert mine[path].dtype == judge[path].dtype
            np.testing.assert_allclose(mine[path], judge[path], rtol=1e-6, atol=1e-7)
    _assert_same([_without_sums(row) for row in found], [_without_sums(row) for row in wanted])


def _without_sums(row: dict[str, Any]) -> dict[str, Any]:
    return {path: value for path, value in row.items() if path not in ("reward", "discount")}


@COMMON
@given(
    lengths=LENGTHS,
    batch_size=st.integers(1, 9),
    n=st.integers(1, 10),
    indexed=st.booleans(),
    chunk=st.sampled_from([None, 1, 3]),
)
def test_load_transitions_equals_a_plain_loop(
    lengths: list[int], batch_size: int, n: int, indexed: bool, chunk: int | None, tmp_path: Path
) -> None:
    fields = _fields(lengths)
    stored = fields if indexed else {path: column for path, column in fields.items() if "episodes" not in path}
    if chunk and sum(lengths) >= chunk:
        chunked = {name: handmade.chunked(fields[name], chunks=(chunk,)) for name in ("reward", "discount")}
        stored = stored | chunked
    path = handmade.write(tmp_path / "file.hdf5", stored)
    judge = _judge_transitions(_episodes(fields, lengths), n, 0.9)
    found = list(load_transitions(path, batch_size, n_step=n, gamma=0.9, as_numpy=True))
    assert [len(batch["reward"]) for batch in found] == _sizes(len(judge), batch_size)
    _assert_close(_rows(found), judge)
    for held in (1 << 30, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batches, "HELD_BYTES", held)
            patch.setattr(batches, "LOOK_AHEAD_BYTES", 1 << 10)
            shuffled = _rows(load_transitions(path, batch_size, True, 5, n_step=n, gamma=0.9, as_numpy=True))
        _assert_close(sorted(shuffled, key=lambda row: row["observation/time"]), judge)


@COMMON
@given(lengths=LENGTHS, batch_size=st.integers(1, 9), length=st.integers(1, 6), pad=st.booleans())
def test_load_windows_equals_a_plain_loop(
    lengths: list[int], batch_size: int, length: int, pad: bool, tmp_path: Path
) -> None:
    fields = _fields(lengths)
    path = handmade.write(tmp_path / "file.hdf5", fields)
    judge = _judge_windows(_episodes(fields, lengths), length, pad)
    found = list(load_windows(path, batch_size, length, pad=pad, as_numpy=True))
    assert [len(batch["mask"]) for batch in found] == _sizes(len(judge), batch_size)
    _assert_same(_rows(found), judge)
    shuffled = _rows(load_windows(path, batch_size, length, True, 5, pad=pad, as_numpy=True))
    _assert_same(sorted(shuffled, key=lambda row: row["observation/time"][0]), judge)


def _sizes(count: int, batch_size: int) -> list[int]:
    return [batch_size] * (count // batch_size) + [count % batch_size] * (count % batch_size > 0)


def test_one_step_transitions_equal_the_file_bit_by_bit(file: Path) -> None:
    found = _rows(load_transitions(file, 7, gamma=0.5, as_numpy=True))
    lengths = _lengths(file)
    _assert_same(found, _judge_transitions(_episodes(_fields(lengths), lengths), 1, 0.5))


def _lengths(file: Path) -> list[int]:
    with h5py.File(file) as f:
        return list(f["episodes/length"][:])


def test_n_step_returns_of_integer_rewards_are_floats(tmp_path: Path) -> None:
    fields = _fields([4]) | {"reward": np.array([1, 2, 3, 9]), "discount": np.ones((4, 1), np.float32)}
    path = handmade.write(tmp_path / "file.hdf5", fields)
    (batch,) = load_transitions(path, 8, n_step=2, gamma=0.5, as_numpy=True)
    assert batch["reward"].tolist() == [2.0, 3.5, 3.0] and batch["reward"].dtype == np.float64
    assert batch["discount"].tolist() == [[0.5], [0.5], [1.0]] and batch["discount"].dtype == np.float32


@pytest.mark.parametrize("shuffle", [False, True])
def test_memory_does_not_depend_on_n_step(shuffle: bool, shuffled_from: str, tmp_path: Path) -> None:
    lengths = [3000, 1, 3000]
    path = handmade.write(tmp_path / "file.hdf5", _fields(lengths))
    peaks = []
    for n in (2, 1500):
        loaded = load_transitions(path, 500, shuffle, 0, n_step=n, as_numpy=True)
        tracemalloc.start()
        assert sum(len(batch["reward"]) for batch in loaded) == 5998
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # An array with all terms of all returns would take 1500 * 500 * 8 bytes. The rows read ahead depend on threads.
    assert peaks[1] < peaks[0] + (4 << 20)


# --- sample order


@pytest.mark.parametrize("loader", LOADERS)
def test_shuffling_serves_each_sample_once_in_the_order_of_the_seed(
    loader: str, file: Path, shuffled_from: str
) -> None:
    load = LOADERS[loader]
    in_order = _times(load(file, 4, as_numpy=True))
    loaded = load(file, 4, shuffle=True, seed=3, epochs=2, as_numpy=True)
    epochs = [_times(loaded)[: len(in_order)], _times(loaded)[len(in_order) :]]
    assert sorted(epochs[0]) == sorted(epochs[1]) == in_order
    assert epochs[0] != epochs[1] and epochs[0] != in_order
    assert _times(load(file, 4, shuffle=True, seed=3, as_numpy=True)) == epochs[0]
    assert _times(load(file, 9, shuffle=True, seed=3, as_numpy=True)) == epochs[0]
    assert _times(load(file, 4, shuffle=True, seed=4, as_numpy=True)) != epochs[0]
    unseeded = load(file, 4, shuffle=True, as_numpy=True)
    assert _times(unseeded) != _times(unseeded)


def _times(loaded: Iterable[dict[str, Any]]) -> list[int]:
    return [int(np.ravel(row["observation/time"])[0]) for row in _rows(loaded)]


@pytest.mark.parametrize("loader", LOADERS)
def test_shuffling_from_disk_gives_the_same_order_as_from_memory(
    loader: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = _rows(LOADERS[loader](file, 4, shuffle=True, seed=3, epochs=2, as_numpy=True))
    with monkeypatch.context() as patch:
        patch.setattr(batches, "LOADED_FIRST_BYTES", 0)
        _assert_same(_rows(LOADERS[loader](file, 4, shuffle=True, seed=3, epochs=2, as_numpy=True)), held)
    monkeypatch.setattr(batches, "HELD_BYTES", 0)
    monkeypatch.setattr(batches, "LOOK_AHEAD_BYTES", 1 << 9)
    _assert_same(_rows(LOADERS[loader](file, 4, shuffle=True, seed=3, epochs=2, as_numpy=True)), held)


@pytest.mark.parametrize("held", [0, 1 << 20])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 64, 1000, 1025])
def test_slices_of_a_permutation_are_consistent(count: int, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_order, "HELD_NUMBERS", held)
    permutation = sample_order.Permutation(count, (7, 1))
    whole = permutation[0:count]
    assert sorted(whole.tolist()) == list(range(count))
    pieces = [permutation[a : a + 7] for a in range(0, count, 7)]
    assert np.concatenate(pieces).tolist() == whole.tolist()


def test_computed_permutations_are_as_random_as_drawn_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_order, "HELD_NUMBERS", 0)
    count, keys = 1000, 400
    found = np.array([sample_order.Permutation(count, (key,))[0:count] for key in range(keys)])
    # A number is equally likely to be in each tenth of the order: a chi-squared test with 9 degrees of freedom each.
    places = np.argsort(found, axis=1)
    tenths = np.stack([((places * 10 // count) == i).sum(axis=0) for i in range(10)])
    statistic = ((tenths - keys / 10) ** 2 / (keys / 10)).sum(axis=0)
    assert abs(statistic.mean() - 9) < 0.5 and statistic.max() < 45
    # The mean distance of neighbours is that of two random numbers: a third of the range.
    apart = np.abs(np.diff(found, axis=1)).mean() / count
    assert abs(apart - 1 / 3) < 0.003


# --- tf.data


def test_epochs_repeat_the_dataset_with_a_smaller_last_batch(file: Path) -> None:
    data = load_steps(file, 4, shuffle=True, seed=1, epochs=2)
    first, again = (_rows(data.as_numpy_iterator()) for _ in range(2))
    _assert_same(first, again)
    _assert_same(_rows(data.repeat(2).as_numpy_iterator()), first * 2)
    count = len(first) // 2
    assert [len(batch["reward"]) for batch in data] == 2 * _sizes(count, 4)


@pytest.mark.parametrize("loader", LOADERS)
def test_python_loops_and_tensorflow_get_the_same_batches(loader: str, file: Path) -> None:
    data = LOADERS[loader](file, 5, shuffle=True, seed=2)
    by_python, by_tensorflow = list(data), list(data.take(-1))
    assert len(by_python) == len(by_tensorflow)
    for one, other in zip(by_python, by_tensorflow, strict=True):
        specs = tf.nest.flatten(data.element_spec)
        assert all(spec.is_compatible_with(t) for spec, t in zip(specs, tf.nest.flatten(one), strict=True))
        tf.nest.map_structure(lambda a, b: np.testing.assert_array_equal(a.numpy(), b.numpy()), one, other)


def test_an_iterator_can_be_passed_to_a_tf_function(file: Path) -> None:
    data = load_steps(file, 5)
    wanted = [batch["reward"].numpy().tolist() for batch in data]

    @tf.function
    def reward(iterator: Any) -> tf.Tensor:
        return next(iterator)["reward"]

    iterator = iter(data)
    assert [reward(iterator).numpy().tolist() for _ in wanted] == wanted
    with pytest.raises(tf.errors.OutOfRangeError):
        reward(iterator)
    # One iterator comes from outside of the function, and one is created in it.
    around = iter(data)
    step = tf.function(lambda: next(around)["reward"])
    assert [step().numpy().tolist() for _ in range(2)] == wanted[:2]
    assert next(around)["reward"].numpy().tolist() == wanted[2]
    total = tf.function(lambda: data.reduce(0, lambda n, batch: n + tf.size(batch["reward"])))
    assert total() == sum(map(len, wanted))


def test_tensorflow_continues_an_iterator_after_a_python_loop(file: Path) -> None:
    # A new shuffle order at each iteration, so a second iteration would give other batches.
    data = load_steps(file, 7, shuffle=True, epochs=2)
    iterator = iter(data)
    taken = [next(iterator)["reward"]]
    step = tf.function(lambda iterator: next(iterator)["reward"])
    taken += [step(iterator), next(iterator)["reward"], step(iterator)]
    taken += [batch["reward"] for batch in iterator]
    every = np.sort(np.concatenate([batch["reward"] for batch in load_steps(file, 7, epochs=2, as_numpy=True)]))
    assert np.array_equal(np.sort(np.concatenate(taken)), every)


def test_the_iterator_has_the_methods_of_tensorflow_iterators(file: Path) -> None:
    data = load_steps(file, 1000)
    iterator = iter(data)
    assert iterator.element_spec == data.element_spec
    taken = iterator.get_next()
    with pytest.raises(tf.errors.OutOfRangeError):
        iterator.get_next()
    assert list(iterator) == []
    with pytest.raises(tf.errors.OutOfRangeError):
        tf.function(lambda taken: next(taken))(iterator)
    optional = iter(data).get_next_as_optional()
    assert optional.get_value()["reward"].numpy().tolist() == taken["reward"].numpy().tolist()


def test_epochs_none_repeats_without_end(file: Path) -> None:
    data = load_steps(file, 16, shuffle=True, seed=1, epochs=None)
    assert sum(1 for _ in data.take(50)) == 50


def test_a_file_without_samples_gives_an_empty_dataset(tmp_path: Path) -> None:
    path = handmade.write(tmp_path / "file.hdf5", _fields([1, 0, 1]))
    for loader in (load_steps, load_transitions):
        assert list(loader(path, 4)) == []
        assert list(loader(path, 4, shuffle=True, epochs=None)) == []
        assert list(loader(path, 4, shuffle=True, as_numpy=True)) == []
    assert list(load_windows(path, 4, 2, as_numpy=True)) == []


def test_passing_many_batches_at_once_does_not_change_them(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1, 500, 1 << 20):
        monkeypatch.setattr(batches, "BLOCK_BYTES", size)
        _assert_same(
            _rows(load_windows(file, 3, 4, pad=True).as_numpy_iterator()),
            _rows(load_windows(file, 3, 4, pad=True, as_numpy=True)),
        )


# --- fields and files


def test_fields_can_be_selected_by_path_and_group(file: Path) -> None:
    def paths(loaded: Iterable[dict[str, Any]]) -> list[str]:
        return sorted(path for path, _ in _flat(next(iter(loaded))))

    observations = ["observation/state", "observation/time"]
    assert paths(load_steps(file, 4, fields=["observation"], as_numpy=True)) == observations
    assert paths(load_steps(file, 4, fields=["observation/time", "action"])) == ["action", "observation/time"]
    assert paths(load_windows(file, 4, 2, fields=["action"], as_numpy=True)) == ["action", "mask", "observation_mask"]
    always = ["action", "discount", "is_last", "is_terminal", "reward"]
    nexts = [f"next_{path}" for path in observations]
    assert paths(load_transitions(file, 4, as_numpy=True)) == sorted([*always, *observations, *nexts])
    one = ["observation/time", "next_observation/time", "is_first"]
    assert paths(load_transitions(file, 4, fields=["observation/time", "is_first"], as_numpy=True)) == sorted(
        [*always, *one]
    )


def test_only_selected_fields_are_read(file: Path, tmp_path: Path) -> None:
    fields = _fields([40])
    damaged = handmade.write(tmp_path / "file.hdf5", fields | {"action": handmade.chunked(fields["action"])})
    handmade.put_chunk(damaged, "action", b"no zlib stream")
    assert len(_rows(load_steps(damaged, 8, fields=["reward"], as_numpy=True))) == 39


def test_several_files_are_concatenated(file: Path, tmp_path: Path) -> None:
    lengths = [[3, 0, 4], [0], [1, 6]]
    paths = [
        handmade.write(tmp_path / f"{i}.hdf5", _fields(some, seed=i) | {"episodes/metadata/other": np.zeros(len(some))})
        for i, some in enumerate(lengths)
    ]
    episodes = [e for i, some in enumerate(lengths) for e in _episodes(_fields(some, seed=i), some)]
    _assert_close(_rows(load_transitions(paths, 4, n_step=2, as_numpy=True)), _judge_transitions(episodes, 2, 1))
    judge = _judge_windows(episodes, 3, True)
    _assert_same(_rows(load_windows(paths, 4, 3, pad=True, as_numpy=True)), judge)
    shuffled = _rows(load_windows(paths, 4, 3, True, 0, pad=True, as_numpy=True))
    assert [_key(row) for row in shuffled] != [_key(row) for row in judge]
    _assert_same(sorted(shuffled, key=_key), sorted(judge, key=_key))


def test_files_with_different_fields_are_rejected(tmp_path: Path) -> None:
    a = handmade.write(tmp_path / "a.hdf5", _fields([3]))
    b = handmade.write(tmp_path / "b.hdf5", _fields([3]) | {"action": np.zeros(3, np.float32)})
    with pytest.raises(KabukiError, match=r"b.hdf5 does not fit .*a.hdf5: step field 'action'"):
        load_steps([a, b], 2)
    load_steps([a, b], 2, fields=["reward"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda file: load_steps(file, 0), "batch_size is 0"),
        (lambda file: load_steps(file, 2, epochs=0), "epochs is 0"),
        (lambda file: load_steps(file, 2, True, -1), "seed is -1"),
        (
            lambda file: load_steps(file, 2, fields=["observation", "rewards"]),
            "file.hdf5: has no step field 'rewards'; the fields are .*reward",
        ),
        (lambda file: load_steps(file, 2, fields=[]), "file.hdf5: no step field is selected; the fields are .*reward"),
        (lambda file: load_steps([], 2), "path is empty"),
        (lambda file: load_steps("nowhere.hdf5", 2), "nowhere.hdf5: no such file"),
        (lambda file: load_windows(file, 2, 0), "length is 0"),
        (lambda file: load_transitions(file, 2, n_step=0), "n_step is 0"),
        (lambda file: load_transitions(file, 2, n_step=1.5), "n_step is 1.5"),  # type: ignore[call-overload]
        (lambda file: load_steps(file, 2.0), "batch_size is 2.0"),  # type: ignore[call-overload]
        (lambda file: load_steps(file, 2, epochs=1.0), "epochs is 1.0"),  # type: ignore[call-overload]
        (lambda file: load_steps(file, 2, True, 0.5), "seed is 0.5"),  # type: ignore[call-overload]
        (lambda file: load_windows(file, 2, 3.0), "length is 3.0"),  # type: ignore[call-overload]
        (lambda file: load_transitions(file, 2, gamma=float("nan")), "gamma is nan"),
        (lambda file: load_transitions(file, 2, gamma=float("inf")), "gamma is inf"),
        (lambda file: load_transitions(file, 2, gamma=-0.5), "gamma is -0.5"),
        (lambda file: load_transitions(file, 2, gamma="0.9"), "gamma is 0.9, expected a finite number"),  # type: ignore[call-overload]
        (lambda file: load_transitions(file, 2, fields=["rewards"]), "no step field 'rewards'"),
    ],
)
def test_invalid_arguments_are_rejected_before_reading(call: Any, message: str, file: Path) -> None:
    with pytest.raises(KabukiError, match=message):
        call(file)


@pytest.mark.parametrize("shuffle", [False, True])
def test_small_numpy_integers_and_huge_integers_are_accepted(shuffle: bool, file: Path) -> None:
    def rewards(load: Any, *numbers: Any, **options: Any) -> list[list[float]]:
        return [b["reward"].tolist() for b in load(file, *numbers, shuffle=shuffle, seed=3, as_numpy=True, **options)]

    assert rewards(load_steps, np.int8(100)) == rewards(load_steps, 100)
    assert rewards(load_windows, np.uint8(200), np.int8(3)) == rewards(load_windows, 200, 3)
    assert rewards(load_windows, 4, True) == rewards(load_windows, 4, 1)
    assert rewards(load_transitions, 7, n_step=np.int8(3)) == rewards(load_transitions, 7, n_step=3)
    for n in (1 << 63, 10**30):
        assert rewards(load_transitions, 7, n_step=n) == rewards(load_transitions, 7, n_step=1000)
        assert rewards(load_steps, n) == rewards(load_steps, 1000)
        assert rewards(load_windows, 7, n) == []


def test_reserved_names_and_missing_fields_are_rejected(tmp_path: Path) -> None:
    fields = _fields([3])
    masked = handmade.write(tmp_path / "mask.hdf5", fields | {"mask": np.zeros(3)})
    with pytest.raises(KabukiError, match="'mask'"):
        load_windows(masked, 2, 2)
    load_windows(masked, 2, 2, fields=["action"])
    nexts = handmade.write(tmp_path / "next.hdf5", fields | {"next_observation": np.zeros(3)})
    with pytest.raises(KabukiError, match="'next_observation'"):
        load_transitions(nexts, 2, fields=["next_observation"])
    load_transitions(nexts, 2)
    del fields["discount"]
    lacking = handmade.write(tmp_path / "lacking.hdf5", fields)
    with pytest.raises(KabukiError, match=r"lacking\.hdf5: has no step field 'discount'"):
        load_transitions(lacking, 2)
    attributes = handmade.attributes([3]) | {"complete": False}
    with pytest.raises(KabukiError, match="not complete"):
        load_steps(handmade.write(tmp_path / "half.hdf5", _fields([3]), attributes), 2)


@pytest.mark.parametrize("n_step", [1, 2])
@pytest.mark.parametrize(
    ("replaced", "stored", "message"),
    [
        ("reward", {"reward/a": np.zeros(3), "reward/b": np.zeros(3)}, "'reward' is a group .reward/a, reward/b"),
        ("discount", {"discount/a": np.zeros(3)}, "'discount' is a group .discount/a"),
        ("is_terminal", {"is_terminal/a": np.zeros(3, bool)}, "'is_terminal' is a group .is_terminal/a"),
        ("reward", {"reward": handmade.Stored(["a", "b", "c"], {"dtype": h5py.string_dtype()})}, "'reward' is text"),
        ("reward", {"reward": np.zeros(3, complex)}, "'reward' is complex128"),
        ("discount", {"discount": np.zeros((3, 2))}, r"'discount' is float64 \(2,\)"),
        ("is_terminal", {"is_terminal": np.zeros((3, 2), bool)}, r"'is_terminal' is bool \(2,\)"),
    ],
)
def test_fields_that_are_not_numbers_are_rejected_for_transitions(
    replaced: str, stored: dict[str, Any], message: str, n_step: int, tmp_path: Path
) -> None:
    fields = _fields([3])
    del fields[replaced]
    path = handmade.write(tmp_path / "file.hdf5", fields | stored)
    with pytest.raises(KabukiError, match=f"file.hdf5: field {message}"):
        load_transitions(path, 2, n_step=n_step)


def test_n_step_returns_support_vector_rewards(tmp_path: Path) -> None:
    rewards = np.arange(8, dtype=np.float32).reshape(4, 2)
    path = handmade.write(tmp_path / "file.hdf5", _fields([4]) | {"reward": rewards, "discount": np.ones(4)})
    (batch,) = load_transitions(path, 8, n_step=3, gamma=0.5, as_numpy=True)
    assert batch["reward"].tolist() == [[0 + 1 + 1, 1 + 1.5 + 1.25], [2 + 2, 3 + 2.5], [4, 5]]


# --- damage


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A file with a damaged chunk: rows 20 to 29 of `action`."""
    fields = _fields([40, 5, 55])
    path = handmade.write(
        tmp_path / "damaged.hdf5",
        fields | {"action": handmade.Stored(fields["action"], {"chunks": (10, 1), "compression": "gzip"})},
    )
    with h5py.File(path, "r+") as f:
        f["action"].id.write_direct_chunk((20, 0), b"no zlib stream")
    return path


@pytest.mark.parametrize("loader", LOADERS)
def test_damage_is_reported_with_field_and_rows(loader: str, damaged: Path, shuffled_from: str) -> None:
    for options in ({}, {"shuffle": True, "seed": 0}):
        loaded = LOADERS[loader](damaged, 4, as_numpy=True, **options)
        with pytest.raises(KabukiError, match=r"damaged.hdf5: field 'action': rows \d+ to \d+ cannot be read"):
            list(loaded)
        with pytest.raises(tf.errors.OpError, match=r"field 'action': rows \d+ to \d+ cannot be read"):
            list(LOADERS[loader](damaged, 4, **options))


def test_batches_before_damaged_rows_are_served(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BLOCK_BYTES", 1)
    batch_sizes = []
    with pytest.raises(KabukiError, match=r"rows 2\d to 2\d"):
        for batch in load_steps(damaged, 5, as_numpy=True):
            batch_sizes.append(len(batch["reward"]))
    assert batch_sizes == [5, 5, 5, 5]


# --- processes


def _sum(loaded: batches.Batches) -> float:
    return float(sum(batch["reward"].astype(float).sum() for batch in loaded))


def _put_sum(loaded: Any, queue: Any) -> None:
    queue.put(_sum(loaded))


@pytest.mark.parametrize("begun", [False, True])
def test_batches_work_in_a_forked_process(begun: bool, file: Path) -> None:
    loaded = load_steps(file, 4, shuffle=True, seed=0, as_numpy=True)
    wanted = _sum(loaded)
    iterating = iter(loaded)
    if begun:
        next(iterating)
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    process = fork.Process(target=_put_sum, args=(loaded, queue))
    process.start()
    try:
        assert queue.get(timeout=60) == wanted
    finally:
        process.join(60)
        process.kill()


def test_batches_can_be_pickled(file: Path) -> None:
    loaded = load_transitions(file, 4, shuffle=True, seed=0, n_step=2, as_numpy=True)
    wanted = _rows(loaded)
    _assert_same(_rows(pickle.loads(pickle.dumps(loaded))), wanted)


def test_callers_may_keep_and_modify_arrays(file: Path) -> None:
    loaded = load_steps(file, 4, as_numpy=True)
    kept = list(loaded)
    copies = pickle.loads(pickle.dumps(kept))
    for batch in loaded:
        for _, array in _flat(batch):
            array[...] = 0
    _assert_same(_rows(kept), _rows(copies))


def test_numpy_batches_do_not_import_tensorflow(file: Path) -> None:
    code = (
        "import sys; from kabuki_rlds.loading import load_transitions; "
        f"print(sum(len(b['reward']) for b in load_transitions({str(file)!r}, 4, True, as_numpy=True))); "
        "assert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == sum(max(n - 1, 0) for n in _lengths(file))


@pytest.mark.parametrize("image_format", ["png", "jpeg"])
def test_a_damaged_image_is_reported(image_format: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)
    whole = (tf.io.encode_png if image_format == "png" else tf.io.encode_jpeg)(pixels).numpy()
    # The header of the image is intact: it is checked before TensorFlow decodes the image.
    files = np.empty(3, object)
    files[:] = [np.frombuffer(file, np.uint8) for file in (whole, whole[: len(whole) // 2], whole)]
    attributes = {"kind": "image", "encoded": True, "dtype": "uint8", "shape": np.array([64, 48, 3])}
    camera = handmade.Stored(files, {"dtype": h5py.vlen_dtype(np.uint8)}, attributes)
    path = handmade.write(tmp_path / "file.hdf5", _fields([3]) | {"observation/camera": camera})
    message = "file.hdf5: episode 0: row 1: field 'observation/camera': the image is a truncated "
    with pytest.raises(KabukiError, match=message):
        list(load_steps(path, 4, keep_last=True, as_numpy=True))
    with pytest.raises(tf.errors.OpError, match=message):
        list(load_steps(path, 4, keep_last=True))
    assert len(_rows(load_steps(path, 4, fields=["action", "reward"], as_numpy=True))) == 2


def test_a_replaced_file_is_read_again(file: Path, tmp_path: Path) -> None:
    path = handmade.write(tmp_path / "file.hdf5", _fields([4]))
    loaded = load_steps(path, 8, shuffle=True, as_numpy=True)
    assert len(_rows(loaded)) == len(loaded) * 3 == 3
    handmade.write(path, _fields([2, 3]))
    assert len(_rows(loaded)) == 3
    # The number of batches is known beforehand, so it cannot change.
    handmade.write(path, _fields([9]))
    with pytest.raises(kabuki_rlds.KabukiError, match=r"file.hdf5: was changed since it was loaded; load it again"):
        _rows(loaded)


@pytest.mark.parametrize(
    "change",
    [
        {"action": np.zeros(4, np.float32)},
        {"observation/state": np.zeros((4, 3), np.float32)},
        {"observation/state": None},
    ],
)
def test_a_file_with_changed_fields_is_rejected(change: dict[str, Any], tmp_path: Path) -> None:
    path = handmade.write(tmp_path / "file.hdf5", _fields([4]))
    arrays, tensors = load_steps(path, 8, as_numpy=True), load_transitions(path, 8, n_step=2)
    others = load_steps(path, 8, fields=["reward"], as_numpy=True)
    fields = {name: column for name, column in (_fields([4]) | change).items() if column is not None}
    handmade.write(path, fields)
    message = "file.hdf5: was changed since it was loaded; load it again"
    with pytest.raises(KabukiError, match=message):
        list(arrays)
    with pytest.raises(tf.errors.OpError, match=message):
        list(tensors)
    assert len(_rows(others)) == 3


def test_an_image_in_several_windows_is_decoded_once(converted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = converted("oxe_style", "encoded")
    decoded = []
    decode_file = decode.decode_file  # type: ignore[attr-defined]

    def counting(file: bytes, *how: Any) -> Any:
        decoded.append(file)
        return decode_file(file, *how)

    monkeypatch.setattr(decode, "decode_file", counting)
    (batch,) = load_windows(path, 100, 3, fields=["observation/image", "reward"], as_numpy=True)
    rows = set(map(bytes, batch["observation"]["image"].reshape(-1, *batch["observation"]["image"].shape[2:])))
    assert batch["mask"].size > len(rows)
    assert len(decoded) == len(rows)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("epochs", [1, 3])
def test_a_loader_states_the_number_of_its_batches(tmp_path, shuffle, epochs):
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields((7, 1, 5), (True, False, True)))
    loaders: tuple[Any, ...] = (
        functools.partial(kabuki_rlds.load_steps, file, 4),
        functools.partial(kabuki_rlds.load_transitions, file, 4),
        functools.partial(kabuki_rlds.load_windows, file, 2, length=3),
        functools.partial(kabuki_rlds.load_windows, file, 2, length=100),
    )
    for load in loaders:
        arrays = load(shuffle=shuffle, epochs=epochs, as_numpy=True)
        assert len(arrays) == len(list(arrays))
        data: Any = load(shuffle=shuffle, epochs=epochs)
        assert len(data) == len(arrays) == sum(1 for _ in data) == sum(1 for _ in data.map(lambda batch: batch))


def test_a_loader_without_end_has_no_length(tmp_path):
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields())
    with pytest.raises(TypeError, match="does not end"):
        len(kabuki_rlds.load_steps(file, 4, epochs=None, as_numpy=True))
    assert kabuki_rlds.load_steps(file, 4, epochs=None).cardinality() == tf.data.INFINITE_CARDINALITY
    assert kabuki_rlds.load(file).cardinality() == len(handmade.LENGTHS)
