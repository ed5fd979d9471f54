"""The rules of the Kabuki format: names of the required fields, and checks of their types and values.

A row holds an observation, the action taken after it, and the reward and discount
that followed the action (state-action-reward alignment). The last row of an episode
has `is_last`. By default it holds only the last observation, and its action, reward
and discount are padding. If `episodes/last_is_step` is true, the last row is a step
like the others, and no observation follows it (rule 3). The numbers of the rules are
those of docs/format.md. This module checks rule 2 (fields and types) and the rules
on values:

4. If row t is not the last of its episode: `discount[t] == 0` if and only if
   `is_terminal[t + 1]`. If the last row is a step, the episode ends after that step:
   on the last row `discount == 0` if and only if `is_terminal`, and on the row before
   it `discount != 0`.
5. `is_first[0]` is true; `is_first[t + 1] == is_last[t]`; the last row of the file has
   `is_last`; `is_terminal` is true only where `is_last` is.
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

#: The step fields that every file has (rule 2).
REQUIRED = (OBSERVATION, ACTION, REWARD, DISCOUNT, IS_FIRST, IS_LAST, IS_TERMINAL)
#: The required fields that are booleans.
FLAGS = (IS_FIRST, IS_LAST, IS_TERMINAL)

#: The required fields that the `fill` option can set to a constant. `is_first` and `is_last` are never constant.
FILLABLE = (OBSERVATION, ACTION, REWARD, DISCOUNT, IS_TERMINAL)

#: The number of rows that a violation lists.
_ROWS_NAMED = 5

#: (rule, field, message) to (the first rows, the number of rows).
_Found: TypeAlias = dict[tuple[int, str, str], tuple[list[int], int]]


@dataclasses.dataclass(frozen=True)
class Violation:
    """A rule that a field breaks.

    Attributes:
      rule: number of the rule.
      field: path of the field, or name of the attribute or group.
      message: what is wrong.
      rows: indices of the first rows that break the rule; () if the violation is not about rows.
      count: the number of rows that break the rule.
    """

    rule: int
    field: str
    message: str
    rows: tuple[int, ...] = ()
    count: int = 0

    def to_json(self) -> dict[str, Any]:
        """The violation as an entry of the file attribute `notes`."""
        return {"rule": self.rule, "field": self.field, "count": self.count, "message": self.message}

    @classmethod
    def from_json(cls, entry: Any) -> Violation:
        """Parses an entry of the file attribute `notes`.

        Raises:
          ValueError: `rule` or `count` is not an integer, or `field` or `message` is not a string.
        """
        stated = entry if isinstance(entry, dict) else {}
        note = cls(stated.get("rule"), stated.get("field"), stated.get("message", ""), count=stated.get("count"))  # type: ignore[arg-type]  # checked below
        if type(note.rule) is not int or type(note.count) is not int:
            raise ValueError("`rule` and `count` must be integers")
        if not isinstance(note.field, str) or not isinstance(note.message, str):
            raise ValueError("`field` and `message` must be strings")
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
    """Whether `paths` has a field `name` or fields in a group `name`."""
    return any(is_within(path, name) for path in paths)  # type: ignore[attr-defined]


def one_per_row(column: object) -> np.ndarray | None:
    """The column with shape (rows,) if it holds one number per row, else None."""
    if not isinstance(column, np.ndarray) or column.dtype == object:
        return None
    if column.ndim == 1:
        return column
    return column.reshape(-1) if column.size == len(column) else None


def is_number(dtype: np.dtype) -> bool:
    """Whether elements are integers or floats. Booleans do not count."""
    # NumPy does not report bfloat16 as a float: its kind is "V".
    return dtype.kind in "iuf" or dtype == BFLOAT16


def is_flag_or_number(dtype: np.dtype) -> bool:
    """Whether elements are booleans, integers or floats."""
    return dtype.kind == "b" or is_number(dtype)


def is_flag(field: Field) -> bool:
    """Whether a field holds one boolean or integer per row. `RuleChecker` checks that integers are 0 or 1."""
    return field.kind == "array" and field.shape == () and field.dtype.kind in "biu"


def field_violations(paths: Collection[str], fields: Mapping[str, Field]) -> list[Violation]:
    """Checks rule 2: the required fields exist and have the right types.

    Args:
      paths: paths of all step fields.
      fields: path to field, for the fields that can be read.
    """
    found = []
    for name in REQUIRED:
        if not has_field(paths, name):
            found.append(Violation(2, name, "missing"))
        elif name not in (OBSERVATION, ACTION) and name not in paths:
            found.append(Violation(2, name, "is a group, expected a dataset"))
    for name in FLAGS:
        if name in fields and not is_flag(fields[name]):
            found.append(Violation(2, name, f"is {fields[name].describe()}, expected one boolean per step"))
    reward = fields.get(REWARD)
    if reward is not None and (reward.dtype == BYTES or reward.encoded):
        found.append(Violation(2, REWARD, f"is {reward.describe()}, expected numbers"))
    discount = fields.get(DISCOUNT)
    if discount is not None and (discount.shape not in ((), (1,)) or not is_number(discount.dtype)):
        found.append(Violation(2, DISCOUNT, f"is {discount.describe()}, expected one number per step"))
    return found


class RuleChecker:
    """Checks rules 4 and 5 over consecutive runs of rows, in constant memory.

    Call `check` with each run of rows, then `finish`. If it is not yet known whether last rows are steps, call
    `decide` before `finish`.
    """

    def __init__(self) -> None:
        self._row = 0
        self._last_was_last = True
        self._last_discount: float | None = None
        self._found: _Found = {}
        # Violations of rule 4 at the ends of episodes: under False if last rows are observations, under True if
        # they are steps. `decide` keeps one of the two.
        self._pending: dict[bool, _Found] = {False: {}, True: {}}

    def check(
        self,
        is_first: np.ndarray,
        is_last: np.ndarray,
        is_terminal: np.ndarray,
        discount: np.ndarray | None,
        last_is_step: np.ndarray | None = None,
    ) -> None:
        """Checks the next rows.

        Args:
          is_first: bool, (rows,).
          is_last: bool, (rows,).
          is_terminal: bool, (rows,).
          discount: numbers, (rows,); None skips rule 4.
          last_is_step: for each row whether the last row of its episode is a step: bool, (rows,). None if this is
            not known yet; then call `decide` later.
        """
        if not len(is_first):
            return
        start = self._row
        after_last = np.concatenate([[self._last_was_last], is_last[:-1]])
        if not start:
            self._note(5, IS_FIRST, "false on the first row", ~is_first[:1], 0)
            after_last[0] = is_first[0]
        self._note(5, IS_FIRST, "false where is_last is true on the previous row", after_last & ~is_first, start)
        self._note(5, IS_FIRST, "true where is_last is false on the previous row", is_first & ~after_last, start)
        self._note(5, IS_TERMINAL, "true where is_last is false", is_terminal & ~is_last, start)
        if discount is not None:
            self._check_discount(is_last, is_terminal, discount, last_is_step)
            self._last_discount = discount[-1]
        self._last_was_last = bool(is_last[-1])
        self._row += len(is_first)

    def _check_discount(
        self, is_last: np.ndarray, is_terminal: np.ndarray, discount: np.ndarray, last_is_step: np.ndarray | None
    ) -> None:
        # Rule 4 relates the discount of the previous row to is_terminal of this row.
        before = np.concatenate([[self._last_discount if self._last_discount is not None else 1.0], discount[:-1]])
        goes_on = ~np.concatenate([[self._last_was_last], is_last[:-1]])
        for is_step, found in self._pending.items():
            if last_is_step is None:
                ends, found = is_last, found
            else:
                ends, found = is_last & (last_is_step == is_step), self._found
            # If the last row is a step, the previous row leads to a state that is not terminal.
            terminal = np.zeros_like(is_terminal) if is_step else is_terminal
            self._note_discount(found, before == 0, terminal, goes_on & ends, self._row - 1, "the next row")
            if is_step:
                self._note_discount(found, discount == 0, is_terminal, ends, self._row, "the last row (a step)")
        self._note_discount(self._found, before == 0, is_terminal, goes_on & ~is_last, self._row - 1, "the next row")

    def _note_discount(
        self, found: _Found, zero: np.ndarray, terminal: np.ndarray, among: np.ndarray, start: int, which: str
    ) -> None:
        self._note(4, DISCOUNT, f"not 0 where {which} is terminal", among & ~zero & terminal, start, found)
        self._note(4, DISCOUNT, f"0 where {which} is not terminal", among & zero & ~terminal, start, found)

    def check_flag(self, name: str, values: np.ndarray) -> None:
        """Checks rule 2: a flag that is stored as integers is 0 or 1. Call this before `check` of the same rows."""
        if values.dtype.kind in "iu":
            self._note(2, name, "is not 0 or 1", (values != 0) & (values != 1), self._row)

    def check_index(self, is_first: np.ndarray, begins: np.ndarray) -> None:
        """Checks rule 6: `is_first` marks the first rows of episodes. Call this before `check` of the same rows.

        Args:
          is_first: bool, (rows,).
          begins: whether an episode of the source begins at each row: bool, (rows,).
        """
        self._note(6, IS_FIRST, "differs from where the source's episodes begin", is_first != begins, self._row)

    def decide(self, is_step: bool) -> None:
        """Sets whether last rows are steps, for the rows that `check` got without `last_is_step`."""
        for key, (rows, count) in self._pending[is_step].items():
            named, before = self._found.setdefault(key, ([], 0))
            merged = sorted([*named, *rows])[:_ROWS_NAMED]
            self._found[key] = (merged, before + count)
        self._pending = {False: {}, True: {}}

    def finish(self) -> list[Violation]:
        """All violations. Call this after the last rows were checked."""
        if self._row and not self._last_was_last:
            self._note(5, IS_LAST, "false on the last row", np.ones(1, bool), self._row - 1)
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
        # Two calls may note the same rule with interleaved rows, so sort.
        named = sorted([*named, *(rows[:_ROWS_NAMED] + first_row).tolist()])[:_ROWS_NAMED]
        found[rule, field, message] = (named, count + len(rows))
