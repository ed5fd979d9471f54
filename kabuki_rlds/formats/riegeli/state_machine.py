"""The state machine of a transposed chunk of a Riegeli file, and the values that it puts together."""

from __future__ import annotations

import dataclasses

import numpy as np

from kabuki_rlds.data.block import row_splits
from kabuki_rlds.formats.riegeli.byte_reader import ByteReader, decompress
from kabuki_rlds.formats.varint import varint

# What a node is, where it is no field.
NO_OP, NON_PROTO, SUBMESSAGE_START, RECORD_START = range(4)
#: The wire type that marks the end of a message within a message.
_SUBMESSAGE_END = 6
_VARINT, _FIXED64, _LENGTH_DELIMITED, _START_GROUP, _END_GROUP, _FIXED32 = range(6)
#: Kinds of varint: of 1 to 10 bytes, or of one byte that the node itself says.
_INLINE = 10


@dataclasses.dataclass
class StateNode:
    """One node of the state machine.

    Attributes:
      kind: one of the constants above, or None for a field or the end of a message.
      text: the bytes that each visit writes: the field's tag, and a value where that is the node's.
      size: how many bytes of its buffer a visit takes; None where they are a string with its length.
      buffer: which buffer that is; None for none.
      is_varint: the buffer leaves out what says that a varint goes on.
      ends_message: it is the end of a message within a message.
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
      nodes: its nodes.
      next_node: for each the node after it.
      is_implicit: whether going there takes no transition.
      first: the first node.
      transitions: one byte each.
      buffers: the values of the fields.
    """

    nodes: list[StateNode]
    next_node: list[int]
    is_implicit: list[bool]
    first: int
    transitions: bytes
    buffers: list[np.ndarray]


def parse(data: bytes) -> StateMachine:
    """Reads what a transposed chunk says.

    Raises:
      IndexError, ValueError: it is not what it should be.
    """
    reader = ByteReader(data)
    compression = reader.byte()
    header = ByteReader(decompress(compression, reader.take(reader.varint())))
    num_buckets, num_buffers = header.varint(), header.varint()
    buckets = [header.varint() for _ in range(num_buckets)]
    whole = np.frombuffer(b"".join(decompress(compression, reader.take(size)) for size in buckets), np.uint8)
    splits = row_splits(np.array([header.varint() for _ in range(num_buffers)], np.int64))
    if splits[-1] != len(whole):
        raise ValueError("its buffers do not have the bytes that it says")
    buffers = [whole[a:b] for a, b in zip(splits[:-1].tolist(), splits[1:].tolist(), strict=True)]
    count = header.varint()
    tags = [header.varint() for _ in range(count)]
    following = [header.varint() for _ in range(count)]
    subtypes = ByteReader(header.take(sum(tag >= 8 and tag & 7 == _VARINT for tag in tags)))
    nodes = [_node(tag, subtypes, header) for tag in tags]
    next_node, is_implicit = [n % count for n in following], [n >= count for n in following]
    if _is_endless(next_node, is_implicit):
        raise ValueError("its state machine never ends")
    first = header.varint()
    transitions = decompress(compression, reader.rest())
    return StateMachine(nodes, next_node, is_implicit, first, transitions, buffers)


def _is_endless(next_node: list[int], is_implicit: list[bool]) -> bool:
    """Whether nodes that take no transition follow each other in a circle."""
    # The walk on which each was first met.
    met = [-1] * len(next_node)
    for walk in range(len(next_node)):
        node = walk
        while is_implicit[node] and met[node] < 0:
            met[node] = walk
            node = next_node[node]
        if is_implicit[node] and met[node] == walk:
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
