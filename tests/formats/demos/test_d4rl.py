"""D4RL's flat arrays: where episodes end, what is terminal, and which transitions a learner gets."""

import json
import re
from typing import Any

import h5py
import numpy as np
import pytest

from kabuki_rlds import InvalidArgumentError, KabukiError, convert, load_transitions, validate
from tests import layout_files


def _flags(count, *rows):
    flags = np.zeros(count, bool)
    flags[list(rows)] = True
    return flags


def _qlearning(file, limit=None):
    """The transitions that D4RL's `qlearning_dataset` gives, by its description: (row, done) of each.

    A row is left out where time was up, and the last of the file is. Its next observation is the next row.
    """
    terminals = np.asarray(file["terminals"]).reshape(-1).astype(bool)
    found, step = [], 0
    for row in range(len(terminals) - 1):
        final = bool(file["timeouts"][row]) if "timeouts" in file else step == limit - 1
        if final and not terminals[row]:
            step = 0
            continue
        step = 0 if terminals[row] or final else step + 1
        found.append((row, bool(terminals[row])))
    return found


def _sequences(file, limit=None):
    """The episodes that D4RL's `sequence_dataset` gives, by its description: the rows of each.

    An episode ends where it is done or time is up; what is left at the end of the file is none.
    """
    terminals = np.asarray(file["terminals"]).reshape(-1).astype(bool)
    found: list[Any] = []
    rows: list[Any] = []
    for row in range(len(terminals)):
        final = bool(file["timeouts"][row]) if "timeouts" in file else len(rows) == limit - 1
        rows.append(row)
        if terminals[row] or final:
            found.append(rows)
            rows = []
    return found


def _served(path):
    batches = list(load_transitions(path, 1 << 12).as_numpy_iterator())
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


@pytest.mark.parametrize("column", [False, True])
def test_transitions_are_those_of_d4rl(tmp_path, column):
    count = 4000
    rng = np.random.default_rng(3)
    terminals = rng.random(count) < 0.01
    timeouts = (rng.random(count) < 0.01) & ~terminals
    timeouts[-1] = True
    source = layout_files.d4rl(
        tmp_path / "hopper.hdf5", terminals=terminals[:, None] if column else terminals, timeouts=timeouts
    )
    convert(source, tmp_path / "k.hdf5")
    assert not validate(tmp_path / "k.hdf5")
    served = _served(tmp_path / "k.hdf5")
    with h5py.File(source) as file:
        rows, done = map(np.array, zip(*_qlearning(file), strict=True))
        np.testing.assert_array_equal(served["observation"], file["observations"][:][rows])
        np.testing.assert_array_equal(served["action"], file["actions"][:][rows])
        np.testing.assert_array_equal(served["reward"], file["rewards"][:][rows])
        np.testing.assert_array_equal(served["discount"] == 0, done)
        np.testing.assert_array_equal(
            served["next_observation"][~done], file["observations"][:][rows[~done] + 1]
        )  # where it is done, D4RL gives the first of the next episode, which the discount hides


@pytest.mark.parametrize("limit", [None, 70])
def test_episodes_are_those_of_d4rl(tmp_path, limit):
    rng = np.random.default_rng(4)
    terminals = rng.random(3000) < 0.01
    arrays = {"terminals": terminals}
    if limit is None:
        arrays["timeouts"] = (rng.random(3000) < 0.01) & ~terminals
    terminals[2990:] = False
    source = layout_files.d4rl(tmp_path / "hopper.hdf5", **arrays)
    with h5py.File(source, "a") as file:
        if limit is None:
            file["timeouts"][2990:] = False
        expected = _sequences(file, limit)
    tail = list(range(expected[-1][-1] + 1, 3000))
    assert tail
    convert(source, tmp_path / "k.hdf5", assume={"max_episode_steps": str(limit)} if limit else {})
    with h5py.File(tmp_path / "k.hdf5") as ours, h5py.File(source) as file:
        starts, lengths = ours["episodes/start"][:], ours["episodes/length"][:]
        # The unfinished tail is kept: it ends cut short.
        assert len(starts) == len(expected) + 1
        for start, length, rows in zip(starts, lengths, [*expected, tail], strict=True):
            terminal = bool(terminals[rows[-1]])
            assert length == len(rows)
            assert ours["is_terminal"][start : start + length].tolist() == [False] * (length - 1) + [terminal]
            for name, stored in (("observation", "observations"), ("action", "actions"), ("reward", "rewards")):
                np.testing.assert_array_equal(
                    ours[name][start : start + len(rows)], file[stored][rows[0] : rows[-1] + 1]
                )


def test_the_unfinished_tail_serves_all_but_its_last_action(tmp_path):
    source = layout_files.d4rl(tmp_path / "d.hdf5", terminals=_flags(6), timeouts=_flags(6, 2))
    convert(source, tmp_path / "k.hdf5")
    served = _served(tmp_path / "k.hdf5")
    with h5py.File(source) as file:
        np.testing.assert_array_equal(served["action"], file["actions"][:][[0, 1, 3, 4]])
    assert (served["discount"] == 1).all()


def test_without_timeouts_transitions_are_those_of_d4rl(tmp_path):
    source = layout_files.d4rl(tmp_path / "d.hdf5", terminals=_flags(2000, 12, 700, 1301))
    convert(source, tmp_path / "k.hdf5", assume={"max_episode_steps": "100"})
    served = _served(tmp_path / "k.hdf5")
    with h5py.File(source) as file:
        rows, done = map(np.array, zip(*_qlearning(file, 100), strict=True))
        np.testing.assert_array_equal(served["action"], file["actions"][:][rows])
        np.testing.assert_array_equal(served["discount"] == 0, done)


def test_what_is_of_no_step_is_of_the_environment(tmp_path, caplog):
    source = layout_files.d4rl(tmp_path / "d.hdf5", terminals=_flags(4), timeouts=_flags(4, 3), goals=np.zeros((9, 2)))
    with h5py.File(source, "a") as file:
        file["env"], file["weights"] = "maze2d", np.zeros((40, 40))
    convert(source, tmp_path / "k.hdf5")
    assert "weights, 1,600 values, is left out" in caplog.text
    with h5py.File(tmp_path / "k.hdf5") as ours:
        said = json.loads(ours.attrs["environment"])
        assert said["env"] == "maze2d"
        assert said["goals"] == np.zeros((9, 2)).tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": np.zeros((0, 2))}, "no actions, so no steps"),
        ({"terminals": np.zeros((6, 2), bool)}, "terminals is not one value a step"),
        ({"next_observations": np.zeros((6, 3))}, "next_observations are of another type or shape than observations"),
        ({"rewards": 1.0}, "rewards has no rows, where there are 6 actions"),
        ({"terminals": np.array([b"x"] * 6)}, r"terminals is of type \|S1, and no flag"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, change, message):
    source = layout_files.d4rl(tmp_path / "d.hdf5", terminals=_flags(6), timeouts=_flags(6, 5))
    with h5py.File(source, "a") as file:
        for name, values in change.items():
            if name in file:
                del file[name]
            file[name] = values
    with pytest.raises(KabukiError, match=message):
        convert(source, tmp_path / "k.hdf5")
    with pytest.raises(KabukiError, match=message):
        convert(source, tmp_path / "k.hdf5", split="train")


def test_rows_of_differing_lengths_are_refused(tmp_path):
    source = layout_files.d4rl(tmp_path / "d.hdf5", terminals=_flags(3), timeouts=_flags(3, 2))
    with h5py.File(source, "a") as file:
        ragged = file.create_dataset("infos/contacts", 3, h5py.vlen_dtype(np.float32))
        for row in range(3):
            ragged[row] = np.zeros(row, np.float32)
    with pytest.raises(KabukiError, match=r"'infos/contacts': rows of differing lengths, which no D4RL file has"):
        convert(source, tmp_path / "k.hdf5")


def test_without_timeouts_the_limit_has_to_be_said(tmp_path):
    source = layout_files.d4rl(tmp_path / "hopper.hdf5", terminals=_flags(25, 12))
    with pytest.raises(KabukiError, match=r"no timeouts.*assume={'max_episode_steps': '1000'}"):
        convert(source, tmp_path / "k.hdf5")
    assert convert(source, tmp_path / "k.hdf5", assume={"max_episode_steps": "5"}).num_episodes == 6
    with h5py.File(tmp_path / "k.hdf5") as ours:
        # The third terminated; the last is the unfinished tail.
        assert ours["episodes/length"][:].tolist() == [5, 5, 3, 5, 5, 2]
        assert np.flatnonzero(ours["is_terminal"][:]).tolist() == [12]
    convert(source, tmp_path / "n.hdf5", assume={"max_episode_steps": "none"})
    with h5py.File(tmp_path / "n.hdf5") as ours:
        assert ours["episodes/length"][:].tolist() == [13, 12]


def test_episode_terminals_of_d3rlpy_say_where_episodes_end(tmp_path):
    # `episode_terminals` is true at the end of each episode, also of one that ended terminal.
    source = layout_files.d4rl(
        tmp_path / "d3rlpy.hdf5", terminals=_flags(10, 3), episode_terminals=_flags(10, 3, 6, 9), discrete_action=False
    )
    convert(source, tmp_path / "k.hdf5")
    with h5py.File(tmp_path / "k.hdf5") as ours:
        assert ours["episodes/length"][:].tolist() == [4, 3, 3]
        assert np.flatnonzero(ours["is_terminal"][:]).tolist() == [3]
    with pytest.raises(KabukiError, match="max_episode_steps: there are episode_terminals, which say"):
        convert(source, tmp_path / "l.hdf5", assume={"max_episode_steps": "none"})


@pytest.mark.parametrize("dtype", [bool, np.uint8])
def test_flags_of_another_name_are_not_passed_over_where_there_are_no_timeouts(tmp_path, dtype):
    source = layout_files.d4rl(tmp_path / "d.hdf5", terminals=_flags(10, 3), truncated=_flags(10, 6, 9).astype(dtype))
    with pytest.raises(KabukiError, match=r"no timeouts, but 'truncated'; .* copy it to a dataset 'timeouts'") as e:
        convert(source, tmp_path / "k.hdf5")
    assert "none" not in str(e.value)
    with h5py.File(source, "a") as file:
        file["timeouts"] = file["truncated"][:]
    convert(source, tmp_path / "k.hdf5")
    with h5py.File(tmp_path / "k.hdf5") as ours:
        assert ours["episodes/length"][:].tolist() == [4, 3, 3]


def test_timeouts_of_maze2d_are_goals_where_it_is_said(tmp_path):
    source = layout_files.d4rl(tmp_path / "maze.hdf5", terminals=_flags(10), timeouts=_flags(10, 3, 7))
    convert(source, tmp_path / "k.hdf5")
    with h5py.File(tmp_path / "k.hdf5") as ours:
        assert not ours["is_terminal"][:].any()
        assert ours["episodes/length"][:].tolist() == [4, 4, 2]
    convert(source, tmp_path / "g.hdf5", assume={"timeouts": "terminal"})
    with h5py.File(tmp_path / "g.hdf5") as ours:
        assert ours["episodes/length"][:].tolist() == [4, 4, 2]
        assert np.flatnonzero(ours["is_terminal"][:]).tolist() == [3, 7]


def test_terminal_wins_over_a_timeout(tmp_path):
    source = layout_files.d4rl(tmp_path / "d.hdf5", terminals=_flags(6, 2), timeouts=_flags(6, 2, 5))
    convert(source, tmp_path / "k.hdf5")
    with h5py.File(tmp_path / "k.hdf5") as ours:
        assert np.flatnonzero(ours["is_terminal"][:]).tolist() == [2]
        assert ours["terminals"][:].tolist() == [0, 0, 1, 0, 0, 0]
        assert ours["timeouts"][:].tolist() == [0, 0, 1, 0, 0, 1]


def test_next_observations_are_the_last_rows(tmp_path):
    count = 200_000
    rng = np.random.default_rng(0)
    timeouts = np.zeros(count, bool)
    timeouts[99::100] = True
    seen = rng.normal(size=(count, 3)).astype(np.float32)
    following = np.roll(seen, -1, axis=0)
    following[timeouts] = rng.normal(size=(timeouts.sum(), 3))
    extra = {
        "infos/qpos": rng.normal(size=(count, 4)),
        "metadata/algorithm": "SAC",
        "metadata/policy/w": np.ones((99, 99)),
    }
    source = layout_files.d4rl(
        tmp_path / "d.hdf5",
        terminals=np.zeros(count, bool),
        timeouts=timeouts,
        observations=seen,
        next_observations=following,
        **extra,
    )
    assert convert(source, tmp_path / "k.hdf5").num_steps == count + count // 100
    with h5py.File(tmp_path / "k.hdf5") as ours:
        assert "next_observations" not in ours
        assert '"SAC"' in ours.attrs["environment"]
        rows = ours["observation"][:].reshape(-1, 101, 3)
        np.testing.assert_array_equal(rows[:, :-1], seen.reshape(-1, 100, 3))
        np.testing.assert_array_equal(rows[:, 1:], following.reshape(-1, 100, 3))
        infos = ours["infos/qpos"][:].reshape(-1, 101, 4)
        np.testing.assert_array_equal(infos[:, :-1], extra["infos/qpos"].reshape(-1, 100, 4))  # type: ignore[attr-defined]
        assert not infos[:, -1].any()
        assert not ours["action"][:].reshape(-1, 101, 2)[:, -1].any()


def test_next_observations_that_are_others_stay(tmp_path, caplog):
    other = np.random.default_rng(5).normal(size=(9, 3)).astype(np.float32)
    source = layout_files.d4rl(tmp_path / "d.hdf5", terminals=_flags(9), timeouts=_flags(9, 8), next_observations=other)
    convert(source, tmp_path / "k.hdf5")
    assert "are not the observations one row later" in caplog.text
    with h5py.File(tmp_path / "k.hdf5") as ours:
        np.testing.assert_array_equal(ours["next_observations"][:-1], other)
        np.testing.assert_array_equal(ours["observation"][-1], other[-1])


def test_arrays_of_differing_lengths_are_refused(tmp_path):
    source = layout_files.d4rl(tmp_path / "d.hdf5", terminals=_flags(9), timeouts=_flags(8))
    with pytest.raises(KabukiError, match=r"timeouts has 8 rows, where there are 9 actions"):
        convert(source, tmp_path / "k.hdf5")
    source = layout_files.d4rl(tmp_path / "e.hdf5", terminals=_flags(9), timeouts=_flags(9))
    with pytest.raises(
        InvalidArgumentError, match=rf"^{re.escape(str(source))}: max_episode_steps: there are timeouts"
    ):
        convert(source, tmp_path / "k.hdf5", assume={"max_episode_steps": "5"})
