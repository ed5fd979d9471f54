"""Detects damaged structures that put the HDF5 library (2.0) in an infinite loop.

The checks read the bytes of the file before HDF5 opens it. Source: "Version 1 B-trees"
and "Global Heap" in the HDF5 File Format Specification.

A global heap stores values of variable length. It is a sequence of objects, each with a
header that holds its index and its size. Index 0 marks the free space. HDF5 loops forever
if the free space is smaller than its own header, and may do so if an object is larger
than the heap.

Each B-tree node stores the address of the next node of its level. HDF5 loops forever if
these addresses form a cycle.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

from kabuki_rlds.errors import DamagedDataError

_SIGNATURES = (b"GCOL\x01", b"TREE")
_SIGNATURE_BYTES = 5
_HEAP = struct.Struct("<4s4xQ")
_OBJECT = struct.Struct("<HHIQ")
_NODE = struct.Struct("<4s4xQQ")
_MIN_HEAP_BYTES = 4096
#: Larger files are not checked, because the check would take longer than opening them.
MAX_BYTES = 64 << 20
_READ_BYTES = 1 << 22


def check_heaps_and_btrees(path: str) -> None:
    """Checks every heap and B-tree in a file of at most `MAX_BYTES` bytes.

    Raises:
      KabukiError: a heap or a B-tree would put HDF5 in an infinite loop.
    """
    next_nodes: dict[int, int] = {}
    heap_end: int | None = 0
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size > MAX_BYTES:
            return
        for signature, at in _find_signatures(file):
            if signature == b"TREE":
                node = os.pread(file.fileno(), _NODE.size, at)
                if len(node) == _NODE.size:
                    next_nodes[at] = _NODE.unpack(node)[2]
            elif at >= (heap_end or 0):
                # A signature inside a heap is stored data, not another heap.
                heap_end = _heap_end(file.fileno(), at)
                if heap_end is None:
                    raise _damaged(path, "heap", at)
    checked: set[int] = set()
    for at in next_nodes:
        visited: set[int] = set()
        node_at = at
        while node_at in next_nodes and node_at not in checked:
            if node_at in visited:
                raise _damaged(path, "B-tree", at)
            visited.add(node_at)
            node_at = next_nodes[node_at]
        checked |= visited


def _damaged(path: str, structure: str, at: int) -> DamagedDataError:
    return DamagedDataError(
        f"damaged {structure} at byte {at}, which would put the HDF5 library in an infinite loop; "
        "restore the file from an intact copy",
        file=path,
    )


def _find_signatures(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yields each signature in a file and its byte offset."""
    overlap = b""
    begin = 0
    while read := file.read(_READ_BYTES):
        data = overlap + read
        # Two searches take half the time of one regular expression for both signatures.
        for signature in _SIGNATURES:
            at = data.find(signature)
            while at >= 0:
                yield signature, begin + at
                at = data.find(signature, at + 1)
        overlap = data[1 - _SIGNATURE_BYTES :]
        begin += len(data) - len(overlap)


def _heap_end(file: int, at: int) -> int | None:
    """Returns the offset of the byte after a heap, or None if the heap would hang HDF5 or crash the process."""
    head = os.pread(file, _HEAP.size, at)
    if len(head) < _HEAP.size:
        return at
    size = _HEAP.unpack(head)[1]
    if not _MIN_HEAP_BYTES <= size <= os.fstat(file).st_size - at:
        return None
    heap = os.pread(file, size, at)
    offset = _HEAP.size
    while offset + _OBJECT.size <= len(heap):
        index, _, _, nbytes = _OBJECT.unpack_from(heap, offset)
        object_bytes = nbytes if not index else _OBJECT.size + -(-nbytes // 8) * 8
        if not _OBJECT.size <= object_bytes <= len(heap) - offset:
            return None
        offset += object_bytes
    return at + size
