"""Offsets: at which rows, relative to the step of a sample, each field is read."""

from __future__ import annotations

import dataclasses
import functools
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from kabuki_rlds.data.block import Column
from kabuki_rlds.data.rules import ACTION, DISCOUNT, REWARD
from kabuki_rlds.data.schema import Field, is_within
from kabuki_rlds.errors import InvalidArgumentError
from kabuki_rlds.loading.samples import FLAG, blanked
from kabuki_rlds.loading.table import Table, Take
from kabuki_rlds.loading.table_episodes import Episodes

#: Steps relative to the step of an index; floats are seconds.
Offsets: TypeAlias = Iterable[int] | Iterable[float]
Pad: TypeAlias = Literal["edge", "zero"]

#: The name of a padding mask is that of its field, with this at the end.
IS_PAD = "_is_pad"

#: Fields whose values in a last row without an action are padding (rule 3).
_WITH_ACTION = (ACTION, REWARD, DISCOUNT)
#: Tolerance for offsets in seconds: the largest distance from an integer number of steps, in steps.
_STEP_TOLERANCE = 1e-3
_FARTHEST = 1 << 40


@dataclasses.dataclass(frozen=True)
class OffsetWindow:
    """A group of fields with the same offsets and the same valid rows.

    Attributes:
      offsets: int64, (offsets,). None means that only the step itself is read, without an axis for offsets.
      needs_action: whether only rows with an action are valid.
      paths: paths of the fields.
    """

    offsets: np.ndarray | None
    needs_action: bool
    paths: tuple[str, ...]

    @property
    def lead(self) -> tuple[int, ...]:
        """Shape of a sample in rows."""
        return () if self.offsets is None else (len(self.offsets),)

    @property
    def steps(self) -> np.ndarray:
        return np.zeros(1, np.int64) if self.offsets is None else self.offsets

    def ends(self, episodes: Episodes) -> np.ndarray:
        """The row after the last valid row of each episode: int64."""
        return episodes.action_ends if self.needs_action else episodes.ends


class OffsetSamples:
    """Steps with an action, each with the rows at some offsets from it. The step itself is the anchor.

    Args:
      stored: the step fields to read.
      windows: the offsets of each field.
      pad: how to fill rows outside of the episode; None serves only samples without such rows.

    Raises:
      InvalidArgumentError: a field has the name of a padding mask.
    """

    def __init__(self, stored: Mapping[str, Field], windows: Sequence[OffsetWindow], pad: Pad | None):
        self.windows, self._pad = windows, pad
        self.leads: dict[str, tuple[int, ...]] = {}
        for window in windows:
            self.leads.update(dict.fromkeys(window.paths, window.lead))
        self.fields = dict(stored)
        padded = [path for path, lead in self.leads.items() if lead and pad is not None]
        for path in padded:
            if path + IS_PAD in stored:
                raise InvalidArgumentError(
                    f"fields: the field {path + IS_PAD!r} of the file has the name of the padding mask of {path!r}; "
                    "deselect one of the two fields"
                )
            self.fields[path + IS_PAD] = FLAG
            self.leads[path + IS_PAD] = self.leads[path]
        self.rows = max(len(window.steps) for window in windows)
        self.back = max(0, -min(int(window.steps.min()) for window in windows))
        self.reach = max(0, max(int(window.steps.max()) for window in windows))

    def anchors(self, episodes: Episodes) -> tuple[np.ndarray, np.ndarray]:
        first, end = episodes.starts, episodes.action_ends
        if self._pad is None:
            for window in self.windows:
                first = np.maximum(first, episodes.starts - window.steps.min())
                end = np.minimum(end, window.ends(episodes) - window.steps.max())
        return first, np.maximum(end - first, 0)

    def gather(self, take: Take, anchors: np.ndarray, episodes: Episodes) -> dict[str, Column]:
        columns: dict[str, Column] = {}
        for window in self.windows:
            rows = anchors[:, None] + window.steps
            first, end = episodes.starts[:, None], window.ends(episodes)[:, None]
            outside = ((rows < first) | (rows >= end)).reshape(-1)
            columns.update(take(window.paths, np.clip(rows, first, end - 1).reshape(-1)))
            for path in window.paths:
                if path + IS_PAD in self.leads:
                    # A copy, because the caller may modify the masks.
                    columns[path + IS_PAD] = outside.copy()
        return columns

    def finish(self, columns: dict[str, Column]) -> dict[str, Column]:
        finished: dict[str, Column] = {}
        for path in self.fields:
            finished[path], is_pad = columns[path], columns.get(path + IS_PAD)
            if self._pad == "zero" and isinstance(is_pad, np.ndarray) and is_pad.any():
                finished[path] = blanked(columns[path], ~is_pad, self.fields[path].shape)
        return finished

    def check_long_enough(self, episodes: Episodes, label: str) -> None:
        """Checks that there are samples, if there are actions.

        Raises:
          InvalidArgumentError: no episode is long enough for the offsets.
        """
        if not self.anchors(episodes)[1].any() and episodes.num_actions.any():
            raise InvalidArgumentError(
                f"offsets: they span {self.reach + self.back + 1} rows, but the longest episode of {label} has "
                f"{int(episodes.lengths.max())}, so there are no samples; pad='edge' or pad='zero' fills missing rows"
            )


def offset_windows(table: Table, offsets: Mapping[str, Offsets], label: str) -> list[OffsetWindow]:
    """Groups the fields of a table by offsets and valid rows."""
    rate = functools.cache(lambda: table.rate_hz)
    steps = {name: _steps(name, chosen, rate, label) for name, chosen in offsets.items()}
    for name in steps:
        if not any(is_within(path, name) for path in table.stored):
            raise InvalidArgumentError(
                f"offsets: {label} has no step field {name!r} among those that are read ({', '.join(table.stored)})"
            )
    groups: dict[tuple[tuple[int, ...] | None, bool], list[str]] = {}
    for path in table.stored:
        # Offsets of a field take precedence over those of its group: the longest name is the most specific.
        names = [name for name in steps if is_within(path, name)]
        chosen = steps[max(names, key=len)] if names else None
        needs_action = any(is_within(path, name) for name in _WITH_ACTION)
        groups.setdefault((chosen, needs_action), []).append(path)
    return [
        OffsetWindow(None if chosen is None else np.array(chosen, np.int64), needs_action, tuple(paths))
        for (chosen, needs_action), paths in groups.items()
    ]


def _steps(name: str, offsets: Offsets, rate: Any, label: str) -> tuple[int, ...]:
    """Converts offsets to steps."""
    chosen = list(offsets)
    if not chosen:
        raise InvalidArgumentError(f"offsets: {name!r} has no offsets; remove it to read only the step itself")
    if all(isinstance(offset, numbers.Integral) for offset in chosen):
        steps = np.array([int(offset) for offset in chosen], object)
    elif all(isinstance(offset, numbers.Real) and np.isfinite(float(offset)) for offset in chosen):
        hertz = rate()
        if hertz is None:
            raise InvalidArgumentError(
                f"offsets: {name!r} has offsets in seconds, but {label} has no attribute rate_hz; give integers (steps)"
            )
        exact = np.array([float(offset) * hertz for offset in chosen])
        steps = np.rint(exact)
        wrong = np.flatnonzero(np.abs(exact - steps) > _STEP_TOLERANCE)
        if len(wrong):
            raise InvalidArgumentError(
                f"offsets: {chosen[wrong[0]]} s of {name!r} is {exact[wrong[0]]:g} steps at {hertz:g} Hz; an offset "
                "must be an integer number of steps"
            )
    else:
        raise InvalidArgumentError(f"offsets: {name!r} has {chosen!r}; give integers (steps) or floats (seconds)")
    if any(abs(step) > _FARTHEST for step in steps):
        raise InvalidArgumentError(f"offsets: {name!r} has an offset of more than {_FARTHEST:,} steps")
    return tuple(int(step) for step in steps)


def check_pad(pad: str | None) -> None:
    """Checks the argument `pad`.

    Raises:
      InvalidArgumentError: it is not a `Pad` or None.
    """
    if pad not in (None, "edge", "zero"):
        raise InvalidArgumentError(f"pad is {pad!r}, expected 'edge', 'zero' or None")
