"""Blocks of steps: the columns that flow from a source to a sink.

A column holds the rows of one field; the first axis is time. A column is

- a NumPy array if all rows have the same shape,
- `Ragged` if the shape varies from row to row,
- `Nested` if a row is a list of lists, and the inner lists differ in length.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Rows that are arrays of the same rank but of different shapes.

    Attributes:
      values: the elements of all rows in order, flattened: shape (elements,).
      shapes: the shape of each row: int64, (rows, rank).
    """

    values: np.ndarray
    shapes: np.ndarray

    def __len__(self) -> int:
        return len(self.shapes)

    @property
    def is_consistent(self) -> bool:
        """Whether `shapes` describes exactly the elements in `values`. Check this for data read from a file."""
        if (self.shapes < 0).any() or self.splits[-1] != len(self.values):
            return False
        # `splits` multiplies in int64, which may overflow; float64 does not.
        return bool((self.shapes.prod(axis=1, dtype=np.float64) <= len(self.values)).all())

    @functools.cached_property
    def splits(self) -> np.ndarray:
        """The index in `values` at which each row begins, then the total: int64, (rows + 1,)."""
        return row_splits(self.shapes.prod(axis=1, dtype=np.int64))

    def __getitem__(self, rows: slice) -> Ragged:
        start, stop, _ = rows.indices(len(self))
        splits = self.splits
        return Ragged(self.values[splits[start] : splits[max(start, stop)]], self.shapes[start:stop])

    @property
    def nbytes(self) -> int:
        return _values_nbytes(self.values) + self.shapes.nbytes


@dataclasses.dataclass(frozen=True)
class Nested:
    """Rows that are lists nested to the depth `len(lengths)`.

    Attributes:
      values: the innermost items of all rows in order: (items, *item shape).
      lengths: one int64 array per nesting level, outermost level first. It holds the
        length of every list at that level: `lengths[0]` has one entry per row, and
        `lengths[i + 1]` has `lengths[i].sum()` entries.
    """

    values: np.ndarray
    lengths: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return len(self.lengths[0])

    @property
    def is_consistent(self) -> bool:
        """Whether `lengths` describes exactly the items in `values`. Check this for data read from a file."""
        counts = [*(len(lengths) for lengths in self.lengths[1:]), len(self.values)]
        return all(
            not (lengths < 0).any() and (lengths <= count).all() and lengths.sum() == count
            for lengths, count in zip(self.lengths, counts, strict=True)
        )

    @functools.cached_property
    def splits(self) -> tuple[np.ndarray, ...]:
        """For each level, the index in the next level at which each list begins, then the total."""
        return tuple(map(row_splits, self.lengths))

    def __getitem__(self, rows: slice) -> Nested:
        start, stop, _ = rows.indices(len(self))
        stop = max(start, stop)
        kept = []
        for lengths, splits in zip(self.lengths, self.splits, strict=True):
            kept.append(lengths[start:stop])
            start, stop = int(splits[start]), int(splits[stop])
        return Nested(self.values[start:stop], tuple(kept))

    @property
    def nbytes(self) -> int:
        return _values_nbytes(self.values) + sum(x.nbytes for x in self.lengths)


Column: TypeAlias = np.ndarray | Ragged | Nested

#: `Column` is in the list for callers that do not know the kind of their column.
_AnyColumn = TypeVar("_AnyColumn", np.ndarray, Ragged, Nested, Column)


def concatenate(columns: Sequence[_AnyColumn]) -> _AnyColumn:
    """Concatenates one or more columns of the same kind along the time axis."""
    first = columns[0]
    if len(columns) == 1:
        return first
    parts: Sequence[Any] = columns
    if isinstance(first, np.ndarray):
        return np.concatenate(parts)
    values = np.concatenate([c.values for c in parts])
    if isinstance(first, Ragged):
        return Ragged(values, np.concatenate([c.shapes for c in parts]))
    levels = zip(*(c.lengths for c in parts), strict=True)
    return Nested(values, tuple(np.concatenate(level) for level in levels))


def take(column: _AnyColumn, rows: np.ndarray) -> _AnyColumn:
    """Copies the rows with the given indices, int64 (n,), in that order."""
    if isinstance(column, np.ndarray):
        return column.take(rows, axis=0)
    if isinstance(column, Ragged):
        starts = column.splits[rows]
        return Ragged(column.values[_runs(starts, column.splits[rows + 1] - starts)], column.shapes[rows])
    kept = []
    for lengths, splits in zip(column.lengths, column.splits, strict=True):
        kept.append(lengths[rows])
        rows = _runs(splits[rows], kept[-1])
    return Nested(column.values[rows], tuple(kept))


def as_ragged(column: np.ndarray) -> Ragged:
    """Converts an array to `Ragged`, with the same shape for every row."""
    return Ragged(column.reshape(-1), np.tile(np.array(column.shape[1:], np.int64), (len(column), 1)))


def as_nested(column: np.ndarray | Ragged, item: Sequence[int] = ()) -> Nested:
    """Converts rows that are arrays to nested lists of items.

    Args:
      column: the rows.
      item: shape of an item: the trailing dimensions of every row. The leading dimensions become lists.
    """
    if isinstance(column, np.ndarray):
        column = as_ragged(column)
    counts = np.ones(len(column), np.int64)
    lengths = []
    for sizes in column.shapes.T[: column.shapes.shape[1] - len(item)]:
        lengths.append(np.repeat(sizes, counts))
        counts = counts * sizes
    # `reshape(-1, ...)` cannot infer the number of items if an item has no elements.
    return Nested(column.values.reshape(int(counts.sum()), *item), tuple(lengths))


@dataclasses.dataclass(frozen=True)
class Block:
    """Consecutive steps, and the metadata of the episodes that begin among them.

    Attributes:
      steps: path to column; every column has `num_steps` rows.
      num_steps: the number of steps in the block; may be 0.
      starts: the row at which each episode begins, ascending: int64, (episodes,).
        An episode without steps has the same start as the next episode.
      metadata: path to column, one row per entry of `starts`.
      origin_of: for each entry of `starts` the index of its origin in the `origins` of
        the source: int64, (episodes,). None: all episodes come from the first origin.
    """

    steps: dict[str, Column]
    num_steps: int
    starts: np.ndarray
    metadata: dict[str, Column]
    origin_of: np.ndarray | None = None

    @property
    def num_episodes(self) -> int:
        return len(self.starts)

    @property
    def begins(self) -> np.ndarray:
        """True where an episode begins: bool, (num_steps + 1,). The last entry is the row after the block."""
        begins = np.zeros(self.num_steps + 1, bool)
        begins[self.starts] = True
        return begins

    @property
    def episode_of(self) -> np.ndarray:
        """For each row the index of its episode in `starts`: int64, (num_steps,).

        -1 means the episode that began in an earlier block.
        """
        begun = np.bincount(self.starts, minlength=self.num_steps + 1)[: self.num_steps]
        return np.cumsum(begun) - 1

    def episode_slices(self) -> Iterator[tuple[int, slice]]:
        """Yields the number and the rows of each episode in the block, in order.

        The first episode that begins in the block has the number 0. The one that continues from the block before, if
        there is one, has the number -1.
        """
        bounds = [0, *self.starts.tolist(), self.num_steps]
        for number, (start, stop) in enumerate(itertools.pairwise(bounds), -1):
            if number >= 0 or start < stop:
                yield number, slice(start, stop)

    def part(self, rows: slice, episodes: slice) -> Block:
        """A block with some of the rows and some of the episodes.

        Args:
          rows: the rows to keep; start and stop must be given, without a step.
          episodes: the entries of `starts` and `metadata` to keep: the episodes that begin in `rows`.
        """
        return Block(
            {path: column[rows] for path, column in self.steps.items()},
            rows.stop - rows.start,
            self.starts[episodes] - rows.start,
            {path: column[episodes] for path, column in self.metadata.items()},
            None if self.origin_of is None else self.origin_of[episodes],
        )

    def from_origins_at(self, first: int) -> Block:
        """A copy of the block whose origin indices are increased by `first`."""
        before = np.zeros(self.num_episodes, np.int64) if self.origin_of is None else self.origin_of
        return dataclasses.replace(self, origin_of=before + first)

    @property
    def nbytes(self) -> int:
        """The size in bytes of the decoded steps and metadata."""
        return nbytes((*self.steps.values(), *self.metadata.values()))


def nbytes(columns: Iterable[Column]) -> int:
    """The size in bytes of the elements of all `columns`, including the content of byte strings."""
    return sum(_values_nbytes(c) if isinstance(c, np.ndarray) else c.nbytes for c in columns)


def row_splits(lengths: np.ndarray) -> np.ndarray:
    """The offsets of consecutive runs with the given lengths, then the total: int64, (runs + 1,)."""
    splits = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=splits[1:])
    return splits


def row_range(rows: np.ndarray) -> tuple[int, int]:
    """(start, stop) of consecutive row numbers: int64, (count,)."""
    return (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)


def _runs(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Concatenates `arange(start, start + count)` for all pairs of `starts` and `counts`."""
    splits = row_splits(counts)
    return np.arange(splits[-1]) + np.repeat(starts - splits[:-1], counts)


def _values_nbytes(values: np.ndarray) -> int:
    if values.dtype == object:
        return sum(map(len, values.ravel().tolist()))
    return values.nbytes
