"""What fields the steps and the episodes of a log have, and their columns.

A step of a log holds an observation, the action that led to it, and the reward and the
discount that came with it. What leads to a step is named as where it stands after the
alignment; what `step_fn` gave stands beside the observation, as EnvLogger's own TFDS
backend has it: a dict under its keys, anything else as `step_metadata`.
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

#: Where a step's message has what: a tuple of a time step, the action before it, and what `step_fn` gave.
_PLACES: dict[LeafPath, LeafPath] = {
    ("0", "1"): (REWARD,),
    ("0", "2"): (DISCOUNT,),
    ("0", "3"): (OBSERVATION,),
    ("1",): (ACTION,),
}
_CUSTOM = ("2",)
STEP_METADATA, EPISODE_METADATA = "step_metadata", "episode_metadata"

#: dm_env's type of the last step of an episode.
_LAST = 2

#: What stands one step later in a log than in a Kabuki file.
_SHIFTED = (ACTION, REWARD, DISCOUNT)


def step_structure(specs: Specs) -> tuple:
    """What `messages.leaves` is told of the lists in a step."""
    inside = specs.structure
    return (None, inside[REWARD], inside[DISCOUNT], inside[OBSERVATION]), inside[ACTION], None


def is_shifted(path: LeafPath) -> bool:
    """Whether a field is of what led to a step, which the step before it takes."""
    return path[0] in _SHIFTED


def of_steps(leaves: Leaves) -> Leaves:
    """The pieces of each field of the steps, by its path, from those of whole steps.

    Raises:
      KabukiError: what `step_fn` gave has the name of another field.
    """
    found: Leaves = {}
    for path, pieces in leaves.items():
        for place, name in _PLACES.items():
            if path[: len(place)] == place:
                found.setdefault(name + path[len(place) :], []).extend(pieces)
        if path[:1] == _CUSTOM:
            name = path[1:]
            if not name:
                # A dict that only some steps have is missing in the others, and so are its fields.
                if all(piece.values is None for piece in pieces):
                    continue
                name = (STEP_METADATA,)
            if name[0] in REQUIRED:
                raise KabukiError(f"what step_fn gave has the key {name[0]!r}, which is the name of another field")
            found.setdefault(name, []).extend(pieces)
    return found


def is_last(leaves: Leaves, count: int) -> np.ndarray:
    """Whether each of `count` steps is of dm_env's type LAST, from the pieces of whole steps: bool."""
    found = np.zeros(count, bool)
    for piece in leaves.get(STEP_TYPE, []):
        if piece.values is not None:
            found[piece.rows] = piece.values == _LAST
    return found


def of_episodes(leaves: Leaves) -> Leaves:
    """The pieces of each field of the episodes, by its path, from those of whole messages."""
    nothing = all(piece.values is None for piece in leaves.get((), []))
    return {path or (EPISODE_METADATA,): pieces for path, pieces in leaves.items() if path or not nothing}


def has_values(pieces: list[MessagePiece]) -> bool:
    """Whether a field has a value anywhere."""
    return any(piece.values is not None for piece in pieces)


class LogFieldLearner:
    """Learns from values what fields there are.

    Args:
      specs: of the environment, which say what shapes are fixed.
      of_steps: whether rows are steps, or episodes.
    """

    def __init__(self, specs: Specs, *, of_steps: bool):
        self._specs = specs
        self._of_steps = of_steps
        self._dtypes: dict[LeafPath, np.dtype | None] = {}
        self._shapes: dict[LeafPath, tuple[int | None, ...]] = {}
        #: Fields whose shape no spec says.
        self._open: dict[LeafPath, OpenField] = {}

    def take(self, leaves: Leaves, begins: np.ndarray, name: Callable[[int], str]) -> None:
        """Takes the values of some rows; what is of another type is left for `column` to refuse.

        Args:
          leaves: the values.
          begins: whether an episode begins at each row: bool.
          name: what to call a row in a message.
        """
        episodes = np.cumsum(begins)
        for path, pieces in leaves.items():
            self._dtypes.setdefault(path, None)
            there = sorted((piece for piece in pieces if piece.values is not None), key=lambda piece: piece.rows[0])
            if there and path not in self._shapes:
                self._begin(path, there[0], name(int(there[0].rows[0])))
            fitting = [piece for piece in there if _dtype_of(piece) == self._dtypes[path]]
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
        """Whether values not yet seen cannot have shapes that are not known of, or decide whether a field is kept."""
        return all(size is None for field in self._open.values() for size in field.shape) and not any(
            dtype is None and self._is_too_large(path) for path, dtype in self._dtypes.items()
        )

    def _is_too_large(self, path: LeafPath) -> bool:
        """Whether a row of padding takes too much, whose size the specs alone state."""
        if path not in self._specs.shapes:
            return False
        dtype, shape = self._specs.shapes[path]
        return math.prod(shape) * dtype.itemsize > MAX_PADDED_BYTES

    def fields(self) -> dict[LeafPath, Field]:
        """All fields.

        Raises:
          KabukiError: the shape of one differs between episodes.
        """
        found = {}
        for path, dtype in self._dtypes.items():
            shape = self._shapes.get(path, ())
            if path in self._open:
                self._open[path].finish()
                shape = self._open[path].shape
            if dtype is None:
                # Nothing but None: an array without elements, or nothing yet.
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
    """A row that does not fit its field.

    Attributes:
      row: which one.
    """

    def __init__(self, row: int, message: str):
        super().__init__(message)
        self.row = row


def column(name: str, field: Field, pieces: list[MessagePiece], rows: int, optional: np.ndarray) -> Column:
    """The column of a field.

    Args:
      name: of the field.
      field: what it is to hold.
      pieces: the values of its rows.
      rows: how many rows there are.
      optional: bool, (rows,): where there may be no value, and what is there counts for nothing.

    Raises:
      MisfitError: a row has no value, or one that is not of the field.
    """
    is_there = np.zeros(rows, bool)
    wrong: list[tuple[int, str]] = []
    for piece in pieces:
        # An array without elements is stored as None is.
        is_there[piece.rows] = piece.values is not None or 0 in field.shape or None in field.shape
        if piece.values is not None and not _fits(field, piece):
            is_text = piece.values.dtype == BYTES
            found = Field(piece.values.dtype, piece.values.shape[1:], "text" if is_text else "array")
            wrong += [(int(row), f"is {found.describe()}") for row in piece.rows[~optional[piece.rows]][:1]]
    wrong += [(int(row), "has no value") for row in np.flatnonzero(~is_there & ~optional)[:1]]
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
    """Rows that mean nothing: zeros, empty text, arrays without elements."""
    return column("", field, [], rows, np.ones(rows, bool))


def blanked(values: Column, field: Field, rows: np.ndarray) -> Column:
    """The column with padding in the rows where `rows`, bool, is true."""
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
    """The shape of a row of a field whose rows have one shape."""
    return tuple(size for size in field.shape if size is not None)


def by_path(fields: Mapping[LeafPath, Field]) -> dict[str, Field]:
    """The fields by their path as a schema has it, in the order of their names."""
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
