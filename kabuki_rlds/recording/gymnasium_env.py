"""A Gymnasium environment that is recorded."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

import gymnasium

from kabuki_rlds.recording.episode_stream import OneStream
from kabuki_rlds.recording.gymnasium_info import ChosenInfo
from kabuki_rlds.recording.recorder import Recorder


class RecordedEnv(OneStream, gymnasium.Wrapper[Any, Any, Any, Any]):
    """Records each step of an environment, and is otherwise as it is.

    An episode that was terminated ends terminal, with a discount of 0. One that was
    truncated does not, since more could have come: its discount is 1.

    Args:
      env: the environment.
      recorder: what writes its episodes.
      info: which entries of `info` are fields of the steps.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], recorder: Recorder, info: bool | Sequence[str]):
        OneStream.__init__(self, recorder)
        gymnasium.Wrapper.__init__(self, env)
        self._info = ChosenInfo(info)
        #: That of the first `reset`, until a step tells which entries there are.
        self._first_info: Mapping[str, Any] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._stream.reset(observation, self._info.of_reset(info))
        if not self._info.is_known:
            self._first_info = copy.deepcopy(info)
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        metadata = self._info.of_step(info)
        if self._first_info is not None:
            self._stream.set_first_metadata(self._info.of_reset(self._first_info))
            self._first_info = None
        self._stream.step(
            action,
            reward,
            0.0 if terminated else 1.0,
            observation,
            metadata,
            is_last=bool(terminated or truncated),
            is_terminal=bool(terminated),
        )
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        """Ends the recording, and closes the environment."""
        try:
            self._end_recording()
        finally:
            super().close()
