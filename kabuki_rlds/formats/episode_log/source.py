"""Reads the episodes of a log, of a recording that was killed or has not ended."""

from __future__ import annotations

import copy
import os
import pathlib
from collections.abc import Collection, Iterator

import numpy as np

from kabuki_rlds.data.block import Block, concatenate, row_splits
from kabuki_rlds.data.last_row import LastRows
from kabuki_rlds.data.source import Origin, Size, Skipped
from kabuki_rlds.errors import DamagedDataError
from kabuki_rlds.files import records, signals
from kabuki_rlds.files.records import FRAME, HEAD
from kabuki_rlds.formats.episode_log import codec
from kabuki_rlds.formats.hdf5.source import KabukiSource

#: A block has about so many bytes.
_BLOCK_BYTES = 16 << 20


class EpisodeLogSource:
    """The episodes of a log.

    Args:
      folder: the folder of the recording, `<name>.hdf5.recording`.

    Raises:
      KabukiError: it holds no log, or the log is damaged.
    """

    def __init__(self, folder: pathlib.Path):
        self.path = folder / codec.NAME
        self.label = os.fspath(folder)
        self.files = [os.path.abspath(self.path)]
        self.skipped: list[Skipped] = []
        lengths: list[int] = []
        starts: list[int] = []
        at = 0
        head = None
        for number, record in enumerate(records.read(self.path)):
            try:
                if head is None:
                    head = codec.Head.unpack(record)
                else:
                    lengths.append(codec.num_steps(record))
            except codec.ERRORS as e:
                raise self._damaged(number, e) from e
            starts.append(at)
            at += FRAME + len(record)
        if head is None:
            raise DamagedDataError("holds no log of episodes", file=self.path)
        self.head = head
        self.schema = head.schema
        self.origins: list[Origin] = [head.origin]
        self._lengths = np.array(lengths, np.int64)
        self._bounds = np.array([*starts, at], np.int64)
        self._take(np.arange(len(lengths)))

    def _take(self, numbers: np.ndarray) -> None:
        self._numbers = numbers
        self.num_episodes = len(numbers)
        self.last_rows: LastRows | None = LastRows.of_all(False, len(numbers), "a recording states it")

    @property
    def is_appended(self) -> bool:
        """Whether the HDF5 file has the episodes already, because the process was killed before it removed the log."""
        file = codec.file_of(self.path.parent)
        if not file.exists():
            return False
        with KabukiSource(file, quiet=True) as source:
            return bool(self._numbers.size) and source.num_episodes == self.head.num_before + len(self._lengths)

    def size(self) -> Size:
        return Size(int(self._lengths[self._numbers].sum()), True, self.path.stat().st_size, next(self.blocks(), None))

    def blocks(self, only: Collection[str] | None = None) -> Iterator[Block]:
        waiting: list[Block] = []
        num_bytes = 0
        for episode in self._episodes():
            waiting.append(episode)
            num_bytes += episode.nbytes
            if num_bytes >= _BLOCK_BYTES:
                signals.check()
                yield _joined(waiting)
                waiting, num_bytes = [], 0
        if waiting:
            yield _joined(waiting)

    def _episodes(self) -> Iterator[Block]:
        with open(self.path, "rb") as file:
            for number in self._numbers.tolist():
                start, end = self._bounds[number + 1 : number + 3].tolist()
                file.seek(start + HEAD.size)
                record = file.read(end - start - FRAME)
                try:
                    yield codec.unpack_episode(record, self.schema)
                except codec.ERRORS as e:
                    raise self._damaged(number + 1, e) from e

    def _damaged(self, number: int, error: Exception) -> DamagedDataError:
        return DamagedDataError(f"record {number} is not an episode: {error}", file=self.path)

    def piece(self, first: int, stop: int) -> EpisodeLogSource:
        return self.select(np.arange(first, min(stop, self.num_episodes)))

    def select(self, episodes: np.ndarray) -> EpisodeLogSource:
        """The episodes of these numbers, in this order."""
        selected = copy.copy(self)
        selected._take(self._numbers[episodes])
        return selected

    def name_of(self, episode: int) -> str:
        return f"{self.path}: record {self._numbers[episode] + 1}"

    def pieces(self, num_bytes: int) -> list[EpisodeLogSource]:
        return [self]

    def close(self) -> None:
        """Nothing is open."""


def _joined(blocks: list[Block]) -> Block:
    first = blocks[0]
    steps = {path: concatenate([block.steps[path] for block in blocks]) for path in first.steps}
    metadata = {path: concatenate([block.metadata[path] for block in blocks]) for path in first.metadata}
    starts = row_splits(np.array([block.num_steps for block in blocks], np.int64))
    return Block(steps, int(starts[-1]), starts[:-1], metadata)
