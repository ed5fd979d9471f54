"""The journal of a recording: episodes that are whole and that no shard holds yet.

It is a TFRecord file that only grows: a record is its length (8 bytes, the lowest
first), a checksum of that, the data, and a checksum of it. The recorder makes it
the next shard by giving it another name. A process that is killed leaves at worst a
record at the end that is not whole. (Source: TensorFlow's `record_writer.h`.)
"""

from __future__ import annotations

import errno
import os
import pathlib
import struct
from typing import BinaryIO

from kabuki_rlds.errors import KabukiError
from kabuki_rlds.formats.rlds import crc32c
from kabuki_rlds.formats.rlds.shards import FOOT, HEAD, RECORD_FRAME

_LENGTH = struct.Struct("<Q")


def path_of(folder: pathlib.Path, dataset: str, split: str) -> pathlib.Path:
    """Where the journal of a split is. TFDS takes it for no shard."""
    return folder / f"{dataset}-{split}.recording"


def shard_path(folder: pathlib.Path, dataset: str, split: str, index: int) -> pathlib.Path:
    """Where a recorded shard is: its name does not tell how many there are, for that grows."""
    return folder / f"{dataset}-{split}.tfrecord-{index:05d}"


#: `shard_path` as TFDS writes it in `dataset_info.json`: the name of a shard while their number is not known.
SHARD_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"


class Scan:
    """What a TFRecord file holds, by the lengths in it, without reading the data.

    Attributes:
      records: how many whole records it has.
      num_bytes: bytes of their data.
      end: where the last of them ends; what comes after is no whole record.
      size: where the file ends.
    """

    def __init__(self, path: pathlib.Path):
        self.records = self.num_bytes = self.end = 0
        with open(path, "rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            while self._next(file):
                pass

    def _next(self, file: BinaryIO) -> bool:
        """Passes over a record, if a whole one follows."""
        file.seek(self.end)
        head = file.read(HEAD.size)
        if len(head) < HEAD.size:
            return False
        length, check = HEAD.unpack(head)
        end = self.end + RECORD_FRAME + length
        if end > self.size or check != crc32c.masked(head[: _LENGTH.size]):
            return False
        self.records += 1
        self.num_bytes += length
        self.end = end
        return True


def unlisted(folder: pathlib.Path, dataset: str, split: str, num_shards: int) -> dict[pathlib.Path, int]:
    """What a recording holds beside the shards that `dataset_info.json` lists, with the number of episodes of each.

    That is the journal, of a recording that goes on or was killed; and before it a
    shard, where it was killed before it listed that.
    """
    found = {}
    for path in (shard_path(folder, dataset, split, num_shards), path_of(folder, dataset, split)):
        if path.is_file() and (records := Scan(path).records):
            found[path] = records
    return found


def repair(path: pathlib.Path) -> int:
    """Cuts off what is no whole record at the end of a file, and says how many bytes that was."""
    scan = Scan(path)
    end = _readable_end(path, scan.end)
    if end < scan.size:
        with open(path, "rb+") as file:
            file.truncate(end)
            os.fsync(file.fileno())
    return scan.size - end


def _readable_end(path: pathlib.Path, end: int) -> int:
    """Where the checksums stop to be right: after the power failed, whole records may hold zeros."""
    import tensorflow as tf

    at = 0
    try:
        for data in tf.data.TFRecordDataset(os.fspath(path)).as_numpy_iterator():
            at += RECORD_FRAME + len(data)
    except tf.errors.DataLossError:
        return at
    return end


class Journal:
    """A journal in the making. What `append` has returned from, no end of the process loses.

    Args:
      path: the file, which is made anew.

    Attributes:
      size: bytes that it holds.
      records: how many records it holds.

    Raises:
      KabukiError: it cannot be made.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.size = self.records = 0
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        except OSError as e:
            raise KabukiError(f"{path}: cannot be written ({e.strerror})") from e

    def append(self, data: bytes) -> int:
        """Adds a record, and returns where it begins.

        Raises:
          KabukiError: the disk is full, or the like; the records before are as they were.
        """
        start = self.size
        self.replace(start, data)
        self.records += 1
        return start

    def replace(self, start: int, data: bytes) -> None:
        """Writes a record in the place of the last, which begins at `start`."""
        length = _LENGTH.pack(len(data))
        head = length + FOOT.pack(crc32c.masked(length))
        record = b"".join((head, data, FOOT.pack(crc32c.masked(data))))
        try:
            self._write(record, start)
        except OSError as e:
            os.ftruncate(self._file, start)
            self.size = start
            reason = "the disk is full" if e.errno == errno.ENOSPC else e.strerror
            raise KabukiError(
                f"{self.path}: the episode cannot be written ({reason}); those before it are safe, this one is lost"
            ) from e

    def take_back(self, start: int) -> None:
        """Removes the last record, which begins at `start`."""
        os.ftruncate(self._file, start)
        self.size = start
        self.records -= 1

    def sync(self) -> None:
        """Waits until what it holds is on the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    def _write(self, data: bytes, at: int) -> None:
        rest = memoryview(data)
        while rest:
            # At a place of its own, and not where the last write ended: it may have been interrupted.
            written = os.pwrite(self._file, rest, at)
            at += written
            rest = rest[written:]
        if at < self.size:
            os.ftruncate(self._file, at)
        self.size = at
