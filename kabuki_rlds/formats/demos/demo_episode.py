"""An episode of a file of demonstrations: its step fields, which are read on demand, and its episode fields."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kabuki_rlds.errors import DamagedDataError, KabukiError
from kabuki_rlds.formats.demos.row_readers import RowReader
from kabuki_rlds.formats.hdf5.column_reader import READ_ERRORS


class EmptyEpisodeError(KabukiError):
    """An episode without steps. It is left out and reported."""


class CountMismatchError(DamagedDataError):
    """A file states another number of episodes or steps than it has.

    Attributes:
      num_missing: how many of the stated episodes are missing.
    """

    num_missing = 0


@dataclasses.dataclass(frozen=True)
class DemoEpisode:
    """One episode of an open file.

    Attributes:
      label: its location in the file, for messages: `data/demo_3`.
      length: number of rows.
      steps: path to the reader of each step field. Each has `length` rows.
      metadata: path to value of each episode field: text, bytes, a number, or an array.
      masks: the names of the masks that list it.
      last_is_step: whether the last row is a step, because no observation follows the last action.
    """

    label: str
    length: int
    steps: Mapping[str, RowReader]
    metadata: Mapping[str, str | bytes | np.generic | np.ndarray]
    masks: frozenset[str] = frozenset()
    last_is_step: bool = False


@dataclasses.dataclass(frozen=True)
class UnreadableEpisode:
    """An episode that cannot be read.

    Attributes:
      label: its location in the file, for messages.
      error: why it cannot be read.
    """

    label: str
    error: Exception

    @property
    def is_empty(self) -> bool:
        """Whether it has no steps."""
        return isinstance(self.error, EmptyEpisodeError)


def episode_or_error(label: str, read: Callable[[], DemoEpisode]) -> DemoEpisode | UnreadableEpisode:
    """Reads an episode. A damaged one is returned as such, so that the other episodes of the file can be read.

    Args:
      label: its location in the file, for messages.
      read: makes the episode.
    """
    try:
        return read()
    except (KabukiError, *READ_ERRORS) as e:
        return UnreadableEpisode(label, e)


def check_count(
    file: str | os.PathLike[str], name: str, stated: Any, count: int, *, of_episodes: bool, group: str = ""
) -> None:
    """Compares a stated number of episodes or steps with the actual one.

    Args:
      file: the file that states it.
      name: the name of the attribute or key.
      stated: the stated number.
      count: the actual number.
      of_episodes: whether it is a number of episodes.
      group: the group that has the attribute.

    Raises:
      CountMismatchError: they differ.
    """
    if not np.array_equal(stated, count):
        is_more = of_episodes and np.ndim(stated) == 0 and np.asarray(stated).dtype.kind in "iu" and stated > count
        says = f"{group} says" if group else "says"
        error = CountMismatchError(
            f"{says} {name} {stated}, but there are {count}; correct the number or the file", file=file
        )
        error.num_missing = int(stated) - count if is_more else 0
        raise error
