"""What an RLDS dataset states of the last rows of its episodes, in TFDS's `metadata.json`.

RLDS itself has no place for it. `build` stores, for each split, runs of episodes in their order:

    {"kabuki": {"last_is_step": {"train": [[true, 120], [false, 3]]}}}

An episode beyond the last run was recorded later. Recorders keep the last observation in a row of its own.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kabuki_rlds.data.block import row_splits
from kabuki_rlds.data.last_row import LastRows
from kabuki_rlds.formats.rlds.shards import ShardSlice

_log = logging.getLogger("kabuki_rlds")

#: The entry of `metadata.json` that belongs to this package. It is none of the environment's.
KEY = "kabuki"
_NAME = "last_is_step"


def to_metadata(by_split: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The entry of `metadata.json`.

    Args:
      by_split: split to whether the last row of each of its episodes is a step: bool, (episodes,).
    """
    return {KEY: {_NAME: {split: _runs(is_step) for split, is_step in by_split.items()}}}


class StatedLastRows:
    """What the metadata of a dataset states of its last rows.

    Args:
      info: what TFDS knows of the dataset.
      label: what to call it in a message.
    """

    def __init__(self, info: Any, label: str):
        self._of_shard: dict[str, np.ndarray] = {}
        metadata = info.metadata or {}
        stated = metadata.get(KEY)
        stated = stated.get(_NAME) if isinstance(stated, dict) else None
        self._splits: set[str] = set()
        for split, runs in stated.items() if isinstance(stated, dict) else ():
            of_split = info.splits.get(split) if info.splits else None
            if of_split is None:
                continue
            is_step = _episodes(runs, of_split.num_examples)
            if is_step is None:
                _log.warning("%s: metadata.json: %s of split %r is malformed, and ignored", label, _NAME, split)
                continue
            paths = list(of_split.filepaths) if of_split.num_examples else []
            bounds = row_splits(np.array(of_split.shard_lengths, np.int64)).tolist()
            for path, (start, stop) in zip(paths, itertools.pairwise(bounds), strict=False):
                self._of_shard[str(path)] = is_step[start:stop]
            self._splits.add(split)

    def of(self, shards: Sequence[ShardSlice], splits: set[str]) -> LastRows | None:
        """Those of the episodes of some slices, in order; None where nothing is stated of one.

        Args:
          shards: the slices.
          splits: the splits that they belong to.
        """
        if not splits or not splits <= self._splits:
            return None
        parts = [np.zeros(0, bool)]
        for shard in shards:
            numbers = np.arange(shard.skip, shard.skip + shard.expected + len(shard.lost))
            if shard.lost:
                numbers = numbers[~np.isin(numbers, sorted(shard.lost))][: shard.expected]
            known = self._of_shard.get(shard.path, np.zeros(0, bool))
            is_step = np.zeros(len(numbers), bool)
            stated = numbers < len(known)
            is_step[stated] = known[numbers[stated]]
            parts.append(is_step)
        return LastRows(np.concatenate(parts), "the dataset's metadata states it")


def _runs(is_step: np.ndarray) -> list[list[Any]]:
    """Runs of equal flags, each a flag and how often it comes."""
    cuts = np.flatnonzero(np.diff(is_step)) + 1
    bounds = [0, *cuts.tolist(), len(is_step)]
    return [[bool(is_step[a]), b - a] for a, b in itertools.pairwise(bounds) if b > a]


def _episodes(runs: object, num_episodes: int) -> np.ndarray | None:
    """The flags of runs: bool, (num_episodes,); None where they are malformed or too many."""
    is_step = np.zeros(num_episodes, bool)
    at = 0
    for run in runs if isinstance(runs, list) else [None]:
        if not (isinstance(run, list) and len(run) == 2 and isinstance(run[0], bool) and type(run[1]) is int):
            return None
        if run[1] < 0 or at + run[1] > num_episodes:
            return None
        is_step[at : at + run[1]] = run[0]
        at += run[1]
    return is_step
