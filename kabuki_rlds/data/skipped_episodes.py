"""Episodes that are left out of a source, since they are damaged or empty."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np

from kabuki_rlds.data.source import Skipped, Source
from kabuki_rlds.errors import DamagedDataError, KabukiError
from kabuki_rlds.files import signals

_log = logging.getLogger("kabuki_rlds")

#: How many losses a warning names; the file that is written names all.
_NAMED = 20
#: How many episodes are read at a time to find those that are damaged.
_WINDOW = 1024


class NothingLeftError(DamagedDataError):
    """No episode of a source can be read.

    Attributes:
      skipped: what is left out.
    """

    def __init__(self, label: str, skipped: Sequence[Skipped]):
        count = sum(loss.count for loss in skipped)
        if count == 1:
            super().__init__(skipped[0].why, file=skipped[0].path)
        else:
            super().__init__(f"none of the {count:,} episodes can be read; the first: {skipped[0]}", file=label)
        self.skipped = list(skipped)


class Selectable(Source, Protocol):
    """A source of which single episodes can be read."""

    def select(self, episodes: np.ndarray) -> Selectable:
        """The episodes of these numbers, in this order, as a source that can be read while this one is open."""

    def record_of(self, episode: int) -> tuple[str, int]:
        """The file of an episode, and the number of the episode there."""


_Selectable = TypeVar("_Selectable", bound=Selectable)


def skipped_for(path: str, record: int, error: Exception) -> Skipped:
    """An episode that is left out because of an error, which may begin with its file."""
    return Skipped(path, record, 1, str(error).removeprefix(f"{path}: "))


def report(label: str, skipped: Sequence[Skipped]) -> None:
    """Warns of episodes that are left out."""
    for loss in skipped[:_NAMED]:
        _log.warning("%s; left out", loss)
    if len(skipped) > _NAMED:
        _log.warning("%s: and %d more places like these", label, len(skipped) - _NAMED)


def skip_damaged(source: _Selectable) -> _Selectable:
    """The source without the episodes that cannot be read. All of it is read to find these.

    Raises:
      NothingLeftError: none can be read.
    """
    skipped = []
    bad = np.zeros(source.num_episodes, bool)
    for number, error in _damaged(source):
        bad[number] = True
        skipped.append(skipped_for(*source.record_of(number), error))
    if not skipped:
        return source
    if bad.all():
        source.close()
        raise NothingLeftError(source.label, [*source.skipped, *skipped])
    report(source.label, skipped)
    selected = source.select(np.flatnonzero(~bad))
    selected.skipped = [*source.skipped, *skipped]
    return selected  # type: ignore[return-value]  # a source selects from its own kind


def _damaged(source: Selectable) -> Iterator[tuple[int, KabukiError]]:
    """The number of each episode that cannot be read, and why."""
    for start in range(0, source.num_episodes, _WINDOW):
        stop = min(start + _WINDOW, source.num_episodes)
        while start < stop:
            begun = 0
            try:
                for block in source.select(np.arange(start, stop)).blocks():
                    signals.check()
                    begun += block.num_episodes
                break
            except KabukiError:
                # It is the episode that the last block goes on with, or one after it.
                first = start + max(begun - 1, 0)
            start = stop
            for number in range(first, stop):
                error = _error(source, number)
                if error is not None:
                    yield number, error
                    start = number + 1
                    break


def _error(source: Selectable, number: int) -> KabukiError | None:
    try:
        for _ in source.select(np.array([number])).blocks():
            signals.check()
    except KabukiError as e:
        return e
    return None
