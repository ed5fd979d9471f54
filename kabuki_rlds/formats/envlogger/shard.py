"""Reads one shard of an EnvLogger log: a folder with the steps of some episodes.

`steps.riegeli` has one record per step. `step_offsets.riegeli` and `episode_index.riegeli` are indices of the steps and
episodes. EnvLogger writes them from time to time and on close, so after a process was killed, the last steps are in no
index. Their episodes are found by reading the steps themselves.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np

from kabuki_rlds.arguments import argument
from kabuki_rlds.errors import DamagedDataError, KabukiError
from kabuki_rlds.formats.envlogger import messages, protobuf
from kabuki_rlds.formats.riegeli import chunks, records
from kabuki_rlds.formats.riegeli.chunks import ChunkHeader, DamagedGap
from kabuki_rlds.formats.riegeli.records import Records

STEPS = "steps.riegeli"
EPISODE_METADATA = "episode_metadata.riegeli"
_STEP_OFFSETS = "step_offsets.riegeli"
_EPISODE_INDEX = "episode_index.riegeli"

#: The field of a step that has dm_env's step type, and the type FIRST.
STEP_TYPE = ("0", "0")
_FIRST = 0

#: The approximate size, and the most records, of a batch.
_BATCH_BYTES = 1 << 20
_BATCH_RECORDS = 1 << 14


@dataclasses.dataclass(frozen=True)
class MessageBatch:
    """Consecutive steps of intact episodes.

    Attributes:
      steps: one message per step.
      begins: whether an episode begins with each step: bool, (steps,).
      numbers: the number of each step in the shard: int64, (steps,).
    """

    steps: protobuf.Spans
    begins: np.ndarray
    numbers: np.ndarray


def remedy(*, has_rest: bool) -> str:
    """What an error about a damaged shard suggests; `has_rest` if some of its episodes are intact."""
    skip = f", or convert with {argument('skip_bad_episodes', True)}, which leaves these out" if has_rest else ""
    return f"copy the log again{skip}"


class LogShard:
    """A shard of a log.

    Args:
      folder: its folder.
      verify: verify the hashes of all data now, not when it is read.

    Attributes:
      folder: its folder.
      path: its file of steps.
      num_bytes: size on disk.
      num_steps: number of steps, including lost steps if their number is known.
      num_recovered: number of steps that are in no index.
      starts: the first step of each episode: int64, (episodes,).
      stops: the step after the last one of each episode: int64, (episodes,).
      is_whole: whether all steps of each episode are intact: bool, (episodes,).
      metadata_at: the position of each episode's metadata in its file, or -1: int64, (episodes,).
      num_indexed: number of episodes in the index.
      is_cut: whether the shard was not finished, so that its last episode may be incomplete.
      losses: a description of the damage; "" if no step is lost.

    Raises:
      DamagedDataError: its records are not EnvLogger's steps.
    """

    def __init__(self, folder: pathlib.Path, *, verify: bool):
        self.folder = folder
        self.path = folder / STEPS
        self.num_bytes = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        found = chunks.headers(self.path)
        self._gaps = [gap for gap in found if isinstance(gap, DamagedGap)]
        self._headers = [header for header in found if isinstance(header, ChunkHeader) and header.has_records]
        self._bad: set[int] = set()
        self._checked: set[int] = set()
        if verify:
            self._verify()
        self._survey()

    def _verify(self) -> None:
        """Finds all chunks with a wrong hash."""
        self._bad = {
            header.begin for header, data in chunks.read(self.path, self._headers, self._checked) if data is None
        }

    def _survey(self) -> None:
        """Finds the numbers of the steps, the episodes, and which of them are damaged."""
        offsets = _index(self.folder / _STEP_OFFSETS, 1)
        self._number(offsets)
        indexed = _index(self.folder / _EPISODE_INDEX, 2)
        indexed = indexed[indexed[:, 0] < self.num_steps]
        self.num_recovered = self.num_steps - min(len(offsets), self.num_steps)
        # Only a closed log has its last episode in the index.
        starts = self._episode_starts_after(int(indexed[-1, 0]) if len(indexed) else -1)
        starts = np.concatenate([indexed[:, 0], starts])
        if self.num_steps and (not len(starts) or starts[0]) and not self._missing and not self._broken:
            starts = np.insert(starts, 0, 0)
        self.starts = starts
        self.stops = np.append(starts[1:], self.num_steps) if len(starts) else starts
        self.is_whole = np.ones(len(starts), bool)
        for begin, end in self._missing:
            self.is_whole &= (self.stops <= begin) | (self.starts >= end)
        for at in self._broken:
            self.is_whole &= (self.stops < at) | (self.starts >= at)
        self.metadata_at = np.full(len(starts), -1)
        self.metadata_at[: len(indexed)] = indexed[: len(starts), 1]
        self.num_indexed = len(indexed)
        # EnvLogger writes the index entry of the last episode at the very end.
        self.is_cut = len(starts) > len(indexed) or any(gap.is_tail for gap in self._gaps) or not self._headers
        self.losses = self._losses()

    def _number(self, offsets: np.ndarray) -> None:
        """Finds the numbers of the steps of each chunk, and the steps that are missing.

        Args:
          offsets: for each step in the index, the position of its chunk plus its number in the chunk.
        """
        #: Position of each chunk to the number of its first step.
        self._first: dict[int, int] = {}
        #: Ranges of missing steps.
        self._missing: list[tuple[int, int]] = []
        #: Steps before which an unknown number of steps is missing.
        self._broken: list[int] = []
        number = last_end = 0
        for header in self._headers:
            if len(offsets) and header.begin <= offsets[-1]:
                at = int(np.searchsorted(offsets, header.begin))
            else:
                at = max(number, len(offsets))
                if any(last_end <= gap.begin < header.begin for gap in self._gaps):
                    self._broken.append(at)
            if at > number:
                self._missing.append((number, at))
            self._first[header.begin] = at
            number = at + header.num_records
            if header.begin in self._bad:
                self._missing.append((at, number))
            last_end = header.end
        if number < len(offsets):
            self._missing.append((number, len(offsets)))
        self.num_steps = max(number, len(offsets))

    def _episode_starts_after(self, last: int) -> np.ndarray:
        """Reads the steps after step `last`, and returns those with which an episode begins: int64."""
        found = [np.zeros(0, np.int64)]
        not_indexed = [h for h in self._intact_chunks() if self._first[h.begin] + h.num_records - 1 > last]
        for header, data in chunks.read(self.path, not_indexed, self._checked):
            if data is None:
                self._bad.add(header.begin)
                self._missing.append((self._first[header.begin], self._first[header.begin] + header.num_records))
                continue
            types = _step_types(self._decode(header, data), self.path)
            firsts = self._first[header.begin] + np.flatnonzero(types == _FIRST)
            found.append(firsts[firsts > last])
        return np.concatenate(found)

    def _intact_chunks(self) -> list[ChunkHeader]:
        return [header for header in self._headers if header.begin not in self._bad]

    def _decode(self, header: ChunkHeader, data: bytes) -> Records:
        try:
            return records.decode(header, data)
        except KabukiError as e:
            raise e.within(self.path) from e

    def _losses(self) -> str:
        """Describes the damage."""
        lost = sum(end - begin for begin, end in self._missing)
        if not lost and not self._broken:
            return ""
        found = [gap.reason for gap in self._gaps]
        found += [f"the data of the chunk at byte {begin} is damaged" for begin in sorted(self._bad)]
        found = found or ["it ends before its index does"]
        named = "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")
        at_least = "at least " if self._broken else ""
        return (
            f"{named}: {at_least}{lost:,} of {self.num_steps:,} steps are lost, and "
            f"{(~self.is_whole).sum():,} of {len(self.starts):,} episodes are not whole"
        )

    def batches(self) -> Iterator[MessageBatch]:
        """Yields the steps of all intact episodes, in order.

        Raises:
          DamagedDataError: data is damaged that was intact, or not yet verified, when the shard was opened.
        """
        lost = np.flatnonzero(~self.is_whole)
        held: list[Records] = []
        numbers: list[np.ndarray] = []
        size = count = 0
        for header, data in chunks.read(self.path, self._intact_chunks(), self._checked):
            if data is None:
                # The error describes all damage, so all data is verified.
                self._verify()
                self._survey()
                raise DamagedDataError(f"{self.losses}; {remedy(has_rest=True)}", file=self.path)
            held.append(self._decode(header, data))
            numbers.append(np.arange(header.num_records) + self._first[header.begin])
            size, count = size + header.decoded_bytes, count + header.num_records
            if size >= _BATCH_BYTES or count >= _BATCH_RECORDS:
                yield self._batch(held, numbers, lost)
                held, numbers, size, count = [], [], 0, 0
        if held:
            yield self._batch(held, numbers, lost)

    def _batch(self, held: list[Records], numbers: list[np.ndarray], lost: np.ndarray) -> MessageBatch:
        part = records.join(held)
        number = np.concatenate(numbers)
        episode = np.searchsorted(self.starts, number, side="right") - 1
        kept = episode >= 0
        if len(lost):
            kept &= ~np.isin(episode, lost)
        start, stop = part.splits[:-1][kept], part.splits[1:][kept]
        number, episode = number[kept], episode[kept]
        spans = protobuf.Spans(part.data, np.arange(len(start)), start, stop)
        return MessageBatch(spans, number == self.starts[episode], number)


def _step_types(part: Records, path: pathlib.Path) -> np.ndarray:
    """Returns dm_env's type of each step: int64, (records,). -1 if a record has none."""
    spans = protobuf.Spans(part.data, np.arange(len(part)), part.splits[:-1], part.splits[1:])
    try:
        pieces = messages.leaves(spans).get(STEP_TYPE, [])
    except KabukiError as e:
        raise DamagedDataError(f"a step holds {e}", file=path) from e
    except (ValueError, IndexError) as e:
        raise DamagedDataError(f"its records are no steps of EnvLogger's: {e}", file=path) from e
    types = np.full(len(part), -1, np.int64)
    for piece in pieces:
        if piece.values is not None:
            types[piece.rows] = piece.values
    return types


def _index(path: pathlib.Path, columns: int) -> np.ndarray:
    """Reads an index: int64, (rows,) or (rows, columns). A damaged or missing index has no rows."""
    shape = (-1,) if columns == 1 else (-1, columns)
    empty = np.zeros(0, np.int64)
    if not path.is_file():
        return empty.reshape(shape)
    found, damage = records.read_small(path)
    if damage:
        return empty.reshape(shape)
    return np.concatenate([empty, *map(np.ravel, messages.numbers([record for _, record in found]))]).reshape(shape)
