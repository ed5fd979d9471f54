"""A source made whole: every field that the Kabuki format asks for, and its rules kept.

What a source lacks is derived where the convention fixes it (`is_first`, `is_last`,
`discount`, `is_terminal` where there is a discount), and filled with a constant that
the user gives where it does not. What a source has is left as it is, unless the
user asks to conform it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import deque
from collections.abc import Collection, Iterator, Mapping

import numpy as np

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
    """Why a recipe keeps nothing of a field that every file needs and that the source has.

    Attributes:
      where: the line of the recipe, for a message.
      remedy: what to change in the recipe to keep the field.
      is_stated: whether the recipe names the field, or a group that it is in: to drop it, or to make another of it.
    """

    where: str
    remedy: str
    is_stated: bool


#: What fields that may be a required one under another name are called: a constant in its place would hide them.
_SIMILAR = {
    OBSERVATION: ("obs", "observations", "state", "states"),
    ACTION: ("act", "actions", "control", "controls"),
    REWARD: ("rew", "rewards"),
    IS_TERMINAL: ("done", "dones", "is_done", "terminal", "terminals", "terminated", "terminations"),
}


class CompletedSource:
    """A source whose blocks have every required field.

    Args:
      source: what to complete.
      fill: constants for fields that the source lacks: {"reward": 0.0}.
      conform: change values that break rules 4 and 5 to what the rules say.
      left_out: fields that a recipe took from the source.
      last_rows: whether the last row of each episode is a step; None is what the source says of it.
      derivable_only: add what can be derived, and leave out what cannot.

    Attributes:
      schema: the source's, with the added fields.
      last_rows: whether the last row of each episode is a step; None as long as it is not decided.
      changed: field to number of rows that `conform` changed, so far.

    Raises:
      KabukiError: a field is lacking that cannot be derived and is not filled.
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
                raise InvalidArgumentError(f"fill: {name!r} is none of {', '.join(FILLABLE)}")
            if name == IS_TERMINAL and value not in (0, 1):
                raise InvalidArgumentError(f"fill: {name} is 0 or 1, not {value}")
            if math.isfinite(value) and abs(value) > np.finfo(np.float32).max:
                raise InvalidArgumentError(f"fill: {value} for {name} is more than a float32 holds")
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
                    f"{name!r} is a dict of fields, and not one value a step", file=source.label, fields=(name,)
                )
        self._added = {name: self._new_field(name) for name in self._missing}
        self.schema = dataclasses.replace(source.schema, steps=have | self._added)

    def _is_derivable(self, name: str) -> bool:
        """Whether the rules tell the values of a field that is missing."""
        return name not in (OBSERVATION, ACTION, REWARD) and (
            name != IS_TERMINAL or DISCOUNT in self._source.schema.steps
        )

    def _check_may_be_missing(self, name: str) -> None:
        """Refuses what would need a value that neither the source nor the user gives."""
        have = self._source.schema.steps
        gone = self._left_out.get(name)
        is_derivable = self._is_derivable(name)
        if gone is not None and not (gone.is_stated if name in self._fill else is_derivable):
            raise SchemaMismatchError(
                f"the recipe leaves out {name!r}, which {self.label} has and every file needs; "
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
                f"the steps have no {name!r}; if it is {similar!r}, a recipe can rename it: "
                + recipe_text.steps([recipe_text.renamed(name, similar, cast)]),
                file=self.label,
                fields=(name,),
            )
        if name == IS_TERMINAL:
            raise SchemaMismatchError(
                "the steps have neither 'is_terminal' nor 'discount', so nothing says how an "
                "episode ended; --fill is_terminal=0 takes every episode as cut short, =1 as ended",
                file=self.label,
                fields=(name,),
            )
        example = "0" if name != OBSERVATION else "nan"
        raise SchemaMismatchError(
            f"the steps have no {name!r} (they have {', '.join(sorted(have))}); "
            f"--fill {name}={example} puts a constant in its place",
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
        # By another one, since what it would change is counted when it is read.
        completed = CompletedSource(self._source, self._constants, left_out=self._left_out)._completed(
            iter([size.sample])
        )
        return dataclasses.replace(size, sample=next(completed, None))

    def piece(self, first: int, stop: int) -> CompletedSource:
        self._decide_if_needed()
        return self._of(self._source.piece(first, stop), first)

    def pieces(self, num_bytes: int) -> list[CompletedSource]:
        self._decide_if_needed()
        pieces = self._source.pieces(num_bytes)
        starts = itertools.accumulate((piece.num_episodes for piece in pieces), initial=0)
        return [self._of(piece, first) for piece, first in zip(pieces, starts, strict=False)]

    def _of(self, piece: Source, first: int) -> CompletedSource:
        """A piece of the source, which begins with the episode `first`, completed as this one is."""
        last_rows = None if self.last_rows is None else self.last_rows[first : first + piece.num_episodes]
        return CompletedSource(
            piece, self._constants, self._conform, self._left_out, last_rows, derivable_only=self._derivable_only
        )

    def decide(self) -> LastRows:
        """Whether the last row of each episode is a step. Reads the whole source if only its values tell."""
        if self.last_rows is None:
            self.last_rows = decide_by_reading(self._source)
        return self.last_rows

    def _decide_if_needed(self) -> None:
        # Rule 4 gives other discounts, and so other ends, where the last row is a step.
        is_derived = any(name in self._missing and name not in self._fill for name in (DISCOUNT, IS_TERMINAL))
        if self.last_rows is None and (self._conform or is_derived):
            self.decide()

    def name_of(self, episode: int) -> str:
        return self._source.name_of(episode)

    def close(self) -> None:
        self._source.close()

    def blocks(self, only: Collection[str] | None = None) -> Iterator[Block]:
        """The source's blocks, completed."""
        self._decide_if_needed()
        return self._completed(self._source.blocks())

    def _completed(self, blocks: Iterator[Block]) -> Iterator[Block]:
        for block in self._with_discount(self._with_flags(blocks)):
            yield dataclasses.replace(block, steps={path: block.steps[path] for path in self.schema.steps})

    def _with_flags(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """Adds or conforms the booleans, and adds what is filled."""
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
        """Adds the discount, or conforms it, by what is terminal in the next row; or in a last row that is a step."""
        begun = 0
        for block, following in _with_following(blocks):
            last_is_step = self._last_is_step(block, begun)
            begun += block.num_episodes
            if DISCOUNT in block.steps and not self._conform:
                yield block
                continue
            terminal = self._one_per_row(block.steps, IS_TERMINAL).astype(bool)
            _, is_last = _boundaries(block, following is None)
            # The rows that lead to a terminal row. A last row that is a step leads there itself.
            leads = np.append(terminal & ~last_is_step, False)[1:]
            if following is not None and block.num_steps:
                leads[-1] = self._one_per_row(following.steps, IS_TERMINAL)[:1].any() and not last_is_step[-1]
            zero = np.where(is_last, terminal, leads)
            if DISCOUNT not in block.steps:
                # Padding too is 0 if the episode terminated, else 1.
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
        """For each row, whether the last row of its episode is a step: bool, (rows,)."""
        if self.last_rows is None:
            return np.zeros(block.num_steps, bool)
        return self.last_rows.rows(block, num_before)

    def _one_per_row(self, steps: Mapping[str, Column], name: str) -> np.ndarray:
        values = one_per_row(steps[name])
        if values is None:
            raise SchemaMismatchError(
                f"{name!r} is not one value a step, so no rule can be applied to it",
                file=self._source.label,
                fields=(name,),
            )
        return values

    def _changed(self, name: str, old: Column, new: np.ndarray) -> Column:
        """`new` in the form of `old`, and counts the rows that differ."""
        flat = self._one_per_row({name: old}, name)
        new = new.astype(flat.dtype, copy=False)
        both_nan = (flat != flat) & (new != new)  # NaN is not itself; np.isnan takes neither booleans nor bfloat16.
        count = int(np.count_nonzero((flat != new) & ~both_nan))
        if not count:
            return old
        self.changed[name] = self.changed.get(name, 0) + count
        assert isinstance(old, np.ndarray)
        return new.reshape(old.shape)


def decide_by_reading(source: Source) -> LastRows:
    """Whether the last rows of a source are steps, by all of its values that tell."""
    evidence = Evidence(source.schema.steps)
    for block in source.blocks(only=evidence.fields):
        signals.check()
        evidence.observe(block)
    return evidence.decide(source.num_episodes)


def _with_following(blocks: Iterator[Block]) -> Iterator[tuple[Block, Block | None]]:
    """Each block with the one that goes on with its last episode, or None where that ends."""
    waiting: deque[Block] = deque()
    for block in blocks:
        if block.num_steps:
            goes_on = not len(block.starts) or block.starts[0] != 0
            while waiting:
                yield waiting.popleft(), block if goes_on else None
        # A block without steps has the same following block as the one before it.
        waiting.append(block)
    while waiting:
        yield waiting.popleft(), None


def _boundaries(block: Block, ends: bool) -> tuple[np.ndarray, np.ndarray]:
    """(is_first, is_last) of the rows of a block, by where its episodes begin."""
    begins = block.begins
    is_last = begins[1:].copy()
    is_last[-1:] = ends
    return begins[:-1], is_last


def _terminal_by_discount(
    discount: np.ndarray, is_first: np.ndarray, is_last: np.ndarray, last_is_step: np.ndarray, before: float
) -> np.ndarray:
    """Rule 4 the other way: a last row is terminal where the discount that led there is 0."""
    previous = np.where(is_first, 1, np.append(before, discount)[:-1])
    return is_last & (np.where(last_is_step, discount, previous) == 0)
