"""Writes episodes into a recording, with the fields that their first step has."""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kabuki_rlds.data.block import Block
from kabuki_rlds.data.rules import ACTION, DISCOUNT, FLAGS, OBSERVATION, REQUIRED, REWARD
from kabuki_rlds.data.schema import Field, Info, Schema
from kabuki_rlds.errors import InvalidArgumentError, KabukiError
from kabuki_rlds.recording.destination import open_destination
from kabuki_rlds.recording.episode_metadata import EpisodeFields
from kabuki_rlds.recording.field_learner import FieldLearner, Fields
from kabuki_rlds.recording.image_fields import ImageFormats, check_formats, with_images
from kabuki_rlds.recording.open_episode import OpenEpisode

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

#: What becomes of an episode that has not ended when the recording does, or the next one begins.
Unfinished = Literal["keep", "drop"]

_log = logging.getLogger("kabuki_rlds")

_SPLIT = re.compile(r"\w[\w-]*", re.ASCII)


@dataclasses.dataclass(frozen=True)
class RecordingOptions:
    """How to record.

    Attributes:
      split: name of the split.
      images: "png" or "jpeg", for all images or by the path of the field.
      unfinished: what becomes of an episode that was cut short.
      config: the features and the description of a new dataset.
      info: what a new dataset says of itself, where there is no `config`.
      hints: what the environment says that its values are.
    """

    split: str = "train"
    images: ImageFormats = "png"
    unfinished: Unfinished = "keep"
    config: tfds.rlds.rlds_base.DatasetConfig | None = None
    info: Info = dataclasses.field(default_factory=Info)
    hints: Fields = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Written:
    """An episode that was written and can still be changed.

    Attributes:
      episode: its columns, until the next episode of its stream uses them again.
      is_terminal: whether it ended in a terminal state.
      metadata: its fields.
    """

    episode: OpenEpisode
    is_terminal: bool
    metadata: Mapping[str, Any]


class Recorder:
    """Learns what the fields are, and writes episodes.

    Until the next episode is written, the last one can be removed, or be given other
    metadata.

    Args:
      path: where to record: the folder of a dataset, or an HDF5 file.
      options: how.

    Attributes:
      keeps_unfinished: whether an episode that was cut short is written.
      is_closed: whether the recording was ended.

    Raises:
      KabukiError: nothing can be recorded there.
    """

    def __init__(self, path: str | os.PathLike[str], options: RecordingOptions):
        if not _SPLIT.fullmatch(options.split):
            raise InvalidArgumentError(f"{options.split!r} cannot be the name of a split: letters, digits, _ and -")
        if options.unfinished not in ("keep", "drop"):
            raise InvalidArgumentError(f"unfinished: {options.unfinished!r} is neither 'keep' nor 'drop'")
        check_formats(options.images)
        self.keeps_unfinished = options.unfinished == "keep"
        self._options = options
        self._destination = open_destination(path, options.split, options.config)
        declared = self._destination.declared
        self._declared: Fields | None = None
        if declared is not None:
            self._declared = {name: field for name, field in declared.steps.items() if name not in FLAGS}
        try:
            self._episode_fields = EpisodeFields(None if declared is None else declared.metadata)
        except KabukiError as e:
            self._destination.release()
            raise e.within(path) from e
        self._learner: FieldLearner | None = None
        self._first: tuple[Any, ...] = ()
        self._image_formats: dict[str, str] = {}
        self._last: _Written | None = None
        self._said_missing = False
        self.is_closed = False

    @property
    def num_episodes(self) -> int:
        """How many episodes were recorded since this was opened."""
        return self._destination.num_written

    @property
    def has_learned(self) -> bool:
        """Whether the fields of the steps are known."""
        return self._learner is not None

    def learn(
        self, observation: Any, action: Any, reward: Any, discount: Any, metadata: Mapping[str, Any] | None
    ) -> None:
        """Learns the fields of the steps from those of the first.

        Raises:
          KabukiError: a value cannot be recorded, or is not what the dataset has.
        """
        learner = FieldLearner(self._options.hints, self._declared)
        learner.learn(observation, OBSERVATION)
        learner.learn(action, ACTION)
        learner.learn(reward, REWARD, as_float=True)
        if self._declared is None or DISCOUNT in self._declared:
            learner.learn(discount, DISCOUNT, as_float=True)
        else:
            # What a dataset without discounts cannot hold is left out when it is encoded.
            learner.fields[DISCOUNT] = Field(np.dtype(np.float64))
        for name in metadata or {}:
            if str(name).split("/")[0] in REQUIRED:
                raise KabukiError(f"step metadata {name!r}: a field that every step has; rename it")
        learner.learn(dict(metadata or {}), "")
        learner.check_complete()
        self._image_formats = self._destination.image_formats(self._schema(learner, {}))
        self._first = copy.deepcopy((observation, action, reward, discount, dict(metadata or {})))
        self._learner = learner

    def new_episode(self) -> OpenEpisode:
        """Empty columns for the fields that were learned."""
        assert self._learner is not None
        rows = functools.partial(self._learner.rows, image_formats=self._image_formats)
        observation, action, reward, discount, metadata = self._first
        return OpenEpisode(
            rows(observation, OBSERVATION),
            (rows(action, ACTION), rows(reward, REWARD), rows(discount, DISCOUNT)),
            {name: rows(value, str(name)) for name, value in metadata.items()},
        )

    def learn_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Sees to it that an episode with these fields can be written.

        Raises:
          KabukiError: one is not of the dataset, or not of its kind.
        """
        if self._episode_fields.learn(metadata) and self._destination.is_defined:
            # The one episode that there is gets them too.
            self._define(None if self._last is None else self._block(self._last))

    def write(self, episode: OpenEpisode, is_terminal: bool, metadata: Mapping[str, Any]) -> None:
        """Writes an episode, which is on the disk when this returns.

        Raises:
          KabukiError: a value cannot be stored as the dataset's features say, or not be written.
        """
        if not self._destination.is_defined:
            self._define(None)
        self._settle_last()
        written = _Written(episode, is_terminal, metadata)
        self._destination.append(self._block(written))
        self._last = written

    def change_last(self, episode: OpenEpisode | None, metadata: Mapping[str, Any]) -> None:
        """Replaces the metadata of an episode that has just been written.

        Raises:
          KabukiError: it is not the last one, or a field does not fit the recording.
        """
        if self._last is None or self._last.episode is not episode:
            raise KabukiError("metadata of an episode, but none is open: set it before the next episode begins")
        self.learn_metadata(metadata)
        changed = dataclasses.replace(self._last, metadata=dict(metadata))
        self._destination.replace_last(self._block(changed))
        self._last = changed

    def remove_last(self, episode: OpenEpisode | None) -> None:
        """Removes an episode that has just been written.

        Raises:
          KabukiError: it is not the last one.
        """
        if self._last is None or self._last.episode is not episode:
            raise KabukiError("no episode to discard: none is open, and none has just ended")
        self._destination.remove_last()
        self._last = None

    def settle(self, episode: OpenEpisode) -> None:
        """An episode's columns are used again: what was written of it stays as it is."""
        if self._last is not None and self._last.episode is episode:
            self._settle_last()

    def close(self) -> None:
        """Ends the recording.

        Raises:
          KabukiError: what was recorded cannot be added to the dataset. It is kept.
        """
        if self.is_closed:
            return
        self.is_closed = True
        self._settle_last()
        self._destination.close()

    def _settle_last(self) -> None:
        """From here on the last episode stays as it is."""
        if self._last is None:
            return
        missing = self._episode_fields.missing(self._last.metadata)
        if missing and not self._said_missing:
            self._said_missing = True
            _log.warning("an episode has no %s, as others have; left empty there", ", ".join(missing))
        self._episode_fields.are_fixed = True
        self._last = None

    def _define(self, episode: Block | None) -> None:
        """States the fields of a new dataset, and what it says of itself."""
        assert self._learner is not None
        info, config = self._options.info, self._options.config
        if config is not None:
            info = dataclasses.replace(
                info, description=config.overall_description, citation=config.citation, homepage=config.homepage
            )
        self._destination.define(self._schema(self._learner, self._episode_fields.fields), info, episode)

    def _schema(self, learner: FieldLearner, episodes: Fields) -> Schema:
        if self._destination.declared is not None:
            return self._destination.declared
        flags = {name: Field(np.dtype(bool)) for name in FLAGS}
        return with_images(Schema(learner.fields | flags, dict(episodes)), self._options.images)

    def _block(self, written: _Written) -> Block:
        episode = written.episode
        steps, metadata = episode.columns(written.is_terminal), self._episode_fields.columns(written.metadata)
        return Block(steps, episode.num_rows, np.zeros(1, np.int64), metadata)
