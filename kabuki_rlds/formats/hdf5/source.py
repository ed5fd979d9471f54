"""Reads a Kabuki HDF5 file from any writer, in blocks of steps."""

from __future__ import annotations

import concurrent.futures
import copy
import functools
import itertools
import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator
from types import TracebackType
from typing import Any, Literal, TypeVar

import h5py
import numpy as np

from kabuki_rlds.data import rules
from kabuki_rlds.data.block import Block, Column, row_splits
from kabuki_rlds.data.last_row import LastRows
from kabuki_rlds.data.schema import Field, Info, Schema
from kabuki_rlds.data.source import Origin, Size, Skipped
from kabuki_rlds.data.split_syntax import ALL, WHOLE, runs, select_episodes
from kabuki_rlds.errors import DamagedDataError
from kabuki_rlds.files import signals
from kabuki_rlds.formats.hdf5 import layout, stored_last_rows
from kabuki_rlds.formats.hdf5.column_reader import READ_ERRORS, ColumnReader, column_reader
from kabuki_rlds.formats.hdf5.datasets import common_length, metadata_datasets, step_datasets
from kabuki_rlds.formats.hdf5.episode_index import check_lengths, read_origins, read_starts
from kabuki_rlds.formats.hdf5.fixed import ChunkMemory
from kabuki_rlds.formats.safe_hdf5.attributes import Attributes
from kabuki_rlds.formats.safe_hdf5.open_file import open_file
from kabuki_rlds.images.image_columns import ImageColumns

_log = logging.getLogger("kabuki_rlds")

_Entry = TypeVar("_Entry")

#: The size limits of a block: about so many bytes, and at most so many rows.
_BLOCK_BYTES = 8 << 20
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
        self.num_steps = common_length(self.path, self.step_datasets)
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
        self.starts = read_starts(self.file, self.path, self.schema.steps, self.step_datasets, self.num_steps)
        self.num_episodes = len(self.starts)
        self._selected = np.arange(self.num_episodes)
        for dataset in self.metadata_datasets.values():
            rows = dataset.shape[0] if dataset.shape else "no"
            if rows != self.num_episodes:
                raise DamagedDataError(
                    f"{dataset.name}: has {rows} rows, expected {self.num_episodes} (one per episode)", file=self.path
                )
        self.origins, self._origin_of = read_origins(
            self.file, self.path, self._json_list("sources", Origin.from_json), self.num_episodes
        )
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

    def _json_list(self, name: str, of_json: Callable[[Any], _Entry]) -> list[_Entry]:
        """Returns the entries of an attribute that is a JSON list. Warns and returns [] if it is malformed."""
        try:
            return entries(layout.text_attribute(self.file, name), of_json)
        except ValueError as e:
            _log.warning("%s: the attribute %r is ignored: %s", self.path, name, e)
            return []

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
        check_lengths(self.file, self.path, self.ends - self.starts)

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
        memory = ChunkMemory()
        readers = {path: self.reader(path, memory) for path in self.step_datasets if only is None or path in only}
        metadata = {
            path: self._reader(dataset, self._metadata[path], memory)
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

    def reader(self, path: str, memory: ChunkMemory | None = None) -> ColumnReader:
        """Returns a reader for the rows of a step field. `memory` as in `FixedReader`.

        Raises:
          DamagedDataError: the dataset is malformed.
        """
        return self._reader(self.step_datasets[path], self._fields[path], memory)

    def _reader(self, dataset: h5py.Dataset, field: Field, memory: ChunkMemory | None) -> ColumnReader:
        try:
            return column_reader(dataset, field, self._executor, memory)
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
