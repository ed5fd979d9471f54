"""Encodes arrays of pixels as PNG and JPEG files."""

from __future__ import annotations

import concurrent.futures
import io
import os
from collections.abc import Sequence

import numpy as np

from kabuki_rlds.images import png

_THREADS = os.cpu_count() or 1


def image_files(images: Sequence[np.ndarray], file_format: str, quality: int = 95) -> list[bytes]:
    """The bytes of a PNG or JPEG file for each image.

    The files decode to the same pixels as the files that TFDS writes.

    Args:
      images: arrays (height, width, channels) of uint8, uint16 or float32. The bytes of a float32 are stored as four
        uint8 channels, as in TFDS.
      file_format: "png" or "jpeg".
      quality: JPEG quality, 0 to 100. TFDS uses 95.
    """

    def file(image: np.ndarray) -> bytes:
        pixels = image.view(np.uint8) if image.dtype == np.float32 else image
        return _jpeg_file(pixels, quality) if file_format == "jpeg" else png.file(pixels)

    # Both encoders release the GIL.
    with concurrent.futures.ThreadPoolExecutor(_THREADS, "kabuki-encode") as pool:
        return list(pool.map(file, images))


def _jpeg_file(pixels: np.ndarray, quality: int) -> bytes:
    """The same bytes as from `tf.io.encode_jpeg`: 4:2:0 chroma subsampling, and 300 dpi in the header."""
    from PIL import Image

    is_gray = pixels.shape[-1] == 1
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if is_gray else pixels).save(
        file, "JPEG", quality=quality, subsampling=-1 if is_gray else "4:2:0", dpi=(300, 300)
    )
    return file.getvalue()
