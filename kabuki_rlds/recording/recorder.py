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
from kabuki_rlds.extras import require
from kabuki_rlds.recording.destination import destination
from kabuki_rlds.recording.episode_metadata import EpisodeFields
from kabuki_rlds.recording.field_learner import FieldLearner, Fields
from kabuki_rlds.recording.open_episode import OpenEpisode
from kabuki_rlds.recording.recorded_features import ImageFormats, features_of_config, image_formats, learned_features

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

    from kabuki_rlds.formats.rlds.example_encoder import ExampleEncoder

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


class Recorder:
    """Learns what the fields are, and writes episodes.

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
        # It takes seconds to import: now, and not when the first episode ends.
        # It takes seconds to import: now, and not when the first episode ends.
        require("recording", "tensorflow", "tensorflow_datasets")
        from kabuki_rlds.formats.rlds import feature_layout as rlds_features

        if not _SPLIT.fullmatch(options.split):
            raise InvalidArgumentError(f"{options.split!r} cannot be the name of a split: letters, digits, _ and -")
        if options.unfinished not in ("keep", "drop"):
            raise InvalidArgumentError(f"unfinished: {options.unfinished!r} is neither 'keep' nor 'drop'")
        for chosen in options.images.values() if isinstance(options.images, Mapping) else [options.images]:
            if chosen not in ("png", "jpeg"):
                raise InvalidArgumentError(f"images: {chosen!r} is neither 'png' nor 'jpeg'")
        self.keeps_unfinished = options.unfinished == "keep"
        self._options = options
        self._destination = destination(path, options.split)
        self._recording = self._destination.recording
        self._features: tfds.features.FeaturesDict | None = self._destination.features
        try:
            if self._features is None and options.config is not None:
                self._features = features_of_config(options.config)
            self._declared: tuple[Fields, Fields] | None = None
            if self._features is not None:
                found = rlds_features.read(self._features)
                self._declared = (
                    {leaf.path: leaf.field for leaf in found if leaf.in_steps and leaf.path not in FLAGS},
                    {leaf.path: leaf.field for leaf in found if not leaf.in_steps},
                )
            self._episode_fields = EpisodeFields(None if self._declared is None else self._declared[1])
        except KabukiError as e:
            self._recording.close()
            raise e.within(path) from e
        except BaseException:
            self._recording.close()
            raise
        self._learner: FieldLearner | None = None
        self._first: tuple[Any, ...] = ()
        self._image_formats: dict[str, str] = {}
        self._encoder: ExampleEncoder | None = None
        #: The last episode that was written, while it can be changed: how it ended, and its fields.
        self._last: tuple[OpenEpisode, bool, Mapping[str, Any]] | None = None
        self._said_missing = False
        self.is_closed = False

    @property
    def num_episodes(self) -> int:
        """How many episodes were recorded since this was opened."""
        return self._recording.num_written

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
        learner = FieldLearner(self._options.hints, None if self._declared is None else self._declared[0])
        learner.learn(observation, OBSERVATION)
        learner.learn(action, ACTION)
        learner.learn(reward, REWARD, as_float=True)
        if self._declared is None or DISCOUNT in self._declared[0]:
            learner.learn(discount, DISCOUNT, as_float=True)
        else:
            # What a dataset without discounts cannot hold is left out when it is encoded.
            learner.fields[DISCOUNT] = Field(np.dtype(np.float64))
        for name in metadata or {}:
            if str(name).split("/")[0] in REQUIRED:
                raise InvalidArgumentError(f"step metadata {name!r}: a field that every step has; rename it")
        learner.learn(dict(metadata or {}), "")
        learner.check_complete()
        self._image_formats = image_formats(
            self._features or learned_features(_schema(learner, {}), self._options.images)
        )
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
        if self._episode_fields.learn(metadata) and self._recording.features is not None:
            info = self._learn_features()
            if self._last is not None:
                # The one episode that there is gets them too, and first: who does not know of them passes over them.
                self.write_again(*self._last)
            self._recording.declare(self._features, info)

    def write(self, episode: OpenEpisode, is_terminal: bool, metadata: Mapping[str, Any]) -> None:
        """Writes an episode, which is on the disk when this returns.

        Raises:
          KabukiError: a value cannot be stored as the dataset's features say, or not be written.
        """
        if self._recording.features is None:
            info = self._learn_features()
            self._recording.declare(self._features, info)
        self._settle_last()
        self._recording.append(self._encode(episode, is_terminal, metadata))
        self._last = (episode, is_terminal, metadata)

    def can_change(self, episode: OpenEpisode) -> bool:
        """Whether an episode was the last one to be written, and so can be changed or removed."""
        return self._last is not None and self._last[0] is episode

    def settle(self, episode: OpenEpisode) -> None:
        """An episode's columns are used again: what was written of it stays as it is."""
        if self.can_change(episode):
            self._settle_last()

    def write_again(self, episode: OpenEpisode, is_terminal: bool, metadata: Mapping[str, Any]) -> None:
        """Writes the last episode anew, with other metadata."""
        self._recording.replace_last(self._encode(episode, is_terminal, metadata))
        self._last = (episode, is_terminal, metadata)

    def take_back(self) -> None:
        """Removes the last episode."""
        self._recording.take_back()
        self._last = None

    def close(self) -> None:
        """Ends the recording.

        Raises:
          KabukiError: what was recorded cannot be put into the HDF5 file. It is kept.
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
        missing = self._episode_fields.missing(self._last[2])
        if missing and not self._said_missing:
            self._said_missing = True
            _log.warning("an episode has no %s, as others have; left empty there", ", ".join(missing))
        self._episode_fields.are_fixed = True
        self._last = None

    def _learn_features(self) -> Info:
        """Learns the features of a new dataset from its fields, and returns what it says of itself."""
        info, config = self._options.info, self._options.config
        if self._declared is None:
            assert self._learner is not None
            schema = _schema(self._learner, self._episode_fields.fields)
            self._features = learned_features(schema, self._options.images)
        elif config is not None:
            info = dataclasses.replace(
                info, description=config.overall_description, citation=config.citation, homepage=config.homepage
            )
        self._encoder = None
        return info

    def _encode(self, episode: OpenEpisode, is_terminal: bool, metadata: Mapping[str, Any]) -> bytes:
        if self._encoder is None:
            from kabuki_rlds.formats.rlds.example_encoder import ExampleEncoder

            assert self._features is not None
            self._encoder = ExampleEncoder(self._features)
        block = Block(
            episode.columns(is_terminal),
            episode.num_rows,
            np.zeros(1, np.int64),
            self._episode_fields.columns(metadata),
        )
        return b"".join([*self._encoder.encode(block), *self._encoder.finish()])


def _schema(steps: FieldLearner, episodes: Fields) -> Schema:
    flags = {name: Field(np.dtype(bool)) for name in FLAGS}
    return Schema(steps.fields | flags, dict(episodes))
