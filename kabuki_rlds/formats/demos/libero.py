"""Reads LIBERO's demonstrations: robomimic's layout, one task per file.

The rules of `robomimic` apply, with these differences:

* `dones` and `rewards` are 1 only in the last step, where the task was completed, so the episode terminated. There is
  no `next_obs`, so T actions make T rows. The last row has the last action and the reward, as in the data that
  OpenVLA reads.
* Images are stored upside down, and are not rotated. A recipe can rotate them by 180 degrees.
* The episode field `language_instruction` comes from `problem_info`, a JSON attribute of `data`. Files that OpenVLA's
  script wrote without idle steps have no attributes, but the instruction is in the file name:
  `--assume instruction=name` takes it from there (see `instruction`). Such files are recognised by the names of their
  observations.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Collection, Iterator, Mapping

import h5py

from kabuki_rlds.formats.demos.assumptions import Assumptions
from kabuki_rlds.formats.demos.demo_episode import DemoEpisode, UnreadableEpisode
from kabuki_rlds.formats.demos.instruction import ASSUMPTION, FIELD, NAME, instruction
from kabuki_rlds.formats.demos.robomimic import DATA, OBS, Robomimic, demonstrations
from kabuki_rlds.formats.hdf5.layout import text_attribute
from kabuki_rlds.formats.safe_hdf5.attributes import Attributes

#: Observations of LIBERO's files. robomimic's files use other names.
_OBSERVATIONS = {"agentview_rgb", "eye_in_hand_rgb", "gripper_states", "joint_states"}


class Libero(Robomimic):
    """LIBERO's layout."""

    name = "libero"
    assumptions: Mapping[str, tuple[str, ...]] = {**Robomimic.assumptions, ASSUMPTION: ()}

    def recognises(self, file: h5py.File) -> bool:
        if not super().recognises(file):
            return False
        if not {"problem_info", "bddl_file_name"}.isdisjoint(Attributes(file[DATA])):
            return True
        _, first = next(demonstrations(file))
        return isinstance(first.get(OBS), h5py.Group) and set(first[OBS]) >= _OBSERVATIONS

    def why_inapplicable(self, file: h5py.File, name: str, value: str) -> str:
        stated = _stated_instruction(file[DATA]) if name == ASSUMPTION and value != NAME else ""
        return f"the file has the instruction {stated!r}" if stated else super().why_inapplicable(file, name, value)

    def episodes(
        self, file: h5py.File, assume: Assumptions, episode_fields: Collection[str]
    ) -> Iterator[DemoEpisode | UnreadableEpisode]:
        stated = _stated_instruction(file[DATA])
        field = instruction(stated, pathlib.Path(file.filename).stem, assume, file.filename)
        for episode in super().episodes(file, assume, episode_fields):
            if isinstance(episode, DemoEpisode):
                episode = dataclasses.replace(episode, metadata={**episode.metadata, **field})
            yield episode


def _stated_instruction(data: h5py.Group) -> str:
    """Returns the instruction in `problem_info`; "" if there is none."""
    try:
        problem = json.loads(text_attribute(data, "problem_info"))
    except (ValueError, RecursionError):
        return ""
    stated = problem.get(FIELD) if isinstance(problem, dict) else None
    # Some versions store a list of words.
    text = " ".join(map(str, stated)) if isinstance(stated, list) else stated if isinstance(stated, str) else ""
    return text.strip(' "')
