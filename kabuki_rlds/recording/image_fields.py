"""Determines the image fields of a new recording and their file formats."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, TypeAlias

import numpy as np

from kabuki_rlds.data.schema import Field, Schema
from kabuki_rlds.errors import InvalidArgumentError

ImageFormat: TypeAlias = Literal["png", "jpeg"]
#: One format for all images, or a dict from the path of a field to its format.
ImageFormats: TypeAlias = ImageFormat | Mapping[str, ImageFormat]


def check_formats(images: ImageFormats) -> None:
    """Checks that each format is "png" or "jpeg".

    Raises:
      InvalidArgumentError: a format is neither.
    """
    for chosen in images.values() if isinstance(images, Mapping) else [images]:
        if chosen not in ("png", "jpeg"):
            raise InvalidArgumentError(f"images: {chosen!r} is neither 'png' nor 'jpeg'")


def with_images(schema: Schema, images: ImageFormats) -> Schema:
    """The schema, with the kind "image" and a file format in each image field.

    A uint8 array (height, width, 1, 3 or 4) of at least 32 pixels per side is an image.

    Args:
      schema: the learned fields.
      images: the file formats. The fields named in a dict are images of any size.

    Raises:
      InvalidArgumentError: a named field does not exist or cannot be an image.
    """
    named = images if isinstance(images, Mapping) else {}
    for path in named:
        if path not in schema.steps:
            have = ", ".join(sorted(schema.steps))
            raise InvalidArgumentError(f"images: no step field {path!r}; the step fields are {have}")
    everywhere = "png" if isinstance(images, Mapping) else images
    steps = {path: _field(path, field, named, everywhere) for path, field in schema.steps.items()}
    metadata = {path: _field(path, field, {}, everywhere) for path, field in schema.metadata.items()}
    return dataclasses.replace(schema, steps=steps, metadata=metadata)


def _field(path: str, field: Field, named: Mapping[str, str], everywhere: str) -> Field:
    image = dataclasses.replace(field, kind="image") if path in named else field
    if not image.holds_images:
        if path in named:
            raise InvalidArgumentError(
                f"images: field {path!r} is {field.describe()}, but an image is uint8 (height, width, channels)"
            )
        return field
    can_be_jpeg = field.dtype == np.uint8 and field.shape[-1] in (1, 3)
    return dataclasses.replace(image, kind="image", file_format=named.get(path, everywhere) if can_be_jpeg else "png")
