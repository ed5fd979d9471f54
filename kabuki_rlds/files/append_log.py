"""A log of records. A record is safe when `append` returns, even if the process is killed later.

A process that is killed leaves at most one incomplete record, at the end.

While the last record is replaced, its old content is kept in a second file, from which
`repair` restores it. That file holds the offset of the record (8 bytes) and the record.
"""

from __future__ import annotations

import errno
import os
import pathlib
import struct

from kabuki_rlds.errors import KabukiError
from kabuki_rlds.files import disk, records
from kabuki_rlds.files.records import FRAME, Buffer, Scan, frame

_START = struct.Struct("<Q")


def kept_path(path: pathlib.Path) -> pathlib.Path:
    """The path of the file with the old content of the last record, which exists while the record is replaced."""
    return path.with_name(f"{path.name}.kept")


def repair(path: pathlib.Path) -> int:
    """Removes an incomplete record from the end of a log. Returns the number of removed bytes.

    First restores the last record if a process was killed while it replaced the record.
    """
    _restore(path)
    size = Scan(path).size
    # After a power failure, a complete record may hold zeros.
    end = sum(FRAME + len(data) for data in records.read(path))
    if end < size:
        with open(path, "rb+") as file:
            file.truncate(end)
            os.fsync(file.fileno())
    return size - end


def _restore(path: pathlib.Path) -> None:
    kept = kept_path(path)
    if not kept.exists():
        return
    stored = kept.read_bytes()
    start, record = stored[: _START.size], stored[_START.size :]
    # An incomplete copy: the process was killed before it changed the log.
    if records.is_whole(record):
        with open(path, "rb+") as file:
            file.seek(_START.unpack(start)[0])
            file.write(record)
            file.truncate()
            os.fsync(file.fileno())
    kept.unlink()


class AppendLog:
    """A new log.

    Args:
      path: the file. An existing one is emptied.

    Attributes:
      size: the size of the file in bytes.
      records: the number of records.

    Raises:
      KabukiError: the file cannot be created.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.size = self.records = 0
        with disk.writing(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)

    def append(self, *parts: Buffer) -> int:
        """Appends a record of data, which may be in several parts, and returns its offset.

        Raises:
          KabukiError: the record cannot be written, for example because the disk is full. The earlier records are
            not changed.
        """
        start = self.size
        try:
            for piece in frame(parts):
                self._write(piece, self.size)
        except OSError as e:
            os.ftruncate(self._file, start)
            self.size = start
            raise KabukiError(
                f"{self.path}: the episode cannot be written ({_reason(e)}) and is lost; the earlier episodes are safe"
            ) from e
        self.records += 1
        return start

    def replace(self, start: int, *parts: Buffer) -> None:
        """Replaces the last record, whose offset is `start`.

        If the process is killed, the log holds either the old or the new record.

        Raises:
          KabukiError: the record cannot be written, for example because the disk is full. The old record is kept.
        """
        before = os.pread(self._file, self.size - start, start)
        kept = kept_path(self.path)
        try:
            kept.write_bytes(_START.pack(start) + before)
            try:
                self._write(b"".join(frame(parts)), start)
            except OSError:
                # The disk space of the old record is still allocated.
                self._write(before, start)
                raise
        except OSError as e:
            kept.unlink(missing_ok=True)
            raise KabukiError(
                f"{self.path}: the episode cannot be replaced ({_reason(e)}); its old content is kept"
            ) from e
        kept.unlink()

    def take_back(self, start: int) -> None:
        """Removes the last record, whose offset is `start`."""
        os.ftruncate(self._file, start)
        self.size = start
        self.records -= 1

    def sync(self) -> None:
        """Waits until all records are on the disk (`fsync`)."""
        os.fsync(self._file)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    def _write(self, data: bytes, at: int) -> None:
        rest = memoryview(data)
        while rest:
            # Write at an explicit offset: an interrupted write may have moved the file position.
            written = os.pwrite(self._file, rest, at)
            at += written
            rest = rest[written:]
        if at < self.size:
            os.ftruncate(self._file, at)
        self.size = at


def _reason(error: OSError) -> str | None:
    return "the disk is full" if error.errno == errno.ENOSPC else error.strerror
