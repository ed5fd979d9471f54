"""Numbers as protobuf and Riegeli write them: 7 bits a byte, the lowest first, the high bit set on all but the last."""

from __future__ import annotations

import functools


@functools.lru_cache(1 << 14)
def varint(number: int) -> bytes:
    """A number from 0 on, as a varint."""
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    groups.append(number)
    return bytes(groups)
