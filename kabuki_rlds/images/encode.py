"""Encodes arrays as PNG and JPEG files."""

from __future__ import annotations

import concurrent.futures
import io
import os
from collections.abc import Sequence

import numpy as np

from kabuki_rlds.images import png

_THREADS = os.cpu_count() or 1


def image_files(images: Sequence[np.ndarray], file_format: str, quality: int = 95) -> list[bytes]:
    """The PNG or JPEG file of each image, (height, width, channels) of uint8, uint16 or float32.

    They decode to what those decode to that TFDS writes: it views a float32 as four channels of uint8.
    The quality is of JPEG; 95 is TFDS's.
    """

    def file(image: np.ndarray) -> bytes:
        pixels = image.view(np.uint8) if image.dtype == np.float32 else image
        return _jpeg_file(pixels, quality) if file_format == "jpeg" else png.file(pixels)

    # Both let go of the interpreter while they encode.
    with concurrent.futures.ThreadPoolExecutor(_THREADS, "kabuki-encode") as pool:
        return list(pool.map(file, images))


def _jpeg_file(pixels: np.ndarray, quality: int) -> bytes:
    """The same bytes as `tf.io.encode_jpeg`: colours at half the resolution, and a stated density of 300 dpi."""
    from PIL import Image

    is_gray = pixels.shape[-1] == 1
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if is_gray else pixels).save(
        file, "JPEG", quality=quality, subsampling=-1 if is_gray else "4:2:0", dpi=(300, 300)
    )
    return file.getvalue()
