"""Records a sequence of episodes. A recording of a vectorized environment has one stream per environment."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from kabuki_rlds.errors import KabukiError
from kabuki_rlds.recording.open_episode import OpenEpisode
from kabuki_rlds.recording.recorder import Recorder

#: Additional fields of a step or an episode.
Metadata = Mapping[str, Any] | None


class EpisodeStream:
    """Collects the steps of the current episode, and passes the episode to the recorder when it ends.

    The stream holds the metadata of the current episode. The recorder holds the last
    written episode, which can still be discarded or get other metadata.

    Args:
      recorder: writes the episodes.
    """

    def __init__(self, recorder: Recorder):
        self._recorder = recorder
        self._episode: OpenEpisode | None = None
        self._is_open = False
        self._is_discarded = False
        #: The first observation of the recording and its metadata. The first step is needed to learn the fields.
        self._first: tuple[Any, Metadata] | None = None
        self._metadata: dict[str, Any] = {}

    def reset(self, observation: Any, metadata: Metadata) -> None:
        """Begins an episode. If the previous episode has not ended, it is truncated.

        Raises:
          KabukiError: a value does not match the fields of the recording. No episode is begun.
        """
        self._check_not_closed()
        self.truncate()
        self._metadata = {}
        self._is_discarded = False
        if self._recorder.has_learned:
            self._begin(observation, metadata)
        else:
            self._first = copy.deepcopy((observation, metadata))
        self._is_open = True

    def set_first_metadata(self, metadata: Metadata) -> None:
        """Sets the metadata of the first observation of the recording, if the fields are not learned yet."""
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
        """Adds a step. Writes the episode if the step is the last. Ignores the steps of a discarded episode.

        Raises:
          KabukiError: no episode is in progress; or a value does not match the fields of
            the recording; or the episode cannot be written. If a value does not match, the
            episode is truncated before this step.
        """
        if self._is_discarded:
            return
        if not self._is_open:
            self._check_not_closed()
            raise KabukiError("cannot add a step: no episode is in progress; call reset first")
        try:
            if self._first is not None:
                if self._recorder.has_learned:
                    self._begin(*self._first)
                else:
                    self._learn_and_begin(action, reward, discount, observation, metadata)
                self._first = None
            assert self._episode is not None
            self._episode.step(action, reward, discount, observation, metadata)
        except BaseException:
            self.truncate()
            raise
        if is_last:
            self._end(is_terminal)

    def set_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Sets the metadata fields of the current episode, or of the episode that has just ended.

        Raises:
          KabukiError: there is no such episode, or a field does not match the recording.
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
        """Discards the current episode and its remaining steps, or removes the episode that has just ended.

        Raises:
          KabukiError: there is no such episode.
        """
        if self._is_open:
            self._is_open = False
            self._is_discarded = True
            self._first = None
        else:
            self._recorder.remove_last(self._episode)

    def truncate(self) -> None:
        """Truncates the current episode, if there is one, and writes it unless `unfinished="drop"`.

        An episode that has only its first observation is not written.
        """
        has_steps = self._is_open and self._first is None and self._episode is not None and self._episode.num_rows > 1
        if has_steps and self._recorder.keeps_unfinished:
            self._end(is_terminal=False)
        self._is_open = False
        self._first = None

    def _check_not_closed(self) -> None:
        if self._recorder.is_closed:
            raise KabukiError("the recording is closed; open a new one to record more")

    def _learn_and_begin(self, action: Any, reward: Any, discount: Any, observation: Any, metadata: Metadata) -> None:
        """Learns the fields from the first step of the recording, and begins the episode."""
        assert self._first is not None
        self._recorder.learn(observation, action, reward, discount, metadata)
        try:
            self._begin(*self._first)
        except KabukiError:
            # The values of the reset do not match the fields of the step. Learn the fields from the reset instead, so
            # that an error names the step: the reset came first.
            self._episode = None
            first, first_metadata = self._first
            self._recorder.learn(first, action, reward, discount, {**(metadata or {}), **(first_metadata or {})})
            self._begin(*self._first)

    def _begin(self, observation: Any, metadata: Metadata) -> None:
        if self._episode is None:
            self._episode = self._recorder.new_episode()
        self._recorder.finalize(self._episode)
        self._episode.reset(observation, metadata)

    def _end(self, is_terminal: bool) -> None:
        assert self._episode is not None
        self._is_open = False
        self._recorder.write(self._episode, is_terminal, self._metadata)


class SingleStreamRecording:
    """Base class of recordings of a single stream of episodes.

    Args:
      recorder: writes the episodes.
    """

    def __init__(self, recorder: Recorder):
        self._recorder = recorder
        self._stream = EpisodeStream(recorder)

    @property
    def num_episodes(self) -> int:
        """Number of episodes recorded since this recording was opened."""
        return self._recorder.num_episodes

    def set_episode_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Sets the metadata fields of the current episode, or of the episode that has just ended.

        A second call for the same episode replaces the fields. The metadata of the first
        episode determines which fields the later episodes can have.

        Raises:
          KabukiError: there is no such episode, or a field does not match the recording.
        """
        self._stream.set_metadata(metadata)

    def discard_episode(self) -> None:
        """Removes the current episode, or the episode that has just ended, from the recording.

        The remaining steps of the current episode, up to the next reset, are not recorded either.

        Raises:
          KabukiError: there is no such episode.
        """
        self._stream.discard()

    def _end_recording(self) -> None:
        """Ends the recording and truncates the current episode."""
        try:
            self._stream.truncate()
        finally:
            self._recorder.close()
