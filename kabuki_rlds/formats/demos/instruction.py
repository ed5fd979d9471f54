"""The language instruction of an episode: in its file, in a JSON file next to it, or in a name.

* A dataset or an attribute of the file. (RDT-1B's fine-tuning data: the dataset `instruction`.)
* A JSON file in the same folder: `<name of the file>.json`, or one with `instruction` in its name. (RDT-1B:
  `instruction.json`, `expanded_instruction_gpt-4-turbo.json`; RoboTwin: `instructions.json`.) Of several phrasings
  of one task, the first is taken.
* The name of the file or of its folder, if the user or the recipe asks for it (`--assume instruction=name`), and if it
  reads as a task: two words or more without digits, none of which names a way to store data. `fold_shirt` does;
  `episode_0`, `episodes` and `train_data` do not.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import h5py
import numpy as np

from kabuki_rlds.errors import KabukiError
from kabuki_rlds.formats.demos.demo_episode import value_of
from kabuki_rlds.formats.safe_hdf5.attributes import Attributes

_log = logging.getLogger("kabuki_rlds")

#: The episode field.
FIELD = "language_instruction"
#: The assumption, and its value that asks for the name of the file or folder; any other value is the instruction.
ASSUMPTION = "instruction"
NAME = "name"

#: What datasets, attributes and entries of JSON files that hold an instruction are called.
_KEYS = ("language_instruction", "instruction", "language_raw", "task_description")
#: In JSON files also: several phrasings. (`seen`: RoboTwin.)
_JSON_KEYS = (*_KEYS, "instructions", "language_instructions", "seen")
#: The largest JSON file that is read.
_MAX_JSON_BYTES = 1 << 20

_SCENE = re.compile(r".*SCENE\d*_")
_WORD = re.compile(r"[^\W\d_]+")
#: Words in the names of files and folders that say how data are stored, or whose they are, and not what the task is.
_OF_STORAGE = re.compile(
    "aloha|arms?|data(sets?)?|demo(nstration)?s?|downloads?|droid|episodes?|eval|examples?|exports?|failures?|final|"
    "folder|hdf|human|lab|libero|logs?|main|merged|mobile|my|new|outputs?|processed|raw|real|record(ed|ings?)?|results?|"
    "robots?|rollouts?|runs?|samples?|scripted|sim|splits?|success(es)?|tasks?|teleop|te?mp|test|train(ing)?|"
    "traj(ector(y|ies))?|val(id(ation)?)?|version",
    re.IGNORECASE,
)


def instruction(stated: str, name: str, assume: Mapping[str, str], label: str) -> dict[str, str]:
    """The episode field, or nothing if the instruction is not known.

    Args:
      stated: the instruction according to the file or to a JSON file next to it, which takes precedence; "" if neither
        has one.
      name: the name that is used if it is asked for, without an ending.
      assume: the assumptions.
      label: the file, for a message.

    Raises:
      KabukiError: the name is asked for, and does not read as a task.
    """
    said = assume.get(ASSUMPTION, "")
    if stated:
        return {FIELD: stated}
    if said != NAME:
        return {FIELD: said} if said else {}
    task = task_in(name)
    if not task:
        raise KabukiError(
            f"{label}: no instruction in the file or in a JSON file next to it, and the name {name!r} does not read as "
            f"one; give it with --assume {ASSUMPTION}='fold the shirt'"
        )
    return {FIELD: task}


def task_in(name: str) -> str:
    """The task in the name of a file or folder: `KITCHEN_SCENE3_open_the_drawer_demo` is "open the drawer".

    Returns:
      the task, or "" if the name does not read as one.
    """
    words = re.split(r"[ _-]+", _SCENE.sub("", name).removesuffix("_demo").strip(" _-"))
    reads = len(words) > 1 and all(_WORD.fullmatch(word) and not _OF_STORAGE.fullmatch(word) for word in words)
    return " ".join(words) if reads else ""


def stated_in(file: h5py.File, count: int) -> str:
    """The instruction in a dataset or an attribute of a file, or in a JSON file next to it; "" if there is none.

    Args:
      file: the file, which holds one episode.
      count: the number of its steps: a dataset of as many texts has one for each step.

    Raises:
      ValueError: a dataset cannot be read.
    """
    found = []
    attributes = Attributes(file)
    for key in _KEYS:
        item = file.get(key)
        if isinstance(item, h5py.Dataset) and h5py.check_string_dtype(item.dtype):
            texts = np.asarray(value_of(item)).reshape(-1).tolist()
            # Texts that differ from step to step are no instruction of the episode.
            if item.shape != (count,) or len(set(texts)) == 1:
                found += texts
        if key in attributes:
            found += np.asarray(attributes[key], object).reshape(-1).tolist()
    for path in json_files(file.filename):
        found += _in_json(path, pathlib.Path(file.filename).stem)
    texts = [text.decode(errors="replace") if isinstance(text, bytes) else text for text in found]
    return next((text.strip() for text in texts if isinstance(text, str) and text.strip()), "")


def json_files(path: str) -> list[str]:
    """The JSON files next to a file that may have its instruction."""
    folder, name = os.path.split(path)
    try:
        names = _json_names(folder or ".", os.stat(folder or ".").st_mtime_ns)
    except OSError:
        return []
    own = f"{pathlib.Path(name).stem}.json"
    return [os.path.join(folder, each) for each in names if each == own or "instruction" in each.lower()]


@functools.lru_cache(maxsize=1024)
def warn_once(message: str) -> None:
    """Warns: each episode is looked at twice, and thousands may have the same message."""
    _log.warning("%s", message)


@functools.lru_cache(maxsize=64)
def _json_names(folder: str, changed: int) -> list[str]:
    """The names of the JSON files in a folder, which is listed again once it has changed."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name.endswith(".json") and entry.is_file())


def _in_json(path: str, stem: str) -> Iterable[Any]:
    """The instructions in a JSON file: all that may be one, best first."""
    try:
        if os.path.getsize(path) > _MAX_JSON_BYTES:
            raise ValueError(f"larger than {_MAX_JSON_BYTES:,} bytes")
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except (OSError, ValueError, RecursionError) as e:
        warn_once(f"{path}: not searched for the instruction of an episode, since it cannot be read: {e}")
        return
    if isinstance(value, dict):
        value = [value[key] for key in (stem, *_JSON_KEYS) if key in value]
    for each in value if isinstance(value, list) else [value]:
        yield from each if isinstance(each, list) else [each]
