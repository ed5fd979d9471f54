"""Reads the shards of a dataset. A shard is a file of records, and each record is a serialized episode.

Records after one with damaged data can still be read. Records after one with a damaged
length cannot: see `files.records`.
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

#: `survey` yields batches of at most so many records, and about so many bytes.
_BATCH_RECORDS = 512
_BATCH_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True)
class ShardSlice:
    """A range of records of one shard.

    Attributes:
      path: path of the shard.
      skip: number of the first record.
      expected: number of records, without the `lost` ones.
      to_end: whether the slice ends at the end of the shard. Further records are then an error.
      lost: numbers of unreadable records in the file, which are skipped.
      may_grow: whether a recording may still append to the file.
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
        """The number of records to read. With `to_end`, one more than expected, to detect surplus records."""
        return self.expected + 1 if self.to_end else self.expected

    @functools.cached_property
    def num_bytes(self) -> float:
        """The number of bytes that the records take in the file. An estimate for ArrayRecord."""
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
        """Returns the slice of the records `first` to `stop`. The numbers count from `skip`, without lost records."""
        if not self.lost:
            to_end = self.to_end and stop == self.expected
            return dataclasses.replace(self, skip=self.skip + first, expected=stop - first, to_end=to_end)
        numbers = np.arange(self.skip, self.skip + self.expected + len(self.lost))
        numbers = numbers[~np.isin(numbers, list(self.lost))]
        return dataclasses.replace(self, skip=int(numbers[first]), expected=stop - first, to_end=False)

    def cut(self, num_bytes: int) -> list[ShardSlice]:
        """Divides the slice into slices of about `num_bytes` bytes each. A slice with lost records is not divided."""
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
def _record_ends(path: str, size: int, *_version: int) -> np.ndarray:
    """Returns 0 and the end offset of each complete record of a TFRecord file: int64, (records + 1,).

    Reads only the lengths of the records.
    """
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
def _count_array_records(path: str, *_version: int) -> int:
    from array_record.python import array_record_module

    try:
        reader = array_record_module.ArrayRecordReader(path)
        try:
            return int(reader.num_records())
        finally:
            reader.close()
    except Exception:
        # Reading the records later raises an error with the reason.
        return 0


def read_records(shards: Sequence[ShardSlice], file_format: str, batch: int) -> tf.data.Dataset:
    """Returns a dataset of (index of the shard, up to `batch` serialized examples)."""
    import tensorflow as tf

    if file_format == "array_record" or any(shard.lost for shard in shards):
        read_batches = _batch_reader(file_format)
        signature = (tf.TensorSpec([], tf.int64), tf.TensorSpec([None], tf.string))
        return tf.data.Dataset.from_generator(
            lambda: ((i, records) for i, shard in enumerate(shards) for records in read_batches(shard, batch)),
            output_signature=signature,
        )

    def check(path: bytes, skip: np.ndarray, limit: np.ndarray) -> np.ndarray:
        check_lengths(os.fsdecode(path), int(skip) + int(limit))
        return limit

    def read(index: tf.Tensor, path: tf.Tensor, skip: tf.Tensor, limit: tf.Tensor) -> tf.data.Dataset:
        # The limit passes through the check, so that TensorFlow runs the check before it reads a record.
        limit = tf.ensure_shape(tf.numpy_function(check, [path, skip, limit], tf.int64), [])
        found = tf.data.TFRecordDataset(path, buffer_size=1 << 20).skip(skip).take(limit)
        return tf.data.Dataset.zip((tf.data.Dataset.from_tensors(index).repeat(), found.batch(batch)))

    slices = (
        np.arange(len(shards)),
        tf.constant([shard.path for shard in shards], tf.string),
        np.array([shard.skip for shard in shards], np.int64),
        np.array([shard.limit for shard in shards], np.int64),
    )
    # AutoGraph is not needed: there are no Python loops to convert.
    return tf.data.Dataset.from_tensor_slices(slices).flat_map(tf.autograph.experimental.do_not_convert(read))


def first_records(shards: Sequence[ShardSlice], num_bytes: int, batch: int) -> Iterator[list[bytes]]:
    """Yields the first serialized examples of each shard, at least `num_bytes` bytes, up to `batch` examples at a time.

    Does not use `tf.data`, because building a pipeline takes longer than reading these examples.
    """
    for shard in shards:
        left = num_bytes
        for records in _batch_reader(shard.file_format)(dataclasses.replace(shard, to_end=False), batch):
            yield records
            left -= sum(map(len, records))
            if left <= 0:
                break


def _batch_reader(file_format: str) -> Callable[[ShardSlice, int], Iterator[list[bytes]]]:
    return _read_array_records if file_format == "array_record" else _read_tf_records


def check_lengths(path: str, records: int) -> None:
    """Checks that the first `records` records of a TFRecord file are inside the file.

    TensorFlow allocates memory for the stored length without this check, and a damaged
    length could crash the process. Later records are not checked, because a journal may
    end with an incomplete record.

    Raises:
      DamagedDataError: a record is longer than the rest of the file.
    """
    with open(path, "rb", buffering=1 << 16) as file:
        size = os.fstat(file.fileno()).st_size
        at = number = 0
        while number < records and len(head := file.read(HEAD.size)) == HEAD.size:
            length = HEAD.unpack(head)[0]
            at += FRAME + length
            if at > size:
                raise DamagedDataError(f"record {number}: {_TRUNCATED}", file=path)
            number += 1
            file.seek(length + FOOT.size, os.SEEK_CUR)


_TRUNCATED = "the shard is truncated"
_BAD_LENGTH = "the length of the record is damaged, so later records cannot be found"
_BAD_DATA = "the data is damaged (wrong checksum)"


@dataclasses.dataclass(frozen=True)
class Damage:
    """A record that cannot be read.

    Attributes:
      record: its number in the file.
      why: the reason.
      is_end: whether all later records are lost too.
    """

    record: int
    why: str
    is_end: bool = False


def survey(path: str, file_format: str) -> Iterator[list[tuple[int, bytes]] | Damage]:
    """Reads a whole shard, and yields batches of (number, data) and the damaged records between them, in file order."""
    return _survey_array_records(path) if file_format == "array_record" else _survey_tf_records(path)


def _survey_tf_records(path: str) -> Iterator[list[tuple[int, bytes]] | Damage]:
    batch: list[tuple[int, bytes]] = []
    num_bytes = 0
    for number, found in _read_frames(path):
        if isinstance(found, bytes):
            batch.append((number, found))
            num_bytes += len(found)
        if batch and (not isinstance(found, bytes) or len(batch) == _BATCH_RECORDS or num_bytes >= _BATCH_BYTES):
            yield batch
            batch, num_bytes = [], 0
        if not isinstance(found, bytes):
            yield Damage(number, found, found != _BAD_DATA)
    if batch:
        yield batch


def _read_frames(path: str, skip: int = 0) -> Iterator[tuple[int, bytes | str]]:
    """Yields the number of each record of a TFRecord file after the first `skip`, and its data.

    For a damaged record, yields the reason (`str`) instead of the data. The data of the first `skip` records is not
    checked.
    """
    with open(path, "rb", buffering=1 << 20) as file:
        left = os.fstat(file.fileno()).st_size
        for number in itertools.count():
            if not left:
                return
            head = file.read(HEAD.size)
            if len(head) < HEAD.size:
                yield number, _TRUNCATED
                return
            length, stored_checksum = HEAD.unpack(head)
            if stored_checksum != checksum(head[:8]):
                yield number, _BAD_LENGTH
                return
            left -= FRAME + length
            if left < 0:
                yield number, _TRUNCATED
                return
            if number < skip:
                file.seek(length + FOOT.size, os.SEEK_CUR)
                continue
            data = file.read(length)
            foot = file.read(FOOT.size)
            if len(data) + len(foot) < length + FOOT.size:
                yield number, _TRUNCATED
                return
            yield number, data if FOOT.unpack(foot)[0] == checksum(data) else _BAD_DATA


def _read_tf_records(shard: ShardSlice, batch_size: int) -> Iterator[list[bytes]]:
    """Yields the records of a slice, up to `batch_size` at a time.

    Raises:
      DamagedDataError: a record that is not among the lost ones is damaged.
    """
    batch: list[bytes] = []
    left = shard.expected
    for number, data in _read_frames(shard.path, shard.skip):
        if not left:
            break
        if number in shard.lost:
            continue
        if isinstance(data, str):
            raise DamagedDataError(f"record {number}: {data}", file=shard.path)
        batch.append(data)
        left -= 1
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _survey_array_records(path: str) -> Iterator[list[tuple[int, bytes]] | Damage]:
    from array_record.python import array_record_module

    try:
        reader = array_record_module.ArrayRecordReader(path)
    except Exception as e:
        yield Damage(0, f"the shard cannot be opened ({_first_line(e)})", True)
        return
    count = reader.num_records()
    for start in range(0, count, _BATCH_RECORDS):
        numbers = range(start, min(start + _BATCH_RECORDS, count))
        try:
            yield list(zip(numbers, reader.read(numbers.start, numbers.stop), strict=True))
        except Exception:
            # The error does not name the record, so read each separately.
            for number in numbers:
                try:
                    (record,) = reader.read(number, number + 1)
                    yield [(number, record)]
                except Exception as e:
                    yield Damage(number, f"cannot be read ({_first_line(e)})")
    try:
        reader.close()
    except Exception as e:
        # For an unreadable shard, the reader reports 0 records and raises the error only on close.
        if not count:
            yield Damage(0, f"the shard cannot be read ({_first_line(e)})", True)


def _read_array_records(shard: ShardSlice, batch_size: int) -> Iterator[list[bytes]]:
    """Yields the records of a slice, up to `batch_size` at a time.

    Raises:
      DamagedDataError: the shard cannot be read.
    """
    from array_record.python import array_record_module

    try:
        reader = array_record_module.ArrayRecordReader(shard.path)
        try:
            stop = min(shard.skip + shard.limit + len(shard.lost), reader.num_records())
            good = [number for number in range(shard.skip, stop) if number not in shard.lost]
            for at in range(0, len(good), batch_size):
                part = good[at : at + batch_size]
                yield reader.read(part) if shard.lost else reader.read(part[0], part[-1] + 1)
        finally:
            reader.close()
    except Exception as e:
        # The library raises errors of various types.
        raise DamagedDataError(f"the shard cannot be read ({_first_line(e)})", file=shard.path) from e


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
