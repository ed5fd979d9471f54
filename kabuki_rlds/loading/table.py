"""Kabuki files as one table: their steps end to end, read by spans or by any rows."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import math
import numbers
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from kabuki_rlds.data.block import Column, concatenate, row_splits, take
from kabuki_rlds.data.common_schema import check_equal
from kabuki_rlds.data.last_row import LastRow, LastRows
from kabuki_rlds.data.rules import IS_TERMINAL, is_flag_or_number
from kabuki_rlds.data.schema import BYTES, Field, Schema
from kabuki_rlds.errors import DamagedDataError, SchemaMismatchError
from kabuki_rlds.formats.hdf5 import layout, unstated_last_rows
from kabuki_rlds.formats.hdf5.fixed import FixedReader
from kabuki_rlds.formats.hdf5.source import READ_ERRORS, ColumnReader, KabukiSource, column_reader
from kabuki_rlds.formats.hdf5.variable import VariableReader
from kabuki_rlds.formats.safe_hdf5.attributes import Attributes
from kabuki_rlds.images.decode import ImageDecoder
from kabuki_rlds.loading.n_step_returns import RETURNS, ReturnReader, Returns
from kabuki_rlds.loading.table_episodes import Episodes

#: The paths of the step fields to read, given a file's schema and its path.
RowSelection: TypeAlias = Callable[[Schema, str], Sequence[str]]
#: Gives the rows of the given numbers, int64 (n,), of the fields of the given paths.
Take: TypeAlias = Callable[[Sequence[str], np.ndarray], dict[str, Column]]

#: What Python adds to each row of text or of variable length.
_OBJECT_BYTES = 64
#: Rows that are read at once take about this much.
_SPAN_BYTES = 16 << 20


class Table:
    """The steps of one or several files, open to read.

    Args:
      paths: the files, in order.
      select: which step fields to read, given the schema and the path of the first file.
      returns: what to serve in the place of rewards and discounts; None is these.
      last_row: what the last row of each episode is; None is what the files state, else an observation.
      quiet: as for `KabukiSource`.

    Attributes:
      stored: path to field, of the selected ones.
      fields: the same, with returns.
      episodes: the episodes of all files.
      num_rows: how many rows there are.
      threads: what unpacks chunks, and decodes images.

    Raises:
      KabukiError: a file cannot be opened, or is not whole, or a field of one does
        not fit that of the first.
    """

    def __init__(
        self,
        paths: Sequence[str],
        select: RowSelection,
        returns: Returns | None = None,
        last_row: LastRow | None = None,
        *,
        quiet: bool = False,
    ):
        self._stack = contextlib.ExitStack()
        try:
            self._sources = [self._open(path, quiet) for path in paths]
            first = self._sources[0].schema
            self.stored = {path: first.steps[path] for path in select(first, paths[0])}
            for source in self._sources[1:]:
                theirs = {path: source.schema.steps[path] for path in self.stored if path in source.schema.steps}
                check_equal(Schema(self.stored, {}), Schema(theirs, {}), paths[0], source.path)
            self._splits = row_splits(np.array([source.num_steps for source in self._sources], np.int64))
            self.num_rows = int(self._splits[-1])
            self._episodes = [_episodes(source, last_row) for source in self._sources]
            self.episodes = _end_to_end(self._episodes, self._splits)
            self.threads = concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1, "kabuki-read")
            self._stack.callback(self.threads.shutdown, cancel_futures=True)
            self._readers = [{path: self._reader(source, path) for path in self.stored} for source in self._sources]
            self.fields = dict(self.stored)
            if returns is not None:
                self._put(returns)
        except BaseException:
            self.close()
            raise

    def _open(self, path: str, quiet: bool) -> KabukiSource:
        source = self._stack.enter_context(KabukiSource(path, quiet=quiet))
        source.check_whole()
        return source

    def _reader(self, source: KabukiSource, path: str) -> ColumnReader | ReturnReader:
        with _naming(source, path, "it"):
            return column_reader(source.step_datasets[path], source.schema.steps[path], self.threads)

    def _put(self, returns: Returns) -> None:
        """Puts returns in the place of rewards and discounts."""
        for path in RETURNS:
            self.fields[path] = returns.field(self.stored[path])
        for episodes, readers in zip(self._episodes, self._readers, strict=True):
            rewards, discounts = (readers[path] for path in RETURNS)
            assert isinstance(rewards, FixedReader) and isinstance(discounts, FixedReader)
            for path in RETURNS:
                readers[path] = ReturnReader(path, returns, self.fields[path], rewards, discounts, episodes)

    @functools.cached_property
    def row_nbytes(self) -> int:
        """About how many bytes a row of the selected fields takes, as it is stored before any gzip."""
        sizes = [self._row_nbytes(path, field) for path, field in self.fields.items()]
        known = sum(size or 0 for size in sizes)
        if None in sizes:
            # What varies is stored as it is, so the files' sizes bound it.
            stored = sum(source.file.id.get_filesize() for source in self._sources)
            known += stored // max(self.num_rows, 1) + _OBJECT_BYTES * sizes.count(None)
        return max(known, 1)

    def _row_nbytes(self, path: str, field: Field) -> int | None:
        """Bytes of a row of one field, None where rows differ in size."""
        if _is_fixed(field):
            return field.row_nbytes
        stored = [layout.stored_row_nbytes(source.step_datasets[path]) for source in self._sources]
        # Text of fixed length may be gzip'd to next to nothing.
        return None if None in stored else _OBJECT_BYTES + max(size or 0 for size in stored)

    def begin(self, start: int, stop: int) -> Callable[[], dict[str, Column]]:
        """Begins to read rows `start` to `stop` of all fields; what it returns waits for them."""
        begun = {path: list(self._parts(path, start, stop)) for path in self.fields}
        return lambda: {path: concatenate([finish() for _, finish in parts]) for path, parts in begun.items()}

    def load(self) -> dict[str, Column]:
        """All rows of all fields."""
        return {path: self._load(path, field) for path, field in self.fields.items()}

    def _load(self, path: str, field: Field) -> Column:
        step = max(1, _SPAN_BYTES // self.row_nbytes)
        spans = ((start, min(start + step, self.num_rows)) for start in range(0, self.num_rows, step))
        begun = (part for span in spans for part in self._parts(path, *span))
        parts = ((at, finish()) for at, finish in begun)
        if not _is_fixed(field):
            return concatenate([part for _, part in parts])
        out = np.empty((self.num_rows, *(d for d in field.shape if d is not None)), field.dtype)
        for at, part in parts:
            out[at : at + len(part)] = part
        return out

    def _parts(self, path: str, start: int, stop: int) -> Iterator[tuple[int, Callable[[], Column]]]:
        """(first row, what waits for the rows) of the part of each file that has some of the rows `start` to `stop`."""
        for i, (first, end) in enumerate(itertools.pairwise(self._splits.tolist())):
            a, b = max(start, first), min(stop, end)
            if a < b:
                yield a, self._begin(i, path, a - first, b - first)

    def _begin(self, i: int, path: str, start: int, stop: int) -> Callable[[], Column]:
        reader = self._readers[i][path]
        naming = functools.partial(_naming, self._sources[i], path, f"rows {start} to {stop - 1}")
        with naming():
            finish = reader.begin(start, stop) if isinstance(reader, FixedReader) else None

        def finished() -> Column:
            with naming():
                return reader.read(start, stop) if finish is None else finish()

        return finished

    def take(self, paths: Sequence[str], rows: np.ndarray) -> dict[str, Column]:
        """The rows of the given numbers, in any order; every chunk of the files is read once at the most."""
        order = np.argsort(rows)
        ascending = rows[order]
        cuts = np.searchsorted(ascending, self._splits).tolist()
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        columns: dict[str, Column] = {}
        for path in paths:
            field = self.fields[path]
            out = None
            if _is_fixed(field):
                out = np.empty((len(rows), *(d for d in field.shape if d is not None)), field.dtype)
            parts = []
            for i, (a, b) in enumerate(itertools.pairwise(cuts)):
                if a < b:
                    numbers = ascending[a:b] - self._splits[i]
                    parts.append(self._take(i, path, numbers, out, order[a:b]))
            columns[path] = out if out is not None else take(concatenate(parts), back)
        return columns

    def _take(self, i: int, path: str, rows: np.ndarray, out: np.ndarray | None, places: np.ndarray) -> Column:
        """Rows of the i-th file, put at their places in `out` where the field is fixed."""
        reader = self._readers[i][path]
        try:
            if not isinstance(reader, VariableReader):
                assert out is not None
                reader.take_into(out, rows, places)
                return out
            return reader.take(rows)
        except READ_ERRORS:
            # It was one of many rows: read them chunk by chunk to tell which.
            for first in np.unique(rows - rows % reader.run_rows).tolist():
                last = min(first + reader.run_rows, self._sources[i].num_steps) - 1
                with _naming(self._sources[i], path, f"rows {first} to {last}"):
                    reader.read(first, last + 1)
            raise

    def place_of(self, row: int) -> tuple[str, int]:
        """The file that holds a row, and the number of the row there."""
        i = int(np.searchsorted(self._splits, row, side="right")) - 1
        return self._sources[i].path, row - int(self._splits[i])

    def select_metadata(self, names: str | Sequence[str]) -> list[str]:
        """The fields of the episodes' metadata of these paths or groups.

        Raises:
          KabukiError: the first file has no such field.
          SchemaMismatchError: the fields of another file differ.
        """
        first = self._sources[0]
        chosen = Schema(first.schema.metadata, {}).select(names, first.path) if names else []
        for source in self._sources[1:]:
            ours, theirs = ({path: each.schema.metadata.get(path) for path in chosen} for each in (first, source))
            if ours != theirs:
                differing = tuple(path for path in chosen if ours[path] != theirs[path])
                raise SchemaMismatchError(
                    f"episode metadata {', '.join(differing)}: not as in {first.path}",
                    file=source.path,
                    fields=differing,
                )
        return chosen

    def metadata(self, paths: Sequence[str]) -> dict[str, Column]:
        """Path to the values of all episodes, images decoded."""
        fields = {path: self._sources[0].schema.metadata[path] for path in paths}
        parts: dict[str, list[Column]] = {path: [] for path in paths}
        for source in self._sources:
            for path, field in fields.items():
                with _naming(source, f"episodes/metadata/{path}", "it"):
                    reader = column_reader(source.metadata_datasets[path], field, self.threads)
                    parts[path].append(reader.read(0, source.num_episodes))
        columns = {path: concatenate(columns) for path, columns in parts.items()}
        return ImageDecoder(fields, self._sources[0].path).decode(columns, self.threads)

    @property
    def rate_hz(self) -> float | None:
        """Steps per second, None if a file does not state it.

        Raises:
          SchemaMismatchError: the files differ.
          DamagedDataError: it is not a positive number.
        """
        rates = {Attributes(source.file).get("rate_hz") for source in self._sources}
        if len(rates) > 1:
            raise SchemaMismatchError(
                f"the files differ in rate_hz ({', '.join(map(str, rates))})", file=self._sources[0].path
            )
        (rate,) = rates
        if rate is not None and not (isinstance(rate, numbers.Real) and 0 < float(rate) < math.inf):
            raise DamagedDataError(f"rate_hz is {rate!r}, not a number of steps per second", file=self._sources[0].path)
        return None if rate is None else float(rate)

    def close(self) -> None:
        """Closes the files."""
        self._stack.close()

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def within(columns: dict[str, Column], first: int = 0) -> Take:
    """Takes rows out of columns that are held in memory, of which row 0 is the table's row `first`."""

    def taken(paths: Sequence[str], rows: np.ndarray) -> dict[str, Column]:
        rows = rows - first if first else rows
        return {path: take(columns[path], rows) for path in paths}

    return taken


def _episodes(source: KabukiSource, last_row: LastRow | None) -> Episodes:
    """The episodes of one file."""
    if last_row is None:
        unstated_last_rows.warn_if_unstated(source)
        known = source.last_rows or LastRows.of_all(False, source.num_episodes, "the file does not say it")
    else:
        known = LastRows.by_user(last_row, source.num_episodes)
    is_step = known.is_step & (source.ends > source.starts)
    terminates = np.zeros(source.num_episodes, bool)
    field = source.schema.steps.get(IS_TERMINAL)
    if is_step.any() and field is not None and field.is_fixed and is_flag_or_number(field.dtype):
        with _naming(source, IS_TERMINAL, "it"):
            flags = np.zeros((int(is_step.sum()), *(d or 0 for d in field.shape)), field.dtype)
            reader = source.reader(IS_TERMINAL)
            assert isinstance(reader, FixedReader)
            reader.take_into(flags, source.ends[is_step] - 1, np.arange(len(flags)))
        terminates[is_step] = flags.astype(bool).reshape(len(flags), -1).any(axis=1)
    return Episodes(source.starts, source.ends, source.ends - ~is_step, terminates)


def _end_to_end(parts: Sequence[Episodes], splits: np.ndarray) -> Episodes:
    """The episodes of all files; `splits` are the rows at which the files begin."""
    moved = [
        Episodes(part.starts + at, part.ends + at, part.action_ends + at, part.terminates)
        for part, at in zip(parts, splits.tolist(), strict=False)
    ]
    return Episodes(
        *(np.concatenate([getattr(part, field.name) for part in moved]) for field in dataclasses.fields(Episodes))
    )


def _is_fixed(field: Field) -> bool:
    return field.is_fixed and field.dtype != BYTES


@contextlib.contextmanager
def _naming(source: KabukiSource, path: str, what: str) -> Iterator[None]:
    """Says in which field of which file reading failed."""
    try:
        yield
    except READ_ERRORS as e:
        raise DamagedDataError(f"field {path!r}: {what} cannot be read: {e}", file=source.path, field=path) from e
