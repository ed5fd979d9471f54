"""Reads the steps of several Kabuki files as one table, by spans of rows or by row indices."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import math
import numbers
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from kabuki_rlds.data.block import Column, concatenate, row_splits, take
from kabuki_rlds.data.common_schema import check_equal
from kabuki_rlds.data.last_row import LastRow, LastRows
from kabuki_rlds.data.rules import IS_TERMINAL, is_flag_or_number
from kabuki_rlds.data.schema import BYTES, Field, Schema
from kabuki_rlds.errors import DamagedDataError, KabukiError, SchemaMismatchError
from kabuki_rlds.formats.hdf5 import layout, unstated_last_rows
from kabuki_rlds.formats.hdf5.column_reader import READ_ERRORS, ColumnReader, column_reader
from kabuki_rlds.formats.hdf5.fixed import FixedReader
from kabuki_rlds.formats.hdf5.source import KabukiSource
from kabuki_rlds.formats.hdf5.variable_reader import VariableReader
from kabuki_rlds.formats.safe_hdf5.attributes import Attributes
from kabuki_rlds.images.decode import ImageDecoder
from kabuki_rlds.loading.n_step_returns import RETURNS, ReturnReader, Returns
from kabuki_rlds.loading.table_episodes import Episodes

#: (schema of a file, path of the file) to the paths of the step fields to read.
RowSelection: TypeAlias = Callable[[Schema, str], Sequence[str]]
#: (paths of fields, row indices: int64, (n,)) to path -> column of these rows.
Take: TypeAlias = Callable[[Sequence[str], np.ndarray], dict[str, Column]]

#: The size of the Python object of a row of text or of variable length.
_OBJECT_BYTES = 64
#: The approximate size of the rows that are read together.
_SPAN_BYTES = 16 << 20


class Table:
    """The steps of one or more open Kabuki files, concatenated.

    Args:
      paths: the files, in order.
      select: chooses the step fields to read, from the schema and path of the first file.
      returns: how to compute n-step returns; None reads the stored rewards and discounts.
      last_row: whether last rows are a "step" or an "observation"; None takes what each file states, and
        "observation" if it states nothing.
      quiet: do not warn about a file, because an earlier open already did.

    Attributes:
      stored: path to field, for the selected fields as they are stored.
      fields: path to field, for the selected fields as they are read, with n-step returns.
      episodes: the episodes of all files.
      num_rows: the number of rows.
      threads: a thread pool to decompress chunks and decode images.
      label: the first file, for messages.

    Raises:
      KabukiError: a file cannot be opened or is incomplete, or its fields differ from those of the first file.
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
            self.label = paths[0]
            first = self._sources[0].schema
            self.stored = {path: first.steps[path] for path in select(first, paths[0])}
            for source in self._sources[1:]:
                theirs = {path: source.schema.steps[path] for path in self.stored if path in source.schema.steps}
                check_equal(Schema(self.stored, {}), Schema(theirs, {}), paths[0], source.path)
            self._splits = row_splits(np.array([source.num_steps for source in self._sources], np.int64))
            self.num_rows = int(self._splits[-1])
            self._episodes = [_episodes(source, last_row, quiet) for source in self._sources]
            self.episodes = _concatenate(self._episodes, self._splits)
            self.threads = concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1, "kabuki-read")
            self._stack.callback(self.threads.shutdown, cancel_futures=True)
            self._readers = [{path: self._reader(source, path) for path in self.stored} for source in self._sources]
            self.fields = dict(self.stored)
            if returns is not None:
                self._compute_returns(returns)
        except BaseException:
            self.close()
            raise

    def _open(self, path: str, quiet: bool) -> KabukiSource:
        source = self._stack.enter_context(KabukiSource(path, quiet=quiet))
        source.check_complete()
        return source

    def _reader(self, source: KabukiSource, path: str) -> ColumnReader | ReturnReader:
        with _read_errors_of(source, path, "it"):
            return column_reader(source.step_datasets[path], source.schema.steps[path], self.threads)

    def _compute_returns(self, returns: Returns) -> None:
        """Replaces the readers of rewards and discounts by readers of n-step returns."""
        for path in RETURNS:
            self.fields[path] = returns.field(self.stored[path])
        for episodes, readers in zip(self._episodes, self._readers, strict=True):
            rewards, discounts = (readers[path] for path in RETURNS)
            assert isinstance(rewards, FixedReader) and isinstance(discounts, FixedReader)
            for path in RETURNS:
                readers[path] = ReturnReader(path, returns, self.fields[path], rewards, discounts, episodes)

    @functools.cached_property
    def row_nbytes(self) -> int:
        """The approximate size in bytes of an uncompressed row of the selected fields."""
        sizes = [self._row_nbytes(path, field) for path, field in self.fields.items()]
        known = sum(size or 0 for size in sizes)
        if None in sizes:
            # Data of variable length are stored uncompressed, so the size of the files is an upper bound.
            stored = sum(source.file.id.get_filesize() for source in self._sources)
            known += stored // max(self.num_rows, 1) + _OBJECT_BYTES * sizes.count(None)
        return max(known, 1)

    def _row_nbytes(self, path: str, field: Field) -> int | None:
        """The size in bytes of a row of a field; None if it varies."""
        if _is_fixed(field):
            return field.row_nbytes
        stored = [layout.stored_row_nbytes(source.step_datasets[path]) for source in self._sources]
        # Text of fixed length can be compressed, so use its uncompressed size.
        return None if None in stored else _OBJECT_BYTES + max(size or 0 for size in stored)

    def begin(self, start: int, stop: int) -> Callable[[], dict[str, Column]]:
        """Starts to read the rows `start` to `stop` of all fields. The returned function waits and returns them."""
        begun = {path: list(self._parts(path, start, stop)) for path in self.fields}
        return lambda: {path: concatenate([finish() for _, finish in parts]) for path, parts in begun.items()}

    def load(self, stop: threading.Event) -> dict[str, Column] | None:
        """Path to column, with all rows of all fields. None if `stop` was set in the meantime."""
        columns = {}
        for path, field in self.fields.items():
            column = self._load(path, field, stop)
            if column is None:
                return None
            columns[path] = column
        return columns

    def _load(self, path: str, field: Field, stop: threading.Event) -> Column | None:
        step = max(1, _SPAN_BYTES // self.row_nbytes)
        spans = ((start, min(start + step, self.num_rows)) for start in range(0, self.num_rows, step))
        begun = (
            part
            for span in itertools.takewhile(lambda _: not stop.is_set(), spans)
            for part in self._parts(path, *span)
        )
        parts = ((at, finish()) for at, finish in begun)
        if _is_fixed(field):
            out = np.empty((self.num_rows, *(d for d in field.shape if d is not None)), field.dtype)
            for at, part in parts:
                out[at : at + len(part)] = part
            return None if stop.is_set() else out
        columns = [part for _, part in parts]
        return None if stop.is_set() else concatenate(columns)

    def _parts(self, path: str, start: int, stop: int) -> Iterator[tuple[int, Callable[[], Column]]]:
        """Starts to read the rows `start` to `stop` of a field.

        Yields (first row, function that waits and returns the rows) for each file that has some of the rows.
        """
        for i, (first, end) in enumerate(itertools.pairwise(self._splits.tolist())):
            a, b = max(start, first), min(stop, end)
            if a < b:
                yield a, self._begin(i, path, a - first, b - first)

    def _begin(self, i: int, path: str, start: int, stop: int) -> Callable[[], Column]:
        reader = self._readers[i][path]
        naming = functools.partial(_read_errors_of, self._sources[i], path, f"rows {start} to {stop - 1}")
        with naming():
            finish = reader.begin(start, stop) if isinstance(reader, FixedReader) else None

        def finished() -> Column:
            with naming():
                return reader.read(start, stop) if finish is None else finish()

        return finished

    def take(self, paths: Sequence[str], rows: np.ndarray) -> dict[str, Column]:
        """Reads the rows with the given indices, in any order. Each chunk of a file is read at most once."""
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
        """Reads rows of file `i`. Rows of fixed shape are written to `out[places]`."""
        reader = self._readers[i][path]
        try:
            if not isinstance(reader, VariableReader):
                assert out is not None
                reader.take_into(out, rows, places)
                return out
            return reader.take(rows)
        except READ_ERRORS:
            # Read chunk by chunk, to name the damaged rows.
            for first in np.unique(rows - rows % reader.run_rows).tolist():
                last = min(first + reader.run_rows, self._sources[i].num_steps) - 1
                with _read_errors_of(self._sources[i], path, f"rows {first} to {last}"):
                    reader.read(first, last + 1)
            raise

    def place_of(self, row: int) -> tuple[str, int]:
        """(path of the file that holds a row, index of the row in that file)."""
        i = int(np.searchsorted(self._splits, row, side="right")) - 1
        return self._sources[i].path, row - int(self._splits[i])

    def select_metadata(self, names: str | Sequence[str]) -> list[str]:
        """The paths of the selected episode fields.

        Args:
          names: paths of episode fields or groups.

        Raises:
          KabukiError: the first file does not have such a field.
          SchemaMismatchError: another file has a different field.
        """
        first = self._sources[0]
        chosen = Schema(first.schema.metadata, {}).select(names, first.path) if names else []
        for source in self._sources[1:]:
            ours, theirs = ({path: each.schema.metadata.get(path) for path in chosen} for each in (first, source))
            if ours != theirs:
                differing = tuple(path for path in chosen if ours[path] != theirs[path])
                raise SchemaMismatchError(
                    f"episode metadata {', '.join(differing)}: differs from that of {first.path}",
                    file=source.path,
                    fields=differing,
                )
        return chosen

    def metadata(self, paths: Sequence[str]) -> dict[str, Column]:
        """Path to column, for the episode fields at `paths` in all episodes. Images are decoded."""
        fields = {path: self._sources[0].schema.metadata[path] for path in paths}
        parts: dict[str, list[Column]] = {path: [] for path in paths}
        for source in self._sources:
            for path, field in fields.items():
                with _read_errors_of(source, f"episodes/metadata/{path}", "it"):
                    reader = column_reader(source.metadata_datasets[path], field, self.threads)
                    parts[path].append(reader.read(0, source.num_episodes))
        columns = {path: concatenate(columns) for path, columns in parts.items()}
        return ImageDecoder(fields, self._sources[0].path).decode(columns, self.threads)

    @property
    def rate_hz(self) -> float | None:
        """The steps per second; None if no file states it.

        Raises:
          SchemaMismatchError: the files state different rates.
          DamagedDataError: the rate is not a positive number.
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
    """A `Take` from columns in memory. Their row 0 is row `first` of the table."""

    def taken(paths: Sequence[str], rows: np.ndarray) -> dict[str, Column]:
        rows = rows - first if first else rows
        return {path: take(columns[path], rows) for path in paths}

    return taken


def unchanged(stored: Mapping[str, Field], verb: str) -> RowSelection:
    """Selects the fields of an earlier open of the files, and rejects a file in which they have changed since.

    Args:
      stored: path to field.
      verb: what to do again with a changed file: "load" or "open".
    """

    def select(schema: Schema, path: str) -> list[str]:
        if any(schema.steps.get(name) != field for name, field in stored.items()):
            raise changed(path, verb)
        return list(stored)

    return select


def changed(path: str, verb: str) -> KabukiError:
    """The error for a file that was changed since it was loaded or opened. `verb` is "load" or "open"."""
    return KabukiError(f"{path}: was changed since it was {verb}ed; {verb} it again")


def _episodes(source: KabukiSource, last_row: LastRow | None, quiet: bool) -> Episodes:
    """The row ranges of the episodes of a file."""
    if last_row is None:
        if not quiet:
            unstated_last_rows.warn_if_unstated(source)
        known = source.last_rows or LastRows.of_all(False, source.num_episodes, "the file does not state it")
    else:
        known = LastRows.by_user(last_row, source.num_episodes)
    is_step = known.is_step & (source.ends > source.starts)
    terminates = np.zeros(source.num_episodes, bool)
    field = source.schema.steps.get(IS_TERMINAL)
    if is_step.any() and field is not None and field.is_fixed and is_flag_or_number(field.dtype):
        with _read_errors_of(source, IS_TERMINAL, "it"):
            flags = np.zeros((int(is_step.sum()), *(d or 0 for d in field.shape)), field.dtype)
            reader = source.reader(IS_TERMINAL)
            assert isinstance(reader, FixedReader)
            reader.take_into(flags, source.ends[is_step] - 1, np.arange(len(flags)))
        terminates[is_step] = flags.astype(bool).reshape(len(flags), -1).any(axis=1)
    return Episodes(source.starts, source.ends, source.ends - ~is_step, terminates)


def _concatenate(parts: Sequence[Episodes], splits: np.ndarray) -> Episodes:
    """Concatenates the episodes of all files. `splits` has the row at which each file begins."""
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
def _read_errors_of(source: KabukiSource, path: str, what: str) -> Iterator[None]:
    """Turns a read error in the block into a `DamagedDataError` that names the file and the field.

    Args:
      source: the file.
      path: the path of the field.
      what: what cannot be read, for the message: "it" or the rows.
    """
    try:
        yield
    except READ_ERRORS as e:
        raise DamagedDataError(f"field {path!r}: {what} cannot be read: {e}", file=source.path, field=path) from e
