"""Batched loaders: offsets, several processes, complete batches only, and resuming an iteration."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import kabuki_rlds
from kabuki_rlds.loading import batches as batches_module
from tests import handmade

LENGTHS = (5, 1, 12, 7)
LOADERS: dict[str, Callable[..., Any]] = {
    "steps": kabuki_rlds.load_steps,
    "transitions": kabuki_rlds.load_transitions,
    "windows": lambda *args, **options: kabuki_rlds.load_windows(args[0], args[1], 3, **options),
    "offsets": lambda *args, **options: kabuki_rlds.load_steps(
        *args, offsets={"observation": [-2, 0, 1]}, pad="zero", **options
    ),
}


@pytest.fixture
def file(tmp_path) -> Path:
    fields = handmade.fields(LENGTHS, (True, False, True, False))
    rows = sum(LENGTHS)
    fields["observation"] = np.arange(1, rows + 1, dtype=np.int64)
    fields["action"] = np.arange(rows, dtype=np.float32)[:, None]
    return handmade.write(tmp_path / "f.hdf5", fields)


@pytest.fixture(params=["in memory", "on disk"])
def storage(request, monkeypatch):
    if request.param == "on disk":
        monkeypatch.setattr(batches_module, "HELD_BYTES", 0)
        monkeypatch.setattr(batches_module, "LOOK_AHEAD_BYTES", 1)


def flat(batch, prefix=""):
    for name, value in batch.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        a, b = dict(flat(a)), dict(flat(b))
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("drop_last", [False, True])
def test_an_iteration_continues_after_any_batch(kind, shuffle, drop_last, file, storage):
    options = {"shuffle": shuffle, "seed": None, "epochs": 3, "drop_last": drop_last, "as_numpy": True}
    whole = LOADERS[kind](file, 4, **options)
    served, states = [], [whole.state()]
    for batch in whole:
        served.append(batch)
        states.append(json.loads(json.dumps(whole.state())))
    assert len(served) == len(whole)
    for position in range(1, len(served) + 1):
        resumed = LOADERS[kind](file, 4, state=states[position], **options)
        assert_equal(list(resumed), served[position:])
        assert resumed.state() == states[-1]
    # The iteration after it starts from the beginning.
    resumed = LOADERS[kind](file, 4, state=states[2], **options)
    assert len(list(resumed)) == len(served) - 2
    assert len(list(resumed)) == len(served)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("world", [1, 2, 3, 40])
@pytest.mark.parametrize("kind", LOADERS)
def test_each_sample_is_served_by_one_process(kind, world, shuffle, file, storage):
    options = {"shuffle": shuffle, "seed": 5, "as_numpy": True}
    expected = np.sort(np.concatenate([batch["action"] for batch in LOADERS[kind](file, 4, **options)], axis=0), axis=0)
    shares = [LOADERS[kind](file, 4, rank=rank, world=world, **options) for rank in range(world)]
    served = [batch["action"] for share in shares for batch in share]
    assert [len(list(share)) for share in shares] == list(map(len, shares))
    np.testing.assert_array_equal(np.sort(np.concatenate(served, axis=0), axis=0), expected)
    complete = [
        list(LOADERS[kind](file, 4, rank=rank, world=world, drop_last=True, **options)) for rank in range(world)
    ]
    assert len({len(each) for each in complete}) == 1
    assert all(len(batch["action"]) == 4 for each in complete for batch in each)


@pytest.mark.parametrize("pad", [None, "edge", "zero"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_offsets_of_batches_are_those_of_the_map_style_dataset(pad, shuffle, file, storage):
    offsets = {"observation": [-3, 0, 1], "action": [0, 1, 2]}
    items = {int(item["observation"][1]): item for item in kabuki_rlds.dataset(file, offsets=offsets, pad=pad)}
    served = 0
    for batch in kabuki_rlds.load_steps(file, 4, shuffle, 0, offsets=offsets, pad=pad, as_numpy=True):
        for i, observation in enumerate(batch["observation"]):
            item = dict(flat(items[int(observation[1])]))
            for name, value in flat(batch):
                np.testing.assert_array_equal(value[i], item[name], err_msg=name)
            assert set(item) - {"episode_index", "step_index"} == set(dict(flat(batch)))
            served += 1
    assert served == len(items) > 0


def test_offsets_work_with_tensorflow(file):
    pytest.importorskip("tensorflow")
    options: dict[str, Any] = {"offsets": {"observation": [-1, 0]}, "pad": "edge"}
    arrays = list(kabuki_rlds.load_steps(file, 4, as_numpy=True, **options))
    tensors = list(kabuki_rlds.load_steps(file, 4, **options).as_numpy_iterator())
    assert_equal(tensors, arrays)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "world": 2}, "rank is 2 and world is 2"),
        ({"rank": 0, "world": 2, "shuffle": True}, "seed is None"),
        ({"state": {}}, "state is not what"),
        ({"state": {"batch_size": 3}}, "state is from a loader with batch_size=3, but this one has 4"),
        ({"state": {"seed": 7}, "seed": 8}, "state is from a loader with seed=7, but this one has 8"),
        ({"state": {"batches": 99}}, "state is after 99 batches, but an iteration has"),
        ({"offsets": {"observation": [0]}, "pad": "none"}, "pad is 'none'"),
        ({"offsets": {"observation": [0, 50]}}, "offsets: they span 51 rows"),
        ({"offsets": {"camera": [0]}}, "has no step field 'camera'"),
        ({"offsets": {"observation": [0]}, "keep_last": True}, "keep_last: with offsets"),
    ],
)
def test_invalid_arguments_are_one_clear_error(options, message, file):
    options = dict(options)
    if options.get("state"):
        options["state"] = kabuki_rlds.load_steps(file, 4, as_numpy=True).state() | options["state"]
    with pytest.raises(kabuki_rlds.InvalidArgumentError, match=message):
        kabuki_rlds.load_steps(file, 4, as_numpy=True, **options)


def test_a_state_of_a_changed_file_is_rejected(file):
    state = kabuki_rlds.load_steps(file, 4, as_numpy=True).state()
    with h5py.File(file, "r+") as opened:
        for name in list(opened):
            values = opened[name][:-2]
            del opened[name]
            opened[name] = values
        opened["is_last"][-1] = True
    with pytest.raises(kabuki_rlds.InvalidArgumentError, match="state is from a loader with num_samples="):
        kabuki_rlds.load_steps(file, 4, as_numpy=True, state=state)


def test_arguments_may_be_numbers_of_numpy(file):
    def load(rank, world, drop_last, seed):
        options = {"rank": rank, "world": world, "drop_last": drop_last, "seed": seed}
        return kabuki_rlds.load_steps(file, 1, shuffle=True, as_numpy=True, **options)

    batches = load(np.int8(3), np.int8(4), np.bool_(True), np.uint8(200))
    served = list(batches)
    assert_equal(served, list(load(3, 4, True, 200)))
    assert json.loads(json.dumps(batches.state())) == batches.state()


@pytest.mark.parametrize("seed", ["x", -1, 1.5])
def test_a_state_with_an_invalid_seed_is_one_clear_error(seed, file):
    state = kabuki_rlds.load_steps(file, 4, shuffle=True, as_numpy=True).state()
    with pytest.raises(kabuki_rlds.errors.InvalidArgumentError, match="expected an integer >= 0"):
        kabuki_rlds.load_steps(file, 4, shuffle=True, as_numpy=True, state={**state, "seed": seed})
