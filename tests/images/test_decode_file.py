"""`decode_file` gives the same pixels as TensorFlow for image files of every kind."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kabuki_rlds import MissingDependencyError
from kabuki_rlds.images import png
from kabuki_rlds.images.damage import damage_of
from kabuki_rlds.images.decode_file import UndecodableImageError, decode_file
from kabuki_rlds.images.headers import header_of

SIZES = [(1, 1), (7, 5), (16, 16), (17, 33), (40, 48), (3, 100), (101, 2)]


@pytest.fixture
def no_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)


def _pixels(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """A smooth image with noise."""
    y, x, c = np.meshgrid(*map(np.arange, (height, width, channels)), indexing="ij")
    noise = np.random.default_rng(seed).normal(0, 12, y.shape)
    return (255 * (0.5 + 0.4 * np.sin(x / 7 + c) * np.cos(y / 9)) + noise).clip(0, 255).astype(np.uint8)


def _by_tensorflow(file: bytes, channels: int, dtype: Any = np.uint8) -> np.ndarray:
    return tf.image.decode_image(file, channels=channels, dtype=tf.as_dtype(dtype)).numpy()


def _assert_same(file: bytes, channels: int, dtype: Any = np.uint8) -> None:
    expected = _by_tensorflow(file, channels, dtype)
    decoded = decode_file(file, (None, None, channels or None), np.dtype(dtype))
    assert decoded.dtype == expected.dtype
    np.testing.assert_array_equal(decoded, expected)


# --- JPEG ---


def _jpeg(image: np.ndarray | Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, "JPEG", **options)
    return stream.getvalue()


def _rotated(image: np.ndarray) -> bytes:
    exif = Image.Exif()
    exif[0x112] = 6  # Orientation: rotated by 90 degrees. The decoders here ignore it.
    return _jpeg(image, exif=exif)


def _subsampled(image: np.ndarray, subsampling: str) -> bytes:
    import simplejpeg

    return simplejpeg.encode_jpeg(image, quality=90, colorsubsampling=subsampling)


JPEGS: dict[str, Callable[[np.ndarray], bytes]] = {
    "4:2:0": _jpeg,
    "4:2:2": lambda image: _jpeg(image, subsampling="4:2:2"),
    "4:4:4": lambda image: _jpeg(image, subsampling="4:4:4", quality=100),
    "4:4:0": lambda image: _subsampled(image, "440"),
    "4:1:1": lambda image: _subsampled(image, "411"),
    "low quality": lambda image: _jpeg(image, quality=3),
    "progressive": lambda image: _jpeg(image, progressive=True),
    "restart markers": lambda image: _jpeg(image, restart_marker_blocks=2),
    "optimized": lambda image: _jpeg(image, optimize=True),
    "stored as RGB": lambda image: _jpeg(image, keep_rgb=True),
    "EXIF orientation": _rotated,
    "gray": lambda image: _jpeg(image[..., 0]),
    "gray progressive": lambda image: _jpeg(image[..., 0], progressive=True),
}


@pytest.mark.parametrize("kind", JPEGS)
def test_jpeg_pixels_equal_those_of_tensorflow(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for height, width in SIZES:
        file = JPEGS[kind](_pixels(height, width))
        for channels in (0, 1, 3):
            expected = _by_tensorflow(file, channels)
            with monkeypatch.context() as without:
                without.setitem(sys.modules, "tensorflow", None)
                decoded = decode_file(file, (height, width, channels or None), np.dtype(np.uint8))
            np.testing.assert_array_equal(decoded, expected)


def test_cmyk_is_decoded_by_tensorflow() -> None:
    for height, width in SIZES:
        _assert_same(_jpeg(Image.fromarray(_pixels(height, width)).convert("CMYK")), 3)


def test_cmyk_without_tensorflow_raises_with_the_install_command(no_tensorflow: None) -> None:
    file = _jpeg(Image.fromarray(_pixels(16, 16)).convert("CMYK"))
    with pytest.raises(MissingDependencyError, match=r"pip install 'kabuki_rlds\[tensorflow\]'"):
        decode_file(file, (16, 16, 3), np.dtype(np.uint8))


def _changed(file: bytes, rng: np.random.Generator) -> bytes:
    """A file with some bytes that are changed, missing or zero."""
    changed = bytearray(file)
    for _ in range(rng.integers(1, 4)):
        at, length = rng.integers(2, len(changed)), rng.integers(1, 50)
        kind = rng.integers(3)
        if kind == 0:
            changed[at] = rng.integers(256)
        else:
            changed[at : at + length] = b"" if kind == 1 else bytes(len(changed[at : at + length]))
    return bytes(changed)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_jpeg_files_give_the_pixels_or_the_error_of_tensorflow(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = _pixels(60, 70)
    whole = [_jpeg(image), _jpeg(image, progressive=True), _jpeg(image[..., 0]), _jpeg(image, restart_marker_blocks=3)]
    decoded = refused = 0
    for number in range(120):
        file = _changed(whole[number % len(whole)], rng)
        header = header_of(file)
        if header is None or damage_of(file) is not None or header.height * header.width > 1e6:
            continue
        try:
            expected = _by_tensorflow(file, 3)
        except tf.errors.OpError:
            refused += 1
            with pytest.raises(UndecodableImageError):
                decode_file(file, (None, None, 3), np.dtype(np.uint8))
        else:
            decoded += 1
            np.testing.assert_array_equal(decode_file(file, (None, None, 3), np.dtype(np.uint8)), expected)
    assert decoded > 20 and refused


def test_a_damaged_jpeg_file_without_tensorflow_is_rejected(no_tensorflow: None) -> None:
    file = bytearray(_jpeg(_pixels(60, 70)))
    file[len(file) // 2 :][:40] = bytes(40)
    del file[-200:-100]
    with pytest.raises(UndecodableImageError, match="Corrupt JPEG data"):
        decode_file(bytes(file), (60, 70, 3), np.dtype(np.uint8))


# --- PNG ---

_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


def _png(size: tuple[int, int], colour: int, bits: int, interlaced: bool, transparent: bool, seed: int = 0) -> bytes:
    """A PNG file of random samples in which successive rows have different filters."""
    rng = np.random.default_rng(seed)
    (height, width), data = size, b""
    for y, x, dy, dx in png._PASSES if interlaced else ((0, 0, 1, 1),):
        rows, columns = len(range(y, height, dy)), len(range(x, width, dx))
        length = (columns * _SAMPLES[colour] * bits + 7) // 8
        for row in range(rows if columns else 0):
            # A filtered byte may be any colour, and a palette has all of them.
            data += bytes([row % 5]) + rng.integers(0, 256, length, np.uint8).tobytes()
    packed = zlib.compress(data)
    chunks = [_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced))]
    if colour == 3:
        chunks.append(_chunk(b"PLTE", rng.integers(0, 256, 3 << bits, np.uint8).tobytes()))
    if transparent and colour == 3:
        chunks.append(_chunk(b"tRNS", rng.integers(0, 256, (1 << bits) - 1, np.uint8).tobytes()))
    elif transparent:
        chunks.append(_chunk(b"tRNS", rng.integers(0, 1 << bits, _SAMPLES[colour]).astype(">u2").tobytes()))
    half = len(packed) // 2
    chunks += [_chunk(b"IDAT", packed[:half]), _chunk(b"IDAT", packed[half:]), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("colour", "bits"), [(colour, bits) for colour in _DEPTHS for bits in _DEPTHS[colour]])
def test_png_pixels_equal_those_of_tensorflow(
    colour: int, bits: int, interlaced: bool, transparent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if transparent and colour in (4, 6):
        return
    dtype = np.dtype(np.uint16 if bits == 16 else np.uint8)
    for seed, size in enumerate(SIZES):
        file = _png(size, colour, bits, interlaced, transparent, seed)
        for channels in (0, 3, 4) if colour in (2, 3, 6) else (0, 1, 3, 4):
            expected = _by_tensorflow(file, channels, dtype)
            with monkeypatch.context() as without:
                without.setitem(sys.modules, "tensorflow", None)
                decoded = decode_file(file, (*size, channels or None), dtype)
            assert decoded.dtype == dtype
            np.testing.assert_array_equal(decoded, expected)


def test_other_bit_depths_and_colour_to_gray_are_decoded_by_tensorflow() -> None:
    _assert_same(_png((9, 7), 2, 16, False, False), 3, np.uint8)
    _assert_same(_png((9, 7), 2, 8, False, False), 3, np.uint16)
    _assert_same(_png((9, 7), 2, 8, False, False), 1)
    _assert_same(_jpeg(_pixels(9, 7)), 3, np.uint16)


def test_float32_images_are_decoded_from_png_files_with_four_channels(no_tensorflow: None) -> None:
    image = np.random.default_rng(0).normal(size=(9, 7, 1)).astype(np.float32)
    file = png.file(image.view(np.uint8))
    np.testing.assert_array_equal(decode_file(file, (9, 7, 1), np.dtype(np.float32)), image)


def _with_pixels(data: bytes) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


DAMAGED = {
    "too few rows": zlib.compress(bytes(50)),
    "cut short": zlib.compress(np.random.default_rng(0).bytes(90))[:-30],
    "not zlib": b"\x78\x9c" + bytes(40),
    "an unknown filter": zlib.compress(b"\x09" + bytes(89)),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("with_tensorflow", [True, False])
def test_damaged_pixels_of_a_png_file_are_rejected(
    data: bytes, with_tensorflow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_tensorflow:
        monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UndecodableImageError):
        decode_file(_with_pixels(data), (9, 9, 1), np.dtype(np.uint8))


def test_png_data_after_the_last_row_is_ignored() -> None:
    _assert_same(_with_pixels(zlib.compress(bytes(1 << 20))), 1)


# --- others ---


def test_bmp_files_are_decoded_by_tensorflow_and_gif_files_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {}
    for form in ("BMP", "GIF"):
        stream = io.BytesIO()
        Image.fromarray(_pixels(9, 7)).save(stream, form)
        files[form] = stream.getvalue()
    _assert_same(files["BMP"], 3)
    with pytest.raises(UndecodableImageError):
        decode_file(files["GIF"], (9, 7, 3), np.dtype(np.uint8))
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    for file in files.values():
        with pytest.raises(MissingDependencyError, match=r"pip install 'kabuki_rlds\[tensorflow\]'"):
            decode_file(file, (9, 7, 3), np.dtype(np.uint8))
