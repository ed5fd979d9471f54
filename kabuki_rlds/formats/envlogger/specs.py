"""Reads the metadata of a log, which includes the specs of the environment."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import numpy as np

from kabuki_rlds.formats.envlogger.messages import LeafPath, numbers
from kabuki_rlds.formats.riegeli.byte_reader import ByteReader

#: The key of the specs in the metadata. The spec of each of `_NAMES` has the key `<name>_spec`.
_SPECS = "environment_specs"
_NAMES = ("observation", "action", "reward", "discount")


class Specs:
    """The specs of an environment.

    Args:
      metadata: the metadata of a log, as returned by `decode`.

    Attributes:
      shapes: path of each leaf, such as `("observation", "0")`, to its dtype and shape.
      structure: nested dicts, lists and tuples with None at the leaves.
    """

    def __init__(self, metadata: Any):
        self.shapes: dict[LeafPath, tuple[np.dtype, tuple[int, ...]]] = {}
        specs = metadata.get(_SPECS) if isinstance(metadata, dict) else None
        specs = specs if isinstance(specs, dict) else {}
        self.structure = {name: self._read(specs.get(f"{name}_spec"), (name,)) for name in _NAMES}

    def _read(self, spec: Any, path: LeafPath) -> Any:
        if isinstance(spec, dict) and isinstance(spec.get("dtype"), str) and "shape" in spec:
            # The shape of a scalar is an array without elements, which is stored as None.
            shape = () if spec["shape"] is None else tuple(np.atleast_1d(spec["shape"]).tolist())
            with contextlib.suppress(TypeError):  # NumPy does not have the dtype.
                if all(isinstance(size, int) and size >= 0 for size in shape):
                    self.shapes[path] = np.dtype(spec["dtype"]), shape
            return None
        if isinstance(spec, dict):
            return {key: self._read(inner, (*path, str(key))) for key, inner in spec.items()}
        if isinstance(spec, (list, tuple)):
            return type(spec)(self._read(inner, (*path, str(i))) for i, inner in enumerate(spec))
        return None


def to_json(metadata: Any) -> str:
    """Converts the metadata of a log to JSON; "" if it has none.

    Tuples become lists, and bytes become text. NaN and infinities, which JSON does not have, become the texts "NaN",
    "Infinity" and "-Infinity".
    """
    return "" if metadata is None else json.dumps(_plain(metadata), sort_keys=True)


def decode(message: bytes) -> Any:
    """Decodes one message to a Python object: dicts, lists and tuples of arrays, numbers, `str` and `bytes`."""
    reader = ByteReader(message)
    if reader.is_done:
        return None
    number = reader.varint() >> 3
    inner = reader.take(reader.varint())
    if number == 1:
        return _datum(inner)
    fields = list(_fields(inner))
    if number in (2, 3):
        items = [decode(text) for _, text in fields]
        return items if number == 2 else tuple(items)
    found: dict[Any, Any] = {}
    for field, text in fields:
        if field == 1:
            entry = dict(_fields(text))
            found[entry[1].decode()] = decode(entry.get(2, b""))
        else:
            # Entries whose keys are not text are stored as tuples of key and value.
            for _, pair in _fields(text):
                key, value = (decode(part) for _, part in _fields(dict(_fields(pair))[3]))
                found[key] = value
    return found


def _datum(text: bytes) -> Any:
    """Decodes an array or a scalar. Text becomes `str`."""
    values = dict(_fields(text)).get(2, b"")
    listed = list(_fields(values))
    if not listed:
        return None
    kind = listed[0][0]
    if kind == 8:
        strings: list[Any] = [part.decode() for _, part in listed]
    elif kind == 9:
        strings = [part for _, part in listed]
    elif kind == 10:
        # Unlike in columns, an integer may have any size here.
        return int.from_bytes(listed[0][1], "big", signed=True)
    else:
        value = numbers([text])[0]
        return value.item() if value.shape == () else value
    return strings[0] if len(strings) == 1 else strings


def _fields(message: bytes) -> Any:
    """Yields number and bytes of the fields of a message whose fields are all length-delimited."""
    reader = ByteReader(message)
    while not reader.is_done:
        yield reader.varint() >> 3, reader.take(reader.varint())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
