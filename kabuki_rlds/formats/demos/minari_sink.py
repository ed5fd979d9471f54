"""To Minari's layout in HDF5, which `minari.load_dataset` reads: a folder `<id>/data`.

* Where no observation follows the last action, the last one is repeated.
* `episode_<i>` has T + 1 `observations` and T `actions`, `rewards`, `terminations` and `truncations`.
  The last action is a termination where the episode's last row is terminal, and else a truncation,
  unless there are step fields of these names. `infos/…` are the step fields below `infos`, T + 1 rows
  each; all other step fields go there too.
* A group of `_index_<i>` is a tuple, any other a dict.
* Spaces are those of the file's `environment`, where it came from Minari; else a Box of any value for each field,
  (0, 255) for uint8, and text. Images are stored as they are, and not as JPEG.
* What an episode says of itself are attributes of its group.
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

from kabuki_rlds.data.rules import ACTION, DISCOUNT, FLAGS, OBSERVATION, REWARD
from kabuki_rlds.data.schema import BYTES, Field, is_within
from kabuki_rlds.errors import InvalidArgumentError
from kabuki_rlds.files.atomic_folder import StagedFolder
from kabuki_rlds.formats.demos.demo_sink import DatasetAppender, DemoSink, EpisodePiece

_ENDS = ("terminations", "truncations")
#: The names of datasets that Minari accepts.
_NAME = re.compile(r"[\w-]+-v\d+")
_BOOL = Field(np.dtype(bool))
#: Whose form the files have. Minari reads those of the versions that it knows.
_VERSION = "0.5.4"
#: What a dataset that came from Minari says of itself beside its spaces.
_KEPT = ("author", "author_email", "algorithm_name", "code_permalink")


class MinariSink(DemoSink):
    """Writes a folder in Minari's layout."""

    layout = "Minari"
    needs_last_observation = True

    def _stage(self, overwrite: bool) -> tuple[StagedFolder, pathlib.Path]:
        if not _NAME.fullmatch(self._dest.name):
            raise InvalidArgumentError(f"{self._dest}: Minari takes a dataset by a folder of a name like hopper-v0")
        staged = StagedFolder(self._dest / "data", overwrite=overwrite, mark="metadata.json", what="Minari dataset")
        return staged, staged.partial / "main_data.hdf5"

    def _begin(self, file: h5py.File) -> None:
        self._check_fields(_target)
        self._root = file

    def _begin_episode(self, piece: EpisodePiece) -> None:
        self._group = self._root.create_group(f"episode_{piece.episode}")
        steps = self._schema.steps
        self._rows = {p: DatasetAppender(self._group, _target(p), f) for p, f in steps.items() if _target(p)}
        self._ends = {name: DatasetAppender(self._group, name, _BOOL) for name in _ENDS if name not in steps}
        self._group.attrs["id"] = piece.episode
        for path, value in piece.metadata.items():
            key = path.removeprefix("attributes/")
            if key not in ("id", "total_steps"):
                self._group.attrs[key] = value.decode(errors="replace") if isinstance(value, bytes) else value

    def _append(self, piece: EpisodePiece) -> None:
        for path, dataset in self._rows.items():
            has_next = _target(path).split("/")[0] in ("observations", "infos")
            of_actions = piece.steps[path][: piece.num_actions]
            dataset.append(piece.with_last_observation(path) if has_next else of_actions)
        for dataset in self._ends.values():
            dataset.append(np.zeros(piece.num_actions, bool))

    def _end_episode(self, num_actions: int, is_terminal: bool) -> None:
        self._group.attrs["total_steps"] = num_actions
        name = "terminations" if is_terminal else "truncations"
        if name in self._ends:
            self._ends[name].replace_last(True)

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
            "total_episodes": self._num_begun,
            "total_steps": self.num_actions,
            "data_format": "hdf5",
            "jpeg_encoding": False,
            "dataset_size": round(size / 1e6, 1),
            "description": self._schema.info.description,
        }
        if isinstance(stated.get("env_spec"), dict):
            metadata["env_spec"] = json.dumps(stated["env_spec"])
        (self._staged.partial / "metadata.json").write_text(json.dumps(metadata))


def _dataset_id(dest: pathlib.Path) -> str:
    """The id of a dataset: its path below Minari's folder of datasets, else its name."""
    root = pathlib.Path(os.environ.get("MINARI_DATASETS_PATH") or pathlib.Path.home() / ".minari" / "datasets")
    try:
        return dest.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        return dest.name


def _target(path: str) -> str:
    """Where a step field stands in an episode's group; "" where the layout says it by its form."""
    if path == DISCOUNT or path in FLAGS:
        return ""
    for ours, theirs in ((OBSERVATION, "observations"), (ACTION, "actions"), (REWARD, "rewards")):
        if is_within(path, ours):
            return theirs + path.removeprefix(ours)
    return path if path in _ENDS or is_within(path, "infos") else f"infos/{path}"


def _tree(fields: Mapping[str, Field], prefix: str) -> Any:
    """The fields below a prefix as a dict of dicts; the field itself where it is one."""
    if prefix in fields:
        return fields[prefix]
    names = dict.fromkeys(path.removeprefix(f"{prefix}/").split("/")[0] for path in fields)
    below = {name: {p: f for p, f in fields.items() if is_within(p, f"{prefix}/{name}")} for name in names}
    return {name: _tree(of, f"{prefix}/{name}") for name, of in below.items()}


def _space(tree: Any) -> dict[str, Any]:
    """A space as Minari's JSON has it."""
    if isinstance(tree, dict):
        inner = {name: _space(of) for name, of in tree.items()}
        if inner and all(name == f"_index_{i}" for i, name in enumerate(sorted(inner))):
            return {"type": "Tuple", "subspaces": [inner[f"_index_{i}"] for i in range(len(inner))]}
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
