"""Stores in TFDS's `metadata.json` whether the last row of each episode is a step.

RLDS has no field for this. `build` stores a run-length encoding for each split, in episode order:

    {"kabuki": {"last_is_step": {"train": [[true, 120], [false, 3]]}}}

Episodes after the last run were recorded later. Their last row is not a step, because recorders store the last
observation in a separate row.
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

#: The key of this package in `metadata.json`. Other keys describe the environment.
KEY = "kabuki"
_NAME = "last_is_step"


def to_metadata(by_split: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the entry for `metadata.json`.

    Args:
      by_split: split to flags: whether the last row of each episode is a step: bool, (episodes,).
    """
    return {KEY: {_NAME: {split: _runs(is_step) for split, is_step in by_split.items()}}}


class StoredLastRows:
    """The last-row flags in the metadata of a dataset.

    Args:
      info: the `DatasetInfo` of the dataset.
      label: name of the dataset in warnings.
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
                _log.warning("%s: metadata.json: malformed %s of split %r is ignored", label, _NAME, split)
                continue
            paths = list(of_split.filepaths) if of_split.num_examples else []
            bounds = row_splits(np.array(of_split.shard_lengths, np.int64)).tolist()
            for path, (start, stop) in zip(paths, itertools.pairwise(bounds), strict=False):
                self._of_shard[str(path)] = is_step[start:stop]
            self._splits.add(split)

    def of(self, shards: Sequence[ShardSlice], splits: set[str]) -> LastRows | None:
        """Returns the flags of the episodes of some slices, in order, or None if the metadata lacks one of the splits.

        Args:
          shards: the slices.
          splits: the splits that the slices belong to.
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
    """Returns the run-length encoding of the flags: [flag, number of repetitions] of each run."""
    cuts = np.flatnonzero(np.diff(is_step)) + 1
    bounds = [0, *cuts.tolist(), len(is_step)]
    return [[bool(is_step[a]), b - a] for a, b in itertools.pairwise(bounds) if b > a]


def _episodes(runs: object, num_episodes: int) -> np.ndarray | None:
    """Decodes runs to flags: bool, (num_episodes,). Returns None if they are malformed or too long."""
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
