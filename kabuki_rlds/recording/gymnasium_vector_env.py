"""Vectorized Gymnasium environments that are recorded."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import iterate

from kabuki_rlds.errors import InvalidArgumentError
from kabuki_rlds.recording.episode_stream import EpisodeStream
from kabuki_rlds.recording.gymnasium_info import ChosenInfo
from kabuki_rlds.recording.recorder import Recorder


class RecordedVectorEnv(VectorWrapper[Any, Any, Any, Any, Any]):
    """Records each step of each of several environments, and is otherwise as they are.

    Each has its own episodes, which are written as they end. What an environment gives
    when it resets itself begins its next episode, in the step after the last
    (autoreset mode `NEXT_STEP`, whose action means nothing) or in the same one
    (`SAME_STEP`, where `info` has the last observation); with `DISABLED` it is what
    `reset` gives.

    Args:
      env: the environments.
      recorder: what writes their episodes.
      info: which entries of `info` are fields of the steps.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], recorder: Recorder, info: bool | Sequence[str]):
        super().__init__(env)
        self._recorder = recorder
        self._streams = [EpisodeStream(recorder) for _ in range(env.num_envs)]
        self._info = ChosenInfo(info)
        mode = (env.metadata or {}).get("autoreset_mode", "NextStep")
        self._autoreset = str(getattr(mode, "value", mode))
        #: That of the first `reset` of each, until a step tells which entries there are.
        self._first_infos: dict[int, Mapping[str, Any]] = {}
        self._has_ended = [False] * env.num_envs

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        # The environments take it out of the options.
        mask = (options or {}).get("reset_mask")
        observations, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        chosen = range(self.num_envs) if mask is None else np.flatnonzero(mask).tolist()
        each = list(self._each(observations))
        for i in chosen:
            self._begin(i, each[i], _of_one(infos, i))
        return observations, infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        made = self.env.step(actions)
        try:
            self._record(actions, *made)
        except BaseException:
            # What the others did in this step is not recorded either, so none can go on.
            for stream in self._streams:
                stream.cut_short()
            raise
        return made

    def _record(
        self,
        actions: Any,
        observations: Any,
        rewards: np.ndarray,
        terminations: np.ndarray,
        truncations: np.ndarray,
        infos: Mapping[str, Any],
    ) -> None:
        each = zip(iterate(self.action_space, actions), self._each(observations), strict=True)
        resets = self._autoreset == "NextStep"
        for i, (action, observation) in enumerate(each):
            stream = self._streams[i]
            info = _of_one(infos, i)
            is_terminal = bool(terminations[i])
            is_last = is_terminal or bool(truncations[i])
            if resets and self._has_ended[i]:
                self._begin(i, observation, info)
                continue
            self._has_ended[i] = is_last
            last, last_info = observation, info
            if is_last and self._autoreset == "SameStep":
                last, last_info = infos["final_obs"][i], _of_one(infos["final_info"], i)
            metadata = self._info.of_step(last_info)
            while self._first_infos:
                index, first_info = self._first_infos.popitem()
                self._streams[index].set_first_metadata(self._info.of_reset(first_info))
            stream.step(
                action,
                rewards[i],
                0.0 if is_terminal else 1.0,
                last,
                metadata,
                is_last=is_last,
                is_terminal=is_terminal,
            )
            if is_last and self._autoreset == "SameStep":
                self._begin(i, observation, info)

    @property
    def num_episodes(self) -> int:
        """How many episodes were recorded since this was opened."""
        return self._recorder.num_episodes

    def set_episode_metadata(self, metadata: Mapping[str, Any], index: int) -> None:
        """Sets the fields of the episode of the environment `index` that is open.

        One that has just ended can be given them until it, or another, writes the next.
        """
        self._stream(index).set_metadata(metadata)

    def discard_episode(self, index: int) -> None:
        """Forgets the episode of the environment `index` that is open.

        One that has just ended can be, until it begins or another writes the next.
        """
        self._stream(index).discard()

    def close(self, **kwargs: Any) -> None:
        """Ends the recording, and closes the environments."""
        try:
            for stream in self._streams:
                stream.cut_short()
        finally:
            try:
                self._recorder.close()
            finally:
                super().close(**kwargs)

    def __enter__(self) -> RecordedVectorEnv:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _begin(self, index: int, observation: Any, info: Mapping[str, Any]) -> None:
        self._has_ended[index] = False
        self._streams[index].reset(observation, self._info.of_reset(info))
        if not self._info.is_known:
            self._first_infos[index] = copy.deepcopy(info)

    def _each(self, observations: Any) -> Iterable[Any]:
        return iterate(self.observation_space, observations)

    def _stream(self, index: int) -> EpisodeStream:
        if not 0 <= index < self.num_envs:
            raise InvalidArgumentError(f"there is no environment {index}, but {self.num_envs} from 0 on")
        return self._streams[index]


def _of_one(infos: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The `info` of one environment: beside each entry stands, after a `_`, who has it."""
    found: dict[str, Any] = {}
    for name, values in infos.items():
        mask = infos.get(f"_{name}")
        if mask is None or not mask[index] or name in ("final_obs", "final_info"):
            continue
        found[name] = _of_one(values, index) if isinstance(values, Mapping) else values[index]
    return found
