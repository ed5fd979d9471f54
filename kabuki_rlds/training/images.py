"""Image files of a column decoded as they are served: by TFDS's own decoding, many at once."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kabuki_rlds.block import Column, Ragged, concatenate
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.schema import Field

_THREADS = os.cpu_count() or 1


def decoded(field: Field) -> Field:
    """What a row is once its image files are decoded."""
    shape = field.shape if len(field.shape) > 2 else (None, None, 3)
    return dataclasses.replace(field, shape=shape, encoded=False) if field.encoded else field


class ImageDecoder:
    """Decodes those columns that hold image files.

    Args:
      fields: path to field, as they are stored.

    Raises:
      KabukiError: there are such fields, and no TensorFlow to decode them.
    """

    def __init__(self, fields: Mapping[str, Field]):
        self._fields = {path: decoded(field) for path, field in fields.items() if field.encoded}
        self._functions = {path: _function(field, path) for path, field in self._fields.items()}

    def decode(self, columns: dict[str, Column], threads: concurrent.futures.Executor) -> dict[str, Column]:
        """The columns, with images in the place of their files.

        Raises:
          KabukiError: a file is not that of an image, or of one of another shape.
        """
        return columns | {path: self._decode(path, columns[path], threads) for path in self._fields}

    def _decode(self, path: str, column: Column, threads: concurrent.futures.Executor) -> Column:
        import tensorflow as tf

        from kabuki_rlds.formats.rlds import pictures

        field = self._fields[path]
        try:
            if field.is_list_of_images:
                return pictures.decode_files(column, field, path, self._functions[path])
            files = tf.constant(np.asarray(column), tf.string)
            bounds = np.linspace(0, len(column), _THREADS + 1).astype(int)
            parts = [files[a:b] for a, b in itertools.pairwise(bounds.tolist()) if a < b]
            return concatenate([_column(images) for images in threads.map(self._functions[path], parts)])
        except tf.errors.OpError as e:
            raise KabukiError(f"field {path!r}: an image cannot be decoded: {e.message.splitlines()[0]}") from e


def _function(field: Field, path: str) -> Callable[[Any], Any]:
    try:
        import tensorflow as tf
        import tensorflow_datasets as tfds
    except ImportError as e:
        raise KabukiError(
            f"field {path!r} holds image files, which TensorFlow and TFDS decode ({e}); "
            "install them, or name the fields to read by `fields`"
        ) from e
    from kabuki_rlds.formats.rlds.pipeline import Images, decode_all

    decode = tfds.features.Image(shape=field.shape[-3:], dtype=field.dtype).decode_example
    if field.is_list_of_images:
        return decode
    images = Images(path, field.shape, field.dtype, decode)
    signature = [tf.TensorSpec([None], tf.string)]
    function: Callable[[Any], Any] = tf.function(
        lambda files: decode_all(images, files), input_signature=signature, autograph=False
    )
    return function


def _column(images: Any) -> Column:
    """What `decode_all` gave, in memory of its own."""
    if isinstance(images, (tuple, list)):
        pixels, shapes = images
        return Ragged(np.array(pixels), np.array(shapes))
    return np.array(images)
