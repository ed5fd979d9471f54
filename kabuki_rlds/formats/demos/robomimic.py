"""robomimic's demonstrations, and those of the projects that lay out theirs likewise.

`data/demo_<i>` holds the T actions of a demonstration and what came with them; `obs/<k>`
the T observations before them, and `next_obs/<k>`, where it is there, those after.
(Source: robomimic's documentation of its datasets.)

Rule by rule:

* Rows. `obs/<k>` becomes `observation/<k>`, `actions` `action`, `rewards` `reward`; `states`,
  `dones` and all else that has T rows in each demonstration stands under its own name. What
  has another number of rows in one of them, or is not in all, is of the episode in all:
  `attributes/<k>`. Demonstrations are in the order of their numbers, which may have gaps.
* The last row. With `next_obs`, the last row of `next_obs` is the last observation, and gets a
  row of its own. (The other rows of `next_obs` equal those of `obs` one later, and are not kept
  twice.) Without `next_obs`, T actions make T rows, and the last row is a step like the others
  (`last_is_step`). `last_observation=repeat` adds a row that repeats the last observation.
* `is_terminal`, at the last row alone. `dones` says what that field means, which depends on
  how the file was made: "terminal" (default): it is terminal where the last `dones` is true;
  "reward": where that is so and the last reward is above 0; "end": never, since `dones` says
  only where the recording ended. Without `dones`: Isaac Lab's attribute `success` tells whether
  a demonstration terminated; MimicGen (`datagen_info`) keeps successful demonstrations alone,
  so each terminated; all others are truncated. `dones` itself is kept.
* `is_first`, `is_last` and `discount` are derived.
* Image files are found by their content, in any form (`formats.hdf5.image_files`).
* A file without `rewards` has no reward: `--fill reward=0` is up to the user.

Of an episode: `attributes/…` (`model_file`, `ep_meta`, …) are the attributes of its group and of
what is in it, `file/…` (`env_args`, …) those of `data` and of the file; `mask/<key>` whether it is
in a mask, each of which is a split too; `episode` its name, `file_path` its file. What else stands
in the file or in `data` is left out, and a warning names it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Collection, Iterator, Mapping

import h5py
import numpy as np

from kabuki_rlds.data.schema import Info
from kabuki_rlds.errors import DamagedDataError, KabukiError
from kabuki_rlds.formats.demos.demo_episode import (
    DemoEpisode,
    EmptyEpisodeError,
    Final,
    FollowedRows,
    GivenRows,
    RowReader,
    StoredRows,
    UnreadableEpisode,
    attempt,
    attributes,
    attributes_within,
    fields_of,
    is_true,
    rows_of,
    value_of,
    warn_of_rest,
    whole,
)
from kabuki_rlds.formats.demos.source import Assumptions, Hdf5Files
from kabuki_rlds.formats.hdf5 import layout
from kabuki_rlds.formats.safe_hdf5.attributes import Attributes

#: No one counts further, and Python reads no number of thousands of digits.
_DEMO = re.compile(r"demo_(\d{1,18})")
#: What always has a row for each action, beside the observations.
_OF_STEPS = ("rewards", "dones", "states")
_STEP_NAMES = {"actions": "action", "rewards": "reward"}

#: What a user may say of an observation after the last action that the layout lacks: by default, it has no row.
LAST_OBSERVATION = ("", "repeat")


class Robomimic(Hdf5Files):
    """robomimic's layout."""

    name = "robomimic"
    assumptions: Mapping[str, tuple[str, ...]] = {
        "dones": ("terminal", "reward", "end"),
        "last_observation": LAST_OBSERVATION,
        "next_obs": ("shifted", "keep"),
    }

    def recognises(self, file: h5py.File) -> bool:
        return any("actions" in group for _, group in demonstrations(file))

    def extras(self, file: h5py.File) -> Iterator[tuple[set[str], set[str]]]:
        demos = demonstrations(file)
        warn_of_rest(file, {"data", "mask"})
        warn_of_rest(file["data"], {name for name, _ in demos})
        for name, group in demos:
            fields = fields_of(group, f"data/{name}", skip=("obs", "next_obs", "actions", *_OF_STEPS))
            count = num_actions(group)
            if count:
                yield set(fields), {path for path, dataset in fields.items() if rows_of(dataset) == count}

    def episodes(
        self, file: h5py.File, assume: Assumptions, of_episode: Collection[str]
    ) -> Iterator[DemoEpisode | UnreadableEpisode]:
        demos = demonstrations(file)
        check_count(file, "num_demos", len(demos))
        of_file = {**attributes(file, "file"), **attributes(file["data"], "file"), "file_path": file.filename}
        masks = _masks(file, [name for name, _ in demos])
        total = 0
        for name, group in demos:
            total += num_actions(group) or 0
            within = {f"mask/{key}": np.bool_(name in names) for key, names in masks.items()}
            in_masks = frozenset(key for key, names in masks.items() if name in names)
            read = functools.partial(self._episode, name, group, assume, of_episode)
            found = attempt(f"data/{name}", read, in_masks)
            if isinstance(found, DemoEpisode):
                metadata = {**found.metadata, **of_file, **within, "episode": name}
                found = dataclasses.replace(found, label=f"data/{name}", metadata=metadata, masks=in_masks)
            yield found
        check_count(file, "total", total)

    def info(self, file: h5py.File) -> Info:
        return Info(environment=_json(layout.text_attribute(file["data"], "env_args")))

    def why_not(self, file: h5py.File, name: str, value: str) -> str:
        groups = [group for _, group in demonstrations(file)]
        having = {name: [group for group in groups if name in group] for name in ("dones", "next_obs")}
        if name == "dones" and value != "end" and not having["dones"]:
            return "no demonstration has dones"
        if name == "next_obs" and not having["next_obs"]:
            return "no demonstration has next_obs"
        if name == "last_observation" and having["next_obs"] == groups:
            return "next_obs have the last observation"
        return ""

    def is_terminal(self, group: h5py.Group, assume: Assumptions) -> bool:
        """Whether a demonstration ended terminal."""
        dones = group.get("dones")
        if dones is None and assume["dones"] != "end":
            # MimicGen keeps the demonstrations that succeeded; Isaac Lab says which did.
            return "datagen_info" in group or layout.flag_attribute(group, "success", False)
        if assume["dones"] == "end" or not isinstance(dones, h5py.Dataset) or not dones.shape or not len(dones):
            return False
        ended = is_true(dones, -1)
        if assume["dones"] == "terminal":
            return ended
        rewards = group.get("rewards")
        if not isinstance(rewards, h5py.Dataset) or not rewards.shape or rewards.dtype.kind not in "biuf":
            raise KabukiError(f"{group.file.filename}: {group.name[1:]}: no rewards, which dones=reward goes by")
        return ended and bool(np.any(rewards[-1:] > 0))

    def _episode(self, name: str, group: h5py.Group, assume: Assumptions, of_episode: Collection[str]) -> DemoEpisode:
        fields = fields_of(group, f"data/{name}")
        count = num_actions(group) or 0
        stated = Attributes(group).get("num_samples", count)
        if not count:
            of_steps = (d for path, d in fields.items() if path.partition("/")[0] in ("obs", "next_obs", *_OF_STEPS))
            is_empty = np.array_equal(stated, 0) and not any(rows_of(dataset) for dataset in of_steps)
            problem = f"data/{name}: no actions, so no steps"
            if is_empty:
                raise EmptyEpisodeError(f"{group.file.filename}: {problem}")
            raise DamagedDataError(problem, file=group.file.filename)
        if not np.array_equal(stated, count):
            raise DamagedDataError(
                f"data/{name}: says num_samples {stated}, but has {count} actions", file=group.file.filename
            )
        terminal = self.is_terminal(group, assume)
        following = {path.removeprefix("next_obs/"): d for path, d in fields.items() if path.startswith("next_obs/")}
        observed = {path.removeprefix("obs/") for path in fields if path.startswith("obs/")}
        if following and set(following) != observed:
            odd = sorted(set(following) ^ observed)[0]
            raise DamagedDataError(f"data/{name}: {odd!r} is in only one of obs and next_obs", file=group.file.filename)
        keeps_next = assume.get("next_obs") == "keep"
        extra = bool(following) or has_last_row(assume)
        steps: dict[str, RowReader] = {}
        metadata = attributes_within(group, fields, "attributes")
        for path, dataset in fields.items():
            if path.startswith("next_obs/") and not keeps_next:
                continue
            if path in of_episode:
                metadata[f"attributes/{path}"] = whole(dataset)
                continue
            if rows_of(dataset) != count:
                raise DamagedDataError(
                    f"data/{name}/{path}: {rows_of(dataset) or 'no'} rows, where there are {count} actions",
                    file=group.file.filename,
                    field=path,
                )
            final: Final = "zero" if extra else ""
            if path.startswith("obs/"):
                key = path.removeprefix("obs/")
                steps[f"observation/{key}"] = (
                    FollowedRows(dataset, following[key], "" if keeps_next else "--assume next_obs=keep keeps both")
                    if following
                    else StoredRows(dataset, "repeat" if extra else "")
                )
            else:
                steps[_STEP_NAMES.get(path, path)] = StoredRows(dataset, final)
        steps["is_terminal"] = ends(count + extra, terminal)
        return DemoEpisode(f"data/{name}", count + extra, steps, metadata, last_is_step=not extra)


def demonstrations(file: h5py.File) -> list[tuple[str, h5py.Group]]:
    """The groups of the demonstrations of a file, in the order of their numbers."""
    data = file.get("data")
    if not isinstance(data, h5py.Group):
        return []
    named = [(int(found[1]), name) for name in data if (found := _DEMO.fullmatch(name))]
    groups = [(name, data.get(name)) for _, name in sorted(named)]
    return [(name, group) for name, group in groups if isinstance(group, h5py.Group)]


def num_actions(group: h5py.Group) -> int | None:
    """How many actions a demonstration has; None if it has no dataset of them."""
    actions = group.get("actions")
    return rows_of(actions) if isinstance(actions, h5py.Dataset) else None


def check_count(file: h5py.File, name: str, count: int) -> None:
    """Holds an attribute of `data` against what is there.

    Raises:
      KabukiError: it says another number.
    """
    stated = Attributes(file["data"]).get(name, count)
    if not np.array_equal(stated, count):
        raise DamagedDataError(
            f"data says {name} {stated}, but there are {count}; correct the attribute or the file", file=file.filename
        )


def has_last_row(assume: Assumptions) -> bool:
    """Whether episodes get a row for the observation after the last action, which is not stored."""
    return assume["last_observation"] == "repeat"


def ends(length: int, terminal: bool, derived: str = "") -> GivenRows:
    """The column `is_terminal` of an episode."""
    flags = np.zeros(length, bool)
    flags[-1:] = terminal
    return GivenRows(flags, derived)


def _masks(file: h5py.File, names: list[str]) -> dict[str, set[str]]:
    """Name of each mask to the demonstrations in it."""
    group = file.get("mask")
    found: dict[str, set[str]] = {}
    for key, dataset in (fields_of(group, "mask") if isinstance(group, h5py.Group) else {}).items():
        if dataset.ndim != 1:
            raise DamagedDataError(f"mask/{key} is no list of demonstrations", file=file.filename)
        listed = [name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in value_of(dataset)]
        unknown = sorted(set(listed) - set(names))
        if unknown:
            raise DamagedDataError(f"mask/{key} lists {unknown[0]!r}, which data does not hold", file=file.filename)
        found[key] = set(listed)
    return found


def _json(text: str) -> str:
    try:
        json.loads(text or "null")
    except (ValueError, RecursionError):
        return ""
    return text
