"""What image files say of their size, before anything decodes them.

A PNG of a kilobyte can say that it is 50,000 pixels wide and as high, and a decoder
then takes all the memory for it. (Sources: the PNG specification, ITU-T T.81 for JPEG,
GIF89a, RFC 9649 for WebP, and the headers of BMP: the formats that TensorFlow decodes.)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from kabuki_rlds.errors import KabukiError

#: An image whose feature does not tell its size has no more pixels than this.
MAX_PIXELS = 1 << 26

_PNG = b"\x89PNG\r\n\x1a\n"
#: Channels by the colour type of a PNG.
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
#: Markers of JPEG that begin a frame, and so tell its size; the others of this range do not.
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def check_sizes(
    files: Sequence[bytes], shape: tuple[int | None, ...], path: str, max_pixels: float = MAX_PIXELS
) -> None:
    """Refuses image files that are not of the size that their feature says.

    Args:
      files: the bytes of image files.
      shape: ends in (height, width, channels), None where these vary.
      path: of the field.
      max_pixels: how many pixels one may have whose size is not known.

    Raises:
      KabukiError: one is no image, or not of this size, or it is larger than any should be.
    """
    height, width = shape[-3:-1]
    head = b""
    for number, file in enumerate(files):
        # Pictures of one camera mostly begin alike, up to where their size stands and with it.
        if head and file.startswith(head):
            continue
        size, head = _size_and_head(file)
        if size is None:
            raise KabukiError(
                f"field {path!r}: image {number} is no PNG, JPEG, GIF, BMP or WebP file, or a damaged one"
            )
        # One that is both as wide and as high as was said need not be looked at twice.
        if size == (height, width):
            continue
        if (height is not None and size[0] != height) or (width is not None and size[1] != width):
            should = f"{height or '?'} x {width or '?'}"
            raise KabukiError(
                f"field {path!r}: image {number} is {size[0]} x {size[1]} pixels, where its feature says {should}"
            )
        if size[0] * size[1] > max_pixels:
            raise KabukiError(
                f"field {path!r}: image {number} is {size[0]} x {size[1]} pixels, and {max_pixels:,} are the most that "
                "are decoded; --images encoded keeps the image files"
            )


def size_of(file: bytes) -> tuple[int, int] | None:
    """(height, width) in pixels, by the header alone; None where it tells none."""
    return _size_and_head(file)[0]


def _size_and_head(file: bytes) -> tuple[tuple[int, int] | None, bytes]:
    """The size, and the bytes at the front of a PNG or JPEG file that tell it; none of other files."""
    if file[:8] == _PNG:
        if len(file) < 24:
            return None, b""
        width, height = struct.unpack_from(">II", file, 16)
        return (height, width), file[:24]
    if file[:2] == b"\xff\xd8":
        frame = _frame_of_jpeg(file)
        if frame is None:
            return None, b""
        height, width = struct.unpack_from(">HH", file, frame + 5)
        return (height, width), file[: frame + 9]
    return _size_of_others(file), b""


def _size_of_others(file: bytes) -> tuple[int, int] | None:
    if file[:4] == b"GIF8":
        return _size_of_gif(file)
    if file[:2] == b"BM" and len(file) >= 26:
        width, height = struct.unpack_from("<ii", file, 18)
        # A negative height is that of an image whose first row is the top one.
        return abs(height), abs(width)
    if file[:4] == b"RIFF" and file[8:12] == b"WEBP" and len(file) >= 30:
        return _size_of_webp(file)
    return None


def channels_of(file: bytes) -> int | None:
    """How many channels a PNG or JPEG file has, by its header alone; None where it tells none."""
    if file[:8] == _PNG and len(file) >= 26:
        return _PNG_CHANNELS.get(file[25])
    frame = _frame_of_jpeg(file) if file[:2] == b"\xff\xd8" else None
    return None if frame is None else file[frame + 9]


def _frame_of_jpeg(file: bytes) -> int | None:
    """Where the header of the frame begins."""
    at = 2
    while at + 4 <= len(file):
        if file[at] != 0xFF:
            return None
        marker = file[at + 1]
        if marker == 0xFF:
            # Bytes of all ones may fill the space before a marker.
            at += 1
        elif marker in _START_OF_FRAME:
            return at if at + 10 <= len(file) else None
        else:
            at += 2 + int.from_bytes(file[at + 2 : at + 4], "big")
    return None


def _size_of_gif(file: bytes) -> tuple[int, int] | None:
    """The size of its screen, or of its first picture where that is larger."""
    if len(file) < 13:
        return None
    width, height = struct.unpack_from("<HH", file, 6)
    at = 13 + (3 << (file[10] & 7) + 1 if file[10] & 0x80 else 0)
    while at + 10 <= len(file) and file[at] == 0x21:
        # An extension: blocks, each behind its length, until one of none.
        at += 2
        while at < len(file) and file[at]:
            at += 1 + file[at]
        at += 1
    if at + 10 > len(file) or file[at] != 0x2C:
        return None
    picture_width, picture_height = struct.unpack_from("<HH", file, at + 5)
    return max(height, picture_height), max(width, picture_width)


def _size_of_webp(file: bytes) -> tuple[int, int] | None:
    kind = file[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(file[27:30], "little"), 1 + int.from_bytes(file[24:27], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(file[21:25], "little")
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", file, 26)
        return height & 0x3FFF, width & 0x3FFF
    return None
