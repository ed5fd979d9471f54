"""Files of episodes, in whichever layout, as one source."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import h5py
import numpy as np

from kabuki_rlds import interruption
from kabuki_rlds.block import Block, Column, Ragged, as_ragged, concatenate, nbytes
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.formats.hdf5.file import open_file
from kabuki_rlds.formats.hdf5.reader import READ_ERRORS
from kabuki_rlds.formats.layouts.episode import Episode, empty_row, text_bytes
from kabuki_rlds.formats.part import PartOfSource
from kabuki_rlds.formats.source import Origin, Size, Skipped, stamp
from kabuki_rlds.images.columns import ImageColumns
from kabuki_rlds.joining import difference, join_fields, warn_of_shapes
from kabuki_rlds.last_row import LastRows
from kabuki_rlds.schema import BYTES, Field, Info, Schema

_log = logging.getLogger("kabuki_rlds")

#: A block takes about this many bytes, and a sample.
_BLOCK_BYTES = 16 << 20
_SAMPLE_BYTES = 1 << 20

#: Values of assumptions that are deprecated, and the values that replace them.
_RENAMED = {("last_observation", "terminal"): "repeat", ("last_observation", "none"): ""}

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

    def episodes(self, file: Any, assume: Assumptions, of_episode: Collection[str]) -> Iterator[Episode]:
        """The episodes of a file, in order.

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
class _Survey:
    """What is known of a file before its steps are read: the numbers of its episodes that are taken, and their rows."""

    path: str
    taken: list[int]
    lengths: list[int]
    last_is_step: list[bool]

    def part(self, first: int, stop: int) -> _Survey:
        """That of some of the episodes."""
        return _Survey(self.path, self.taken[first:stop], self.lengths[first:stop], self.last_is_step[first:stop])


class EpisodesSource:
    """The episodes of one or more files in one layout, in order.

    Args:
      layout: how the files are laid out.
      paths: the files.
      split: the name of a mask, of whose episodes alone are taken; None takes all.
      assume: what the files do not say.
      images: how images that are stored as image files are read.
      asked: the assumptions that must apply to one file at least.

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
    ):
        self._layout = layout
        self._split = split
        self._assume = complete_assumptions(layout.name, layout.assumptions, assume or {})
        self._paths = [os.fspath(path) for path in paths]
        self.label = self._paths[0] if len(paths) == 1 else f"{self._paths[0]} and {len(paths) - 1} more"
        self.files = [os.path.abspath(file) for path in self._paths for file in layout.files(path)]
        self._threads = concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1, "kabuki-read")
        self._open = contextlib.ExitStack()
        self._open_path = ""
        self._opened: Any = None
        self._stamps: dict[str, dict[str, list[int] | None]] = {}
        self._steps = _Fields("step field", of_steps=True)
        self._metadata = _Fields("episode field", of_steps=False)
        self._masks: set[str] = set()
        #: Of the assumptions that must apply, those that cannot apply to any file so far, and why.
        self._unused = {name: "" for name in asked if self._assume[name] not in layout.assumptions[name][:1]}
        try:
            self._of_episode = self._not_of_steps()
            self._surveys = [self._survey(path) for path in self._paths]
            self._steps.finish(self.label)
            self._metadata.finish(self.label)
            for name, why in self._unused.items():
                raise KabukiError(f"{self._paths[0]}: assume: {name}={self._assume[name]} cannot apply, since {why}")
        except BaseException:
            self.close()
            raise
        counts = [len(survey.taken) for survey in self._surveys]
        if split is not None and split not in self._masks:
            self.close()
            raise KabukiError(
                f"{self.label}: no split {split!r}; "
                + (f"there is {', '.join(sorted(self._masks))}" if self._masks else "these files are one split")
            )
        self.num_episodes = sum(counts)
        self.num_steps = sum(sum(survey.lengths) for survey in self._surveys)
        self.origins = [Origin(os.path.realpath(path), split=split or "", format=layout.name) for path in self._paths]
        self.origin_of = np.repeat(np.arange(len(counts)), counts)
        self.last_rows: LastRows | None = self._last_rows()
        self.skipped: list[Skipped] = []
        found = self._steps.fields
        self._images = ImageColumns(found, self.label, decode=found if images == "arrays" else (), like_headers=found)
        steps, metadata = self._images.fields, self._metadata.fields
        self.schema = Schema(dict(sorted(steps.items())), dict(sorted(metadata.items())), info=self._info)

    def _not_of_steps(self) -> set[str]:
        """Those of the extras that have not a row for each action in each of the episodes."""
        seen: set[str] = set()
        always: set[str] | None = None
        for path in self._paths:
            interruption.check()
            with self._reading(path):
                for names, of_steps in self._layout.extras(self._file(path)):
                    seen |= names
                    always = of_steps if always is None else always & of_steps
        return seen - (always or set())

    def _survey(self, path: str) -> _Survey:
        taken, lengths, last_is_step = [], [], []
        file = self._file(path)
        if path == self._paths[0]:
            with self._reading(path):
                self._info = self._layout.info(file)
        for name in list(self._unused):
            with self._reading(path):
                self._unused[name] = self._layout.why_not(file, name, self._assume[name])
            if not self._unused[name]:
                del self._unused[name]
        for number, episode in enumerate(self._episodes(path, file)):
            interruption.check()
            self._masks |= episode.masks
            if self._split is not None and self._split not in episode.masks:
                continue
            label = f"{path}: {episode.label}"
            # Each layout refuses what is not so, and says how; one that did not would shift all rows that follow.
            assert episode.length and all(len(rows) == episode.length for rows in episode.steps.values()), label
            blank = [name for name, rows in episode.steps.items() if rows.is_blank]
            self._steps.take({name: rows.field for name, rows in episode.steps.items()}, label, blank)
            self._metadata.take({name: _field_of(value) for name, value in episode.metadata.items()}, label)
            taken.append(number)
            lengths.append(episode.length)
            last_is_step.append(episode.last_is_step)
        if not taken and self._split is None:
            raise KabukiError(f"{path}: holds no episode")
        return _Survey(path, taken, lengths, last_is_step)

    def _episodes(self, path: str, file: Any) -> Iterator[Episode]:
        with self._reading(path):
            yield from self._layout.episodes(file, self._assume, self._of_episode)

    @contextlib.contextmanager
    def _reading(self, path: str) -> Iterator[None]:
        try:
            yield
        except READ_ERRORS as e:
            raise KabukiError(f"{path}: cannot be read as {self._layout.name}: {e}") from e

    def _last_rows(self) -> LastRows:
        is_step = np.array([each for survey in self._surveys for each in survey.last_is_step], bool)
        reasons = []
        if is_step.any():
            reasons.append(f"{self._layout.name} data without an observation after the last action")
        if not is_step.all():
            repeats = self._assume.get("last_observation") == "repeat"
            reasons.append(
                "last_observation=repeat" if repeats else f"{self._layout.name} data with the observation after it"
            )
        return LastRows(is_step, "; ".join(reasons))

    def size(self) -> Size:
        sample = next(self._blocks(_SAMPLE_BYTES), None)
        num_bytes = sum(map(os.path.getsize, self.files))
        return Size(self.num_steps, True, num_bytes, sample, self._images.decoded)

    def blocks(self, only: Collection[str] | None = None) -> Iterator[Block]:
        yield from self._blocks(_BLOCK_BYTES)

    def blocks_of(self, first: int, stop: int) -> Iterator[Block]:
        """The blocks of the episodes `first` to `stop`, without what comes before them. One such pass at a time."""
        begin = 0
        surveys = []
        for survey in self._surveys:
            a, b = max(first - begin, 0), min(stop - begin, len(survey.taken))
            begin += len(survey.taken)
            if a < b:
                surveys.append(survey.part(a, b))
        return self._blocks(_BLOCK_BYTES, surveys)

    def _blocks(self, num_bytes: int, surveys: Sequence[_Survey] | None = None) -> Iterator[Block]:
        rows = self._rows_in(num_bytes)
        waiting = _Waiting(self.schema)
        for survey in self._surveys if surveys is None else surveys:
            if not survey.taken:
                continue
            taken, lengths = set(survey.taken), []
            file = self._file(survey.path)
            for number, episode in enumerate(self._episodes(survey.path, file)):
                if number not in taken:
                    continue
                lengths.append(episode.length)
                for start in range(0, episode.length, rows):
                    interruption.check()
                    stop = min(start + rows, episode.length)
                    columns = self._read(f"{survey.path}: {episode.label}", episode, start, stop)
                    waiting.add(columns, stop - start, episode if start == 0 else None)
                    if waiting.nbytes >= num_bytes:
                        yield waiting.block()
            self._check_unchanged(survey.path, lengths == survey.lengths)
        if waiting.num_steps:
            yield waiting.block()

    def _read(self, label: str, episode: Episode, start: int, stop: int) -> dict[str, Column]:
        columns: dict[str, Column] = {}
        for path, field in self._steps.fields.items():
            rows = episode.steps[path]
            if field.encoded and not rows.field.encoded:
                # The rows are blank: the image files of this episode are missing.
                columns[path] = np.full(stop - start, b"", object)
                continue
            try:
                column = rows.read(start, stop, self._threads)
            except READ_ERRORS as e:
                raise KabukiError(f"{label}: field {path!r}: rows {start} to {stop - 1} cannot be read: {e}") from e
            columns[path] = column if field.encoded else _as_field(column, field)
        return self._images.serve(columns, lambda row: f"{label}: row {start + row}", self._threads)

    def _rows_in(self, num_bytes: int) -> int:
        sizes = [field.row_nbytes or 1 << 16 for field in self.schema.steps.values()]
        return max(1, num_bytes // max(sum(sizes), 1))

    def piece(self, first: int, stop: int) -> PartOfSource:
        return PartOfSource(self, first, stop, self.blocks_of)

    def pieces(self, num_bytes: int) -> list[EpisodesSource]:
        return [self]

    def _file(self, path: str) -> Any:
        """A file, opened; the one before it is closed. To open one is to look at all objects in it."""
        if self._open_path != path:
            self._open.close()
            self._open_path = ""
            is_known = path in self._stamps
            self._check_unchanged(path)
            self._opened = self._open.enter_context(self._layout.open(path, quiet=is_known))
            self._open_path = path
        return self._opened

    def _check_unchanged(self, path: str, fits: bool = True) -> None:
        """Refuses files that are not what they were when they were first opened, or in which other episodes were read.

        Raises:
          KabukiError: they are not.
        """
        stamps = {file: stamp(file) for file in self._layout.files(path)}
        if not fits or self._stamps.setdefault(path, stamps) != stamps:
            raise KabukiError(f"{path}: changed while it was read; run again when nothing writes to it")

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._open.close()


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
            raise KabukiError(f"assume: {name!r} says nothing of files laid out as {layout}; {there}")
        if known[name] and value not in known[name]:
            raise KabukiError(f"assume: {name} is {' or '.join(filter(None, known[name]))}, not {value!r}")
    return {name: values[0] for name, values in known.items() if values} | given


class _Fields:
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
            raise KabukiError(difference(self._what, path, mine, self._has[path], theirs, label))
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


class _Waiting:
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

    def add(self, columns: Mapping[str, Column], count: int, begins: Episode | None) -> None:
        """Takes some rows of an episode, which begins with them or is None."""
        if begins is not None:
            self._starts.append(self.num_steps)
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
