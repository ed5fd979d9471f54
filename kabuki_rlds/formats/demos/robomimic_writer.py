"""To robomimic's layout, which its `SequenceDataset` and its trainers read.

* `data/demo_<i>` has the T actions of an episode of T + 1 rows, with `obs/<k>` of the rows before them and
  `next_obs/<k>` of those after. An `observation` that is one array becomes `obs/observation`. All other step fields
  have the T rows of the actions.
* `dones` is the step field of that name, or else 1 on the last action of an episode that ended terminal.
* `mask/<key>` lists the episodes whose field `mask/<key>` is true. Attributes of `data` and of a demonstration are the
  episode fields `file/…` (those of the first) and `attributes/…`; what else an episode says of itself are attributes
  too. `env_args` is there always, `{}` where nobody knows it.
* Demonstrations are named as the episode field `episode` says, where all are names like `demo_3` and differ, else by
  their number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import h5py
import numpy as np

from kabuki_rlds.data import recipe_text
from kabuki_rlds.data.rules import ACTION, DISCOUNT, FLAGS, IS_TERMINAL, OBSERVATION, REWARD
from kabuki_rlds.data.schema import BYTES, Field, Schema, is_within
from kabuki_rlds.errors import KabukiError, SchemaMismatchError
from kabuki_rlds.formats.demos.episode_pieces import DatasetAppender, EpisodePiece, check_plain

_DONES = "dones"
_DEMO = re.compile(r"demo_[0-9]{1,18}")
_NAMES = {ACTION: "actions", REWARD: "rewards"}


def write(
    file: h5py.File, episodes: Iterator[EpisodePiece], schema: Schema, label: str, has_next: bool
) -> tuple[int, int]:
    """Writes the episodes, and returns how many, and how many actions they have.

    `has_next` says whether to write `next_obs`.

    Raises:
      KabukiError: an episode has no action, or a field no form in the layout.
    """
    check_plain(schema, label, "robomimic", _name_of)
    made = next((path for path in schema.steps if is_within(path, "next_obs")), None)
    if made is not None:
        recipe = recipe_text.steps([recipe_text.renamed("stored_next_obs", "next_obs")])
        raise SchemaMismatchError(
            f"step field {made!r}: next_obs are made anew here; a recipe can keep this one under another "
            f"name: {recipe}",
            file=label,
            fields=(made,),
        )
    if ACTION not in schema.steps:
        recipe = recipe_text.one_array(ACTION, schema.steps)
        raise SchemaMismatchError(
            f"'action' is a dict, and robomimic takes one array; a recipe makes one: {recipe}", file=label
        )
    data = file.create_group("data")
    data.attrs["env_args"] = schema.info.environment or "{}"
    masks: dict[str, list[int]] = {path: [] for path in schema.metadata if is_within(path, "mask")}
    names: list[str] = []
    actions = count = 0
    for piece in episodes:
        if piece.begins:
            demo = _Demo(data, piece, schema, has_next)
            said = piece.metadata.get("episode")
            names.append(said.decode(errors="replace") if isinstance(said, bytes) else "")
            for path, numbers in masks.items():
                if bool(piece.metadata[path]):
                    numbers.append(piece.episode)
        demo.append(piece)
        if piece.ends:
            if not demo.actions:
                raise KabukiError(f"{label}: episode {piece.episode} has no action, so it is no demonstration")
            demo.group.attrs["num_samples"] = demo.actions
            actions += demo.actions
            count += 1
    data.attrs["total"] = actions
    names = _name(data, names)
    for path, numbers in masks.items():
        file[path] = np.array([names[i].encode() for i in numbers], "S") if numbers else np.array([], "S1")
    return count, actions


def _name(data: h5py.Group, said: list[str]) -> list[str]:
    """Names the demonstrations, which have their numbers until now, as the episodes say; returns the names."""
    numbered = [f"demo_{i}" for i in range(len(said))]
    if len(set(said)) < len(said) or not all(map(_DEMO.fullmatch, said)):
        return numbered
    moved = [(i, name) for i, name in enumerate(said) if name != numbered[i]]
    # Out of the way first, since one may be called as another is numbered.
    for i, _ in moved:
        data.move(numbered[i], f"moved_{i}")
    for i, name in moved:
        data.move(f"moved_{i}", name)
    return said


class _Demo:
    """One demonstration in the making."""

    def __init__(self, data: h5py.Group, piece: EpisodePiece, schema: Schema, has_next: bool):
        self.group = data.create_group(f"demo_{piece.episode}")
        self.actions = 0
        self._terminal = False
        self._has_dones = _DONES in schema.steps
        self._rows: dict[str, list[tuple[DatasetAppender, int]]] = {}
        for path, field in schema.steps.items():
            name = _name_of(path)
            if name:
                self._rows[path] = [(DatasetAppender(self.group, name, field), 0)]
            if has_next and is_within(path, OBSERVATION):
                # The rows after the actions, beside those before.
                self._rows[path].append((DatasetAppender(self.group, f"next_{name}", field), 1))
        if not self._has_dones:
            self._dones = DatasetAppender(self.group, _DONES, Field(np.dtype(np.int64)))
        for path, value in piece.metadata.items():
            kind, _, key = path.partition("/")
            if kind == "file" and key:
                if key not in ("total", "num_demos") and (key not in data.attrs or key == "env_args"):
                    data.attrs[key] = _attribute(value)
            elif kind != "mask" and (kind, key) != ("attributes", "num_samples"):
                self.group.attrs[key if kind == "attributes" and key else path] = _attribute(value)

    def append(self, piece: EpisodePiece) -> None:
        count = piece.num_actions
        for path, rows in self._rows.items():
            for dataset, shift in rows:
                # The first row of all is after no action, and the last before none.
                first = shift if piece.begins else 0
                dataset.append(piece.with_last_observation(path)[first:] if shift else piece.steps[path][:count])
        if not self._has_dones:
            dones = np.zeros(count, np.int64)
            self._dones.append(dones)
        self.actions += count
        if piece.ends and not self._has_dones and self.actions:
            self.group[_DONES][-1] = int(np.any(piece.steps[IS_TERMINAL][-1]))


def _name_of(path: str) -> str:
    """Where a step field stands in a demonstration; "" where the layout says it by its form."""
    if is_within(path, OBSERVATION):
        return f"obs/{path.removeprefix(f'{OBSERVATION}/')}"
    return "" if path in (DISCOUNT, *FLAGS) else _NAMES.get(path, path)


def _attribute(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, np.ndarray) and value.dtype == BYTES:
        return np.array([str(text, errors="replace") for text in value.ravel()], h5py.string_dtype()).reshape(
            value.shape
        )
    return value
