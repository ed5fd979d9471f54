"""One log of EnvLogger's: a folder with the metadata of all, and a folder for each shard."""

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
    REMEDY,
    REMEDY_WITHOUT_REST,
    STEPS,
    LogShard,
    MessageBatch,
)
from kabuki_rlds.formats.riegeli import records

_log = logging.getLogger("kabuki_rlds")

_METADATA = "metadata.riegeli"
#: How many folders deep logs are looked for, unless told: `run/seed/actor/log`.
_DEPTH = 4


def find(folder: pathlib.Path, depth: int = _DEPTH) -> Iterator[pathlib.Path]:
    """The logs in a folder, in the order of their names; numbers in these by their size.

    Args:
      folder: where to look: it may be a log itself.
      depth: how many folders deep to look.
    """
    inside = sorted(subfolders(folder), key=lambda path: _in_order(path.name))
    if (folder / _METADATA).is_file() or any((path / STEPS).is_file() for path in inside):
        yield folder
        return
    if depth:
        for path in inside:
            yield from find(path, depth - 1)


def _in_order(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)]


class EnvLoggerLog:
    """A log.

    Args:
      folder: where it is.
      skip_bad: leave out the episodes that are damaged, and warn of them.

    Attributes:
      folder: where it is.
      shards: its shards, in order.
      metadata: what the log says of all its episodes, as a Python object.
      specs: of the environment.
      lengths: how many steps each of its whole episodes has: int64, (episodes,).
      num_episodes: how many whole episodes it has.
      num_bytes: bytes on disk.
      num_skipped: how many episodes are left out.
      skipped: which they are.
      files: what it consists of, but for a shard that was never finished.

    Raises:
      KabukiError: it is damaged and `skip_bad` is false, or is none of EnvLogger's.
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
            remedy = REMEDY if any(shard.is_whole.any() for shard in self.shards) else REMEDY_WITHOUT_REST
            others = [f"{shard.path}: {shard.losses}" for shard in damaged[1:]]
            raise DamagedDataError("; ".join([damaged[0].losses, *others, remedy]), file=damaged[0].path)
        for shard in damaged:
            _log.warning("%s: %s, and left out", shard.path, shard.losses)
        for shard in self.shards:
            if shard.is_cut:
                _log.warning("%s", _cut_short(shard))
        self.num_episodes = sum(int(shard.is_whole.sum()) for shard in self.shards)
        self.num_skipped = sum(len(shard.starts) for shard in self.shards) - self.num_episodes
        self.skipped = [loss for shard in self.shards for loss in _skipped(shard)]
        # The last shard may still be written to.
        self.files = [path for shard in self.shards if not shard.is_cut for path in shard.folder.iterdir()]
        of_shards = [(shard.stops - shard.starts)[shard.is_whole] for shard in self.shards]
        self.lengths = np.concatenate([np.zeros(0, np.int64), *of_shards])
        self.num_bytes = sum(shard.num_bytes for shard in self.shards)

    def _read_metadata(self) -> Any:
        path = self.folder / _METADATA
        if not path.is_file():
            return None
        check_is_data(path)
        found, wrong = records.read_small(path)
        if wrong:
            _log.warning("%s: %s: the log's metadata is lost", path, wrong)
        try:
            return specs.decode(found[0][1]) if found else None
        except (IndexError, KeyError, ValueError) as e:
            raise DamagedDataError(f"it is no metadata of EnvLogger's: {e}", file=path) from e

    def step_leaves(self, shard: LogShard, batch: MessageBatch) -> tuple[Leaves, np.ndarray]:
        """Takes some steps apart.

        Returns:
          The pieces of each field, by its path, and whether each step is of dm_env's type LAST.

        Raises:
          KabukiError: a step cannot stand in columns.
        """
        try:
            found = messages.leaves(batch.steps, self._structure)
            return fields.of_steps(found), fields.is_last(found, len(batch.steps))
        except KabukiError as e:
            raise DamagedDataError(f"a step holds {e}", file=shard.path) from e
        except (ValueError, IndexError) as e:
            raise DamagedDataError(f"its records are no steps of EnvLogger's: {e}", file=shard.path) from e

    def episode_leaves(self) -> Leaves:
        """The pieces of each field of the whole episodes of all shards, by its path.

        Raises:
          KabukiError: the metadata of an episode cannot stand in columns.
        """
        rows: list[int] = []
        found: list[bytes] = []
        row = 0
        for shard in self.shards:
            for at, text in _episode_metadata(shard):
                if shard.is_whole[at]:
                    rows.append(row + int(shard.is_whole[:at].sum()))
                    found.append(text)
            row += int(shard.is_whole.sum())
        splits = row_splits(np.array([len(text) for text in found], np.int64))
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
    """The metadata of each episode that has some, with the number of the episode."""
    path = shard.folder / EPISODE_METADATA
    if not path.is_file():
        return
    found, wrong = records.read_small(path)
    if wrong:
        _log.warning("%s: %s: the metadata of some episodes is lost", path, wrong)
    at = dict(found)
    for episode, position in enumerate(shard.metadata_at.tolist()):
        if position in at:
            yield episode, at[position]
    # What no index knows of is in the order of the episodes, if each of them has some.
    last = int(shard.metadata_at.max(initial=-1))
    rest = [text for position, text in found if position > last]
    unknown = range(shard.num_indexed, len(shard.starts))
    if not wrong and rest and len(rest) in (len(unknown), len(unknown) - 1):
        yield from zip(unknown, rest, strict=False)


def _skipped(shard: LogShard) -> Iterator[Skipped]:
    """The episodes of a shard that are not whole, in runs of such."""
    lost = np.flatnonzero(~shard.is_whole)
    for run in np.split(lost, np.flatnonzero(np.diff(lost) > 1) + 1):
        if len(run):
            yield Skipped(str(shard.path), int(run[0]), len(run), shard.losses)


def _cut_short(shard: LogShard) -> str:
    what = f"{shard.path}: it was never finished, as when a process is killed"
    if not len(shard.starts):
        return f"{what}, and holds no step"
    return (
        f"{what}; {shard.num_recovered:,} steps that no index knows of are recovered, and the last episode "
        f"ends after {shard.stops[-1] - shard.starts[-1]:,} steps"
    )
