"""Reads a Kabuki HDF5 file from any writer, in blocks of steps."""

from __future__ import annotations

import concurrent.futures
import copy
import dataclasses
import functools
import itertools
import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, TypeAlias, TypeVar

import h5py
import numpy as np

from kabuki_rlds.data import rules
from kabuki_rlds.data.block import Block, Column, row_splits
from kabuki_rlds.data.last_row import LastRows
from kabuki_rlds.data.schema import BYTES, Field, Info, Schema
from kabuki_rlds.data.source import Origin, Size, Skipped
from kabuki_rlds.data.split_syntax import ALL, WHOLE, runs, select_episodes
from kabuki_rlds.errors import DamagedDataError
from kabuki_rlds.files import signals
from kabuki_rlds.formats.hdf5 import layout, stored_last_rows
from kabuki_rlds.formats.hdf5.fixed import FixedReader
from kabuki_rlds.formats.hdf5.image_file_reader import ImageFileReader
from kabuki_rlds.formats.hdf5.variable import VariableReader
from kabuki_rlds.formats.safe_hdf5.attributes import Attributes
from kabuki_rlds.formats.safe_hdf5.open_file import open_file
from kabuki_rlds.images.image_columns import ImageColumns

_log = logging.getLogger("kabuki_rlds")

_Entry = TypeVar("_Entry")

ColumnReader: TypeAlias = FixedReader | VariableReader

#: The errors that a reader raises for damaged files and unexpected types.
READ_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError)

#: The size limits of a block: about so many bytes, and at most so many rows.
_BLOCK_BYTES = 16 << 20
_BLOCK_ROWS = 1 << 16


class KabukiSource:
    """The steps of a Kabuki HDF5 file.

    Only the step fields are required. The index of episodes, features and attributes are
    used if they exist.

    Args:
      path: the file.
      images: how to read image files that were detected by their content: "arrays" decodes them, "encoded" keeps the
        bytes. Image files with the attribute `encoded` are always kept.
      quiet: do not warn about unreadable attributes, because an earlier open already did.

    Raises:
      KabukiError: the file cannot be opened, or its datasets are damaged or do not fit each other.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        images: Literal["arrays", "encoded"] = "encoded",
        *,
        quiet: bool = False,
    ):
        self.path = os.fspath(path)
        self._decodes = images == "arrays"
        self.label = self.path
        self.files = [os.path.abspath(self.path)]
        self.file = open_file(path, quiet=quiet)
        self._executor = concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1, "kabuki-read")
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self.step_datasets = step_datasets(self.file)
        if not self.step_datasets:
            raise DamagedDataError("has no datasets, so it has no steps", file=self.path)
        self.metadata_datasets = metadata_datasets(self.file)
        self.num_steps = _common_length(self.path, self.step_datasets)
        info = {name: layout.text_attribute(self.file, name) for name in Info.__dataclass_fields__}
        features = self._json_attribute("features")
        info["environment"] = self._json_attribute("environment")
        self._fields = {path: layout.read_field(dataset) for path, dataset in self.step_datasets.items()}
        if not features:
            # With features, the flags keep the type that they had in the RLDS dataset.
            self._fields |= {name: Field(np.dtype(bool)) for name in rules.FLAGS if self._holds_booleans(name)}
        self._metadata = {path: layout.read_field(dataset) for path, dataset in self.metadata_datasets.items()}
        self._images = self._image_columns(self._fields, self.step_datasets)
        self._metadata_images = self._image_columns(self._metadata, self.metadata_datasets)
        self.schema = Schema(self._images.fields, self._metadata_images.fields, features, Info(**info))
        self.starts = self._starts()
        self.num_episodes = len(self.starts)
        self._selected = np.arange(self.num_episodes)
        for dataset in self.metadata_datasets.values():
            rows = dataset.shape[0] if dataset.shape else "no"
            if rows != self.num_episodes:
                raise DamagedDataError(
                    f"{dataset.name}: has {rows} rows, expected {self.num_episodes} (one per episode)", file=self.path
                )
        self._read_origins()
        self.last_rows = self._read_last_rows()
        self.skipped = self._json_list("skipped", Skipped.from_json)
        self.notes = self._json_list("notes", rules.Violation.from_json)

    def _holds_booleans(self, name: str) -> bool:
        """Returns whether a flag is stored as integers that are all 0 or 1, as PyTables and Julia do."""
        field = self._fields.get(name)
        if field is None or not rules.is_flag(field) or field.dtype == bool:
            return False
        try:
            values = np.asarray(self.step_datasets[name][:])
        except READ_ERRORS:
            # The error is reported when the rows are read.
            return False
        return bool(((values == 0) | (values == 1)).all())

    def _read_last_rows(self) -> LastRows | None:
        try:
            return stored_last_rows.stated(self.file, self.num_episodes)
        except READ_ERRORS as e:
            raise DamagedDataError(f"{stored_last_rows.PATH}: {e}", file=self.path) from e

    def _image_columns(self, fields: dict[str, Field], datasets: dict[str, h5py.Dataset]) -> ImageColumns:
        by_content = [
            path for path, field in fields.items() if field.encoded and "encoded" not in Attributes(datasets[path])
        ]
        return ImageColumns(fields, self.path, decode=by_content if self._decodes else (), like_headers=by_content)

    def _json_attribute(self, name: str) -> str:
        """Returns the text of a JSON attribute. Warns and returns "" if it is not valid JSON."""
        text = layout.text_attribute(self.file, name)
        try:
            json.loads(text or "null")
        except (ValueError, RecursionError):
            _log.warning("%s: the attribute %r is ignored: not JSON", self.path, name)
            return ""
        return text

    def _starts(self) -> np.ndarray:
        """Returns the first row of each episode, from the index or else from the flags: int64, (episodes,)."""
        index = self.file.get(f"{layout.EPISODES}/start")
        if isinstance(index, h5py.Dataset):
            if index.ndim != 1 or not layout.holds_integers(index):
                raise DamagedDataError(
                    "episodes/start is not an ascending list of rows that begins at 0", file=self.path
                )
            try:
                starts = index[:].astype(np.int64)
            except READ_ERRORS as e:
                raise DamagedDataError(f"episodes/start cannot be read: {e}", file=self.path) from e
            # Compare instead of subtracting, because differences of hostile values may overflow int64.
            if len(starts) and (starts[0] != 0 or (starts[1:] < starts[:-1]).any() or starts[-1] > self.num_steps):
                raise DamagedDataError(
                    "episodes/start is not an ascending list of rows that begins at 0", file=self.path
                )
            if not len(starts) and self.num_steps:
                raise DamagedDataError(
                    f"episodes/start is empty, but the file has {self.num_steps} steps", file=self.path
                )
            return starts
        for name, shift in ((rules.IS_FIRST, 0), (rules.IS_LAST, 1)):
            field = self.schema.steps.get(name)
            # Only numbers: NumPy converts any nonempty text to True.
            if field is not None and field.shape in ((), (1,)) and rules.is_flag_or_number(field.dtype):
                try:
                    flags = np.asarray(self.step_datasets[name][:]).reshape(-1).astype(bool)
                except READ_ERRORS as e:
                    raise DamagedDataError(f"{name} cannot be read: {e}", file=self.path) from e
                begins = np.roll(flags, shift)
                if self.num_steps:
                    begins[0] = True
                return np.flatnonzero(begins).astype(np.int64)
        raise DamagedDataError("cannot find the episodes: add is_first, is_last or episodes/start", file=self.path)

    def _json_list(self, name: str, of_json: Callable[[Any], _Entry]) -> list[_Entry]:
        """Returns the entries of an attribute that is a JSON list. Warns and returns [] if it is malformed."""
        try:
            return entries(layout.text_attribute(self.file, name), of_json)
        except ValueError as e:
            _log.warning("%s: the attribute %r is ignored: %s", self.path, name, e)
            return []

    def _read_origins(self) -> None:
        self.origins = [Origin(os.path.realpath(self.path), format="kabuki")]
        self._origin_of = np.zeros(self.num_episodes, np.int64)
        index = self.file.get(f"{layout.EPISODES}/source")
        here = os.path.realpath(self.path)
        origins = [
            dataclasses.replace(origin, via=(here, *origin.via))
            for origin in self._json_list("sources", Origin.from_json)
        ]
        if isinstance(index, h5py.Dataset) and index.shape == (self.num_episodes,) and origins:
            if not layout.holds_integers(index):
                return
            try:
                origin_of = index[:].astype(np.int64)
            except READ_ERRORS as e:
                raise DamagedDataError(f"episodes/source cannot be read: {e}", file=self.path) from e
            if not len(origin_of) or (origin_of.min() >= 0 and origin_of.max() < len(origins)):
                self.origins, self._origin_of = origins, origin_of

    def check_complete(self) -> None:
        """Checks the attributes `complete`, `num_steps`, `num_episodes` and the episode lengths, if they exist.

        Raises:
          DamagedDataError: the file is incomplete, or a number differs from its contents.
        """
        if not layout.flag_attribute(self.file, "complete", True):
            raise DamagedDataError(
                "the file is not complete (attribute `complete` is false); write it again", file=self.path
            )
        for name, count in (("num_steps", self.num_steps), ("num_episodes", self.num_episodes)):
            stated = layout.attribute(self.file, name, count)
            if not np.array_equal(stated, count):  # type: ignore[arg-type]  # an attribute may have any type
                raise DamagedDataError(f"the attribute {name} is {stated}, but the file has {count}", file=self.path)
        lengths = self.file.get(f"{layout.EPISODES}/length")
        if not isinstance(lengths, h5py.Dataset):
            return
        try:
            in_file = lengths[:] if lengths.ndim == 1 else np.zeros(0)
        except READ_ERRORS as e:
            raise DamagedDataError(f"episodes/length cannot be read: {e}", file=self.path) from e
        if lengths.ndim != 1 or not np.array_equal(in_file, self.ends - self.starts):
            raise DamagedDataError("episodes/length does not match episodes/start", file=self.path)

    def left_out(self) -> list[str]:
        """Returns descriptions of the contents that are not part of the format, and that a conversion leaves out."""
        found = []
        for name, known in (
            (layout.EPISODES, ("start", "length", "source", "metadata", stored_last_rows.NAME)),
            (layout.METADATA, None),
            (layout.COMPANION, None),
        ):
            item = self.file.get(name)
            if isinstance(item, h5py.Dataset):
                found.append(repr(name))
            elif item is not None and known is not None:
                found += [repr(f"{name}/{inner}") for inner in item if inner not in known]
        found += [f"the attribute {name!r}" for name in Attributes(self.file) if name not in layout.ROOT_ATTRIBUTES]
        fields = [*self.step_datasets.items(), *self.metadata_datasets.items()]
        for path, dataset in fields:
            names = Attributes(dataset) if h5py.h5a.get_num_attrs(dataset.id) else ()
            found += [f"the attribute {name!r} of {path!r}" for name in names if name not in layout.FIELD_ATTRIBUTES]
        return found

    def size(self) -> Size:
        sample = next(self.blocks(), None)
        steps = int(self.lengths.sum())
        num_bytes = os.path.getsize(self.path) * steps // max(self.num_steps, 1)
        return Size(steps, True, num_bytes, sample, self._images.decoded)

    def blocks(self, only: Collection[str] | None = None, *, with_metadata: bool = False) -> Iterator[Block]:
        """Yields all steps in order. Checks image files, and decodes them if the source reads them as arrays.

        Args:
          only: the step fields to read. Their image files are neither checked nor decoded. None reads all fields.
          with_metadata: read the episode fields too if `only` is given.
        """
        readers = {path: self.reader(path) for path in self.step_datasets if only is None or path in only}
        metadata = {
            path: self._reader(dataset, self._metadata[path])
            for path, dataset in self.metadata_datasets.items()
            if only is None or with_metadata
        }
        for start, stop, first, end in self._spans(self._block_rows(readers)):
            signals.check()
            steps = {path: self._read(reader, path, start, stop) for path, reader in readers.items()}
            of_episodes = {path: self._read(reader, path, first, end) for path, reader in metadata.items()}
            if only is None:
                steps = self._images.serve(steps, functools.partial(self._place_of_row, start), self._executor)
                place = functools.partial(self._place_of_episode, first)
                of_episodes = self._metadata_images.serve(of_episodes, place, self._executor)
            yield Block(steps, stop - start, self.starts[first:end] - start, of_episodes, self._origin_of[first:end])

    def _spans(self, rows: int) -> Iterator[tuple[int, int, int, int]]:
        """Yields (first row, end row, first episode, end episode) of each block. Episodes count where they begin."""
        for first, end in runs(self._selected) if len(self._selected) else [(0, 0)]:
            begin, stop = self.row_of(first) if first < end else 0, self.row_of(end) if first < end else 0
            bounds = [*range(begin, stop, rows), stop] if begin < stop else [begin, stop]
            inner = np.searchsorted(self.starts, bounds[1:-1]).tolist()
            yield from zip(bounds, bounds[1:], [first, *inner], [*inner, end], strict=False)

    def _place_of_row(self, start: int, row: int) -> tuple[str, str, int]:
        episode = int(np.searchsorted(self.starts, start + row, "right")) - 1
        return self.path, f"episode {episode}", int(start + row - self.starts[episode])

    def _place_of_episode(self, first: int, number: int) -> tuple[str, str, None]:
        return self.path, f"episode {first + number}", None

    def pieces(self, num_bytes: int) -> list[KabukiSource]:
        starts = row_splits(self.lengths)
        size = os.path.getsize(self.path) * int(starts[-1]) // max(self.num_steps, 1)
        count = min(-(-size // num_bytes), self.num_episodes)
        if count < 2:
            return [self]
        # Cut at the episodes that are nearest to equal numbers of rows.
        rows = np.linspace(0, starts[-1], count + 1)[1:-1]
        cuts = np.unique(np.searchsorted(starts[:-1], rows))
        bounds = [0, *cuts[(cuts > 0) & (cuts < self.num_episodes)], self.num_episodes]
        return [self.piece(first, end) for first, end in itertools.pairwise(bounds)]

    def piece(self, first: int, end: int) -> KabukiSource:
        """Returns a source of the episodes `first` to `end`. See `select`."""
        return self.select(np.arange(first, min(end, self.num_episodes)))

    def select(self, episodes: np.ndarray) -> KabukiSource:
        """Returns a source of the given episodes, in this order. It can be read while this source is open."""
        selected = copy.copy(self)
        selected._selected = self._selected[episodes]
        selected.num_episodes = len(episodes)
        selected.last_rows = None if self.last_rows is None else self.last_rows[episodes]
        return selected

    def of_split(self, split: str) -> KabukiSource:
        """Returns a source of the episodes of a split. The file is one split, which may be sliced: see `split_syntax`.

        Raises:
          SplitError: the file has no such split.
        """
        whole = np.arange(self.num_episodes)
        names = {origin.split for origin in self.origins}
        # If all episodes came from one split, its name is a valid name for the whole file.
        named = names if len(names) == 1 and all(re.fullmatch(r"[\w-]+", name) for name in names) else set()
        return self.select(select_episodes(split, dict.fromkeys((WHOLE, ALL, *named), whole), self.label))

    def record_of(self, episode: int) -> tuple[str, int]:
        return self.path, int(self._selected[episode])

    def name_of(self, episode: int) -> str:
        return f"{self.path}: episode {self._selected[episode]}"

    @property
    def lengths(self) -> np.ndarray:
        """The number of rows of each selected episode: int64, (num_episodes,)."""
        return (self.ends - self.starts)[self._selected]

    @property
    def ends(self) -> np.ndarray:
        """The end row of each episode of the file: int64, (episodes in the file,)."""
        return np.append(self.starts[1:], self.num_steps)[: len(self.starts)]

    def row_of(self, episode: int) -> int:
        """Returns the first row of an episode, or the number of steps for the episode after the last."""
        return int(self.starts[episode]) if episode < len(self.starts) else self.num_steps

    def reader(self, path: str) -> ColumnReader:
        """Returns a reader for the rows of a step field.

        Raises:
          DamagedDataError: the dataset is malformed.
        """
        return self._reader(self.step_datasets[path], self._fields[path])

    def _reader(self, dataset: h5py.Dataset, field: Field) -> ColumnReader:
        try:
            return column_reader(dataset, field, self._executor)
        except READ_ERRORS as e:
            raise DamagedDataError(
                f"dataset {dataset.name!r} cannot be read: {e}", file=self.path, field=dataset.name[1:]
            ) from e

    def _read(self, reader: ColumnReader, path: str, start: int, stop: int) -> Column:
        try:
            return reader.read(start, stop)
        except READ_ERRORS as e:
            raise DamagedDataError(
                f"field {path!r}: rows {start} to {stop - 1} cannot be read: {e}",
                file=self.path,
                field=path,
                rows=range(start, stop),
            ) from e

    def _block_rows(self, paths: Collection[str]) -> int:
        sizes = [layout.stored_row_nbytes(self.step_datasets[path]) for path in paths]
        known = sum(size or 0 for size in sizes)
        known += sum(self._images.fields[path].row_nbytes or 0 for path in self._images.decoded if path in paths)
        if None in sizes:
            # Variable-length rows are stored uncompressed, so the file size is an upper bound.
            known += self.file.id.get_filesize() // max(self.num_steps, 1)
        rows = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // max(known, 1)))
        return 1 << (rows.bit_length() - 1)

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)
        self.file.close()

    def __enter__(self) -> KabukiSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def entries(text: str, of_json: Callable[[Any], _Entry]) -> list[_Entry]:
    """Returns the entries of a JSON list.

    Args:
      text: the JSON. An empty text is an empty list.
      of_json: converts a JSON value to an entry.

    Raises:
      ValueError: the text is not JSON or not a list, or an entry is malformed. The message says which.
    """
    try:
        stated = json.loads(text or "[]")
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(stated, list):
        raise ValueError("not a list")
    found = []
    for i, entry in enumerate(stated):
        try:
            found.append(of_json(entry))
        except ValueError as e:
            raise ValueError(f"entry {i}: {e}") from e
    return found


def step_datasets(file: h5py.File, dangling: list[str] | None = None) -> dict[str, h5py.Dataset]:
    """Returns path to dataset, for all step fields.

    Args:
      file: the file.
      dangling: the paths of dangling links are appended to this list.

    Raises:
      DamagedDataError: there is a dangling link, and `dangling` is None.
    """
    found_dangling: list[str] = []
    found = datasets_in(file, found_dangling, skip=layout.RESERVED)
    if found_dangling and dangling is None:
        raise DamagedDataError(
            f"{found_dangling[0]!r}: dangling link (its target does not exist); delete the link", file=file.filename
        )
    if dangling is not None:
        dangling += found_dangling
    return found


def metadata_datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Returns path to dataset, for all episode fields."""
    metadata = file.get(layout.METADATA)
    return datasets_in(metadata, []) if isinstance(metadata, h5py.Group) else {}


def column_reader(dataset: h5py.Dataset, field: Field, executor: concurrent.futures.Executor) -> ColumnReader:
    """Returns a reader for the rows of a dataset.

    Args:
      dataset: the dataset.
      field: the field that the dataset stores.
      executor: threads that unpack chunks.
    """
    if field.is_fixed and field.dtype != BYTES:
        return FixedReader(dataset, executor, field.dtype)
    # `VariableReader` reads lists of images of variable length, which have a companion.
    if field.encoded and not (field.is_list_of_images and "companion" in Attributes(dataset)):
        return ImageFileReader(dataset, field, executor)
    return VariableReader(dataset, field)


def datasets_in(
    group: h5py.Group,
    dangling: list[str],
    prefix: str = "",
    skip: Sequence[str] = (),
    above: tuple[h5py.Group, ...] = (),
) -> dict[str, h5py.Dataset]:
    """Returns path to dataset, for all datasets in a group and its subgroups, sorted by name.

    Args:
      group: the group.
      dangling: the paths of dangling links are appended to this list.
      prefix: prefix of the paths.
      skip: names in `group` to skip.
      above: the groups that contain `group`. Links to them are skipped.
    """
    above = (*above, group)
    found: dict[str, h5py.Dataset] = {}
    for name in group:
        if name in skip:
            continue
        item = group.get(name)
        if item is None:
            dangling.append(prefix + name)
        elif isinstance(item, h5py.Dataset):
            found[prefix + name] = item
        elif isinstance(item, h5py.Group) and item not in above:
            found |= datasets_in(item, dangling, f"{prefix}{name}/", above=above)
    return found


def _common_length(path: str, datasets: dict[str, h5py.Dataset]) -> int:
    lengths = {name: (dataset.shape[0] if dataset.shape else None) for name, dataset in datasets.items()}
    for name, length in lengths.items():
        if length is None:
            raise DamagedDataError(
                f"dataset {name!r}: is a single value, expected one row per step; delete the dataset",
                file=path,
                field=name,
            )
    length = next(iter(lengths.values()))
    for name, other in lengths.items():
        if other != length:
            first = next(iter(lengths))
            raise DamagedDataError(
                f"{name!r} has {other} rows, but {first!r} has {length}; all step fields must have "
                "the same number of rows",
                file=path,
            )
    assert length is not None
    return length
