"""A logger without an environment, for a control loop of one's own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from kabuki_rlds.data.schema import Info
from kabuki_rlds.recording.episode_stream import Metadata, OneStream
from kabuki_rlds.recording.recorder import Recorder, RecordingOptions, Unfinished

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

    from kabuki_rlds.recording.image_fields import ImageFormats


class Logger(OneStream):
    """Records episodes as an RLDS dataset or a Kabuki HDF5 file.

        with kabuki_rlds.Logger("runs/robot") as logger:
            logger.reset(observation)
            for t in range(1, limit + 1):
                ...
                logger.step(action, reward, observation, terminal=done, last=t == limit)
                if done:
                    break

    The first step tells what the fields are: any nested dict, tuple or list of
    numbers, arrays, texts and byte strings. Every later step must be like it.

    An episode is on the disk when the call that ended it returns. If the process is
    killed, the episode that was open is lost and no other; the next recording to the
    same place takes up the rest.

    Args:
      path: where to record: a folder for an RLDS dataset (`runs/robot` means
        `runs/robot/1.0.0`), or a file that ends in `.hdf5` or `.h5`. What is there
        already is appended to.
      split: name of the split.
      images: how an RLDS dataset stores images, uint8 arrays (height, width, 1, 3 or 4): as "png",
        or as "jpeg", which is smaller and lossy; or path of a field to either. A new HDF5 file
        stores the pixels, and `build` stores these in this format.
      unfinished: "keep" writes an episode that was cut short (by `close`, by the next
        `reset`, or by an error), ending with `is_last` and not `is_terminal`; "drop"
        does not. One that has not gone beyond its reset is never written.
      config: a TFDS `DatasetConfig`, to say the features of a new dataset instead of
        learning them.
      description: what a new dataset says of itself.
      citation: how to cite it.
      homepage: where there is more of it.
      metadata: facts about the dataset, in nested dicts: of the robot, say.

    Raises:
      KabukiError: nothing can be recorded there, or another process records there.
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
          metadata: further fields of the step with this observation, which stand beside
            `observation` under their own names. What is not there is empty in this row.

        Raises:
          KabukiError: a value does not fit the recording, or the episode before, which
            was still open, cannot be written.
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
          action: what was done after the last observation.
          reward: what it gave.
          observation: what was seen then.
          discount: the discount that followed; by default 0 where `terminal`, else 1.
          terminal: the episode has ended here, of its own: nothing comes after this state.
          last: the episode has ended here, perhaps cut short. True where `terminal` is.
          metadata: further fields of the step with this observation.

        Raises:
          KabukiError: no episode is open; or a value does not fit the recording, or
            cannot be written. The steps before are then an episode that was cut short.
        """
        if discount is None:
            discount = 0.0 if terminal else 1.0
        self._stream.step(
            action, reward, discount, observation, metadata, is_last=last or terminal, is_terminal=terminal
        )

    def close(self) -> None:
        """Ends the recording, and an episode that is open.

        Raises:
          KabukiError: something cannot be written. All episodes before it are safe.
        """
        self._end_recording()

    def __enter__(self) -> Logger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
