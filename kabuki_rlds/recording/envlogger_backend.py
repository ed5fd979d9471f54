"""An EnvLogger backend that writes an RLDS dataset or a Kabuki HDF5 file."""

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
    """An EnvLogger backend that records the logged episodes.

        with envlogger.EnvLogger(env, backend=kabuki_rlds.EnvLoggerBackend, path="runs/catch") as env:
            timestep = env.reset()
            while not timestep.last():
                timestep = env.step(policy(timestep))

    Pass the class, not an object. EnvLogger then also passes the specs of the
    environment to the backend, which stores them in the dataset. The fields are learned
    from the specs and from the first step. `step_fn` must return a dict of step fields,
    and `episode_fn` a dict of episode fields.

    An episode is on disk when its last `step` returns; see `Logger`.

    Args:
      path: a folder for an RLDS dataset, or an HDF5 file that ends in `.hdf5` or `.h5`.
      split: name of the split.
      images: the format of images, "png" or "jpeg", or a dict from the path of a field
        to its format; see `Logger`.
      unfinished: "keep" to write truncated episodes, or "drop"; see `Logger`.
      config: a TFDS `DatasetConfig` with the features of a new dataset, which are then not
        learned.
      description: description of a new dataset.
      citation: citation of a new dataset.
      homepage: URL of a new dataset.
      **backend: the arguments of all EnvLogger backends: `metadata` and `scheduler`.

    Raises:
      KabukiError: the path cannot be recorded to, or another process records to it.
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
        """Number of episodes recorded since this recording was opened."""
        return self._recorder.num_episodes

    def set_episode_metadata(self, data: Mapping[str, Any]) -> None:
        """Sets the metadata fields of the current episode, or of the episode that has just ended."""
        self._opened.set_metadata(data)

    def discard_episode(self) -> None:
        """Removes the current episode, or the episode that has just ended, from the recording.

        The remaining steps of the current episode, up to the next reset, are not recorded either.

        Raises:
          KabukiError: there is no such episode.
        """
        self._opened.discard()

    def close(self) -> None:
        """Ends the recording and the current episode. EnvLogger may call this method more than once."""
        stream, self._stream = self._stream, None
        if stream is None:
            return
        try:
            stream.truncate()
        finally:
            self._recorder.close()

    def _record_step(self, data: Any, is_new_episode: bool) -> None:
        timestep, metadata = data.timestep, data.custom_data
        if metadata is not None and not isinstance(metadata, Mapping):
            raise InvalidArgumentError(
                f"step_fn must return a dict of fields, but returned a {type(metadata).__name__}"
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
            raise KabukiError("the recording is closed; open a new one to record more")
        return self._stream
