"""Finds and reads the chunks of a Riegeli file, and the damaged gaps between them.

A file is a sequence of chunks. The header of a chunk has its size and hash. Every 64 KiB, a block header interrupts the
chunks and points to the next chunk. After damage, a reader finds the next chunk by these block headers. (Source:
Riegeli's doc/riegeli_records_file_format.md.)
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import struct
from collections.abc import Iterator
from typing import BinaryIO

from kabuki_rlds.formats.riegeli.highwayhash import hash_all

SIGNATURE, METADATA, PADDING, SIMPLE, TRANSPOSED = b"smprt"

_BLOCK = 1 << 16
_BLOCK_HEADER = struct.Struct("<QQQ")
_CHUNK_HEADER = struct.Struct("<QQQQQ")
#: Bytes of a block without its header.
_USABLE = _BLOCK - _BLOCK_HEADER.size

#: The most chunks, and the most bytes, that are read and hashed at once. Hashing many chunks at once takes little
#: longer than hashing one.
_AHEAD = 64
_AHEAD_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class ChunkHeader:
    """The position and header of a chunk.

    Attributes:
      begin: its position in the file, in bytes.
      end: the position after it.
      kind: one of the constants above.
      num_records: number of records.
      decoded_bytes: size of the decoded records.
      data_bytes: size of the stored data.
      data_hash: hash of the stored data.
    """

    begin: int
    end: int
    kind: int
    num_records: int
    decoded_bytes: int
    data_bytes: int
    data_hash: int

    @property
    def has_records(self) -> bool:
        return self.kind in (SIMPLE, TRANSPOSED) and self.num_records > 0


@dataclasses.dataclass(frozen=True)
class DamagedGap:
    """A part of a file without an intact chunk.

    Attributes:
      begin: the end of the chunk before it.
      end: the begin of the next chunk, or the end of the file.
      reason: a description of the damage.
      is_tail: whether the file ends in an incomplete write, as when the writing process was killed.
    """

    begin: int
    end: int
    reason: str
    is_tail: bool = False


def headers(path: pathlib.Path) -> list[ChunkHeader | DamagedGap]:
    """Reads the headers of all chunks of a file, and finds the damaged gaps between them, in order."""
    found: list[ChunkHeader | DamagedGap] = []
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        at = 0
        while at < size:
            header = _header(file, at, size)
            if isinstance(header, ChunkHeader) and header.end <= size and (at or header.kind == SIGNATURE):
                found.append(header)
                at = header.end
                continue
            if isinstance(header, ChunkHeader) and header.end > size and at:
                found.append(DamagedGap(at, size, f"the chunk at byte {at} is cut off", is_tail=True))
                break
            reason = header if isinstance(header, str) else "it is no Riegeli file"
            resumed = _next_chunk(file, at, size)
            if resumed is None:
                found.append(DamagedGap(at, size, reason, is_tail=_is_torn(file, at, size)))
                break
            found.append(DamagedGap(at, resumed, reason))
            at = resumed
    return found


def read(
    path: pathlib.Path, chunks: list[ChunkHeader], checked: set[int] | None = None
) -> Iterator[tuple[ChunkHeader, bytes | None]]:
    """Yields header and data of each chunk; None instead of data with a wrong hash.

    Args:
      path: the file.
      chunks: the chunks to read.
      checked: the positions of chunks whose hash was verified before. It is not verified again. Chunks that are
        verified now are added.
    """
    checked = set() if checked is None else checked
    with path.open("rb") as file:
        ahead: list[tuple[ChunkHeader, bytes]] = []
        held = 0
        for chunk in chunks:
            if ahead and (len(ahead) == _AHEAD or held + chunk.data_bytes > _AHEAD_BYTES):
                yield from _checked(ahead, checked)
                ahead, held = [], 0
            ahead.append((chunk, _read(file, chunk.begin, _CHUNK_HEADER.size + chunk.data_bytes)[_CHUNK_HEADER.size :]))
            held += chunk.data_bytes
        yield from _checked(ahead, checked)


def _checked(chunks: list[tuple[ChunkHeader, bytes]], checked: set[int]) -> Iterator[tuple[ChunkHeader, bytes | None]]:
    new = [(header, data) for header, data in chunks if header.begin not in checked]
    for (header, data), found in zip(new, hash_all([data for _, data in new]), strict=True):
        if found == header.data_hash and len(data) == header.data_bytes:
            checked.add(header.begin)
    for header, data in chunks:
        yield header, data if header.begin in checked else None


def _header(file: BinaryIO, begin: int, size: int) -> ChunkHeader | str:
    """Reads the header of the chunk at `begin`; returns a description if it is damaged."""
    raw = _read(file, begin, _CHUNK_HEADER.size)
    if len(raw) < _CHUNK_HEADER.size:
        return f"the header of the chunk at byte {begin} is cut off"
    header_hash, data_bytes, data_hash, kind_and_count, decoded_bytes = _CHUNK_HEADER.unpack(raw)
    if hash_all([raw[8:]]) != [header_hash]:
        return f"the header of the chunk at byte {begin} is damaged"
    kind, count = kind_and_count & 0xFF, kind_and_count >> 8
    end = max(_after(begin, _CHUNK_HEADER.size + data_bytes), _possible_boundary(begin + count))
    return ChunkHeader(begin, end, kind, count, decoded_bytes, data_bytes, data_hash)


def _next_chunk(file: BinaryIO, begin: int, size: int) -> int | None:
    """Returns the first chunk after `begin` that an intact block header points to; None if there is none."""
    block = (begin // _BLOCK + 1) * _BLOCK
    while block + _BLOCK_HEADER.size <= size:
        file.seek(block)
        raw = file.read(_BLOCK_HEADER.size)
        header_hash, before, after = _BLOCK_HEADER.unpack(raw)
        if hash_all([raw[8:]]) == [header_hash]:
            chunk = block if before == 0 else block + after
            if chunk >= size:
                return None
            if isinstance(_header(file, chunk, size), ChunkHeader):
                return chunk
        block += _BLOCK
    return None


def _is_torn(file: BinaryIO, begin: int, size: int) -> bool:
    """Returns whether the rest of a file is an incomplete write: shorter than a header, or all zeros."""
    file.seek(begin)
    rest = file.read()
    return len(_read(file, begin, _CHUNK_HEADER.size)) < _CHUNK_HEADER.size or not any(rest)


def _read(file: BinaryIO, begin: int, count: int) -> bytes:
    """Reads `count` bytes of a chunk from `begin` on, without block headers; fewer at the end of the file."""
    file.seek(begin)
    raw = file.read(_after(begin, count) - begin)
    parts = []
    at = begin
    while at < begin + len(raw):
        in_block = at % _BLOCK
        if in_block < _BLOCK_HEADER.size:
            at += _BLOCK_HEADER.size - in_block
            continue
        until = min(at + _BLOCK - in_block, begin + len(raw))
        parts.append(raw[at - begin : until - begin])
        at = until
    return b"".join(parts)[:count]


def _after(begin: int, count: int) -> int:
    """Returns the position after `count` bytes of a chunk, including the block headers between them."""
    blocks = (count + (begin + _USABLE - 1) % _BLOCK) // _USABLE
    return begin + count + blocks * _BLOCK_HEADER.size


def _possible_boundary(position: int) -> int:
    """Returns the first position >= `position` where a chunk may begin."""
    rest = _BLOCK - 1 - (position + _BLOCK - 1) % _BLOCK
    return position + max(0, rest - (_USABLE - 1))
