"""Reads the index of episodes: the first row and the origin of each episode."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence

import h5py
import numpy as np

from kabuki_rlds.data import rules
from kabuki_rlds.data.schema import Field
from kabuki_rlds.data.source import Origin
from kabuki_rlds.errors import DamagedDataError
from kabuki_rlds.formats.hdf5 import layout
from kabuki_rlds.formats.hdf5.column_reader import READ_ERRORS


def read_starts(
    file: h5py.File, path: str, fields: Mapping[str, Field], datasets: Mapping[str, h5py.Dataset], num_steps: int
) -> np.ndarray:
    """Returns the first row of each episode, from `episodes/start` or else from the flags: int64, (episodes,).

    Args:
      file: the file.
      path: the path of the file, for messages.
      fields: path to field, for all step fields.
      datasets: path to dataset, for all step fields.
      num_steps: the number of rows of the step fields.

    Raises:
      DamagedDataError: the index is damaged, or there is neither an index nor a flag.
    """
    index = file.get(f"{layout.EPISODES}/start")
    if isinstance(index, h5py.Dataset):
        starts = None
        if index.ndim == 1 and layout.holds_integers(index):
            starts = _read(index, "episodes/start", path).astype(np.int64)
        # Compare instead of subtracting, because differences of hostile values may overflow int64.
        if starts is None or (
            len(starts) and (starts[0] != 0 or (starts[1:] < starts[:-1]).any() or starts[-1] > num_steps)
        ):
            raise DamagedDataError("episodes/start is not an ascending list of rows that begins at 0", file=path)
        if not len(starts) and num_steps:
            raise DamagedDataError(f"episodes/start is empty, but the file has {num_steps} steps", file=path)
        return starts
    for name, shift in ((rules.IS_FIRST, 0), (rules.IS_LAST, 1)):
        field = fields.get(name)
        # Only numbers: NumPy converts any nonempty text to True.
        if field is not None and field.shape in ((), (1,)) and rules.is_flag_or_number(field.dtype):
            flags = _read(datasets[name], name, path).reshape(-1).astype(bool)
            begins = np.roll(flags, shift)
            if num_steps:
                begins[0] = True
            return np.flatnonzero(begins).astype(np.int64)
    raise DamagedDataError("cannot find the episodes: add is_first, is_last or episodes/start", file=path)


def read_origins(
    file: h5py.File, path: str, stated: Sequence[Origin], num_episodes: int
) -> tuple[list[Origin], np.ndarray]:
    """Returns the origins of the episodes, and the number of the origin of each episode: int64, (episodes,).

    If the file does not state where its episodes come from, the file itself is their origin.

    Args:
      file: the file.
      path: the path of the file.
      stated: the origins in the attribute `sources`.
      num_episodes: the number of episodes.

    Raises:
      DamagedDataError: `episodes/source` cannot be read.
    """
    here = os.path.realpath(path)
    index = file.get(f"{layout.EPISODES}/source")
    if isinstance(index, h5py.Dataset) and index.shape == (num_episodes,) and stated and layout.holds_integers(index):
        origin_of = _read(index, "episodes/source", path).astype(np.int64)
        if not len(origin_of) or (origin_of.min() >= 0 and origin_of.max() < len(stated)):
            return [dataclasses.replace(origin, via=(here, *origin.via)) for origin in stated], origin_of
    return [Origin(here, format="kabuki")], np.zeros(num_episodes, np.int64)


def check_lengths(file: h5py.File, path: str, lengths: np.ndarray) -> None:
    """Checks `episodes/length`, if it exists.

    Args:
      file: the file.
      path: the path of the file, for messages.
      lengths: the number of rows of each episode according to `episodes/start`: int64, (episodes,).

    Raises:
      DamagedDataError: the dataset cannot be read, or differs from `lengths`.
    """
    dataset = file.get(f"{layout.EPISODES}/length")
    if not isinstance(dataset, h5py.Dataset):
        return
    is_list = dataset.ndim == 1 and layout.holds_integers(dataset)
    if not is_list or not np.array_equal(_read(dataset, "episodes/length", path), lengths):
        raise DamagedDataError("episodes/length does not match episodes/start", file=path)


def _read(dataset: h5py.Dataset, name: str, path: str) -> np.ndarray:
    try:
        return np.asarray(dataset[:])
    except READ_ERRORS as e:
        raise DamagedDataError(f"{name} cannot be read: {e}", file=path) from e
