"""Writes D4RL's layout, version 1: flat arrays.

`observations`, `actions`, `rewards`, `terminals`, `timeouts` and `next_observations` have one row per action. The last
action of an episode is a terminal if the episode terminated, otherwise a timeout. If no episode has an observation
after its last action, `next_observations` is not written. If only some have, the others repeat their last observation.
All other step fields keep their names. D4RL has no episode fields, so they are written to `episodes/…`, one row per
episode, which its loaders ignore.
"""

from __future__ import annotations

import h5py
import numpy as np

from kabuki_rlds.data.rules import ACTION, DISCOUNT, FLAGS, OBSERVATION
from kabuki_rlds.data.schema import BYTES, Field
from kabuki_rlds.errors import SchemaMismatchError
from kabuki_rlds.formats.demos.d4rl import NEXT_OBSERVATIONS, STEP_FIELDS, TERMINALS, TIMEOUTS
from kabuki_rlds.formats.demos.demo_sink import DatasetAppender, DemoSink, EpisodePiece

_NAMES = {field: name for name, field in STEP_FIELDS.items()}
#: Datasets that are computed. Step fields of these names are not written.
_COMPUTED = (TERMINALS, TIMEOUTS, NEXT_OBSERVATIONS)
_BOOL = Field(np.dtype(bool))


class D4rlSink(DemoSink):
    """Writes D4RL's layout."""

    layout = "D4RL"

    def _begin(self, file: h5py.File) -> None:
        self._check_fields(_name_of)
        steps, metadata = self._schema.steps, self._schema.metadata
        for name in (OBSERVATION, ACTION):
            self._require_array(name)
        lost = sorted(path for path, field in metadata.items() if not field.is_fixed)
        if lost:
            raise SchemaMismatchError(
                f"episode field {lost[0]!r} varies in size, which D4RL's layout has no form for; a recipe can "
                f"leave it out: `drop: [{lost[0]}]`",
                file=self._label,
                fields=(lost[0],),
            )
        self._rows = {path: DatasetAppender(file, _name_of(path), f) for path, f in steps.items() if _name_of(path)}
        self._next = DatasetAppender(file, NEXT_OBSERVATIONS, steps[OBSERVATION]) if self._has_next else None
        self._ends = {name: DatasetAppender(file, name, _BOOL) for name in (TERMINALS, TIMEOUTS)}
        self._metadata = {path: DatasetAppender(file, f"episodes/{path}", f) for path, f in metadata.items()}

    def _begin_episode(self, piece: EpisodePiece) -> None:
        for path, value in piece.metadata.items():
            self._metadata[path].append(_row(value, self._schema.metadata[path]))

    def _append(self, piece: EpisodePiece) -> None:
        for path, dataset in self._rows.items():
            dataset.append(piece.steps[path][: piece.num_actions])
        if self._next is not None:
            self._next.append(piece.with_last_observation(OBSERVATION)[int(piece.begins) :])
        for dataset in self._ends.values():
            dataset.append(np.zeros(piece.num_actions, bool))

    def _end_episode(self, num_actions: int, is_terminal: bool) -> None:
        self._ends[TERMINALS if is_terminal else TIMEOUTS].replace_last(True)


def _name_of(path: str) -> str:
    """Returns the path of a step field in the layout; "" if it is not written."""
    return "" if path in (DISCOUNT, *FLAGS, *_COMPUTED) else _NAMES.get(path, path)


def _row(value: object, field: Field) -> np.ndarray:
    row = np.empty((1, *(d or 0 for d in field.shape)), field.dtype if field.dtype != BYTES else object)
    row[0] = value
    return row
