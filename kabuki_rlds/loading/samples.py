"""The kinds of samples: steps, transitions, and windows of consecutive steps.

Each sample has a row that is its anchor. Different samples have different anchors, and
a sample uses only rows of one episode. The anchors of an episode follow each other
without a gap, so the first one and their number are enough to find all of them.
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

FLAG = Field(np.dtype(bool))


class Samples(Protocol):
    """A kind of sample.

    Attributes:
      fields: path to field, for all columns of a sample. Images are not decoded.
      leads: path to the shape of a sample in rows: () or (rows,).
      rows: approximate number of rows that are read for a sample.
      back: the maximum number of rows before the anchor that a sample uses.
      reach: the maximum number of rows after the anchor that a sample uses.
    """

    @property
    def fields(self) -> dict[str, Field]: ...
    @property
    def leads(self) -> Mapping[str, tuple[int, ...]]: ...
    @property
    def rows(self) -> int: ...
    @property
    def back(self) -> int: ...
    @property
    def reach(self) -> int: ...

    def anchors(self, episodes: Episodes) -> tuple[np.ndarray, np.ndarray]:
        """(first anchor, number of samples) of each episode: int64, (episodes,) each."""

    def gather(self, take: Take, anchors: np.ndarray, episodes: Episodes) -> dict[str, Column]:
        """Reads the samples with the given anchors.

        Args:
          take: reads rows of fields.
          anchors: the anchors: int64, (samples,).
          episodes: the episode of each anchor.

        Returns:
          path to a column with `prod(leads[path])` rows per sample.
        """

    def finish(self, columns: dict[str, Column]) -> dict[str, Column]:
        """Completes the columns of `gather` after their images were decoded."""


class SampleIndex:
    """Maps a sample index to its anchor and episode. `len` is the number of samples.

    Args:
      episodes: the episodes.
      samples: the kind of samples.
    """

    def __init__(self, episodes: Episodes, samples: Samples):
        self._episodes = episodes
        self._first, counts = samples.anchors(episodes)
        self._splits = row_splits(counts)

    def __len__(self) -> int:
        return int(self._splits[-1])

    def locate(self, numbers: np.ndarray) -> tuple[np.ndarray, Episodes]:
        """(anchors, episodes) of the samples with the given indices."""
        return self._anchors(numbers, self.which(numbers))

    def run(self, start: int, stop: int) -> tuple[np.ndarray, Episodes]:
        """(anchors, episodes) of the samples `start` to `stop`, with `start` < `stop`."""
        first, last = np.searchsorted(self._splits, [start, stop - 1], side="right").tolist()
        counts = np.diff(np.clip(self._splits[first - 1 : last + 1], start, stop))
        return self._anchors(np.arange(start, stop), np.repeat(np.arange(first - 1, last), counts))

    def which(self, numbers: np.ndarray) -> np.ndarray:
        """The episode of each sample: int64."""
        # side="right" skips episodes without samples.
        return np.searchsorted(self._splits, numbers, side="right") - 1

    def _anchors(self, numbers: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, Episodes]:
        return numbers - (self._splits[:-1] - self._first)[which], self._episodes[which]


@dataclasses.dataclass(frozen=True)
class StepSamples:
    """Single rows. `keep_last` includes last rows that hold only an observation."""

    fields: dict[str, Field]
    keep_last: bool
    rows: int = 1
    back: int = 0
    reach: int = 0

    @property
    def leads(self) -> Mapping[str, tuple[int, ...]]:
        return dict.fromkeys(self.fields, ())

    def anchors(self, episodes: Episodes) -> tuple[np.ndarray, np.ndarray]:
        return episodes.starts, episodes.lengths if self.keep_last else episodes.num_actions

    def gather(self, take: Take, anchors: np.ndarray, episodes: Episodes) -> dict[str, Column]:
        return take(tuple(self.fields), anchors)

    def finish(self, columns: dict[str, Column]) -> dict[str, Column]:
        return columns


class TransitionSamples:
    """A step, and the observation `n_step` steps later or at the end of the episode.

    Args:
      stored: the step fields to read, including observation, action, reward, discount
        and is_terminal. The rewards and discounts are already those of `n_step` steps.
      n_step: the number of steps.

    Raises:
      SchemaMismatchError: a field is named `next_observation`.
    """

    rows = 2
    back = 0

    def __init__(self, stored: Mapping[str, Field], n_step: int):
        self.reach = n_step
        self._twice = {
            path: NEXT_OBSERVATION + path[len(OBSERVATION) :] for path in stored if is_within(path, OBSERVATION)
        }
        self._once = [path for path in stored if path not in self._twice and path not in (IS_LAST, IS_TERMINAL)]
        for path in self._once:
            if is_within(path, NEXT_OBSERVATION):
                raise SchemaMismatchError(
                    f"field {path!r} conflicts with the {NEXT_OBSERVATION} of transitions; remove it from `fields`",
                    fields=(path,),
                )
        nexts = {after: stored[path] for path, after in self._twice.items()}
        self.fields = {**stored, **nexts, IS_TERMINAL: FLAG, IS_LAST: FLAG}
        self.leads: Mapping[str, tuple[int, ...]] = dict.fromkeys(self.fields, ())

    def anchors(self, episodes: Episodes) -> tuple[np.ndarray, np.ndarray]:
        return episodes.starts, np.maximum(episodes.transition_ends - episodes.starts, 0)

    def gather(self, take: Take, anchors: np.ndarray, episodes: Episodes) -> dict[str, Column]:
        # No observation follows a last row that is a step. Serve its own observation; the discount 0 masks it.
        nexts = np.minimum(anchors + self.reach, episodes.ends - 1)
        takes_last = anchors + self.reach >= episodes.transition_ends
        columns = take(self._once, anchors)
        both = take(list(self._twice), np.concatenate([anchors, nexts]))
        for path, after in self._twice.items():
            columns[path], columns[after] = both[path][: len(anchors)], both[path][len(anchors) :]
        is_terminal = take([IS_TERMINAL], nexts)[IS_TERMINAL]
        assert isinstance(is_terminal, np.ndarray)
        # If the last row is a step, is_terminal belongs to the step and not to its observation. So a transition is
        # terminal only if it includes this step.
        columns[IS_TERMINAL] = is_terminal.astype(bool).reshape(-1) & (takes_last | (nexts < episodes.ends - 1))
        columns[IS_LAST] = takes_last
        discount = columns[DISCOUNT]
        assert isinstance(discount, np.ndarray)
        discount[takes_last & episodes.terminates] = 0
        return columns

    def finish(self, columns: dict[str, Column]) -> dict[str, Column]:
        return {path: columns[path] for path in self.fields}


class WindowSamples:
    """Windows of `length` consecutive rows of an episode, with masks for actions and observations.

    Args:
      stored: the step fields to read.
      length: the number of rows of a window.
      pad: whether to also serve windows that extend past the end of their episode.

    Raises:
      SchemaMismatchError: a field has the name of a mask.
    """

    def __init__(self, stored: Mapping[str, Field], length: int, pad: bool):
        for path in stored:
            for mask in (MASK, OBSERVATION_MASK):
                if is_within(path, mask):
                    raise SchemaMismatchError(
                        f"field {path!r} conflicts with the {mask} of windows; select the other fields with `fields`",
                        fields=(path,),
                    )
        self._stored = dict(stored)
        self._pad = pad
        self.fields = {**stored, MASK: FLAG, OBSERVATION_MASK: FLAG}
        self.leads: Mapping[str, tuple[int, ...]] = dict.fromkeys(self.fields, (length,))
        self.rows = length
        self.back = 0
        self.reach = length - 1

    def anchors(self, episodes: Episodes) -> tuple[np.ndarray, np.ndarray]:
        return episodes.starts, episodes.lengths if self._pad else np.maximum(episodes.lengths - self.reach, 0)

    def gather(self, take: Take, anchors: np.ndarray, episodes: Episodes) -> dict[str, Column]:
        rows = anchors[:, None] + np.arange(self.rows)
        # Read the last row instead of rows past the end. `finish` sets them to zero after images are decoded.
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
    """The column with the other rows set to zeros or to empty values.

    Args:
      column: the column; a NumPy array is modified in place.
      keep: the rows to keep: bool, (rows,).
      shape: shape of a row, as in `Field.shape`.
    """
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
    """The paths of the step fields that transitions need.

    Raises:
      SchemaMismatchError: a field is missing, or has the wrong type.
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
                f"field {name!r} is a group ({', '.join(paths)}), but a transition needs one field of real numbers",
                fields=(name,),
            )
        field = stored[name]
        # A row may have several rewards, one per objective.
        is_one = name == REWARD or field.shape in ((), (1,))
        if not (field.is_fixed and is_flag_or_number(field.dtype) and is_one):
            wanted = "real numbers" if name == REWARD else "one real number per step"
            raise SchemaMismatchError(
                f"field {name!r} is {field.describe()}, but a transition needs {wanted}", fields=(name,)
            )
        found.append(name)
    return found
