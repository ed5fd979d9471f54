"""One sequence of episodes that is recorded: a recording has several where environments run side by side."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from kabuki_rlds.errors import KabukiError
from kabuki_rlds.recording.open_episode import OpenEpisode
from kabuki_rlds.recording.recorder import Recorder

#: The fields of a step, or of an episode, beside those that all have.
Metadata = Mapping[str, Any] | None


class EpisodeStream:
    """Takes the steps of one episode after the other, and hands each over when it ends.

    The metadata of an open episode is kept here. The recorder keeps the episode that was
    written last: it can still be discarded, or be given other metadata.

    Args:
      recorder: what writes the episodes.
    """

    def __init__(self, recorder: Recorder):
        self._recorder = recorder
        self._episode: OpenEpisode | None = None
        self._is_open = False
        self._is_discarded = False
        #: The first observation of all, and its metadata, until a step tells what the fields are.
        self._first: tuple[Any, Metadata] | None = None
        self._metadata: dict[str, Any] = {}

    def reset(self, observation: Any, metadata: Metadata) -> None:
        """Begins an episode. One that has not ended is cut short.

        Raises:
          KabukiError: a value does not fit the recording; then no episode is open.
        """
        self._check_not_closed()
        self.cut_short()
        self._metadata = {}
        self._is_discarded = False
        if self._recorder.has_learned:
            self._begin(observation, metadata)
        else:
            self._first = copy.deepcopy((observation, metadata))
        self._is_open = True

    def set_first_metadata(self, metadata: Metadata) -> None:
        """Sets the metadata of the first observation of all, before a step tells what the fields are."""
        if self._first is not None:
            self._first = (self._first[0], copy.deepcopy(metadata))

    def step(
        self,
        action: Any,
        reward: Any,
        discount: Any,
        observation: Any,
        metadata: Metadata,
        *,
        is_last: bool,
        is_terminal: bool,
    ) -> None:
        """Adds a step, and writes the episode if it is the last. What follows a discard is passed over.

        Raises:
          KabukiError: no episode is open; or a value does not fit the recording, or
            cannot be written. Then the episode was cut short before this step.
        """
        if self._is_discarded:
            return
        if not self._is_open:
            self._check_not_closed()
            raise KabukiError("a step, but no episode has begun: reset first")
        try:
            if self._first is not None:
                if self._recorder.has_learned:
                    self._begin(*self._first)
                else:
                    self._begin_first(action, reward, discount, observation, metadata)
                self._first = None
            assert self._episode is not None
            self._episode.step(action, reward, discount, observation, metadata)
        except BaseException:
            self.cut_short()
            raise
        if is_last:
            self._end(is_terminal)

    def set_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Sets the fields of the episode that is open, or has just ended.

        Raises:
          KabukiError: there is none, or one does not fit the recording.
        """
        if self._is_discarded:
            return
        self._check_not_closed()
        if self._is_open:
            self._recorder.learn_metadata(metadata)
            self._metadata = dict(metadata)
        else:
            self._recorder.change_last(self._episode, metadata)

    def discard(self) -> None:
        """Forgets the episode that is open, with what is to come of it, or removes the one that has just ended.

        Raises:
          KabukiError: there is none.
        """
        if self._is_open:
            self._is_open = False
            self._is_discarded = True
            self._first = None
        else:
            self._recorder.remove_last(self._episode)

    def cut_short(self) -> None:
        """Ends an episode that is open, as the recording's options say.

        One that has not gone beyond its first observation is dropped: nothing happened in it.
        """
        has_steps = self._is_open and self._first is None and self._episode is not None and self._episode.num_rows > 1
        if has_steps and self._recorder.keeps_unfinished:
            self._end(is_terminal=False)
        self._is_open = False
        self._first = None

    def _check_not_closed(self) -> None:
        if self._recorder.is_closed:
            raise KabukiError("the recording was closed, so nothing more can be recorded in it")

    def _begin_first(self, action: Any, reward: Any, discount: Any, observation: Any, metadata: Metadata) -> None:
        """Learns the fields from the first step of the recording, and begins its episode."""
        assert self._first is not None
        self._recorder.learn(observation, action, reward, discount, metadata)
        try:
            self._begin(*self._first)
        except KabukiError:
            # The reset has other values than the step, and came first. The fields are those of the reset, and the step
            # is what does not fit, if it does not.
            self._episode = None
            first, first_metadata = self._first
            self._recorder.learn(first, action, reward, discount, {**(metadata or {}), **(first_metadata or {})})
            self._begin(*self._first)

    def _begin(self, observation: Any, metadata: Metadata) -> None:
        if self._episode is None:
            self._episode = self._recorder.new_episode()
        self._recorder.settle(self._episode)
        self._episode.reset(observation, metadata)

    def _end(self, is_terminal: bool) -> None:
        assert self._episode is not None
        self._is_open = False
        self._recorder.write(self._episode, is_terminal, self._metadata)


class OneStream:
    """What is recorded as one stream of episodes, and can be told of them.

    Args:
      recorder: what writes the episodes.
    """

    def __init__(self, recorder: Recorder):
        self._recorder = recorder
        self._stream = EpisodeStream(recorder)

    @property
    def num_episodes(self) -> int:
        """How many episodes were recorded since this was opened."""
        return self._recorder.num_episodes

    def set_episode_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Sets the fields of the episode that is open, or has just ended.

        Those of the first episode tell what the fields are. Set again, they are replaced.

        Raises:
          KabukiError: there is no episode, or a field does not fit the recording.
        """
        self._stream.set_metadata(metadata)

    def discard_episode(self) -> None:
        """Forgets the episode that is open, or has just ended: it will not be in the dataset.

        Of one that is open, the steps until the next reset are passed over too.

        Raises:
          KabukiError: there is none.
        """
        self._stream.discard()

    def _end_recording(self) -> None:
        """Ends the recording, and an episode that is open."""
        try:
            self._stream.cut_short()
        finally:
            self._recorder.close()
