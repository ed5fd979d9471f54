"""The shards of a dataset: files of records, each a serialized episode.

Where one record of a TFRecord file is damaged, the next is still found, unless the
damage is in the length: see `files.records`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kabuki_rlds.errors import DamagedDataError
from kabuki_rlds.files.records import FOOT, FRAME, HEAD, checksum

if TYPE_CHECKING:
    import tensorflow as tf

#: Records that are looked at together, and about how many bytes they have.
_RUN = 512
_RUN_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True)
class ShardSlice:
    """A run of records of one shard.

    Attributes:
      path: the shard's file.
      skip: how many records to pass over first.
      expected: how many records are to come then.
      to_end: whether they are all that is left, so that one too many is an error.
      lost: the numbers, in the file, of records that are passed over too; `expected`
        does not count them.
      may_grow: whether a recording may still add to the file.
      file_format: "tfrecord" or "array_record".
    """

    path: str
    skip: int
    expected: int
    to_end: bool
    lost: frozenset[int] = frozenset()
    may_grow: bool = False
    file_format: str = "tfrecord"

    @property
    def limit(self) -> int:
        """How many records to read: one too many is asked for where none should be."""
        return self.expected + 1 if self.to_end else self.expected

    @functools.cached_property
    def num_bytes(self) -> float:
        """How many bytes of the file it takes: by the lengths of its records, or in ArrayRecord about as many."""
        status = os.stat(self.path)
        if self.to_end and not self.skip:
            return status.st_size
        if self.file_format == "array_record":
            return status.st_size * self.expected / max(_count_array_records(self.path, status.st_mtime_ns), 1)
        ends = _record_ends(self.path, status.st_size, status.st_mtime_ns)
        stop = min(self.skip + self.expected + len(self.lost), len(ends) - 1)
        lengths = np.diff(ends[min(self.skip, stop) : stop + 1])
        return float(
            lengths.sum() - sum(lengths[n - self.skip] for n in self.lost if 0 <= n - self.skip < len(lengths))
        )

    def part(self, first: int, stop: int) -> ShardSlice:
        """Those of its records from `first` up to `stop`, which are numbered without those that are lost."""
        if not self.lost:
            to_end = self.to_end and stop == self.expected
            return dataclasses.replace(self, skip=self.skip + first, expected=stop - first, to_end=to_end)
        numbers = np.arange(self.skip, self.skip + self.expected + len(self.lost))
        numbers = numbers[~np.isin(numbers, list(self.lost))]
        return dataclasses.replace(self, skip=int(numbers[first]), expected=stop - first, to_end=False)

    def cut(self, num_bytes: int) -> list[ShardSlice]:
        """Slices of about so many bytes each; one with lost records is left whole."""
        count = min(max(1, round(self.num_bytes / num_bytes)), self.expected)
        if count < 2 or self.lost:
            return [self]
        bounds = [self.expected * i // count for i in range(count + 1)]
        return [
            dataclasses.replace(
                self, skip=self.skip + start, expected=stop - start, to_end=self.to_end and stop == self.expected
            )
            for start, stop in itertools.pairwise(bounds)
        ]


@functools.lru_cache(64)
def _record_ends(path: str, size: int, *_stamp: int) -> np.ndarray:
    """Where each record of a TFRecord file ends, by the lengths alone, after a 0: int64, (records + 1,)."""
    ends = [0]
    with open(path, "rb", buffering=1 << 16) as file:
        while len(head := file.read(HEAD.size)) == HEAD.size:
            end = ends[-1] + FRAME + HEAD.unpack(head)[0]
            if end > size:
                break
            ends.append(end)
            file.seek(end)
    return np.array(ends, np.int64)


@functools.lru_cache(64)
def _count_array_records(path: str, *_stamp: int) -> int:
    from array_record.python import array_record_module

    try:
        reader = array_record_module.ArrayRecordReader(path)
        try:
            return int(reader.num_records())
        finally:
            reader.close()
    except Exception:
        # Reading the records names what is wrong.
        return 0


def read_records(shards: Sequence[ShardSlice], file_format: str, batch: int) -> tf.data.Dataset:
    """(index of the shard, serialized examples), up to `batch` of them at a time."""
    import tensorflow as tf

    if file_format == "array_record" or any(shard.lost for shard in shards):
        runs = _runs(file_format)
        signature = (tf.TensorSpec([], tf.int64), tf.TensorSpec([None], tf.string))
        return tf.data.Dataset.from_generator(
            lambda: ((i, run) for i, shard in enumerate(shards) for run in runs(shard, batch)),
            output_signature=signature,
        )

    def check(path: bytes, skip: np.ndarray, limit: np.ndarray) -> np.ndarray:
        check_lengths(os.fsdecode(path), int(skip) + int(limit))
        return limit

    def read(index: tf.Tensor, path: tf.Tensor, skip: tf.Tensor, limit: tf.Tensor) -> tf.data.Dataset:
        # The limit goes by the check, so that no record is read before.
        limit = tf.ensure_shape(tf.numpy_function(check, [path, skip, limit], tf.int64), [])
        found = tf.data.TFRecordDataset(path, buffer_size=1 << 20).skip(skip).take(limit)
        return tf.data.Dataset.zip((tf.data.Dataset.from_tensors(index).repeat(), found.batch(batch)))

    slices = (
        np.arange(len(shards)),
        tf.constant([shard.path for shard in shards], tf.string),
        np.array([shard.skip for shard in shards], np.int64),
        np.array([shard.limit for shard in shards], np.int64),
    )
    # AutoGraph would only look for Python loops to convert.
    return tf.data.Dataset.from_tensor_slices(slices).flat_map(tf.autograph.experimental.do_not_convert(read))


def first_records(shards: Sequence[ShardSlice], num_bytes: int, batch: int) -> Iterator[list[bytes]]:
    """The first serialized examples of some shards, so many bytes of each, up to `batch` at a time.

    Without `tf.data`, which takes longer to build than the examples take to read.
    """
    for shard in shards:
        left = num_bytes
        for run in _runs(shard.file_format)(dataclasses.replace(shard, to_end=False), batch):
            yield run
            left -= sum(map(len, run))
            if left <= 0:
                break


def _runs(file_format: str) -> Callable[[ShardSlice, int], Iterator[list[bytes]]]:
    return _array_records if file_format == "array_record" else _tf_records


def check_lengths(path: str, records: int) -> None:
    """Refuses a TFRecord file of whose first records one says that it is longer than the file.

    TensorFlow takes the length at its word, and a process that asks for so much memory ends
    there. What comes after these records is not read: a journal may end in half a record.

    Raises:
      KabukiError: it has such a record.
    """
    with open(path, "rb", buffering=1 << 16) as file:
        size = os.fstat(file.fileno()).st_size
        at = number = 0
        while number < records and len(head := file.read(HEAD.size)) == HEAD.size:
            length = HEAD.unpack(head)[0]
            at += FRAME + length
            if at > size:
                raise DamagedDataError(f"record {number}: {_CUT_SHORT}", file=path)
            number += 1
            file.seek(length + FOOT.size, os.SEEK_CUR)


_CUT_SHORT = "the shard is cut short"
_BAD_LENGTH = "the length of a record is damaged, so that what follows cannot be found"
_BAD_DATA = "the data is damaged, by its checksum"


@dataclasses.dataclass(frozen=True)
class Damage:
    """A record that cannot be read.

    Attributes:
      record: its number in the file.
      why: what is wrong with it.
      is_end: whether all that follows is lost with it.
    """

    record: int
    why: str
    is_end: bool = False


def survey(path: str, file_format: str) -> Iterator[list[tuple[int, bytes]] | Damage]:
    """All that a shard holds: runs of records with their numbers, and what is damaged between them."""
    return _survey_array_records(path) if file_format == "array_record" else _survey_tf_records(path)


def _survey_tf_records(path: str) -> Iterator[list[tuple[int, bytes]] | Damage]:
    run: list[tuple[int, bytes]] = []
    held = 0
    for number, found in _frames(path):
        if isinstance(found, bytes):
            run.append((number, found))
            held += len(found)
        if run and (not isinstance(found, bytes) or len(run) == _RUN or held >= _RUN_BYTES):
            yield run
            run, held = [], 0
        if not isinstance(found, bytes):
            yield Damage(number, found, found != _BAD_DATA)
    if run:
        yield run


def _frames(path: str, skip: int = 0) -> Iterator[tuple[int, bytes | str]]:
    """The number of each record of a TFRecord file, and its data, or what is wrong with it.

    The data of the first `skip` are not looked at.
    """
    with open(path, "rb", buffering=1 << 20) as file:
        left = os.fstat(file.fileno()).st_size
        for number in itertools.count():
            if not left:
                return
            head = file.read(HEAD.size)
            if len(head) < HEAD.size:
                yield number, _CUT_SHORT
                return
            length, stated = HEAD.unpack(head)
            if stated != checksum(head[:8]):
                yield number, _BAD_LENGTH
                return
            left -= FRAME + length
            if left < 0:
                yield number, _CUT_SHORT
                return
            if number < skip:
                file.seek(length + FOOT.size, os.SEEK_CUR)
                continue
            data = file.read(length)
            foot = file.read(FOOT.size)
            if len(data) + len(foot) < length + FOOT.size:
                yield number, _CUT_SHORT
                return
            yield number, data if FOOT.unpack(foot)[0] == checksum(data) else _BAD_DATA


def _tf_records(shard: ShardSlice, batch: int) -> Iterator[list[bytes]]:
    """Some records of a file whose damaged ones are among the lost."""
    run: list[bytes] = []
    left = shard.expected
    for number, data in _frames(shard.path, shard.skip):
        if not left:
            break
        if number in shard.lost:
            continue
        if isinstance(data, str):
            raise DamagedDataError(f"record {number}: {data}", file=shard.path)
        run.append(data)
        left -= 1
        if len(run) == batch:
            yield run
            run = []
    if run:
        yield run


def _survey_array_records(path: str) -> Iterator[list[tuple[int, bytes]] | Damage]:
    from array_record.python import array_record_module

    try:
        reader = array_record_module.ArrayRecordReader(path)
    except Exception as e:
        yield Damage(0, f"the shard cannot be opened ({_first_line(e)})", True)
        return
    count = reader.num_records()
    for start in range(0, count, _RUN):
        numbers = range(start, min(start + _RUN, count))
        try:
            yield list(zip(numbers, reader.read(numbers.start, numbers.stop), strict=True))
        except Exception:
            # One by one, since the error does not tell which it is.
            for number in numbers:
                try:
                    (record,) = reader.read(number, number + 1)
                    yield [(number, record)]
                except Exception as e:
                    yield Damage(number, f"it cannot be read ({_first_line(e)})")
    try:
        reader.close()
    except Exception as e:
        # It says only now why it found no records.
        if not count:
            yield Damage(0, f"the shard cannot be read ({_first_line(e)})", True)


def _array_records(shard: ShardSlice, batch: int) -> Iterator[list[bytes]]:
    from array_record.python import array_record_module

    try:
        reader = array_record_module.ArrayRecordReader(shard.path)
        try:
            stop = min(shard.skip + shard.limit + len(shard.lost), reader.num_records())
            good = [number for number in range(shard.skip, stop) if number not in shard.lost]
            for at in range(0, len(good), batch):
                part = good[at : at + batch]
                yield reader.read(part) if shard.lost else reader.read(part[0], part[-1] + 1)
        finally:
            reader.close()
    except Exception as e:
        # Of whatever type its library pleases.
        raise DamagedDataError(f"the shard cannot be read ({_first_line(e)})", file=shard.path) from e


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
