"""Reads demonstrations in robomimic's layout, which several other projects use too.

`data/demo_<i>` holds the T actions of a demonstration, and other datasets of T rows. `obs/<k>` holds the T observations
before the actions. `next_obs/<k>`, if present, holds the T observations after them. (Source: robomimic's documentation
of its datasets.)

Rules:

* Order. Demonstrations are ordered by number. Numbers may have gaps.
* Step fields. `obs/<k>` becomes `observation/<k>`, `actions` becomes `action`, and `rewards` becomes `reward`.
  `states`, `dones` and every other dataset with T rows in all demonstrations keep their names.
* Episode fields. A dataset that has another number of rows in one demonstration, or is missing in one, becomes the
  episode field `attributes/<k>` in all.
* Last row. With `next_obs`, an episode has T + 1 rows: the last observation is the last row of `next_obs`, and the
  other fields are padded with zeros. The other rows of `next_obs` must equal `obs` one row later, and are not stored
  twice. Without `next_obs`, an episode has T rows, and the last row is a step (`last_is_step`).
  `last_observation=repeat` adds a row that repeats the last observation.
* `is_terminal` can only be true in the last row. The assumption `dones` states the meaning of the dataset `dones`,
  which depends on how the file was made:
  - "terminal" (default): the episode terminated if the last `dones` is true.
  - "reward": it terminated if the last `dones` is true and the last reward is above 0.
  - "end": `dones` only marks the end of the recording, so no episode terminated.
  Without `dones`, Isaac Lab's attribute `success` says whether a demonstration terminated. MimicGen's files
  (`datagen_info`) contain only successful demonstrations, so all terminated. Otherwise all were truncated. `dones`
  itself is kept as a step field.
* `is_first`, `is_last` and `discount` are derived.
* Image files are detected by their content, in any of the forms in `formats.hdf5.image_files`.
* A file without `rewards` has no reward. `--fill reward=0` adds one.

Episode fields: `attributes/…` (`model_file`, `ep_meta`, …) are the attributes of a demonstration's group and of all
items in it. `file/…` (`env_args`, …) are the attributes of `data` and of the file. `mask/<key>` says whether the mask
lists the demonstration; each mask is a split too. `episode` is the name of the group, and `file_path` the file. A
warning lists other items of the file and of `data`, which are not read.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Collection, Iterator, Mapping

import h5py
import numpy as np

from kabuki_rlds.arguments import argument
from kabuki_rlds.data.schema import Info
from kabuki_rlds.errors import DamagedDataError, KabukiError
from kabuki_rlds.formats.demos.assumptions import LAST_OBSERVATION, Assumptions, repeats_last_observation
from kabuki_rlds.formats.demos.demo_episode import (
    DemoEpisode,
    EmptyEpisodeError,
    UnreadableEpisode,
    check_count,
    episode_or_error,
)
from kabuki_rlds.formats.demos.hdf5_layout import Hdf5EpisodeLayout, numbered_groups, numbered_names
from kabuki_rlds.formats.demos.hdf5_values import (
    all_datasets,
    check_num_rows,
    is_true,
    num_rows,
    read_all_attributes,
    read_attributes,
    read_metadata_value,
    read_value,
    warn_of_unknown_members,
)
from kabuki_rlds.formats.demos.row_readers import (
    LastRowValue,
    ObservationRows,
    RowReader,
    StoredRows,
    is_terminal_rows,
)
from kabuki_rlds.formats.hdf5 import layout
from kabuki_rlds.formats.safe_hdf5.attributes import Attributes

#: Names of groups, datasets and attributes in the layout.
DATA = "data"
DEMO_PREFIX = "demo_"
OBS = "obs"
NEXT_OBS = "next_obs"
ACTIONS = "actions"
REWARDS = "rewards"
DONES = "dones"
STATES = "states"
MASK = "mask"
ENV_ARGS = "env_args"
NUM_SAMPLES = "num_samples"
TOTAL = "total"
NUM_DEMOS = "num_demos"

#: Datasets that must have a row per action, besides the observations.
_PER_ACTION = (REWARDS, DONES, STATES)
#: Name of a dataset to the path of its step field. Other names are kept.
STEP_FIELDS = {ACTIONS: "action", REWARDS: "reward"}


class Robomimic(Hdf5EpisodeLayout):
    """robomimic's layout."""

    name = "robomimic"
    assumptions: Mapping[str, tuple[str, ...]] = {
        "dones": ("terminal", "reward", "end"),
        "last_observation": LAST_OBSERVATION,
        "next_obs": ("shifted", "keep"),
    }

    def recognises(self, file: h5py.File) -> bool:
        return any(ACTIONS in group for _, group in demonstrations(file))

    def unknown_fields(self, file: h5py.File) -> Iterator[tuple[set[str], set[str]]]:
        warn_of_unknown_members(file, {DATA, MASK})
        warn_of_unknown_members(file[DATA], set(numbered_names(file[DATA], DEMO_PREFIX)))
        for name, group in demonstrations(file):
            fields = all_datasets(group, f"{DATA}/{name}", skip=(OBS, NEXT_OBS, ACTIONS, *_PER_ACTION))
            count = num_actions(group)
            if count:
                yield set(fields), {path for path, dataset in fields.items() if num_rows(dataset) == count}

    def episodes(
        self, file: h5py.File, assume: Assumptions, episode_fields: Collection[str]
    ) -> Iterator[DemoEpisode | UnreadableEpisode]:
        file_fields = {
            **read_attributes(file, "file"),
            **read_attributes(file[DATA], "file"),
            "file_path": file.filename,
        }
        names = numbered_names(file[DATA], DEMO_PREFIX)
        masks = _masks(file, names)
        total = 0
        for name, group in demonstrations(file):
            total += num_actions(group) or 0
            read = functools.partial(self._episode, name, group, assume, episode_fields)
            found = episode_or_error(f"{DATA}/{name}", read)
            if isinstance(found, DemoEpisode):
                mask_fields = {f"{MASK}/{key}": np.bool_(name in listed) for key, listed in masks.items()}
                found = dataclasses.replace(
                    found,
                    metadata={**found.metadata, **file_fields, **mask_fields, "episode": name},
                    masks=frozenset(key for key, listed in masks.items() if name in listed),
                )
            yield found
        stated = Attributes(file[DATA])
        for key, count in ((NUM_DEMOS, len(names)), (TOTAL, total)):
            check_count(file.filename, key, stated.get(key, count), count, of_episodes=key == NUM_DEMOS, group=DATA)

    def info(self, file: h5py.File) -> Info:
        return Info(environment=_valid_json(layout.text_attribute(file[DATA], ENV_ARGS)))

    def why_inapplicable(self, file: h5py.File, name: str, value: str) -> str:
        if name == "dones" and value != "end" and not any(DONES in group for _, group in demonstrations(file)):
            return "no demonstration has dones"
        if name == "next_obs" and not any(NEXT_OBS in group for _, group in demonstrations(file)):
            return "no demonstration has next_obs"
        if name == "last_observation" and all(NEXT_OBS in group for _, group in demonstrations(file)):
            return "next_obs have the last observation"
        return ""

    def terminated(self, group: h5py.Group, assume: Assumptions) -> bool:
        """Returns whether a demonstration terminated."""
        dones = group.get(DONES)
        if dones is None and assume["dones"] != "end":
            # MimicGen keeps only successful demonstrations. Isaac Lab marks them.
            return "datagen_info" in group or layout.flag_attribute(group, "success", False)
        if assume["dones"] == "end" or not isinstance(dones, h5py.Dataset) or not dones.shape or not len(dones):
            return False
        is_done = is_true(dones, -1)
        if assume["dones"] == "terminal":
            return is_done
        rewards = group.get(REWARDS)
        if not isinstance(rewards, h5py.Dataset) or not rewards.shape or rewards.dtype.kind not in "biuf":
            raise KabukiError(f"{group.file.filename}: {group.name[1:]}: no rewards, which dones=reward goes by")
        return is_done and bool(np.any(rewards[-1:] > 0))

    def _episode(
        self, name: str, group: h5py.Group, assume: Assumptions, episode_fields: Collection[str]
    ) -> DemoEpisode:
        file, label = group.file.filename, f"{DATA}/{name}"
        datasets = all_datasets(group, label)
        count = num_actions(group) or 0
        stated = Attributes(group).get(NUM_SAMPLES, count)
        if not count:
            per_step = (d for path, d in datasets.items() if path.partition("/")[0] in (OBS, NEXT_OBS, *_PER_ACTION))
            is_empty = np.array_equal(stated, 0) and not any(num_rows(dataset) for dataset in per_step)
            if is_empty:
                raise EmptyEpisodeError(f"{file}: {label}: no actions, so no steps")
            raise DamagedDataError(f"{label}: no actions, so no steps", file=file)
        if not np.array_equal(stated, count):
            raise DamagedDataError(f"{label}: says {NUM_SAMPLES} {stated}, but has {count} actions", file=file)
        terminated = self.terminated(group, assume)
        following = _below(datasets, NEXT_OBS)
        observed = _below(datasets, OBS)
        if following and set(following) != set(observed):
            odd = sorted(set(following) ^ set(observed))[0]
            raise DamagedDataError(f"{label}: {odd!r} is in only one of obs and next_obs", file=file)
        keeps_next_obs = assume.get("next_obs") == "keep"
        has_last_row = bool(following) or repeats_last_observation(assume)
        padding: LastRowValue = "zero" if has_last_row else ""
        steps: dict[str, RowReader] = {}
        metadata = read_all_attributes(group, datasets, "attributes")
        for path, dataset in datasets.items():
            if path.startswith(f"{NEXT_OBS}/") and not keeps_next_obs:
                continue
            if path in episode_fields:
                metadata[f"attributes/{path}"] = read_metadata_value(dataset)
                continue
            check_num_rows(dataset, path, count, label)
            if not path.startswith(f"{OBS}/"):
                steps[STEP_FIELDS.get(path, path)] = StoredRows(dataset, padding)
                continue
            key = path.removeprefix(f"{OBS}/")
            remedy = "" if keeps_next_obs else f"{argument('assume', {'next_obs': 'keep'})} keeps both"
            steps[f"observation/{key}"] = (
                ObservationRows(dataset, following[key], remedy)
                if following
                else StoredRows(dataset, "repeat" if has_last_row else "")
            )
        length = count + has_last_row
        steps["is_terminal"] = is_terminal_rows(length, terminated)
        return DemoEpisode(label, length, steps, metadata, last_is_step=not has_last_row)


def demonstrations(file: h5py.File) -> Iterator[tuple[str, h5py.Group]]:
    """Yields (name, group) of the demonstrations of a file, in numeric order."""
    data = file.get(DATA)
    if isinstance(data, h5py.Group):
        yield from numbered_groups(data, DEMO_PREFIX)


def num_actions(group: h5py.Group) -> int | None:
    """Returns the number of actions of a demonstration; None if it has no such dataset."""
    actions = group.get(ACTIONS)
    return num_rows(actions) if isinstance(actions, h5py.Dataset) else None


def _below(datasets: Mapping[str, h5py.Dataset], group: str) -> dict[str, h5py.Dataset]:
    """Returns the datasets below a group, by their path in it."""
    return {path.removeprefix(f"{group}/"): d for path, d in datasets.items() if path.startswith(f"{group}/")}


def _masks(file: h5py.File, names: list[str]) -> dict[str, set[str]]:
    """Returns the name of each mask, and the names of the demonstrations that it lists.

    Raises:
      KabukiError: a mask is not a list, or lists a demonstration that does not exist.
    """
    group = file.get(MASK)
    found: dict[str, set[str]] = {}
    for key, dataset in (all_datasets(group, MASK) if isinstance(group, h5py.Group) else {}).items():
        if dataset.ndim != 1:
            raise DamagedDataError(f"mask/{key} is no list of demonstrations", file=file.filename)
        listed = [
            name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in read_value(dataset)
        ]
        unknown = sorted(set(listed) - set(names))
        if unknown:
            raise DamagedDataError(f"mask/{key} lists {unknown[0]!r}, which data does not hold", file=file.filename)
        found[key] = set(listed)
    return found


def _valid_json(text: str) -> str:
    """Returns the text if it is JSON, else ""."""
    try:
        json.loads(text or "null")
    except (ValueError, RecursionError):
        return ""
    return text
