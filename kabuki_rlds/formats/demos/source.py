"""Files of episodes, in whichever layout, as one source."""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import h5py
import numpy as np

from kabuki_rlds.data.block import Block, Column, Ragged, as_ragged, concatenate, nbytes
from kabuki_rlds.data.common_schema import difference, join_fields, warn_of_shapes
from kabuki_rlds.data.last_row import LastRows
from kabuki_rlds.data.schema import BYTES, Field, Info, Schema
from kabuki_rlds.data.skipped_episodes import NothingLeftError, report, skipped_for
from kabuki_rlds.data.source import Origin, Size, Skipped, stamp
from kabuki_rlds.data.split_syntax import ALL, WHOLE, select_episodes
from kabuki_rlds.errors import DamagedDataError, InvalidArgumentError, KabukiError, SchemaMismatchError
from kabuki_rlds.files import signals
from kabuki_rlds.formats.demos.demo_episode import DemoEpisode, UnreadableEpisode, empty_row, text_bytes
from kabuki_rlds.formats.hdf5.source import READ_ERRORS
from kabuki_rlds.formats.safe_hdf5.open_file import open_file
from kabuki_rlds.images.image_columns import ImageColumns

_log = logging.getLogger("kabuki_rlds")

#: A block takes about this many bytes, and a sample.
_BLOCK_BYTES = 16 << 20
_SAMPLE_BYTES = 1 << 20

#: Values of assumptions that are deprecated, and the values that replace them.
_RENAMED = {("last_observation", "terminal"): "repeat", ("last_observation", "none"): ""}

_Item = TypeVar("_Item")

#: What a user takes for granted of files that do not say it: {"dones": "success"}.
Assumptions: TypeAlias = Mapping[str, str]


class Layout(Protocol):
    """One way to lay out episodes in files.

    Attributes:
      name: what it is called.
      assumptions: what a user can say of files in this layout, each with the values that it can have (none
        for any), the default first.
    """

    name: str
    assumptions: Mapping[str, tuple[str, ...]]

    def open(self, path: str, *, quiet: bool = False) -> contextlib.AbstractContextManager[Any]:
        """Opens a file, or a folder where that is what holds episodes.

        Args:
          path: the file.
          quiet: do not warn of what is left out, because the file was opened before.

        Raises:
          KabukiError: it cannot be opened.
        """

    def files(self, path: str) -> list[str]:
        """All files that are read for it."""

    def extras(self, file: Any) -> Iterator[tuple[set[str], set[str]]]:
        """What each episode of a file has that the layout does not know of: all of it, and what has a row an action."""

    def episodes(
        self, file: Any, assume: Assumptions, of_episode: Collection[str]
    ) -> Iterator[DemoEpisode | UnreadableEpisode]:
        """The episodes of a file, in order, with those that cannot be read.

        Args:
          file: the file.
          assume: what it does not say.
          of_episode: which of the extras are fields of the episodes, and not of the steps.

        Raises:
          KabukiError: one is not whole.
        """

    def why_not(self, file: Any, name: str, value: str) -> str:
        """Why an assumption cannot apply to a file; "" if it can."""

    def info(self, file: Any) -> Info:
        """What a file says of the dataset."""


class Hdf5Files:
    """The part of a layout that all in HDF5 share."""

    def open(self, path: str, *, quiet: bool = False) -> contextlib.AbstractContextManager[h5py.File]:
        return open_file(path, quiet=quiet)

    def files(self, path: str) -> list[str]:
        return [path]

    def why_not(self, file: h5py.File, name: str, value: str) -> str:
        return ""


@dataclasses.dataclass(frozen=True)
class _SurveyedEpisode:
    """What is known of an episode before its steps are read.

    Attributes:
      path: its file.
      number: its number there.
      label: where it stands there, for a message.
      masks: the names of the parts of the dataset that it is in.
      length: how many rows it has.
      last_is_step: whether its last row is a step.
      steps: path to field of the steps.
      metadata: path to field of the episode.
      blank: the fields of the steps whose rows are all empty.
    """

    path: str
    number: int
    label: str
    masks: frozenset[str]
    length: int
    last_is_step: bool
    steps: Mapping[str, Field]
    metadata: Mapping[str, Field]
    blank: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.path}: {self.label}"


class _OpenFiles:
    """The files of a source, of which one is open at a time: to open one is to look at all objects in it."""

    def __init__(self, layout: Layout):
        self._layout = layout
        self._stack = contextlib.ExitStack()
        self._path = ""
        self._opened: Any = None
        self._stamps: dict[str, dict[str, list[int] | None]] = {}

    def open(self, path: str) -> Any:
        """A file, opened. The one before it is closed."""
        if self._path != path:
            self.close()
            is_known = path in self._stamps
            self.check_unchanged(path)
            self._opened = self._stack.enter_context(self._layout.open(path, quiet=is_known))
            self._path = path
        return self._opened

    def check_unchanged(self, path: str, fits: bool = True) -> None:
        """Refuses a file that is not what it was when it was first opened, or in which other episodes were read.

        Raises:
          KabukiError: it is not.
        """
        stamps = {file: stamp(file) for file in self._layout.files(path)}
        if not fits or self._stamps.setdefault(path, stamps) != stamps:
            raise KabukiError(f"{path}: changed while it was read; run again when nothing writes to it")

    def close(self) -> None:
        """Closes the one that is open."""
        self._stack.close()
        self._path = ""


class DemosSource:
    """The episodes of one or more files in one layout, in order.

    Args:
      layout: how the files are laid out.
      paths: the files.
      split: the name of a mask, or a part of one as in `formats.split`, of whose episodes alone are taken; None is all.
      assume: what the files do not say.
      images: how images that are stored as image files are read.
      asked: the assumptions that must apply to one file at least.
      skip_bad: leave out episodes whose structure is damaged, and damaged files if there are others. Episodes without
        steps are left out in any case.

    Raises:
      KabukiError: a file cannot be opened, its episodes are not whole or do not fit each other, there is no such
        mask, or an assumption cannot apply.
    """

    def __init__(
        self,
        layout: Layout,
        paths: Sequence[str | os.PathLike[str]],
        *,
        split: str | None = None,
        assume: Assumptions | None = None,
        images: Literal["arrays", "encoded"] = "arrays",
        asked: Collection[str] = (),
        skip_bad: bool = False,
    ):
        self._layout = layout
        self._skip_bad = skip_bad
        self._assume = complete_assumptions(layout.name, layout.assumptions, assume or {})
        self._paths = [os.fspath(path) for path in paths]
        self.skipped: list[Skipped] = []
        self._threads = concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1, "kabuki-read")
        self._files = _OpenFiles(layout)
        #: Of the assumptions that must apply, those that cannot apply to any file so far, and why.
        self._unused = {name: "" for name in asked if self._assume[name] not in layout.assumptions[name][:1]}
        try:
            self._of_episode = self._not_of_steps()
            surveyed = self._survey()
            for name, why in self._unused.items():
                raise InvalidArgumentError(
                    f"{self._paths[0]}: assume: {name}={self._assume[name]} cannot apply, since {why}"
                )
            self.label = _named(self._paths)
            if not surveyed:
                raise NothingLeftError(self.label, self.skipped)
            report(self.label, self.skipped)
            self._take(surveyed if split is None else self._of_split(split, surveyed))
            self._open_fields(split, images)
        except BaseException:
            self.close()
            raise

    def _open_fields(self, split: str | None, images: Literal["arrays", "encoded"]) -> None:
        """Finds out what the fields of the episodes that are taken are."""
        steps, metadata = _FieldUnion("step field", of_steps=True), _FieldUnion("episode field", of_steps=False)
        for episode in self._taken:
            steps.take(episode.steps, episode.name, episode.blank)
            metadata.take(episode.metadata, episode.name)
        steps.finish(self.label)
        metadata.finish(self.label)
        self._fields = steps.fields
        self.files = [os.path.abspath(file) for path in self._paths for file in self._layout.files(path)]
        self.origins = [
            Origin(os.path.realpath(path), split=split or "", format=self._layout.name) for path in self._paths
        ]
        decode = self._fields if images == "arrays" else ()
        self._images = ImageColumns(self._fields, self.label, decode=decode, like_headers=self._fields)
        self.schema = Schema(
            dict(sorted(self._images.fields.items())), dict(sorted(metadata.fields.items())), info=self._info
        )

    def _take(self, episodes: Sequence[_SurveyedEpisode]) -> None:
        self._taken = episodes
        self.num_episodes = len(episodes)
        self.num_steps = sum(episode.length for episode in episodes)
        self.last_rows: LastRows | None = self._last_rows()

    def _not_of_steps(self) -> set[str]:
        """Those of the extras that have not a row for each action in each of the episodes."""
        seen: set[str] = set()
        always: set[str] | None = None
        for path in list(self._paths):
            signals.check()
            for names, of_steps in self._unless_damaged(path, self._extras):
                seen |= names
                always = of_steps if always is None else always & of_steps
        return seen - (always or set())

    def _extras(self, path: str) -> list[tuple[set[str], set[str]]]:
        with self._reading(path):
            return list(self._layout.extras(self._files.open(path)))

    def _survey(self) -> list[_SurveyedEpisode]:
        """All episodes of all files that can be read."""
        self._info = Info()
        found: list[_SurveyedEpisode] = []
        alike: dict[Any, Any] = {}
        for path in list(self._paths):
            is_first = path == self._paths[0]
            for episode in self._unless_damaged(path, functools.partial(self._survey_file, is_first=is_first)):
                signals.check()
                if isinstance(episode, Skipped):
                    self.skipped.append(episode)
                else:
                    # Most episodes have equal fields, which are held once.
                    steps, metadata = (
                        alike.setdefault(tuple((name, field, field.file_format) for name, field in each.items()), each)
                        for each in (episode.steps, episode.metadata)
                    )
                    found.append(dataclasses.replace(episode, steps=steps, metadata=metadata))
        return found

    def _survey_file(self, path: str, *, is_first: bool) -> list[_SurveyedEpisode | Skipped]:
        """The episodes of a file, and those that are left out.

        Raises:
          KabukiError: the file cannot be read, or an episode, unless it is left out.
        """
        found: list[_SurveyedEpisode | Skipped] = []
        with self._reading(path):
            file = self._files.open(path)
            if is_first:
                self._info = self._layout.info(file)
            for name in list(self._unused):
                self._unused[name] = self._layout.why_not(file, name, self._assume[name])
                if not self._unused[name]:
                    del self._unused[name]
            for number, episode in enumerate(self._layout.episodes(file, self._assume, self._of_episode)):
                if isinstance(episode, UnreadableEpisode):
                    if not (self._skip_bad or episode.is_empty):
                        raise episode.error
                    found.append(skipped_for(path, number, episode.error))
                    continue
                # Each layout refuses what is not so, and says how; one that did not would shift all rows that follow.
                assert episode.length and all(len(rows) == episode.length for rows in episode.steps.values()), path
                found.append(
                    _SurveyedEpisode(
                        path,
                        number,
                        episode.label,
                        episode.masks,
                        episode.length,
                        episode.last_is_step,
                        {name: rows.field for name, rows in episode.steps.items()},
                        {name: _field_of(value) for name, value in episode.metadata.items()},
                        tuple(name for name, rows in episode.steps.items() if rows.is_blank),
                    )
                )
        if not found:
            raise KabukiError(f"{path}: holds no episode")
        return found

    def _unless_damaged(self, path: str, read: Callable[[str], list[_Item]]) -> list[_Item]:
        """What is read of a file; nothing if it is damaged and can be left out, since there are others."""
        try:
            return read(path)
        except KabukiError as e:
            if not self._skip_bad or len(self._paths) == 1:
                raise
            self._paths.remove(path)
            self.skipped.append(skipped_for(path, 0, e))
            return []

    def _of_split(self, split: str, episodes: Sequence[_SurveyedEpisode]) -> list[_SurveyedEpisode]:
        """The episodes of a mask, or of a part of one.

        Raises:
          KabukiError: there is no such mask.
        """
        masks = sorted({mask for episode in episodes for mask in episode.masks})
        numbers = {mask: np.flatnonzero([mask in episode.masks for episode in episodes]) for mask in masks}
        whole = np.arange(len(episodes))
        splits = {ALL: whole, **(numbers or {WHOLE: whole})}
        return [episodes[number] for number in select_episodes(split, splits, self.label)]

    def _last_rows(self) -> LastRows:
        is_step = np.array([episode.last_is_step for episode in self._taken], bool)
        reasons = []
        if is_step.any():
            reasons.append(f"{self._layout.name} data without an observation after the last action")
        if not is_step.all():
            repeats = self._assume.get("last_observation") == "repeat"
            reasons.append(
                "last_observation=repeat" if repeats else f"{self._layout.name} data with the observation after it"
            )
        return LastRows(is_step, "; ".join(reasons))

    @contextlib.contextmanager
    def _reading(self, path: str) -> Iterator[None]:
        try:
            yield
        except READ_ERRORS as e:
            raise DamagedDataError(f"cannot be read as {self._layout.name}: {e}", file=path) from e

    def size(self) -> Size:
        sample = next(self._blocks(_SAMPLE_BYTES), None)
        num_bytes = sum(map(os.path.getsize, self.files))
        return Size(self.num_steps, True, num_bytes, sample, self._images.decoded)

    def blocks(self, only: Collection[str] | None = None) -> Iterator[Block]:
        yield from self._blocks(_BLOCK_BYTES)

    def _blocks(self, num_bytes: int) -> Iterator[Block]:
        rows = self._rows_in(num_bytes)
        waiting = _BlockBuilder(self.schema)
        origins = {path: number for number, path in enumerate(self._paths)}
        for episode, surveyed in self._episodes():
            for start in range(0, episode.length, rows):
                signals.check()
                stop = min(start + rows, episode.length)
                columns = self._read(surveyed, episode, start, stop)
                waiting.add(columns, stop - start, episode if start == 0 else None, origins[surveyed.path])
                if waiting.nbytes >= num_bytes:
                    yield waiting.block()
        if waiting.num_steps:
            yield waiting.block()

    def _episodes(self) -> Iterator[tuple[DemoEpisode, _SurveyedEpisode]]:
        """The episodes that are taken, with what is known of each.

        Raises:
          KabukiError: a file is not what it was.
        """
        taken = iter(self._taken)
        wanted = next(taken, None)
        while wanted is not None:
            path, before = wanted.path, -1
            with self._reading(path):
                found = enumerate(self._layout.episodes(self._files.open(path), self._assume, self._of_episode))
                # Episodes may be taken in another order than that of their file.
                while wanted is not None and wanted.path == path and wanted.number > before:
                    before = wanted.number
                    episode = next((each for number, each in found if number == before), None)
                    if not isinstance(episode, DemoEpisode) or episode.length != wanted.length:
                        self._files.check_unchanged(path, fits=False)
                    assert isinstance(episode, DemoEpisode)
                    yield episode, wanted
                    wanted = next(taken, None)
            self._files.check_unchanged(path)

    def _read(self, surveyed: _SurveyedEpisode, episode: DemoEpisode, start: int, stop: int) -> dict[str, Column]:
        columns: dict[str, Column] = {}
        for path, field in self._fields.items():
            rows = episode.steps[path]
            if field.encoded and not rows.field.encoded:
                # The rows are blank: the image files of this episode are missing.
                columns[path] = _missing_files(field, stop - start)
                continue
            try:
                column = rows.read(start, stop, self._threads)
            except READ_ERRORS as e:
                raise DamagedDataError(
                    f"{surveyed.label}: field {path!r}: rows {start} to {stop - 1} cannot be read: {e}",
                    file=surveyed.path,
                    field=path,
                    rows=range(start, stop),
                ) from e
            columns[path] = column if field.encoded else _as_field(column, field)
        return self._images.serve(columns, lambda row: (surveyed.path, surveyed.label, start + row), self._threads)

    def _rows_in(self, num_bytes: int) -> int:
        sizes = [field.row_nbytes or 1 << 16 for field in self.schema.steps.values()]
        return max(1, num_bytes // max(sum(sizes), 1))

    def piece(self, first: int, stop: int) -> DemosSource:
        return self.select(np.arange(first, stop))

    def pieces(self, num_bytes: int) -> list[DemosSource]:
        return [self]

    def select(self, episodes: np.ndarray) -> DemosSource:
        """The episodes of these numbers, in this order, as a source that can be read while this one is open."""
        part = copy.copy(self)
        part._take([self._taken[number] for number in episodes.tolist()])
        return part

    def record_of(self, episode: int) -> tuple[str, int]:
        return self._taken[episode].path, self._taken[episode].number

    def name_of(self, episode: int) -> str:
        return self._taken[episode].name

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._files.close()


def _named(paths: Sequence[str]) -> str:
    """What to call the files in a message that is about all of them."""
    return paths[0] if len(paths) == 1 else f"{paths[0]} to {paths[-1]} ({len(paths):,} files)"


def complete_assumptions(layout: str, known: Mapping[str, tuple[str, ...]], assume: Assumptions) -> dict[str, str]:
    """All that is assumed of files in a layout, by the user or by default.

    Args:
      layout: its name.
      known: its assumptions.
      assume: those of the user.

    Raises:
      KabukiError: nothing of the kind can be assumed.
    """
    given = {}
    for name, value in assume.items():
        if (name, value) in _RENAMED:
            renamed = _RENAMED[name, value]
            now = f"use {name}={renamed}" if renamed else "leave it out, it is the default"
            _log.warning("assume: %s=%s is deprecated; %s", name, value, now)
            value = renamed
        given[name] = value
    for name, value in given.items():
        if name not in known:
            there = f"there is {', '.join(known)}" if known else "there is nothing to assume"
            raise InvalidArgumentError(f"assume: {name!r} says nothing of files laid out as {layout}; {there}")
        if known[name] and value not in known[name]:
            raise InvalidArgumentError(f"assume: {name} is {' or '.join(filter(None, known[name]))}, not {value!r}")
    return {name: values[0] for name, values in known.items() if values} | given


class _FieldUnion:
    """Learns the fields from those of each episode.

    Args:
      what: what to call a field in a message.
      of_steps: whether they are fields of the steps, which all episodes have. A field of an episode may be missing in
        some, and an array has as many entries as its episode needs.
    """

    def __init__(self, what: str, *, of_steps: bool):
        self._what = what
        self._of_steps = of_steps
        self._first = ""
        self._blank: set[str] = set()
        self._count = 0
        self.fields: dict[str, Field] = {}
        # The first episode that has a field, and the first that lacks it.
        self._has: dict[str, str] = {}
        self._lacks: dict[str, str] = {}
        self._had: dict[str, int] = {}
        self._retyped: dict[str, np.dtype] = {}
        self._reshaped: dict[str, str] = {}

    def take(self, fields: Mapping[str, Field], label: str, blank: Collection[str] = ()) -> None:
        """Takes those of one more episode.

        Args:
          fields: path to field.
          label: which episode it is.
          blank: the fields whose rows are all empty, so that they may be image files that are missing.

        Raises:
          KabukiError: one differs from that of the episodes before.
        """
        self._first = self._first or label
        for path, theirs in fields.items():
            self._had[path] = self._had.get(path, 0) + 1
            mine = self.fields.get(path)
            if mine is None:
                self.fields[path] = theirs
                self._has[path] = label
                if self._count:
                    self._lacks[path] = self._first
            elif theirs.encoded and path in self._blank:
                self.fields[path] = theirs
            elif not (mine.encoded and path in blank):
                self.fields[path] = self._joined(path, mine, theirs, label)
        for path in self.fields:
            if path not in fields:
                self._lacks.setdefault(path, label)
        self._blank = self._blank & set(blank) if self._count else set(blank)
        self._count += 1

    def _joined(self, path: str, mine: Field, theirs: Field, label: str) -> Field:
        """The field that holds the rows of both.

        Raises:
          KabukiError: there is none.
        """
        dtype = _wider(mine.dtype, theirs.dtype)
        # A decoder of image files would scale 8 bits to 16.
        is_file = mine.encoded and mine.dtype != theirs.dtype
        joint = (
            None
            if dtype is None or is_file
            else join_fields(
                dataclasses.replace(mine, dtype=dtype),
                dataclasses.replace(theirs, dtype=dtype),
                of_any_length=not self._of_steps,
            )
        )
        if joint is None:
            raise SchemaMismatchError(
                difference(self._what, path, mine, self._has[path], theirs, label), fields=(path,)
            )
        if joint.dtype != mine.dtype or joint.dtype != theirs.dtype:
            self._retyped[path] = joint.dtype
        if theirs.shape != mine.shape:
            self._reshaped.setdefault(path, difference(self._what, path, mine, self._has[path], theirs, label))
        return joint

    def finish(self, label: str) -> None:
        """Warns of fields that only some episodes have, and of those that differ in type or shape.

        Raises:
          KabukiError: only some episodes have a field of the steps.
        """
        if self._lacks and self._of_steps:
            some = (
                f"{self._what} {path!r} is in {self._has[path]}, but not in {lacks}"
                for path, lacks in self._lacks.items()
            )
            raise KabukiError("; ".join(some))
        for path, dtype in self._retyped.items():
            _log.warning("%s: %r is of several types, and all of it %s now, which holds each value", label, path, dtype)
        for why in self._reshaped.values():
            warn_of_shapes(why)
        lacking: dict[int, list[str]] = {}
        for path, count in self._had.items():
            lacking.setdefault(self._count - count, []).append(path)
        for count, paths in lacking.items():
            if count:
                _log.warning(
                    "%s: %d of %d episodes have no %s; zeros and empty text stand for it",
                    label, count, self._count, ", ".join(map(repr, paths)),
                )  # fmt: skip


class _BlockBuilder:
    """Rows that are to become a block."""

    def __init__(self, schema: Schema):
        self._schema = schema
        self._clear()

    def _clear(self) -> None:
        self.num_steps = 0
        self.nbytes = 0
        self._parts: list[Mapping[str, Column]] = []
        self._starts: list[int] = []
        self._metadata: list[Mapping[str, object]] = []
        self._origin_of: list[int] = []

    def add(self, columns: Mapping[str, Column], count: int, begins: DemoEpisode | None, origin: int) -> None:
        """Takes some rows of an episode, which begins with them or is None, and the number of its file."""
        if begins is not None:
            self._starts.append(self.num_steps)
            self._origin_of.append(origin)
            self._metadata.append(begins.metadata)
        self._parts.append(columns)
        self.num_steps += count
        self.nbytes += nbytes(columns.values())

    def block(self) -> Block:
        """All that was taken since the last one."""
        block = Block(
            {path: concatenate([part[path] for part in self._parts]) for path in self._schema.steps},
            self.num_steps,
            np.array(self._starts, np.int64),
            {path: self._of_episodes(path, field) for path, field in self._schema.metadata.items()},
            np.array(self._origin_of, np.int64),
        )
        self._clear()
        return block

    def _of_episodes(self, path: str, field: Field) -> Column:
        lacking = empty_row(field)
        values = [_as_value(each[path]) if path in each else lacking for each in self._metadata]
        if None in field.shape:
            shapes = np.array([value.shape for value in values], np.int64).reshape(len(values), len(field.shape))
            return Ragged(np.concatenate([np.empty(0, field.dtype), *(v.reshape(-1) for v in values)]), shapes)
        column = np.empty((len(values), *(d for d in field.shape if d is not None)), field.dtype)
        for i, value in enumerate(values):
            column[i] = value[()]
        return column


def _as_value(value: object) -> np.ndarray:
    """What an episode says, as an array; text as bytes."""
    if isinstance(value, str):
        value = text_bytes(value)
    if isinstance(value, bytes):
        array = np.empty((), object)
        array[()] = value
        return array
    return np.asarray(value)


def _field_of(value: object) -> Field:
    array = _as_value(value)
    return Field(array.dtype, array.shape, "text" if array.dtype == BYTES else "array")


def _missing_files(field: Field, count: int) -> Column:
    """Rows of empty image files."""
    if not field.is_list_of_images:
        return np.full(count, b"", object)
    files = field.shape[0] or 1
    return Ragged(np.full(count * files, b"", object), np.full((count, 1), files, np.int64))


def _as_field(column: Column, field: Field) -> Column:
    """The rows of one episode, in the form that those of all have."""
    if not isinstance(column, np.ndarray):
        return column
    column = column.astype(field.dtype, copy=False)
    return as_ragged(column) if None in field.shape else column


def _wider(a: np.dtype, b: np.dtype) -> np.dtype | None:
    """The one of two types that holds all values of both, if they are of one kind."""
    if a.kind != b.kind:
        return None
    return a if np.can_cast(b, a) else b if np.can_cast(a, b) else None
