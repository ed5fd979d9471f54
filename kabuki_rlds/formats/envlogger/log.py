"""Reads one EnvLogger log: a folder with the metadata of the log, and a folder per shard."""

from __future__ import annotations

import logging
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from kabuki_rlds.data.block import row_splits
from kabuki_rlds.data.source import Skipped
from kabuki_rlds.errors import DamagedDataError, KabukiError
from kabuki_rlds.files.paths import subfolders
from kabuki_rlds.files.placeholders import check_is_data
from kabuki_rlds.formats.envlogger import fields, messages, protobuf, specs
from kabuki_rlds.formats.envlogger.messages import Leaves
from kabuki_rlds.formats.envlogger.shard import (
    EPISODE_METADATA,
    STEPS,
    LogShard,
    MessageBatch,
    remedy,
)
from kabuki_rlds.formats.riegeli import records

_log = logging.getLogger("kabuki_rlds")

_METADATA = "metadata.riegeli"
#: How many levels of folders are searched for logs: `run/seed/actor/log`.
_DEPTH = 4


def find(folder: pathlib.Path, depth: int = _DEPTH) -> Iterator[pathlib.Path]:
    """Yields the logs in a folder, in the order of their names. Numbers in names are ordered by value.

    Args:
      folder: the folder to search. It may be a log itself.
      depth: how many levels of folders to search.
    """
    inside = sorted(subfolders(folder), key=lambda path: _name_order(path.name))
    if (folder / _METADATA).is_file() or any((path / STEPS).is_file() for path in inside):
        yield folder
        return
    if depth:
        for path in inside:
            yield from find(path, depth - 1)


def _name_order(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)]


class EnvLoggerLog:
    """An EnvLogger log.

    Args:
      folder: its folder.
      skip_bad: leave out damaged episodes with a warning.

    Attributes:
      folder: its folder.
      shards: its shards, in order.
      metadata: the metadata of the log, as a Python object; None if it has none.
      specs: the specs of the environment.
      lengths: number of steps of each intact episode: int64, (episodes,).
      num_episodes: number of intact episodes.
      num_bytes: size on disk.
      num_skipped: number of episodes that are left out.
      skipped: the episodes that are left out.
      files: its files, except those of an unfinished shard, which may still be written to.

    Raises:
      DamagedDataError: the log is damaged and `skip_bad` is false, or it is not an EnvLogger log.
    """

    def __init__(self, folder: pathlib.Path, *, skip_bad: bool):
        self.folder = folder
        self.metadata = self._read_metadata()
        self.specs = specs.Specs(self.metadata)
        self._structure = fields.step_structure(self.specs)
        inside = sorted(path for path in folder.iterdir() if (path / STEPS).is_file())
        for path in inside:
            check_is_data(path / STEPS)
        self.shards = [LogShard(path, verify=skip_bad) for path in inside]
        damaged = [shard for shard in self.shards if shard.losses]
        if damaged and not skip_bad:
            what_to_do = remedy(has_rest=any(shard.is_whole.any() for shard in self.shards))
            others = [f"{shard.path}: {shard.losses}" for shard in damaged[1:]]
            raise DamagedDataError("; ".join([damaged[0].losses, *others, what_to_do]), file=damaged[0].path)
        for shard in damaged:
            _log.warning("%s: %s, and left out", shard.path, shard.losses)
        for shard in self.shards:
            if shard.is_cut:
                _log.warning("%s", _cut_short(shard))
        self.num_episodes = sum(int(shard.is_whole.sum()) for shard in self.shards)
        self.num_skipped = sum(len(shard.starts) for shard in self.shards) - self.num_episodes
        self.skipped = [loss for shard in self.shards for loss in _skipped(shard)]
        self.files = [path for shard in self.shards if not shard.is_cut for path in shard.folder.iterdir()]
        shard_lengths = [(shard.stops - shard.starts)[shard.is_whole] for shard in self.shards]
        self.lengths = np.concatenate([np.zeros(0, np.int64), *shard_lengths])
        self.num_bytes = sum(shard.num_bytes for shard in self.shards)

    def _read_metadata(self) -> Any:
        path = self.folder / _METADATA
        if not path.is_file():
            return None
        check_is_data(path)
        found, damage = records.read_small(path)
        if damage:
            _log.warning("%s: %s: the log's metadata is lost", path, damage)
        try:
            return specs.decode(found[0][1]) if found else None
        except (IndexError, KeyError, ValueError) as e:
            raise DamagedDataError(f"it is no metadata of EnvLogger's: {e}", file=path) from e

    def step_leaves(self, shard: LogShard, batch: MessageBatch) -> tuple[Leaves, np.ndarray]:
        """Decodes the fields of some steps.

        Returns:
          the values of each field, and whether each step has dm_env's type LAST: bool, (steps,).

        Raises:
          DamagedDataError: a step is damaged, or cannot be stored in columns.
        """
        try:
            found = messages.leaves(batch.steps, self._structure)
            return fields.of_steps(found), fields.is_last(found, len(batch.steps))
        except KabukiError as e:
            raise DamagedDataError(f"a step holds {e}", file=shard.path) from e
        except (ValueError, IndexError) as e:
            raise DamagedDataError(f"its records are no steps of EnvLogger's: {e}", file=shard.path) from e

    def episode_leaves(self) -> Leaves:
        """Decodes the metadata of all intact episodes.

        Returns:
          the values of each episode field.

        Raises:
          DamagedDataError: the metadata of an episode is damaged, or cannot be stored in columns.
        """
        rows: list[int] = []
        found: list[bytes] = []
        row = 0
        for shard in self.shards:
            for episode, message in _episode_metadata(shard):
                if shard.is_whole[episode]:
                    rows.append(row + int(shard.is_whole[:episode].sum()))
                    found.append(message)
            row += int(shard.is_whole.sum())
        splits = row_splits(np.array([len(message) for message in found], np.int64))
        data = np.frombuffer(b"".join(found), np.uint8)
        try:
            return fields.of_episodes(
                messages.leaves(protobuf.Spans(data, np.array(rows, np.int64), splits[:-1], splits[1:]))
            )
        except KabukiError as e:
            raise DamagedDataError(f"the metadata of an episode holds {e}", file=self.folder) from e
        except (ValueError, IndexError) as e:
            raise DamagedDataError(f"the metadata of an episode is none of EnvLogger's: {e}", file=self.folder) from e


def _episode_metadata(shard: LogShard) -> Iterator[tuple[int, bytes]]:
    """Yields number and metadata of each episode with metadata, as a serialized message."""
    path = shard.folder / EPISODE_METADATA
    if not path.is_file():
        return
    found, damage = records.read_small(path)
    if damage:
        _log.warning("%s: %s: the metadata of some episodes is lost", path, damage)
    messages_at = dict(found)
    for episode, position in enumerate(shard.metadata_at.tolist()):
        if position in messages_at:
            yield episode, messages_at[position]
    # Messages that are not in the index belong to the episodes that are not, in order, if each has one. The last
    # episode may have none.
    last = int(shard.metadata_at.max(initial=-1))
    not_indexed = [message for position, message in found if position > last]
    episodes = range(shard.num_indexed, len(shard.starts))
    if not damage and not_indexed and len(not_indexed) in (len(episodes), len(episodes) - 1):
        yield from zip(episodes, not_indexed, strict=False)


def _skipped(shard: LogShard) -> Iterator[Skipped]:
    """Yields the damaged episodes of a shard. Consecutive ones are one entry."""
    lost = np.flatnonzero(~shard.is_whole)
    for run in np.split(lost, np.flatnonzero(np.diff(lost) > 1) + 1):
        if len(run):
            yield Skipped(str(shard.path), int(run[0]), len(run), shard.losses)


def _cut_short(shard: LogShard) -> str:
    """Returns the warning for an unfinished shard."""
    what = f"{shard.path}: it was never finished, as when a process is killed"
    if not len(shard.starts):
        return f"{what}, and holds no step"
    return (
        f"{what}; {shard.num_recovered:,} steps that no index knows of are recovered, and the last episode "
        f"ends after {shard.stops[-1] - shard.starts[-1]:,} steps"
    )
