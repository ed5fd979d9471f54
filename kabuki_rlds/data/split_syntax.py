"""Parses TFDS's syntax for slices of splits (`train[10:20]+train[-5%:]`), for sources that TFDS does not read.

A boundary is an episode index, or a percentage with `%`. Negative boundaries count from the end. (Source: TFDS's
guide "Splits and slicing".)
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from kabuki_rlds.data.block import Block
from kabuki_rlds.errors import InvalidArgumentError

#: The split name of a source that has only one split.
WHOLE = "train"
#: The split name for all episodes of a source.
ALL = "all"

_PART = re.compile(r"(?P<name>[\w-]+)(\[(?P<start>[^:\]]*):(?P<stop>[^:\]]*)\])?")
_SHARD = re.compile(r"[\w-]+\[.*shard.*\]")
_BOUNDARY = re.compile(r"(-?\d[\d_]*)|(-?[\d_.]+)%")


class SplitError(InvalidArgumentError):
    """The split does not exist, or the slice of it is invalid."""


def select_episodes(split: str, splits: Mapping[str, np.ndarray], label: str) -> np.ndarray:
    """The indices of the selected episodes, in the order of `split`: int64, (episodes,).

    Args:
      split: slices of splits, joined by `+`.
      splits: name of each split to the indices of its episodes: int64, ascending.
      label: the name of the source for messages.

    Raises:
      SplitError: a split does not exist, or a slice is invalid.
    """
    parts = [_part(text.strip(), split, splits, label) for text in split.split("+")]
    return np.concatenate(parts)


def runs(numbers: Sequence[int] | np.ndarray) -> Iterator[tuple[int, int]]:
    """Yields (first, last + 1) for each run of consecutive numbers."""
    numbers = np.asarray(numbers, np.int64)
    cuts = np.flatnonzero(np.diff(numbers) != 1) + 1
    for start, stop in itertools.pairwise([0, *cuts.tolist(), len(numbers)]):
        if start < stop:
            yield int(numbers[start]), int(numbers[stop - 1]) + 1


def _part(text: str, split: str, splits: Mapping[str, np.ndarray], label: str) -> np.ndarray:
    found = _PART.fullmatch(text)
    if found is None:
        if _SHARD.fullmatch(text):
            raise SplitError(
                f"{label}: split {split!r}: only TFDS datasets have shards; select episodes instead, for example "
                "'train[:10]' or 'train[:10%]'"
            )
        raise SplitError(
            f"{label}: split {split!r}: cannot parse {text!r}; write 'train', 'train[5:10]' or 'train[:10%]', "
            "and join several with +"
        )
    episodes = splits.get(found["name"])
    if episodes is None:
        have = ", ".join(f"{name} ({_num_episodes(each)})" for name, each in splits.items() if name != ALL)
        raise SplitError(f"{label}: has no split {found['name']!r}; the splits are {have}")
    if found["start"] is None:
        return episodes
    if not found["start"] and not found["stop"]:
        raise SplitError(
            f"{label}: split {split!r}: {text!r} has no boundary; write {found['name']!r} for the whole split"
        )
    count = len(episodes)
    bounds = [
        _boundary(boundary, default, count, f"{label}: split {split!r}", text)
        for boundary, default in ((found["start"], 0), (found["stop"], count))
    ]
    start, stop = bounds
    if start > stop:
        raise SplitError(
            f"{label}: split {split!r}: {text!r} ends at episode {stop}, before it begins at episode {start}"
        )
    return episodes[start:stop]


def _num_episodes(episodes: np.ndarray) -> str:
    return "1 episode" if len(episodes) == 1 else f"{len(episodes):,} episodes"


def _boundary(text: str, default: int, count: int, label: str, part: str) -> int:
    """The episode index of a boundary, from 0 to `count`."""
    if not text:
        return default
    found = _BOUNDARY.fullmatch(text.strip())
    try:
        if found is None:
            raise ValueError
        if found[1] is not None:
            number = int(found[1])
        else:
            share = float(found[2])
            if abs(share) > 100:
                raise SplitError(f"{label}: {part!r}: {text} is more than 100 %")
            number = round(share * count / 100)
    except SplitError:
        raise
    except ValueError:
        shards = "; only TFDS datasets have shards" if text.endswith("shard") else ""
        raise SplitError(f"{label}: {part!r}: {text!r} is not an episode index and not a percentage{shards}") from None
    if abs(number) > count:
        raise SplitError(f"{label}: {part!r}: the split has only {count:,} episodes")
    return number + count if number < 0 else number


def read_episodes(read: Callable[[], Iterator[Block]], episodes: np.ndarray) -> Iterator[Block]:
    """Yields the blocks of some episodes of a source that can only be read from its beginning.

    Args:
      read: returns an iterator over the blocks of all episodes.
      episodes: the indices of the episodes, in the order in which to yield them.
    """
    for first, stop in runs(episodes):
        begun = 0
        for block in read():
            # Indices relative to the first episode that begins in this block; -1 is the one that continues.
            low, high = first - begun, stop - begun
            rows = slice(*(_row(block, number) for number in (low, high)))
            if rows.start < rows.stop or 0 <= low < high:
                yield block.part(rows, slice(max(low, 0), max(min(high, block.num_episodes), 0)))
            begun += block.num_episodes
            if begun > stop:
                break


def _row(block: Block, number: int) -> int:
    """The row at which the episode with index `number` in the block begins, limited to the rows of the block."""
    if number < 0:
        return 0
    return int(block.starts[number]) if number < block.num_episodes else block.num_steps
