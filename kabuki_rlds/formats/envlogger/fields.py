"""Finds the fields of the steps and episodes of a log, and makes their columns.

A step of a log has an observation, the action before it, and the reward and discount that came with the observation.
The result of `step_fn` becomes step fields: a dict under its keys, any other value as `step_metadata`, as in
EnvLogger's TFDS backend.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping

import numpy as np

from kabuki_rlds.data.block import Column, Ragged, row_splits
from kabuki_rlds.data.limits import MAX_PADDED_BYTES
from kabuki_rlds.data.rules import ACTION, DISCOUNT, OBSERVATION, REQUIRED, REWARD
from kabuki_rlds.data.schema import BYTES, Field
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.formats.envlogger.messages import LeafPath, Leaves, MessagePiece
from kabuki_rlds.formats.envlogger.open_fields import OpenField
from kabuki_rlds.formats.envlogger.shard import STEP_TYPE
from kabuki_rlds.formats.envlogger.specs import Specs

_log = logging.getLogger("kabuki_rlds")

#: The message of a step is a tuple of a dm_env time step, the action before it, and the result of `step_fn`. This maps
#: the path of a value in it to the path of its field.
_FIELDS: dict[LeafPath, LeafPath] = {
    ("0", "1"): (REWARD,),
    ("0", "2"): (DISCOUNT,),
    ("0", "3"): (OBSERVATION,),
    ("1",): (ACTION,),
}
_STEP_FN_RESULT = ("2",)
STEP_METADATA, EPISODE_METADATA = "step_metadata", "episode_metadata"

#: dm_env's type of the last step of an episode.
_LAST = 2

#: Fields that a log stores with the next step, and a Kabuki file with the step that they belong to.
_SHIFTED = (ACTION, REWARD, DISCOUNT)


def step_structure(specs: Specs) -> tuple:
    """Returns the structure of the message of a step, as `messages.leaves` takes it."""
    parts = specs.structure
    return (None, parts[REWARD], parts[DISCOUNT], parts[OBSERVATION]), parts[ACTION], None


def is_shifted(path: LeafPath) -> bool:
    """Returns whether the log stores a field one step later than a Kabuki file."""
    return path[0] in _SHIFTED


def of_steps(leaves: Leaves) -> Leaves:
    """Returns the values of each step field, given those of each leaf of the messages of the steps.

    Raises:
      KabukiError: the result of `step_fn` has a key that is the name of another field.
    """
    found: Leaves = {}
    for path, pieces in leaves.items():
        for place, name in _FIELDS.items():
            if path[: len(place)] == place:
                found.setdefault(name + path[len(place) :], []).extend(pieces)
        if path[:1] == _STEP_FN_RESULT:
            name = path[1:]
            if not name:
                # If only some steps have a dict, the others have None instead of its fields.
                if all(piece.values is None for piece in pieces):
                    continue
                name = (STEP_METADATA,)
            if name[0] in REQUIRED:
                raise KabukiError(f"what step_fn gave has the key {name[0]!r}, which is the name of another field")
            found.setdefault(name, []).extend(pieces)
    return found


def is_last(leaves: Leaves, count: int) -> np.ndarray:
    """Returns whether each of `count` steps has dm_env's type LAST: bool, (count,)."""
    found = np.zeros(count, bool)
    for piece in leaves.get(STEP_TYPE, []):
        if piece.values is not None:
            found[piece.rows] = piece.values == _LAST
    return found


def of_episodes(leaves: Leaves) -> Leaves:
    """Returns the values of each episode field, given those of each leaf of the metadata of the episodes."""
    is_empty = all(piece.values is None for piece in leaves.get((), []))
    return {path or (EPISODE_METADATA,): pieces for path, pieces in leaves.items() if path or not is_empty}


def has_values(pieces: list[MessagePiece]) -> bool:
    """Returns whether a field has a value in any row."""
    return any(piece.values is not None for piece in pieces)


class LogFieldLearner:
    """Finds the fields of a log by their values.

    Args:
      specs: the specs of the environment, which define some shapes.
      of_steps: whether rows are steps. Otherwise they are episodes.
    """

    def __init__(self, specs: Specs, *, of_steps: bool):
        self._specs = specs
        self._of_steps = of_steps
        self._dtypes: dict[LeafPath, np.dtype | None] = {}
        self._shapes: dict[LeafPath, tuple[int | None, ...]] = {}
        #: Fields whose shape is in no spec.
        self._open: dict[LeafPath, OpenField] = {}

    def take(self, leaves: Leaves, begins: np.ndarray, name: Callable[[int], str]) -> None:
        """Adds the values of some rows. Values of another dtype are ignored here; `column` rejects them.

        Args:
          leaves: the values.
          begins: whether an episode begins at each row: bool, (rows,).
          name: returns the name of a row, for messages.
        """
        episodes = np.cumsum(begins)
        for path, pieces in leaves.items():
            self._dtypes.setdefault(path, None)
            values = sorted((piece for piece in pieces if piece.values is not None), key=lambda piece: piece.rows[0])
            if values and path not in self._shapes:
                self._begin(path, values[0], name(int(values[0].rows[0])))
            fitting = [piece for piece in values if _dtype_of(piece) == self._dtypes[path]]
            if fitting and path in self._open:
                self._open[path].take(fitting, episodes, name)

    def _begin(self, path: LeafPath, piece: MessagePiece, label: str) -> None:
        assert piece.values is not None
        self._dtypes[path] = piece.values.dtype
        self._shapes[path] = piece.values.shape[1:]
        if self._specs.shapes.get(path, (None, None))[1] != self._shapes[path]:
            self._open[path] = OpenField("/".join(path), piece, label, of_steps=self._of_steps)

    @property
    def is_sure(self) -> bool:
        """Whether further values cannot change the fields: all shapes are known, and every field has a value."""
        return all(size is None for field in self._open.values() for size in field.shape) and not any(
            dtype is None and self._is_too_large(path) for path, dtype in self._dtypes.items()
        )

    def _is_too_large(self, path: LeafPath) -> bool:
        """Returns whether a row of padding would take too much memory, by the shape in the specs."""
        if path not in self._specs.shapes:
            return False
        dtype, shape = self._specs.shapes[path]
        return math.prod(shape) * dtype.itemsize > MAX_PADDED_BYTES

    def fields(self) -> dict[LeafPath, Field]:
        """Returns path to field.

        Raises:
          SchemaMismatchError: the shape of a field differs between episodes.
        """
        found = {}
        for path, dtype in self._dtypes.items():
            shape = self._shapes.get(path, ())
            if path in self._open:
                self._open[path].finish()
                shape = self._open[path].shape
            if dtype is None:
                # All values are None: arrays without elements are stored as None too.
                if path not in self._specs.shapes:
                    continue
                if self._is_too_large(path):
                    _log.warning("field %r is left out, because it has no value in any row", "/".join(path))
                    continue
                dtype, shape = self._specs.shapes[path]
                dtype = BYTES if dtype.kind in "USO" else dtype
            found[path] = Field(dtype, shape, "text" if dtype == BYTES else "array")
        return found


def _dtype_of(piece: MessagePiece) -> np.dtype | None:
    return None if piece.values is None else piece.values.dtype


class MisfitError(Exception):
    """A row does not fit its field.

    Attributes:
      row: the number of the row.
    """

    def __init__(self, row: int, message: str):
        super().__init__(message)
        self.row = row


def column(name: str, field: Field, pieces: list[MessagePiece], rows: int, optional: np.ndarray) -> Column:
    """Makes the column of a field.

    Args:
      name: the path of the field.
      field: the field.
      pieces: its values.
      rows: number of rows.
      optional: rows that need no value, and whose value is ignored if it does not fit: bool, (rows,).

    Raises:
      MisfitError: another row has no value, or one that does not fit the field.
    """
    has_value = np.zeros(rows, bool)
    wrong: list[tuple[int, str]] = []
    for piece in pieces:
        # An array without elements is stored as None.
        has_value[piece.rows] = piece.values is not None or 0 in field.shape or None in field.shape
        if piece.values is not None and not _fits(field, piece):
            is_text = piece.values.dtype == BYTES
            found = Field(piece.values.dtype, piece.values.shape[1:], "text" if is_text else "array")
            wrong += [(int(row), f"is {found.describe()}") for row in piece.rows[~optional[piece.rows]][:1]]
    wrong += [(int(row), "has no value") for row in np.flatnonzero(~has_value & ~optional)[:1]]
    if wrong:
        row, what = min(wrong)
        raise MisfitError(row, f"field {name!r} {what}, where elsewhere it is {field.describe()}")
    kept = [piece for piece in pieces if piece.values is not None and _fits(field, piece)]
    if None in field.shape:
        return _ragged(field, kept, rows)
    if len(kept) == 1 and len(kept[0].rows) == rows:
        values = kept[0].values
        assert values is not None
        return values
    out = np.full((rows, *fixed_shape(field)), b"" if field.dtype == BYTES else 0, field.dtype)
    for piece in kept:
        out[piece.rows] = piece.values
    return out


def padding(field: Field, rows: int) -> Column:
    """Returns rows of zeros, empty text, or arrays without elements."""
    return column("", field, [], rows, np.ones(rows, bool))


def blanked(values: Column, field: Field, rows: np.ndarray) -> Column:
    """Returns a column with padding where `rows` is true: bool, (rows,)."""
    if not rows.any():
        return values
    if isinstance(values, np.ndarray):
        values = values.copy()
        values[rows] = b"" if field.dtype == BYTES else 0
        return values
    assert isinstance(values, Ragged)
    kept = np.repeat(~rows, np.diff(values.splits))
    shapes = values.shapes.copy()
    shapes[rows] = 0
    return Ragged(values.values[kept], shapes)


def fixed_shape(field: Field) -> tuple[int, ...]:
    """Returns the shape of the rows of a field whose rows all have the same shape."""
    return tuple(size for size in field.shape if size is not None)


def by_path(fields: Mapping[LeafPath, Field]) -> dict[str, Field]:
    """Returns the fields by their path in a schema, ordered by name."""
    return {"/".join(path): fields[path] for path in sorted(fields)}


def _fits(field: Field, piece: MessagePiece) -> bool:
    assert piece.values is not None
    shape = piece.values.shape[1:]
    return (
        piece.values.dtype == field.dtype
        and len(shape) == len(field.shape)
        and all(want is None or want == size for want, size in zip(field.shape, shape, strict=True))
    )


def _ragged(field: Field, pieces: list[MessagePiece], rows: int) -> Ragged:
    shapes = np.zeros((rows, len(field.shape)), np.int64)
    for piece in pieces:
        assert piece.values is not None
        shapes[piece.rows] = piece.values.shape[1:]
    splits = row_splits(shapes.prod(axis=1, dtype=np.int64))
    flat = np.empty(splits[-1], field.dtype)
    for piece in pieces:
        assert piece.values is not None
        values = piece.values.reshape(len(piece.rows), -1)
        flat[splits[piece.rows][:, None] + np.arange(values.shape[1])] = values
    return Ragged(flat, shapes)
