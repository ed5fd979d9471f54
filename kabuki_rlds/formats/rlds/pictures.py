"""Image files decoded one by one: lists of images within a step, and images of episodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from kabuki_rlds.block import Column, Ragged
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.formats.rlds.image_headers import check_sizes
from kabuki_rlds.schema import Field

#: From the bytes of an image file to a tensor (height, width, channels): TFDS's own decoding.
Decode: TypeAlias = Callable[[Any], Any]


def decode_files(
    column: Column,
    field: Field,
    path: str,
    decode: Decode,
    remedy: str = "--images encoded keeps the image files",
) -> Column:
    """Decodes a column of image files, or of lists of them.

    Args:
      column: the files.
      field: what they decode to.
      path: of the field.
      decode: decodes one.
      remedy: what to do where the images of a row are no array.

    Raises:
      KabukiError: the images of one row differ in size, or are not of the size that the field says.
    """
    files = column if isinstance(column, np.ndarray) else column.values
    counts = column.shapes[:, 0].tolist() if isinstance(column, Ragged) else [1] * len(column)
    check_sizes(files.tolist(), field.shape, path)
    images = [decode(file).numpy() for file in files]
    rows, shapes = [], []
    at = 0
    for count in counts:
        row = images[at : at + count]
        at += count
        if len({image.shape for image in row}) > 1:
            sizes = ", ".join(sorted({str(image.shape) for image in row}))
            raise KabukiError(f"field {path!r}: images of differing sizes in one row, {sizes}, are no array; {remedy}")
        size = row[0].shape if row else tuple(d or 0 for d in field.shape[-3:])
        shapes.append((count, *size) if field.is_list_of_images else size)
        rows += [image.reshape(-1) for image in row]
    flat = np.concatenate([np.empty(0, field.dtype), *rows])
    if field.is_fixed:
        return flat.reshape(len(column), *(d for d in field.shape if d is not None))
    return Ragged(flat, np.array(shapes, np.int64).reshape(len(column), len(field.shape)))
