"""Decides whether the last row of an episode is a step, or only an observation (rule 3).

RLDS stores the last observation of an episode in a row of its own; the action, reward and
discount of this row are padding. Many datasets store a real step in the last row instead: they
have T actions in T rows, and no observation after the last action. The position of a row does
not show which of the two it is. The first of these that gives an answer decides, once per
dataset:

1. The user (`last_row="step"` or `"observation"`).
2. The source, if it states the answer (`episodes/last_is_step` of a Kabuki file, or the metadata
   of an RLDS dataset that was built from one).
3. The layout of the source, if the layout defines the answer.
4. Rule 4: if `discount` is 0 on the row before the last row of all terminated episodes, last
   rows are observations.
5. The data: if rule 4 is broken, and last rows have nonzero rewards, or actions that are not
   zero, not NaN and not copies of the previous row, last rows are steps. They are also steps if
   `is_last` is false on all of them.
6. RLDS's definition: last rows are observations.

If 4 and 5 conflict, last rows are steps, because a step that is taken for padding would be lost.
A warning reports evidence against the decision.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Literal, TypeAlias

import numpy as np

from kabuki_rlds.arguments import argument
from kabuki_rlds.data.block import Block, Column
from kabuki_rlds.data.rules import ACTION, DISCOUNT, IS_LAST, IS_TERMINAL, REWARD, is_flag_or_number
from kabuki_rlds.data.schema import Field, is_within
from kabuki_rlds.errors import InvalidArgumentError

_log = logging.getLogger("kabuki_rlds")

#: The values of the `last_row` option.
LastRow: TypeAlias = Literal["step", "observation"]
CHOICES: tuple[LastRow, ...] = ("step", "observation")


@dataclasses.dataclass(frozen=True)
class LastRows:
    """The decision for each episode of a source: is its last row a step or an observation?

    Attributes:
      is_step: bool, (episodes,). True: the last row is a step with its own action, reward and
        discount, and no observation follows. False: the last row holds only an observation.
      reason: why, for messages.
      conflict: evidence against the decision, for a warning; "" if there is none.
    """

    is_step: np.ndarray
    reason: str
    conflict: str = ""

    @classmethod
    def of_all(cls, is_step: bool, num_episodes: int, reason: str, conflict: str = "") -> LastRows:
        """The same decision for all episodes."""
        return cls(np.full(num_episodes, is_step), reason, conflict)

    @classmethod
    def by_user(cls, last_row: LastRow, num_episodes: int) -> LastRows:
        """The decision that the user gave.

        Raises:
          KabukiError: `last_row` is neither "step" nor "observation".
        """
        check_choice(last_row)
        return cls.of_all(last_row == "step", num_episodes, f"set by last_row={last_row}")

    def __getitem__(self, episodes: slice | np.ndarray) -> LastRows:
        return dataclasses.replace(self, is_step=self.is_step[episodes])

    @property
    def num_steps(self) -> int:
        """The number of last rows that are steps."""
        return int(np.count_nonzero(self.is_step))

    @property
    def num_observations(self) -> int:
        """The number of last rows that are observations."""
        return len(self.is_step) - self.num_steps

    def rows(self, block: Block, num_before: int) -> np.ndarray:
        """The decision for the episode of each row of a block: bool, (rows,).

        Args:
          block: consecutive rows of the source.
          num_before: the number of episodes that begin before the block.
        """
        if not len(self.is_step):
            return np.zeros(block.num_steps, bool)
        return self.is_step[num_before + block.episode_of]

    def __str__(self) -> str:
        counts = ((self.num_steps, "a step", "steps"), (self.num_observations, "an observation", "observations"))
        said = [f"{one if n == 1 else many} in {n:,} of {len(self.is_step):,} episodes" for n, one, many in counts if n]
        return f"{' and '.join(said) or 'none'} ({self.reason})"


def check_choice(last_row: str | None) -> None:
    """Checks that the `last_row` option is None, "step" or "observation".

    Raises:
      InvalidArgumentError: it has another value.
    """
    if last_row is not None and last_row not in CHOICES:
        raise InvalidArgumentError(f"{argument('last_row')} is {last_row!r}, expected 'step' or 'observation'")


def warn_of_conflict(last_rows: LastRows, label: str) -> None:
    """Warns if there is evidence against the decision. `label` is the name of the source."""
    if last_rows.conflict:
        kind = "steps" if last_rows.num_steps else "observations"
        _log.warning(
            "%s: last rows are treated as %s, although %s. If this is wrong, give %s",
            label, kind, last_rows.conflict, argument("last_row", "observation" if last_rows.num_steps else "step"),
        )  # fmt: skip


def joined(parts: list[LastRows]) -> LastRows:
    """Concatenates the decisions of several sources."""
    reasons = "; ".join(dict.fromkeys(part.reason for part in parts))
    return LastRows(np.concatenate([np.zeros(0, bool), *(part.is_step for part in parts)]), reasons)


class Evidence:
    """Decides by rule 4 and by the data (4 and 5 of the list above), from counts over all blocks of a source.

    Call `observe` with each block, then `decide`. Memory use is constant.

    Args:
      fields: the step fields of the blocks. Fields that were derived or filled in are ignored.
    """

    def __init__(self, fields: Mapping[str, Field]):
        def is_usable(path: str) -> bool:
            field = fields.get(path)
            return field is not None and not field.derived and field.is_fixed and is_flag_or_number(field.dtype)

        self._actions = [path for path in fields if is_within(path, ACTION) and is_usable(path)]
        # Rule 2 requires one discount and one flag per row. A reward may have several numbers.
        one = [path for path in (DISCOUNT, IS_TERMINAL, IS_LAST) if path in fields and fields[path].shape in ((), (1,))]
        self._others = [path for path in (REWARD, *one) if is_usable(path)]
        # The last two rows of the previous blocks: they are needed if an episode ends with a block.
        self._tail: dict[str, np.ndarray] = {}
        self._tail_begins = np.zeros(0, bool)
        # Numbers of episodes:
        self._ends = 0  # that have ended
        self._terminated = 0  # whose last row is terminal, except episodes of one row
        self._zero_discount_before = 0  # of these, with discount 0 on the row before the last one
        self._with_reward = 0  # whose last row has a nonzero reward
        self._with_action = 0  # whose last row has an action that is not zero, NaN or a copy
        self._step_like = 0  # whose last row has such a reward or action
        self._without_is_last = 0  # whose last row does not have is_last

    @property
    def fields(self) -> list[str]:
        """The step fields that `observe` reads."""
        return [*self._actions, *self._others]

    def observe(self, block: Block) -> None:
        """Counts the evidence in the next block."""
        if not block.num_steps:
            return
        columns = {path: _as_array(block.steps[path]) for path in self.fields}
        begins = block.begins[:-1]
        # A row is the last of its episode if the next row begins an episode. Row -1 is the last row of the
        # previous block.
        last = np.flatnonzero(begins) - 1
        self._count(columns, begins, last if len(self._tail_begins) else last[last >= 0])
        tail = slice(max(block.num_steps - 2, 0), None)
        kept = {path: column[tail].copy() for path, column in columns.items()}
        if block.num_steps == 1 and len(self._tail_begins):
            kept = {path: np.concatenate([self._tail[path][-1:], column]) for path, column in kept.items()}
            begins = np.concatenate([self._tail_begins[-1:], begins])
        self._tail, self._tail_begins = kept, begins[-2:].copy()

    def decide(self, num_episodes: int) -> LastRows:
        """The decision for all episodes. Call this after the last block."""
        if len(self._tail_begins):
            # The last row of the source also ends an episode.
            self._count({path: column[:0] for path, column in self._tail.items()}, np.zeros(0, bool), np.array([-1]))
            self._tail_begins = np.zeros(0, bool)
        is_step, reason, conflict = self._decision()
        return LastRows.of_all(is_step, num_episodes, reason, conflict)

    def _decision(self) -> tuple[bool, str, str]:
        broken = self._terminated - self._zero_discount_before
        data = (
            f"{self._step_like:,} of {self._ends:,} last rows look like steps: {self._with_reward:,} have a reward, "
            f"{self._with_action:,} have an action"
        )
        if self._ends and self._without_is_last == self._ends:
            return True, "is_last is false on the last row of every episode, so it marks no observation", ""
        if self._terminated and not broken:
            return (
                False,
                f"rule 4: discount is 0 before the last row of all {self._terminated:,} terminated episodes",
                "",
            )
        if not self._step_like:
            return False, f"the data: none of {self._ends:,} last rows has a new action or a nonzero reward", ""
        if not self._terminated:
            # Without terminated episodes rule 4 does not apply, so RLDS's definition does.
            why = "there are no terminated episodes" if DISCOUNT in self._others else "there is no discount"
            return False, f"rule 4 cannot be checked: {why}", data
        reason = f"the data: {data}; rule 4 is broken in {broken:,} of {self._terminated:,} terminated episodes"
        conflict = ""
        if self._zero_discount_before:
            conflict = (
                f"discount is 0 before the last row of {self._zero_discount_before:,} terminated episodes, "
                "as if that row were an observation"
            )
        elif 2 * self._step_like < self._ends:
            conflict = f"only {data}"
        return True, reason, conflict

    def _count(self, columns: Mapping[str, np.ndarray], begins: np.ndarray, last: np.ndarray) -> None:
        """Counts the episodes that end at the rows `last`. Rows -1 and -2 are in `self._tail`."""
        if not len(last):
            return
        tail_begins = np.concatenate([np.zeros(2 - len(self._tail_begins), bool), self._tail_begins])
        is_alone = _rows_at(begins, tail_begins, last)

        def rows(path: str, at: np.ndarray) -> np.ndarray:
            tail = self._tail.get(path, columns[path][:0])
            padding = np.zeros((2 - len(tail), *tail.shape[1:]), tail.dtype)
            return _rows_at(columns[path], np.concatenate([padding, tail]), at)

        self._ends += len(last)
        before = np.maximum(last - 1, -2)
        if IS_LAST in self._others:
            self._without_is_last += int(np.count_nonzero(~rows(IS_LAST, last).astype(bool).reshape(-1)))
        if IS_TERMINAL in self._others and DISCOUNT in self._others:
            terminated = rows(IS_TERMINAL, last).astype(bool).reshape(-1) & ~is_alone
            self._terminated += int(np.count_nonzero(terminated))
            self._zero_discount_before += int(np.count_nonzero(terminated & (rows(DISCOUNT, before).reshape(-1) == 0)))
        like = np.zeros(len(last), bool)
        if REWARD in self._others:
            like = carries_value(rows(REWARD, last))
            self._with_reward += int(np.count_nonzero(like))
        acted = np.zeros(len(last), bool)
        for path in self._actions:
            action, previous = rows(path, last), rows(path, before)
            is_copy = ~is_alone & ~_any((action != previous) & ~((action != action) & (previous != previous)))
            acted |= carries_value(action) & ~is_copy
        self._with_action += int(np.count_nonzero(acted))
        self._step_like += int(np.count_nonzero(like | acted))


def _as_array(column: Column) -> np.ndarray:
    assert isinstance(column, np.ndarray), "the field has a fixed shape"
    return column


def _rows_at(column: np.ndarray, tail: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The given rows of a column. Rows -1 and -2 are taken from `tail`, which has two rows."""
    inside = rows >= 0
    found = np.empty((len(rows), *column.shape[1:]), column.dtype)
    found[inside] = column[rows[inside]]
    found[~inside] = tail[rows[~inside]]
    return found


def carries_value(column: np.ndarray) -> np.ndarray:
    """Whether a row has a number that is neither zero nor NaN: bool, (rows,)."""
    return _any(_is_set(column))


def _is_set(values: np.ndarray) -> np.ndarray:
    """Whether each value is neither zero nor NaN."""
    return (values != 0) & (values == values)


def _any(flags: np.ndarray) -> np.ndarray:
    """Whether any flag of a row is true: bool, (rows,)."""
    found: np.ndarray = flags.any(axis=tuple(range(1, flags.ndim)))
    return found
