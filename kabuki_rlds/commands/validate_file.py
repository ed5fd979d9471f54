"""Checks a Kabuki file against each rule of the format."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import json
import os
from collections.abc import Iterator

import h5py
import numpy as np
from tqdm import tqdm

from kabuki_rlds.data.block import Column, Ragged
from kabuki_rlds.data.nan_actions import find_nan_actions, warn_of_nan
from kabuki_rlds.data.rules import (
    DISCOUNT,
    FLAGS,
    IS_FIRST,
    RuleChecker,
    Violation,
    field_violations,
    is_flag_or_number,
)
from kabuki_rlds.data.schema import Field
from kabuki_rlds.data.source import Origin, Skipped
from kabuki_rlds.errors import DamagedDataError, KabukiError
from kabuki_rlds.files import signals
from kabuki_rlds.formats.hdf5 import layout, stored_last_rows, unstated_last_rows
from kabuki_rlds.formats.hdf5.column_reader import READ_ERRORS, ColumnReader, column_reader
from kabuki_rlds.formats.hdf5.datasets import metadata_datasets, step_datasets
from kabuki_rlds.formats.hdf5.fixed import ChunkMemory
from kabuki_rlds.formats.hdf5.source import KabukiSource, entries
from kabuki_rlds.formats.hdf5.variable_reader import CompanionError
from kabuki_rlds.formats.safe_hdf5.open_file import open_file
from kabuki_rlds.images.damage import find_damage

#: Maximum number of damaged images that are listed per field.
_NAMED = 5
#: Message if the episode index contradicts `is_first`.
_OTHER_STARTS = "episode starts differ from is_first"

#: Bytes of a column that are read at once, and the number of rows if the row size is unknown.
_READ_BYTES = 8 << 20
_READ_ROWS = 4096


def check_file(path: str | os.PathLike[str], *, progress: bool = False) -> tuple[list[Violation], list[Violation]]:
    """Checks every rule of docs/format.md, in constant memory. Reads every row of every field.

    Args:
      path: a Kabuki file.
      progress: show a progress bar on stderr.

    Returns:
      (violations, notes). The violations are the broken rules in order. They exclude deviations that the file lists in
      its attribute `notes` with the right number of rows. The notes are all entries of this
      attribute.

    Raises:
      KabukiError: the file cannot be opened, or is not HDF5.
    """
    with open_file(path) as file, concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as executor:
        check = _Check(file, executor)
        check.fields()
        check.filters()
        check.rows(progress)
        check.values()
        check.images()
        check.episodes()
        check.attributes()
        found = sorted(check.found, key=lambda violation: violation.rule)
    with contextlib.suppress(KabukiError), KabukiSource(path, quiet=True) as source:
        unstated_last_rows.warn_if_unstated(source)
        warn_of_nan(find_nan_actions(source), os.fspath(path))
    return _unnoted(found, check.notes), check.notes


class _Check:
    """The checks of one file. Each check appends violations to `found`."""

    def __init__(self, file: h5py.File, executor: concurrent.futures.Executor):
        self.file = file
        self.found: list[Violation] = []
        self.notes: list[Violation] = []
        self._executor = executor
        self._lost: list[str] = []
        self._datasets = step_datasets(file, self._lost)
        self._memory = ChunkMemory()
        self._readers: dict[str, ColumnReader] = {}
        self._fields: dict[str, Field] = {}
        self._num_steps = 0
        self._num_begun: int | None = None
        #: Maps each path to its damaged images: (row, problem).
        self._damaged: dict[str, list[tuple[int, str]]] = {}

    def _note(self, rule: int, field: str, message: str) -> None:
        self.found.append(Violation(rule, field, message))

    def fields(self) -> None:
        """Checks rules 1 and 2: the fields, their types and their lengths."""
        for path in self._lost:
            self._note(1, path, "is a broken link")
        lengths: dict[int, list[str]] = {}
        for path, dataset in self._datasets.items():
            if not dataset.shape:
                self._note(1, path, "is a single value, expected one row per step")
                continue
            try:
                field = layout.read_field(dataset)
                reader = column_reader(dataset, field, self._executor, self._memory)
            except DamagedDataError as e:
                self._note(1, path, e.problem)
                continue
            except READ_ERRORS as e:
                self._note(_rule_of(e), path, f"cannot be read: {e}")
                continue
            lengths.setdefault(dataset.shape[0], []).append(path)
            self._fields[path] = field
            self._readers[path] = reader
        self.found += field_violations(self._datasets, self._fields)
        # The most common length is the number of steps.
        self._num_steps = max(lengths, key=lambda n: len(lengths[n]), default=0)
        for length, paths in lengths.items():
            if length != self._num_steps:
                for path in paths:
                    self._note(1, path, f"has {length} rows, expected {self._num_steps} as in other fields")
                    del self._readers[path]

    def filters(self) -> None:
        """Checks rule 8: only filters that every HDF5 library has."""

        def visit(name: str, item: h5py.HLObject) -> None:
            if not isinstance(item, h5py.Dataset):
                return
            properties = item.id.get_create_plist()
            for i in range(properties.get_nfilters()):
                number, _, _, label = properties.get_filter(i)
                if number not in (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32):
                    known = label.decode(errors="replace") or f"number {number}"
                    self._note(8, name, f"filter {known} is not in every HDF5 library; use gzip and shuffle")

        self.file.visititems(visit)

    def rows(self, progress: bool) -> None:
        """Checks rules 1 and 9: every row of every field is readable and has the type of the field."""
        total = self._num_steps * len(self._readers)
        with tqdm(total=total, unit=" rows", unit_scale=True, disable=not progress, desc="reading") as bar:
            for path, reader in list(self._readers.items()):
                step = _rows_at_once(self._datasets[path])
                for start in range(0, self._num_steps, step):
                    signals.check()
                    stop = min(start + step, self._num_steps)
                    rule = 1
                    try:
                        column = reader.read(start, stop)
                        problem = None if len(column) == stop - start else "rows are missing"
                    except READ_ERRORS as e:
                        problem, rule = str(e), _rule_of(e)
                    if problem is not None:
                        self._note(rule, path, f"rows {start} to {stop - 1} cannot be read: {problem}")
                        del self._readers[path]
                        break
                    for row, problem in _damaged_images(self._fields[path], column):
                        self._damaged.setdefault(path, []).append((start + row, problem))
                    bar.update(stop - start)

    def images(self) -> None:
        """Checks rule 9: image files are undamaged. Reports the episode and the row in the episode."""
        is_first = self._readers.get(IS_FIRST)
        begins = np.zeros(1, np.int64)
        if self._damaged and is_first is not None and self._is_checkable(IS_FIRST):
            begins = np.flatnonzero(np.asarray(is_first.read(0, self._num_steps)).reshape(-1).astype(bool))
        for path, found in self._damaged.items():
            places = []
            for row, problem in found[:_NAMED]:
                episode = max(int(np.searchsorted(begins, row, "right")) - 1, 0)
                within = row - (int(begins[episode]) if len(begins) else 0)
                places.append(f"episode {episode}: row {within}: the image {problem}")
            rows = tuple(row for row, _ in found[:_NAMED])
            self.found.append(Violation(9, path, "; ".join(places), rows, len(found)))

    def values(self) -> None:
        """Checks rules 4 and 5: discounts, and the flags at episode boundaries."""
        names = [*FLAGS, *([DISCOUNT] if self._is_checkable(DISCOUNT) else [])]
        if not all(self._is_checkable(name) for name in FLAGS):
            return
        checker = RuleChecker()
        begins, last_is_step = self._episodes_with_rows()
        self._num_begun = 0
        step = 1 << 20
        for start in range(0, self._num_steps, step):
            signals.check()
            stop = min(start + step, self._num_steps)
            columns = [np.asarray(self._readers[name].read(start, stop)).reshape(-1) for name in names]
            for name, column in zip(FLAGS, columns[:3], strict=True):
                checker.check_flag(name, column)
            flags = [column.astype(bool) for column in columns[:3]]
            self._num_begun += int(np.count_nonzero(flags[0]))
            rows = last_is_step[np.searchsorted(begins, np.arange(start, stop), side="right") - 1]
            checker.check(flags[0], flags[1], flags[2], columns[3] if len(columns) > 3 else None, rows)
        self.found += checker.finish()

    def _episodes_with_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns (first row, whether the last row is a step) of each non-empty episode: int64 and bool, (episodes,).

        First rows come from the index `episodes/start`. If the index is missing or wrong, they come from `is_first`.
        `episodes` reports a wrong index.
        """
        first = np.asarray(self._readers[IS_FIRST].read(0, self._num_steps)).reshape(-1).astype(bool)
        first[:1] = True
        begins = np.flatnonzero(first)
        starts, lengths = (self.file.get(f"{layout.EPISODES}/{name}") for name in ("start", "length"))
        has_index = isinstance(starts, h5py.Dataset) and starts.ndim == 1
        is_step = np.zeros(0, bool)
        try:
            stated = stored_last_rows.stated(self.file, len(starts) if has_index else len(begins))
            is_step = is_step if stated is None else stated.is_step
        except READ_ERRORS as e:
            self._note(6, stored_last_rows.PATH, str(e))
        with contextlib.suppress(*READ_ERRORS):
            is_index = all(isinstance(each, h5py.Dataset) and layout.holds_integers(each) for each in (starts, lengths))
            if has_index and is_index and lengths.shape == starts.shape:
                sizes = lengths[:].astype(np.int64)
                fits = (sizes >= 0).all() and np.array_equal(starts[:], np.cumsum(sizes) - sizes)
                if fits and sizes.sum() == self._num_steps:
                    begins = np.asarray(starts[:])[sizes > 0]
                    is_step = is_step[sizes > 0] if len(is_step) else is_step
        # Last rows are observations for episodes without a stated value.
        return begins, np.append(is_step, np.zeros(max(len(begins) - len(is_step), 0), bool))

    def _is_checkable(self, name: str) -> bool:
        field = self._fields.get(name)
        if field is None or name not in self._readers or field.shape not in ((), (1,)):
            return False
        return is_flag_or_number(field.dtype)

    def episodes(self) -> None:
        """Checks rule 6: the episode index, if there is one, is consistent with the flags."""
        group = self.file.get(layout.EPISODES)
        if group is None:
            return
        if not isinstance(group, h5py.Group):
            self._note(6, layout.EPISODES, "is not a group")
            return
        if set(group) == {stored_last_rows.NAME}:
            # A file may state its last rows (rule 3) without an index. The flags then define the episodes.
            return
        index: dict[str, np.ndarray] = {}
        for name in ("start", "length", "source"):
            dataset = group.get(name)
            if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 1 or not layout.holds_integers(dataset):
                self._note(6, f"{layout.EPISODES}/{name}", "is missing, or is not one integer per episode")
                continue
            try:
                index[name] = dataset[:].astype(np.int64)
            except READ_ERRORS as e:
                self._note(6, f"{layout.EPISODES}/{name}", f"cannot be read: {e}")
        if len(index) < 3:
            return
        starts, lengths, sources = index["start"], index["length"], index["source"]
        rows = {name: len(values) for name, values in index.items()}
        for name, count in rows.items():
            if count != len(starts):
                self._note(
                    6, f"{layout.EPISODES}/{name}", f"has {count} rows, expected {len(starts)} (one per episode)"
                )
                return
        for path, dataset in metadata_datasets(self.file).items():
            self._metadata(f"{layout.METADATA}/{path}", dataset, len(starts))
        ends = np.cumsum(lengths)
        # The sum may overflow int64, so individual lengths are checked too.
        if (lengths < 0).any() or (lengths > self._num_steps).any() or not np.array_equal(starts, ends - lengths):
            self._note(6, f"{layout.EPISODES}/start", "is not the sum of the lengths of the earlier episodes")
        elif (int(ends[-1]) if len(ends) else 0) != self._num_steps:
            total = int(ends[-1]) if len(ends) else 0
            self._note(6, f"{layout.EPISODES}/length", f"has sum {total}, expected {self._num_steps} (all steps)")
        elif self._is_checkable(IS_FIRST):
            first = np.asarray(self._readers[IS_FIRST].read(0, self._num_steps)).reshape(-1).astype(bool)
            begins = np.zeros(self._num_steps, bool)
            begins[starts[lengths > 0]] = True
            wrong = np.flatnonzero(first != begins)
            if len(wrong):
                named = tuple(int(row) for row in wrong[:5])
                self.found.append(Violation(6, f"{layout.EPISODES}/start", _OTHER_STARTS, named, len(wrong)))
        stated = self._json("sources")
        if isinstance(stated, list) and len(sources) and not 0 <= sources.min() <= sources.max() < len(stated):
            self._note(
                6,
                f"{layout.EPISODES}/source",
                f"refers to a source that is not among the {len(stated)} of `sources`",
            )

    def _metadata(self, path: str, dataset: h5py.Dataset, episodes: int) -> None:
        """Checks one episode field: it has one readable row per episode."""
        if not dataset.shape or dataset.shape[0] != episodes:
            rows = f"has {dataset.shape[0]} rows" if dataset.shape else "is a single value"
            self._note(6, path, f"{rows}, expected one row for each of the {episodes} episodes")
            return
        try:
            field = layout.read_field(dataset)
            reader = column_reader(dataset, field, self._executor)
            step = _rows_at_once(dataset)
            for start in range(0, episodes, step):
                signals.check()
                column = reader.read(start, min(start + step, episodes))
                for row, problem in _damaged_images(field, column):
                    self._note(9, path, f"episode {start + row}: the image {problem}")
        except DamagedDataError as e:
            self._note(6, path, e.problem)
        except READ_ERRORS as e:
            self._note(6, path, f"cannot be read: {e}")

    def attributes(self) -> None:
        """Checks rule 7: attributes, where present, agree with the contents of the file."""
        for name, known in (("format", (layout.FORMAT,)), ("format_version", layout.FORMAT_VERSIONS)):
            stated = layout.text_attribute(self.file, name, known[-1])
            if stated not in known:
                self._note(7, name, f"is {stated}, expected {' or '.join(known)}")
        if not layout.flag_attribute(self.file, "complete", True):
            self._note(7, "complete", "is false: the file was not written completely")
        starts = self.file.get(f"{layout.EPISODES}/start")
        # Without an index, the number of episodes comes from the flags.
        has_index = isinstance(starts, h5py.Dataset) and starts.ndim == 1
        counted = {"num_steps": self._num_steps, "num_episodes": len(starts) if has_index else self._num_begun}
        for name, count in counted.items():
            says = layout.attribute(self.file, name, count)
            if count is not None and not np.array_equal(says, count):  # type: ignore[arg-type]  # any type
                self._note(7, name, f"is {says}, but the file contains {count}")
        for name in ("features", "environment"):
            if layout.text_attribute(self.file, name) and self._json(name) is None:
                self._note(7, name, "is not valid JSON")
        for name, of_json in (("sources", Origin.from_json), ("skipped", Skipped.from_json)):
            try:
                entries(layout.text_attribute(self.file, name), of_json)
            except ValueError as e:
                self._note(7, name, str(e))
        try:
            self.notes = entries(layout.text_attribute(self.file, "notes"), Violation.from_json)
        except ValueError as e:
            self._note(7, "notes", str(e))

    def _json(self, attribute: str) -> object:
        try:
            return json.loads(layout.text_attribute(self.file, attribute))
        except (ValueError, RecursionError):
            return None


def _unnoted(found: list[Violation], notes: list[Violation]) -> list[Violation]:
    """Returns the violations that are not listed in the notes of the file.

    Only violations of rules 3 to 5 can be listed, and only with the right number of rows.
    """
    counts: collections.Counter[tuple[int, str]] = collections.Counter()
    for violation in found:
        counts[violation.rule, violation.field] += violation.count
    noted: collections.Counter[tuple[int, str]] = collections.Counter()
    for note in notes:
        noted[note.rule, note.field] += note.count

    def is_noted(violation: Violation) -> bool:
        if violation.message == _OTHER_STARTS:
            # The index is the reference, so this is a deviation of `is_first` from rule 5.
            key = 5, IS_FIRST
        elif 3 <= violation.rule <= 5:
            key = violation.rule, violation.field
        else:
            return False
        return noted[key] > 0 and counts[key] == noted[key]

    return [violation for violation in found if not is_noted(violation)]


def _rule_of(error: Exception) -> int:
    """Returns the number of the rule that a field with unreadable rows breaks."""
    return 9 if isinstance(error, CompanionError) else 1


def _damaged_images(field: Field, column: Column) -> Iterator[tuple[int, str]]:
    """Yields (row, problem) of each damaged image file in a column."""
    if not field.encoded:
        return
    assert isinstance(column, (np.ndarray, Ragged))
    files = column if isinstance(column, np.ndarray) else column.values
    for error in find_damage(files.tolist(), field.shape):
        row = error.number
        if isinstance(column, Ragged):
            row = int(np.searchsorted(column.splits, row, "right")) - 1
        yield row, error.problem


def _rows_at_once(dataset: h5py.Dataset) -> int:
    """Returns the number of rows of a field to read at once."""
    size = layout.stored_row_nbytes(dataset)
    if size is None:
        # Rows of variable size are not compressed, so the file size bounds the mean row size.
        size = max(dataset.file.id.get_filesize() // max(len(dataset), 1), _READ_BYTES // _READ_ROWS)
    return max(1, _READ_BYTES // max(size, 1))
