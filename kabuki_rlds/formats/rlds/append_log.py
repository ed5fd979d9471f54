"""The journal of a recording: episodes that are whole and that no shard holds yet.

It is a TFRecord file that only grows: a record is its length (8 bytes, the lowest
first), a checksum of that, the data, and a checksum of it. The recorder makes it
the next shard by giving it another name. A process that is killed leaves at worst a
record at the end that is not whole. (Source: TensorFlow's `record_writer.h`.)

While the last record is replaced, it is kept in a file of its own, from which a
killed process's is put back: where it begins (8 bytes), and the record.
"""

from __future__ import annotations

import errno
import os
import pathlib
import struct
from typing import BinaryIO

from kabuki_rlds.errors import KabukiError
from kabuki_rlds.files import disk
from kabuki_rlds.formats.rlds import crc32c
from kabuki_rlds.formats.rlds.shards import FOOT, HEAD, RECORD_FRAME

_LENGTH = struct.Struct("<Q")


def path_of(folder: pathlib.Path, dataset: str, split: str) -> pathlib.Path:
    """Where the journal of a split is. TFDS takes it for no shard."""
    return folder / f"{dataset}-{split}.recording"


def shard_path(folder: pathlib.Path, dataset: str, split: str, index: int) -> pathlib.Path:
    """Where a recorded shard is: its name does not tell how many there are, for that grows."""
    return folder / f"{dataset}-{split}.tfrecord-{index:05d}"


def _kept_path(path: pathlib.Path) -> pathlib.Path:
    """Where the last record of a journal is kept while it is replaced."""
    return path.with_name(f"{path.name}.kept")


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
    """Cuts off what is no whole record at the end of a file, and says how many bytes that was.

    A record that was about to be replaced is put back first.
    """
    _put_back(path)
    scan = Scan(path)
    end = _readable_end(path, scan.end)
    if end < scan.size:
        with open(path, "rb+") as file:
            file.truncate(end)
            os.fsync(file.fileno())
    return scan.size - end


def _put_back(path: pathlib.Path) -> None:
    kept = _kept_path(path)
    if not kept.exists():
        return
    stored = kept.read_bytes()
    start, record = stored[: _LENGTH.size], stored[_LENGTH.size :]
    # Else the process was killed while it was kept, and the one in the journal is as it was.
    if _is_whole(record):
        with open(path, "rb+") as file:
            file.seek(_LENGTH.unpack(start)[0])
            file.write(record)
            file.truncate()
            os.fsync(file.fileno())
    kept.unlink()


def _is_whole(record: bytes) -> bool:
    data = record[HEAD.size : -FOOT.size]
    return len(record) >= RECORD_FRAME and record == _framed(data)


def _framed(data: bytes) -> bytes:
    length = _LENGTH.pack(len(data))
    head = length + FOOT.pack(crc32c.masked(length))
    return b"".join((head, data, FOOT.pack(crc32c.masked(data))))


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


class AppendLog:
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
        with disk.writing(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)

    def append(self, data: bytes) -> int:
        """Adds a record, and returns where it begins.

        Raises:
          KabukiError: the disk is full, or the like; the records before are as they were.
        """
        start = self.size
        try:
            self._write(_framed(data), start)
        except OSError as e:
            os.ftruncate(self._file, start)
            self.size = start
            raise KabukiError(
                f"{self.path}: the episode cannot be written ({_reason(e)}); those before it are safe, this one is lost"
            ) from e
        self.records += 1
        return start

    def replace(self, start: int, data: bytes) -> None:
        """Writes a record in the place of the last, which begins at `start`.

        However the process ends, one of the two is there.

        Raises:
          KabukiError: the disk is full, or the like; the record is as it was.
        """
        before = os.pread(self._file, self.size - start, start)
        kept = _kept_path(self.path)
        try:
            kept.write_bytes(_LENGTH.pack(start) + before)
            try:
                self._write(_framed(data), start)
            except OSError:
                # Its place is still there.
                self._write(before, start)
                raise
        except OSError as e:
            kept.unlink(missing_ok=True)
            raise KabukiError(
                f"{self.path}: the episode cannot be written anew ({_reason(e)}); it stays as it was"
            ) from e
        kept.unlink()

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


def _reason(error: OSError) -> str | None:
    return "the disk is full" if error.errno == errno.ENOSPC else error.strerror
