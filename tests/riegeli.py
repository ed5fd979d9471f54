"""Writes Riegeli files and EnvLogger messages with valid hashes and arbitrary, possibly invalid, contents."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from kabuki_rlds.formats.riegeli.highwayhash import hash_all
from kabuki_rlds.formats.varint import varint

SIMPLE, TRANSPOSED = b"rt"
#: Offset of the first chunk with records, in bytes.
FIRST = 64


def write(path: Path, chunks: Sequence[bytes]) -> Path:
    """Writes a file of chunks. All chunks must fit in one block of 64 KiB."""
    signature = chunk(ord("s"), b"", 0, 0)
    block = struct.pack("<QQ", 0, FIRST)
    path.write_bytes(struct.pack("<Q", *hash_all([block])) + block + signature + b"".join(chunks))
    assert path.stat().st_size < 1 << 16
    return path


def chunk(kind: int, data: bytes, records: int, decoded: int) -> bytes:
    """Returns a chunk with its header."""
    (data_hash,) = hash_all([data])
    header = struct.pack("<QQQQ", len(data), data_hash, kind | records << 8, decoded)
    return struct.pack("<Q", *hash_all([header])) + header + data


def simple(records: Sequence[bytes]) -> bytes:
    """Returns a simple chunk: the records are stored unchanged."""
    sizes = b"".join(varint(len(record)) for record in records)
    whole = b"".join(records)
    return chunk(SIMPLE, b"\0" + varint(len(sizes)) + sizes + whole, len(records), len(whole))


class Node(NamedTuple):
    """A node of the state machine of a transposed chunk.

    Attributes:
      tag: tag of the field, or a reserved id.
      after: number of the next node.
      buffer: number of the buffer with the values.
      implicit: whether the step to this node consumes no transition byte.
    """

    tag: int
    after: int
    buffer: int | None = None
    implicit: bool = False


def transposed(
    nodes: Sequence[Node], buffers: Sequence[bytes], transitions: bytes, records: int, decoded: int = 0
) -> bytes:
    """Returns a transposed chunk without varints. A state machine assembles its records from the last to the first."""
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
    """Returns an encoded field of a protobuf message."""
    return bytes([number << 3 | 2]) + varint(len(value)) + value


def datum(dims: Sequence[int], kind: int, values: bytes) -> bytes:
    """Returns an encoded `Datum` message. `kind` is the number of the field with its values."""
    shape = b"".join(field(2, b"\x08" + varint(dim % (1 << 64))) for dim in dims)
    return field(1, shape) + field(2, field(kind, values))


def scalar(value: int) -> bytes:
    """Returns an encoded `Data` message with one int32."""
    return field(1, datum((-438,), 3, varint(value)))


def items(number: int, parts: Sequence[bytes]) -> bytes:
    """Returns an encoded `Data` message: a list (`number` 2) or a tuple (`number` 3) of `Data`."""
    return field(number, b"".join(field(1, part) for part in parts))


def step(kind: int, observation: bytes, custom: bytes = b"") -> bytes:
    """Returns an encoded step record: dm_env step type and observation."""
    time_step = items(3, [scalar(kind), scalar(0), scalar(1), observation])
    return items(3, [time_step, scalar(4), custom])


def log(folder: Path, records: Sequence[bytes], *, indexed: bool) -> Path:
    """Writes a log of one shard. Its index lists each step as an episode."""
    shard = folder / "20260101T000000000000"
    shard.mkdir(parents=True)
    write(shard / "steps.riegeli", [simple(records)])
    if indexed:
        offsets = b"".join(varint(FIRST + i) for i in range(len(records)))
        write(shard / "step_offsets.riegeli", [simple([datum((len(records),), 4, offsets)])])
        starts = b"".join(varint(i) + varint((1 << 64) - 1) for i in range(len(records)))
        write(shard / "episode_index.riegeli", [simple([datum((len(records), 2), 4, starts)])])
    return folder
