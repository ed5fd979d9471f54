"""`Logger`, which records the episodes of any control loop, without an environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from kabuki_rlds.data.schema import Info
from kabuki_rlds.recording.episode_stream import Metadata, SingleStreamRecording
from kabuki_rlds.recording.recorder import Recorder, RecordingOptions, Unfinished

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

    from kabuki_rlds.recording.image_fields import ImageFormats


class Logger(SingleStreamRecording):
    """Records episodes as an RLDS dataset or a Kabuki HDF5 file.

        with kabuki_rlds.Logger("runs/robot") as logger:
            logger.reset(observation)
            for t in range(1, limit + 1):
                ...
                logger.step(action, reward, observation, terminal=done, last=t == limit)
                if done:
                    break

    Values are numbers, arrays, text and byte strings, or nested dicts, tuples and lists of
    them. The fields are learned from the first step. Every later step must have the same
    fields, shapes and compatible dtypes.

    An episode is on disk when the call that ended it returns. If the process is killed,
    only the current episode is lost. The next recording to the same path recovers all
    others.

    Args:
      path: a folder for an RLDS dataset (`runs/robot` means `runs/robot/1.0.0`), or an
        HDF5 file that ends in `.hdf5` or `.h5`. Episodes are appended to an existing
        dataset.
      split: name of the split.
      images: the format of images, which are uint8 arrays (height, width, 1, 3 or 4). An
        RLDS dataset stores them as "png" or, smaller and lossy, as "jpeg". A new HDF5 file
        stores the pixels; `build` then uses this format. A dict maps the paths of fields
        to formats.
      unfinished: what to do with an episode that `close`, the next `reset` or an error
        truncates. "keep" writes it, with `is_last` and without `is_terminal` in its last
        row. "drop" does not write it. An episode without a step after `reset` is never
        written.
      config: a TFDS `DatasetConfig` with the features of a new dataset, which are then not
        learned.
      description: description of a new dataset.
      citation: citation of a new dataset.
      homepage: URL of a new dataset.
      metadata: facts about a new dataset in nested dicts, for example about the robot.

    Raises:
      InvalidArgumentError: an option is invalid.
      KabukiError: the path cannot be recorded to, or another process records to it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        split: str = "train",
        images: ImageFormats = "png",
        unfinished: Unfinished = "keep",
        config: tfds.rlds.rlds_base.DatasetConfig | None = None,
        description: str = "",
        citation: str = "",
        homepage: str = "",
        metadata: Mapping[str, Any] | None = None,
    ):
        from kabuki_rlds.formats.envlogger.specs import to_json

        info = Info(
            description=description,
            citation=citation,
            homepage=homepage,
            environment=to_json(dict(metadata)) if metadata else "",
        )
        super().__init__(Recorder(path, RecordingOptions(split, images, unfinished, config, info)))

    def reset(self, observation: Any, *, metadata: Metadata = None) -> None:
        """Begins an episode.

        Args:
          observation: the first observation.
          metadata: additional step fields of the row of this observation, by name. Fields
            that are missing here are zero or empty in this row.

        Raises:
          KabukiError: a value does not match the recording; or the previous episode was
            still in progress and cannot be written.
        """
        self._stream.reset(observation, metadata)

    def step(
        self,
        action: Any,
        reward: Any,
        observation: Any,
        *,
        discount: Any = None,
        terminal: bool = False,
        last: bool = False,
        metadata: Metadata = None,
    ) -> None:
        """Adds a step.

        Args:
          action: the action taken after the previous observation.
          reward: the reward for this action.
          observation: the observation after this action.
          discount: the discount after this action; by default 0 if `terminal`, otherwise 1.
          terminal: whether the episode terminates with this observation, which is then a
            terminal state.
          last: whether the episode ends with this observation. `last` without `terminal`
            truncates the episode. `terminal` implies `last`.
          metadata: additional step fields of the row of `observation`, by name.

        Raises:
          KabukiError: no episode is in progress; or a value does not match the recording;
            or the episode cannot be written. If a value does not match, the episode is
            truncated before this step.
        """
        if discount is None:
            discount = 0.0 if terminal else 1.0
        self._stream.step(
            action, reward, discount, observation, metadata, is_last=last or terminal, is_terminal=terminal
        )

    def close(self) -> None:
        """Ends the recording and truncates the current episode.

        Raises:
          KabukiError: an episode cannot be written. All earlier episodes are safe.
        """
        self._end_recording()

    def __enter__(self) -> Logger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
