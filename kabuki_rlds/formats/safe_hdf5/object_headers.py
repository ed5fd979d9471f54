"""The attributes of an object as they stand in the file, which the HDF5 library does not show.

They are messages of the object's header: a run of messages, with more of them in other
places. Those that moved out of the header, as many or large ones do, are not found.
(Source: "Data Object Headers" of the HDF5 File Format Specification.)
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

_CONTINUED = 0x10
_ATTRIBUTE = 0x0C
#: Flags: of a message, that it stands elsewhere; of a header, what it has more than others.
_SHARED = 0x02
_HAS_TIMES, _HAS_LIMITS, _HAS_ORDER = 0x20, 0x10, 0x04
#: The class of a type that varies in length, and what is known of one: its own size, then that of its elements.
_VARIABLE = 9
_TYPE = struct.Struct("<BxxxIxxxxI")


def variable_attributes(file: int, address: int) -> Iterator[tuple[int, bytes]]:
    """The size of an element and the stored value, of each attribute that varies in length.

    Args:
      file: a descriptor of the file.
      address: of the object's header.
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
            elif kind == _CONTINUED and len(body) >= 16:
                place, length = struct.unpack_from("<QQ", body)
                # In newer files a signature is before the messages, and a checksum after.
                blocks.append((place + around[0], length - around[1]))
