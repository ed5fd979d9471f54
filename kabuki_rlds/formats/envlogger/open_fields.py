"""The shape of a field that no spec of the environment states, learned from its values.

Such a field must have one shape in all episodes of all logs, unless it differs between the steps of one episode: then
it varies by its nature. Lists are of any length.
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
    """A field whose shape is learned.

    Args:
      name: of the field.
      first: its first values.
      label: what to call the first of them in a message.
      of_steps: whether its rows are steps. If they are episodes, an array has as many entries as its episode needs.

    Attributes:
      shape: the shape of a row, with None for dimensions that vary.
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
        """Takes the values of some rows.

        Args:
          pieces: the values, of the type of the field, each with those of one shape.
          episodes: the number of the episode of each row; 0 is the one that goes on from the rows before.
          name: what to call a row in a message.
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
        """Marks the dimensions as variable that differ from one step to the next of one episode."""
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
        """Warns if the shape varies.

        Raises:
          KabukiError: it differs between episodes.
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
    """What rows of a piece are. A list may be of another length elsewhere."""
    assert piece.values is not None
    shape = (*[None] * piece.lists, *piece.values.shape[1 + piece.lists :])
    return Field(piece.values.dtype, shape, "text" if piece.values.dtype == BYTES else "array")
