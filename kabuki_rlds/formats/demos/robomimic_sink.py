"""Writes robomimic's layout, which its `SequenceDataset` and trainers read.

* `data/demo_<i>` has the T actions of an episode of T + 1 rows, `obs/<k>` with the T rows before them, and
  `next_obs/<k>` with the T rows after them. An `observation` that is one array becomes `obs/observation`. All other
  step fields have T rows.
* `dones` is the step field of that name. Without one, it is 1 for the last action of an episode that terminated.
* `mask/<key>` lists the episodes whose episode field `mask/<key>` is true.
* The episode fields `file/…` of the first episode become attributes of `data`. `attributes/…` and all other episode
  fields become attributes of the demonstration. `data` always has the attribute `env_args`, which is `{}` if the
  environment is not known.
* Demonstrations are named by the episode field `episode`, if all names are different and like `demo_3`. Otherwise they
  are numbered.
"""

from __future__ import annotations

import re

import h5py
import numpy as np

from kabuki_rlds.data import recipe_text
from kabuki_rlds.data.rules import ACTION, DISCOUNT, FLAGS, OBSERVATION
from kabuki_rlds.data.schema import BYTES, Field, is_within
from kabuki_rlds.errors import SchemaMismatchError
from kabuki_rlds.formats.demos.demo_sink import DatasetAppender, DemoSink, EpisodePiece
from kabuki_rlds.formats.demos.robomimic import (
    DATA,
    DEMO_PREFIX,
    DONES,
    ENV_ARGS,
    MASK,
    NEXT_OBS,
    NUM_DEMOS,
    NUM_SAMPLES,
    OBS,
    STEP_FIELDS,
    TOTAL,
)

_DEMO_NAME = re.compile(rf"{DEMO_PREFIX}[0-9]{{1,18}}")
_NAMES = {field: name for name, field in STEP_FIELDS.items()}


class RobomimicSink(DemoSink):
    """Writes robomimic's layout."""

    layout = "robomimic"

    def _begin(self, file: h5py.File) -> None:
        self._check_fields(_name_of)
        made = next((path for path in self._schema.steps if is_within(path, NEXT_OBS)), None)
        if made is not None:
            recipe = recipe_text.steps([recipe_text.renamed("stored_next_obs", NEXT_OBS)])
            raise SchemaMismatchError(
                f"step field {made!r}: next_obs are made anew here; a recipe can keep this one under another "
                f"name: {recipe}",
                file=self._label,
                fields=(made,),
            )
        self._require_array(ACTION)
        self._data = file.create_group(DATA)
        self._data.attrs[ENV_ARGS] = self._schema.info.environment or "{}"
        self._masks: dict[str, list[int]] = {path: [] for path in self._schema.metadata if is_within(path, MASK)}
        self._names: list[str] = []

    def _begin_episode(self, piece: EpisodePiece) -> None:
        self._demo = self._data.create_group(f"{DEMO_PREFIX}{piece.episode}")
        self._rows: dict[str, list[tuple[DatasetAppender, int]]] = {}
        for path, field in self._schema.steps.items():
            name = _name_of(path)
            if name:
                self._rows[path] = [(DatasetAppender(self._demo, name, field, piece), 0)]
            if self._has_next and is_within(path, OBSERVATION):
                # next_obs starts one row later.
                self._rows[path].append((DatasetAppender(self._demo, f"next_{name}", field, piece), 1))
        has_dones = DONES in self._schema.steps
        self._dones = None if has_dones else DatasetAppender(self._demo, DONES, Field(np.dtype(np.int64)), piece)
        demo_name = piece.metadata.get("episode")
        self._names.append(demo_name.decode(errors="replace") if isinstance(demo_name, bytes) else "")
        for path, value in piece.metadata.items():
            kind, _, key = path.partition("/")
            if path in self._masks:
                if bool(value):
                    self._masks[path].append(piece.episode)
            elif kind == "file" and key:
                if key not in (TOTAL, NUM_DEMOS) and (key not in self._data.attrs or key == ENV_ARGS):
                    self._data.attrs[key] = _attribute(value)
            elif (kind, key) != ("attributes", NUM_SAMPLES):
                self._demo.attrs[key if kind == "attributes" and key else path] = _attribute(value)

    def _append(self, piece: EpisodePiece) -> None:
        for path, rows in self._rows.items():
            for dataset, shift in rows:
                # No action comes before the first observation, and none after the last.
                first = shift if piece.begins else 0
                at_actions = piece.steps[path][: piece.num_actions]
                dataset.append(piece.with_last_observation(path)[first:] if shift else at_actions)
        if self._dones is not None:
            self._dones.append(np.zeros(piece.num_actions, np.int64))

    def _end_episode(self, num_actions: int, is_terminal: bool) -> None:
        self._demo.attrs[NUM_SAMPLES] = num_actions
        if self._dones is not None:
            self._dones.replace_last(is_terminal)
            self._dones.close()
        for rows in self._rows.values():
            for dataset, _ in rows:
                dataset.close()

    def _complete(self) -> None:
        self._data.attrs[TOTAL] = self.num_actions
        names = _rename_demonstrations(self._data, self._names)
        for path, numbers in self._masks.items():
            listed = np.array([names[i].encode() for i in numbers], "S") if numbers else np.array([], "S1")
            self._data.file.create_dataset(path, data=listed).flush()
        super()._complete()


def _rename_demonstrations(data: h5py.Group, names: list[str]) -> list[str]:
    """Renames the numbered demonstrations, if the names are valid and unique. Returns their names."""
    numbered = [f"{DEMO_PREFIX}{i}" for i in range(len(names))]
    if len(set(names)) < len(names) or not all(map(_DEMO_NAME.fullmatch, names)):
        return numbered
    moved = [(i, name) for i, name in enumerate(names) if name != numbered[i]]
    # By way of temporary names, since a new name may be the number of another demonstration.
    for i, _ in moved:
        data.move(numbered[i], f"moved_{i}")
    for i, name in moved:
        data.move(f"moved_{i}", name)
    return names


def _name_of(path: str) -> str:
    """Returns the path of a step field in a demonstration; "" if the layout does not store it."""
    if is_within(path, OBSERVATION):
        return f"{OBS}/{path.removeprefix(f'{OBSERVATION}/')}"
    return "" if path in (DISCOUNT, *FLAGS) else _NAMES.get(path, path)


def _attribute(value: object) -> object:
    """Converts the value of an episode field to that of an attribute."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, np.ndarray) and value.dtype == BYTES:
        return np.array([str(text, errors="replace") for text in value.ravel()], h5py.string_dtype()).reshape(
            value.shape
        )
    return value
