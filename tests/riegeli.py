"""Riegeli files and EnvLogger's messages made by hand: right in their hashes, whatever they hold."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from kabuki_rlds.formats.riegeli.highwayhash import hash_all
from kabuki_rlds.formats.varint import varint

SIMPLE, TRANSPOSED = b"rt"
#: Where the first chunk with records begins.
FIRST = 64


def write(path: Path, chunks: Sequence[bytes]) -> Path:
    """A file of chunks, which fit one block of 64 KiB."""
    signature = chunk(ord("s"), b"", 0, 0)
    block = struct.pack("<QQ", 0, FIRST)
    path.write_bytes(struct.pack("<Q", *hash_all([block])) + block + signature + b"".join(chunks))
    assert path.stat().st_size < 1 << 16
    return path


def chunk(kind: int, data: bytes, records: int, decoded: int) -> bytes:
    """A chunk with its header."""
    (data_hash,) = hash_all([data])
    header = struct.pack("<QQQQ", len(data), data_hash, kind | records << 8, decoded)
    return struct.pack("<Q", *hash_all([header])) + header + data


def simple(records: Sequence[bytes]) -> bytes:
    """A chunk that holds records as they are."""
    sizes = b"".join(varint(len(record)) for record in records)
    whole = b"".join(records)
    return chunk(SIMPLE, b"\0" + varint(len(sizes)) + sizes + whole, len(records), len(whole))


class Node(NamedTuple):
    """A node of the state machine of a transposed chunk.

    Attributes:
      tag: of its field, or what it is instead.
      after: the node after it.
      buffer: where its values are.
      implicit: going to it takes no transition.
    """

    tag: int
    after: int
    buffer: int | None = None
    implicit: bool = False


def transposed(
    nodes: Sequence[Node], buffers: Sequence[bytes], transitions: bytes, records: int, decoded: int = 0
) -> bytes:
    """A chunk whose records a state machine puts together, the last of them first; without varints."""
    header = b"".join(
        map(
            varint,
            (
                *(1, len(buffers), sum(map(len, buffers)), *map(len, buffers)),
                *(len(nodes), *(node.tag for node in nodes)),
                *(node.after + len(nodes) * node.implicit for node in nodes),
                *(node.buffer for node in nodes if node.buffer is not None),
                0,
            ),
        )
    )
    data = b"\0" + varint(len(header)) + header + b"".join(buffers) + transitions
    return chunk(TRANSPOSED, data, records, decoded)


def field(number: int, value: bytes) -> bytes:
    """A field of a message."""
    return bytes([number << 3 | 2]) + varint(len(value)) + value


def datum(dims: Sequence[int], kind: int, values: bytes) -> bytes:
    """A `Datum`, of the field of its values that is of that kind."""
    shape = b"".join(field(2, b"\x08" + varint(dim % (1 << 64))) for dim in dims)
    return field(1, shape) + field(2, field(kind, values))


def scalar(value: int) -> bytes:
    """A `Data`: an int32."""
    return field(1, datum((-438,), 3, varint(value)))


def items(number: int, parts: Sequence[bytes]) -> bytes:
    """A `Data`: a list (2) or a tuple (3) of others."""
    return field(number, b"".join(field(1, part) for part in parts))


def step(kind: int, observation: bytes, custom: bytes = b"") -> bytes:
    """A record: dm_env's type of a step, and what was observed."""
    time_step = items(3, [scalar(kind), scalar(0), scalar(1), observation])
    return items(3, [time_step, scalar(4), custom])


def log(folder: Path, records: Sequence[bytes], *, indexed: bool) -> Path:
    """A log of one shard. Its index says of each step that it is an episode."""
    shard = folder / "20260101T000000000000"
    shard.mkdir(parents=True)
    write(shard / "steps.riegeli", [simple(records)])
    if indexed:
        offsets = b"".join(varint(FIRST + i) for i in range(len(records)))
        write(shard / "step_offsets.riegeli", [simple([datum((len(records),), 4, offsets)])])
        starts = b"".join(varint(i) + varint((1 << 64) - 1) for i in range(len(records)))
        write(shard / "episode_index.riegeli", [simple([datum((len(records), 2), 4, starts)])])
    return folder
