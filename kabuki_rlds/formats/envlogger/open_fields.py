"""Finds the shape of a field by its values, if no spec of the environment defines it.

Such a field must have the same shape in all episodes of all logs, unless its shape differs between the steps of one
episode. In that case it is a field of variable shape. Lists may have any length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from kabuki_rlds.data.common_schema import difference, join_fields, warn_of_shapes
from kabuki_rlds.data.schema import BYTES, Field
from kabuki_rlds.errors import SchemaMismatchError
from kabuki_rlds.formats.envlogger.messages import MessagePiece


class OpenField:
    """A field whose shape is found by its values.

    Args:
      name: the path of the field.
      first: its first values.
      label: the row of the first value, for messages.
      of_steps: whether its rows are steps. If they are episodes, the first dimension may vary.

    Attributes:
      shape: the shape of a row. Dimensions that vary are None.
    """

    def __init__(self, name: str, first: MessagePiece, label: str, *, of_steps: bool):
        self._name = name
        self._label = label
        self._of_steps = of_steps
        self._field = _field_of(first)
        self._last: tuple[int, ...] | None = None
        self._varies = ""
        self._conflict: tuple[Field, str] | None = None

    @property
    def shape(self) -> tuple[int | None, ...]:
        return self._field.shape

    def take(self, pieces: Sequence[MessagePiece], episodes: np.ndarray, name: Callable[[int], str]) -> None:
        """Adds the values of some rows.

        Args:
          pieces: values of the field's dtype.
          episodes: the number of the episode of each row, where 0 is the episode of the rows before: int64, (rows,).
          name: returns the name of a row, for messages.
        """
        fields = [_field_of(piece) for piece in pieces]
        if any(field.shape != self.shape for field in fields):
            if self._of_steps:
                self._vary_within_episodes(pieces, episodes)
            for piece, field in zip(pieces, fields, strict=True):
                self._join(field, name(int(piece.rows[0])))
        last = max(pieces, key=lambda piece: piece.rows[-1])
        self._last = last.values.shape[1:] if last.values is not None else None

    def _join(self, theirs: Field, label: str) -> None:
        joint = join_fields(self._field, theirs, of_any_length=not self._of_steps)
        if joint is None:
            self._conflict = self._conflict or (theirs, label)
            return
        if joint.shape != self.shape:
            self._varies = self._varies or self._difference(theirs, label)
        self._field = joint

    def _vary_within_episodes(self, pieces: Sequence[MessagePiece], episodes: np.ndarray) -> None:
        """Makes dimensions variable that differ between consecutive steps of one episode."""
        rows = np.concatenate([piece.rows for piece in pieces])
        numbers = np.repeat(np.arange(len(pieces)), [len(piece.rows) for piece in pieces])[np.argsort(rows)]
        of_episode = episodes[np.sort(rows)]
        changes = np.flatnonzero((numbers[1:] != numbers[:-1]) & (of_episode[1:] == of_episode[:-1]))
        shapes = [piece.values.shape[1:] for piece in pieces if piece.values is not None]
        pairs = {(shapes[a], shapes[b]) for a, b in zip(numbers[changes], numbers[changes + 1], strict=True)}
        if self._last is not None and of_episode[0] == 0:
            pairs.add((self._last, shapes[numbers[0]]))
        for before, after in pairs:
            if len(before) == len(after) == len(self.shape):
                shape = [None if a != b else size for size, a, b in zip(self.shape, before, after, strict=True)]
                if tuple(shape) != self.shape:
                    text = f"step field {self._name!r} has rows of shapes {before} and {after} in one episode"
                    self._varies = self._varies or text
                self._field = dataclasses.replace(self._field, shape=tuple(shape))

    def finish(self) -> None:
        """Warns if the shape varies, once all values were added.

        Raises:
          SchemaMismatchError: the shape differs between episodes.
        """
        if self._conflict is not None:
            theirs, label = self._conflict
            if join_fields(self._field, theirs, of_any_length=not self._of_steps) is None:
                raise SchemaMismatchError(self._difference(theirs, label), fields=(self._name,))
        if self._varies:
            warn_of_shapes(self._varies)

    def _difference(self, theirs: Field, label: str) -> str:
        what = "step field" if self._of_steps else "episode field"
        return difference(what, self._name, self._field, self._label, theirs, label)


def _field_of(piece: MessagePiece) -> Field:
    """Returns the field of some values. The length of lists is variable."""
    assert piece.values is not None
    shape = (*[None] * piece.lists, *piece.values.shape[1 + piece.lists :])
    return Field(piece.values.dtype, shape, "text" if piece.values.dtype == BYTES else "array")
