"""Finds the language instruction of an episode: in its file, in a JSON file next to it, or in a name.

* A dataset or an attribute of the file. (RDT-1B's fine-tuning data: the dataset `instruction`.)
* A JSON file in the same folder: `<name of the file>.json`, or one with `instruction` in its name. (RDT-1B:
  `instruction.json`, `expanded_instruction_gpt-4-turbo.json`; RoboTwin: `instructions.json`.) If it lists several
  phrasings of one task, the first is used.
* The name of the file or of its folder, if the user or the recipe asks for it (`--assume instruction=name`). The name
  must read as a task: two words or more, without digits or terms of data storage. `fold_shirt` does; `episode_0`,
  `episodes` and `train_data` do not.
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

from kabuki_rlds.arguments import argument
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.files.side_files import read_side_file
from kabuki_rlds.formats.demos.hdf5_values import read_value
from kabuki_rlds.formats.safe_hdf5.attributes import Attributes

_log = logging.getLogger("kabuki_rlds")

#: The episode field.
FIELD = "language_instruction"
#: The assumption. The value `NAME` takes the name of the file or folder. Any other value is the instruction itself.
ASSUMPTION = "instruction"
NAME = "name"

#: Names of datasets, attributes and JSON entries that hold an instruction.
_KEYS = ("language_instruction", "instruction", "language_raw", "task_description")
#: Names of JSON entries that may list several phrasings. (`seen`: RoboTwin.)
_JSON_KEYS = (*_KEYS, "instructions", "language_instructions", "seen")
#: The largest JSON file that is read.
_MAX_JSON_BYTES = 1 << 20

_SCENE = re.compile(r".*SCENE\d*_")
_WORD = re.compile(r"[^\W\d_]+")
#: Words in names of files and folders that describe the storage or owner of data, not a task.
_OF_STORAGE = re.compile(
    "aloha|arms?|data(sets?)?|demo(nstration)?s?|downloads?|droid|episodes?|eval|examples?|exports?|failures?|final|"
    "folder|hdf|human|lab|libero|logs?|main|merged|mobile|my|new|outputs?|processed|raw|real|record(ed|ings?)?|results?|"
    "robots?|rollouts?|runs?|samples?|scripted|sim|splits?|success(es)?|tasks?|teleop|te?mp|test|train(ing)?|"
    "traj(ector(y|ies))?|val(id(ation)?)?|version",
    re.IGNORECASE,
)


def instruction(stated: str, name: str, assume: Mapping[str, str], label: str) -> dict[str, str]:
    """Returns the episode field `language_instruction`; an empty dict if the instruction is not known.

    Args:
      stated: the instruction in the file or in a JSON file next to it, which takes precedence; "" if there is none.
      name: the name of the file or folder, without extension.
      assume: the assumptions.
      label: the file, for messages.

    Raises:
      KabukiError: the name is to be used, but does not read as a task.
    """
    assumed = assume.get(ASSUMPTION, "")
    if stated:
        return {FIELD: stated}
    if assumed != NAME:
        return {FIELD: assumed} if assumed else {}
    task = task_in(name)
    if not task:
        raise KabukiError(
            f"{label}: no instruction in the file or in a JSON file next to it, and the name {name!r} does not read as "
            f"one; give it with {argument('assume', {ASSUMPTION: 'fold the shirt'})}"
        )
    return {FIELD: task}


def task_in(name: str) -> str:
    """Returns the task in the name of a file or folder; "" if the name does not read as one.

    Example:
      >>> task_in("KITCHEN_SCENE3_open_the_drawer_demo")
      'open the drawer'
    """
    words = re.split(r"[ _-]+", _SCENE.sub("", name).removesuffix("_demo").strip(" _-"))
    is_task = len(words) > 1 and all(_WORD.fullmatch(word) and not _OF_STORAGE.fullmatch(word) for word in words)
    return " ".join(words) if is_task else ""


def stated_in(file: h5py.File, count: int) -> str:
    """Returns the instruction in a dataset or attribute of a file, or in a JSON file next to it; "" if there is none.

    Args:
      file: a file of one episode.
      count: its number of steps. A dataset of as many texts has one per step.

    Raises:
      ValueError: a dataset cannot be read.
    """
    found = []
    attributes = Attributes(file)
    for key in _KEYS:
        item = file.get(key)
        if isinstance(item, h5py.Dataset) and h5py.check_string_dtype(item.dtype):
            texts = np.asarray(read_value(item)).reshape(-1).tolist()
            # Texts that differ between steps are not the instruction of the episode.
            if item.shape != (count,) or len(set(texts)) == 1:
                found += texts
        if key in attributes:
            found += np.asarray(attributes[key], object).reshape(-1).tolist()
    for path in json_files(file.filename):
        found += _in_json(path, pathlib.Path(file.filename).stem)
    texts = [text.decode(errors="replace") if isinstance(text, bytes) else text for text in found]
    return next((text.strip() for text in texts if isinstance(text, str) and text.strip()), "")


def json_files(path: str) -> list[str]:
    """Returns the JSON files next to a file that may contain its instruction."""
    folder, name = os.path.split(path)
    try:
        names = _json_names(folder or ".", os.stat(folder or ".").st_mtime_ns)
    except OSError:
        return []
    own = f"{pathlib.Path(name).stem}.json"
    return [os.path.join(folder, each) for each in names if each == own or "instruction" in each.lower()]


@functools.lru_cache(maxsize=1024)
def warn_once(message: str) -> None:
    """Logs a warning once. Each episode is opened twice, and thousands of episodes may have the same message."""
    _log.warning("%s", message)


@functools.lru_cache(maxsize=64)
def _json_names(folder: str, changed: int) -> list[str]:
    """Returns the names of the JSON files in a folder. `changed` is its modification time, a key of the cache."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name.endswith(".json") and entry.is_file())


def _in_json(path: str, stem: str) -> Iterable[Any]:
    """Yields the values in a JSON file that may be an instruction, best first."""
    try:
        value = json.loads(read_side_file(path, _MAX_JSON_BYTES))
    except KabukiError as e:
        warn_once(f"{e}; not searched for the instruction of an episode")
        return
    except (OSError, ValueError, RecursionError) as e:
        warn_once(f"{path}: not searched for the instruction of an episode, since it cannot be read: {e}")
        return
    if isinstance(value, dict):
        value = [value[key] for key in (stem, *_JSON_KEYS) if key in value]
    for each in value if isinstance(value, list) else [value]:
        yield from each if isinstance(each, list) else [each]
