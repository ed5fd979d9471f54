"""A recording of a vectorized environment has complete episodes of each environment, in order."""

from __future__ import annotations

import functools

import gymnasium
import h5py
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

import kabuki_rlds
from kabuki_rlds import KabukiError
from kabuki_rlds.recording.environments import record


class Counter(gymnasium.Env):
    """An environment that counts: an observation is (environment, episode, step)."""

    observation_space = spaces.Dict(
        {"at": spaces.Box(-np.inf, np.inf, (3,), np.float64), "who": spaces.Tuple([spaces.Discrete(9)])}
    )
    action_space = spaces.Box(0, 100, (1,), np.float32)

    def __init__(self, index: int):
        self._index, self._episode, self._t = index, -1, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._episode += 1
        self._t = 0
        return self._observation(), {"twice": 0}

    def step(self, action):
        self._t += 1
        terminated = self._t == 2 + self._index + self._episode % 2
        return self._observation(), float(action[0]), terminated, False, {"twice": 2 * self._t}

    def _observation(self):
        return {"at": np.array([self._index, self._episode, self._t], np.float64), "who": (np.int64(self._index),)}


def environments(mode, kind=SyncVectorEnv, count=3):
    return kind([lambda i=i: Counter(i) for i in range(count)], autoreset_mode=mode)


def actions(t, count=3):
    return np.array([[10 * i + t % 10] for i in range(count)], np.float32)


def check(path, count=3):
    """Checks that each recorded episode is complete, and returns (environment, episode) of each."""
    assert kabuki_rlds.validate(path) == []
    found = []
    with h5py.File(path) as f:
        for start, length in zip(f["episodes/start"][:], f["episodes/length"][:], strict=True):
            rows = slice(start, start + length)
            at = f["observation/at"][rows]
            index, episode = at[0, :2].astype(int)
            assert at.tolist() == [[index, episode, t] for t in range(length)]
            assert f["observation/who/0"][rows].tolist() == [index] * length
            whole = 3 + index + episode % 2
            assert length <= whole
            assert f["is_terminal"][rows][-1] == (length == whole)
            assert f["reward"][rows][:-1].tolist() == f["action"][rows][:-1, 0].tolist()
            assert set((f["action"][rows][:-1, 0] // 10).tolist()) == {index}
            if "twice" in f:
                assert f["twice"][rows].tolist() == [2 * t for t in range(length)]
            found.append((int(index), int(episode)))
    assert len(set(found)) == len(found)
    for i in range(count):
        mine = [episode for index, episode in found if index == i]
        assert mine == list(range(len(mine)))
    return found


@pytest.mark.parametrize("info", [True, False, ["twice"]])
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_vector_env_with_autoreset_is_recorded(tmp_path, mode, info):
    with record(environments(mode), tmp_path / "x.hdf5", info=info) as env:
        env.reset(seed=0)
        for t in range(30):
            env.step(actions(t))
        whole = env.num_episodes
    found = check(tmp_path / "x.hdf5")
    assert {index for index, _ in found} == {0, 1, 2}
    assert whole <= len(found) <= whole + 3
    transitions = kabuki_rlds.inspect(tmp_path / "x.hdf5").num_steps - len(found)
    if mode is AutoresetMode.SAME_STEP:
        assert transitions == 30 * 3
    else:  # A step that only resets is not recorded. An episode may have ended in the last step.
        assert transitions in range(30 * 3 - whole, 30 * 3 - whole + 4)


def test_vector_env_with_reset_mask_is_recorded(tmp_path):
    with record(environments(AutoresetMode.DISABLED), tmp_path / "x.hdf5") as env:
        env.reset()
        for t in range(30):
            *_, terminated, _, _ = env.step(actions(t))
            if terminated.any():
                env.reset(options={"reset_mask": terminated})
    assert {index for index, _ in check(tmp_path / "x.hdf5")} == {0, 1, 2}


def test_async_vector_env_is_recorded(tmp_path):
    # A fork would copy TensorFlow's locks, but not the threads that release them.
    spawned = functools.partial(AsyncVectorEnv, context="spawn")
    with record(environments(AutoresetMode.SAME_STEP, spawned), tmp_path / "x.hdf5") as env:
        env.reset(seed=0)
        for t in range(10):
            env.step(actions(t))
    assert len(check(tmp_path / "x.hdf5")) >= 6


def test_discard_episode_removes_the_episode_of_one_environment(tmp_path):
    with record(environments(AutoresetMode.NEXT_STEP), tmp_path / "x.hdf5", unfinished="drop") as env:
        env.reset(seed=0)
        env.step(actions(0))
        env.discard_episode(1)  # The remaining steps of the episode are ignored.
        env.set_episode_metadata({"who": "two"}, 2)
        with pytest.raises(KabukiError, match="index: no environment 3; valid are 0 to 2"):
            env.discard_episode(3)
        for t in range(1, 12):
            env.step(actions(t))
    with h5py.File(tmp_path / "x.hdf5") as f:
        starts = f["episodes/start"][:]
        found = f["observation/at"][:][starts, :2].tolist()
        who = f["episodes/metadata/who"].asstr()[:].tolist()
    assert [1, 0] not in found
    assert [1, 1] in found
    assert {tuple(at): name for at, name in zip(found, who, strict=True)}[2, 0] == "two"
