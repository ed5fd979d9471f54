"""D4RL's datasets, version 1: flat arrays, all episodes end to end, each row an action and what came of it.

`observations`, `actions`, `rewards` and `terminals`, and perhaps `timeouts`, `next_observations` and
`infos/…`, N rows each; `metadata/…` is of no step. (Source: D4RL's `offline_env.py`.)

Rule by rule:

* Rows. `observations` becomes `observation`, `actions` `action`, `rewards` `reward`; all else of N
  rows (`terminals`, `timeouts`, `infos/…`) keeps its name.
* An episode ends where `terminals` or `timeouts` is true, and at the end of the file, which may cut one
  short. d3rlpy 1 writes `episode_terminals` instead of `timeouts`: true at the end of each episode, however it ended.
  Without either, nothing says where time was up. D4RL then cuts at the environment's own limit,
  so `max_episode_steps` has to be said, or "none" where episodes end at `terminals` alone.
* `is_terminal` is that of `terminals`, also where `timeouts` is true as well. In maze2d `timeouts` means that
  the goal was reached: `--assume timeouts=terminal` takes it so. Else they cut an episode short.
* The last observation. With `next_observations` it is the one of the episode's last row, exactly, and has a
  row of its own. (The others are the observations one row later, and are not kept twice; where they are not,
  they stay as a field.) Without, the last row of an episode is a step like the others (`last_is_step`), and no
  observation follows it. `last_observation=repeat` adds a row that repeats the last observation.
* `is_first`, `is_last` and `discount` are derived.

`environment` has what `metadata/…`, all else that has not N rows, and the attributes of the file say, but for large
arrays (the weights of a policy), which are left out with a warning.
"""

from __future__ import annotations

import concurrent.futures
import copy
import functools
import itertools
import json
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

import h5py
import numpy as np

from kabuki_rlds.data.block import Block, Column, take
from kabuki_rlds.data.last_row import LastRows
from kabuki_rlds.data.schema import Field, Info, Schema
from kabuki_rlds.data.source import Origin, Size, Skipped
from kabuki_rlds.data.split_syntax import ALL, WHOLE, runs, select_episodes
from kabuki_rlds.errors import DamagedDataError, InvalidArgumentError, KabukiError
from kabuki_rlds.files import signals
from kabuki_rlds.formats.demos.demo_episode import (
    EmptyEpisodeError,
    are_equal,
    as_json,
    attributes,
    check_flag,
    empty_row,
    fields_of,
    rows_of,
    value_of,
)
from kabuki_rlds.formats.demos.robomimic import LAST_OBSERVATION, has_last_row
from kabuki_rlds.formats.demos.source import complete_assumptions
from kabuki_rlds.formats.hdf5 import layout
from kabuki_rlds.formats.hdf5.source import READ_ERRORS, ColumnReader, column_reader
from kabuki_rlds.formats.safe_hdf5.open_file import open_file
from kabuki_rlds.images.decode import decoded
from kabuki_rlds.images.image_columns import ImageColumns

_log = logging.getLogger("kabuki_rlds")

_NAMES = {"observations": "observation", "actions": "action", "rewards": "reward"}
_NEXT = "next_observations"
#: What always has a row for each action.
_ENDS = ("timeouts", "episode_terminals")
_OF_STEPS = (*_NAMES, "terminals", *_ENDS, _NEXT)
#: Names of flags that may say where episodes end, in files of other projects.
_LIKE_ENDS = re.compile("done|end|final|last|time|trunc", re.IGNORECASE)
_BLOCK_BYTES = 16 << 20
#: Larger arrays of `metadata` are left out.
_MAX_ELEMENTS = 1000


class D4rl:
    """D4RL's layout."""

    name = "d4rl"
    assumptions: Mapping[str, tuple[str, ...]] = {
        "timeouts": ("cut", "terminal"),
        "max_episode_steps": (),
        "last_observation": LAST_OBSERVATION,
    }

    def recognises(self, file: h5py.File) -> bool:
        return all(isinstance(file.get(name), h5py.Dataset) for name in ("observations", "actions", "terminals"))


class D4rlSource:
    """The steps of one file of D4RL's.

    Args:
      path: the file.
      split: a part of the file, as in `formats.split`; None is all of it.
      assume: what it does not say.
      images: how images that are stored as image files are read.
      skip_bad: whether damaged rows are no error until they are read.
      asked: the assumptions that must apply.

    Raises:
      KabukiError: it cannot be read, its arrays differ in length, nothing says where its episodes end, or an
        assumption cannot apply.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        split: str | None = None,
        assume: Mapping[str, str],
        images: Literal["arrays", "encoded"] = "arrays",
        asked: Collection[str] = (),
        skip_bad: bool = False,
    ):
        self._skip_bad = skip_bad
        self._path = self.label = os.fspath(path)
        self._asked = asked
        self._decodes = images == "arrays"
        self._assume = complete_assumptions(D4rl.name, D4rl.assumptions, assume)
        self.files = [os.path.abspath(self._path)]
        self.skipped: list[Skipped] = []
        self._file = open_file(path)
        self._of_file: dict[str, h5py.Dataset] = {}
        self._threads = concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1, "kabuki-read")
        try:
            self._open()
        except READ_ERRORS as e:
            self.close()
            raise DamagedDataError(f"cannot be read as D4RL's: {e}", file=self._path) from e
        except BaseException:
            self.close()
            raise
        if split is not None:
            whole = np.arange(self.num_episodes)
            self._take(select_episodes(split, {WHOLE: whole, ALL: whole}, self.label))

    def _open(self) -> None:
        found = fields_of(self._file, "", skip=("metadata",))
        count = rows_of(found["actions"]) or 0
        if not count:
            raise EmptyEpisodeError(f"{self._path}: no actions, so no steps")
        for name, dataset in list(found.items()):
            if rows_of(dataset) == count:
                continue
            if name in _OF_STEPS:
                rows = rows_of(dataset) or "no"
                raise DamagedDataError(f"{name} has {rows} rows, where there are {count} actions", file=self._path)
            self._of_file[name] = found.pop(name)
        self._fields = {name: layout.read_field(dataset) for name, dataset in found.items()}
        self._datasets = found
        self._check_applies()
        terminal, cut = self._ends(count)
        last = terminal | cut
        last[-1:] = True
        self._is_last, self._is_terminal = last, terminal
        # Whether each stored row is followed by one for the last observation of its episode.
        if _NEXT in found:
            self._extra = last
            if self._is_shifted():
                del self._fields[_NEXT]
            else:
                _log.warning("%s: %s are not the observations one row later, so they are kept", self._path, _NEXT)
        else:
            self._extra = last & has_last_row(self._assume)
        self.num_episodes = int(last.sum())
        self.num_steps = count + int(self._extra.sum())
        self.origins = [Origin(os.path.realpath(self._path), format=D4rl.name)]
        self.last_rows: LastRows | None
        if _NEXT in found:
            self.last_rows = LastRows.of_all(False, self.num_episodes, f"d4rl data with {_NEXT}")
        elif has_last_row(self._assume):
            self.last_rows = LastRows.of_all(False, self.num_episodes, "last_observation=repeat")
        else:
            self.last_rows = LastRows.of_all(True, self.num_episodes, f"d4rl data without {_NEXT}")
        steps = {_NAMES.get(name, name): field for name, field in self._fields.items()}
        steps["is_terminal"] = Field(np.dtype(bool))
        self._images = ImageColumns(steps, self.label, decode=steps if self._decodes else (), like_headers=steps)
        self.schema = Schema(dict(sorted(self._images.fields.items())), {}, info=self._info())
        self._begins = np.flatnonzero(np.append(True, last[:-1]))
        self._taken = np.arange(self.num_episodes)

    def _check_applies(self) -> None:
        """Refuses an assumption of the user that cannot apply."""
        cannot = {
            "timeouts": "" if self._datasets.keys() & set(_ENDS) else "there are no timeouts",
            "last_observation": f"{_NEXT} have the last observation" if _NEXT in self._datasets else "",
        }
        for name, why in cannot.items():
            if why and name in self._asked and self._assume[name] != D4rl.assumptions[name][0]:
                raise InvalidArgumentError(
                    f"{self._path}: assume: {name}={self._assume[name]} cannot apply, since {why}"
                )

    def _ends(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the stored rows end an episode as terminal, and where they cut it short."""
        terminal = self._flags("terminals", count)
        stated = self._assume.get("max_episode_steps")
        ends = [name for name in _ENDS if name in self._datasets]
        if ends:
            if stated is not None:
                raise InvalidArgumentError(
                    f"{self._path}: max_episode_steps: there are {ends[0]}, which say where time was up"
                )
            timeouts = np.logical_or.reduce([self._flags(name, count) for name in ends])
            if self._assume["timeouts"] == "terminal":
                return terminal | timeouts, np.zeros(count, bool)
            return terminal, timeouts & ~terminal
        if stated == "none":
            return terminal, np.zeros(count, bool)
        if stated is None:
            self._check_no_other_ends()
        if stated is None or not stated.isdecimal() or int(stated) < 1:
            raise KabukiError(
                f"{self._path}: no timeouts, so nothing says where time was up; --assume max_episode_steps=1000 cuts "
                "at the environment's limit, and =none says that episodes end at terminals alone"
            )
        starts = np.flatnonzero(np.append(True, terminal[:-1])) if count else np.zeros(0, np.int64)
        lengths = np.diff(np.append(starts, count))
        within = np.arange(count) - np.repeat(starts, lengths)
        return terminal, (within % int(stated) == int(stated) - 1) & ~terminal

    def _check_no_other_ends(self) -> None:
        """Refuses a file with flags of another name, by which its episodes may end."""
        for name, dataset in self._datasets.items():
            is_flag = dataset.dtype.kind in "bu" and dataset.size == rows_of(dataset)
            if name not in _OF_STEPS and is_flag and _LIKE_ENDS.search(name):
                raise KabukiError(
                    f"{self._path}: no timeouts, but {name!r}; if it says where episodes end, copy it to a dataset "
                    "'timeouts', else give --assume max_episode_steps=1000, the environment's limit"
                )

    def _flags(self, name: str, count: int) -> np.ndarray:
        check_flag(self._datasets[name])
        flags = np.asarray(value_of(self._datasets[name]))
        if flags.size != count:
            raise DamagedDataError(f"{name} is not one value a step", file=self._path)
        return flags.reshape(count).astype(bool)

    def _is_shifted(self) -> bool:
        """Whether the next observations are those one row later, within each episode."""
        if self._fields[_NEXT] != self._fields["observations"]:
            raise DamagedDataError(f"{_NEXT} are of another type or shape than observations", file=self._path)
        readers = {name: self._reader(name) for name in ("observations", _NEXT)}
        for start, stop in self._ranges(0, len(self._is_last)):
            try:
                end = min(stop + 1, len(self._is_last))
                observations = self._read(readers["observations"], "observations", start, end)
                following = self._read(readers[_NEXT], _NEXT, start, start + len(observations) - 1)
            except KabukiError:
                if not self._skip_bad:
                    raise
                continue
            inner = ~self._is_last[start : start + len(following)]
            if not are_equal(following[inner], observations[1:][inner]):
                return False
        return True

    def _info(self) -> Info:
        said: dict[str, Any] = {}
        for name, dataset in {**self._of_file, **_metadata(self._file)}.items():
            if dataset.size is None or dataset.size > _MAX_ELEMENTS:
                _log.warning("%s: %s, %s values, is left out", self._path, name, f"{dataset.size or 0:,}")
                continue
            said[name] = as_json(value_of(dataset))
        said |= {name: as_json(value) for name, value in attributes(self._file, "file").items()}
        return Info(environment=json.dumps(said) if said else "")

    def size(self) -> Size:
        sample = next(self.blocks(), None)
        num_bytes = os.path.getsize(self._path) * self.num_episodes // len(self._begins)
        return Size(self.num_steps, True, num_bytes, sample, self._images.decoded)

    def blocks(self, only: Collection[str] | None = None) -> Iterator[Block]:
        readers = {name: self._reader(name) for name in self._fields}
        following = self._reader(_NEXT) if _NEXT in self._datasets else None
        for start, stop in self._taken_ranges():
            signals.check()
            extra = self._extra[start:stop]
            rows = np.repeat(np.arange(stop - start), 1 + extra)
            added = np.append(False, rows[1:] == rows[:-1])
            steps: dict[str, Column] = {}
            for name, field in self._fields.items():
                column = take(self._read(readers[name], name, start, stop), rows)
                if name != "observations":
                    # Image files have no padding: the last one is repeated.
                    if not field.encoded:
                        column[added] = empty_row(field)
                elif following is not None and added.any():
                    column[added] = self._read(following, _NEXT, start, stop)[rows[added]]
                steps[_NAMES.get(name, name)] = column
            last = np.append(rows[1:] != rows[:-1], True) & self._is_last[start:stop][rows]
            steps["is_terminal"] = last & self._is_terminal[start:stop][rows]
            first = np.append(start == 0 or self._is_last[start - 1], self._is_last[start : stop - 1])
            starts = np.flatnonzero(first[rows] & ~added)
            place = functools.partial(self._place, start + rows)
            served = self._images.serve({path: steps[path] for path in self.schema.steps}, place, self._threads)
            yield Block(served, len(rows), starts, {})

    def _place(self, stored: np.ndarray, row: int) -> tuple[str, str, int]:
        """The place of a row of a block, given the number of the stored row that each is made from."""
        episode = int(np.searchsorted(self._begins, stored[row], "right")) - 1
        return self._path, f"episode {episode}", int(stored[row] - self._begins[episode])

    def _taken_ranges(self) -> Iterator[tuple[int, int]]:
        """Runs of stored rows of the episodes that are taken, each of which makes a block."""
        bounds = np.append(self._begins, len(self._is_last))
        for first, end in runs(self._taken):
            yield from self._ranges(int(bounds[first]), int(bounds[end]))

    def _ranges(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Runs of stored rows that make a block each."""
        row_bytes = sum(self._row_nbytes(name, field) for name, field in self._fields.items())
        rows = max(1, min(1 << 16, _BLOCK_BYTES // max(row_bytes, 1)))
        return itertools.pairwise([*range(first, end, rows), end])

    def _row_nbytes(self, name: str, field: Field) -> int:
        # Rows that vary in size are stored as they are, so the file's size bounds them.
        stored = layout.stored_row_nbytes(self._datasets[name]) or os.path.getsize(self._path) // len(self._is_last)
        return max(stored, (decoded(field).row_nbytes if self._decodes else None) or 0)

    def _reader(self, name: str) -> ColumnReader:
        # Those that are not among the fields are as the observations are.
        return column_reader(self._datasets[name], layout.read_field(self._datasets[name]), self._threads)

    def _read(self, reader: ColumnReader, name: str, start: int, stop: int) -> np.ndarray:
        try:
            column = reader.read(start, stop)
        except READ_ERRORS as e:
            raise DamagedDataError(
                f"{name!r}: rows {start} to {stop - 1} cannot be read: {e}", file=self._path, rows=range(start, stop)
            ) from e
        if not isinstance(column, np.ndarray):
            raise DamagedDataError(f"{name!r}: rows of differing lengths, which no D4RL file has", file=self._path)
        return column

    def piece(self, first: int, stop: int) -> D4rlSource:
        return self.select(np.arange(first, stop))

    def pieces(self, num_bytes: int) -> list[D4rlSource]:
        return [self]

    def select(self, episodes: np.ndarray) -> D4rlSource:
        """The episodes of these numbers, in this order, as a source that can be read while this one is open."""
        part = copy.copy(self)
        part._take(episodes)
        return part

    def _take(self, episodes: np.ndarray) -> None:
        self._taken = self._taken[episodes]
        self.num_episodes = len(episodes)
        self.last_rows = None if self.last_rows is None else self.last_rows[episodes]
        bounds = np.append(self._begins, len(self._is_last))
        added = np.add.reduceat(self._extra, self._begins, dtype=np.int64)
        self.num_steps = int((np.diff(bounds) + added)[self._taken].sum())

    def record_of(self, episode: int) -> tuple[str, int]:
        return self._path, int(self._taken[episode])

    def name_of(self, episode: int) -> str:
        return f"{self._path}: episode {self._taken[episode]}"

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._file.close()


def _metadata(file: h5py.File) -> dict[str, h5py.Dataset]:
    group = file.get("metadata")
    found = fields_of(group, "metadata") if isinstance(group, h5py.Group) else {}
    return {f"metadata/{name}": dataset for name, dataset in found.items()}
