"""The destination of a recording: the folder of an RLDS dataset, or an HDF5 file."""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING, Protocol

from kabuki_rlds.data.block import Block
from kabuki_rlds.data.schema import Info, Schema
from kabuki_rlds.errors import KabukiError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_SUFFIXES = (".hdf5", ".h5")


class Destination(Protocol):
    """A dataset to which episodes are appended. A lock keeps other processes from recording to it.

    Attributes:
      declared: the fields that the episodes must have. None for a new dataset without a config: the fields are learned
        from the first step.
    """

    declared: Schema | None

    @property
    def is_defined(self) -> bool:
        """Whether the fields are stored: `define` was called, or the dataset already has episodes."""

    @property
    def num_written(self) -> int:
        """Number of episodes appended since the destination was opened."""

    def image_formats(self, schema: Schema) -> dict[str, str]:
        """Path to "png" or "jpeg", for each step field that must be given as one image file per step.

        Args:
          schema: the fields that will be passed to `define`.
        """

    def define(self, schema: Schema, info: Info, episode: Block | None) -> None:
        """Stores the fields and the description of a new dataset.

        The recorder calls it before the first episode, and again if the first episode gets
        more metadata fields.

        Args:
          schema: the fields.
          info: description, citation and homepage of the dataset.
          episode: the first episode with the new fields, if it is already appended; otherwise None.

        Raises:
          KabukiError: the fields or the episode cannot be written.
        """

    def append(self, episode: Block) -> None:
        """Appends an episode. It is on disk when this method returns.

        Raises:
          KabukiError: the episode cannot be written. The earlier episodes are safe.
        """

    def replace_last(self, episode: Block) -> None:
        """Replaces the last appended episode.

        Raises:
          KabukiError: the new version cannot be written. The old version is kept.
        """

    def remove_last(self) -> None:
        """Removes the last appended episode."""

    def close(self) -> None:
        """Adds all recorded episodes to the dataset and releases the lock.

        Raises:
          KabukiError: the episodes cannot be added. They are kept on disk, and the next recording adds them.
        """

    def release(self) -> None:
        """Releases the lock, so that other processes can record to the dataset."""


def open_destination(
    path: str | os.PathLike[str], split: str, config: tfds.rlds.rlds_base.DatasetConfig | None
) -> Destination:
    """Opens an HDF5 file if the path ends in `.hdf5` or `.h5`, otherwise an RLDS dataset.

    Args:
      path: for example `hopper.hdf5`, `runs/hopper` or `runs/hopper/1.0.0`.
      split: name of the split.
      config: the features of a new dataset; None to learn them from the first step.

    Raises:
      KabukiError: the path cannot be recorded to.
    """
    try:
        if pathlib.Path(path).suffix in _SUFFIXES:
            from kabuki_rlds.recording.hdf5_destination import Hdf5Destination

            return Hdf5Destination(path, split, config)
        from kabuki_rlds.recording.rlds_destination import RldsDestination

        return RldsDestination(path, split, config)
    except OSError as e:
        if isinstance(e, KabukiError):
            raise
        raise KabukiError(f"{path}: cannot record to this path ({e.strerror or e})") from e
