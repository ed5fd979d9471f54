"""Records to the folder of an RLDS dataset."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from kabuki_rlds.data.block import Block
from kabuki_rlds.data.schema import Info, Schema
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.extras import require
from kabuki_rlds.formats.rlds.feature_proto import read_parts
from kabuki_rlds.formats.rlds.infer_features import features_of
from kabuki_rlds.recording.config_features import features_of_config, image_formats, schema_of
from kabuki_rlds.recording.rlds_recording import RldsRecording, folder_of

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

    from kabuki_rlds.formats.rlds.example_encoder import ExampleEncoder


class RldsDestination:
    """A `Destination` that appends episodes, encoded as by TFDS, to an RLDS dataset.

    Args:
      path: for example `runs/hopper` or `runs/hopper/1.0.0`.
      split: name of the split.
      config: the features of a new dataset; None to learn them from the first step.

    Raises:
      KabukiError: another process records to the dataset, or the dataset cannot be appended to.
    """

    def __init__(self, path: str | os.PathLike[str], split: str, config: tfds.rlds.rlds_base.DatasetConfig | None):
        # The import takes seconds. Do it now, not at the end of the first episode.
        require(f"{path}: recording an RLDS dataset", "tensorflow", "tensorflow_datasets")

        folder = folder_of(path)
        if folder.is_file() or folder.parent.is_file():
            raise KabukiError(f"{path}: is a file; give a folder, or a path that ends in .hdf5 or .h5")
        self._recording = RldsRecording(folder, split, folder.parent.name)
        self._encoder: ExampleEncoder | None = None
        self.declared: Schema | None = None
        try:
            self._features = self._recording.features
            if self._features is None and config is not None:
                self._features = features_of_config(config)
            if self._features is not None:
                self.declared = schema_of(self._features)
        except KabukiError as e:
            self.release()
            raise e.within(path) from e
        except BaseException:
            self.release()
            raise

    @property
    def is_defined(self) -> bool:
        return self._recording.features is not None

    @property
    def num_written(self) -> int:
        return self._recording.num_written

    def image_formats(self, schema: Schema) -> dict[str, str]:
        return image_formats(self._features or features_of(schema))

    def define(self, schema: Schema, info: Info, episode: Block | None) -> None:
        if self.declared is None:
            self._features = features_of(schema)
            self._encoder = None
        if episode is not None:
            # Rewrite the episode before the features: a reader with the old features ignores the new fields.
            self.replace_last(episode)
        assert self._features is not None
        self._recording.declare(self._features, info)

    def append(self, episode: Block) -> None:
        self._recording.append(self._encode(episode))

    def replace_last(self, episode: Block) -> None:
        self._recording.replace_last(self._encode(episode))

    def remove_last(self) -> None:
        self._recording.remove_last()

    def close(self) -> None:
        try:
            self._recording.publish()
        finally:
            self.release()

    def release(self) -> None:
        self._recording.close()

    def _encode(self, episode: Block) -> bytes:
        if self._encoder is None:
            from kabuki_rlds.formats.rlds.example_encoder import ExampleEncoder

            assert self._features is not None
            self._encoder = ExampleEncoder(self._features)
        (parts,) = [*self._encoder.encode(episode), *self._encoder.finish()]
        return b"".join(read_parts(parts))
