"""Damaged structures from which the HDF5 library never returns.

They are looked for in a file's bytes before HDF5 opens it. (HDF5 2.0; source: "Version
1 B-trees" and "Global Heap" of the HDF5 File Format Specification.)

A global heap holds what varies in length. It is a run of objects, each behind its
number and its size; number 0 is the space that is left. Where that says that it is
smaller than its own header, HDF5 reads it again and again; so it may where an object
says that it is larger than the heap.

The nodes of one level of a B-tree name each the next. Where one of them names one
before, HDF5 goes round in a circle.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

from kabuki_rlds.errors import KabukiError

_SIGNATURES = (b"GCOL\x01", b"TREE")
_SIGNATURE_BYTES = 5
_HEAP = struct.Struct("<4s4xQ")
_OBJECT = struct.Struct("<HHIQ")
_NODE = struct.Struct("<4s4xQQ")
#: No heap has fewer bytes.
_LEAST_HEAP = 4096
#: Larger files are not looked through: that would take longer than to open them.
MAX_BYTES = 64 << 20
_PIECE = 1 << 22


def check_ends(path: str) -> None:
    """Looks at all that may be a heap or a B-tree in a file of at most `MAX_BYTES`.

    Raises:
      KabukiError: HDF5 would never return from one of them.
    """
    following: dict[int, int] = {}
    heap_end: int | None = 0
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size > MAX_BYTES:
            return
        for signature, at in _found(file):
            if signature == b"TREE":
                node = os.pread(file.fileno(), _NODE.size, at)
                if len(node) == _NODE.size:
                    following[at] = _NODE.unpack(node)[2]
            elif at >= (heap_end or 0):
                # What is within a heap is data, and no heap though it may look like one.
                heap_end = _end_of_heap(file.fileno(), at)
                if heap_end is None:
                    raise _refuse(path, "heap", at)
    known: set[int] = set()
    for at in following:
        passed: set[int] = set()
        node_at = at
        while node_at in following and node_at not in known:
            if node_at in passed:
                raise _refuse(path, "tree", at)
            passed.add(node_at)
            node_at = following[node_at]
        known |= passed


def _refuse(path: str, what: str, at: int) -> KabukiError:
    return KabukiError(
        f"{path}: the {what} at byte {at} is damaged, and the HDF5 library would never return from it; "
        "the file is not read"
    )


def _found(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Each signature in a file, and where it is."""
    before = b""
    begin = 0
    while piece := file.read(_PIECE):
        data = before + piece
        # One after the other takes half the time that a regular expression for both does.
        for signature in _SIGNATURES:
            at = data.find(signature)
            while at >= 0:
                yield signature, begin + at
                at = data.find(signature, at + 1)
        before = data[1 - _SIGNATURE_BYTES :]
        begin += len(data) - len(before)


def _end_of_heap(file: int, at: int) -> int | None:
    """The byte after a heap; None where HDF5 would not return from it, or fail in a way that ends the process."""
    head = os.pread(file, _HEAP.size, at)
    if len(head) < _HEAP.size:
        return at
    size = _HEAP.unpack(head)[1]
    if not _LEAST_HEAP <= size <= os.fstat(file).st_size - at:
        return None
    heap = os.pread(file, size, at)
    place = _HEAP.size
    while place + _OBJECT.size <= len(heap):
        number, _, _, nbytes = _OBJECT.unpack_from(heap, place)
        taken = nbytes if not number else _OBJECT.size + -(-nbytes // 8) * 8
        if not _OBJECT.size <= taken <= len(heap) - place:
            return None
        place += taken
    return at + size
