"""Moves the steps of sources into a sink, and checks them on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from kabuki_rlds.data.block import Block, Column
from kabuki_rlds.data.common_schema import fit_block
from kabuki_rlds.data.last_row import Evidence, LastRows, joined, warn_of_conflict
from kabuki_rlds.data.nan_actions import NanActionCounter, NanRows, warn_of_nan
from kabuki_rlds.data.rules import (
    DISCOUNT,
    FLAGS,
    RuleChecker,
    Violation,
    field_violations,
    is_flag_or_number,
    one_per_row,
)
from kabuki_rlds.data.schema import Schema
from kabuki_rlds.data.source import Fingerprints, Sink, Source
from kabuki_rlds.errors import DamagedDataError
from kabuki_rlds.files import signals

_AnySource = TypeVar("_AnySource", bound=Source)


@dataclasses.dataclass(frozen=True)
class Transferred:
    """The result of a transfer.

    Attributes:
      num_steps: the number of written steps.
      num_episodes: the number of written episodes.
      last_rows: whether the last row of each episode is a step, and why.
      nan_actions: one entry for each action field that has NaN.
      violations: the rules that the steps break; empty if they were not checked.
    """

    num_steps: int
    num_episodes: int
    last_rows: LastRows
    nan_actions: list[NanRows]
    violations: list[Violation]


def progress_bar(total: int, name: str, is_shown: bool) -> tqdm[Any]:
    """A progress bar on stderr that counts steps."""
    return tqdm(total=total, unit=" steps", unit_scale=True, disable=not is_shown, desc=name)


def transfer(
    sources: Sequence[_AnySource],
    sink: Sink,
    schema: Schema,
    fingerprints: Fingerprints,
    bar: tqdm[Any],
    *,
    label: str,
    check_rules: bool = False,
    read: Callable[[_AnySource], Iterator[Block]] | None = None,
) -> Transferred:
    """Writes all blocks of the sources to a sink, in order, and commits the sink.

    If a source does not state whether last rows are steps, this is decided from the values during the transfer.

    Args:
      sources: the sources, with the fields of `schema`.
      sink: the destination. The caller must have entered its `with`.
      schema: the common schema of the sources.
      fingerprints: the state of the sources' files when they were opened.
      bar: the progress bar, which counts steps.
      label: the name of the result for warnings.
      check_rules: whether to check the rules on flags and discounts (see `data.rules`).
      read: returns the blocks of a source; by default `source.blocks()`.

    Raises:
      KabukiError: a source cannot be read, has a different number of episodes than it states, or was changed during
        the transfer; or the sink cannot store a value.
    """
    checker = RuleChecker() if check_rules else None
    nan = NanActionCounter(schema.steps)
    decided: list[LastRows] = []
    num_steps = first_origin = 0
    for source in sources:
        evidence = Evidence(source.schema.steps)
        num_episodes = 0
        for block in source.blocks() if read is None else read(source):
            signals.check()
            num_before, num_episodes = num_episodes, num_episodes + block.num_episodes
            if num_episodes > source.num_episodes:
                break
            known = source.last_rows
            if checker is not None:
                _check(checker, block, None if known is None else known.rows(block, num_before))
            if known is None:
                evidence.observe(block)
            nan.observe(block)
            sink.write(fit_block(block, schema).from_origins_at(first_origin))
            num_steps += block.num_steps
            bar.update(block.num_steps)
        if num_episodes != source.num_episodes:
            raise DamagedDataError(
                f"states {source.num_episodes} episodes, but {num_episodes} were read", file=source.label
            )
        first_origin += len(source.origins)
        decided.append(source.last_rows or evidence.decide(num_episodes))
        warn_of_conflict(decided[-1], source.label)
        if checker is not None:
            checker.decide(bool(decided[-1].is_step.all()))
    last_rows = joined(decided)
    violations = [] if checker is None else [*field_violations(schema.steps, schema.steps), *checker.finish()]
    signals.check()
    fingerprints.check()
    sink.commit(last_rows, violations)
    nan_actions = nan.finish(last_rows.is_step)
    warn_of_nan(nan_actions, label)
    return Transferred(num_steps, len(last_rows.is_step), last_rows, nan_actions, violations)


def _check(checker: RuleChecker, block: Block, last_is_step: np.ndarray | None) -> None:
    columns = {name: _checkable(block.steps[name]) for name in (*FLAGS, DISCOUNT) if name in block.steps}
    discount = columns.pop(DISCOUNT, None)
    flags = {name: column for name, column in columns.items() if column is not None}
    if len(flags) < len(FLAGS):
        return
    for name, column in flags.items():
        checker.check_flag(name, column)
    is_first, is_last, is_terminal = (column.astype(bool) for column in flags.values())
    checker.check_index(is_first, block.begins[:-1])
    checker.check(is_first, is_last, is_terminal, discount, last_is_step)


def _checkable(column: Column) -> np.ndarray | None:
    """The column with shape (rows,) if it has one real number per row. Else None: then rule 2 is broken."""
    values = one_per_row(column)
    return values if values is not None and is_flag_or_number(values.dtype) else None
