"""A backend for EnvLogger that writes an RLDS dataset, or a Kabuki HDF5 file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from envlogger.backends import backend_writer

from kabuki_rlds.data.schema import Field, Info
from kabuki_rlds.errors import InvalidArgumentError, KabukiError
from kabuki_rlds.formats.envlogger.specs import Specs, to_json
from kabuki_rlds.recording.episode_stream import EpisodeStream
from kabuki_rlds.recording.recorder import Recorder, RecordingOptions, Unfinished

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

    from kabuki_rlds.recording.image_fields import ImageFormats


class EnvLoggerBackend(backend_writer.BackendWriter):  # type: ignore[misc]  # EnvLogger ships no types
    """Records what EnvLogger logs.

        with envlogger.EnvLogger(env, backend=kabuki_rlds.EnvLoggerBackend, path="runs/catch") as env:

    So given, and not as an object, it also gets the environment's specs, and keeps them
    in the dataset. The fields are learned from these and from the first step. What
    `step_fn` returns, a dict, becomes fields of the steps, and what `episode_fn`
    returns fields of the episode.

    An episode is on the disk when the step that ended it returns: see `Logger`.

    Args:
      path: where to record: a folder for an RLDS dataset, or a file that ends in `.hdf5`.
      split: name of the split.
      images: the format of images, "png" or "jpeg", or path of a field to it.
      unfinished: what becomes of an episode that was cut short, "keep" or "drop".
      config: a TFDS `DatasetConfig`, instead of learning the fields.
      description: what a new dataset says of itself.
      citation: how to cite it.
      homepage: where there is more of it.
      **backend: what every backend of EnvLogger takes: `metadata` and `scheduler`.

    Raises:
      KabukiError: nothing can be recorded there, or another process records there.
    """

    _stream: EpisodeStream | None = None

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
        **backend: Any,
    ):
        super().__init__(**backend)
        metadata = self.metadata()
        info = Info(
            description=description, citation=citation, homepage=homepage, environment=to_json(metadata or None)
        )
        shapes = Specs(metadata).shapes
        hints = {"/".join(at): Field(dtype, shape) for at, (dtype, shape) in shapes.items() if dtype.kind in "biuf"}
        self._recorder = Recorder(path, RecordingOptions(split, images, unfinished, config, info, hints))
        self._stream = EpisodeStream(self._recorder)

    @property
    def num_episodes(self) -> int:
        """How many episodes were recorded since this was opened."""
        return self._recorder.num_episodes

    def set_episode_metadata(self, data: Mapping[str, Any]) -> None:
        """Sets the fields of the episode that is open, or has just ended."""
        self._opened.set_metadata(data)

    def discard_episode(self) -> None:
        """Forgets the episode that is open, or has just ended: it will not be in the dataset.

        Of one that is open, the steps until the next reset are passed over too.

        Raises:
          KabukiError: there is none.
        """
        self._opened.discard()

    def close(self) -> None:
        """Ends the recording, and an episode that is open. EnvLogger calls it, perhaps more than once."""
        stream, self._stream = self._stream, None
        if stream is None:
            return
        try:
            stream.cut_short()
        finally:
            self._recorder.close()

    def _record_step(self, data: Any, is_new_episode: bool) -> None:
        timestep, metadata = data.timestep, data.custom_data
        if metadata is not None and not isinstance(metadata, Mapping):
            raise InvalidArgumentError(
                f"what step_fn returns is a {type(metadata).__name__}, where a dict names the fields"
            )
        if is_new_episode:
            self._opened.reset(timestep.observation, metadata)
            return
        is_last = timestep.last()
        self._opened.step(
            data.action,
            timestep.reward,
            timestep.discount,
            timestep.observation,
            metadata,
            is_last=is_last,
            is_terminal=is_last and timestep.discount == 0,
        )

    @property
    def _opened(self) -> EpisodeStream:
        if self._stream is None:
            raise KabukiError("the recording was closed")
        return self._stream
