"""What a log says of the environment: its metadata, with the environment's specs."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import numpy as np

from kabuki_rlds.formats.envlogger.messages import LeafPath, numbers
from kabuki_rlds.formats.riegeli.byte_reader import ByteReader

#: Where EnvLogger puts the specs in the metadata, and what they are called there.
_SPECS = "environment_specs"
_NAMES = ("observation", "action", "reward", "discount")


class Specs:
    """The specs of an environment.

    Args:
      metadata: the metadata of a log, as `decode` gives it.

    Attributes:
      shapes: for each leaf of the specs its dtype and shape: `("observation", "0")`.
      structure: nested dicts, lists and tuples with None at the leaves.
    """

    def __init__(self, metadata: Any):
        self.shapes: dict[LeafPath, tuple[np.dtype, tuple[int, ...]]] = {}
        specs = metadata.get(_SPECS) if isinstance(metadata, dict) else None
        specs = specs if isinstance(specs, dict) else {}
        self.structure = {name: self._read(specs.get(f"{name}_spec"), (name,)) for name in _NAMES}

    def _read(self, spec: Any, path: LeafPath) -> Any:
        if isinstance(spec, dict) and isinstance(spec.get("dtype"), str) and "shape" in spec:
            # The shape of a scalar is an array without elements, which is stored as nothing.
            shape = () if spec["shape"] is None else tuple(np.atleast_1d(spec["shape"]).tolist())
            with contextlib.suppress(TypeError):  # A dtype that NumPy does not have.
                if all(isinstance(size, int) and size >= 0 for size in shape):
                    self.shapes[path] = np.dtype(spec["dtype"]), shape
            return None
        if isinstance(spec, dict):
            return {key: self._read(inner, (*path, str(key))) for key, inner in spec.items()}
        if isinstance(spec, (list, tuple)):
            return type(spec)(self._read(inner, (*path, str(i))) for i, inner in enumerate(spec))
        return None


def to_json(metadata: Any) -> str:
    """The metadata of a log as JSON; "" where it has none.

    Tuples become lists and bytes text. Numbers that JSON does not have become the text
    "NaN", "Infinity" and "-Infinity".
    """
    return "" if metadata is None else json.dumps(_plain(metadata), sort_keys=True)


def decode(message: bytes) -> Any:
    """One message as a Python object: dicts, lists and tuples of arrays, numbers, `str`, `bytes`."""
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
            # Keys that are no text stand in pairs, each a tuple.
            for _, pair in _fields(text):
                key, value = (decode(part) for _, part in _fields(dict(_fields(pair))[3]))
                found[key] = value
    return found


def _datum(text: bytes) -> Any:
    """An array, or a scalar: with text in it as `str`."""
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
        # Here, and not in columns, an integer may have any size.
        return int.from_bytes(listed[0][1], "big", signed=True)
    else:
        value = numbers([text])[0]
        return value.item() if value.shape == () else value
    return strings[0] if len(strings) == 1 else strings


def _fields(message: bytes) -> Any:
    """The number and the bytes of each field of a message that has no other kind of field."""
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
