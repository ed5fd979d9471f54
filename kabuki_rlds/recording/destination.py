"""Where a recording goes: the folder of an RLDS dataset, or an HDF5 file."""

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
    """A dataset that episodes are appended to. No other process can do so meanwhile.

    Attributes:
      declared: the fields that the episodes must have; None for a new dataset whose fields are to be learned.
    """

    declared: Schema | None

    @property
    def is_defined(self) -> bool:
        """Whether `define` was called, or the dataset has episodes."""

    @property
    def num_written(self) -> int:
        """How many episodes were appended."""

    def image_formats(self, schema: Schema) -> dict[str, str]:
        """The step fields whose columns hold image files, one a step: path to "png" or "jpeg".

        Args:
          schema: the fields, as `define` is to get them.
        """

    def define(self, schema: Schema, info: Info, episode: Block | None) -> None:
        """States the fields of the episodes of a new dataset.

        It is called again if the first episode gets further fields.

        Args:
          schema: the fields.
          info: what the dataset says of itself.
          episode: the episode that was appended, with the fields of the schema; None if there is none.

        Raises:
          KabukiError: it cannot be written.
        """

    def append(self, episode: Block) -> None:
        """Adds an episode, which is on the disk when this returns.

        Raises:
          KabukiError: it cannot be written. The episodes before it are safe.
        """

    def replace_last(self, episode: Block) -> None:
        """Replaces the episode that was appended last.

        Raises:
          KabukiError: it cannot be written. The episode stays as it was.
        """

    def remove_last(self) -> None:
        """Removes the episode that was appended last."""

    def close(self) -> None:
        """Adds all episodes to the dataset, and lets other processes record to it.

        Raises:
          KabukiError: they cannot be added. All are kept.
        """

    def release(self) -> None:
        """Lets other processes record to it."""


def open_destination(
    path: str | os.PathLike[str], split: str, config: tfds.rlds.rlds_base.DatasetConfig | None
) -> Destination:
    """Opens an HDF5 file if the path ends like one, else an RLDS dataset.

    Args:
      path: `hopper.hdf5`; or `runs/hopper` or `runs/hopper/1.0.0`.
      split: name of the split.
      config: the features of a new dataset.

    Raises:
      KabukiError: nothing can be recorded there.
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
        raise KabukiError(f"{path}: nothing can be recorded there ({e.strerror or e})") from e
