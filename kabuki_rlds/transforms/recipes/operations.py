"""The operations of recipes. Each transforms a whole column at a time.

The constructor of an operation takes its argument in the recipe. `field` returns the
type of the result, and `apply` transforms the rows. All three raise ValueError: for an
invalid argument, for a field of the wrong type, and for a value that cannot be
transformed. The caller adds the line of the recipe to the message.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np

from kabuki_rlds.data.schema import BYTES, Field, Kind
from kabuki_rlds.extras import require

#: The numbers of channels that an image can have.
_CHANNELS = (1, 3, 4)


#: TensorFlow resizes images as float32, so a large image takes many times its size.
_MAX_SIDE = 4096


class Operation(Protocol):
    """An operation of a recipe. It takes one column, except `concatenate` (several) and `constant` (none)."""

    def field(self, fields: list[Field]) -> Field:
        """The type of the result for input fields of the given types."""

    def apply(self, columns: list[np.ndarray], count: int) -> np.ndarray:
        """The result for `count` rows of the input columns: (count, *row shape)."""


class Concatenate:
    """Concatenates scalars and vectors to one vector per row."""

    def __init__(self, paths: Any):
        if not isinstance(paths, list) or len(paths) < 2:
            raise ValueError("expected a list of two or more fields")

    def field(self, fields: list[Field]) -> Field:
        for field in fields:
            if not field.is_fixed or field.dtype == BYTES or len(field.shape) > 1:
                raise ValueError(f"{field.describe()} is not a scalar or a vector of numbers")
        sizes = [field.shape[0] if field.shape else 1 for field in fields]
        dtype = np.result_type(*(field.dtype for field in fields))
        return Field(dtype, (sum(size or 0 for size in sizes),))

    def apply(self, columns: list[np.ndarray], count: int) -> np.ndarray:
        return np.concatenate([column.reshape(count, -1) for column in columns], axis=1)


class Constant:
    """Sets every row to the same number, boolean, text or list of numbers."""

    def __init__(self, value: Any):
        if isinstance(value, str):
            self._value = np.empty((), object)
            self._value[()] = value.encode()
        else:
            self._value = np.asarray(value)
            if self._value.dtype == np.float64:
                self._value = self._value.astype(np.float32)
            if self._value.dtype.kind not in "bif":
                raise ValueError("expected a number, true or false, a text, or a list of numbers")

    def field(self, fields: list[Field]) -> Field:
        kind: Literal["text", "array"] = "text" if self._value.dtype == BYTES else "array"
        return Field(self._value.dtype, self._value.shape, kind)

    def apply(self, columns: list[np.ndarray], count: int) -> np.ndarray:
        return np.broadcast_to(self._value, (count, *self._value.shape)).copy()


class SelectElements:
    """Selects elements of the last axis, by a list of indices or a range `start:stop`."""

    def __init__(self, which: Any):
        if isinstance(which, str) and (found := re.fullmatch(r"(\d+):(\d+)", which)):
            which = list(range(int(found[1]), int(found[2])))
        if not isinstance(which, list) or not which or not all(isinstance(i, int) and i >= 0 for i in which):
            raise ValueError("expected a list of indices such as [0, 1, 6], or a range such as '0:6'")
        self._which: list[int] = which

    def field(self, fields: list[Field]) -> Field:
        (field,) = fields
        if not field.shape or field.shape[-1] is None or not field.is_fixed:
            raise ValueError(f"{field.describe()} has no last axis of fixed length")
        if max(self._which) >= field.shape[-1]:
            raise ValueError(f"index {max(self._which)} is out of range for {field.describe()}")
        return dataclasses.replace(field, shape=(*field.shape[:-1], len(self._which)), kind="array", file_format="")

    def apply(self, columns: list[np.ndarray], count: int) -> np.ndarray:
        return columns[0][..., self._which]


class Cast:
    """Converts numbers to another dtype. Only floating-point precision may be lost."""

    def __init__(self, name: Any):
        try:
            # `str`, because np.dtype(None) would be float64.
            self._dtype = np.dtype(str(name))
        except TypeError:
            raise ValueError(f"{name!r} is not a numeric dtype") from None
        if self._dtype.kind not in "biuf":
            raise ValueError(f"{name!r} is not a numeric dtype")

    def field(self, fields: list[Field]) -> Field:
        (field,) = fields
        if field.dtype == BYTES or not field.is_fixed:
            raise ValueError(f"{field.describe()} is not an array of numbers")
        return dataclasses.replace(field, dtype=self._dtype, kind="array", names=None, file_format="")

    def apply(self, columns: list[np.ndarray], count: int) -> np.ndarray:
        (column,) = columns
        with np.errstate(invalid="ignore", over="ignore"):
            made = column.astype(self._dtype)
            if self._dtype.kind == "f" and column.dtype.kind == "f":
                lost = np.isinf(made) & np.isfinite(column.astype(np.float64))
            else:
                lost = made.astype(column.dtype) != column
        if lost.any():
            raise ValueError(f"{column[lost][0]!r} cannot be converted to {self._dtype.name}")
        return made


class Transpose:
    """Permutes the axes of a row: [1, 2, 0] moves the first axis to the end."""

    def __init__(self, axes: Any):
        if not isinstance(axes, list) or len(axes) < 2 or not all(type(axis) is int for axis in axes):
            raise ValueError("expected a list of axes such as [1, 2, 0]")
        if sorted(axes) != list(range(len(axes))):
            raise ValueError(f"{axes} is not a permutation of the axes 0 to {len(axes) - 1}")
        self._axes: list[int] = axes

    def field(self, fields: list[Field]) -> Field:
        (field,) = fields
        if not field.is_fixed or len(field.shape) != len(self._axes):
            raise ValueError(f"{field.describe()} does not have {len(self._axes)} axes of fixed length")
        kind: Kind = "array" if field.kind == "image" else field.kind
        shape = tuple(field.shape[axis] for axis in self._axes)
        return dataclasses.replace(field, shape=shape, kind=kind, file_format="")

    def apply(self, columns: list[np.ndarray], count: int) -> np.ndarray:
        return columns[0].transpose(0, *(axis + 1 for axis in self._axes))


class _Pixels:
    """Base class of operations on images: uint8 or uint16, (height, width, 1, 3 or 4)."""

    def field(self, fields: list[Field]) -> Field:
        (field,) = fields
        shape = field.shape
        if not field.is_fixed or len(shape) != 3 or field.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"{field.describe()} is not an image of uint8 or uint16, (height, width, 1, 3 or 4)")
        if shape[-1] not in _CHANNELS:
            problem = f"{field.describe()} is not an image (height, width, 1, 3 or 4)"
            if shape[0] in _CHANNELS:
                problem += "; the channels seem to be the first axis: put `transpose: [1, 2, 0]` before this operation"
            raise ValueError(problem)
        return dataclasses.replace(field, kind="image")


class Flip(_Pixels):
    """Flips images upside down ("vertical") or left to right ("horizontal")."""

    def __init__(self, how: Any):
        if how not in ("vertical", "horizontal"):
            raise ValueError("expected vertical or horizontal")
        self._axis = 1 if how == "vertical" else 2

    def apply(self, columns: list[np.ndarray], count: int) -> np.ndarray:
        return np.flip(columns[0], self._axis)


class Rotate(_Pixels):
    """Rotates images by 180 degrees."""

    def __init__(self, degrees: Any):
        if degrees != 180:
            raise ValueError("expected 180 degrees; other angles are not supported")

    def apply(self, columns: list[np.ndarray], count: int) -> np.ndarray:
        return columns[0][:, ::-1, ::-1]


class Swap(_Pixels):
    """Swaps the red and blue channels."""

    def __init__(self, which: Any):
        if which != "bgr":
            raise ValueError("expected bgr, which swaps red and blue")

    def field(self, fields: list[Field]) -> Field:
        made = super().field(fields)
        if made.shape[-1] != 3:
            raise ValueError(f"{made.describe()} does not have three channels")
        return made

    def apply(self, columns: list[np.ndarray], count: int) -> np.ndarray:
        return columns[0][..., ::-1]


class Resize(_Pixels):
    """Resizes images with a Lanczos filter and anti-aliasing, as was done for OpenVLA's data."""

    def __init__(self, size: Any):
        if not isinstance(size, list) or len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
            raise ValueError("expected [height, width]")
        if max(size) > _MAX_SIDE:
            raise ValueError(f"expected at most {_MAX_SIDE:,} pixels in each direction")
        self._size = size

    def field(self, fields: list[Field]) -> Field:
        made = super().field(fields)
        return dataclasses.replace(made, shape=(*self._size, made.shape[-1]))

    def apply(self, columns: list[np.ndarray], count: int) -> np.ndarray:
        (column,) = columns
        if list(column.shape[1:3]) == self._size:
            return column
        require("the operation `resize`", "tensorflow")
        import tensorflow as tf

        made = tf.image.resize(np.ascontiguousarray(column), self._size, method="lanczos3", antialias=True)
        most = np.iinfo(column.dtype).max
        return tf.cast(tf.clip_by_value(tf.round(made), 0, most), column.dtype).numpy()


class Encode(_Pixels):
    """Encodes images as PNG or JPEG files: `png`, `jpeg`, or `{jpeg: quality}`."""

    def __init__(self, how: Any):
        self._quality = 95
        if isinstance(how, dict) and list(how) == ["jpeg"] and how["jpeg"] in range(1, 101):
            self._quality = how["jpeg"]
            how = "jpeg"
        if how not in ("png", "jpeg"):
            raise ValueError("expected png, jpeg, or {jpeg: QUALITY} with a quality of 1 to 100")
        self._format: Literal["png", "jpeg"] = how

    def field(self, fields: list[Field]) -> Field:
        made = super().field(fields)
        if self._format == "jpeg" and (made.dtype != np.uint8 or made.shape[-1] == 4):
            raise ValueError(f"{made.describe()}: JPEG supports only uint8 with 1 or 3 channels; use png")
        return dataclasses.replace(made, encoded=True, file_format=self._format)

    def apply(self, columns: list[np.ndarray], count: int) -> np.ndarray:
        from kabuki_rlds.images.encode import image_files

        files = np.empty(count, object)
        files[:] = image_files(list(columns[0]), self._format, self._quality)
        return files


class _Text:
    """Base class of operations on texts. Equal texts are transformed once."""

    def field(self, fields: list[Field]) -> Field:
        (field,) = fields
        if field.kind != "text" or field.shape:
            raise ValueError(f"{field.describe()} is not a text")
        return field

    def apply(self, columns: list[np.ndarray], count: int) -> np.ndarray:
        texts = columns[0].tolist()
        # `dict.fromkeys` keeps the order, so that an error names the first bad text.
        made = {text: self._change(text.decode(errors="replace")).encode() for text in dict.fromkeys(texts)}
        changed = np.empty(count, object)
        changed[:] = [made[text] for text in texts]
        return changed

    def _change(self, text: str) -> str:
        raise NotImplementedError


class Match(_Text):
    """Extracts the match of a regular expression: its first group, or the whole match without groups."""

    def __init__(self, pattern: Any):
        try:
            self._pattern = re.compile(pattern)
        except (re.error, TypeError) as e:
            raise ValueError(f"not a valid regular expression: {e}") from None

    def _change(self, text: str) -> str:
        found = self._pattern.search(text)
        if found is None:
            raise ValueError(f"{self._pattern.pattern!r} does not match {text!r}")
        return (found[1] if self._pattern.groups else found[0]) or ""


class Replace(_Text):
    """Replaces substrings: {_: ' '} replaces underscores by spaces."""

    def __init__(self, pairs: Any):
        if not isinstance(pairs, dict) or not all(isinstance(text, str) for pair in pairs.items() for text in pair):
            raise ValueError("expected a dict from text to text")
        self._pairs: dict[str, str] = pairs

    def _change(self, text: str) -> str:
        for old, new in self._pairs.items():
            text = text.replace(old, new)
        return text


class Json(_Text):
    """Extracts a value from JSON text. `a/b` is the value of key `b` in the value of key `a`."""

    def __init__(self, keys: Any):
        if not isinstance(keys, str):
            raise ValueError("expected keys such as language_instruction or task/name")
        self._keys = keys.split("/")

    def _change(self, text: str) -> str:
        try:
            value = json.loads(text)
            for key in self._keys:
                value = value[int(key) if isinstance(value, list) else key]
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            raise ValueError(f"{text[:80]!r} has no {'/'.join(self._keys)}") from None
        return value if isinstance(value, str) else json.dumps(value)


OPERATIONS: dict[str, Callable[[Any], Operation]] = {
    "concatenate": Concatenate,
    "constant": Constant,
    "select": SelectElements,
    "cast": Cast,
    "transpose": Transpose,
    "flip": Flip,
    "rotate": Rotate,
    "resize": Resize,
    "swap": Swap,
    "encode": Encode,
    "match": Match,
    "replace": Replace,
    "json": Json,
}
