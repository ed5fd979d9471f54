"""LIBERO's demonstrations: robomimic's layout, one task a file.

As in `robomimic`, whose rules hold, with these differences:

* `dones` and `rewards` are 1 on the last step alone, where the task was done: that is
  terminal. There is no `next_obs`, so T actions make T rows, and the last row has the last
  action and the reward, as in the data that OpenVLA reads.
* Pictures are upside down in these files, and stay so: turning them by 180 degrees is the
  work of a recipe.
* `language_instruction`, an episode field, is that of `problem_info`, a JSON attribute of `data`. Files without
  attributes, as OpenVLA's script writes them without idle steps, have it in their name:
  `--assume instruction=name` takes it from there (see `instruction`). They are recognised by the names of their
  observations.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Collection, Iterator, Mapping

import h5py

from kabuki_rlds.formats.demos.demo_episode import DemoEpisode, UnreadableEpisode
from kabuki_rlds.formats.demos.instruction import ASSUMPTION, FIELD, NAME, instruction
from kabuki_rlds.formats.demos.robomimic import Robomimic, demonstrations
from kabuki_rlds.formats.demos.source import Assumptions
from kabuki_rlds.formats.hdf5.layout import text_attribute
from kabuki_rlds.formats.safe_hdf5.attributes import Attributes

#: Observations that LIBERO's files have, and robomimic's call otherwise.
_OBSERVATIONS = {"agentview_rgb", "eye_in_hand_rgb", "gripper_states", "joint_states"}


class Libero(Robomimic):
    """LIBERO's layout."""

    name = "libero"
    assumptions: Mapping[str, tuple[str, ...]] = {**Robomimic.assumptions, ASSUMPTION: ()}

    def recognises(self, file: h5py.File) -> bool:
        if not super().recognises(file):
            return False
        if not {"problem_info", "bddl_file_name"}.isdisjoint(Attributes(file["data"])):
            return True
        _, first = demonstrations(file)[0]
        return isinstance(first.get("obs"), h5py.Group) and set(first["obs"]) >= _OBSERVATIONS

    def why_not(self, file: h5py.File, name: str, value: str) -> str:
        stated = _stated(file["data"]) if name == ASSUMPTION and value != NAME else ""
        return f"the file has the instruction {stated!r}" if stated else super().why_not(file, name, value)

    def episodes(
        self, file: h5py.File, assume: Assumptions, of_episode: Collection[str]
    ) -> Iterator[DemoEpisode | UnreadableEpisode]:
        told = instruction(_stated(file["data"]), pathlib.Path(file.filename).stem, assume, file.filename)
        for episode in super().episodes(file, assume, of_episode):
            if isinstance(episode, DemoEpisode):
                episode = dataclasses.replace(episode, metadata={**episode.metadata, **told})
            yield episode


def _stated(data: h5py.Group) -> str:
    """The instruction according to the attributes; "" if they have none."""
    try:
        problem = json.loads(text_attribute(data, "problem_info"))
    except (ValueError, RecursionError):
        return ""
    said = problem.get(FIELD) if isinstance(problem, dict) else None
    # Some versions have it as a list of words.
    text = " ".join(map(str, said)) if isinstance(said, list) else said if isinstance(said, str) else ""
    return text.strip(' "')
