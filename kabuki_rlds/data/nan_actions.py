"""Counts rows whose action has NaN. Training on such a row turns the weights of a network into NaN.

`convert`, `build`, `export`, `validate` and `inspect` report these rows. If the last row of an episode is only an
observation, its action is padding and is not counted.
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

#: The number of rows that a message lists.
_NAMED = 5


@dataclasses.dataclass(frozen=True)
class NanRows:
    """The rows of an action field that have NaN.

    Attributes:
      field: path of the field.
      count: the number of rows with NaN.
      rows: the indices of the first few of these rows.
    """

    field: str
    count: int
    rows: tuple[int, ...]

    def __str__(self) -> str:
        named = ", ".join(map(str, self.rows)) + (", …" if self.count > len(self.rows) else "")
        return f"{self.field}: NaN in {self.count:,} row{'s' if self.count > 1 else ''} ({named})"


class NanActionCounter:
    """Counts rows with NaN in their actions over consecutive blocks.

    Call `observe` with each block, then `finish`. Memory use grows only with the number of last rows that have NaN.

    Args:
      fields: the step fields of the blocks.
    """

    def __init__(self, fields: Mapping[str, Field]):
        self.fields = [path for path, field in fields.items() if is_within(path, ACTION) and _may_have_nan(field)]
        self._rows = 0
        self._episodes = 0
        self._counts = dict.fromkeys(self.fields, 0)
        self._first: dict[str, list[int]] = {path: [] for path in self.fields}
        #: (row index, episode index) of each last row with NaN. `finish` decides which of them count.
        self._last: dict[str, list[np.ndarray]] = {path: [] for path in self.fields}
        #: (row index, episode index) of the last row of the previous block, if it has NaN. Only the next block
        #: shows whether this row is the last of its episode.
        self._pending: dict[str, np.ndarray] = {}

    def observe(self, block: Block) -> None:
        """Counts the rows of the next block."""
        if block.num_steps and self.fields:
            begins = block.begins[:-1]
            self._count_pending(ends=bool(begins[0]))
            episode_of = self._episodes + block.episode_of
            for path in self.fields:
                rows = np.flatnonzero(_has_nan(block.steps[path]))
                number = np.stack([rows + self._rows, episode_of[rows]], axis=1)
                if len(rows) and rows[-1] == block.num_steps - 1:
                    self._pending[path] = number[-1:]
                    rows, number = rows[:-1], number[:-1]
                is_last = begins[rows + 1]
                self._last[path].append(number[is_last])
                self._count(path, number[~is_last, 0])
        self._rows += block.num_steps
        self._episodes += block.num_episodes

    def finish(self, last_is_step: np.ndarray) -> list[NanRows]:
        """One entry for each field that has NaN. Call this after the last block.

        Args:
          last_is_step: whether the last row of each episode is a step: bool, (episodes,).
        """
        self._count_pending(ends=True)
        found = []
        for path in self.fields:
            last = np.concatenate([np.zeros((0, 2), np.int64), *self._last.pop(path, [])])
            self._count(path, last[last_is_step[last[:, 1]], 0])
            if self._counts[path]:
                found.append(NanRows(path, self._counts[path], tuple(sorted(self._first[path])[:_NAMED])))
        return found

    def _count_pending(self, ends: bool) -> None:
        for path, number in self._pending.items():
            if ends:
                self._last[path].append(number)
            else:
                self._count(path, number[:, 0])
        self._pending = {}

    def _count(self, path: str, rows: np.ndarray) -> None:
        self._counts[path] += len(rows)
        self._first[path] = [*self._first[path], *rows[:_NAMED].tolist()]


def find_nan_actions(source: Source) -> list[NanRows]:
    """Reads the actions of a source and returns one entry for each action field that has NaN.

    Raises:
      KabukiError: the actions cannot be read.
    """
    counter = NanActionCounter(source.schema.steps)
    for block in source.blocks(only=counter.fields) if counter.fields else ():
        counter.observe(block)
    known = source.last_rows
    return counter.finish(np.zeros(source.num_episodes, bool) if known is None else known.is_step)


def warn_of_nan(found: Iterable[NanRows], label: str) -> None:
    """Logs a warning for each entry. `label` is the name of the source."""
    for each in found:
        _log.warning("%s: %s", label, each)


def _may_have_nan(field: Field) -> bool:
    return (field.dtype.kind == "f" or field.dtype == BFLOAT16) and not field.encoded and not field.is_derived


def _has_nan(column: Column) -> np.ndarray:
    """Whether each row has NaN: bool, (rows,)."""
    if isinstance(column, np.ndarray):
        # `np.isnan` does not accept bfloat16.
        return _any(column != column)
    at = np.flatnonzero(_any(column.values != column.values))
    # Find the row of each element. For nested lists, find the enclosing list level by level.
    for splits in (column.splits,) if isinstance(column, Ragged) else reversed(column.splits):
        at = np.searchsorted(splits, at, side="right") - 1
    found = np.zeros(len(column), bool)
    found[at] = True
    return found


def _any(flags: np.ndarray) -> np.ndarray:
    found: np.ndarray = flags.any(axis=tuple(range(1, flags.ndim)))
    return found
