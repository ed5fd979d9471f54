"""What is served: a step, a transition, or a window of consecutive steps.

Each sample begins at a row of its own, its anchor, and needs no row of another
episode. The anchors of an episode are its first rows, so that counting them for each
episode is enough to find any of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from kabuki_rlds.block import Column, Nested, Ragged, splits_of, take
from kabuki_rlds.convention import ACTION, DISCOUNT, IS_LAST, IS_TERMINAL, OBSERVATION, REWARD
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.schema import BFLOAT16, BYTES, Field
from kabuki_rlds.training.table import Take

NEXT_OBSERVATION = "next_observation"
MASK = "mask"

_FLAG = Field(np.dtype(bool))


class Samples(Protocol):
    """A kind of sample.

    Attributes:
      fields: path to what a row of that column is, image files as they are stored.
      lead: dimensions of a sample before those of a row: () or (length,).
      rows: how many rows of the file a sample is made of, about.
      reach: how many rows after its anchor a sample may need.
    """

    @property
    def fields(self) -> dict[str, Field]: ...
    @property
    def lead(self) -> tuple[int, ...]: ...
    @property
    def rows(self) -> int: ...
    @property
    def reach(self) -> int: ...

    def counts(self, lengths: np.ndarray) -> np.ndarray:
        """How many samples episodes of these lengths have, int64."""

    def gather(self, take: Take, anchors: np.ndarray, ends: np.ndarray) -> dict[str, Column]:
        """The samples at these anchors, in episodes that end before these rows.

        Columns have `prod(lead)` rows a sample.
        """

    def finish(self, columns: dict[str, Column]) -> dict[str, Column]:
        """What is left to do once image files are decoded."""


class SampleIndex:
    """Finds the anchor of each sample, of which there are `len`.

    Args:
      starts, ends: the first row of each episode, and the one after its last.
      samples: what is served.
    """

    def __init__(self, starts: np.ndarray, ends: np.ndarray, samples: Samples):
        self._starts, self._ends = starts, ends
        self._splits = splits_of(samples.counts(ends - starts))

    def __len__(self) -> int:
        return int(self._splits[-1])

    def locate(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(anchor, end of its episode) of each of the samples of these numbers."""
        # An episode without samples ends where it begins, and is passed over.
        episodes = np.searchsorted(self._splits, numbers, side="right") - 1
        return numbers - (self._splits - np.append(self._starts, 0))[episodes], self._ends[episodes]


@dataclasses.dataclass(frozen=True)
class Steps:
    """Single rows, with or without the last of each episode, which has no action."""

    fields: dict[str, Field]
    keep_last: bool
    lead: tuple[int, ...] = ()
    rows: int = 1
    reach: int = 0

    def counts(self, lengths: np.ndarray) -> np.ndarray:
        return lengths if self.keep_last else np.maximum(lengths - 1, 0)

    def gather(self, take: Take, anchors: np.ndarray, ends: np.ndarray) -> dict[str, Column]:
        return take(tuple(self.fields), anchors)

    def finish(self, columns: dict[str, Column]) -> dict[str, Column]:
        return columns


class Transitions:
    """A step with what it led to, some steps on.

    Args:
      stored: the step fields that are read; observation and action, reward, discount
        and is_terminal among them.
      n_step: how many steps on, or as many as the episode has left.
      gamma: factor for each step after the first.

    Raises:
      KabukiError: a field has no place among those of a transition, or there is no
        n-step return of such a reward or discount.
    """

    lead: tuple[int, ...] = ()
    rows = 2

    def __init__(self, stored: Mapping[str, Field], n_step: int, gamma: float):
        self._n_step, self._gamma = n_step, gamma
        self.reach = n_step
        is_observation = {path: path == OBSERVATION or path.startswith(f"{OBSERVATION}/") for path in stored}
        self._twice = {path: NEXT_OBSERVATION + path[len(OBSERVATION) :] for path in stored if is_observation[path]}
        self._once = [path for path in stored if not is_observation[path] and path not in (IS_LAST, IS_TERMINAL)]
        if n_step > 1:
            self._once = [path for path in self._once if path not in (REWARD, DISCOUNT)]
        for path in self._once:
            if path == NEXT_OBSERVATION or path.startswith(f"{NEXT_OBSERVATION}/"):
                raise KabukiError(f"field {path!r}: a transition has a {NEXT_OBSERVATION} of its own; leave it out")
        if not _is_one_number(stored[IS_TERMINAL]):
            raise KabukiError(f"field {IS_TERMINAL!r} is {stored[IS_TERMINAL].describe()}, where it is one flag a step")
        self._dtypes = {path: _of_returns(stored[path], path, n_step) for path in (REWARD, DISCOUNT)}
        returns = {path: dataclasses.replace(stored[path], dtype=dtype) for path, dtype in self._dtypes.items()}
        others = {path: field for path, field in stored.items() if path not in returns}
        nexts = {after: stored[path] for path, after in self._twice.items()}
        self.fields = others | returns | nexts | {IS_TERMINAL: _FLAG, IS_LAST: _FLAG}

    def counts(self, lengths: np.ndarray) -> np.ndarray:
        return np.maximum(lengths - 1, 0)

    def gather(self, take: Take, anchors: np.ndarray, ends: np.ndarray) -> dict[str, Column]:
        nexts = np.minimum(anchors + self._n_step, ends - 1)
        columns = take(self._once, anchors)
        both = take(list(self._twice), np.concatenate([anchors, nexts]))
        for path, after in self._twice.items():
            columns[path], columns[after] = both[path][: len(anchors)], both[path][len(anchors) :]
        if self._n_step > 1:
            columns |= self._returns(take, anchors, nexts)
        is_terminal = take([IS_TERMINAL], nexts)[IS_TERMINAL]
        assert isinstance(is_terminal, np.ndarray)
        columns[IS_TERMINAL] = is_terminal.astype(bool).reshape(-1)
        columns[IS_LAST] = nexts == ends - 1
        return columns

    def _returns(self, take: Take, anchors: np.ndarray, nexts: np.ndarray) -> dict[str, Column]:
        """Rewards and discounts of the steps from `anchors` up to `nexts`, put together."""
        steps = np.minimum(anchors + np.arange(self._n_step)[:, None], nexts - 1)
        taken = take((REWARD, DISCOUNT), steps.reshape(-1))
        rewards, discounts = (np.asarray(taken[path]).astype(np.float64) for path in (REWARD, DISCOUNT))
        rewards = rewards.reshape(self._n_step, len(anchors), -1)
        discounts = discounts.reshape(self._n_step, len(anchors), 1)
        total, factor = rewards[0], discounts[0]
        for k in range(1, self._n_step):
            # Past the end of its episode a return stays what it is.
            live = (anchors + k < nexts)[:, None]
            with np.errstate(invalid="ignore", over="ignore"):
                factor = np.where(live, factor * self._gamma, factor)
                total = np.where(live, total + factor * rewards[k], total)
                factor = np.where(live, factor * discounts[k], factor)
        shapes = {path: np.asarray(taken[path]).shape[1:] for path in (REWARD, DISCOUNT)}
        return {
            path: value.astype(self._dtypes[path]).reshape(-1, *shapes[path])
            for path, value in ((REWARD, total), (DISCOUNT, factor))
        }

    def finish(self, columns: dict[str, Column]) -> dict[str, Column]:
        return {path: columns[path] for path in self.fields}


def _of_returns(field: Field, path: str, n_step: int) -> np.dtype:
    """The dtype of n-step returns and discounts."""
    if n_step == 1:
        return field.dtype
    is_number = field.is_fixed and (field.dtype.kind in "biuf" or field.dtype == BFLOAT16)
    if not is_number or (path == DISCOUNT and not _is_one_number(field)):
        wanted = "one number a step" if path == DISCOUNT else "numbers"
        raise KabukiError(f"field {path!r} is {field.describe()}, where n-step returns need {wanted}")
    # A return is a fraction even where rewards are whole.
    return np.dtype(np.float64) if field.dtype.kind in "biu" else field.dtype


def _is_one_number(field: Field) -> bool:
    return field.shape in ((), (1,)) and field.dtype != BYTES


class Windows:
    """Runs of `length` consecutive rows of one episode.

    Args:
      stored: the step fields that are read.
      length: rows of a window.
      pad: also serve the windows that run past the end of their episode.

    Raises:
      KabukiError: a field is called as the mask is.
    """

    def __init__(self, stored: Mapping[str, Field], length: int, pad: bool):
        for path in stored:
            if path == MASK or path.startswith(f"{MASK}/"):
                raise KabukiError(f"field {path!r}: a window has a {MASK} of its own; leave the field out by `fields`")
        self._stored = dict(stored)
        self._pad = pad
        self.fields = {**stored, MASK: _FLAG}
        self.lead = (length,)
        self.rows = length
        self.reach = length - 1

    def counts(self, lengths: np.ndarray) -> np.ndarray:
        return lengths if self._pad else np.maximum(lengths - self.reach, 0)

    def gather(self, take: Take, anchors: np.ndarray, ends: np.ndarray) -> dict[str, Column]:
        rows = anchors[:, None] + np.arange(self.rows)
        inside = rows < ends[:, None]
        # The last row stands in for what is to be padded.
        columns = take(tuple(self._stored), np.minimum(rows, ends[:, None] - 1).reshape(-1))
        columns[MASK] = inside.reshape(-1)
        return columns

    def finish(self, columns: dict[str, Column]) -> dict[str, Column]:
        inside = columns[MASK]
        assert isinstance(inside, np.ndarray)
        if inside.all():
            return columns
        return {
            path: column if path == MASK else _blanked(column, inside, self.fields[path].shape)
            for path, column in columns.items()
        }


def _blanked(column: Column, keep: np.ndarray, shape: Sequence[int | None]) -> Column:
    """The column with zeros, or nothing at all, in the rows that are not to be kept."""
    if isinstance(column, np.ndarray):
        column[~keep] = b"" if column.dtype == object else 0
        return column
    kept: Ragged | Nested = take(column, np.flatnonzero(keep))  # type: ignore[assignment]
    if isinstance(kept, Nested):
        counts = np.zeros(len(keep), np.int64)
        counts[keep] = kept.lengths[0]
        return Nested(kept.values, (counts, *kept.lengths[1:]))
    shapes = np.zeros((len(keep), kept.shapes.shape[1]), np.int64)
    if None in shape and len(shape) == shapes.shape[1]:
        shapes[:] = [d or 0 for d in shape]
    shapes[keep] = kept.shapes
    return Ragged(kept.values, shapes)


def needed(stored: Mapping[str, Field]) -> list[str]:
    """The step fields of every transition.

    Raises:
      KabukiError: one is missing.
    """
    found: list[str] = []
    for name in (OBSERVATION, ACTION, REWARD, DISCOUNT, IS_TERMINAL):
        paths = [path for path in stored if path == name or path.startswith(f"{name}/")]
        if not paths:
            raise KabukiError(
                f"there is no step field {name!r}, so there are no transitions; load_steps reads the rest"
            )
        found += paths
    return found
