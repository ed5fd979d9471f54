"""Learns the fields of a recording and writes its episodes to the destination."""

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

#: Whether to write an episode that has not ended when the recording ends or the next episode begins.
Unfinished = Literal["keep", "drop"]

_log = logging.getLogger("kabuki_rlds")

_SPLIT = re.compile(r"\w[\w-]*", re.ASCII)


@dataclasses.dataclass(frozen=True)
class RecordingOptions:
    """The options of a recording.

    Attributes:
      split: name of the split.
      images: "png" or "jpeg" for all images, or a dict from the path of a field to its format.
      unfinished: "keep" to write truncated episodes, or "drop".
      config: the features and the description of a new dataset; None to learn the features.
      info: the description of a new dataset. If `config` is given, it replaces description, citation and homepage.
      hints: path to the field that the specs of the environment state.
    """

    split: str = "train"
    images: ImageFormats = "png"
    unfinished: Unfinished = "keep"
    config: tfds.rlds.rlds_base.DatasetConfig | None = None
    info: Info = dataclasses.field(default_factory=Info)
    hints: Fields = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Written:
    """The last written episode, which can still be changed or removed.

    Attributes:
      episode: the columns of the episode. The next episode of the same stream reuses them.
      is_terminal: whether the episode ended in a terminal state.
      metadata: the metadata fields of the episode.
    """

    episode: OpenEpisode
    is_terminal: bool
    metadata: Mapping[str, Any]


class Recorder:
    """Learns the fields of a recording and writes its episodes.

    Until the next episode is written, the last one can be removed or get other metadata.

    Args:
      path: the folder of an RLDS dataset, or an HDF5 file.
      options: the options of the recording.

    Attributes:
      keeps_unfinished: whether truncated episodes are written.
      is_closed: whether the recording has ended.

    Raises:
      KabukiError: an option is invalid, or the path cannot be recorded to.
    """

    def __init__(self, path: str | os.PathLike[str], options: RecordingOptions):
        if not _SPLIT.fullmatch(options.split):
            raise InvalidArgumentError(f"split: {options.split!r} is not a valid name; use letters, digits, _ and -")
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
        self._warned_of_missing = False
        self.is_closed = False

    @property
    def num_episodes(self) -> int:
        """Number of episodes recorded since this recording was opened."""
        return self._destination.num_written

    @property
    def has_learned(self) -> bool:
        """Whether the fields of the steps are known."""
        return self._learner is not None

    def learn(
        self, observation: Any, action: Any, reward: Any, discount: Any, metadata: Mapping[str, Any] | None
    ) -> None:
        """Learns the step fields from the first step.

        Raises:
          KabukiError: a value cannot be recorded, or does not match the fields of the dataset.
        """
        learner = FieldLearner(self._options.hints, self._declared)
        learner.learn(observation, OBSERVATION)
        learner.learn(action, ACTION)
        learner.learn(reward, REWARD, as_float=True)
        if self._declared is None or DISCOUNT in self._declared:
            learner.learn(discount, DISCOUNT, as_float=True)
        else:
            # The dataset has no discounts. They are recorded to a column that the encoder leaves out.
            learner.fields[DISCOUNT] = Field(np.dtype(np.float64))
        for name in metadata or {}:
            if str(name).split("/")[0] in REQUIRED:
                raise KabukiError(f"step metadata {name!r}: this name is reserved for a standard step field; rename it")
        learner.learn(dict(metadata or {}), "")
        learner.check_complete()
        self._image_formats = self._destination.image_formats(self._schema(learner, {}))
        self._first = copy.deepcopy((observation, action, reward, discount, dict(metadata or {})))
        self._learner = learner

    def new_episode(self) -> OpenEpisode:
        """An episode with empty columns for the learned fields."""
        assert self._learner is not None
        rows = functools.partial(self._learner.rows, image_formats=self._image_formats)
        observation, action, reward, discount, metadata = self._first
        return OpenEpisode(
            rows(observation, OBSERVATION),
            (rows(action, ACTION), rows(reward, REWARD), rows(discount, DISCOUNT)),
            {name: rows(value, str(name)) for name, value in metadata.items()},
        )

    def learn_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Adds the fields of an episode's metadata to the dataset if they are new.

        Raises:
          KabukiError: a field cannot be added to the dataset, or a value does not match its field.
        """
        if self._episode_fields.learn(metadata) and self._destination.is_defined:
            # The dataset has at most one episode. Rewrite this episode with the new fields.
            self._define(None if self._last is None else self._block(self._last))

    def write(self, episode: OpenEpisode, is_terminal: bool, metadata: Mapping[str, Any]) -> None:
        """Writes an episode. It is on disk when this method returns.

        Raises:
          KabukiError: a value cannot be stored with the features of the dataset, or the episode cannot be written.
        """
        if not self._destination.is_defined:
            self._define(None)
        self._finalize_last()
        written = _Written(episode, is_terminal, metadata)
        self._destination.append(self._block(written))
        self._last = written

    def change_last(self, episode: OpenEpisode | None, metadata: Mapping[str, Any]) -> None:
        """Replaces the metadata of the last written episode.

        Args:
          episode: the episode that the caller expects to be the last one.
          metadata: the new metadata fields.

        Raises:
          KabukiError: `episode` is not the last written episode, or a field does not match the recording.
        """
        if self._last is None or self._last.episode is not episode:
            raise KabukiError("no episode to set metadata for; set it before the next episode begins")
        self.learn_metadata(metadata)
        changed = dataclasses.replace(self._last, metadata=dict(metadata))
        self._destination.replace_last(self._block(changed))
        self._last = changed

    def remove_last(self, episode: OpenEpisode | None) -> None:
        """Removes the last written episode.

        Args:
          episode: the episode that the caller expects to be the last one.

        Raises:
          KabukiError: `episode` is not the last written episode.
        """
        if self._last is None or self._last.episode is not episode:
            raise KabukiError("no episode to discard; discard an episode before the next one begins")
        self._destination.remove_last()
        self._last = None

    def finalize(self, episode: OpenEpisode) -> None:
        """Makes the last written episode final if its columns are those of `episode`, which will be reused."""
        if self._last is not None and self._last.episode is episode:
            self._finalize_last()

    def close(self) -> None:
        """Ends the recording.

        Raises:
          KabukiError: the episodes cannot be added to the dataset. They are kept on disk.
        """
        if self.is_closed:
            return
        self.is_closed = True
        self._finalize_last()
        self._destination.close()

    def _finalize_last(self) -> None:
        """Makes the last written episode final: it can no longer be changed or removed."""
        if self._last is None:
            return
        missing = self._episode_fields.missing(self._last.metadata)
        if missing and not self._warned_of_missing:
            self._warned_of_missing = True
            _log.warning("an episode has no metadata %s; recorded as zero or empty", ", ".join(missing))
        self._episode_fields.are_fixed = True
        self._last = None

    def _define(self, episode: Block | None) -> None:
        """Stores the fields and the description of a new dataset."""
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
