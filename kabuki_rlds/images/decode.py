"""Decodes the image files of a column, with TFDS's own decoding."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from kabuki_rlds.arguments import argument
from kabuki_rlds.data.block import Column, Ragged, concatenate, take
from kabuki_rlds.data.schema import Field
from kabuki_rlds.errors import DamagedDataError, KabukiError, one_line
from kabuki_rlds.images.damage import DamagedImageError, check_files

#: From the bytes of an image file to a tensor (height, width, channels): TFDS's own decoding.
Decode: TypeAlias = Callable[[Any], Any]

#: How many are decoded in one go; a thread has its own.
_FILES = 32
_REMEDY = "name the fields to read by `fields` to leave it out"


def decoded(field: Field) -> Field:
    """What a row is once its image files are decoded."""
    shape = field.shape if len(field.shape) > 2 else (None, None, 3)
    return dataclasses.replace(field, shape=shape, encoded=False) if field.encoded else field


class ImageDecoder:
    """Decodes those columns that hold image files.

    Args:
      fields: path to field, as they are stored.
      label: what to call the files that hold them in a message.

    Raises:
      KabukiError: there are such fields, and no TensorFlow to decode them.
    """

    def __init__(self, fields: Mapping[str, Field], label: str):
        self._label = label
        self._fields = {path: decoded(field) for path, field in fields.items() if field.encoded}
        self._functions = {path: _function(field, path) for path, field in self._fields.items()}

    def decode(self, columns: dict[str, Column], threads: concurrent.futures.Executor) -> dict[str, Column]:
        """The columns, with images in the place of their files. A file that comes several times is decoded once.

        Raises:
          KabukiError: a file is damaged, or its image is of another shape than its field states.
        """
        made = dict(columns)
        for path in self._fields.keys() & columns.keys():
            try:
                made[path] = self.decode_column(path, columns[path], threads)
            except (DamagedImageError, KabukiError) as e:
                raise DamagedDataError(f"field {path!r}: {e}", file=self._label, field=path) from e
        return made

    def decode_column(self, path: str, column: Column, threads: concurrent.futures.Executor) -> Column:
        """The images of the files of one column.

        Raises:
          DamagedImageError: a file is damaged, or its image is of another shape than its field states.
          KabukiError: the images of one row differ in size.
        """
        field, decode = self._fields[path], self._functions[path]
        if field.is_list_of_images:
            # Held for as long as the column is decoded.
            return decode_files(column, field, functools.cache(decode), _REMEDY)
        files = np.asarray(column)
        check_files(files.tolist(), field.shape, decodes=True)
        return self._decode_each(files, field, decode, threads)

    def _decode_each(
        self, column: np.ndarray, field: Field, decode: Callable[[Any], Any], threads: concurrent.futures.Executor
    ) -> Column:
        import tensorflow as tf

        numbers = {file: i for i, file in enumerate(dict.fromkeys(column.tolist()))}
        number_of = np.array([numbers[file] for file in column.tolist()], np.int64)
        files = tf.constant(list(numbers), tf.string)
        bounds = [*range(0, len(numbers), _FILES), len(numbers)]

        def decode_part(first: int, end: int) -> Any:
            try:
                return decode(files[first:end])
            except tf.errors.OpError as e:
                number, why = _first_failure(files, first, end, decode, e)
                row = int(np.flatnonzero(number_of == number)[0])
                raise DamagedImageError(row, f"cannot be decoded: {why}") from e

        images = threads.map(decode_part, bounds[:-1], bounds[1:])
        if not field.is_fixed:
            parts = [Ragged(np.array(pixels), np.array(shapes)) for pixels, shapes in images]
            return take(concatenate(parts), number_of)
        # Each goes to its places at once: images are large.
        out = np.empty((len(column), *(d for d in field.shape if d is not None)), field.dtype)
        order = np.argsort(number_of, kind="stable")
        cuts = np.searchsorted(number_of[order], bounds).tolist()
        for first, (a, b), part in zip(bounds, itertools.pairwise(cuts), images, strict=False):
            out[order[a:b]] = np.asarray(part)[number_of[order[a:b]] - first]
        return out


def _first_failure(files: Any, first: int, end: int, decode: Callable[[Any], Any], error: Any) -> tuple[int, str]:
    """Which of some files cannot be decoded, and why."""
    import tensorflow as tf

    for number in range(first, end):
        try:
            decode(files[number : number + 1])
        except tf.errors.OpError as e:
            return number, one_line(e)
    return first, one_line(error)


def _function(field: Field, path: str) -> Callable[[Any], Any]:
    try:
        import tensorflow as tf
        import tensorflow_datasets as tfds
    except ImportError as e:
        raise KabukiError(
            f"field {path!r} holds image files, which TensorFlow and TFDS decode ({e}); "
            "install them, or name the fields to read by `fields`"
        ) from e
    from kabuki_rlds.formats.rlds.pipeline import ImageField, decode_all

    decode = tfds.features.Image(shape=field.shape[-3:], dtype=field.dtype).decode_example
    if field.is_list_of_images:
        return decode
    images = ImageField(path, field.shape, field.dtype, decode)
    build = tf.function(lambda files: decode_all(images, files), autograph=False)
    # Built here, once: threads are to call it.
    function: Callable[[Any], Any] = build.get_concrete_function(tf.TensorSpec([None], tf.string))
    return function


def decode_files(column: Column, field: Field, decode: Decode, remedy: str = "") -> Column:
    """Decodes a column of image files, or of lists of them.

    Args:
      column: the files.
      field: what they decode to.
      decode: decodes one.
      remedy: what to do where the images of a row are no array; by default, to keep the image files.

    Raises:
      DamagedImageError: a file is damaged, or of another size than the field states.
      KabukiError: the images of one row differ in size.
    """
    import tensorflow as tf

    files = column if isinstance(column, np.ndarray) else column.values
    counts = column.shapes[:, 0].tolist() if isinstance(column, Ragged) else [1] * len(column)
    check_files(files.tolist(), field.shape, decodes=True)
    images = []
    for number, file in enumerate(files):
        try:
            images.append(decode(file).numpy())
        except tf.errors.OpError as e:
            raise DamagedImageError(number, f"cannot be decoded: {one_line(e)}") from e
    rows, shapes = [], []
    at = 0
    for count in counts:
        row = images[at : at + count]
        at += count
        if len({image.shape for image in row}) > 1:
            sizes = ", ".join(sorted({str(image.shape) for image in row}))
            remedy = remedy or f"{argument('images', 'encoded')} keeps the image files"
            raise KabukiError(f"images of differing sizes in one row, {sizes}, are no array; {remedy}")
        size = row[0].shape if row else tuple(d or 0 for d in field.shape[-3:])
        shapes.append((count, *size) if field.is_list_of_images else size)
        rows += [image.reshape(-1) for image in row]
    flat = np.concatenate([np.empty(0, field.dtype), *rows])
    if field.is_fixed:
        return flat.reshape(len(column), *(d for d in field.shape if d is not None))
    return Ragged(flat, np.array(shapes, np.int64).reshape(len(column), len(field.shape)))
