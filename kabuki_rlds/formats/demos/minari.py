"""Reads Minari's datasets in HDF5: `<id>/data/main_data.hdf5`, with `metadata.json` next to it.

`episode_<i>` holds `actions`, `rewards`, `terminations` and `truncations` of T rows, `observations` of T + 1 rows, and
`infos/…` of T + 1 or T rows. A dict is a group, and a tuple a group of `_index_<i>`. (Source: Minari's
`hdf5_storage.py`, versions 0.4 and 0.5.)

Rules:

* Step fields. `observations` becomes `observation`, `actions` becomes `action`, and `rewards` becomes `reward`.
  `infos/…`, `terminations` and `truncations` keep their names.
* An episode has T + 1 rows. The last row has the last observation, and zeros in the fields that belong to an action.
* `is_terminal` is true in the last row if the last `terminations` is true. Otherwise the episode was truncated.
* `is_first`, `is_last` and `discount` are derived. There are no assumptions.
* Image files (JPEG, since Minari 0.5.3) are detected by their content. They have shape (height, width, channels), also
  where a gray image's space is (height, width). If actions are images, the last row repeats the row before.

Episode fields: `attributes/…` are the attributes of the episode's group (`id`, `seed`, `options/…`, …). `file_path` is
the file. An attribute that only some episodes have, such as `seed`, is 0 or empty in the others, with a warning.
`environment` is `metadata.json`, which has the environment's specification and its spaces, and the attributes of the
file, which held them before version 0.5.
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

from kabuki_rlds.data.limits import MAX_JSON_BYTES
from kabuki_rlds.data.schema import Info
from kabuki_rlds.errors import DamagedDataError
from kabuki_rlds.files.placeholders import check_is_data
from kabuki_rlds.files.side_files import read_side_file
from kabuki_rlds.formats.demos.assumptions import Assumptions
from kabuki_rlds.formats.demos.demo_episode import (
    DemoEpisode,
    EmptyEpisodeError,
    UnreadableEpisode,
    check_count,
    episode_or_error,
)
from kabuki_rlds.formats.demos.hdf5_layout import Hdf5EpisodeLayout, numbered_groups, numbered_names
from kabuki_rlds.formats.demos.hdf5_values import (
    MetadataValue,
    all_datasets,
    as_json,
    is_true,
    num_rows,
    read_all_attributes,
    read_attributes,
    warn_of_unknown_members,
)
from kabuki_rlds.formats.demos.row_readers import RowReader, StoredRows, is_terminal_rows
from kabuki_rlds.formats.safe_hdf5.attributes import Attributes

#: Names of files, groups, datasets, attributes and keys in the layout.
METADATA = "metadata.json"
MAIN_DATA = "main_data.hdf5"
EPISODE_PREFIX = "episode_"
OBSERVATIONS = "observations"
ACTIONS = "actions"
REWARDS = "rewards"
TERMINATIONS = "terminations"
TRUNCATIONS = "truncations"
INFOS = "infos"
TUPLE_ITEM_PREFIX = "_index_"
TOTAL_EPISODES = "total_episodes"
TOTAL_STEPS = "total_steps"
OBSERVATION_SPACE = "observation_space"
ACTION_SPACE = "action_space"

#: Name of a dataset to the first part of the path of its step field. Other names are kept.
STEP_FIELDS = {OBSERVATIONS: "observation", ACTIONS: "action", REWARDS: "reward"}


class Minari(Hdf5EpisodeLayout):
    """Minari's HDF5 layout."""

    name = "minari"
    assumptions: Mapping[str, tuple[str, ...]] = {}

    def recognises(self, file: h5py.File) -> bool:
        first = next(numbered_groups(file, EPISODE_PREFIX), None)
        return first is not None and TERMINATIONS in first[1] and OBSERVATIONS in first[1]

    def unknown_fields(self, file: h5py.File) -> Iterator[tuple[set[str], set[str]]]:
        warn_of_unknown_members(file, set(numbered_names(file, EPISODE_PREFIX)))
        yield from ()

    def episodes(
        self, file: h5py.File, assume: Assumptions, episode_fields: Collection[str]
    ) -> Iterator[DemoEpisode | UnreadableEpisode]:
        folder = pathlib.Path(file.filename).parent
        metadata = read_metadata(folder)
        attributes = {name: value for name, value in _file_attributes(file).items() if name not in metadata}
        counter = StepCounter()
        for name, group in numbered_groups(file, EPISODE_PREFIX):
            yield counter.count(episode_or_error(name, functools.partial(_episode, name, group)))
        counter.check(folder / METADATA, metadata)
        counter.check(file.filename, attributes)

    def info(self, file: h5py.File) -> Info:
        return info_from_metadata({**_file_attributes(file), **read_metadata(pathlib.Path(file.filename).parent)})


class StepCounter:
    """Counts the episodes and steps of a dataset, to compare them with what its metadata states."""

    def __init__(self) -> None:
        self._num_episodes = 0
        self._num_steps = 0
        self._is_exact = True

    def count(self, episode: DemoEpisode | UnreadableEpisode) -> DemoEpisode | UnreadableEpisode:
        """Counts an episode, and returns it."""
        self._num_episodes += 1
        if isinstance(episode, DemoEpisode):
            self._num_steps += episode.length - 1
        elif not episode.is_empty:
            self._is_exact = False
        return episode

    def check(self, file: str | os.PathLike[str], stated: Mapping[str, Any]) -> None:
        """Compares the counts with stated ones. Steps are not compared if an episode could not be read.

        Args:
          file: the file that states them.
          stated: the stated metadata.

        Raises:
          CountMismatchError: they differ.
        """
        counts = {TOTAL_EPISODES: self._num_episodes}
        if self._is_exact:
            counts[TOTAL_STEPS] = self._num_steps
        for key, count in counts.items():
            of_episodes = key == TOTAL_EPISODES
            check_count(file, key, stated.get(key, count), count, of_episodes=of_episodes)


def info_from_metadata(metadata: Mapping[str, Any]) -> Info:
    """Returns the dataset's name, description and environment according to its metadata."""
    text = {key: value for key, value in metadata.items() if isinstance(value, str)}
    return Info(
        # Minari's names end with a version: D4RL/door/human-v2.
        name=re.sub(r"[^\w/]", "_", text.get("dataset_id", "")),
        description=text.get("description", ""),
        environment=json.dumps(metadata) if metadata else "",
    )


def _file_attributes(file: h5py.File) -> dict[str, Any]:
    """Returns the attributes of the file, which described the dataset before Minari 0.5 had `metadata.json`."""
    return {path.removeprefix("/"): as_json(value) for path, value in read_attributes(file, "").items()}


def read_metadata(folder: pathlib.Path) -> dict[str, Any]:
    """Reads the `metadata.json` of a folder. Spaces and specifications, which are JSON within it, are parsed too.

    Returns:
      its entries; none if there is no such file.

    Raises:
      KabukiError: it cannot be read.
    """
    path = folder / METADATA
    check_is_data(path, may_be_text=True)
    if not path.exists():
        return {}
    try:
        metadata = json.loads(read_side_file(path, MAX_JSON_BYTES))
        if not isinstance(metadata, dict):
            raise ValueError("it is no dict")
        for key in (OBSERVATION_SPACE, ACTION_SPACE, "env_spec", "eval_env_spec"):
            if isinstance(metadata.get(key), str):
                metadata[key] = json.loads(metadata[key])
    except (OSError, ValueError, RecursionError) as e:
        raise DamagedDataError(f"cannot be read: {e}", file=path) from e
    return metadata


def _is_empty(datasets: Mapping[str, h5py.Dataset]) -> bool:
    """Returns whether an episode has no steps. It may have an observation before the first step."""
    return all(
        (num_rows(dataset) or 0) <= (path.partition("/")[0] in (OBSERVATIONS, INFOS))
        for path, dataset in datasets.items()
    )


def _episode(name: str, group: h5py.Group) -> DemoEpisode:
    file = group.file.filename
    datasets = all_datasets(group, name)
    terminations = datasets.get(TERMINATIONS)
    if np.array_equal(Attributes(group).get(TOTAL_STEPS, 0), 0) and _is_empty(datasets):
        raise EmptyEpisodeError(f"{file}: {name}: no terminations, so no steps")
    if terminations is None or terminations.ndim != 1 or not len(terminations):
        raise DamagedDataError(f"{name}: no terminations, one a step", file=file)
    count = len(terminations)
    stated = Attributes(group).get(TOTAL_STEPS, count)
    if not np.array_equal(stated, count):
        raise DamagedDataError(f"{name}: says {TOTAL_STEPS} {stated}, but has {count} terminations", file=file)
    steps: dict[str, RowReader] = {}
    for path, dataset in datasets.items():
        first, _, rest = path.partition("/")
        rows = num_rows(dataset)
        has_last_row = rows == count + 1 and first in (OBSERVATIONS, INFOS)
        if not has_last_row and (rows != count or first == OBSERVATIONS):
            raise DamagedDataError(
                f"{name}/{path}: {rows or 'no'} rows, where there are {count} steps", file=file, field=path
            )
        field = "/".join(filter(None, (STEP_FIELDS.get(first, first), rest)))
        steps[field] = StoredRows(dataset, "" if has_last_row else "zero")
    steps["is_terminal"] = is_terminal_rows(count + 1, is_true(terminations, -1))
    metadata: dict[str, MetadataValue] = {
        **read_all_attributes(group, datasets, "attributes"),
        "file_path": file,
    }
    return DemoEpisode(name, count + 1, steps, metadata)
