"""LIBERO's demonstrations: robomimic's layout, one task a file.

As in `robomimic`, whose rules hold, with these differences:

* `dones` and `rewards` are 1 on the last step alone, where the task was done: that is
  terminal. There is no `next_obs`, so the last observation is repeated in a row of its own
  (masked by the discount of 0); `--assume last_observation=none` leaves it out, and the last
  row has the last action and the reward, as in the data that OpenVLA reads.
* Pictures are upside down in these files, and stay so: turning them by 180 degrees is the
  work of a recipe.
* What the task is stands in `file/problem_info`, JSON with `language_instruction`, and in the
  file's name.
"""

from __future__ import annotations

import h5py

from kabuki_rlds.formats.layouts.robomimic import Robomimic


class Libero(Robomimic):
    """LIBERO's layout."""

    name = "libero"

    def recognises(self, file: h5py.File) -> bool:
        return super().recognises(file) and not {"problem_info", "bddl_file_name"}.isdisjoint(file["data"].attrs)
