"""Parses the state machine and the buffers of a transposed chunk of a Riegeli file."""

from __future__ import annotations

import dataclasses

import numpy as np

from kabuki_rlds.data.block import row_splits
from kabuki_rlds.formats.riegeli.byte_reader import ByteReader, decompress
from kabuki_rlds.formats.varint import varint

# Kinds of nodes that are not fields.
NO_OP, NON_PROTO, SUBMESSAGE_START, RECORD_START = range(4)
#: The wire type that Riegeli uses for the end of a submessage.
_SUBMESSAGE_END = 6
_VARINT, _FIXED64, _LENGTH_DELIMITED, _START_GROUP, _END_GROUP, _FIXED32 = range(6)
#: Subtypes of varints: below this, the number of bytes - 1; from this on, a value of one byte in the node itself.
_INLINE = 10


@dataclasses.dataclass
class StateNode:
    """One node of the state machine.

    Attributes:
      kind: one of the constants above; None for a field or the end of a submessage.
      text: the bytes that the node writes each time: the field's tag, and the value if it is part of the node.
      size: number of bytes that it takes from its buffer each time; None if they are a string with its length.
      buffer: the number of its buffer; None if it has none.
      is_varint: whether the buffer holds varints without their continuation bits.
      ends_message: whether it is the end of a submessage.
    """

    kind: int | None = None
    text: bytes = b""
    size: int | None = 0
    buffer: int | None = None
    is_varint: bool = False
    ends_message: bool = False


@dataclasses.dataclass
class StateMachine:
    """The state machine and the buffers.

    Attributes:
      nodes: the nodes.
      next_node: the number of the node after each node.
      is_implicit: for each node, whether the machine goes on to `next_node` without a transition.
      first: the number of the first node.
      transitions: one byte per transition.
      buffers: the values of the fields: uint8, (bytes,) each.
    """

    nodes: list[StateNode]
    next_node: list[int]
    is_implicit: list[bool]
    first: int
    transitions: bytes
    buffers: list[np.ndarray]


def parse(data: bytes) -> StateMachine:
    """Parses a transposed chunk.

    Raises:
      IndexError, ValueError: the chunk is damaged.
    """
    reader = ByteReader(data)
    compression = reader.byte()
    header = ByteReader(decompress(compression, reader.take(reader.varint())))
    num_buckets, num_buffers = header.varint(), header.varint()
    buckets = [header.varint() for _ in range(num_buckets)]
    values = np.frombuffer(b"".join(decompress(compression, reader.take(size)) for size in buckets), np.uint8)
    splits = row_splits(np.array([header.varint() for _ in range(num_buffers)], np.int64))
    if splits[-1] != len(values):
        raise ValueError("its buffers do not have the bytes that it says")
    buffers = [values[a:b] for a, b in zip(splits[:-1].tolist(), splits[1:].tolist(), strict=True)]
    count = header.varint()
    tags = [header.varint() for _ in range(count)]
    following = [header.varint() for _ in range(count)]
    subtypes = ByteReader(header.take(sum(tag >= 8 and tag & 7 == _VARINT for tag in tags)))
    nodes = [_node(tag, subtypes, header) for tag in tags]
    next_node, is_implicit = [n % count for n in following], [n >= count for n in following]
    if _has_infinite_loop(next_node, is_implicit):
        raise ValueError("its state machine never ends")
    first = header.varint()
    transitions = decompress(compression, reader.rest())
    return StateMachine(nodes, next_node, is_implicit, first, transitions, buffers)


def _has_infinite_loop(next_node: list[int], is_implicit: list[bool]) -> bool:
    """Returns whether nodes without transitions form a cycle."""
    # The start of the walk that reached each node first.
    reached_from = [-1] * len(next_node)
    for start in range(len(next_node)):
        node = start
        while is_implicit[node] and reached_from[node] < 0:
            reached_from[node] = start
            node = next_node[node]
        if is_implicit[node] and reached_from[node] == start:
            return True
    return False


def _node(tag: int, subtypes: ByteReader, header: ByteReader) -> StateNode:
    if tag in (NO_OP, SUBMESSAGE_START, RECORD_START):
        return StateNode(tag)
    if tag == NON_PROTO:
        return StateNode(tag, size=None, buffer=header.varint())
    wire = tag & 7
    if tag < 8 or wire > _SUBMESSAGE_END:
        raise ValueError(f"it has a field of tag {tag}")
    if wire == _SUBMESSAGE_END:
        return StateNode(text=varint(tag - _SUBMESSAGE_END + _LENGTH_DELIMITED), ends_message=True)
    text = varint(tag)
    if wire == _VARINT:
        subtype = subtypes.byte()
        if subtype >= _INLINE:
            return StateNode(text=text + bytes([subtype - _INLINE]))
        return StateNode(text=text, size=subtype + 1, buffer=header.varint(), is_varint=True)
    if wire in (_FIXED32, _FIXED64):
        return StateNode(text=text, size=4 if wire == _FIXED32 else 8, buffer=header.varint())
    if wire == _LENGTH_DELIMITED:
        return StateNode(text=text, size=None, buffer=header.varint())
    return StateNode(text=text)
