"""EnvLogger logs as a source: one log, or all logs in a folder."""

from __future__ import annotations

import copy
import functools
import logging
import os
import pathlib
from collections.abc import Collection, Iterator

import numpy as np

from kabuki_rlds.data.block import Block, Column, concatenate
from kabuki_rlds.data.last_row import LastRows
from kabuki_rlds.data.rules import FLAGS
from kabuki_rlds.data.schema import Field, Info, Schema
from kabuki_rlds.data.skipped_episodes import NothingLeftError
from kabuki_rlds.data.source import Origin, Size
from kabuki_rlds.data.split_syntax import read_episodes
from kabuki_rlds.errors import DamagedDataError, KabukiError
from kabuki_rlds.files import signals
from kabuki_rlds.formats.envlogger import alignment, fields, log, specs
from kabuki_rlds.formats.envlogger.alignment import AlignedSteps
from kabuki_rlds.formats.envlogger.fields import LogFieldLearner, MisfitError
from kabuki_rlds.formats.envlogger.log import EnvLoggerLog
from kabuki_rlds.formats.envlogger.messages import LeafPath, Leaves
from kabuki_rlds.formats.envlogger.shard import LogShard, MessageBatch

_log = logging.getLogger("kabuki_rlds")


class EnvLoggerSource:
    """The episodes of one or more logs, in order.

    Args:
      folder: a log, or a folder of logs.
      skip_bad: leave out damaged episodes with a warning.

    Attributes:
      num_skipped: number of episodes that are left out.
      skipped: the episodes that are left out.

    Raises:
      KabukiError: there is no log, or one is damaged and `skip_bad` is false.
    """

    def __init__(self, folder: str | os.PathLike[str], *, skip_bad: bool = False):
        self.folder = pathlib.Path(folder)
        self.label = str(self.folder)
        self._logs = [EnvLoggerLog(path, skip_bad=skip_bad) for path in log.find(self.folder)]
        if not self._logs:
            raise KabukiError(f"{self.folder}: no log of EnvLogger's here")
        self.num_skipped = sum(each.num_skipped for each in self._logs)
        self.skipped = [loss for each in self._logs for loss in each.skipped]
        self.files = [os.fspath(path) for each in self._logs for path in each.files]
        self.origins = [Origin(str(each.folder.resolve()), format="envlogger") for each in self._logs]
        if not any(each.num_episodes for each in self._logs) and self.skipped:
            raise NothingLeftError(self.label, self.skipped)
        counts = [each.num_episodes for each in self._logs]
        self._origin_of = np.repeat(np.arange(len(counts)), counts)
        self.num_episodes = sum(counts)
        self._taken: np.ndarray | None = None
        self.last_rows: LastRows | None = LastRows.of_all(
            False, self.num_episodes, "EnvLogger keeps the last observation in a row of its own"
        )
        self._steps, metadata = self._learn()
        self._metadata = self._columns_of_episodes(metadata)
        flags = {name: Field(np.dtype(bool)) for name in FLAGS}
        info = Info(environment=specs.to_json(self._logs[0].metadata))
        self.schema = Schema(fields.by_path(self._steps) | flags, fields.by_path(metadata), info=info)

    def _learn(self) -> tuple[dict[LeafPath, Field], dict[LeafPath, Field]]:
        """Returns the step fields and the episode fields."""
        steps, metadata = (LogFieldLearner(self._logs[0].specs, of_steps=of_steps) for of_steps in (True, False))
        for each in self._logs:
            begins = np.ones(each.num_episodes, bool)
            metadata.take(each.episode_leaves(), begins, functools.partial(_name_of_episode, each))
        for each, shard, batch in self._batches():
            signals.check()
            leaves, _ = each.step_leaves(shard, batch)
            steps.take(leaves, batch.begins, functools.partial(_name_of_step, shard, batch))
            # Fields that are in no spec may change their shape in any step, so all steps are read.
            if steps.is_sure:
                break
        return steps.fields(), metadata.fields()

    def _batches(self) -> Iterator[tuple[EnvLoggerLog, LogShard, MessageBatch]]:
        for each in self._logs:
            for shard in each.shards:
                for batch in shard.batches():
                    if len(batch.steps):
                        yield each, shard, batch

    def size(self) -> Size:
        lengths = np.concatenate([np.zeros(0, np.int64), *(each.lengths for each in self._logs)])
        steps = int((lengths if self._taken is None else lengths[self._taken]).sum())
        num_bytes = sum(each.num_bytes for each in self._logs) * steps // max(int(lengths.sum()), 1)
        return Size(steps, True, num_bytes, next(self.blocks(), None))

    def blocks(self, only: Collection[str] | None = None) -> Iterator[Block]:
        yield from self._all_blocks() if self._taken is None else read_episodes(self._all_blocks, self._taken)

    def _all_blocks(self) -> Iterator[Block]:
        done = 0
        for block in alignment.align(self._aligned_to_actions(), self._steps):
            signals.check()
            now = slice(done, done + block.num_episodes)
            done = now.stop
            yield Block(
                {path: block.steps[path] for path in self.schema.steps},
                block.num_steps,
                block.starts,
                {path: column[now] for path, column in self._metadata.items()},
                self._origin_of[now],
            )

    def _aligned_to_actions(self) -> Iterator[AlignedSteps]:
        """Yields the columns of all steps, as the logs store them."""
        for each, shard, batch in self._batches():
            leaves, is_last = each.step_leaves(shard, batch)
            columns = self._columns(shard, batch, leaves)
            yield AlignedSteps(columns, batch.begins, alignment.is_terminal(is_last, columns))

    def _columns(self, shard: LogShard, batch: MessageBatch, leaves: Leaves) -> dict[LeafPath, Column]:
        count = len(batch.steps)
        never = np.zeros(count, bool)
        try:
            new = next((path for path in leaves if path not in self._steps and fields.has_values(leaves[path])), None)
            if new is not None:
                row = int(min(piece.rows[0] for piece in leaves[new] if piece.values is not None))
                if not (fields.is_shifted(new) and batch.begins[row]):
                    raise MisfitError(row, f"field {'/'.join(new)!r} is there, and in no step before")
            return {
                path: fields.column(
                    "/".join(path),
                    field,
                    leaves.get(path, []),
                    count,
                    batch.begins if fields.is_shifted(path) else never,
                )
                for path, field in self._steps.items()
            }
        except MisfitError as e:
            place = _name_of_step(shard, batch, e.row).removeprefix(f"{shard.path}: ")
            raise DamagedDataError(f"{place}: {e}", file=shard.path) from e

    def _columns_of_episodes(self, metadata: dict[LeafPath, Field]) -> dict[str, Column]:
        """Returns the columns of the episode fields. They are kept in memory: one row per episode is small."""
        found: dict[str, list[Column]] = {}
        for each in self._logs:
            leaves = each.episode_leaves() if metadata else {}
            for path, field in metadata.items():
                name = "/".join(path)
                pieces = leaves.get(path, [])
                lacking = np.ones(each.num_episodes, bool)
                for piece in pieces:
                    lacking[piece.rows] &= piece.values is None
                try:
                    found.setdefault(name, []).append(fields.column(name, field, pieces, each.num_episodes, lacking))
                except MisfitError as e:
                    raise DamagedDataError(f"episode {e.row}: {e}", file=each.folder) from e
                if lacking.any():
                    _log.warning(
                        "%s: %d of %d episodes have no %r; zeros and empty text stand for it",
                        each.folder, lacking.sum(), len(lacking), name,
                    )  # fmt: skip
        return {name: concatenate(columns) for name, columns in sorted(found.items())}

    def piece(self, first: int, stop: int) -> EnvLoggerSource:
        return self.select(np.arange(first, stop))

    def pieces(self, num_bytes: int) -> list[EnvLoggerSource]:
        return [self]

    def select(self, episodes: np.ndarray) -> EnvLoggerSource:
        """Returns a source of the episodes with these numbers, in this order."""
        part = copy.copy(self)
        part._taken = episodes if self._taken is None else self._taken[episodes]
        part.num_episodes = len(episodes)
        part.last_rows = None if self.last_rows is None else self.last_rows[episodes]
        return part

    def name_of(self, episode: int) -> str:
        number = episode if self._taken is None else int(self._taken[episode])
        log = int(self._origin_of[number])
        return f"{self._logs[log].folder}: episode {number - sum(each.num_episodes for each in self._logs[:log])}"

    def close(self) -> None:
        """Does nothing: no file is open between blocks."""


def _name_of_episode(each: EnvLoggerLog, episode: int) -> str:
    """Returns the name of an episode of a log, for messages."""
    return f"{each.folder}: episode {episode}"


def _name_of_step(shard: LogShard, batch: MessageBatch, row: int) -> str:
    """Returns the name of a row of a batch, for messages."""
    number = int(batch.numbers[row])
    episode = int(np.searchsorted(shard.starts, number, side="right")) - 1
    return f"{shard.path}: episode {episode}, step {number - shard.starts[episode]}"
