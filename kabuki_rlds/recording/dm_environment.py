"""A wrapper that records a dm_env environment."""

from __future__ import annotations

from typing import Any

import dm_env

from kabuki_rlds.recording.episode_stream import SingleStreamRecording
from kabuki_rlds.recording.recorder import Recorder


class RecordedEnvironment(SingleStreamRecording, dm_env.Environment):  # type: ignore[misc]  # dm_env ships no types
    """Wraps a dm_env environment and records each step.

    All other methods and attributes are those of the environment. Reward and discount
    are recorded as the time step has them. A last time step with a discount of 0 is
    terminal. (Source: dm_env's documentation of its semantics.)

    Args:
      environment: the environment to record.
      recorder: writes the episodes.
    """

    def __init__(self, environment: dm_env.Environment, recorder: Recorder):
        super().__init__(recorder)
        self._environment = environment

    def reset(self) -> dm_env.TimeStep:
        timestep = self._environment.reset()
        self._stream.reset(timestep.observation, None)
        return timestep

    def step(self, action: Any) -> dm_env.TimeStep:
        timestep = self._environment.step(action)
        if timestep.first():
            # The environment reset itself: it ignored the action and returned the first step of a new episode.
            self._stream.reset(timestep.observation, None)
            return timestep
        is_last = timestep.last()
        self._stream.step(
            action,
            timestep.reward,
            timestep.discount,
            timestep.observation,
            None,
            is_last=is_last,
            is_terminal=is_last and timestep.discount == 0,
        )
        return timestep

    def observation_spec(self) -> Any:
        return self._environment.observation_spec()

    def action_spec(self) -> Any:
        return self._environment.action_spec()

    def reward_spec(self) -> Any:
        return self._environment.reward_spec()

    def discount_spec(self) -> Any:
        return self._environment.discount_spec()

    def close(self) -> None:
        """Ends the recording and closes the environment."""
        try:
            self._end_recording()
        finally:
            self._environment.close()

    def __getattr__(self, name: str) -> Any:
        if name == "_environment":  # Avoids infinite recursion: copy and pickle read attributes before they are set.
            raise AttributeError(name)
        return getattr(self._environment, name)
