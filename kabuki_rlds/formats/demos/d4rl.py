"""Reads D4RL's datasets, version 1: flat arrays, in which all episodes follow each other.

`observations`, `actions`, `rewards` and `terminals` have N rows, one per action. `timeouts`, `next_observations` and
`infos/…` may exist, with N rows too. `metadata/…` belongs to no step. (Source: D4RL's `offline_env.py`.)

Rules:

* Step fields. `observations` becomes `observation`, `actions` becomes `action`, and `rewards` becomes `reward`. Every
  other dataset of N rows (`terminals`, `timeouts`, `infos/…`) keeps its name.
* An episode ends where `terminals` or `timeouts` is true, and at the end of the file, which may truncate it. d3rlpy 1
  writes `episode_terminals` instead of `timeouts`. It is true at the end of every episode, terminated or not. Without
  either, the file does not say where episodes were truncated. D4RL then truncates at the environment's time limit, so
  the assumption `max_episode_steps` is required. "none" states that episodes end only at `terminals`.
* `is_terminal` is `terminals`, also where `timeouts` is true. In maze2d, `timeouts` marks that the goal was reached:
  `--assume timeouts=terminal`. By default, `timeouts` truncates an episode.
* Last row. With `next_observations`, each episode has one more row with its last observation. The other
  `next_observations` usually equal `observations` one row later, and are not stored twice. If not, they are kept as a
  step field. Without `next_observations`, the last row of an episode is a step (`last_is_step`).
  `last_observation=repeat` adds a row that repeats the last observation.
* `is_first`, `is_last` and `discount` are derived.

`environment` holds `metadata/…`, the datasets that do not have N rows, and the attributes of the file. Large arrays
(the weights of a policy) are left out with a warning.
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
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from kabuki_rlds.arguments import argument
from kabuki_rlds.data.block import Block, Column, take
from kabuki_rlds.data.last_row import LastRows
from kabuki_rlds.data.schema import Field, Info, Schema
from kabuki_rlds.data.source import Origin, Size, Skipped
from kabuki_rlds.data.split_syntax import ALL, WHOLE, runs, select_episodes
from kabuki_rlds.errors import DamagedDataError, InvalidArgumentError, KabukiError
from kabuki_rlds.files import signals
from kabuki_rlds.formats.demos.assumptions import (
    LAST_OBSERVATION,
    complete_assumptions,
    inapplicable,
    repeats_last_observation,
)
from kabuki_rlds.formats.demos.demo_episode import EmptyEpisodeError
from kabuki_rlds.formats.demos.demo_files import reading_as
from kabuki_rlds.formats.demos.hdf5_values import (
    all_datasets,
    as_json,
    check_flag,
    num_rows,
    read_attributes,
    read_value,
)
from kabuki_rlds.formats.demos.layout import DemoOptions, Layout
from kabuki_rlds.formats.demos.row_readers import are_equal, padding_row
from kabuki_rlds.formats.hdf5 import layout as kabuki_layout
from kabuki_rlds.formats.hdf5.column_reader import READ_ERRORS, ColumnReader, column_reader
from kabuki_rlds.formats.hdf5.fixed import ChunkMemory
from kabuki_rlds.formats.safe_hdf5.open_file import open_file
from kabuki_rlds.images.decode import decoded
from kabuki_rlds.images.image_columns import ImageColumns

_log = logging.getLogger("kabuki_rlds")

#: Names of datasets in the layout.
OBSERVATIONS = "observations"
ACTIONS = "actions"
REWARDS = "rewards"
TERMINALS = "terminals"
TIMEOUTS = "timeouts"
NEXT_OBSERVATIONS = "next_observations"

#: Name of a dataset to the path of its step field. Other names are kept.
STEP_FIELDS = {OBSERVATIONS: "observation", ACTIONS: "action", REWARDS: "reward"}
_EPISODE_ENDS = (TIMEOUTS, "episode_terminals")
#: Datasets that must have a row per action.
_PER_ACTION = (*STEP_FIELDS, TERMINALS, *_EPISODE_ENDS, NEXT_OBSERVATIONS)
#: Names of other flags that may mark the ends of episodes.
_LIKE_EPISODE_ENDS = re.compile("done|end|final|last|time|trunc", re.IGNORECASE)
#: The approximate size of a block, and the most rows in one.
_BLOCK_BYTES = 8 << 20
_BLOCK_ROWS = 1 << 16
#: The largest array that `environment` holds.
_MAX_ELEMENTS = 1000


class D4rl(Layout):
    """D4RL's layout."""

    name = "d4rl"
    joins_files = False
    assumptions: Mapping[str, tuple[str, ...]] = {
        "timeouts": ("cut", "terminal"),
        "max_episode_steps": (),
        "last_observation": LAST_OBSERVATION,
    }

    def recognises(self, file: h5py.File) -> bool:
        return all(isinstance(file.get(name), h5py.Dataset) for name in (OBSERVATIONS, ACTIONS, TERMINALS))

    def open_source(self, paths: Sequence[str], options: DemoOptions) -> D4rlSource:
        (path,) = paths
        return D4rlSource(self, path, options)


class D4rlSource:
    """The steps of one file in D4RL's layout.

    Args:
      layout: the layout.
      path: the file.
      options: how it is read. With `skip_bad`, damaged rows are reported when they are read, not before.

    Raises:
      KabukiError: the file cannot be read, its arrays differ in length, the ends of its episodes are not known, or an
        assumption cannot apply.
    """

    def __init__(self, layout: D4rl, path: str, options: DemoOptions):
        self._options = options
        self._path = self.label = path
        self._decodes = options.images == "arrays"
        self._assume = complete_assumptions(layout.name, layout.assumptions, options.assume)
        self.files = [os.path.abspath(path)]
        self.skipped: list[Skipped] = []
        self._file = open_file(path)
        #: Datasets that do not have a row per action.
        self._other_datasets: dict[str, h5py.Dataset] = {}
        self._threads = concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1, "kabuki-read")
        try:
            with reading_as(layout, path):
                self._open()
            if options.split is not None:
                whole = np.arange(self.num_episodes)
                self._set_episodes(select_episodes(options.split, {WHOLE: whole, ALL: whole}, self.label))
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        found = all_datasets(self._file, "", skip=("metadata",))
        count = num_rows(found[ACTIONS]) or 0
        if not count:
            raise EmptyEpisodeError(f"{self._path}: no actions, so no steps")
        for name, dataset in list(found.items()):
            if num_rows(dataset) == count:
                continue
            if name in _PER_ACTION:
                rows = num_rows(dataset) or "no"
                raise DamagedDataError(f"{name} has {rows} rows, where there are {count} actions", file=self._path)
            self._other_datasets[name] = found.pop(name)
        self._fields = {name: kabuki_layout.read_field(dataset) for name, dataset in found.items()}
        self._datasets = found
        self._check_assumptions()
        terminated, truncated = self._episode_ends(count)
        last = terminated | truncated
        last[-1:] = True
        self._is_last, self._is_terminal = last, terminated
        # Whether a row with the last observation of the episode follows each stored row.
        if NEXT_OBSERVATIONS in found:
            self._adds_row = last
            if self._next_equal_later_observations():
                del self._fields[NEXT_OBSERVATIONS]
            else:
                _log.warning(
                    "%s: %s are not the observations one row later, so they are kept", self._path, NEXT_OBSERVATIONS
                )
        else:
            self._adds_row = last & repeats_last_observation(self._assume)
        self.num_episodes = int(last.sum())
        self.num_steps = count + int(self._adds_row.sum())
        self.origins = [Origin(os.path.realpath(self._path), format=D4rl.name)]
        self.last_rows: LastRows | None
        if NEXT_OBSERVATIONS in found:
            self.last_rows = LastRows.of_all(False, self.num_episodes, f"d4rl data with {NEXT_OBSERVATIONS}")
        elif repeats_last_observation(self._assume):
            self.last_rows = LastRows.of_all(False, self.num_episodes, "last_observation=repeat")
        else:
            self.last_rows = LastRows.of_all(True, self.num_episodes, f"d4rl data without {NEXT_OBSERVATIONS}")
        steps = {STEP_FIELDS.get(name, name): field for name, field in self._fields.items()}
        steps["is_terminal"] = Field(np.dtype(bool))
        self._images = ImageColumns(steps, self.label, decode=steps if self._decodes else (), like_headers=steps)
        self.schema = Schema(dict(sorted(self._images.fields.items())), {}, info=self._info())
        self._starts = np.flatnonzero(np.append(True, last[:-1]))
        self._episodes = np.arange(self.num_episodes)

    def _check_assumptions(self) -> None:
        """Rejects an assumption of the user that cannot apply to the file."""
        has_next = NEXT_OBSERVATIONS in self._datasets
        reasons = {
            "timeouts": "" if self._datasets.keys() & set(_EPISODE_ENDS) else "there are no timeouts",
            "last_observation": f"{NEXT_OBSERVATIONS} have the last observation" if has_next else "",
        }
        for name, reason in reasons.items():
            if reason and name in self._options.asked and self._assume[name] != D4rl.assumptions[name][0]:
                raise inapplicable(self._path, name, self._assume[name], reason)

    def _episode_ends(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns which stored rows terminate, and which truncate an episode: two arrays, bool, (count,).

        Raises:
          KabukiError: the file does not say where episodes are truncated, and neither does `max_episode_steps`.
        """
        terminal = self._flags(TERMINALS, count)
        stated = self._assume.get("max_episode_steps")
        ends = [name for name in _EPISODE_ENDS if name in self._datasets]
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
            self._check_no_other_flags()
        if stated is None or not stated.isdecimal() or int(stated) < 1:
            raise KabukiError(
                f"{self._path}: no timeouts, so nothing says where time was up; "
                f"{argument('assume', {'max_episode_steps': '1000'})} cuts at the environment's limit, "
                f"{argument('assume', {'max_episode_steps': 'none'})} says that episodes end at terminals alone"
            )
        starts = np.flatnonzero(np.append(True, terminal[:-1])) if count else np.zeros(0, np.int64)
        lengths = np.diff(np.append(starts, count))
        within = np.arange(count) - np.repeat(starts, lengths)
        return terminal, (within % int(stated) == int(stated) - 1) & ~terminal

    def _check_no_other_flags(self) -> None:
        """Rejects a file with flags of another name that may mark the ends of its episodes."""
        for name, dataset in self._datasets.items():
            is_flag = dataset.dtype.kind in "bu" and dataset.size == num_rows(dataset)
            if name not in _PER_ACTION and is_flag and _LIKE_EPISODE_ENDS.search(name):
                raise KabukiError(
                    f"{self._path}: no timeouts, but {name!r}; if it says where episodes end, copy it to a dataset "
                    f"'timeouts', else give {argument('assume', {'max_episode_steps': '1000'})}, "
                    "the environment's limit"
                )

    def _flags(self, name: str, count: int) -> np.ndarray:
        check_flag(self._datasets[name])
        flags = np.asarray(read_value(self._datasets[name]))
        if flags.size != count:
            raise DamagedDataError(f"{name} is not one value a step", file=self._path)
        return flags.reshape(count).astype(bool)

    def _next_equal_later_observations(self) -> bool:
        """Returns whether `next_observations` equal `observations` one row later within each episode."""
        if self._fields[NEXT_OBSERVATIONS] != self._fields[OBSERVATIONS]:
            raise DamagedDataError(
                f"{NEXT_OBSERVATIONS} are of another type or shape than observations", file=self._path
            )
        readers = {name: self._reader(name) for name in (OBSERVATIONS, NEXT_OBSERVATIONS)}
        for start, stop in self._block_ranges(0, len(self._is_last)):
            try:
                end = min(stop + 1, len(self._is_last))
                observations = self._read(readers[OBSERVATIONS], OBSERVATIONS, start, end)
                last = start + len(observations) - 1
                following = self._read(readers[NEXT_OBSERVATIONS], NEXT_OBSERVATIONS, start, last)
            except KabukiError:
                if not self._options.skip_bad:
                    raise
                continue
            inner = ~self._is_last[start : start + len(following)]
            if not are_equal(following[inner], observations[1:][inner]):
                return False
        return True

    def _info(self) -> Info:
        environment: dict[str, Any] = {}
        for name, dataset in {**self._other_datasets, **_metadata_datasets(self._file)}.items():
            if dataset.size is None or dataset.size > _MAX_ELEMENTS:
                _log.warning("%s: %s, %s values, is left out", self._path, name, f"{dataset.size or 0:,}")
                continue
            environment[name] = as_json(read_value(dataset))
        environment |= {name: as_json(value) for name, value in read_attributes(self._file, "file").items()}
        return Info(environment=json.dumps(environment) if environment else "")

    def size(self) -> Size:
        sample = next(self.blocks(), None)
        num_bytes = os.path.getsize(self._path) * self.num_episodes // len(self._starts)
        return Size(self.num_steps, True, num_bytes, sample, self._images.decoded)

    def blocks(self, only: Collection[str] | None = None) -> Iterator[Block]:
        memory = ChunkMemory()
        readers = {name: self._reader(name, memory) for name in self._fields}
        following = self._reader(NEXT_OBSERVATIONS) if NEXT_OBSERVATIONS in self._datasets else None
        for start, stop in self._selected_ranges():
            signals.check()
            # For each row of the block, the stored row that it is made from.
            rows = np.repeat(np.arange(stop - start), 1 + self._adds_row[start:stop])
            added = np.append(False, rows[1:] == rows[:-1])
            steps: dict[str, Column] = {}
            for name, field in self._fields.items():
                column = take(self._read(readers[name], name, start, stop), rows)
                if name != OBSERVATIONS:
                    # Image files cannot be padded with zeros: the last one is repeated.
                    if not field.encoded:
                        column[added] = padding_row(field)
                elif following is not None and added.any():
                    column[added] = self._read(following, NEXT_OBSERVATIONS, start, stop)[rows[added]]
                steps[STEP_FIELDS.get(name, name)] = column
            last = np.append(rows[1:] != rows[:-1], True) & self._is_last[start:stop][rows]
            steps["is_terminal"] = last & self._is_terminal[start:stop][rows]
            first = np.append(start == 0 or self._is_last[start - 1], self._is_last[start : stop - 1])
            starts = np.flatnonzero(first[rows] & ~added)
            place = functools.partial(self._place, start + rows)
            served = self._images.serve({path: steps[path] for path in self.schema.steps}, place, self._threads)
            yield Block(served, len(rows), starts, {})

    def _place(self, stored: np.ndarray, row: int) -> tuple[str, str, int]:
        """Returns file, episode and row there of a row of a block, given the stored row that each is made from."""
        episode = int(np.searchsorted(self._starts, stored[row], "right")) - 1
        return self._path, f"episode {episode}", int(stored[row] - self._starts[episode])

    def _selected_ranges(self) -> Iterator[tuple[int, int]]:
        """Yields the ranges of stored rows that make a block each, for the selected episodes."""
        bounds = np.append(self._starts, len(self._is_last))
        for first, end in runs(self._episodes):
            yield from self._block_ranges(int(bounds[first]), int(bounds[end]))

    def _block_ranges(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Cuts a range of stored rows into ranges that make a block each."""
        row_bytes = sum(self._row_nbytes(name, field) for name, field in self._fields.items())
        rows = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // max(row_bytes, 1)))
        return itertools.pairwise([*range(first, end, rows), end])

    def _row_nbytes(self, name: str, field: Field) -> int:
        # Rows of variable size are not compressed, so the size of the file is an upper bound.
        stored = kabuki_layout.stored_row_nbytes(self._datasets[name]) or os.path.getsize(self._path) // len(
            self._is_last
        )
        return max(stored, (decoded(field).row_nbytes if self._decodes else None) or 0)

    def _reader(self, name: str, memory: ChunkMemory | None = None) -> ColumnReader:
        field = kabuki_layout.read_field(self._datasets[name])
        return column_reader(self._datasets[name], field, self._threads, memory)

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
        """Returns a source of the episodes with these numbers, in this order. It is usable while this one is open."""
        part = copy.copy(self)
        part._set_episodes(episodes)
        return part

    def _set_episodes(self, episodes: np.ndarray) -> None:
        self._episodes = self._episodes[episodes]
        self.num_episodes = len(episodes)
        self.last_rows = None if self.last_rows is None else self.last_rows[episodes]
        bounds = np.append(self._starts, len(self._is_last))
        added = np.add.reduceat(self._adds_row, self._starts, dtype=np.int64)
        self.num_steps = int((np.diff(bounds) + added)[self._episodes].sum())

    def record_of(self, episode: int) -> tuple[str, int]:
        return self._path, int(self._episodes[episode])

    def name_of(self, episode: int) -> str:
        return f"{self._path}: episode {self._episodes[episode]}"

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._file.close()


def _metadata_datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    group = file.get("metadata")
    found = all_datasets(group, "metadata") if isinstance(group, h5py.Group) else {}
    return {f"metadata/{name}": dataset for name, dataset in found.items()}
