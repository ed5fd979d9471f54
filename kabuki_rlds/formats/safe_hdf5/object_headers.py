"""Reads the raw attribute messages of an object header, which the HDF5 library does not expose.

An object header is a list of messages, which may continue in further blocks. HDF5 moves
many or large attributes out of the header ("dense storage"); this module does not find
those. Source: "Data Object Headers" in the HDF5 File Format Specification.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

#: Message types.
_CONTINUATION = 0x10
_ATTRIBUTE = 0x0C
#: Message flag: the message is stored elsewhere.
_SHARED = 0x02
#: Flags of a version 2 header: optional parts that are present.
_HAS_TIMES, _HAS_LIMITS, _HAS_ORDER = 0x20, 0x10, 0x04
#: Class number of variable-length types.
_VARIABLE = 9
#: A datatype message: class and version, size of the type, size of one element.
_TYPE = struct.Struct("<BxxxIxxxxI")


def variable_attributes(file: int, address: int) -> Iterator[tuple[int, bytes]]:
    """Yields the element size in bytes and the raw stored value of each variable-length attribute.

    Args:
      file: file descriptor.
      address: offset of the object header in the file, in bytes.
    """
    for body in _attribute_messages(file, address):
        try:
            version, flags, *sizes = struct.unpack_from("<BBHHH", body)
            if version not in (1, 2, 3) or (version > 1 and flags):
                continue
            if version == 1:
                sizes = [-(-size // 8) * 8 for size in sizes]
            at = (9 if version == 3 else 8) + sizes[0]
            kind, _, element = _TYPE.unpack_from(body, at)
        except struct.error:
            continue
        if kind & 15 == _VARIABLE:
            yield element, body[at + sizes[1] + sizes[2] :]


def _attribute_messages(file: int, address: int) -> Iterator[bytes]:
    """Yields the body of each attribute message of the object header at `address`."""
    head = os.pread(file, 64, address)
    if head[:4] == b"OHDR":
        flags = head[5]
        at = 6 + (16 if flags & _HAS_TIMES else 0) + (4 if flags & _HAS_LIMITS else 0)
        width = 1 << (flags & 3)
        blocks = [(address + at + width, int.from_bytes(head[at : at + width], "little"))]
        message, skipped, around = struct.Struct("<BHB"), 2 if flags & _HAS_ORDER else 0, (4, 8)
    else:
        blocks = [(address + 16, int.from_bytes(head[8:12], "little"))]
        message, skipped, around = struct.Struct("<HHBxxx"), 0, (0, 0)
    end = os.fstat(file).st_size
    seen: set[int] = set()
    for start, size in blocks:
        if start in seen or not 0 < size <= end - start:
            continue
        seen.add(start)
        data = os.pread(file, size, start)
        at = 0
        while at + message.size + skipped <= len(data):
            kind, nbytes, flags = message.unpack_from(data, at)
            at += message.size + skipped
            body = data[at : at + nbytes]
            at += nbytes
            if kind == _ATTRIBUTE and not flags & _SHARED:
                yield body
            elif kind == _CONTINUATION and len(body) >= 16:
                place, length = struct.unpack_from("<QQ", body)
                # Version 2 blocks have a signature before the messages and a checksum after them.
                blocks.append((place + around[0], length - around[1]))
