"""Small environments for the recording tests, and a log of the values that they return."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


@dataclasses.dataclass
class Episodes:
    """The values that an environment returned, in the form in which TFDS returns a dataset.

    Attributes:
      steps: maps each path to one value per step, with all episodes concatenated.
      lengths: number of steps of each episode.
    """

    steps: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    lengths: list[int] = dataclasses.field(default_factory=list)

    def begin(self, observation: Any, **metadata: Any) -> None:
        self.lengths.append(1)
        self._add(observation=observation, is_first=True, **metadata)

    def step(self, action: Any, reward: Any, discount: float, observation: Any, **metadata: Any) -> None:
        self.lengths[-1] += 1
        self._add(action=action, reward=reward, discount=discount)
        self._add(observation=observation, is_first=False, **metadata)

    def end(self, terminal: bool) -> None:
        """Ends the episode and adds the padding of its last row."""
        for path in list(self.steps):
            if path.split("/")[0] in ("action", "reward", "discount"):
                value = self.steps[path][-1]
                self.steps[path].append(b"" if isinstance(value, bytes) else np.zeros_like(value))
        self._add(is_last=True, is_terminal=terminal)
        for path in ("is_last", "is_terminal"):
            self.steps[path][-1:-1] = [np.array(False)] * (self.lengths[-1] - 1)

    def _add(self, **values: Any) -> None:
        for name, value in values.items():
            for path, leaf in leaves(value, name):
                self.steps.setdefault(path, []).append(leaf)


def leaves(value: Any, path: str) -> list[tuple[str, Any]]:
    """Returns (path, copy) of every array and string in nested dicts, tuples and lists."""
    if isinstance(value, dict):
        return [leaf for name, inner in value.items() for leaf in leaves(inner, f"{path}/{name}")]
    if isinstance(value, (tuple, list)):
        return [leaf for i, inner in enumerate(value) for leaf in leaves(inner, f"{path}/{i}")]
    if isinstance(value, (str, bytes)):
        return [(path, value.encode() if isinstance(value, str) else value)]
    return [(path, np.array(value))]


def assert_same(found: dict[str, list[Any]], given: dict[str, list[Any]]) -> None:
    """Asserts that all values have equal bits and types."""
    assert set(found) == set(given)
    for path, values in given.items():
        assert len(found[path]) == len(values), path
        for i, (a, b) in enumerate(zip(found[path], values, strict=True)):
            if isinstance(b, bytes):
                assert a == b, f"{path}[{i}]"
            else:
                a = np.asarray(a)
                assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), f"{path}[{i}]: {a} != {b}"


class Everything(gymnasium.Env):
    """Observations of every kind of space, in one array that is used again each step.

    It ends terminal after `length` steps, or is cut short after `limit`.
    """

    observation_space = spaces.Dict(
        {
            "camera": spaces.Box(0, 255, (32, 48, 3), np.uint8),
            "joints": spaces.Box(-np.inf, np.inf, (4,), np.float64),
            "half": spaces.Box(-1, 1, (2, 2), np.float16),
            "goal": spaces.Text(20),
            "pair": spaces.Tuple([spaces.Discrete(5, start=-2), spaces.MultiBinary(3)]),
            "points": spaces.Sequence(spaces.Box(-1, 1, (2,), np.float32), stack=True),
        }
    )
    action_space = spaces.Dict({"move": spaces.Box(-1, 1, (2,), np.float32), "grip": spaces.Discrete(3)})

    def __init__(self, length: int = 5, limit: int = 99):
        self._length, self._limit = length, limit
        self._rng = np.random.default_rng(0)
        self._joints = np.zeros(4)
        self._t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._t = 0
        return self._observation(), {"time": 0, "note": "begin"}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._t += 1
        info = {"time": self._t, "note": "é" * self._t, "error": self._rng.normal(), "nested": {"x": np.int8(self._t)}}
        return self._observation(), 0.1 * self._t, self._t == self._length, self._t == self._limit, info

    def _observation(self) -> dict[str, Any]:
        rng = self._rng
        self._joints[:] = rng.normal(size=4)
        return {
            "camera": rng.integers(0, 256, (32, 48, 3), np.uint8),
            "joints": self._joints,
            "half": rng.normal(size=(2, 2)).astype(np.float16),
            "goal": "go to 🍒\0" * (self._t % 3),
            "pair": (np.int64(rng.integers(-2, 3)), rng.integers(0, 2, 3, np.int8)),
            "points": rng.normal(size=(self._t % 4, 2)).astype(np.float32),
        }


class Endless(gymnasium.Env):
    """An environment whose episodes never end."""

    observation_space = spaces.Box(0, np.iinfo(np.uint64).max, (2,), np.uint64)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self._t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._t += 1
        return self._observation(), np.nextafter(1.0, 2.0) * self._t, False, False, {}

    def _observation(self) -> np.ndarray:
        return np.array([2**64 - 1 - self._t, self._t], np.uint64)


def act(env: Any, episodes: int, given: Episodes, info: tuple[str, ...] = ()) -> None:
    """Takes random actions in a Gymnasium environment for some episodes, and adds the returned values to `given`."""
    env.action_space.seed(1)
    for _ in range(episodes):
        observation, about = env.reset()
        given.begin(observation, **{name: about[name] for name in info})
        ended = False
        while not ended:
            action = env.action_space.sample()
            observation, reward, terminated, truncated, about = env.step(action)
            discount = 0.0 if terminated else 1.0
            given.step(action, reward, discount, observation, **{name: about[name] for name in info})
            ended = terminated or truncated
        given.end(terminated)
