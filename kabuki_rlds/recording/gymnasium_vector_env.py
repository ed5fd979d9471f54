"""A wrapper that records a vectorized Gymnasium environment."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import iterate

from kabuki_rlds.errors import InvalidArgumentError
from kabuki_rlds.recording.episode_stream import EpisodeStream
from kabuki_rlds.recording.gymnasium_info import InfoFields
from kabuki_rlds.recording.recorder import Recorder


class RecordedVectorEnv(VectorWrapper[Any, Any, Any, Any, Any]):
    """Wraps a vectorized Gymnasium environment and records each step of each environment.

    Each environment has its own episodes, which are written as they end. The first
    observation of the next episode depends on the autoreset mode:

    * `NEXT_STEP`: the observation that the step after the last one returns. The
      environment ignores the action of that step.
    * `SAME_STEP`: the observation that the last step returns. The last observation of the
      ended episode is in `info`.
    * `DISABLED`: the observation that `reset` returns.

    Args:
      env: the vectorized environment to record.
      recorder: writes the episodes.
      info: the names of the entries of `info` to record; True for all, False for none.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], recorder: Recorder, info: bool | Sequence[str]):
        super().__init__(env)
        self._recorder = recorder
        self._streams = [EpisodeStream(recorder) for _ in range(env.num_envs)]
        self._info = InfoFields(info)
        mode = (env.metadata or {}).get("autoreset_mode", "NextStep")
        self._autoreset = str(getattr(mode, "value", mode))
        #: Index of an environment to the info of its first `reset`. They are kept until the first step determines the
        #: entries to record.
        self._first_infos: dict[int, Mapping[str, Any]] = {}
        self._has_ended = [False] * env.num_envs

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        # Read the mask before the call: the environment removes it from the options.
        mask = (options or {}).get("reset_mask")
        observations, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        chosen = range(self.num_envs) if mask is None else np.flatnonzero(mask).tolist()
        each = list(self._each(observations))
        for i in chosen:
            self._begin(i, each[i], _info_of(infos, i))
        return observations, infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        made = self.env.step(actions)
        try:
            self._record(actions, *made)
        except BaseException:
            # The step is missing in all environments after the failed one, so no episode can continue.
            for stream in self._streams:
                stream.truncate()
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
            info = _info_of(infos, i)
            is_terminal = bool(terminations[i])
            is_last = is_terminal or bool(truncations[i])
            if resets and self._has_ended[i]:
                self._begin(i, observation, info)
                continue
            self._has_ended[i] = is_last
            last, last_info = observation, info
            if is_last and self._autoreset == "SameStep":
                last, last_info = infos["final_obs"][i], _info_of(infos["final_info"], i)
            metadata = self._info.from_step(last_info)
            while self._first_infos:
                index, first_info = self._first_infos.popitem()
                self._streams[index].set_first_metadata(self._info.from_reset(first_info))
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
        """Number of episodes recorded since this recording was opened, over all environments."""
        return self._recorder.num_episodes

    def set_episode_metadata(self, metadata: Mapping[str, Any], index: int) -> None:
        """Sets the metadata fields of the current episode of environment `index`.

        For an episode that has just ended, this works until its environment begins the next
        episode, or any other environment ends one.
        """
        self._stream(index).set_metadata(metadata)

    def discard_episode(self, index: int) -> None:
        """Removes the current episode of environment `index` from the recording.

        For an episode that has just ended, this works until its environment begins the next
        episode, or any other environment ends one.
        """
        self._stream(index).discard()

    def close(self, **kwargs: Any) -> None:
        """Ends the recording and closes the environments."""
        try:
            for stream in self._streams:
                stream.truncate()
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
        self._streams[index].reset(observation, self._info.from_reset(info))
        if not self._info.is_known:
            self._first_infos[index] = copy.deepcopy(info)

    def _each(self, observations: Any) -> Iterable[Any]:
        return iterate(self.observation_space, observations)

    def _stream(self, index: int) -> EpisodeStream:
        if not 0 <= index < self.num_envs:
            raise InvalidArgumentError(f"index: no environment {index}; valid are 0 to {self.num_envs - 1}")
        return self._streams[index]


def _info_of(infos: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The `info` of one environment. The boolean array `_name` states which environments have the entry `name`."""
    found: dict[str, Any] = {}
    for name, values in infos.items():
        mask = infos.get(f"_{name}")
        if mask is None or not mask[index] or name in ("final_obs", "final_info"):
            continue
        found[name] = _info_of(values, index) if isinstance(values, Mapping) else values[index]
    return found
