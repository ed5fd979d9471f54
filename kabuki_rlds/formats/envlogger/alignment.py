"""From the alignment of EnvLogger's logs to that of a Kabuki file.

Step t of a log has the action that led to observation t, and the reward and discount
that came with it (action, reward, state). Row t of a Kabuki file has what came after
observation t (state, action, reward): what step t + 1 of the log has.
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
      columns: the fields, by their path.
      begins: whether an episode begins with each step: bool, (steps,).
      is_terminal: whether its observation is terminal, if it is the last of its episode: bool, (steps,).
    """

    columns: dict[LeafPath, Column]
    begins: np.ndarray
    is_terminal: np.ndarray

    def __len__(self) -> int:
        return len(self.begins)


def align(parts: Iterator[AlignedSteps], of: Mapping[LeafPath, Field]) -> Iterator[Block]:
    """All steps, aligned anew, in blocks without the metadata of episodes.

    Args:
      parts: the steps, in order.
      of: the fields.
    """
    held: AlignedSteps | None = None
    for part in parts:
        # The last step waits for what the one after it says.
        whole = part if held is None else _join(held, part)
        held = _slice(whole, slice(len(whole) - 1, None))
        if len(whole) > 1:
            yield _block(_slice(whole, slice(0, -1)), _slice(whole, slice(1, None)), of)
    if held is not None:
        yield _block(held, None, of)


def _block(steps: AlignedSteps, following: AlignedSteps | None, of: Mapping[LeafPath, Field]) -> Block:
    """The rows of some steps. `following` are the steps after them, None after the last of all."""
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
    """Whether the observation of each step of a log is terminal: bool, (steps,).

    Args:
      is_last: whether each is of dm_env's type LAST.
      columns: the fields of these steps, as the log has them.

    It is where the step is of dm_env's type LAST and its discount is 0. An environment
    that gives no discount cannot cut an episode short, so each LAST is terminal.
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
