"""`episodes/last_is_step` of a Kabuki file: whether the last row of each episode is a step (rule 3)."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING

import h5py
import numpy as np

from kabuki_rlds.convention import REWARD, is_number
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.formats.hdf5 import layout
from kabuki_rlds.formats.hdf5.fixed import FixedReader
from kabuki_rlds.last_row import LastRows, carries_value

if TYPE_CHECKING:
    from kabuki_rlds.formats.hdf5.reader import KabukiSource

_log = logging.getLogger("kabuki_rlds")

NAME = "last_is_step"
PATH = f"{layout.EPISODES}/{NAME}"


def stated(file: h5py.File, num_episodes: int) -> LastRows | None:
    """What a file states; None if it does not. A file of format 1.1 without the dataset states false everywhere.

    Raises:
      ValueError: the dataset is not one flag an episode.
      OSError: it cannot be read.
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
    """Writes the dataset: bool, (episodes,)."""
    file.create_dataset(PATH, data=is_step, dtype=bool, chunks=True if len(is_step) else None, maxshape=(None,))


def warn_if_unstated(source: KabukiSource) -> None:
    """Warns, once a process, of a file that does not say what its last rows are, if they carry rewards."""
    if source.last_rows is not None:
        return
    count = _rewarded(source)
    if count:
        _warn(source.path, count, source.num_episodes)


@functools.cache
def _warn(path: str, count: int, num_episodes: int) -> None:
    _log.warning(
        "%s: the file does not say whether last rows are steps, so they are taken for observations, but %s of %s "
        "carry a reward. If they are steps: `kabuki-rlds convert %s NEW.hdf5 --last-row step`, or last_row='step' in "
        "Python",
        path, f"{count:,}", f"{num_episodes:,}", path,
    )  # fmt: skip


def _rewarded(source: KabukiSource) -> int:
    """How many last rows carry a reward that is neither zero nor NaN; 0 if they cannot be read."""
    field = source.schema.steps.get(REWARD)
    if field is None or not field.is_fixed or not is_number(field.dtype):
        return 0
    last = source.ends[source.ends > source.starts] - 1
    rewards = np.zeros((len(last), *(d or 0 for d in field.shape)), field.dtype)
    try:
        reader = source.reader(REWARD)
        assert isinstance(reader, FixedReader)
        reader.take_into(rewards, last, np.arange(len(last)))
    except (KabukiError, OSError, ValueError, RuntimeError):
        # Whoever reads the column reports the damage, with its rows.
        return 0
    return int(np.count_nonzero(carries_value(rewards)))
