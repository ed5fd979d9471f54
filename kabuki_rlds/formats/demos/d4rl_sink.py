"""To D4RL's layout, version 1: flat arrays, for code that reads those.

`observations`, `actions`, `rewards`, `terminals`, `timeouts` and `next_observations` have a row for each action. The
last action of an episode is terminal where its last row is, else it is a time-out. If no observation follows the last
action of any episode, there are no `next_observations`; if of some, the last observation stands for it there. All
other step fields keep their names. What an episode says of itself has no place in D4RL's layout: it stands in
`episodes/…`, one row an episode, where its loaders do not look.
"""

from __future__ import annotations

import h5py
import numpy as np

from kabuki_rlds.data import recipe_text
from kabuki_rlds.data.rules import ACTION, DISCOUNT, FLAGS, OBSERVATION, REWARD
from kabuki_rlds.data.schema import BYTES, Field
from kabuki_rlds.errors import SchemaMismatchError
from kabuki_rlds.formats.demos.demo_sink import DatasetAppender, DemoSink, EpisodePiece

_NAMES = {OBSERVATION: "observations", ACTION: "actions", REWARD: "rewards"}
_MADE = ("terminals", "timeouts", "next_observations")
_BOOL = Field(np.dtype(bool))


class D4rlSink(DemoSink):
    """Writes D4RL's layout."""

    layout = "D4RL"

    def _begin(self, file: h5py.File) -> None:
        self._check_fields(_name_of)
        steps, metadata = self._schema.steps, self._schema.metadata
        for name in (OBSERVATION, ACTION):
            if name not in steps:
                recipe = recipe_text.one_array(name, steps)
                raise SchemaMismatchError(
                    f"{name!r} is a dict, and D4RL has one array; a recipe makes one: {recipe}", file=self._label
                )
        lost = sorted(path for path, field in metadata.items() if not field.is_fixed)
        if lost:
            raise SchemaMismatchError(
                f"episode field {lost[0]!r} varies in size, which D4RL's layout has no form for; a recipe can "
                f"leave it out: `drop: [{lost[0]}]`",
                file=self._label,
                fields=(lost[0],),
            )
        self._rows = {path: DatasetAppender(file, _name_of(path), f) for path, f in steps.items() if _name_of(path)}
        self._next = DatasetAppender(file, "next_observations", steps[OBSERVATION]) if self._has_next else None
        self._ends = {name: DatasetAppender(file, name, _BOOL) for name in ("terminals", "timeouts")}
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
        self._ends["terminals" if is_terminal else "timeouts"].replace_last(True)


def _name_of(path: str) -> str:
    """Where a step field stands; "" where the layout says it by its form, or it is made anew."""
    return "" if path in (DISCOUNT, *FLAGS, *_MADE) else _NAMES.get(path, path)


def _row(value: object, field: Field) -> np.ndarray:
    row = np.empty((1, *(d or 0 for d in field.shape)), field.dtype if field.dtype != BYTES else object)
    row[0] = value
    return row
