"""Which fields of a new recording are images, and the format of their files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, TypeAlias

import numpy as np

from kabuki_rlds.data.schema import Field, Schema
from kabuki_rlds.errors import InvalidArgumentError

ImageFormat: TypeAlias = Literal["png", "jpeg"]
#: The format of all images, or path of a field to that of its images.
ImageFormats: TypeAlias = ImageFormat | Mapping[str, ImageFormat]


def check_formats(images: ImageFormats) -> None:
    """Rejects formats other than "png" and "jpeg".

    Raises:
      InvalidArgumentError: there is one.
    """
    for chosen in images.values() if isinstance(images, Mapping) else [images]:
        if chosen not in ("png", "jpeg"):
            raise InvalidArgumentError(f"images: {chosen!r} is neither 'png' nor 'jpeg'")


def with_images(schema: Schema, images: ImageFormats) -> Schema:
    """The schema in which fields of images have the kind "image" and the format of their files.

    A uint8 array (height, width, 1, 3 or 4) of 32 pixels or more a side is an image.

    Args:
      schema: the fields that were learned.
      images: the formats. A field that is named is an image, whatever its size.

    Raises:
      InvalidArgumentError: a field that is named does not exist, or cannot be an image.
    """
    named = images if isinstance(images, Mapping) else {}
    for path in named:
        if path not in schema.steps:
            have = ", ".join(sorted(schema.steps))
            raise InvalidArgumentError(f"images: there is no step field {path!r}, but {have}")
    everywhere = "png" if isinstance(images, Mapping) else images
    steps = {path: _field(path, field, named, everywhere) for path, field in schema.steps.items()}
    metadata = {path: _field(path, field, {}, everywhere) for path, field in schema.metadata.items()}
    return dataclasses.replace(schema, steps=steps, metadata=metadata)


def _field(path: str, field: Field, named: Mapping[str, str], everywhere: str) -> Field:
    image = dataclasses.replace(field, kind="image") if path in named else field
    if not image.holds_images:
        if path in named:
            raise InvalidArgumentError(
                f"images: {path!r} is {field.describe()}, which is no image: those are (height, width, channels) of "
                "uint8"
            )
        return field
    can_be_jpeg = field.dtype == np.uint8 and field.shape[-1] in (1, 3)
    return dataclasses.replace(image, kind="image", file_format=named.get(path, everywhere) if can_be_jpeg else "png")
