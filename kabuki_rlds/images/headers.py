"""Reads format, size, channels and bit depth from the headers of image files, without decoding.

It supports WebP and the formats that TensorFlow decodes: PNG, JPEG, GIF and BMP. (Sources: the PNG specification, ITU-T
T.81 for JPEG, GIF89a, RFC 9649 for WebP, and the BITMAPINFOHEADER of BMP.)
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_PNG = b"\x89PNG\r\n\x1a\n"
#: PNG colour type to its possible bit depths and the number of decoded channels. TensorFlow does not decode to two
#: channels, so gray with alpha has four.
_PNG_COLOURS = {0: ((1, 2, 4, 8, 16), 1), 2: ((8, 16), 3), 3: ((1, 2, 4, 8), 3), 4: ((8, 16), 4), 6: ((8, 16), 4)}
#: JPEG markers that begin a frame: C0 to CF, except C4, C8 and CC.
START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
#: The frame types that common decoders support: baseline, extended sequential and progressive.
_DECODABLE_FRAMES = (0xC0, 0xC1, 0xC2)
#: Number of components of a JPEG to the number of decoded channels. CMYK (4) is decoded to RGB (3).
_JPEG_CHANNELS = {1: 1, 3: 3, 4: 3}


class ImageHeader(NamedTuple):
    """Format and size of an image file, read from its header.

    Attributes:
      file_format: "png", "jpeg", "gif", "bmp" or "webp".
      height, width: in pixels.
      channels: number of decoded channels. None for GIF, BMP and WebP, and for JPEG files that common decoders do not
        support.
      bits: bits per decoded channel, 8 or 16; None if `channels` is None.
      end: length in bytes of the part of the file that determines the other attributes.
    """

    file_format: str
    height: int
    width: int
    channels: int | None = None
    bits: int | None = None
    end: int = 0


def header_of(file: bytes) -> ImageHeader | None:
    """Format and size of an image file; None if the file is not an image or its header is damaged."""
    if file[:8] == _PNG:
        return _header_of_png(file)
    if file[:2] == b"\xff\xd8":
        return _header_of_jpeg(file)
    if file[:4] == b"GIF8":
        return _header_of_gif(file)
    if file[:2] == b"BM" and len(file) >= 26:
        width, height = struct.unpack_from("<ii", file, 18)
        # In BMP, a negative height means that the rows are stored from top to bottom.
        return ImageHeader("bmp", abs(height), abs(width))
    if file[:4] == b"RIFF" and file[8:12] == b"WEBP" and len(file) >= 30:
        return _header_of_webp(file)
    return None


def _header_of_png(file: bytes) -> ImageHeader | None:
    if len(file) < 33 or file[12:16] != b"IHDR":
        return None
    width, height, bits, colour = struct.unpack_from(">IIBB", file, 16)
    depths, channels = _PNG_COLOURS.get(colour, ((), 0))
    if bits not in depths or not width or not height:
        return None
    end = 33
    if colour != 6:
        # A tRNS chunk (transparency) also gives an alpha channel. It comes before the first IDAT chunk (pixels).
        end = file.find(b"IDAT", end)
        end = len(file) if end < 0 else end
        if file.find(b"tRNS", 33, end) >= 0:
            channels = 4
    return ImageHeader("png", height, width, channels, 16 if bits == 16 else 8, end)


def _header_of_jpeg(file: bytes) -> ImageHeader | None:
    at = 2
    while at + 4 <= len(file):
        if file[at] != 0xFF:
            return None
        marker = file[at + 1]
        if marker == 0xFF:
            # FF bytes may pad the space before a marker.
            at += 1
        elif marker in START_OF_FRAME:
            break
        else:
            at += 2 + int.from_bytes(file[at + 2 : at + 4], "big")
    if at + 10 > len(file):
        return None
    bits, height, width, components = struct.unpack_from(">BHHB", file, at + 4)
    if not height or not width:
        return None
    channels = _JPEG_CHANNELS.get(components)
    if file[at + 1] not in _DECODABLE_FRAMES or bits != 8 or channels is None:
        return ImageHeader("jpeg", height, width, end=at + 10)
    return ImageHeader("jpeg", height, width, channels, bits, at + 10)


def _header_of_gif(file: bytes) -> ImageHeader | None:
    """The header of a GIF. Its size is the larger of the logical screen and the first image."""
    if len(file) < 13:
        return None
    width, height = struct.unpack_from("<HH", file, 6)
    at = 13 + (3 << (file[10] & 7) + 1 if file[10] & 0x80 else 0)
    while at + 10 <= len(file) and file[at] == 0x21:
        # Skip an extension: blocks that begin with their length, up to a block of length 0.
        at += 2
        while at < len(file) and file[at]:
            at += 1 + file[at]
        at += 1
    if at + 10 > len(file) or file[at] != 0x2C:
        return None
    picture_width, picture_height = struct.unpack_from("<HH", file, at + 5)
    return ImageHeader("gif", max(height, picture_height), max(width, picture_width))


def _header_of_webp(file: bytes) -> ImageHeader | None:
    kind = file[12:16]
    if kind == b"VP8X":
        height, width = 1 + int.from_bytes(file[27:30], "little"), 1 + int.from_bytes(file[24:27], "little")
    elif kind == b"VP8L":
        bits = int.from_bytes(file[21:25], "little")
        height, width = 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", file, 26))
    else:
        return None
    return ImageHeader("webp", height, width)
