"""Writes blocks of steps into one Kabuki HDF5 file."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol

import h5py
import numpy as np

from kabuki_rlds.data.block import Block
from kabuki_rlds.data.last_row import LastRows
from kabuki_rlds.data.rules import Violation
from kabuki_rlds.data.schema import BYTES, Field, Schema
from kabuki_rlds.data.source import Origin, Skipped
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.files.atomic_file import StagedFile
from kabuki_rlds.files.journaled_file import JournaledFile
from kabuki_rlds.formats.hdf5 import layout, stored_last_rows
from kabuki_rlds.formats.hdf5.chunks import ChunkPool, Compression
from kabuki_rlds.formats.hdf5.fixed import FixedWriter
from kabuki_rlds.formats.hdf5.variable import ImageFileWriter, NestedWriter, RaggedWriter, TextWriter
from kabuki_rlds.formats.safe_hdf5 import caches, verdicts
from kabuki_rlds.formats.safe_hdf5.new_file import discard, writing
from kabuki_rlds.version import VERSION

_log = logging.getLogger("kabuki_rlds")

#: What HDF5 adds, at the most, to each row of variable length, and to each column for finding its chunks.
_ROW_OVERHEAD = 64
_COLUMN_OVERHEAD = 16 << 10
#: What a column holds back at the most: HDF5's cache of its chunks, or a chunk that is not full.
_HELD_BACK = 1 << 20


class _ColumnWriter(Protocol):
    def write(self, column: Any, /) -> None: ...
    def close(self) -> None: ...


class KabukiSink:
    """A Kabuki HDF5 file in the making. Leave the `with` without `commit`, and it never was.

    Args:
      destination: the file to make.
      schema: the fields of the steps and the episodes.
      origins: where the episodes come from; becomes the attribute `sources`.
      compression: filter of the chunks of columns with rows of one shape.
      overwrite: replace a file that is there.
      skipped: the episodes that were left out; becomes the attribute `skipped`, where there are any.

    Raises:
      KabukiError: the destination cannot be written, or a field has a name that
        HDF5 or the format cannot hold.
    """

    def __init__(
        self,
        destination: str | os.PathLike[str],
        schema: Schema,
        origins: list[Origin],
        *,
        compression: Compression = "gzip",
        overwrite: bool = False,
        skipped: Sequence[Skipped] = (),
    ):
        for path in schema.steps:
            layout.check_step_path(path)
        for path in schema.metadata:
            layout.check_path(path)
        layout.check_no_conflicts(schema.steps)
        layout.check_no_conflicts(schema.metadata)
        self._staged: StagedFile | JournaledFile
        self._staged = staged = StagedFile(destination, overwrite=overwrite)
        self._pool = ChunkPool(self._staged.fileno())
        self._file: h5py.File | None = None
        try:
            self._staged.reserve(0, (1 + len(schema.steps) + len(schema.metadata)) * _COLUMN_OVERHEAD)
            with writing(destination):
                # The staged file is locked already; HDF5's own lock would be a second one.
                file = h5py.File(staged.partial, "w", locking=False, **caches.CHUNK_CACHE)
                self._file = caches.limit_metadata_cache(file)
                self._create(schema, origins, skipped, compression)
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def _create(
        self, schema: Schema, origins: list[Origin], skipped: Sequence[Skipped], compression: Compression
    ) -> None:
        assert self._file is not None
        self.num_steps = 0
        self.num_episodes = 0
        self._num_bytes = 0
        # The last chunk of a column is as long as the others.
        self._padding = layout.CHUNK_BYTES if compression == "none" else 0
        self._last_start: int | None = None
        self._file.attrs["complete"] = False
        self._described_later: dict[str, dict[str, Any]] = {}
        self._describe(schema, origins, skipped)
        self._num_columns = len(schema.steps) + len(schema.metadata)
        self._steps = {path: self._column(path, field, compression) for path, field in schema.steps.items()}
        self._metadata = {
            path: self._column(f"{layout.METADATA}/{path}", field, "gzip") for path, field in schema.metadata.items()
        }
        self._index = {
            name: FixedWriter(self._file, f"{layout.EPISODES}/{name}", Field(np.dtype(dtype)), "gzip", self._pool)
            for name, dtype in (("start", "int64"), ("length", "int64"), ("source", "int32"))
        }
        written = (*self._steps.values(), *self._metadata.values())
        self._num_variable = sum(not isinstance(writer, FixedWriter) for writer in written)

    def _describe(self, schema: Schema, origins: list[Origin], skipped: Sequence[Skipped]) -> None:

        assert self._file is not None
        attributes = self._file.attrs
        attributes["format"] = layout.FORMAT
        attributes["format_version"] = layout.FORMAT_VERSION
        attributes["features"] = schema.features
        for name, value in dataclasses.asdict(schema.info).items():
            attributes[name] = _as_stored(name, value)
        attributes["sources"] = json.dumps([origin.to_json() for origin in origins])
        if skipped:
            attributes["skipped"] = json.dumps([loss.to_json() for loss in skipped])
        attributes["created_by"] = f"kabuki_rlds {VERSION}"

    def _column(self, path: str, field: Field, compression: Compression) -> _ColumnWriter:
        assert self._file is not None
        is_there = path in self._file
        try:
            writer = self._column_writer(self._file, path, field, compression)
        except (ValueError, TypeError, RuntimeError) as e:
            raise KabukiError(f"field {path!r}: HDF5 cannot store {field.describe()} ({e})") from e
        if is_there and path in self._file:
            return writer
        attributes = layout.field_attributes(field)
        if path in self._file:
            try:
                self._file[path].attrs.update(attributes)
            except ValueError as e:
                raise KabukiError(f"field {path!r}: HDF5 cannot store the attributes of the field ({e})") from e
        else:
            # A column without elements is made when its rows are known.
            self._described_later[path] = attributes
        names = layout.long_class_names(field)
        if names is not None and path in self._file:
            group = f"{layout.COMPANION}/{path}"
            self._file.create_dataset(f"{group}/class_names", data=names, dtype=h5py.string_dtype()).flush()
            self._file[path].attrs["companion"] = f"/{group}"
        return writer

    def _column_writer(self, file: h5py.File, path: str, field: Field, compression: Compression) -> _ColumnWriter:
        if field.dtype == BYTES and field.is_fixed:
            return TextWriter(file, path, field)
        if field.encoded and not field.is_list_of_images:
            return ImageFileWriter(file, path)
        if field.nested:
            return NestedWriter(file, path, field)
        if field.is_fixed:
            return FixedWriter(file, path, field, compression, self._pool, self._num_columns)
        return RaggedWriter(file, path, field)

    def write(self, block: Block) -> None:
        """Appends the steps of a block.

        Raises:
          KabukiError: the disk cannot hold them, or a column has another number of rows than the block.
        """
        assert block.steps.keys() == self._steps.keys() and block.metadata.keys() == self._metadata.keys()
        with writing(self._staged.destination):
            self._write(block)

    def _write(self, block: Block) -> None:
        self._reserve(block.nbytes + _ROW_OVERHEAD * (block.num_steps + block.num_episodes) * self._num_variable)
        for path, column in block.steps.items():
            if len(column) != block.num_steps:
                raise KabukiError(f"field {path!r}: has {len(column)} rows, expected {block.num_steps} (one per step)")
            self._steps[path].write(column)
        if block.num_episodes:
            for path, column in block.metadata.items():
                if len(column) != block.num_episodes:
                    raise KabukiError(
                        f"episode field {path!r}: has {len(column)} rows, expected {block.num_episodes} "
                        "(one per episode)"
                    )
                self._metadata[path].write(column)
            starts = block.starts + self.num_steps
            self._end_episodes(starts)
            self._index["start"].write(starts)
            origin_of = np.zeros(len(starts)) if block.origin_of is None else block.origin_of
            self._index["source"].write(origin_of.astype(np.int32))
            self.num_episodes += len(starts)
        self.num_steps += block.num_steps

    def _end_episodes(self, starts: np.ndarray) -> None:
        """Writes the lengths of the episodes that end before the last of `starts`."""
        if self._last_start is not None:
            starts = np.concatenate([[self._last_start], starts])
        self._index["length"].write(np.diff(starts))
        self._last_start = int(starts[-1])

    def _reserve(self, nbytes: int) -> None:
        """Sees to it that the disk holds `nbytes` more, beside what waits in buffers."""
        assert self._file is not None
        columns = len(self._steps) + len(self._metadata) + len(self._index)
        waiting = self._pool.pending_bytes + min(self._num_bytes, columns * _HELD_BACK)
        fixed = columns * _COLUMN_OVERHEAD + len(self._steps) * self._padding
        self._staged.reserve(self._file.id.get_filesize(), int(nbytes * 1.02) + waiting + fixed)
        self._num_bytes += nbytes

    def commit(self, last_rows: LastRows | None = None, violations: Sequence[Violation] = ()) -> None:
        """Completes the file and gives it its name.

        Args:
          last_rows: whether the last row of each episode is a step; None does not say it.
          violations: the rules that the steps break. Those of rules 3 to 5 become the attribute `notes`.

        Raises:
          KabukiError: the disk does not take it, or somebody else made the file meanwhile.
        """
        with writing(self._staged.destination):
            self._complete(last_rows, _notes(violations, last_rows))
        self._staged.commit()
        verdicts.trust(self._staged.destination)

    def _complete(self, last: LastRows | None, notes: Sequence[Violation]) -> None:
        assert self._file is not None
        self._reserve(self.num_episodes)
        if last is not None:
            self._write_last_rows(last.is_step)
        if notes:
            self._write_notes(notes)
        if self._last_start is not None:
            self._end_episodes(np.array([self.num_steps]))
        for writer in (*self._steps.values(), *self._metadata.values(), *self._index.values()):
            writer.close()
        for path, attributes in self._described_later.items():
            self._file[path].attrs.update(attributes)
        self._pool.drain()
        self._file.attrs["num_steps"] = self.num_steps
        self._file.attrs["num_episodes"] = self.num_episodes
        self._file.attrs["complete"] = True
        self._file.flush()
        size = self._file.id.get_filesize()
        self._file.close()
        self._file = None
        self._staged.truncate(size)

    def _write_last_rows(self, is_step: np.ndarray) -> None:
        assert self._file is not None and len(is_step) == self.num_episodes
        stored_last_rows.write(self._file, is_step)

    def _write_notes(self, notes: Sequence[Violation]) -> None:
        assert self._file is not None
        self._file.attrs["notes"] = json.dumps([note.to_json() for note in notes])

    def __enter__(self) -> KabukiSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.close()
        # First, since the file of a disk that fails may not close.
        self._staged.abort()
        if self._file is not None:
            if isinstance(self._staged, StagedFile):
                discard(self._file)
            else:
                self._file.close()
            self._file = None


def _notes(violations: Sequence[Violation], last_rows: LastRows | None) -> list[Violation]:
    """The deviations from rules 3 to 5 that the file states."""
    kept = [violation for violation in violations if 3 <= violation.rule <= 5]
    if last_rows is not None and last_rows.num_steps:
        message = f"the last row is a step: {last_rows.reason}"
        kept.insert(0, Violation(3, stored_last_rows.PATH, message, count=last_rows.num_steps))
    return kept


def _as_stored(name: str, text: str) -> str:
    """What a dataset says of itself as HDF5 can hold it: no NUL, and all of it UTF-8."""
    stored = text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
    if stored != text:
        _log.warning("the attribute %r: characters that HDF5 cannot store are replaced", name)
    return stored
