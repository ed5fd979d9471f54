"""Builds blocks from the rows of episodes that are read one after the other."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kabuki_rlds.data.block import Block, Column, Ragged, concatenate, nbytes
from kabuki_rlds.data.schema import BYTES, Field, Schema
from kabuki_rlds.formats.demos.hdf5_values import text_bytes
from kabuki_rlds.formats.demos.row_readers import padding_row

#: Bytes of memory of an array, or of a value in a dict, besides its content.
_OVERHEAD = 256


class BlockBuilder:
    """Collects rows until there are enough for a block.

    Args:
      schema: the fields of the blocks.

    Attributes:
      num_steps: number of rows collected since the last block.
      nbytes: the size of everything collected, in memory.
    """

    def __init__(self, schema: Schema):
        self._schema = schema
        self._clear()

    def _clear(self) -> None:
        self.num_steps = 0
        self.nbytes = 0
        self._parts: dict[str, list[Column]] = {path: [] for path in self._schema.steps}
        self._starts: list[int] = []
        self._origin_of: list[int] = []
        self._metadata: list[Mapping[str, object]] = []

    def start_episode(self, metadata: Mapping[str, object], origin: int) -> None:
        """Starts an episode at the next row.

        Args:
          metadata: path to value of its episode fields.
          origin: the number of its file among the source's origins.
        """
        self._starts.append(self.num_steps)
        self._origin_of.append(origin)
        self._metadata.append(metadata)
        self.nbytes += sum(_OVERHEAD + _size(value) for value in metadata.values())

    def add_rows(self, columns: Mapping[str, Column], count: int) -> None:
        """Adds `count` rows of the episode that was started last."""
        for path, parts in self._parts.items():
            parts.append(columns[path])
        self.num_steps += count
        self.nbytes += nbytes(columns.values()) + _OVERHEAD * len(columns)

    def build(self) -> Block:
        """Returns a block of all rows since the last one."""
        block = Block(
            # Each list is freed before the next one is joined.
            {path: concatenate(self._parts.pop(path)) for path in self._schema.steps},
            self.num_steps,
            np.array(self._starts, np.int64),
            {path: self._metadata_column(path, field) for path, field in self._schema.metadata.items()},
            np.array(self._origin_of, np.int64),
        )
        self._clear()
        return block

    def _metadata_column(self, path: str, field: Field) -> Column:
        missing = padding_row(field)
        values = [_as_array(each[path]) if path in each else missing for each in self._metadata]
        if None in field.shape:
            shapes = np.array([value.shape for value in values], np.int64).reshape(len(values), len(field.shape))
            return Ragged(np.concatenate([np.empty(0, field.dtype), *(v.reshape(-1) for v in values)]), shapes)
        column = np.empty((len(values), *(d for d in field.shape if d is not None)), field.dtype)
        for i, value in enumerate(values):
            column[i] = value[()]
        return column


def metadata_field(value: object) -> Field:
    """Returns the field of one value of an episode field."""
    array = _as_array(value)
    return Field(array.dtype, array.shape, "text" if array.dtype == BYTES else "array")


def _size(value: object) -> int:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.nbytes
    return len(value) if isinstance(value, (str, bytes)) else 0


def _as_array(value: object) -> np.ndarray:
    """Converts the value of an episode field to an array; text to bytes."""
    if isinstance(value, str):
        value = text_bytes(value)
    if isinstance(value, bytes):
        array = np.empty((), object)
        array[()] = value
        return array
    return np.asarray(value)
