"""Varints of Protocol Buffers and Riegeli: 7 bits per byte, lowest first; the high bit is set in all but the last."""

from __future__ import annotations

import functools


@functools.lru_cache(1 << 14)
def varint(number: int) -> bytes:
    """Encodes a number >= 0."""
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    groups.append(number)
    return bytes(groups)
