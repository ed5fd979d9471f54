"""Minari's datasets in HDF5: `<id>/data/main_data.hdf5`, with `metadata.json` beside it.

`episode_<i>` holds T `actions`, `rewards`, `terminations` and `truncations`, T + 1 `observations`,
and `infos/…` of T + 1 or T rows. A dict is a group, a tuple one of `_index_<i>`. (Source:
Minari's `hdf5_storage.py`, versions 0.4 and 0.5.)

Rule by rule:

* Rows. `observations` becomes `observation`, `actions` `action`, `rewards` `reward`; `infos/…`,
  `terminations` and `truncations` keep their names. An episode has T + 1 rows: the last has the
  last observation, and zeros for what belongs to an action.
* `is_terminal` at the last row where the last `terminations` is true; else the episode was cut
  short.
* `is_first`, `is_last` and `discount` are derived. Nothing else is filled in, and nothing can
  be assumed.
* Image files (JPEG, since Minari 0.5.3) are found by their content. They are read as (height, width,
  channels), gray ones too, whose space may be (height, width). If an image is an action, the last
  row repeats the one before.

Of an episode: `attributes/…` are the attributes of its group (`id`, `seed`, `options/…`, …),
`file_path` its file. Where only some have one, as `seed`, the others get a zero and a warning.
`environment` is `metadata.json`, with the specification of the environment and its spaces, and
the attributes of the file, where versions before 0.5 had them.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import h5py
import numpy as np

from kabuki_rlds.data.schema import Info
from kabuki_rlds.errors import DamagedDataError
from kabuki_rlds.files.placeholders import check_is_data
from kabuki_rlds.formats.demos.demo_episode import (
    DemoEpisode,
    EmptyEpisodeError,
    RowReader,
    StoredRows,
    UnreadableEpisode,
    as_json,
    attempt,
    attributes,
    attributes_within,
    fields_of,
    is_true,
    rows_of,
    warn_of_rest,
)
from kabuki_rlds.formats.demos.robomimic import ends
from kabuki_rlds.formats.demos.source import Assumptions, Hdf5Files
from kabuki_rlds.formats.safe_hdf5.attributes import Attributes

#: What stands beside the data.
METADATA = "metadata.json"
#: No one counts further, and Python reads no number of thousands of digits.
_EPISODE = re.compile(r"episode_(\d{1,18})")
#: What becomes of the names of columns.
NAMES = {"observations": "observation", "actions": "action", "rewards": "reward"}
#: The largest `metadata.json` that is read.
_MAX_METADATA_BYTES = 16 << 20


class Minari(Hdf5Files):
    """Minari's layout."""

    name = "minari"
    assumptions: Mapping[str, tuple[str, ...]] = {}

    def recognises(self, file: h5py.File) -> bool:
        return any("terminations" in group and "observations" in group for _, group in _groups(file)[:1])

    def extras(self, file: h5py.File) -> Iterator[tuple[set[str], set[str]]]:
        warn_of_rest(file, {name for name, _ in _groups(file)})
        yield from ()

    def episodes(
        self, file: h5py.File, assume: Assumptions, of_episode: Collection[str]
    ) -> Iterator[DemoEpisode | UnreadableEpisode]:
        groups = _groups(file)
        stated = read_metadata(pathlib.Path(file.filename).parent)
        of_file = {name: value for name, value in _of_file(file).items() if name not in stated}
        steps: int | None = 0
        for name, group in groups:
            found = attempt(name, functools.partial(_episode, name, group))
            steps = add_steps(steps, found)
            yield found
        check_counts(pathlib.Path(file.filename).parent / METADATA, stated, len(groups), steps)
        check_counts(file.filename, of_file, len(groups), steps)

    def info(self, file: h5py.File) -> Info:
        return info_of({**_of_file(file), **read_metadata(pathlib.Path(file.filename).parent)})


def add_steps(steps: int | None, found: DemoEpisode | UnreadableEpisode) -> int | None:
    """The number of steps with those of one more episode; None if it is not known, since one cannot be read."""
    if steps is None or (isinstance(found, UnreadableEpisode) and not found.is_empty):
        return None
    return steps if isinstance(found, UnreadableEpisode) else steps + found.length - 1


def check_counts(label: str | os.PathLike[str], stated: Mapping[str, Any], episodes: int, steps: int | None) -> None:
    """Holds what is said of a dataset against what is there.

    Args:
      label: the file that says it.
      stated: what it says.
      episodes: how many there are.
      steps: how many they have; None if that is not known.

    Raises:
      KabukiError: it says other numbers.
    """
    for key, count in (("total_episodes", episodes), ("total_steps", steps)):
        if count is not None and stated.get(key, count) != count:
            raise DamagedDataError(f"says {key} {stated[key]}, but there are {count}", file=os.fspath(label))


def info_of(metadata: Mapping[str, Any]) -> Info:
    """What a dataset says of itself."""
    text = {key: value for key, value in metadata.items() if isinstance(value, str)}
    return Info(
        # Minari's names have a version at the end: D4RL/door/human-v2.
        name=re.sub(r"[^\w/]", "_", text.get("dataset_id", "")),
        description=text.get("description", ""),
        environment=json.dumps(metadata) if metadata else "",
    )


def _groups(file: h5py.File) -> list[tuple[str, h5py.Group]]:
    named = [(int(found[1]), name) for name in file if (found := _EPISODE.fullmatch(name))]
    groups = [(name, file.get(name)) for _, name in sorted(named)]
    return [(name, group) for name, group in groups if isinstance(group, h5py.Group)]


def _of_file(file: h5py.File) -> dict[str, Any]:
    """What the attributes of the file say of all episodes, as before Minari 0.5 had `metadata.json`."""
    return {path.removeprefix("/"): as_json(value) for path, value in attributes(file, "").items()}


def read_metadata(folder: pathlib.Path) -> dict[str, Any]:
    """What the `metadata.json` of a folder says, if it is there; spaces and the like as JSON and not as its text.

    Raises:
      KabukiError: it cannot be read.
    """
    path = folder / METADATA
    if not path.is_file():
        return {}
    check_is_data(path, may_be_text=True)
    try:
        if path.stat().st_size > _MAX_METADATA_BYTES:
            raise ValueError("it is too large")
        stated = json.loads(path.read_text())
        if not isinstance(stated, dict):
            raise ValueError("it is no dict")
        for key in ("observation_space", "action_space", "env_spec", "eval_env_spec"):
            if isinstance(stated.get(key), str):
                stated[key] = json.loads(stated[key])
    except (OSError, ValueError, RecursionError) as e:
        raise DamagedDataError(f"cannot be read: {e}", file=path) from e
    return stated


def _is_empty(fields: Mapping[str, h5py.Dataset]) -> bool:
    """Whether an episode has no steps, of which there may be an observation before the first."""
    rows = {path: rows_of(dataset) or 0 for path, dataset in fields.items()}
    return all(count <= (path.partition("/")[0] in ("observations", "infos")) for path, count in rows.items())


def _episode(name: str, group: h5py.Group) -> DemoEpisode:
    file = group.file.filename
    fields = fields_of(group, name)
    terminations = fields.get("terminations")
    if np.array_equal(Attributes(group).get("total_steps", 0), 0) and _is_empty(fields):
        raise EmptyEpisodeError(f"{file}: {name}: no terminations, so no steps")
    if terminations is None or terminations.ndim != 1 or not len(terminations):
        raise DamagedDataError(f"{name}: no terminations, one a step", file=file)
    count = len(terminations)
    stated = Attributes(group).get("total_steps", count)
    if not np.array_equal(stated, count):
        raise DamagedDataError(f"{name}: says total_steps {stated}, but has {count} terminations", file=file)
    steps: dict[str, RowReader] = {}
    for path, dataset in fields.items():
        first, _, rest = path.partition("/")
        rows = rows_of(dataset)
        whole = rows == count + 1 and first in ("observations", "infos")
        if not whole and (rows != count or first == "observations"):
            raise DamagedDataError(
                f"{name}/{path}: {rows or 'no'} rows, where there are {count} steps", file=file, field=path
            )
        target = "/".join(filter(None, (NAMES.get(first, first), rest)))
        steps[target] = StoredRows(dataset, "" if whole else "zero")
    steps["is_terminal"] = ends(count + 1, is_true(terminations, -1))
    metadata: dict[str, str | bytes | np.generic | np.ndarray] = {
        **attributes_within(group, fields, "attributes"),
        "file_path": group.file.filename,
    }
    return DemoEpisode(name, count + 1, steps, metadata)
