"""Encoding of JPEG files: the same bytes as from TensorFlow."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from kabuki_rlds.images.encode import image_files


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [1, 50, 94, 95, 100])
def test_jpeg_files_equal_those_of_tensorflow_byte_for_byte(channels: int, quality: int) -> None:
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (7, 5), (17, 33), (200, 300)]
    images = [rng.integers(0, 256, (*size, channels), np.uint8) for size in sizes]
    # A part of a larger array, too.
    images.append(rng.integers(0, 256, (50, 60, channels), np.uint8)[::-1, 5:40])
    expected = [tf.io.encode_jpeg(np.ascontiguousarray(image), quality=quality).numpy() for image in images]
    assert image_files(images, "jpeg", quality) == expected
