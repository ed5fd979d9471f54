"""Reads Minari's datasets in Arrow or Parquet: `<id>/data/metadata.json`, and a folder per episode, `<id>/data/0`, ….

Each folder has its own `metadata.json`, and a table of T + 1 rows with the columns `observations`, `actions`,
`rewards`, `terminations`, `truncations` and perhaps `infos`. Columns that belong to an action have padding in the
last row. A dict is a struct, and a tuple a struct of `0`, `1`, …. Arrays are flat lists; the spaces in `metadata.json`
state their shapes. (Source: Minari's `arrow_storage.py`, version 0.5.)

The rules and the names of fields are those of `minari`. The items of a tuple are named `_index_<i>`, except within
`infos`, where a tuple cannot be told from a dict, so they keep the names `0`, `1`, …. The episode fields `attributes/…`
come from the episode's `metadata.json`.

A few rows of an episode are in memory at a time (see `arrow_table`).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import math
import operator
import os
import pathlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kabuki_rlds.data.block import Column, Ragged, concatenate
from kabuki_rlds.data.schema import BYTES, Field, Info
from kabuki_rlds.errors import DamagedDataError, KabukiError
from kabuki_rlds.extras import require
from kabuki_rlds.formats.demos.arrow_table import ArrowTable
from kabuki_rlds.formats.demos.assumptions import Assumptions
from kabuki_rlds.formats.demos.demo_episode import (
    DemoEpisode,
    EmptyEpisodeError,
    UnreadableEpisode,
    episode_or_error,
)
from kabuki_rlds.formats.demos.layout import DemoOptions, EpisodeLayout
from kabuki_rlds.formats.demos.minari import (
    ACTION_SPACE,
    ACTIONS,
    INFOS,
    METADATA,
    OBSERVATION_SPACE,
    OBSERVATIONS,
    STEP_FIELDS,
    TERMINATIONS,
    TOTAL_STEPS,
    TRUNCATIONS,
    TUPLE_ITEM_PREFIX,
    StepCounter,
    info_from_metadata,
    read_metadata,
)
from kabuki_rlds.formats.demos.row_readers import RowReader, is_terminal_rows, padding
from kabuki_rlds.formats.demos.source import DemosSource

_FORMATS = ("arrow", "parquet")


@dataclasses.dataclass(frozen=True)
class _DatasetFolder:
    """The folder of a dataset.

    Attributes:
      path: its path.
      metadata: its `metadata.json`.
      episodes: the folders of the episodes, in numeric order.
    """

    path: pathlib.Path
    metadata: Mapping[str, Any]
    episodes: Sequence[pathlib.Path]


class MinariArrow(EpisodeLayout):
    """Minari's layout in Arrow or Parquet. A dataset is a folder."""

    name = "minari"
    assumptions: Mapping[str, tuple[str, ...]] = {}
    joins_files = True

    def recognises(self, file: pathlib.Path) -> bool:
        """Returns whether a folder has this layout.

        Raises:
          KabukiError: its `metadata.json` cannot be read.
        """
        # TFDS writes a file of this name too, next to features.json.
        if (file / "features.json").exists():
            return False
        try:
            return read_metadata(file).get("data_format") in _FORMATS
        except KabukiError:
            if _numbered_folders(file):
                raise
            # The metadata.json of another program may have any form.
            return False

    def open_source(self, paths: Sequence[str], options: DemoOptions) -> DemosSource:
        return DemosSource(self, paths, options)

    @contextlib.contextmanager
    def open(self, path: str, *, quiet: bool = False) -> Iterator[_DatasetFolder]:
        folder = pathlib.Path(path)
        require(f"{path}: reading a Minari dataset in Arrow or Parquet", "pyarrow.dataset")
        yield _DatasetFolder(folder, read_metadata(folder), _numbered_folders(folder))

    def why_inapplicable(self, file: _DatasetFolder, name: str, value: str) -> str:
        return ""

    def files(self, path: str) -> list[str]:
        return sorted(os.fspath(file) for file in pathlib.Path(path).rglob("*") if file.is_file())

    def unknown_fields(self, file: _DatasetFolder) -> Iterator[tuple[set[str], set[str]]]:
        yield from ()

    def episodes(
        self, file: _DatasetFolder, assume: Assumptions, episode_fields: Collection[str]
    ) -> Iterator[DemoEpisode | UnreadableEpisode]:
        counter = StepCounter()
        for folder in file.episodes:
            yield counter.count(episode_or_error(folder.name, functools.partial(_episode, folder, file.metadata)))
        counter.check(file.path / METADATA, file.metadata)

    def info(self, file: _DatasetFolder) -> Info:
        return info_from_metadata(file.metadata)


MINARI_ARROW = MinariArrow()


def _numbered_folders(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders in a folder that are named by a number, in numeric order."""
    numbered = sorted((int(each.name), each) for each in folder.iterdir() if re.fullmatch(r"\d+", each.name))
    return [each for _, each in numbered]


def _episode(folder: pathlib.Path, metadata: Mapping[str, Any]) -> DemoEpisode:
    data_format = metadata["data_format"]
    # macOS keeps attributes of a file in a file named `._<name>` beside it.
    files = sorted(os.fspath(file) for file in folder.glob(f"*.{data_format}") if not file.name.startswith("._"))
    if not files:
        raise DamagedDataError(f"no .{data_format} file", file=folder)
    table = ArrowTable(files, data_format)
    length = table.num_rows
    episode_metadata = read_metadata(folder)
    if length < 2 and not episode_metadata.get(TOTAL_STEPS):
        raise EmptyEpisodeError(f"{folder}: a table of {length} rows, so no steps, since the last is none")
    count = episode_metadata.get(TOTAL_STEPS, length - 1)
    if count != length - 1:
        raise DamagedDataError(
            f"says total_steps {count}, but has {length} rows, the last of which is none", file=folder
        )
    steps: dict[str, RowReader] = {}
    for column in table.schema:
        if column.name == "episode_id":
            continue
        space = metadata.get({OBSERVATIONS: OBSERVATION_SPACE, ACTIONS: ACTION_SPACE}.get(column.name, ""))
        for path, leaf in _leaf_columns(folder, (column.name,), column, space):
            is_padded = column.name not in (OBSERVATIONS, INFOS)
            first, *rest = path
            label = f"{folder}: {'/'.join(path)}"
            steps["/".join([STEP_FIELDS.get(first, first), *rest])] = _TableRows(label, leaf, length, is_padded, table)
    required = {*STEP_FIELDS.values(), TERMINATIONS, TRUNCATIONS}
    missing = required - {name.split("/")[0] for name in steps}
    if missing:
        raise DamagedDataError(f"the table has no column for {sorted(missing)[0]}", file=folder)
    steps["is_terminal"] = is_terminal_rows(length, _terminated(folder, table))
    fields = dict(_episode_fields("attributes", episode_metadata))
    return DemoEpisode(folder.name, length, steps, {**fields, "file_path": os.fspath(folder)})


def _episode_fields(prefix: str, metadata: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields path and value of the episode fields for a `metadata.json`. Nested dicts become nested paths."""
    for name, value in metadata.items():
        path = f"{prefix}/{name}"
        if isinstance(value, dict):
            yield from _episode_fields(path, value)
        elif isinstance(value, (str, bool, int, float)):
            yield path, value if isinstance(value, str) else np.asarray(value)[()]
        elif value is not None:
            yield path, np.asarray(value) if _is_numeric_array(value) else json.dumps(value)


def _is_numeric_array(value: list[Any]) -> bool:
    """Returns whether nested lists make an array of numbers."""
    try:
        return np.asarray(value).dtype.kind in "biuf"
    except ValueError:
        return False


def _terminated(folder: pathlib.Path, table: ArrowTable) -> bool:
    """Returns whether the episode terminated, according to its last step. The row after that is padding."""
    import pyarrow as pa

    kind = table.schema.field(TERMINATIONS).type
    # Values of other types, such as text, would count as true.
    if not (pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise DamagedDataError(f"terminations is of type {kind}, and no flag", file=folder)
    last: list[Any] = []
    for batch in table.batches([TERMINATIONS]):
        last = [*last, *batch.column(TERMINATIONS)[-2:]][-2:]
    return bool(last[0].as_py())


@dataclasses.dataclass(frozen=True)
class _LeafColumn:
    """A column of numbers or text, perhaps nested in structs.

    Attributes:
      location: the name of the table's column, then the number of the child at each level below.
      field: dtype, shape and kind of a row.
    """

    location: tuple[str | int, ...]
    field: Field


def _leaf_columns(
    folder: pathlib.Path, path: tuple[str, ...], column: Any, space: Any, location: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str, ...], _LeafColumn]]:
    """Yields path and column of all leaves of an Arrow field.

    Args:
      folder: the folder of the episode, for messages.
      path: the path of the field.
      column: the field.
      space: its space in Minari's JSON; None if there is none.
      location: as in `_LeafColumn`.
    """
    import pyarrow as pa

    location = location or (column.name,)
    kind = space.get("type") if isinstance(space, dict) else None
    subspaces = space.get("subspaces") if isinstance(space, dict) else None
    if pa.types.is_struct(column.type):
        for i, child in enumerate(column.type):
            name, subspace = child.name, None
            if kind == "Tuple" and isinstance(subspaces, list) and name.isdecimal() and int(name) < len(subspaces):
                name, subspace = f"{TUPLE_ITEM_PREFIX}{name}", subspaces[int(name)]
            elif kind == "Dict" and isinstance(subspaces, dict):
                subspace = subspaces.get(name)
            yield from _leaf_columns(folder, (*path, name), child, subspace, (*location, i))
        return
    yield path, _LeafColumn(location, _field(f"{folder}: {'/'.join(path)}", column, space if kind else None))


def _field(label: str, column: Any, space: Mapping[str, Any] | None) -> Field:
    """Returns the field of a leaf column.

    Raises:
      KabukiError: no field can have its type, or its space does not fit it.
    """
    import pyarrow as pa

    kind = column.type
    shape: tuple[int | None, ...] = ()
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        if space is None or space.get("type") != "Box":
            return Field(BYTES, (), "text")
        height, width, *channels = _space_shape(label, space)
        return Field(np.dtype(np.uint8), (height, width, *(channels or [1])), "image", encoded=True)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return Field(BYTES, (), "text")
    if pa.types.is_fixed_size_list(kind):
        shape = _array_shape(label, column, space)
        kind = kind.value_type
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        shape = (None,)
        kind = kind.value_type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise DamagedDataError(
            f"{column.type} is no type of a field; numbers, text and lists of numbers can be read", file=label
        )
    return Field(np.dtype(kind.to_pandas_dtype()), shape)


def _array_shape(label: str, column: Any, space: Mapping[str, Any] | None) -> tuple[int, ...]:
    """Returns the shape of arrays that are stored as flat lists. The space states it, or, in `infos`, the column."""
    size = column.type.list_size
    stated = (column.metadata or {}).get(b"shape")
    if stated is not None:
        shape = tuple(int(d) if d.isdecimal() else -1 for d in stated.decode(errors="replace").split(",") if d)
    elif space is None:
        shape = (size,)
    else:
        shape = _space_shape(label, space)
    if math.prod(shape) != size or any(d < 0 for d in shape):
        raise DamagedDataError(f"lists of {size} values, where its shape is {shape}", file=label)
    return shape


def _space_shape(label: str, space: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the shape of the arrays in a space."""
    try:
        if space["type"] == "MultiDiscrete":
            return np.shape(space["nvec"])
        if space["type"] == "MultiBinary":
            return tuple(operator.index(d) for d in np.atleast_1d(space["n"]))
        return tuple(operator.index(d) for d in space["shape"])
    except (KeyError, TypeError, ValueError) as e:
        raise DamagedDataError(f"its space in {METADATA} has no shape that makes sense: {e}", file=label) from e


class _TableRows:
    """Reads the rows of one leaf column of an episode's table.

    Args:
      label: the folder of the episode and the path of the column, for messages.
      leaf: the column.
      length: number of rows of the table.
      is_padded: whether the last row is padding. It is replaced with zeros.
      table: the table.
    """

    def __init__(self, label: str, leaf: _LeafColumn, length: int, is_padded: bool, table: ArrowTable):
        self.field = leaf.field
        self.is_blank = False
        self._label = label
        self._location = leaf.location
        self._length = length
        self._is_padded = is_padded
        self._table = table

    def __len__(self) -> int:
        return self._length

    def read(self, start: int, stop: int, threads: concurrent.futures.Executor) -> Column:
        stored = min(stop, self._length - self._is_padded)
        # All rows, because the fields that are not padded read the same ones.
        batches = self._table.rows(start, stop)
        parts: list[Column] = []
        for batch in batches:
            rows = min(batch.num_rows, stored - start - sum(map(len, parts)))
            if rows:
                parts.append(_column(self._array(batch.slice(0, rows)), self.field, self._label))
        return concatenate([*parts, padding(self.field)] if stored < stop else parts)

    def _array(self, batch: Any) -> Any:
        name, *children = self._location
        array = batch.column(name)
        for child in children:
            # `field` would ignore that a struct is null in some rows.
            array = array.flatten()[child]
        return array


def _column(array: Any, field: Field, label: str) -> Column:
    """Converts an Arrow array to a column.

    Raises:
      KabukiError: a value is null.
    """
    import pyarrow as pa

    if array.null_count:
        raise DamagedDataError(f"{array.null_count} rows without a value, for which there is no form", file=label)
    if field.dtype == BYTES or field.encoded:
        values = array.dictionary if pa.types.is_dictionary(array.type) else array
        is_large = pa.types.is_large_string(values.type) or pa.types.is_large_binary(values.type)
        texts = np.empty(len(values), object)
        texts[:] = values.cast(pa.large_binary() if is_large else pa.binary()).to_pylist()
        return texts if values is array else texts[array.indices.to_numpy()]
    if not field.shape and not pa.types.is_nested(array.type):
        return _copied(array)
    values = array.flatten()
    if values.null_count:
        raise DamagedDataError(f"{values.null_count} elements without a value, for which there is no form", file=label)
    flat = _copied(values)
    if None in field.shape:
        return Ragged(flat, array.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)[:, None])
    return flat.reshape(len(array), *field.shape)


def _copied(array: Any) -> np.ndarray:
    """Returns the values of an Arrow array. A view would keep the whole batch in memory."""
    return np.array(array.to_numpy(zero_copy_only=False))
