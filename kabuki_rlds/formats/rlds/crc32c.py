"""The checksum that guards each record of a TFRecord file: CRC-32C, rotated and offset.

TensorFlow computes it only inside its own writer, which cannot go on with a file or
take a record back.
"""

from __future__ import annotations

import google_crc32c

_MASK_DELTA = 0xA282EAD8


def masked(data: bytes) -> int:
    """The checksum of some bytes as a TFRecord file holds it."""
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF
