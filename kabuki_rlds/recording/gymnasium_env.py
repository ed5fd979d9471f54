"""A wrapper that records a Gymnasium environment."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

import gymnasium

from kabuki_rlds.recording.episode_stream import SingleStreamRecording
from kabuki_rlds.recording.gymnasium_info import InfoFields
from kabuki_rlds.recording.recorder import Recorder


class RecordedEnv(SingleStreamRecording, gymnasium.Wrapper[Any, Any, Any, Any]):
    """Wraps a Gymnasium environment and records each step.

    The last step of a terminated episode has `is_terminal` and a discount of 0. The last
    step of a truncated episode is not terminal, and its discount is 1.

    Args:
      env: the environment to record.
      recorder: writes the episodes.
      info: the names of the entries of `info` to record; True for all, False for none.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], recorder: Recorder, info: bool | Sequence[str]):
        SingleStreamRecording.__init__(self, recorder)
        gymnasium.Wrapper.__init__(self, env)
        self._info = InfoFields(info)
        #: The info of the first `reset`. It is kept until the first step determines the entries to record.
        self._first_info: Mapping[str, Any] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._stream.reset(observation, self._info.from_reset(info))
        if not self._info.is_known:
            self._first_info = copy.deepcopy(info)
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        metadata = self._info.from_step(info)
        if self._first_info is not None:
            self._stream.set_first_metadata(self._info.from_reset(self._first_info))
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
        """Ends the recording and closes the environment."""
        try:
            self._end_recording()
        finally:
            super().close()
