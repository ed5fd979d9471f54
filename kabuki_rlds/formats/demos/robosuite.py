"""Reads robosuite's demonstrations: simulator states and actions, without observations or rewards.

`data/demo_<i>` holds `states` and `actions` of T rows each. Attributes describe the environment.

Rules:

* `states` becomes `observation/states`, since nothing else was observed, and `actions` becomes `action`. All other
  fields, and the order, are as in `robomimic`.
* The state after the last action is not stored, so the last row is a step. `last_observation` is as in `robomimic`.
* `is_terminal`: the files do not say how a demonstration ended. The assumption `ends` does, for all of them: "cut"
  (default, truncated) or "terminal".
* There is no reward. `--fill reward=0` adds one.
* `is_first`, `is_last` and `discount` are derived.

Episode fields are those of `robomimic`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping

import h5py

from kabuki_rlds.formats.demos.assumptions import LAST_OBSERVATION, Assumptions
from kabuki_rlds.formats.demos.demo_episode import DemoEpisode, UnreadableEpisode
from kabuki_rlds.formats.demos.robomimic import (
    NEXT_OBS,
    OBS,
    REWARDS,
    STATES,
    Robomimic,
    demonstrations,
    num_actions,
)
from kabuki_rlds.formats.demos.row_readers import RowReader, StoredRows


class Robosuite(Robomimic):
    """robosuite's layout of demonstrations."""

    name = "robosuite"
    assumptions: Mapping[str, tuple[str, ...]] = {"ends": ("cut", "terminal"), "last_observation": LAST_OBSERVATION}

    def recognises(self, file: h5py.File) -> bool:
        found = [
            isinstance(group.get(STATES), h5py.Dataset) and not {OBS, NEXT_OBS, REWARDS} & set(group)
            for _, group in demonstrations(file)
            if num_actions(group)
        ]
        return bool(found) and all(found)

    def episodes(
        self, file: h5py.File, assume: Assumptions, episode_fields: Collection[str]
    ) -> Iterator[DemoEpisode | UnreadableEpisode]:
        for episode in super().episodes(file, assume, episode_fields):
            if isinstance(episode, DemoEpisode):
                states = file[f"{episode.label}/{STATES}"]
                steps: dict[str, RowReader] = {path: rows for path, rows in episode.steps.items() if path != STATES}
                steps["observation/states"] = StoredRows(states, "repeat" if episode.length > len(states) else "")
                episode = dataclasses.replace(episode, steps=steps)
            yield episode

    def terminated(self, group: h5py.Group, assume: Assumptions) -> bool:
        return assume["ends"] == "terminal"
