"""Warns if last rows carry rewards and the file does not state whether last rows are steps (rule 3)."""

from __future__ import annotations

import functools
import logging

import numpy as np

from kabuki_rlds.arguments import argument
from kabuki_rlds.data.last_row import carries_value
from kabuki_rlds.data.rules import REWARD, is_number
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.formats.hdf5.fixed import FixedReader
from kabuki_rlds.formats.hdf5.source import KabukiSource

_log = logging.getLogger("kabuki_rlds")


def warn_if_unstated(source: KabukiSource) -> None:
    """Warns once per file if last rows carry rewards and the file does not state whether last rows are steps."""
    if source.last_rows is not None:
        return
    count = _rewarded(source)
    if count:
        _warn(source.path, count, source.num_episodes)


@functools.cache
def _warn(path: str, count: int, num_episodes: int) -> None:
    _log.warning(
        "%s: the file does not say whether last rows are steps, so they are taken for observations, but %s of %s "
        "carry a reward. If they are steps, state it with `convert` and %s",
        path, f"{count:,}", f"{num_episodes:,}", argument("last_row", "step"),
    )  # fmt: skip


def _rewarded(source: KabukiSource) -> int:
    """Returns the number of last rows whose reward is neither zero nor NaN. Returns 0 if they cannot be read."""
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
        # The damage is reported when the column is read.
        return 0
    return int(np.count_nonzero(carries_value(rewards)))
