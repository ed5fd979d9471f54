"""What a step and an episode carry: the schema that every format is read into.

A field is named by its path, the keys of nested dicts joined by `/`
(`observation/camera/rgb`). Paths are the same in RLDS, in a block and in HDF5.
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

#: Between how a column was made and where, if it was not made everywhere: some of its sources had it.
DERIVED_IN_PART = " in the episodes of "

#: How a column was made begins with this if a recipe dropped or renamed the column of the source.
LEFT_OUT = "left out by the recipe"

#: The dtype of text and bytes: one Python `bytes` an element.
BYTES = np.dtype(object)

#: An array of bytes in three dimensions is taken for an image from this height and width on.
_LEAST_IMAGE_SIDE = 32
#: How many channels an image of each type can have.
_IMAGE_CHANNELS = {"uint8": (1, 3, 4), "uint16": (1, 3, 4), "float32": (1,)}

#: How many names a message lists.
_NAMED = 10

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclasses.dataclass(frozen=True)
class Field:
    """One column: what stands in each of its rows.

    Attributes:
      dtype: dtype of the decoded elements; `BYTES` for text and byte strings.
      shape: shape of one row without the time axis; None is a dimension that
        varies from row to row.
      kind: what the elements mean: numbers ("array"), text or byte strings
        ("text"), the index of a class ("label"), or pixels ("image").
      names: the names of the classes of a label, where they are known.
      num_classes: how many classes a label without names has, where that is known.
      nested: how many of the leading dimensions are nested lists whose lengths
        may differ within one row (RLDS: a Sequence in a Sequence). 0 for a row
        that is a plain array.
      encoded: the rows are image files, `bytes` objects, or lists of them; `dtype`
        and `shape` then say what a decoder makes of them.
      file_format: the format of the image files that are in the rows, or that they were
        decoded from: "png" or "jpeg"; "" where it is not known, or they differ. It does
        not describe the pixels, so fields that differ in it are equal.
      derived: how the column was made, where its source had no such field. It
        says nothing of what the rows are, so fields that differ in it are equal.
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
        """Whether every row has the same shape and none is encoded."""
        return None not in self.shape and not self.nested and not self.encoded

    @property
    def is_derived(self) -> bool:
        """Whether no source had such a field, so that nothing is lost without it."""
        return bool(self.derived) and DERIVED_IN_PART not in self.derived

    @property
    def is_list_of_images(self) -> bool:
        """Whether a row is several images, and not one (height, width, channels)."""
        return self.kind == "image" and len(self.shape) > 3

    @property
    def holds_images(self) -> bool:
        """Whether a row is an image or several: by its kind, or an array of bytes of that shape."""
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
        """Bytes of one decoded row, or None where rows differ in size."""
        if not self.is_fixed or self.dtype == BYTES:
            return None
        return math.prod(d for d in self.shape if d is not None) * self.dtype.itemsize

    @property
    def known_names(self) -> tuple[str, ...] | None:
        """The names of the classes; None if they only number the classes, as in files of earlier versions."""
        if self.names is None or all(name == str(i) for i, name in enumerate(self.names)):
            return None
        return self.names

    @property
    def known_classes(self) -> int | None:
        """How many classes a label has, None if that is not known."""
        return self.num_classes if self.names is None else len(self.names)

    def is_same(self, other: Field) -> bool:
        """Whether two fields are equal, apart from names that only number the classes."""
        mine, theirs = (dataclasses.replace(field, names=field.known_names) for field in (self, other))
        classes = {self.known_classes, other.known_classes} - {None}
        return mine == theirs and len(classes) < 2

    def check_size(self, what: str, file: str = "") -> None:
        """Rejects a shape that no array in memory has.

        Args:
          what: the field, for the error.
          file: the file, for the error.

        Raises:
          KabukiError: a row has a negative dimension, or its known dimensions take more than `MAX_ROW_BYTES`.
        """
        known = [size for size in self.shape if size is not None]
        nbytes = math.prod(known) * self.dtype.itemsize
        if min(known, default=0) < 0 or nbytes > MAX_ROW_BYTES:
            raise DamagedDataError(
                f"{what}: a row of {self.describe()} has {nbytes:,} bytes, expected 0 to {MAX_ROW_BYTES:,}", file=file
            )

    def describe(self) -> str:
        """The field in a few characters: `float32 (11,)`, `text`, `image uint8 (?, ?, 3)`."""
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
    """What a dataset says of itself; empty where it does not."""

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
      steps: path to field, one row a step.
      metadata: path to field, one row an episode.
      features: the TFDS features that this was made from, as JSON text, or "".
      info: name, version, description and so on of the dataset.
    """

    steps: dict[str, Field]
    metadata: dict[str, Field]
    features: str = ""
    info: Info = Info()

    def select(self, fields: str | Sequence[str] | None, label: str) -> list[str]:
        """The paths of the step fields that `fields` names, by path or by group, in order; None names all.

        Raises:
          KabukiError: it names none, or there is no such field; the label says where.
        """
        if fields is None:
            return list(self.steps)
        names = [fields] if isinstance(fields, str) else fields
        for name in names:
            if not any(is_within(path, name) for path in self.steps):
                raise InvalidArgumentError(f"{label}: no step field {name!r}; there is {', '.join(self.steps)}")
        if not names:
            raise InvalidArgumentError(f"{label}: no step field to read; there is {', '.join(self.steps)}")
        return [path for path in self.steps if any(is_within(path, name) for name in names)]


def has_shape(found: tuple[int, ...], stated: tuple[int | None, ...]) -> bool:
    """Whether an array has the shape that a field states, in which None is any size."""
    return len(found) == len(stated) and all(b in (None, a) for a, b in zip(found, stated, strict=True))


def is_within(path: str, name: str) -> bool:
    """Whether the field at this path is the one of that name, or of the group of that name."""
    return path == name or path.startswith(f"{name}/")


def names_of_some(names: Sequence[str]) -> str:
    """Names in a line of a message; of many, the first and how many there are."""
    if len(names) > _NAMED:
        return f"{', '.join(names[:_NAMED])}, … ({len(names):,} in all)"
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
