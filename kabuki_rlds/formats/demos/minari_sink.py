"""Writes Minari's HDF5 layout, which `minari.load_dataset` reads: a folder `<id>/data`.

* If no observation follows the last action of an episode, the last observation is repeated.
* `episode_<i>` has `observations` of T + 1 rows, and `actions`, `rewards`, `terminations` and `truncations` of T rows.
  The last action is a termination if the episode terminated, otherwise a truncation, unless there are step fields of
  these names. `infos/…` are the step fields below `infos` and all other step fields, with T + 1 rows each.
* A group of `_index_<i>` is a tuple. Any other group is a dict.
* Spaces come from the file's `environment` if the data came from Minari. Otherwise a field has an unbounded Box,
  (0, 255) for uint8, or Text. Images are stored as arrays, not as JPEG.
* Episode fields are attributes of the episode's group.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

from kabuki_rlds.data.rules import ACTION, DISCOUNT, FLAGS, OBSERVATION
from kabuki_rlds.data.schema import BYTES, Field, is_within
from kabuki_rlds.errors import InvalidArgumentError
from kabuki_rlds.files.atomic_folder import StagedFolder
from kabuki_rlds.formats.demos.demo_sink import DatasetAppender, DemoSink, EpisodePiece
from kabuki_rlds.formats.demos.minari import (
    EPISODE_PREFIX,
    INFOS,
    MAIN_DATA,
    METADATA,
    OBSERVATIONS,
    STEP_FIELDS,
    TERMINATIONS,
    TOTAL_EPISODES,
    TOTAL_STEPS,
    TRUNCATIONS,
    TUPLE_ITEM_PREFIX,
)

_ENDS = (TERMINATIONS, TRUNCATIONS)
#: The names of datasets that Minari accepts.
_NAME = re.compile(r"[\w-]+-v\d+")
_BOOL = Field(np.dtype(bool))
#: The version of Minari whose format is written. Minari reads the formats of versions that it knows.
_VERSION = "0.5.4"
#: Entries of `metadata.json`, besides the spaces, that are kept if the data came from Minari.
_KEPT = ("author", "author_email", "algorithm_name", "code_permalink")


class MinariSink(DemoSink):
    """Writes a folder in Minari's layout."""

    layout = "Minari"
    needs_last_observation = True

    def _stage(self, overwrite: bool) -> tuple[StagedFolder, pathlib.Path]:
        if not _NAME.fullmatch(self._dest.name):
            raise InvalidArgumentError(f"{self._dest}: Minari takes a dataset by a folder of a name like hopper-v0")
        staged = StagedFolder(self._dest / "data", overwrite=overwrite, mark=METADATA, what="Minari dataset")
        return staged, staged.partial / MAIN_DATA

    def _begin(self, file: h5py.File) -> None:
        self._check_fields(_target)
        self._root = file

    def _begin_episode(self, piece: EpisodePiece) -> None:
        self._group = self._root.create_group(f"{EPISODE_PREFIX}{piece.episode}")
        steps = self._schema.steps
        self._rows = {p: DatasetAppender(self._group, _target(p), f, piece) for p, f in steps.items() if _target(p)}
        self._ends = {name: DatasetAppender(self._group, name, _BOOL, piece) for name in _ENDS if name not in steps}
        self._group.attrs["id"] = piece.episode
        for path, value in piece.metadata.items():
            key = path.removeprefix("attributes/")
            if key not in ("id", TOTAL_STEPS):
                self._group.attrs[key] = value.decode(errors="replace") if isinstance(value, bytes) else value

    def _append(self, piece: EpisodePiece) -> None:
        for path, dataset in self._rows.items():
            has_next = _target(path).split("/")[0] in (OBSERVATIONS, INFOS)
            at_actions = piece.steps[path][: piece.num_actions]
            dataset.append(piece.with_last_observation(path) if has_next else at_actions)
        for dataset in self._ends.values():
            dataset.append(np.zeros(piece.num_actions, bool))

    def _end_episode(self, num_actions: int, is_terminal: bool) -> None:
        self._group.attrs[TOTAL_STEPS] = num_actions
        name = TERMINATIONS if is_terminal else TRUNCATIONS
        if name in self._ends:
            self._ends[name].replace_last(True)
        for dataset in (*self._rows.values(), *self._ends.values()):
            dataset.close()

    def _complete(self) -> None:
        super()._complete()
        self._write_metadata()

    def _write_metadata(self) -> None:
        """Writes `metadata.json` with everything that Minari requires."""
        try:
            stated = json.loads(self._schema.info.environment or "{}")
        except ValueError:
            stated = {}
        stated = stated if isinstance(stated, dict) else {}
        spaces = {
            f"{kind}_space": stated.get(f"{kind}_space")
            or _space(_tree({p: f for p, f in self._schema.steps.items() if is_within(p, kind)}, kind))
            for kind in (OBSERVATION, ACTION)
        }
        size = sum(file.stat().st_size for file in self._staged.partial.iterdir())
        metadata: dict[str, Any] = {
            **{key: value for key, value in stated.items() if key in _KEPT and isinstance(value, str)},
            **{key: json.dumps(space) for key, space in spaces.items()},
            "minari_version": _VERSION,
            "dataset_id": _dataset_id(self._dest),
            TOTAL_EPISODES: self._num_begun,
            TOTAL_STEPS: self.num_actions,
            "data_format": "hdf5",
            "jpeg_encoding": False,
            "dataset_size": round(size / 1e6, 1),
            "description": self._schema.info.description,
        }
        if isinstance(stated.get("env_spec"), dict):
            metadata["env_spec"] = json.dumps(stated["env_spec"])
        (self._staged.partial / METADATA).write_text(json.dumps(metadata))


def _dataset_id(dest: pathlib.Path) -> str:
    """Returns the id of a dataset: its path below Minari's folder of datasets, or its name if it is elsewhere."""
    root = pathlib.Path(os.environ.get("MINARI_DATASETS_PATH") or pathlib.Path.home() / ".minari" / "datasets")
    try:
        return dest.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        return dest.name


def _target(path: str) -> str:
    """Returns the path of a step field in an episode's group; "" if the layout does not store it."""
    if path == DISCOUNT or path in FLAGS:
        return ""
    for name, field in STEP_FIELDS.items():
        if is_within(path, field):
            return name + path.removeprefix(field)
    return path if path in _ENDS or is_within(path, INFOS) else f"{INFOS}/{path}"


def _tree(fields: Mapping[str, Field], prefix: str) -> Any:
    """Returns the fields below a prefix as nested dicts; the field itself if the prefix is its path."""
    if prefix in fields:
        return fields[prefix]
    names = dict.fromkeys(path.removeprefix(f"{prefix}/").split("/")[0] for path in fields)
    below = {name: {p: f for p, f in fields.items() if is_within(p, f"{prefix}/{name}")} for name in names}
    return {name: _tree(of, f"{prefix}/{name}") for name, of in below.items()}


def _space(tree: Any) -> dict[str, Any]:
    """Returns a space in Minari's JSON."""
    if isinstance(tree, dict):
        inner = {name: _space(of) for name, of in tree.items()}
        if inner and all(name == f"{TUPLE_ITEM_PREFIX}{i}" for i, name in enumerate(sorted(inner))):
            return {"type": "Tuple", "subspaces": [inner[f"{TUPLE_ITEM_PREFIX}{i}"] for i in range(len(inner))]}
        return {"type": "Dict", "subspaces": inner}
    field: Field = tree
    if field.dtype == BYTES:
        return {"type": "Text", "max_length": 1 << 20, "min_length": 0, "charset": ""}
    shape = [d or 0 for d in field.shape]
    if field.dtype.kind == "f":
        low, high = -np.inf, np.inf
    else:
        limits = (0, 1) if field.dtype == bool else (np.iinfo(field.dtype).min, np.iinfo(field.dtype).max)
        low, high = map(float, limits)
    return {
        "type": "Box",
        "dtype": field.dtype.name,
        "shape": shape,
        "low": np.full(shape, low).tolist(),
        "high": np.full(shape, high).tolist(),
    }
