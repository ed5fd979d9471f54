"""Converts the alignment of EnvLogger's steps to that of RLDS.

Step t of a log has observation t, the action before it, and the reward and discount that came with it. Row t of a
Kabuki file has observation t, the action after it, and the reward and discount that came with observation t + 1, as in
RLDS. So actions, rewards and discounts move to the row before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from kabuki_rlds.data.block import Block, Column, concatenate
from kabuki_rlds.data.rules import DISCOUNT, IS_FIRST, IS_LAST, IS_TERMINAL
from kabuki_rlds.data.schema import Field
from kabuki_rlds.formats.envlogger import fields
from kabuki_rlds.formats.envlogger.messages import LeafPath


@dataclasses.dataclass(frozen=True)
class AlignedSteps:
    """Consecutive steps of a log.

    Attributes:
      columns: path to column, as the log stores them.
      begins: whether an episode begins with each step: bool, (steps,).
      is_terminal: whether each step, if it is the last of its episode, is terminal: bool, (steps,).
    """

    columns: dict[LeafPath, Column]
    begins: np.ndarray
    is_terminal: np.ndarray

    def __len__(self) -> int:
        return len(self.begins)


def align(parts: Iterator[AlignedSteps], of: Mapping[LeafPath, Field]) -> Iterator[Block]:
    """Yields all steps in RLDS's alignment, in blocks without episode fields.

    Args:
      parts: consecutive steps of a log.
      of: path to field.
    """
    held: AlignedSteps | None = None
    for part in parts:
        # The last step needs the action, reward and discount of the next one.
        whole = part if held is None else _join(held, part)
        held = _slice(whole, slice(len(whole) - 1, None))
        if len(whole) > 1:
            yield _block(_slice(whole, slice(0, -1)), _slice(whole, slice(1, None)), of)
    if held is not None:
        yield _block(held, None, of)


def _block(steps: AlignedSteps, following: AlignedSteps | None, of: Mapping[LeafPath, Field]) -> Block:
    """Makes a block of some steps. `following` are the steps one later; None after the last step of all."""
    is_last = np.ones(1, bool) if following is None else following.begins
    columns: dict[str, Column] = {
        IS_FIRST: steps.begins,
        IS_LAST: is_last,
        IS_TERMINAL: is_last & steps.is_terminal,
    }
    for path, field in of.items():
        name = "/".join(path)
        if not fields.is_shifted(path):
            columns[name] = steps.columns[path]
        elif following is None:
            columns[name] = fields.padding(field, 1)
        else:
            columns[name] = fields.blanked(following.columns[path], field, is_last)
    return Block(columns, len(steps), np.flatnonzero(steps.begins), {})


def is_terminal(is_last: np.ndarray, columns: Mapping[LeafPath, Column]) -> np.ndarray:
    """Returns whether the observation of each step of a log is terminal: bool, (steps,).

    A step is terminal if it has dm_env's type LAST and its discount is 0. Without a discount, an environment cannot
    mark an episode as truncated, so every LAST is terminal.

    Args:
      is_last: whether each step has type LAST: bool, (steps,).
      columns: path to column, as the log stores them.
    """
    found = is_last.copy()
    for path, column in columns.items():
        if path[0] == DISCOUNT and isinstance(column, np.ndarray):
            found &= (column.reshape(len(column), -1) == 0).all(axis=1)
    return found


def _join(first: AlignedSteps, second: AlignedSteps) -> AlignedSteps:
    return AlignedSteps(
        {path: concatenate([column, second.columns[path]]) for path, column in first.columns.items()},
        np.concatenate([first.begins, second.begins]),
        np.concatenate([first.is_terminal, second.is_terminal]),
    )


def _slice(steps: AlignedSteps, rows: slice) -> AlignedSteps:
    columns = {path: column[rows] for path, column in steps.columns.items()}
    return AlignedSteps(columns, steps.begins[rows], steps.is_terminal[rows])
