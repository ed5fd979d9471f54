"""Blocks of steps: the columns that flow from a source to a sink.

A column holds the rows of one field, time first. It is a NumPy array where every
row has one shape, `Ragged` where the shape varies from row to row, and `Nested`
where a row is a list of lists of differing lengths.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Rows that are arrays of one rank and differing shapes.

    Attributes:
      values: all elements, row after row, flat: shape (elements,).
      shapes: the shape of each row: int64, (rows, rank).
    """

    values: np.ndarray
    shapes: np.ndarray

    def __len__(self) -> int:
        return len(self.shapes)

    @property
    def is_consistent(self) -> bool:
        """Whether the shapes are those of the elements, which is to be asked of what comes from a file."""
        if (self.shapes < 0).any() or self.splits[-1] != len(self.values):
            return False
        # A product that is too large for an integer is another one.
        return bool((self.shapes.prod(axis=1, dtype=np.float64) <= len(self.values)).all())

    @functools.cached_property
    def splits(self) -> np.ndarray:
        """Where each row's elements begin in `values`, and the end: int64, (rows + 1,)."""
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
    """Rows that are lists of lists, as deep as `lengths` is long.

    Attributes:
      values: the innermost items, one after the other: (items, *shape of an item).
      lengths: for each level the length of each list in it, outermost first. The
        first has one length a row; each next one has as many as the one before
        sums to. int64.
    """

    values: np.ndarray
    lengths: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return len(self.lengths[0])

    @property
    def is_consistent(self) -> bool:
        """Whether the lengths are those of the items, which is to be asked of what comes from a file."""
        counts = [*(len(lengths) for lengths in self.lengths[1:]), len(self.values)]
        return all(
            not (lengths < 0).any() and (lengths <= count).all() and lengths.sum() == count
            for lengths, count in zip(self.lengths, counts, strict=True)
        )

    @functools.cached_property
    def splits(self) -> tuple[np.ndarray, ...]:
        """For each level, where each list's items begin in the next, and the end."""
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

#: The last is a column whose kind is not known.
_AnyColumn = TypeVar("_AnyColumn", np.ndarray, Ragged, Nested, Column)


def concatenate(columns: Sequence[_AnyColumn]) -> _AnyColumn:
    """Joins columns of one kind, of which there is at least one, end to end."""
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
    """The rows of the given numbers, int64 (n,), in that order. They are copies."""
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
    """Rows of one shape, as rows that may differ in shape."""
    return Ragged(column.reshape(-1), np.tile(np.array(column.shape[1:], np.int64), (len(column), 1)))


def as_nested(column: np.ndarray | Ragged, item: Sequence[int] = ()) -> Nested:
    """Rows that are arrays, as lists in lists of items: arrays of the last dimensions, which are the same in all."""
    if isinstance(column, np.ndarray):
        column = as_ragged(column)
    counts = np.ones(len(column), np.int64)
    lengths = []
    for sizes in column.shapes.T[: column.shapes.shape[1] - len(item)]:
        lengths.append(np.repeat(sizes, counts))
        counts = counts * sizes
    # Counted by the lists, since items without elements leave nothing to count.
    return Nested(column.values.reshape(int(counts.sum()), *item), tuple(lengths))


@dataclasses.dataclass(frozen=True)
class Block:
    """A run of consecutive steps, and the metadata of the episodes that begin in it.

    Attributes:
      steps: path to column; every column has `num_steps` rows.
      num_steps: how many steps the block holds, which may be none.
      starts: the row at which each episode begins, ascending, int64, (episodes,).
        An episode without steps begins where the next one does.
      metadata: path to column, one row for each of `starts`.
      origin_of: for each of `starts`, the number of the source's origin that the episode came from: int64,
        (episodes,). None: all came from the first origin.
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
        """Whether an episode begins at each row, and at the one after the last: bool, (num_steps + 1,)."""
        begins = np.zeros(self.num_steps + 1, bool)
        begins[self.starts] = True
        return begins

    @property
    def episode_of(self) -> np.ndarray:
        """The number of the episode that each row belongs to: int64, (num_steps,).

        The first that begins in the block is 0; -1 is the one that goes on from the block before.
        """
        begun = np.bincount(self.starts, minlength=self.num_steps + 1)[: self.num_steps]
        return np.cumsum(begun) - 1

    def part(self, rows: slice, episodes: slice) -> Block:
        """Some rows, and the episodes that begin in them.

        Args:
          rows: the rows, from a first to a last.
          episodes: the numbers of the episodes, of which the first that begins in the block is 0.
        """
        return Block(
            {path: column[rows] for path, column in self.steps.items()},
            rows.stop - rows.start,
            self.starts[episodes] - rows.start,
            {path: column[episodes] for path, column in self.metadata.items()},
            None if self.origin_of is None else self.origin_of[episodes],
        )

    def from_origins_at(self, first: int) -> Block:
        """The block with its origins numbered from `first` on."""
        before = np.zeros(self.num_episodes, np.int64) if self.origin_of is None else self.origin_of
        return dataclasses.replace(self, origin_of=before + first)

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded steps and metadata."""
        return nbytes((*self.steps.values(), *self.metadata.values()))


def nbytes(columns: Iterable[Column]) -> int:
    """Bytes of the elements of all `columns`, those of byte strings included."""
    return sum(_values_nbytes(c) if isinstance(c, np.ndarray) else c.nbytes for c in columns)


def row_splits(lengths: np.ndarray) -> np.ndarray:
    """Where each run of the given lengths begins, and the end: int64, (runs + 1,)."""
    splits = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=splits[1:])
    return splits


def _runs(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`start, start + 1, …`, so many of each run, one run after the other."""
    splits = row_splits(counts)
    return np.arange(splits[-1]) + np.repeat(starts - splits[:-1], counts)


def _values_nbytes(values: np.ndarray) -> int:
    if values.dtype == object:
        return sum(map(len, values.ravel().tolist()))
    return values.nbytes
