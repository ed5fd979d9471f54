"""Appends blocks of steps to a Kabuki HDF5 file in place, without rewriting the existing rows."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence

import h5py
import numpy as np

from kabuki_rlds.data.block import Block
from kabuki_rlds.data.rules import REQUIRED, Violation, has_field
from kabuki_rlds.data.schema import Field, Schema
from kabuki_rlds.data.source import Origin, Skipped
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.files.atomic_file import destination_of
from kabuki_rlds.files.journaled_file import JournaledFile
from kabuki_rlds.formats.hdf5 import layout, stored_last_rows
from kabuki_rlds.formats.hdf5.chunks import ChunkPool, Compression
from kabuki_rlds.formats.hdf5.sink import KabukiSink
from kabuki_rlds.formats.hdf5.source import KabukiSource, entries
from kabuki_rlds.formats.hdf5.variable import row_companions
from kabuki_rlds.formats.safe_hdf5 import plugins
from kabuki_rlds.version import VERSION

#: The filters that every build of h5py can write.
_FILTERS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF)

_INDEX = ("start", "length", "source")


class AppendingSink(KabukiSink):
    """A Kabuki HDF5 file that grows. Without `commit`, it remains as it was.

    Args:
      destination: the file. `check_appendable` has accepted it.
      schema: its fields.
      origins: where the new episodes come from. Those that `sources` does not list are added to it.

    Raises:
      KabukiError: the file cannot be written, or another program has it open.
    """

    def __init__(self, destination: str | os.PathLike[str], schema: Schema, origins: list[Origin]):
        self._staged = JournaledFile(destination_of(destination))
        self._file: h5py.File | None = None
        self._pool = ChunkPool(self._staged.fileno())
        try:
            with plugins.disabled():
                self._file = h5py.File(self._staged, "r+")
                self._create(schema, origins, (), "gzip")
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def _create(
        self, schema: Schema, origins: list[Origin], skipped: Sequence[Skipped], compression: Compression
    ) -> None:
        assert self._file is not None
        super()._create(schema, origins, skipped, compression)
        self.num_steps = len(self._file[next(iter(schema.steps))])
        self.num_episodes = len(self._file[f"{layout.EPISODES}/start"])

    def _describe(self, schema: Schema, origins: list[Origin], skipped: Sequence[Skipped]) -> None:
        assert self._file is not None
        try:
            known = entries(layout.text_attribute(self._file, "sources"), Origin.from_json)
        except ValueError:
            known = []
        known += [origin for origin in origins if origin not in known]
        self._origins = np.array([known.index(origin) for origin in origins], np.int64)
        self._file.attrs["sources"] = json.dumps([origin.to_json() for origin in known])
        self._file.attrs["created_by"] = f"kabuki_rlds {VERSION}"

    def write(self, block: Block) -> None:
        origin_of = np.zeros(block.num_episodes, np.int64) if block.origin_of is None else block.origin_of
        super().write(dataclasses.replace(block, origin_of=self._origins[origin_of]))

    def _write_last_rows(self, is_step: np.ndarray) -> None:
        assert self._file is not None
        stored_last_rows.append(self._file, is_step)

    def _write_notes(self, notes: Sequence[Violation]) -> None:
        assert self._file is not None
        try:
            before = entries(layout.text_attribute(self._file, "notes"), Violation.from_json)
        except ValueError:
            before = []
        counts: dict[tuple[int, str, str], int] = {}
        for note in (*before, *notes):
            key = (note.rule, note.field, note.message)
            counts[key] = counts.get(key, 0) + note.count
        super()._write_notes([Violation(*key, count=count) for key, count in counts.items()])


def check_appendable(source: KabukiSource) -> None:
    """Checks that `AppendingSink` can append to a file.

    Raises:
      KabukiError: it cannot. The message has the reason, and a command that makes a suitable copy.
    """
    for why in _obstacles(source):
        copy = os.path.splitext(source.path)[0] + "-copy.hdf5"
        raise KabukiError(
            f"{source.path}: {why}, so it cannot be appended to; `kabuki-rlds convert {source.path} {copy}` makes a "
            "copy that can"
        )


def _obstacles(source: KabukiSource) -> Iterator[str]:
    """Yields the reasons why rows cannot be appended to a file in place."""
    file = source.file
    for name in REQUIRED:
        if not has_field(source.schema.steps, name):
            yield f"it has no {name!r}"
    for name in _INDEX:
        index = file.get(f"{layout.EPISODES}/{name}")
        if not isinstance(index, h5py.Dataset) or index.shape != (source.num_episodes,):
            yield f"it has no index of episodes (episodes/{name})"
        else:
            yield from _fixed_extent(index)
    fields = [
        *((path, dataset, source.schema.steps[path]) for path, dataset in source.step_datasets.items()),
        *((path, dataset, source.schema.metadata[path]) for path, dataset in source.metadata_datasets.items()),
    ]
    for _, dataset, field in fields:
        yield from _fixed_extent(dataset)
        yield from _other_type(dataset, field)
        companion = layout.text_attribute(dataset, "companion")
        path = dataset.name.lstrip("/")
        if companion not in ("", f"/{layout.COMPANION}/{path}"):
            yield f"the companion of {path!r} is {companion}"
        for name in row_companions(field):
            rows = file.get(f"{layout.COMPANION}/{path}/{name}")
            if not isinstance(rows, h5py.Dataset) or rows.shape[:1] != dataset.shape[:1]:
                yield f"{name!r} in the companion of {path!r} is missing"
            else:
                yield from _fixed_extent(rows)


def _fixed_extent(dataset: h5py.Dataset) -> Iterator[str]:
    """Yields the reasons why a dataset cannot be extended: a fixed number of rows, or an unavailable filter."""
    if 0 in dataset.shape[1:]:
        return
    if not dataset.chunks or dataset.maxshape[0] is not None:
        yield f"{dataset.name!r} has a fixed number of rows"
        return
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(i) for i in range(properties.get_nfilters())]
    for number, _, _, name in filters:
        if number not in _FILTERS:
            yield f"{dataset.name!r} has the filter {name.decode(errors='replace') or number}"


def _other_type(dataset: h5py.Dataset, field: Field) -> Iterator[str]:
    """Yields a reason if a text or ragged field is stored with fixed-size rows."""
    text = h5py.check_string_dtype(dataset.dtype)
    is_text = field.is_fixed and field.dtype.kind == "O"
    is_ragged = not field.is_fixed
    if (is_text and (text is None or text.length is not None)) or (
        is_ragged and h5py.check_vlen_dtype(dataset.dtype) is None
    ):
        yield f"{dataset.name!r} has rows of a fixed size"
