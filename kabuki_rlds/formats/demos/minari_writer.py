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
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import numpy as np

from kabuki_rlds.data.rules import ACTION, DISCOUNT, FLAGS, IS_TERMINAL, OBSERVATION, REWARD
from kabuki_rlds.data.schema import BYTES, Field, Schema, is_within
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.formats.demos.episode_pieces import DatasetAppender, EpisodePiece, check_plain

_ENDS = ("terminations", "truncations")
_BOOL = Field(np.dtype(bool))
#: Whose form the files have. Minari reads those of the versions that it knows.
_VERSION = "0.5.4"
#: What a dataset that came from Minari says of itself beside its spaces.
_KEPT = ("author", "author_email", "algorithm_name", "code_permalink")


def write(
    file: h5py.File, episodes: Iterator[EpisodePiece], schema: Schema, label: str, has_next: bool
) -> tuple[int, int]:
    """Writes the episodes, and returns how many, and how many actions they have.

    Raises:
      KabukiError: an episode has no action, or a field no form in the layout.
    """
    check_plain(schema, label, "Minari", _target)
    count = actions = 0
    for piece in episodes:
        if piece.begins:
            group = file.create_group(f"episode_{piece.episode}")
            rows = {path: DatasetAppender(group, _target(path), f) for path, f in schema.steps.items() if _target(path)}
            ends = {name: DatasetAppender(group, name, _BOOL) for name in _ENDS if name not in schema.steps}
            before = actions
            group.attrs["id"] = piece.episode
            for path, value in piece.metadata.items():
                key = path.removeprefix("attributes/")
                if key not in ("id", "total_steps"):
                    group.attrs[key] = value.decode(errors="replace") if isinstance(value, bytes) else value
        taken = piece.num_actions
        for path, dataset in rows.items():
            whole = _target(path).split("/")[0] in ("observations", "infos")
            dataset.append(piece.with_last_observation(path) if whole else piece.steps[path][:taken])
        for flags in ends.values():
            flags.append(np.zeros(taken, bool))
        actions += taken
        if piece.ends:
            if actions == before:
                raise KabukiError(f"{label}: episode {piece.episode} has no action, and Minari's layout no form for it")
            group.attrs["total_steps"] = actions - before
            terminal = bool(np.any(piece.steps[IS_TERMINAL][-1]))
            name = "terminations" if terminal else "truncations"
            if name in ends:
                group[name][-1] = True
            count += 1
    return count, actions


def write_metadata(folder: pathlib.Path, name: str, schema: Schema, episodes: int, actions: int) -> None:
    """Writes `metadata.json` beside the file, with all that Minari asks for."""
    try:
        stated = json.loads(schema.info.environment or "{}")
    except ValueError:
        stated = {}
    stated = stated if isinstance(stated, dict) else {}
    spaces = {
        f"{kind}_space": stated.get(f"{kind}_space")
        or _space(_tree({p: f for p, f in schema.steps.items() if is_within(p, kind)}, kind))
        for kind in (OBSERVATION, ACTION)
    }
    size = sum(file.stat().st_size for file in folder.iterdir())
    metadata: dict[str, Any] = {
        **{key: value for key, value in stated.items() if key in _KEPT and isinstance(value, str)},
        **{key: json.dumps(space) for key, space in spaces.items()},
        "minari_version": _VERSION,
        "dataset_id": name,
        "total_episodes": episodes,
        "total_steps": actions,
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "dataset_size": round(size / 1e6, 1),
        "description": schema.info.description,
    }
    if isinstance(stated.get("env_spec"), dict):
        metadata["env_spec"] = json.dumps(stated["env_spec"])
    (folder / "metadata.json").write_text(json.dumps(metadata))


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
