"""Finds damaged episodes, skips them, and reports skipped episodes to the user."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np

from kabuki_rlds.data.source import Skipped, Source
from kabuki_rlds.errors import DamagedDataError, KabukiError, MissingDependencyError
from kabuki_rlds.files import signals

_log = logging.getLogger("kabuki_rlds")

#: The number of skipped episodes that warnings list. The written file lists all of them.
_NAMED = 20
#: The number of episodes that are read together when searching for damaged ones.
_WINDOW = 1024


class NothingLeftError(DamagedDataError):
    """No episode of a source can be read.

    Attributes:
      skipped: the episodes and why each cannot be read.
    """

    def __init__(self, label: str, skipped: Sequence[Skipped]):
        count = sum(loss.count for loss in skipped)
        if count == 1:
            super().__init__(skipped[0].why, file=skipped[0].path)
        else:
            super().__init__(f"none of the {count:,} episodes can be read; the first: {skipped[0]}", file=label)
        self.skipped = list(skipped)


class Selectable(Source, Protocol):
    """A source with random access to its episodes."""

    def select(self, episodes: np.ndarray) -> Selectable:
        """A source with the episodes of the given indices, in that order. Close it before this source."""

    def record_of(self, episode: int) -> tuple[str, int]:
        """(path of the file that holds an episode, index of the episode in that file)."""


_Selectable = TypeVar("_Selectable", bound=Selectable)


def skipped_for(path: str, record: int, error: Exception) -> Skipped:
    """The report of an episode that is skipped because of an error. A path at the start of its message is removed."""
    return Skipped(path, record, 1, str(error).removeprefix(f"{path}: "))


def report(label: str, skipped: Sequence[Skipped]) -> None:
    """Logs a warning for each skipped episode, up to a limit. `label` is the name of the source."""
    for loss in skipped[:_NAMED]:
        _log.warning("%s; left out", loss)
    if len(skipped) > _NAMED:
        _log.warning("%s: %d more warnings of this kind are not shown", label, len(skipped) - _NAMED)


def skip_damaged(source: _Selectable) -> _Selectable:
    """The source without its damaged episodes. The whole source is read to find them.

    Raises:
      NothingLeftError: all episodes are damaged.
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
    """Yields (index, error) for each episode that cannot be read."""
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
                # The damaged episode is the last one that began, or a later one.
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
    except MissingDependencyError:
        raise
    except KabukiError as e:
        return e
    return None
