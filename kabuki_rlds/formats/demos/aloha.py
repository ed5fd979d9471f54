"""ALOHA's demonstrations, as ACT records them: one episode a file.

`action` (T, 14), `observations/…` T rows, among them `observations/images/<camera>`.

Rule by rule:

* Rows. `observations/<k>` becomes `observation/<k>`; `action` and all else that has T rows in
  each file (`base_action`) keep their names. What has another number of rows in one of the
  files, or is not in all, is of the episode in all: `file/<k>`. Files are in the order of the
  numbers in their names.
* The observation after the last action is not there, so T actions make T rows, and the last row
  is a step; `last_observation` is as in `robomimic`.
* `is_terminal`: a recording ends when its time is up. `--assume ends=terminal` says that each
  ended terminal.
* There is no reward: `--fill reward=0` is up to the user.
* `is_first`, `is_last` and `discount` are derived.
* Image files are found by their content, in any form (`formats.hdf5.image_files`). Padded JPEG
  files (attribute `compress`) end before the zeros that pad them. `compress_len` states their
  lengths too, by cameras in an order that only the recorder knew; it is not kept. OpenCV often
  wrote them with red and blue swapped: that stays, and a recipe can swap them (`swap: bgr`).

Of an episode: `file/…` are the attributes of the file (`sim`) and of what is in it, `file_path` its file.
`language_instruction` is there if the file or a JSON file next to it has an instruction; `--assume instruction=TEXT`
gives it otherwise, and `--assume instruction=name` takes the name of the folder (see `instruction`).
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Collection, Iterator, Mapping

import h5py

from kabuki_rlds.data.schema import Info
from kabuki_rlds.errors import DamagedDataError, KabukiError
from kabuki_rlds.formats.demos.demo_episode import (
    DemoEpisode,
    EmptyEpisodeError,
    RowReader,
    StoredRows,
    UnreadableEpisode,
    attempt,
    attributes_within,
    fields_of,
    rows_of,
    whole,
)
from kabuki_rlds.formats.demos.instruction import ASSUMPTION, FIELD, NAME, instruction, json_files, stated_in, warn_once
from kabuki_rlds.formats.demos.robomimic import LAST_OBSERVATION, ends, has_last_row
from kabuki_rlds.formats.demos.source import Assumptions, Hdf5Files


class Aloha(Hdf5Files):
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

    def why_not(self, file: h5py.File, name: str, value: str) -> str:
        stated = stated_in(file, rows_of(file["action"]) or 0) if name == ASSUMPTION and value != NAME else ""
        return f"the file has the instruction {stated!r}" if stated else ""

    def extras(self, file: h5py.File) -> Iterator[tuple[set[str], set[str]]]:
        fields = fields_of(file, "", skip=("action", "observations", "compress_len"))
        count = rows_of(file["action"])
        yield set(fields), {path for path, dataset in fields.items() if rows_of(dataset) == count}

    def episodes(
        self, file: h5py.File, assume: Assumptions, of_episode: Collection[str]
    ) -> Iterator[DemoEpisode | UnreadableEpisode]:
        yield attempt("the episode", functools.partial(self._episode, file, assume, of_episode))

    def _episode(self, file: h5py.File, assume: Assumptions, of_episode: Collection[str]) -> DemoEpisode:
        count = rows_of(file["action"])
        if not count:
            has_steps = any(rows_of(dataset) for dataset in fields_of(file["observations"], "observations").values())
            raise (KabukiError if has_steps else EmptyEpisodeError)(f"{file.filename}: no actions, so no steps")
        terminal = assume["ends"] == "terminal"
        extra = has_last_row(assume)
        steps: dict[str, RowReader] = {}
        fields = fields_of(file, "")
        stated, folder = stated_in(file, count), pathlib.Path(os.path.realpath(file.filename)).parent
        told = instruction(stated, folder.name, assume, file.filename)
        if told and not stated and assume[ASSUMPTION] == NAME:
            warn_once(
                f"{folder}: the name of the folder is taken as the instruction, {told[FIELD]!r}; "
                f"--assume {ASSUMPTION}=TEXT gives another"
            )
        metadata = {**attributes_within(file, fields, "file"), "file_path": file.filename, **told}
        for path, dataset in fields.items():
            if path == "compress_len":
                continue
            if path in of_episode:
                metadata[f"file/{path}"] = whole(dataset)
                continue
            if rows_of(dataset) != count:
                raise DamagedDataError(
                    f"{path}: {rows_of(dataset) or 'no'} rows, where there are {count} actions",
                    file=file.filename,
                    field=path,
                )
            if not path.startswith("observations/"):
                steps[path] = StoredRows(dataset, "zero" if extra else "")
                continue
            name = f"observation/{path.removeprefix('observations/')}"
            steps[name] = StoredRows(dataset, "repeat" if extra else "")
        derived = f"{str(terminal).lower()}, since nothing says how an episode ended"
        steps["is_terminal"] = ends(count + extra, terminal, derived)
        return DemoEpisode("the episode", count + extra, steps, metadata, last_is_step=not extra)

    def info(self, file: h5py.File) -> Info:
        return Info()
