"""Reads and frames records in the TFRecord format.

A record is its length (8 bytes, little-endian), a checksum of the length, the data, and a
checksum of the data. A checksum is CRC-32C, rotated and offset. (Source: TensorFlow's
`record_writer.h`.) TensorFlow's writer is not used, because it can neither append to an
existing file nor remove a record.
"""

from __future__ import annotations

import os
import pathlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, TypeAlias

import google_crc32c

#: Bytes, or a contiguous array of bytes.
Buffer: TypeAlias = Any

#: The bytes before the data of a record (length, checksum of the length), and after it (checksum of the data).
HEAD = struct.Struct("<QI")
FOOT = struct.Struct("<I")
#: Bytes that the format adds to each record.
FRAME = HEAD.size + FOOT.size

_LENGTH = struct.Struct("<Q")
_MASK_DELTA = 0xA282EAD8
#: Large data are framed in pieces of about so many bytes.
_PIECE = 1 << 20


def checksum(data: bytes) -> int:
    """The checksum of the data in the form that records store."""
    return _masked(google_crc32c.value(data))


def framed(data: bytes) -> bytes:
    """A record of the data."""
    return b"".join(frame([data]))


def frame(parts: Sequence[Buffer]) -> Iterator[bytes]:
    """A record of data in several parts. It is yielded in pieces, so that large data is not copied as a whole."""
    views = [memoryview(part).cast("B") for part in parts if len(part)]
    return frame_stream(sum(map(len, views)), views)


def frame_stream(num_bytes: int, parts: Iterable[Buffer]) -> Iterator[bytes]:
    """A record of `num_bytes` of data in several parts, which are taken one at a time. See `frame`."""
    length = _LENGTH.pack(num_bytes)
    head = length + FOOT.pack(checksum(length))
    crc = 0
    waiting = [head]
    for part in parts:
        view = memoryview(part)
        for at in range(0, len(view), _PIECE):
            piece = bytes(view[at : at + _PIECE])
            crc = google_crc32c.extend(crc, piece)
            waiting.append(piece)
            if sum(map(len, waiting)) >= _PIECE:
                yield b"".join(waiting)
                waiting = []
    yield b"".join([*waiting, FOOT.pack(_masked(crc))])


def is_whole(record: bytes) -> bool:
    """Whether some bytes are one undamaged record."""
    return len(record) >= FRAME and record == framed(record[HEAD.size : -FOOT.size])


def read(path: pathlib.Path) -> Iterator[bytes]:
    """Yields the data of each record of a file, up to the first damaged or truncated one."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        while (length := _next_length(file, size)) is not None:
            data = file.read(length)
            if FOOT.unpack(file.read(FOOT.size))[0] != checksum(data):
                return
            yield data


class Scan:
    """Counts the records of a file by their lengths, without reading the data.

    Attributes:
      records: the number of complete records.
      num_bytes: the total size of their data in bytes.
      end: the offset of the end of the last complete record. Bytes after it are an incomplete record.
      size: the size of the file in bytes.
    """

    def __init__(self, path: pathlib.Path):
        self.records = self.num_bytes = self.end = 0
        with open(path, "rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            while (length := _next_length(file, self.size)) is not None:
                self.records += 1
                self.num_bytes += length
                self.end = file.seek(length + FOOT.size, os.SEEK_CUR)


def _masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def _next_length(file: BinaryIO, size: int) -> int | None:
    """Reads the length of the next record; None if no complete record follows."""
    head = file.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    length: int
    length, stated = HEAD.unpack(head)
    fits = file.tell() + length + FOOT.size <= size
    return length if fits and stated == checksum(head[: _LENGTH.size]) else None
