"""Decodes one image file to the same pixels as TensorFlow.

The module `png` decodes PNG files. libjpeg-turbo (package simplejpeg) decodes JPEG files; TensorFlow uses the same
library. TensorFlow itself decodes the files for which these two decoders give other pixels: CMYK files, files whose bit
depth differs from the field's, JPEG files with damage for which libjpeg-turbo only gives a warning, BMP and GIF.
"""

from __future__ import annotations

import numpy as np

from kabuki_rlds.errors import MissingDependencyError, one_line
from kabuki_rlds.extras import require
from kabuki_rlds.images import png
from kabuki_rlds.images.headers import header_of

#: Channels to the colour space that libjpeg-turbo decodes to.
_COLOUR_SPACES = {1: "GRAY", 3: "RGB"}


class UndecodableImageError(ValueError):
    """An image file that cannot be decoded. The message says why."""


def decode_file(file: bytes, shape: tuple[int | None, ...], dtype: np.dtype) -> np.ndarray:
    """The pixels of an image file: an array (height, width, channels) of `dtype`.

    Args:
      file: the bytes of the file. `damage.check_files` must have accepted them.
      shape: the expected (height, width, channels); None accepts any size.
      dtype: uint8, uint16 or float32. TFDS stores the four bytes of a float32 as four uint8 channels.

    Raises:
      UndecodableImageError: the file is damaged, or its image has another shape.
      MissingDependencyError: TensorFlow is needed to decode it.
    """
    if dtype == np.float32:
        return decode_file(file, (*shape[:2], 4), np.dtype(np.uint8)).view(np.float32)
    header = header_of(file)
    problem = ""
    if header is not None and header.bits == 8 * dtype.itemsize:
        decode = _decode_png if header.file_format == "png" else _decode_jpeg
        try:
            image = decode(file, shape[-1])
        except ValueError as e:
            problem = one_line(e)
        else:
            if image is not None:
                return image
    return _decode_with_tensorflow(file, shape, dtype, problem)


def _decode_png(file: bytes, channels: int | None) -> np.ndarray | None:
    """The image of a PNG file, None if it has colours where gray is expected.

    Raises:
      ValueError: the pixels are damaged.
    """
    return None if channels == 1 and png.has_colours(file) else png.pixels(file, channels)


def _decode_jpeg(file: bytes, channels: int | None) -> np.ndarray | None:
    """The pixels of a JPEG file; None if libjpeg-turbo does not give the same pixels as TensorFlow.

    Raises:
      ValueError: the file is damaged. libjpeg-turbo only gives a warning.
    """
    import simplejpeg

    stored = simplejpeg.decode_jpeg_header(file)[2]
    wanted = _COLOUR_SPACES.get(channels or (1 if stored == "Gray" else 3))
    if wanted is None or stored not in ("Gray", "YCbCr", "RGB"):
        return None
    image: np.ndarray = simplejpeg.decode_jpeg(file, wanted, fastdct=True)
    return image


def _decode_with_tensorflow(file: bytes, shape: tuple[int | None, ...], dtype: np.dtype, problem: str) -> np.ndarray:
    try:
        require("decoding this kind of image file", "tensorflow")
    except MissingDependencyError:
        if problem:
            raise UndecodableImageError(problem) from None
        raise
    import tensorflow as tf

    try:
        image = tf.image.decode_image(file, channels=shape[-1], dtype=tf.as_dtype(dtype))
        decoded: np.ndarray = tf.ensure_shape(image, shape).numpy()
    except (tf.errors.OpError, ValueError) as e:
        raise UndecodableImageError(one_line(e)) from e
    return decoded
