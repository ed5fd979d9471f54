"""Adds the required fields that a source does not have, and corrects values that break the rules.

A missing field is derived if the rules define its values: `is_first`, `is_last`,
`discount`, and `is_terminal` if there is a discount. Other missing fields need a
constant from the user (`fill`). Existing fields are not changed, unless the user asks
for it (`conform`).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import deque
from collections.abc import Collection, Iterator, Mapping

import numpy as np

from kabuki_rlds.arguments import argument
from kabuki_rlds.data import recipe_text
from kabuki_rlds.data.block import Block, Column
from kabuki_rlds.data.last_row import Evidence, LastRows
from kabuki_rlds.data.rules import (
    ACTION,
    DISCOUNT,
    FILLABLE,
    FLAGS,
    IS_FIRST,
    IS_LAST,
    IS_TERMINAL,
    OBSERVATION,
    REQUIRED,
    REWARD,
    has_field,
    one_per_row,
)
from kabuki_rlds.data.schema import LEFT_OUT, Field
from kabuki_rlds.data.source import Size, Source
from kabuki_rlds.errors import InvalidArgumentError, SchemaMismatchError
from kabuki_rlds.files import signals


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """The reason why a recipe does not keep a required field of the source.

    Attributes:
      where: file and line of the recipe, for messages.
      remedy: what to change in the recipe to keep the field.
      is_stated: whether the recipe names the field or its group, to drop it or to make another field from it.
    """

    where: str
    remedy: str
    is_stated: bool


#: Other common names of required fields. If a source has one of these, suggest a rename and not a constant.
_SIMILAR = {
    OBSERVATION: ("obs", "observations", "state", "states"),
    ACTION: ("act", "actions", "control", "controls"),
    REWARD: ("rew", "rewards"),
    IS_TERMINAL: ("done", "dones", "is_done", "terminal", "terminals", "terminated", "terminations"),
}


class CompletedSource:
    """A source whose blocks have all required fields.

    Args:
      source: the source to complete.
      fill: constants for fields that the source does not have: {"reward": 0.0}.
      conform: whether to correct values that break rules 4 and 5.
      left_out: the required fields of the source that a recipe does not keep.
      last_rows: whether the last row of each episode is a step; None takes the source's `last_rows`.
      derivable_only: whether to add only the fields that can be derived, without an error for other missing fields.

    Attributes:
      schema: the schema of the source, plus the added fields.
      last_rows: whether the last row of each episode is a step; None if this is not decided yet.
      changed: field to the number of rows that `conform` has changed so far.

    Raises:
      KabukiError: a required field is missing, cannot be derived and has no constant, or `fill` is invalid.
    """

    def __init__(
        self,
        source: Source,
        fill: Mapping[str, float] | None = None,
        conform: bool = False,
        left_out: Mapping[str, LeftOut] | None = None,
        last_rows: LastRows | None = None,
        derivable_only: bool = False,
    ):
        self._source = source
        self.last_rows = source.last_rows if last_rows is None else last_rows
        self._constants = fill
        self._conform = conform
        self._left_out = left_out or {}
        self._derivable_only = derivable_only
        self.changed: dict[str, int] = {}
        self.origins = source.origins
        self.num_episodes = source.num_episodes
        self.label = source.label
        self.skipped = source.skipped
        self.files = source.files
        have = source.schema.steps
        for name, value in (fill or {}).items():
            if name not in FILLABLE:
                raise InvalidArgumentError(
                    f"{argument('fill')}: {name!r} cannot be filled; expected one of {', '.join(FILLABLE)}"
                )
            if name == IS_TERMINAL and value not in (0, 1):
                raise InvalidArgumentError(f"{argument('fill')}: {name} must be 0 or 1, not {value}")
            if math.isfinite(value) and abs(value) > np.finfo(np.float32).max:
                raise InvalidArgumentError(f"{argument('fill')}: the value {value} of {name} is too large for float32")
        self._fill = {name: value for name, value in (fill or {}).items() if not has_field(have, name)}
        self._missing = [name for name in REQUIRED if not has_field(have, name)]
        if derivable_only:
            self._missing = [name for name in self._missing if self._is_derivable(name)]
            if DISCOUNT in self._missing and not has_field(have, IS_TERMINAL):
                self._missing.remove(DISCOUNT)
        for name in self._missing:
            self._check_may_be_missing(name)
        for name in (*FLAGS, DISCOUNT):
            if name not in have and has_field(have, name):
                raise SchemaMismatchError(
                    f"{name!r} is a dict of fields, expected one value per step", file=source.label, fields=(name,)
                )
        self._added = {name: self._new_field(name) for name in self._missing}
        self.schema = dataclasses.replace(source.schema, steps=have | self._added)

    def _is_derivable(self, name: str) -> bool:
        """Whether the rules define the values of a missing field."""
        return name not in (OBSERVATION, ACTION, REWARD) and (
            name != IS_TERMINAL or DISCOUNT in self._source.schema.steps
        )

    def _check_may_be_missing(self, name: str) -> None:
        """Checks that a missing field can be derived or has a constant.

        Raises:
          KabukiError: it cannot and has none. The message names the remedy.
        """
        have = self._source.schema.steps
        gone = self._left_out.get(name)
        is_derivable = self._is_derivable(name)
        if gone is not None and not (gone.is_stated if name in self._fill else is_derivable):
            raise SchemaMismatchError(
                f"the recipe does not keep {name!r} of {self.label}, but this field is required; "
                f"to keep it, {gone.remedy}",
                file=gone.where,
                fields=(name,),
            )
        if name in self._fill or is_derivable:
            return
        similar = next(
            (top for path in have if (top := path.partition("/")[0]).lower() in _SIMILAR.get(name, ())), None
        )
        if similar is not None:
            is_flag = similar in have and have[similar].dtype == bool
            cast = ", cast: bool" if name == IS_TERMINAL and not is_flag else ""
            raise SchemaMismatchError(
                f"the steps have no {name!r}; if it is {similar!r}, rename it with a recipe: "
                + recipe_text.steps([recipe_text.renamed(name, similar, cast)]),
                file=self.label,
                fields=(name,),
            )
        if name == IS_TERMINAL:
            raise SchemaMismatchError(
                "the steps have neither 'is_terminal' nor 'discount', so it is unknown how episodes "
                f"ended; {argument('fill', {IS_TERMINAL: 0})} marks every episode as truncated, "
                f"{argument('fill', {IS_TERMINAL: 1})} as terminated",
                file=self.label,
                fields=(name,),
            )
        example = 0 if name != OBSERVATION else float("nan")
        raise SchemaMismatchError(
            f"the steps have no {name!r} (they have {', '.join(sorted(have))}); "
            f"{argument('fill', {name: example})} sets it to a constant",
            file=self.label,
            fields=(name,),
        )

    def _new_field(self, name: str) -> Field:
        how = f"filled with {self._fill[name]}" if name in self._fill else f"by the rules for {name}"
        gone = self._left_out.get(name)
        if gone is not None:
            how = f"{LEFT_OUT} ({gone.where}), {how}"
        return Field(np.dtype(bool) if name in FLAGS else np.dtype(np.float32), derived=how)

    def size(self) -> Size:
        size = self._source.size()
        if size.sample is None:
            return size
        # Use a separate instance, so that the sample is not counted in `changed`.
        completed = CompletedSource(
            self._source, self._constants, left_out=self._left_out, derivable_only=self._derivable_only
        )
        return dataclasses.replace(size, sample=next(completed._completed(iter([size.sample])), None))

    def piece(self, first: int, stop: int) -> CompletedSource:
        self._decide_if_needed()
        return self._of(self._source.piece(first, stop), first)

    def pieces(self, num_bytes: int) -> list[CompletedSource]:
        self._decide_if_needed()
        pieces = self._source.pieces(num_bytes)
        starts = itertools.accumulate((piece.num_episodes for piece in pieces), initial=0)
        return [self._of(piece, first) for piece, first in zip(pieces, starts, strict=False)]

    def _of(self, piece: Source, first: int) -> CompletedSource:
        """Completes a piece of the source with the options of this object. `first` is the piece's first episode."""
        last_rows = None if self.last_rows is None else self.last_rows[first : first + piece.num_episodes]
        return CompletedSource(
            piece, self._constants, self._conform, self._left_out, last_rows, derivable_only=self._derivable_only
        )

    def decide(self) -> LastRows:
        """Decides whether the last row of each episode is a step. Reads the whole source if this is not known."""
        if self.last_rows is None:
            self.last_rows = decide_last_rows(self._source)
        return self.last_rows

    def _decide_if_needed(self) -> None:
        # Rule 4 depends on whether last rows are steps, and so do the derived discount and is_terminal.
        is_derived = any(name in self._missing and name not in self._fill for name in (DISCOUNT, IS_TERMINAL))
        if self.last_rows is None and (self._conform or is_derived):
            self.decide()

    def name_of(self, episode: int) -> str:
        return self._source.name_of(episode)

    def close(self) -> None:
        self._source.close()

    def blocks(self, only: Collection[str] | None = None) -> Iterator[Block]:
        """Yields the blocks of the source with all required fields."""
        self._decide_if_needed()
        return self._completed(self._source.blocks())

    def _completed(self, blocks: Iterator[Block]) -> Iterator[Block]:
        for block in self._with_discount(self._with_flags(blocks)):
            yield dataclasses.replace(block, steps={path: block.steps[path] for path in self.schema.steps})

    def _with_flags(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """Adds or corrects the flags, and adds the constants."""
        discount_before = 1.0
        begun = 0
        for block, following in _with_following(blocks):
            steps = dict(block.steps)
            last_is_step = self._last_is_step(block, begun)
            begun += block.num_episodes
            is_first, is_last = _boundaries(block, following is None)
            for name, value in self._fill.items():
                column = np.full(block.num_steps, value, self._added[name].dtype)
                # Only the last row of an episode can be terminal (rule 5).
                steps[name] = column & is_last if name == IS_TERMINAL else column
            for name, derived in ((IS_FIRST, is_first), (IS_LAST, is_last)):
                if name not in steps:
                    steps[name] = derived
                elif self._conform:
                    steps[name] = self._changed(name, steps[name], derived)
            if IS_TERMINAL not in steps:
                discount = self._one_per_row(steps, DISCOUNT)
                steps[IS_TERMINAL] = _terminal_by_discount(discount, is_first, is_last, last_is_step, discount_before)
                discount_before = float(discount[-1]) if len(discount) else discount_before
            elif self._conform:
                terminal = self._one_per_row(steps, IS_TERMINAL).astype(bool) & is_last
                steps[IS_TERMINAL] = self._changed(IS_TERMINAL, steps[IS_TERMINAL], terminal)
            yield dataclasses.replace(block, steps=steps)

    def _with_discount(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """Adds or corrects the discount by rule 4.

        The discount is 0 if the next row is terminal, or if the row itself is a terminal last row that is a step.
        """
        begun = 0
        for block, following in _with_following(blocks):
            last_is_step = self._last_is_step(block, begun)
            begun += block.num_episodes
            if DISCOUNT in block.steps and not self._conform:
                yield block
                continue
            terminal = self._one_per_row(block.steps, IS_TERMINAL).astype(bool)
            _, is_last = _boundaries(block, following is None)
            # True where the next row is terminal, unless that row is a step.
            leads = np.append(terminal & ~last_is_step, False)[1:]
            if following is not None and block.num_steps:
                leads[-1] = self._one_per_row(following.steps, IS_TERMINAL)[:1].any() and not last_is_step[-1]
            zero = np.where(is_last, terminal, leads)
            if DISCOUNT not in block.steps:
                # The padding in the last row is also 0 if the episode terminated, else 1.
                discount: Column = np.where(zero, 0, 1).astype(np.float32)
            else:
                old = self._one_per_row(block.steps, DISCOUNT)
                right = old.copy()
                right[right == 0] = 1
                right[zero] = 0
                is_padding = is_last & ~last_is_step
                discount = self._changed(DISCOUNT, block.steps[DISCOUNT], np.where(is_padding, old, right))
            yield dataclasses.replace(block, steps=block.steps | {DISCOUNT: discount})

    def _last_is_step(self, block: Block, num_before: int) -> np.ndarray:
        """Whether the last row of the episode of each row is a step: bool, (rows,). False if not decided."""
        if self.last_rows is None:
            return np.zeros(block.num_steps, bool)
        return self.last_rows.rows(block, num_before)

    def _one_per_row(self, steps: Mapping[str, Column], name: str) -> np.ndarray:
        values = one_per_row(steps[name])
        if values is None:
            raise SchemaMismatchError(
                f"{name!r} does not have one value per step, so the rules cannot be applied",
                file=self._source.label,
                fields=(name,),
            )
        return values

    def _changed(self, name: str, old: Column, new: np.ndarray) -> Column:
        """`new` with the dtype and shape of `old`. Counts the rows that differ in `changed`."""
        flat = self._one_per_row({name: old}, name)
        new = new.astype(flat.dtype, copy=False)
        both_nan = (flat != flat) & (new != new)  # NaN != NaN. np.isnan does not accept booleans or bfloat16.
        count = int(np.count_nonzero((flat != new) & ~both_nan))
        if not count:
            return old
        self.changed[name] = self.changed.get(name, 0) + count
        assert isinstance(old, np.ndarray)
        return new.reshape(old.shape)


def decide_last_rows(source: Source) -> LastRows:
    """Reads a source and decides from its values whether last rows are steps."""
    evidence = Evidence(source.schema.steps)
    for block in source.blocks(only=evidence.fields):
        signals.check()
        evidence.observe(block)
    return evidence.decide(source.num_episodes)


def _with_following(blocks: Iterator[Block]) -> Iterator[tuple[Block, Block | None]]:
    """Yields each block with the next block if that continues the block's last episode, else with None."""
    waiting: deque[Block] = deque()
    for block in blocks:
        if block.num_steps:
            continues = not len(block.starts) or block.starts[0] != 0
            while waiting:
                yield waiting.popleft(), block if continues else None
        # A block without steps waits, too: it gets the same next block as its predecessor.
        waiting.append(block)
    while waiting:
        yield waiting.popleft(), None


def _boundaries(block: Block, ends: bool) -> tuple[np.ndarray, np.ndarray]:
    """(is_first, is_last) of the rows of a block: bool, (rows,) each.

    Args:
      block: the block.
      ends: whether the last episode of the block ends with the block.
    """
    begins = block.begins
    is_last = begins[1:].copy()
    is_last[-1:] = ends
    return begins[:-1], is_last


def _terminal_by_discount(
    discount: np.ndarray, is_first: np.ndarray, is_last: np.ndarray, last_is_step: np.ndarray, before: float
) -> np.ndarray:
    """Derives is_terminal from the discount by rule 4: bool, (rows,).

    A last row is terminal if the discount that led to it is 0: that of the previous row, or its own if it is a step.

    Args:
      discount: numbers, (rows,).
      is_first: bool, (rows,).
      is_last: bool, (rows,).
      last_is_step: whether the last row of the episode of each row is a step: bool, (rows,).
      before: the discount of the row before the first row.
    """
    previous = np.where(is_first, 1, np.append(before, discount)[:-1])
    return is_last & (np.where(last_is_step, discount, previous) == 0)
