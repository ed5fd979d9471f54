"""Counts NaN in actions: rows that nobody can train on, and that spread NaN through a network's weights.

`convert`, `build`, `export`, `validate` and `inspect` report them. The action of a last row that is only an observation
is padding, and is not counted.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping

import numpy as np

from kabuki_rlds.data.block import Block, Column, Ragged
from kabuki_rlds.data.rules import ACTION
from kabuki_rlds.data.schema import BFLOAT16, Field, is_within
from kabuki_rlds.data.source import Source

_log = logging.getLogger("kabuki_rlds")

#: How many rows a message names.
_NAMED = 5


@dataclasses.dataclass(frozen=True)
class NanRows:
    """The rows of one field of the action that have a NaN.

    Attributes:
      field: its path.
      count: how many rows.
      rows: the first of them.
    """

    field: str
    count: int
    rows: tuple[int, ...]

    def __str__(self) -> str:
        named = ", ".join(map(str, self.rows)) + (", …" if self.count > len(self.rows) else "")
        return f"{self.field}: NaN in {self.count:,} row{'s' if self.count > 1 else ''} ({named})"


class NanActionCounter:
    """Counts them over consecutive blocks. Memory grows by one number for each last row with a NaN.

    Args:
      fields: the step fields of the blocks.
    """

    def __init__(self, fields: Mapping[str, Field]):
        self.fields = [path for path, field in fields.items() if is_within(path, ACTION) and _may_have_nan(field)]
        self._rows = 0
        self._episodes = 0
        self._counts = dict.fromkeys(self.fields, 0)
        self._first: dict[str, list[int]] = {path: [] for path in self.fields}
        #: For each last row with a NaN: its number, and its episode.
        self._last: dict[str, list[np.ndarray]] = {path: [] for path in self.fields}
        #: The last row of the blocks so far, if it has a NaN: whether it ends its episode, the next block shows.
        self._open: dict[str, np.ndarray] = {}

    def observe(self, block: Block) -> None:
        """Takes the next block."""
        if block.num_steps and self.fields:
            begins = block.begins[:-1]
            self._settle(ends=bool(begins[0]))
            episode_of = self._episodes + block.episode_of
            for path in self.fields:
                rows = np.flatnonzero(_has_nan(block.steps[path]))
                number = np.stack([rows + self._rows, episode_of[rows]], axis=1)
                if len(rows) and rows[-1] == block.num_steps - 1:
                    self._open[path] = number[-1:]
                    rows, number = rows[:-1], number[:-1]
                is_last = begins[rows + 1]
                self._last[path].append(number[is_last])
                self._count(path, number[~is_last, 0])
        self._rows += block.num_steps
        self._episodes += block.num_episodes

    def finish(self, last_is_step: np.ndarray) -> list[NanRows]:
        """What was found, once all blocks were observed.

        Args:
          last_is_step: for each episode whether its last row is a step: bool, (episodes,).
        """
        self._settle(ends=True)
        found = []
        for path in self.fields:
            last = np.concatenate([np.zeros((0, 2), np.int64), *self._last.pop(path, [])])
            self._count(path, last[last_is_step[last[:, 1]], 0])
            if self._counts[path]:
                found.append(NanRows(path, self._counts[path], tuple(sorted(self._first[path])[:_NAMED])))
        return found

    def _settle(self, ends: bool) -> None:
        for path, number in self._open.items():
            if ends:
                self._last[path].append(number)
            else:
                self._count(path, number[:, 0])
        self._open = {}

    def _count(self, path: str, rows: np.ndarray) -> None:
        self._counts[path] += len(rows)
        self._first[path] = [*self._first[path], *rows[:_NAMED].tolist()]


def find_nan_actions(source: Source) -> list[NanRows]:
    """Those of a file, of which only the actions are read.

    Raises:
      KabukiError: they cannot be read.
    """
    counter = NanActionCounter(source.schema.steps)
    for block in source.blocks(only=counter.fields) if counter.fields else ():
        counter.observe(block)
    known = source.last_rows
    return counter.finish(np.zeros(source.num_episodes, bool) if known is None else known.is_step)


def warn_of_nan(found: Iterable[NanRows], label: str) -> None:
    """Warns of them; the label says where they are."""
    for each in found:
        _log.warning("%s: %s", label, each)


def _may_have_nan(field: Field) -> bool:
    return (field.dtype.kind == "f" or field.dtype == BFLOAT16) and not field.encoded and not field.is_derived


def _has_nan(column: Column) -> np.ndarray:
    """Whether a row has a NaN: bool, (rows,)."""
    if isinstance(column, np.ndarray):
        # `np.isnan` does not take bfloat16.
        return _any(column != column)
    at = np.flatnonzero(_any(column.values != column.values))
    # The row of each element; of lists in lists, the list that it is in, level by level.
    for splits in (column.splits,) if isinstance(column, Ragged) else reversed(column.splits):
        at = np.searchsorted(splits, at, side="right") - 1
    found = np.zeros(len(column), bool)
    found[at] = True
    return found


def _any(flags: np.ndarray) -> np.ndarray:
    found: np.ndarray = flags.any(axis=tuple(range(1, flags.ndim)))
    return found
