"""Reads ALOHA's demonstrations, as ACT records them: one episode per file.

`action` has T rows, shape (T, 14). `observations/…` have T rows each, among them `observations/images/<camera>`.

Rules:

* Order. Files are ordered by the numbers in their names.
* Step fields. `observations/<k>` becomes `observation/<k>`. `action`, and every other dataset that has T rows in all
  files (`base_action`), keeps its name.
* Episode fields. A dataset that has another number of rows in one file, or is missing in one, becomes the episode field
  `file/<k>` in all.
* The observation after the last action is not stored, so T actions make T rows, and the last row is a step.
  `last_observation` is as in `robomimic`.
* `is_terminal`: a recording ends at a time limit, so it is false. `--assume ends=terminal` states that every episode
  terminated.
* There is no reward. `--fill reward=0` adds one.
* `is_first`, `is_last` and `discount` are derived.
* Image files are detected by their content, in any of the forms in `formats.hdf5.image_files`. JPEG files padded with
  zeros (attribute `compress`) end before the padding. `compress_len` states their lengths too, but does not name the
  cameras, so it is not kept. OpenCV often wrote these images with red and blue swapped. They stay so; a recipe can swap
  the channels (`swap: bgr`).

Episode fields: `file/…` are the attributes of the file (`sim`) and of all items in it. `file_path` is the file.
`language_instruction` exists if the file or a JSON file next to it has an instruction. Otherwise
`--assume instruction=TEXT` states it, and `--assume instruction=name` takes it from the name of the folder (see
`instruction`).
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Collection, Iterator, Mapping

import h5py

from kabuki_rlds.arguments import argument
from kabuki_rlds.data.schema import Info
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.formats.demos.assumptions import LAST_OBSERVATION, Assumptions, repeats_last_observation
from kabuki_rlds.formats.demos.demo_episode import (
    DemoEpisode,
    EmptyEpisodeError,
    UnreadableEpisode,
    episode_or_error,
)
from kabuki_rlds.formats.demos.hdf5_layout import Hdf5EpisodeLayout
from kabuki_rlds.formats.demos.hdf5_values import (
    MetadataValue,
    all_datasets,
    check_num_rows,
    num_rows,
    read_all_attributes,
    read_metadata_value,
)
from kabuki_rlds.formats.demos.instruction import ASSUMPTION, FIELD, NAME, instruction, json_files, stated_in, warn_once
from kabuki_rlds.formats.demos.row_readers import RowReader, StoredRows, is_terminal_rows

_LABEL = "the episode"
_IMAGE_LENGTHS = "compress_len"


class Aloha(Hdf5EpisodeLayout):
    """ALOHA's layout."""

    name = "aloha"
    assumptions: Mapping[str, tuple[str, ...]] = {
        "ends": ("cut", "terminal"),
        "last_observation": LAST_OBSERVATION,
        ASSUMPTION: (),
    }

    def recognises(self, file: h5py.File) -> bool:
        return isinstance(file.get("action"), h5py.Dataset) and isinstance(file.get("observations/qpos"), h5py.Dataset)

    def files(self, path: str) -> list[str]:
        return [path, *json_files(path)]

    def why_inapplicable(self, file: h5py.File, name: str, value: str) -> str:
        stated = stated_in(file, num_rows(file["action"]) or 0) if name == ASSUMPTION and value != NAME else ""
        return f"the file has the instruction {stated!r}" if stated else ""

    def unknown_fields(self, file: h5py.File) -> Iterator[tuple[set[str], set[str]]]:
        fields = all_datasets(file, "", skip=("action", "observations", _IMAGE_LENGTHS))
        count = num_rows(file["action"])
        yield set(fields), {path for path, dataset in fields.items() if num_rows(dataset) == count}

    def episodes(
        self, file: h5py.File, assume: Assumptions, episode_fields: Collection[str]
    ) -> Iterator[DemoEpisode | UnreadableEpisode]:
        yield episode_or_error(_LABEL, functools.partial(self._episode, file, assume, episode_fields))

    def _episode(self, file: h5py.File, assume: Assumptions, episode_fields: Collection[str]) -> DemoEpisode:
        count = num_rows(file["action"])
        if not count:
            has_steps = any(map(num_rows, all_datasets(file["observations"], "observations").values()))
            raise (KabukiError if has_steps else EmptyEpisodeError)(f"{file.filename}: no actions, so no steps")
        has_last_row = repeats_last_observation(assume)
        steps: dict[str, RowReader] = {}
        datasets = all_datasets(file, "")
        metadata: dict[str, MetadataValue] = {
            **read_all_attributes(file, datasets, "file"),
            "file_path": file.filename,
            **_instruction(file, count, assume),
        }
        for path, dataset in datasets.items():
            if path == _IMAGE_LENGTHS:
                continue
            if path in episode_fields:
                metadata[f"file/{path}"] = read_metadata_value(dataset)
                continue
            check_num_rows(dataset, path, count)
            if path.startswith("observations/"):
                name = f"observation/{path.removeprefix('observations/')}"
                steps[name] = StoredRows(dataset, "repeat" if has_last_row else "")
            else:
                steps[path] = StoredRows(dataset, "zero" if has_last_row else "")
        terminated = assume["ends"] == "terminal"
        length = count + has_last_row
        derived = f"{str(terminated).lower()}, since nothing says how an episode ended"
        steps["is_terminal"] = is_terminal_rows(length, terminated, derived)
        return DemoEpisode(_LABEL, length, steps, metadata, last_is_step=not has_last_row)

    def info(self, file: h5py.File) -> Info:
        return Info()


def _instruction(file: h5py.File, count: int, assume: Assumptions) -> dict[str, str]:
    """Returns the episode field of the instruction, if there is one; warns if it is the name of the folder."""
    stated = stated_in(file, count)
    folder = pathlib.Path(os.path.realpath(file.filename)).parent
    field = instruction(stated, folder.name, assume, file.filename)
    if field and not stated and assume[ASSUMPTION] == NAME:
        warn_once(
            f"{folder}: the name of the folder is taken as the instruction, {field[FIELD]!r}; "
            f"{argument('assume', {ASSUMPTION: 'TEXT'})} gives another"
        )
    return field
