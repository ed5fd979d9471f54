"""The schema of a dataset: its step fields and episode fields. All formats share it.

A field is named by its path: the keys of nested dicts joined by `/`, for example
`observation/camera/rgb`. Paths are the same in RLDS, in a block and in HDF5.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import ml_dtypes
import numpy as np

from kabuki_rlds.data.limits import MAX_ROW_BYTES
from kabuki_rlds.errors import DamagedDataError, InvalidArgumentError

Kind = Literal["array", "text", "label", "image"]

#: Part of `Field.derived`: this text stands between how and where the field was derived, if some sources already had
#: the field.
DERIVED_IN_PART = " in the episodes of "

#: `Field.derived` begins with this text if a recipe dropped or renamed the field of the source.
LEFT_OUT = "left out by the recipe"

#: The dtype of text and byte strings: each element is a Python `bytes`.
BYTES = np.dtype(object)

#: A uint8 array (height, width, channels) counts as an image if height and width are at least this.
_LEAST_IMAGE_SIDE = 32
#: dtype to the numbers of channels that an image of this dtype can have.
_IMAGE_CHANNELS = {"uint8": (1, 3, 4), "uint16": (1, 3, 4), "float32": (1,)}

#: The number of names that a message lists.
_NAMED = 10

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of the steps or episodes: the type, shape and meaning of its rows.

    Attributes:
      dtype: dtype of the decoded elements; `BYTES` for text and byte strings.
      shape: shape of one row, without the time axis; None is a dimension that
        varies from row to row.
      kind: what the elements mean: numbers ("array"), text or byte strings
        ("text"), a class index ("label"), or pixels ("image").
      names: the class names of a label; None if they are unknown.
      num_classes: the number of classes of a label without names; None if it is unknown.
      nested: the number of leading dimensions that are nested lists whose lengths
        may differ within a row (RLDS: a Sequence in a Sequence). 0 if a row is an array.
      encoded: whether the rows are encoded image files (`bytes`), or lists of them. `dtype`
        and `shape` then describe the decoded images.
      file_format: the format of the encoded images, also after they were decoded: "png" or
        "jpeg"; "" if it is unknown or varies. Ignored when fields are compared, because it
        does not describe the pixels.
      derived: how the field was made, if the source had no such field; else "". Ignored when
        fields are compared, because it does not describe the rows.
    """

    dtype: np.dtype
    shape: tuple[int | None, ...] = ()
    kind: Kind = "array"
    names: tuple[str, ...] | None = None
    nested: int = 0
    encoded: bool = False
    num_classes: int | None = dataclasses.field(default=None, compare=False)
    file_format: str = dataclasses.field(default="", compare=False)
    derived: str = dataclasses.field(default="", compare=False)

    @property
    def is_fixed(self) -> bool:
        """Whether all rows are arrays of the same shape, and not encoded images."""
        return None not in self.shape and not self.nested and not self.encoded

    @property
    def is_derived(self) -> bool:
        """Whether no source had this field, so that dropping it loses no data."""
        return bool(self.derived) and DERIVED_IN_PART not in self.derived

    @property
    def is_list_of_images(self) -> bool:
        """Whether a row holds several images: (images, height, width, channels)."""
        return self.kind == "image" and len(self.shape) > 3

    @property
    def holds_images(self) -> bool:
        """Whether rows hold images: by `kind`, or because a uint8 array has the shape of an image."""
        if self.encoded:
            return True
        if self.shape[-1:] == () or self.shape[-1] not in _IMAGE_CHANNELS.get(self.dtype.name, ()):
            return False
        if self.kind == "image":
            return len(self.shape) in (3, 4) and 0 not in self.shape
        return (
            self.kind == "array"
            and self.dtype == np.uint8
            and len(self.shape) == 3
            and all(side is not None and side >= _LEAST_IMAGE_SIDE for side in self.shape[:2])
        )

    @property
    def row_nbytes(self) -> int | None:
        """The size in bytes of a decoded row; None if the size varies."""
        if not self.is_fixed or self.dtype == BYTES:
            return None
        return math.prod(d for d in self.shape if d is not None) * self.dtype.itemsize

    @property
    def known_names(self) -> tuple[str, ...] | None:
        """The class names; None if they are only numbers ("0", "1", …), as in files of earlier versions."""
        if self.names is None or all(name == str(i) for i, name in enumerate(self.names)):
            return None
        return self.names

    @property
    def known_classes(self) -> int | None:
        """The number of classes of a label; None if it is unknown."""
        return self.num_classes if self.names is None else len(self.names)

    def is_same(self, other: Field) -> bool:
        """Whether two fields are equal. Class names that are only numbers count as unknown names."""
        mine, theirs = (dataclasses.replace(field, names=field.known_names) for field in (self, other))
        classes = {self.known_classes, other.known_classes} - {None}
        return mine == theirs and len(classes) < 2

    def check_size(self, what: str, file: str = "") -> None:
        """Checks that a row fits in memory.

        Args:
          what: the name of the field for the error message.
          file: the path of the file for the error message.

        Raises:
          KabukiError: a dimension is negative, or the fixed dimensions take more than `MAX_ROW_BYTES`.
        """
        known = [size for size in self.shape if size is not None]
        nbytes = math.prod(known) * self.dtype.itemsize
        if min(known, default=0) < 0 or nbytes > MAX_ROW_BYTES:
            raise DamagedDataError(
                f"{what}: a row of {self.describe()} has {nbytes:,} bytes, expected 0 to {MAX_ROW_BYTES:,}", file=file
            )

    def describe(self) -> str:
        """A short description for messages: `float32 (11,)`, `text`, `image uint8 (?, ?, 3)`."""
        dims = ", ".join("?" if d is None else str(d) for d in self.shape)
        shape = f" ({dims}{',' if len(self.shape) == 1 else ''})" if self.shape else ""
        if self.kind == "text":
            return f"text{shape}"
        words = f"{self.dtype.name}{shape}"
        if self.kind == "image":
            return f"{'encoded ' if self.encoded else ''}image {words}"
        if self.kind == "label":
            return f"label {words}" + (f" of {self.known_classes} classes" if self.known_classes else "")
        return words


@dataclasses.dataclass(frozen=True)
class Info:
    """The description of a dataset. A text that the dataset does not state is ""."""

    name: str = ""
    version: str = ""
    description: str = ""
    citation: str = ""
    homepage: str = ""
    environment: str = ""


@dataclasses.dataclass(frozen=True)
class Schema:
    """The fields of the steps and of the episodes of a dataset.

    Attributes:
      steps: path to step field; it has one row per step.
      metadata: path to episode field; it has one row per episode.
      features: the TFDS features of the source as JSON, or "" if the source has none.
      info: name, version, description and so on of the dataset.
    """

    steps: dict[str, Field]
    metadata: dict[str, Field]
    features: str = ""
    info: Info = Info()

    def select(self, fields: str | Sequence[str] | None, label: str) -> list[str]:
        """The paths of the selected step fields, in the order of the schema.

        Args:
          fields: paths of fields or groups; None selects all fields.
          label: the name of the source for messages.

        Raises:
          KabukiError: a name is not a field or group, or `fields` is empty.
        """
        if fields is None:
            return list(self.steps)
        names = [fields] if isinstance(fields, str) else fields
        for name in names:
            if not any(is_within(path, name) for path in self.steps):
                raise InvalidArgumentError(
                    f"{label}: has no step field {name!r}; the fields are {', '.join(self.steps)}"
                )
        if not names:
            raise InvalidArgumentError(f"{label}: no step field is selected; the fields are {', '.join(self.steps)}")
        return [path for path in self.steps if any(is_within(path, name) for name in names)]


def has_shape(found: tuple[int, ...], stated: tuple[int | None, ...]) -> bool:
    """Whether an array shape matches the shape of a field. None matches any size."""
    return len(found) == len(stated) and all(b in (None, a) for a, b in zip(found, stated, strict=True))


def is_within(path: str, name: str) -> bool:
    """Whether `path` is `name` or is inside the group `name`."""
    return path == name or path.startswith(f"{name}/")


def names_of_some(names: Sequence[str]) -> str:
    """Joins names for a message. If there are many, it lists the first names and the total number."""
    if len(names) > _NAMED:
        return f"{', '.join(names[:_NAMED])}, … ({len(names):,} in all)"
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
