"""Reads and writes `episodes/last_is_step`: whether the last row of each episode is a step (rule 3)."""

from __future__ import annotations

import h5py
import numpy as np

from kabuki_rlds.data.last_row import LastRows
from kabuki_rlds.formats.hdf5 import layout

NAME = "last_is_step"
PATH = f"{layout.EPISODES}/{NAME}"


def stated(file: h5py.File, num_episodes: int) -> LastRows | None:
    """Returns the flags that a file states, or None if a file of format 1.0 has no such dataset.

    In a file of format 1.1 without the dataset, all flags are false.

    Raises:
      ValueError: the dataset does not have one flag per episode.
      OSError: the dataset cannot be read.
    """
    dataset = file.get(PATH)
    if dataset is None:
        if layout.text_attribute(file, "format_version") in ("", "1.0"):
            return None
        return LastRows.of_all(False, num_episodes, "the file states it")
    if not isinstance(dataset, h5py.Dataset) or dataset.shape != (num_episodes,):
        raise ValueError(f"expected one flag for each of the {num_episodes} episodes")
    if dataset.dtype.kind not in "biu":
        raise ValueError(f"has dtype {dataset.dtype}, expected bool")
    values = np.asarray(dataset[:])
    if (values.astype(np.int64) & ~1).any():
        raise ValueError("has values other than 0 and 1")
    return LastRows(values.astype(bool), "the file states it")


def write(file: h5py.File, is_step: np.ndarray) -> None:
    """Writes the flags: bool, (episodes,)."""
    chunks = True if len(is_step) else None
    # Flush it: h5py ignores errors that HDF5 has when Python deletes a dataset.
    file.create_dataset(PATH, data=is_step, dtype=bool, chunks=chunks, maxshape=(None,)).flush()


def append(file: h5py.File, is_step: np.ndarray) -> None:
    """Appends the flags of new episodes: bool, (episodes,).

    If the file has no dataset, it is created only if one of the new flags is true.
    """
    if PATH in file:
        before = file[PATH][:].astype(bool)
        del file[PATH]
    elif is_step.any():
        before = np.zeros(len(file[f"{layout.EPISODES}/start"]) - len(is_step), bool)
    else:
        return
    write(file, np.concatenate([before, is_step]))
