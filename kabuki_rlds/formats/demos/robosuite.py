"""robosuite's demonstrations, as people or scripts collect them: states of the simulator and actions, no more.

`data/demo_<i>` holds `states` and `actions`, T of each; attributes say which environment it was.

Rule by rule:

* Rows. `states` becomes `observation/states`, since it is all that was observed, and `actions`
  `action`; all else is as in `robomimic`. The order is that of the numbers.
* The state after the last action is not there, so the last row is a step; `last_observation` is
  as in `robomimic`.
* `is_terminal`: nothing says how a demonstration ended. `ends` does: "cut" (default) or
  "terminal", of all of them.
* There is no reward: `--fill reward=0` is up to the user.
* `is_first`, `is_last` and `discount` are derived.

The fields of an episode are those of `robomimic`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping

import h5py

from kabuki_rlds.formats.demos.demo_episode import DemoEpisode, RowReader, StoredRows, UnreadableEpisode
from kabuki_rlds.formats.demos.robomimic import LAST_OBSERVATION, Robomimic, demonstrations, num_actions
from kabuki_rlds.formats.demos.source import Assumptions


class Robosuite(Robomimic):
    """The layout of robosuite's own demonstrations."""

    name = "robosuite"
    assumptions: Mapping[str, tuple[str, ...]] = {"ends": ("cut", "terminal"), "last_observation": LAST_OBSERVATION}

    def recognises(self, file: h5py.File) -> bool:
        demos = [(name, group) for name, group in demonstrations(file) if num_actions(group)]
        return bool(demos) and all(
            isinstance(group.get("states"), h5py.Dataset)
            and "actions" in group
            and not {"obs", "next_obs", "rewards"} & set(group)
            for _, group in demos
        )

    def episodes(
        self, file: h5py.File, assume: Assumptions, of_episode: Collection[str]
    ) -> Iterator[DemoEpisode | UnreadableEpisode]:
        for episode in super().episodes(file, assume, of_episode):
            if isinstance(episode, UnreadableEpisode):
                yield episode
                continue
            steps: dict[str, RowReader] = dict(episode.steps)
            stored = len(file[f"{episode.label}/states"])
            del steps["states"]
            final = "repeat" if episode.length > stored else ""
            steps["observation/states"] = StoredRows(file[f"{episode.label}/states"], final)
            yield dataclasses.replace(episode, steps=steps)

    def is_terminal(self, group: h5py.Group, assume: Assumptions) -> bool:
        return assume["ends"] == "terminal"
