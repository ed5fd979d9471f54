"""The Kabuki convention: what the fields are called, and what must hold of them.

A row holds the observation, the action taken after it, and the reward and the
discount that followed (state-action-reward alignment). The last observation of an
episode has a row of its own, `is_last`, whose action, reward and discount are
padding; or, where `episodes/last_is_step` is true, the last row is a step like the
others, and no observation follows it (rule 3). Rules are numbered as in
docs/format.md. Rules 4 and 5 constrain values:

4. Where row t is not last, `discount[t] == 0` exactly where `is_terminal[t + 1]`.
   Where the last row is a step, the episode ends after it: `discount == 0` exactly
   where `is_terminal` on that row itself, and not on the row before.
5. `is_first[0]`; `is_first[t + 1]` exactly where `is_last[t]`; the last row is
   `is_last`; `is_terminal` only where `is_last`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

import numpy as np

from kabuki_rlds.data.schema import BFLOAT16, BYTES, Field, is_within

OBSERVATION = "observation"
ACTION = "action"
REWARD = "reward"
DISCOUNT = "discount"
IS_FIRST = "is_first"
IS_LAST = "is_last"
IS_TERMINAL = "is_terminal"

#: The step fields that are always there (rule 2).
REQUIRED = (OBSERVATION, ACTION, REWARD, DISCOUNT, IS_FIRST, IS_LAST, IS_TERMINAL)
#: Those of them that are booleans.
FLAGS = (IS_FIRST, IS_LAST, IS_TERMINAL)

#: Those that a constant can stand for; where an episode begins and ends is never one.
FILLABLE = (OBSERVATION, ACTION, REWARD, DISCOUNT, IS_TERMINAL)

#: How many rows a violation names.
_ROWS_NAMED = 5

#: (rule, field, message) to the first rows, and how many there are.
_Found: TypeAlias = dict[tuple[int, str, str], tuple[list[int], int]]


@dataclasses.dataclass(frozen=True)
class Violation:
    """One rule, broken in one way by one field.

    Attributes:
      rule: the rule's number.
      field: path of the field, or name of the attribute or group.
      message: what is wrong.
      rows: the first rows where it is, if rows are concerned.
      count: how many there are.
    """

    rule: int
    field: str
    message: str
    rows: tuple[int, ...] = ()
    count: int = 0

    def to_json(self) -> dict[str, Any]:
        """An entry of the attribute `notes`."""
        return {"rule": self.rule, "field": self.field, "count": self.count, "message": self.message}

    @classmethod
    def from_json(cls, entry: Any) -> Violation:
        """An entry of the attribute `notes`.

        Raises:
          ValueError: `rule` or `count` is not an integer, or `field` or `message` not a text.
        """
        stated = entry if isinstance(entry, dict) else {}
        note = cls(stated.get("rule"), stated.get("field"), stated.get("message", ""), count=stated.get("count"))  # type: ignore[arg-type]  # checked below
        if type(note.rule) is not int or type(note.count) is not int:
            raise ValueError("expected the integers `rule` and `count`")
        if not isinstance(note.field, str) or not isinstance(note.message, str):
            raise ValueError("expected the texts `field` and `message`")
        return note

    def __str__(self) -> str:
        text = f"rule {self.rule}: {self.field}: {self.message}"
        if not self.count:
            return text
        if not self.rows:
            return f"{text} ({self.count:,})"
        named = ", ".join(map(str, self.rows))
        if self.count == 1:
            return f"{text} (row {named})"
        return f"{text} ({self.count:,} rows: {named}{', …' if self.count > len(self.rows) else ''})"


def has_field(paths: object, name: str) -> bool:
    """Whether a required field is among `paths`, as a field or as a dict of fields."""
    return any(is_within(path, name) for path in paths)  # type: ignore[attr-defined]


def one_per_row(column: object) -> np.ndarray | None:
    """A column that holds one number a row, as (rows,); None where it does not."""
    if not isinstance(column, np.ndarray) or column.dtype == object:
        return None
    if column.ndim == 1:
        return column
    return column.reshape(-1) if column.size == len(column) else None


def is_number(dtype: np.dtype) -> bool:
    """Whether elements are real numbers; booleans are none."""
    # NumPy has bfloat16 as one of no kind that it knows.
    return dtype.kind in "iuf" or dtype == BFLOAT16


def is_flag_or_number(dtype: np.dtype) -> bool:
    """Whether elements are booleans or real numbers."""
    return dtype.kind == "b" or is_number(dtype)


def is_flag(field: Field) -> bool:
    """Whether a field holds one boolean a row, or one integer, of which `RuleChecker` checks that it is 0 or 1."""
    return field.kind == "array" and field.shape == () and field.dtype.kind in "biu"


def field_violations(paths: Collection[str], fields: Mapping[str, Field]) -> list[Violation]:
    """Rule 2: the fields that are always there, and their types.

    Args:
      paths: all step fields.
      fields: what those of them are that can be read.
    """
    found = []
    for name in REQUIRED:
        if not has_field(paths, name):
            found.append(Violation(2, name, "missing"))
        elif name not in (OBSERVATION, ACTION) and name not in paths:
            found.append(Violation(2, name, "a group, where it is one dataset"))
    for name in FLAGS:
        if name in fields and not is_flag(fields[name]):
            found.append(Violation(2, name, f"{fields[name].describe()}, where it is one boolean a step"))
    reward = fields.get(REWARD)
    if reward is not None and (reward.dtype == BYTES or reward.encoded):
        found.append(Violation(2, REWARD, f"{reward.describe()}, where it is a number"))
    discount = fields.get(DISCOUNT)
    if discount is not None and (discount.shape not in ((), (1,)) or not is_number(discount.dtype)):
        found.append(Violation(2, DISCOUNT, f"{discount.describe()}, where it is one number a step"))
    return found


class RuleChecker:
    """Checks rules 4 and 5 over consecutive runs of rows, in constant memory.

    Whether last rows are steps may be unknown until all rows were seen. `decide` then says it.
    """

    def __init__(self) -> None:
        self._row = 0
        self._last_was_last = True
        self._last_discount: float | None = None
        self._found: _Found = {}
        # Rule 4 where episodes end, if their last rows are observations and if they are steps.
        self._pending: dict[bool, _Found] = {False: {}, True: {}}

    def check(
        self,
        is_first: np.ndarray,
        is_last: np.ndarray,
        is_terminal: np.ndarray,
        discount: np.ndarray | None,
        last_is_step: np.ndarray | None = None,
    ) -> None:
        """Takes the next rows: booleans and numbers, (rows,).

        Args:
          is_first: as stored, and likewise `is_last` and `is_terminal`.
          is_last: see above.
          is_terminal: see above.
          discount: as stored; None is not checked.
          last_is_step: whether the last row of the episode of each row is a step; None where `decide` will say.
        """
        if not len(is_first):
            return
        start = self._row
        after_last = np.concatenate([[self._last_was_last], is_last[:-1]])
        if not start:
            self._note(5, IS_FIRST, "the first row does not begin an episode", ~is_first[:1], 0)
            after_last[0] = is_first[0]
        self._note(5, IS_FIRST, "false on the row after an episode's last", after_last & ~is_first, start)
        self._note(
            5, IS_FIRST, "true where the row before is not the last of an episode", is_first & ~after_last, start
        )
        self._note(5, IS_TERMINAL, "true on a row that is not the last of its episode", is_terminal & ~is_last, start)
        if discount is not None:
            self._check_discount(is_last, is_terminal, discount, last_is_step)
            self._last_discount = discount[-1]
        self._last_was_last = bool(is_last[-1])
        self._row += len(is_first)

    def _check_discount(
        self, is_last: np.ndarray, is_terminal: np.ndarray, discount: np.ndarray, last_is_step: np.ndarray | None
    ) -> None:
        # Each pair is (the row before, this row); rule 4 concerns the discount of the row before.
        before = np.concatenate([[self._last_discount if self._last_discount is not None else 1.0], discount[:-1]])
        goes_on = ~np.concatenate([[self._last_was_last], is_last[:-1]])
        for is_step, found in self._pending.items():
            if last_is_step is None:
                ends, found = is_last, found
            else:
                ends, found = is_last & (last_is_step == is_step), self._found
            # If the last row is a step, the row before it leads to a state that is not terminal.
            terminal = np.zeros_like(is_terminal) if is_step else is_terminal
            self._note_discount(found, before == 0, terminal, goes_on & ends, self._row - 1, "the next row")
            if is_step:
                self._note_discount(found, discount == 0, is_terminal, ends, self._row, "the last row, a step,")
        self._note_discount(self._found, before == 0, is_terminal, goes_on & ~is_last, self._row - 1, "the next row")

    def _note_discount(
        self, found: _Found, zero: np.ndarray, terminal: np.ndarray, among: np.ndarray, start: int, which: str
    ) -> None:
        self._note(4, DISCOUNT, f"not 0 where {which} is terminal", among & ~zero & terminal, start, found)
        self._note(4, DISCOUNT, f"0 where {which} is not terminal", among & zero & ~terminal, start, found)

    def check_flag(self, name: str, values: np.ndarray) -> None:
        """Rule 2, of the rows that `check` is to take next: a flag that is stored as integers is 0 or 1."""
        if values.dtype.kind in "iu":
            self._note(
                2, name, "neither 0 nor 1, where it is one boolean a step", (values != 0) & (values != 1), self._row
            )

    def check_index(self, is_first: np.ndarray, begins: np.ndarray) -> None:
        """Rule 6, of the rows that `check` is to take next: where the source's episodes begin."""
        self._note(6, IS_FIRST, "not true exactly where an episode of the source begins", is_first != begins, self._row)

    def decide(self, is_step: bool) -> None:
        """Says whether the last rows are steps, of the episodes of which `check` was not told."""
        for key, (rows, count) in self._pending[is_step].items():
            named, before = self._found.setdefault(key, ([], 0))
            merged = sorted([*named, *rows])[:_ROWS_NAMED]
            self._found[key] = (merged, before + count)
        self._pending = {False: {}, True: {}}

    def finish(self) -> list[Violation]:
        """All that was found, once the last row was checked."""
        if self._row and not self._last_was_last:
            self._note(5, IS_LAST, "the last row does not end its episode", np.ones(1, bool), self._row - 1)
        return [
            Violation(rule, field, message, tuple(rows), count)
            for (rule, field, message), (rows, count) in sorted(self._found.items())
        ]

    def _note(
        self, rule: int, field: str, message: str, wrong: np.ndarray, first_row: int, found: _Found | None = None
    ) -> None:
        rows = np.flatnonzero(wrong)
        if not len(rows):
            return
        found = self._found if found is None else found
        named, count = found.setdefault((rule, field, message), ([], 0))
        # Rows of one rule may be noted in two runs, of which neither is wholly before the other.
        named = sorted([*named, *(rows[:_ROWS_NAMED] + first_row).tolist()])[:_ROWS_NAMED]
        found[rule, field, message] = (named, count + len(rows))
