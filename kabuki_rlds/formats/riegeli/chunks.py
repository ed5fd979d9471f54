"""The chunks of a Riegeli file, and where there are none that are whole.

A file is a sequence of chunks, each with a header that says how long it is and what
its hash is. Every 64 KiB a block header stands in between, which says where the next
chunk begins; by these a reader finds its way again after damage. The layout is that
of Riegeli's own document, doc/riegeli_records_file_format.md.
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
#: Bytes of a block that belong to chunks.
_USABLE = _BLOCK - _BLOCK_HEADER.size

#: Hashing many chunks at once costs little more than hashing one: so many are read
#: ahead, unless they take more bytes than that.
_AHEAD = 64
_AHEAD_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class ChunkHeader:
    """Where a chunk is, and what it says of itself.

    Attributes:
      begin: its position in the file.
      end: the position after it.
      kind: one of the constants above.
      num_records: how many records it holds.
      decoded_bytes: how many bytes they have.
      data_bytes: how many bytes its data has, as stored.
      data_hash: their hash.
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
    """A part of a file that holds no whole chunk.

    Attributes:
      begin: where the last chunk before it ended.
      end: where the next chunk begins, or the end of the file.
      reason: what is wrong there.
      is_tail: the file ends in it, as it does when a process dies while it writes.
    """

    begin: int
    end: int
    reason: str
    is_tail: bool = False


def headers(path: pathlib.Path) -> list[ChunkHeader | DamagedGap]:
    """All chunks of a file by their headers, in order, and the gaps between them."""
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
    """The data of each of the chunks, None where it is not what was written.

    Args:
      path: the file.
      chunks: the chunks to read.
      checked: where those begin whose data was found to be right before, which is not
        done again. What is found now is added.
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
    """The header of the chunk that begins there, or what is wrong with it."""
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
    """Where the first chunk begins that block headers after `begin` speak of."""
    block = (begin // _BLOCK + 1) * _BLOCK
    while block + _BLOCK_HEADER.size <= size:
        file.seek(block)
        raw = file.read(_BLOCK_HEADER.size)
        header_hash, before, after = _BLOCK_HEADER.unpack(raw)
        if hash_all([raw[8:]]) == [header_hash]:
            chunk = block if before == 0 else block + after
            # One that cannot be trusted either is passed over like the first.
            if chunk >= size:
                return None
            if isinstance(_header(file, chunk, size), ChunkHeader):
                return chunk
        block += _BLOCK
    return None


def _is_torn(file: BinaryIO, begin: int, size: int) -> bool:
    """Whether what is left is what a write that did not finish leaves: too short, or all zeros."""
    file.seek(begin)
    rest = file.read()
    return len(_read(file, begin, _CHUNK_HEADER.size)) < _CHUNK_HEADER.size or not any(rest)


def _read(file: BinaryIO, begin: int, count: int) -> bytes:
    """`count` bytes of a chunk from `begin` on, block headers left out; fewer where the file ends."""
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
    """The position after `count` bytes of a chunk, with the block headers among them."""
    blocks = (count + (begin + _USABLE - 1) % _BLOCK) // _USABLE
    return begin + count + blocks * _BLOCK_HEADER.size


def _possible_boundary(position: int) -> int:
    """The first position from there on at which a chunk may begin."""
    rest = _BLOCK - 1 - (position + _BLOCK - 1) % _BLOCK
    return position + max(0, rest - (_USABLE - 1))
