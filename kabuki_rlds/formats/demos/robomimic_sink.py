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

import h5py
import numpy as np

from kabuki_rlds.data import recipe_text
from kabuki_rlds.data.rules import ACTION, DISCOUNT, FLAGS, OBSERVATION, REWARD
from kabuki_rlds.data.schema import BYTES, Field, is_within
from kabuki_rlds.errors import SchemaMismatchError
from kabuki_rlds.formats.demos.demo_sink import DatasetAppender, DemoSink, EpisodePiece

_DONES = "dones"
_DEMO = re.compile(r"demo_[0-9]{1,18}")
_NAMES = {ACTION: "actions", REWARD: "rewards"}


class RobomimicSink(DemoSink):
    """Writes robomimic's layout."""

    layout = "robomimic"

    def _begin(self, file: h5py.File) -> None:
        self._check_fields(_name_of)
        steps = self._schema.steps
        made = next((path for path in steps if is_within(path, "next_obs")), None)
        if made is not None:
            recipe = recipe_text.steps([recipe_text.renamed("stored_next_obs", "next_obs")])
            raise SchemaMismatchError(
                f"step field {made!r}: next_obs are made anew here; a recipe can keep this one under another "
                f"name: {recipe}",
                file=self._label,
                fields=(made,),
            )
        if ACTION not in steps:
            recipe = recipe_text.one_array(ACTION, steps)
            raise SchemaMismatchError(
                f"'action' is a dict, and robomimic takes one array; a recipe makes one: {recipe}", file=self._label
            )
        self._data = file.create_group("data")
        self._data.attrs["env_args"] = self._schema.info.environment or "{}"
        self._masks: dict[str, list[int]] = {path: [] for path in self._schema.metadata if is_within(path, "mask")}
        self._names: list[str] = []

    def _begin_episode(self, piece: EpisodePiece) -> None:
        self._demo = self._data.create_group(f"demo_{piece.episode}")
        self._rows: dict[str, list[tuple[DatasetAppender, int]]] = {}
        for path, field in self._schema.steps.items():
            name = _name_of(path)
            if name:
                self._rows[path] = [(DatasetAppender(self._demo, name, field), 0)]
            if self._has_next and is_within(path, OBSERVATION):
                # The rows after the actions, beside those before.
                self._rows[path].append((DatasetAppender(self._demo, f"next_{name}", field), 1))
        has_dones = _DONES in self._schema.steps
        self._dones = None if has_dones else DatasetAppender(self._demo, _DONES, Field(np.dtype(np.int64)))
        said = piece.metadata.get("episode")
        self._names.append(said.decode(errors="replace") if isinstance(said, bytes) else "")
        for path, value in piece.metadata.items():
            kind, _, key = path.partition("/")
            if path in self._masks:
                if bool(value):
                    self._masks[path].append(piece.episode)
            elif kind == "file" and key:
                if key not in ("total", "num_demos") and (key not in self._data.attrs or key == "env_args"):
                    self._data.attrs[key] = _attribute(value)
            elif (kind, key) != ("attributes", "num_samples"):
                self._demo.attrs[key if kind == "attributes" and key else path] = _attribute(value)

    def _append(self, piece: EpisodePiece) -> None:
        for path, rows in self._rows.items():
            for dataset, shift in rows:
                # The first row of all is after no action, and the last before none.
                first = shift if piece.begins else 0
                of_actions = piece.steps[path][: piece.num_actions]
                dataset.append(piece.with_last_observation(path)[first:] if shift else of_actions)
        if self._dones is not None:
            self._dones.append(np.zeros(piece.num_actions, np.int64))

    def _end_episode(self, num_actions: int, is_terminal: bool) -> None:
        self._demo.attrs["num_samples"] = num_actions
        if self._dones is not None:
            self._dones.replace_last(is_terminal)

    def _complete(self) -> None:
        self._data.attrs["total"] = self.num_actions
        names = _name(self._data, self._names)
        for path, numbers in self._masks.items():
            listed = np.array([names[i].encode() for i in numbers], "S") if numbers else np.array([], "S1")
            self._data.file[path] = listed
        super()._complete()


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
