"""To D4RL's layout, version 1: flat arrays, for code that reads those.

`observations`, `actions`, `rewards`, `terminals`, `timeouts` and `next_observations` have a row for each action. The
last action of an episode is terminal where its last row is, else it is a time-out. If no observation follows the last
action of any episode, there are no `next_observations`; if of some, the last observation stands for it there. All
other step fields keep their names. What an episode says of itself has no place in D4RL's layout: it stands in
`episodes/…`, one row an episode, where its loaders do not look.
"""

from __future__ import annotations

from collections.abc import Iterator

import h5py
import numpy as np

from kabuki_rlds.data import recipe_text
from kabuki_rlds.data.rules import ACTION, DISCOUNT, FLAGS, IS_TERMINAL, OBSERVATION, REWARD
from kabuki_rlds.data.schema import BYTES, Field, Schema
from kabuki_rlds.errors import KabukiError, SchemaMismatchError
from kabuki_rlds.formats.demos.episode_pieces import DatasetAppender, EpisodePiece, check_plain

_NAMES = {OBSERVATION: "observations", ACTION: "actions", REWARD: "rewards"}
_MADE = ("terminals", "timeouts", "next_observations")
_BOOL = Field(np.dtype(bool))


def write(
    file: h5py.File, episodes: Iterator[EpisodePiece], schema: Schema, label: str, has_next: bool
) -> tuple[int, int]:
    """Writes the episodes, and returns how many, and how many actions they have.

    `has_next` says whether to write `next_observations`.

    Raises:
      KabukiError: an episode has no action, or a field no form in the layout.
    """
    check_plain(schema, label, "D4RL", _name_of)
    for name in (OBSERVATION, ACTION):
        if name not in schema.steps:
            recipe = recipe_text.one_array(name, schema.steps)
            raise SchemaMismatchError(
                f"{name!r} is a dict, and D4RL has one array; a recipe makes one: {recipe}", file=label
            )
    kept = {path: field for path, field in schema.steps.items() if _name_of(path)}
    rows = {path: DatasetAppender(file, _name_of(path), field) for path, field in kept.items()}
    following = DatasetAppender(file, "next_observations", schema.steps[OBSERVATION]) if has_next else None
    terminals, timeouts = DatasetAppender(file, "terminals", _BOOL), DatasetAppender(file, "timeouts", _BOOL)
    said = {path: DatasetAppender(file, f"episodes/{path}", f) for path, f in schema.metadata.items() if f.is_fixed}
    lost = sorted(set(schema.metadata) - set(said))
    if lost:
        raise SchemaMismatchError(
            f"episode field {lost[0]!r} varies in size, which D4RL's layout has no form for; a recipe can "
            f"leave it out: `drop: [{lost[0]}]`",
            file=label,
            fields=(lost[0],),
        )
    count = actions = of_episode = 0
    for piece in episodes:
        taken = piece.num_actions
        if piece.begins:
            of_episode = 0
            for path, value in piece.metadata.items():
                said[path].append(_row(value, schema.metadata[path]))
        for path, dataset in rows.items():
            dataset.append(piece.steps[path][:taken])
        if following is not None:
            following.append(piece.with_last_observation(OBSERVATION)[int(piece.begins) :])
        for flags in (terminals, timeouts):
            flags.append(np.zeros(taken, bool))
        of_episode += taken
        if piece.ends:
            if not of_episode:
                raise KabukiError(f"{label}: episode {piece.episode} has no action, and D4RL's layout no row for it")
            terminal = bool(np.any(piece.steps[IS_TERMINAL][-1]))
            file["terminals" if terminal else "timeouts"][-1] = True
            count += 1
            actions += of_episode
    return count, actions


def _name_of(path: str) -> str:
    """Where a step field stands; "" where the layout says it by its form, or it is made anew."""
    return "" if path in (DISCOUNT, *FLAGS, *_MADE) else _NAMES.get(path, path)


def _row(value: object, field: Field) -> np.ndarray:
    row = np.empty((1, *(d or 0 for d in field.shape)), field.dtype if field.dtype != BYTES else object)
    row[0] = value
    return row
