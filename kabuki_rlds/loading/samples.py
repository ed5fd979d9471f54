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

from kabuki_rlds.data.block import Column, Nested, Ragged, row_splits, take
from kabuki_rlds.data.rules import ACTION, DISCOUNT, IS_LAST, IS_TERMINAL, OBSERVATION, REWARD, is_flag_or_number
from kabuki_rlds.data.schema import Field, is_within
from kabuki_rlds.errors import SchemaMismatchError
from kabuki_rlds.loading.table import Take
from kabuki_rlds.loading.table_episodes import Episodes

NEXT_OBSERVATION = "next_observation"
MASK = "mask"
OBSERVATION_MASK = "observation_mask"

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

    def counts(self, episodes: Episodes) -> np.ndarray:
        """How many samples each of these episodes has, int64."""

    def gather(self, take: Take, anchors: np.ndarray, episodes: Episodes) -> dict[str, Column]:
        """The samples at these anchors; `episodes` has the episode of each.

        Columns have `prod(lead)` rows a sample.
        """

    def finish(self, columns: dict[str, Column]) -> dict[str, Column]:
        """What is left to do once image files are decoded."""


class SampleIndex:
    """Finds the anchor of each sample, of which there are `len`.

    Args:
      episodes: the episodes.
      samples: what is served.
    """

    def __init__(self, episodes: Episodes, samples: Samples):
        self._episodes = episodes
        self._splits = row_splits(samples.counts(episodes))

    def __len__(self) -> int:
        return int(self._splits[-1])

    def locate(self, numbers: np.ndarray) -> tuple[np.ndarray, Episodes]:
        """(anchor, episode) of each of the samples of these numbers."""
        # An episode without samples ends where it begins, and is passed over.
        return self._placed(numbers, np.searchsorted(self._splits, numbers, side="right") - 1)

    def run(self, start: int, stop: int) -> tuple[np.ndarray, Episodes]:
        """The same of the samples `start` to `stop`, of which there is at least one."""
        first, last = np.searchsorted(self._splits, [start, stop - 1], side="right").tolist()
        counts = np.diff(np.clip(self._splits[first - 1 : last + 1], start, stop))
        return self._placed(np.arange(start, stop), np.repeat(np.arange(first - 1, last), counts))

    def _placed(self, numbers: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, Episodes]:
        return numbers - (self._splits[:-1] - self._episodes.starts)[which], self._episodes[which]


@dataclasses.dataclass(frozen=True)
class StepSamples:
    """Single rows, with or without last observations, which have no action."""

    fields: dict[str, Field]
    keep_last: bool
    lead: tuple[int, ...] = ()
    rows: int = 1
    reach: int = 0

    def counts(self, episodes: Episodes) -> np.ndarray:
        return episodes.lengths if self.keep_last else episodes.num_actions

    def gather(self, take: Take, anchors: np.ndarray, episodes: Episodes) -> dict[str, Column]:
        return take(tuple(self.fields), anchors)

    def finish(self, columns: dict[str, Column]) -> dict[str, Column]:
        return columns


class TransitionSamples:
    """A step with what it led to, some steps on.

    Args:
      stored: the step fields that are read; observation and action, reward, discount
        and is_terminal among them. Rewards and discounts are those of `n_step` steps.
      n_step: how many steps on, or as many as the episode has left.

    Raises:
      KabukiError: a field has no place among those of a transition.
    """

    lead: tuple[int, ...] = ()
    rows = 2

    def __init__(self, stored: Mapping[str, Field], n_step: int):
        self.reach = n_step
        self._twice = {
            path: NEXT_OBSERVATION + path[len(OBSERVATION) :] for path in stored if is_within(path, OBSERVATION)
        }
        self._once = [path for path in stored if path not in self._twice and path not in (IS_LAST, IS_TERMINAL)]
        for path in self._once:
            if is_within(path, NEXT_OBSERVATION):
                raise SchemaMismatchError(
                    f"field {path!r}: a transition has a {NEXT_OBSERVATION} of its own; leave it out", fields=(path,)
                )
        nexts = {after: stored[path] for path, after in self._twice.items()}
        self.fields = {**stored, **nexts, IS_TERMINAL: _FLAG, IS_LAST: _FLAG}

    def counts(self, episodes: Episodes) -> np.ndarray:
        return np.maximum(episodes.transition_ends - episodes.starts, 0)

    def gather(self, take: Take, anchors: np.ndarray, episodes: Episodes) -> dict[str, Column]:
        # No observation follows a last row that is a step. Its own stands for it, masked by a discount of 0.
        nexts = np.minimum(anchors + self.reach, episodes.ends - 1)
        takes_last = anchors + self.reach >= episodes.transition_ends
        columns = take(self._once, anchors)
        both = take(list(self._twice), np.concatenate([anchors, nexts]))
        for path, after in self._twice.items():
            columns[path], columns[after] = both[path][: len(anchors)], both[path][len(anchors) :]
        is_terminal = take([IS_TERMINAL], nexts)[IS_TERMINAL]
        assert isinstance(is_terminal, np.ndarray)
        # The observation of a last row that is a step comes before the end, and is not terminal.
        columns[IS_TERMINAL] = is_terminal.astype(bool).reshape(-1) & (takes_last | (nexts < episodes.ends - 1))
        columns[IS_LAST] = takes_last
        discount = columns[DISCOUNT]
        assert isinstance(discount, np.ndarray)
        discount[takes_last & episodes.terminates] = 0
        return columns

    def finish(self, columns: dict[str, Column]) -> dict[str, Column]:
        return {path: columns[path] for path in self.fields}


class WindowSamples:
    """Runs of `length` consecutive rows of one episode, with masks of the rows that have an action or an observation.

    Args:
      stored: the step fields that are read.
      length: rows of a window.
      pad: also serve the windows that run past the end of their episode.

    Raises:
      KabukiError: a field is called as a mask is.
    """

    def __init__(self, stored: Mapping[str, Field], length: int, pad: bool):
        for path in stored:
            for mask in (MASK, OBSERVATION_MASK):
                if is_within(path, mask):
                    raise SchemaMismatchError(
                        f"field {path!r}: a window has a {mask} of its own; leave the field out by `fields`",
                        fields=(path,),
                    )
        self._stored = dict(stored)
        self._pad = pad
        self.fields = {**stored, MASK: _FLAG, OBSERVATION_MASK: _FLAG}
        self.lead = (length,)
        self.rows = length
        self.reach = length - 1

    def counts(self, episodes: Episodes) -> np.ndarray:
        return episodes.lengths if self._pad else np.maximum(episodes.lengths - self.reach, 0)

    def gather(self, take: Take, anchors: np.ndarray, episodes: Episodes) -> dict[str, Column]:
        rows = anchors[:, None] + np.arange(self.rows)
        # Rows past the end are read as the last row, and blanked when images are decoded.
        columns = take(tuple(self._stored), np.minimum(rows, episodes.ends[:, None] - 1).reshape(-1))
        columns[MASK] = (rows < episodes.action_ends[:, None]).reshape(-1)
        columns[OBSERVATION_MASK] = (rows < episodes.ends[:, None]).reshape(-1)
        return columns

    def finish(self, columns: dict[str, Column]) -> dict[str, Column]:
        inside = columns[OBSERVATION_MASK]
        assert isinstance(inside, np.ndarray)
        if inside.all():
            return columns
        return {
            path: column if path in (MASK, OBSERVATION_MASK) else blanked(column, inside, self.fields[path].shape)
            for path, column in columns.items()
        }


def blanked(column: Column, keep: np.ndarray, shape: Sequence[int | None]) -> Column:
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
      KabukiError: one is missing, or is not what a transition needs.
    """
    found: list[str] = []
    for name in (OBSERVATION, ACTION, REWARD, DISCOUNT, IS_TERMINAL):
        paths = [path for path in stored if is_within(path, name)]
        if not paths:
            raise SchemaMismatchError(
                f"has no step field {name!r}, so transitions cannot be made; load_steps reads the other fields",
                fields=(name,),
            )
        if name in (OBSERVATION, ACTION):
            found += paths
            continue
        if name not in stored:
            raise SchemaMismatchError(
                f"field {name!r} is a group, of {', '.join(paths)}, where a transition needs real numbers",
                fields=(name,),
            )
        field = stored[name]
        # Rewards may be several, each for an aim of its own.
        is_one = name == REWARD or field.shape in ((), (1,))
        if not (field.is_fixed and is_flag_or_number(field.dtype) and is_one):
            wanted = "real numbers" if name == REWARD else "one real number a step"
            raise SchemaMismatchError(
                f"field {name!r} is {field.describe()}, where a transition needs {wanted}", fields=(name,)
            )
        found.append(name)
    return found
