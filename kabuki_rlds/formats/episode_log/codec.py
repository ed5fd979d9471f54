"""How episodes are stored in the log of a recording.

The log of a recording to `hopper.hdf5` is `hopper.hdf5.recording/episodes.log`, a file of
records (`files.records`). The first record is a `Head`, as JSON. Each other record is an
episode:

    length of the header (4 bytes, the lowest first), the header (JSON), arrays

The header is `[number of steps, [dtype, *shape], …]`, with one entry for each array, in
the order in which their bytes follow. The columns have the order of the head's schema:
first those of the steps, then those of the episode. A column is these arrays:

    numbers          one
    texts, files     the sizes (int64), and all bytes end to end (uint8)
    varying shapes   the shape of each row (int64); then the elements, as one of the above
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kabuki_rlds.data.block import Block, Column, Ragged
from kabuki_rlds.data.schema import BFLOAT16, BYTES, Field, Info, Schema, has_shape
from kabuki_rlds.data.source import Origin

#: The name of a log in the folder of its recording.
NAME = "episodes.log"

_FORMAT = "kabuki episode log"
_VERSION = 1
_LENGTH = struct.Struct("<I")
_INT64 = np.dtype("<i8")

#: What reading a damaged record raises.
ERRORS = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, struct.error, RecursionError)


def folder_of(file: pathlib.Path) -> pathlib.Path:
    """The folder of the recording to an HDF5 file."""
    return file.with_name(f"{file.name}.recording")


def file_of(folder: pathlib.Path) -> pathlib.Path:
    """The HDF5 file to which a folder belongs: the inverse of `folder_of`."""
    return folder.with_name(folder.name.removesuffix(".recording"))


@dataclasses.dataclass(frozen=True)
class Head:
    """What all episodes of a log have in common.

    Attributes:
      schema: their fields.
      origin: where they come from.
      num_before: how many episodes the HDF5 file had when the log began.
    """

    schema: Schema
    origin: Origin
    num_before: int

    def pack(self) -> bytes:
        """The record."""
        schema = self.schema
        stated = {
            "format": _FORMAT,
            "version": _VERSION,
            "steps": {path: _field_to_json(field) for path, field in schema.steps.items()},
            "metadata": {path: _field_to_json(field) for path, field in schema.metadata.items()},
            "features": schema.features,
            "info": dataclasses.asdict(schema.info),
            "origin": self.origin.to_json(),
            "num_before": self.num_before,
        }
        return json.dumps(stated).encode()

    @classmethod
    def unpack(cls, record: bytes) -> Head:
        """The head in a record; `ERRORS` if it holds none."""
        stated = json.loads(record)
        if stated["format"] != _FORMAT or stated["version"] != _VERSION:
            raise ValueError(f"its format is {stated['format']!r} {stated['version']!r}")
        steps, metadata = (
            {str(path): _field_from_json(entry) for path, entry in stated[name].items()}
            for name in ("steps", "metadata")
        )
        info = Info(**{str(name): str(text) for name, text in stated["info"].items()})
        schema = Schema(steps, metadata, str(stated["features"]), info)
        return cls(schema, Origin.from_json(stated["origin"]), int(stated["num_before"]))


def pack_episode(block: Block, schema: Schema) -> list[Any]:
    """The parts of the record of a block that is one episode. Columns that the schema does not have are left out."""
    arrays: list[np.ndarray] = []
    for columns, fields in ((block.steps, schema.steps), (block.metadata, schema.metadata)):
        for path in fields:
            _pack(columns[path], arrays)
    header = [block.num_steps, *([_name(array.dtype), *array.shape] for array in arrays)]
    text = json.dumps(header).encode()
    raw = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays)
    return [_LENGTH.pack(len(text)) + text, *raw]


def unpack_episode(record: bytes, schema: Schema) -> Block:
    """The episode in a record; `ERRORS` if it holds none with the fields of the schema."""
    (_, *specs), at = _header(record)
    arrays = _arrays(record, at, specs)
    rows = num_steps(record)
    steps = {path: _column(path, field, rows, arrays) for path, field in schema.steps.items()}
    metadata = {path: _column(path, field, 1, arrays) for path, field in schema.metadata.items()}
    return Block(steps, rows, np.zeros(1, np.int64), metadata)


def num_steps(record: bytes) -> int:
    """The number of rows of the episode in a record; `ERRORS` if it holds none."""
    return int(_header(record)[0][0])


def _header(record: bytes) -> tuple[list[Any], int]:
    """The header of a record, and where it ends."""
    (size,) = _LENGTH.unpack_from(record)
    end = _LENGTH.size + size
    return json.loads(record[_LENGTH.size : end]), end


def _arrays(record: bytes, at: int, specs: list[list[Any]]) -> Iterator[np.ndarray]:
    for name, *shape in specs:
        dtype = _dtype(name)
        array = np.frombuffer(record, dtype, math.prod(map(int, shape)), at) if 0 not in shape else np.empty(0, dtype)
        at += array.nbytes
        yield array.reshape(shape)


def _pack(column: Column, arrays: list[np.ndarray]) -> None:
    """Adds the arrays of a column."""
    if isinstance(column, Ragged):
        arrays.append(column.shapes.astype(_INT64, copy=False))
        _pack(column.values, arrays)
        return
    assert isinstance(column, np.ndarray), "lists of lists are not recorded"
    if column.dtype != BYTES:
        arrays.append(column)
        return
    texts = column.reshape(-1).tolist()
    arrays.append(np.fromiter(map(len, texts), _INT64, len(texts)).reshape(column.shape))
    arrays.append(np.frombuffer(b"".join(texts), np.uint8))


def _column(path: str, field: Field, rows: int, arrays: Iterator[np.ndarray]) -> Column:
    """The next column: the inverse of `_pack`.

    Raises:
      ValueError: the arrays are not rows of the field.
    """
    is_bytes = field.dtype == BYTES or field.encoded
    if field.encoded:
        field = Field(BYTES, (None,) if field.is_list_of_images else ())
    shapes = None if field.is_fixed else next(arrays)
    values = next(arrays)
    if is_bytes:
        values = _texts(values, next(arrays))
    is_right = values.dtype == field.dtype
    column: Column = values
    if shapes is None:
        is_right &= has_shape(values.shape, (rows, *field.shape))
    else:
        is_right &= shapes.dtype == _INT64 and shapes.shape == (rows, len(field.shape)) and values.ndim == 1
        column = Ragged(values, shapes)
        is_right = is_right and column.is_consistent and all(has_shape(tuple(shape), field.shape) for shape in shapes)
    if not is_right:
        raise ValueError(f"its column {path!r} is not {rows} rows of {field.describe()}")
    return column


def _texts(sizes: np.ndarray, data: np.ndarray) -> np.ndarray:
    if sizes.dtype != _INT64 or data.dtype != np.uint8 or (sizes < 0).any() or sizes.sum() != data.size:
        raise ValueError("the sizes of its texts are not those of their bytes")
    joined = data.tobytes()
    ends = np.cumsum(sizes.reshape(-1)).tolist()
    texts = np.empty(sizes.size, object)
    texts[:] = [joined[end - size : end] for end, size in zip(ends, sizes.reshape(-1).tolist(), strict=True)]
    return texts.reshape(sizes.shape)


def _name(dtype: np.dtype) -> str:
    return "bfloat16" if dtype == BFLOAT16 else "text" if dtype == BYTES else dtype.newbyteorder("<").str


def _dtype(name: str) -> np.dtype:
    known = {"bfloat16": BFLOAT16, "text": BYTES}
    dtype = known[name] if name in known else np.dtype(str(name)).newbyteorder("=")
    if dtype not in known.values() and dtype.kind not in "biuf":
        raise ValueError(f"{name!r} is not the type of a column")
    return dtype


def _field_to_json(field: Field) -> dict[str, Any]:
    return dataclasses.asdict(field) | {"dtype": _name(field.dtype)}


def _field_from_json(stated: Mapping[str, Any]) -> Field:
    names = stated["names"]
    made = Field(
        dtype=_dtype(stated["dtype"]),
        shape=tuple(None if d is None else int(d) for d in stated["shape"]),
        kind=stated["kind"],
        names=None if names is None else tuple(map(str, names)),
        encoded=bool(stated["encoded"]),
        num_classes=stated["num_classes"],
        file_format=str(stated["file_format"]),
        derived=str(stated["derived"]),
    )
    made.check_size("a field")
    return made
