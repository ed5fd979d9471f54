"""Minari's datasets in Arrow or Parquet: `<id>/data/metadata.json`, and a folder an episode, `<id>/data/0`, ….

Each has its own `metadata.json`, and a table of T + 1 rows with `observations`, `actions`, `rewards`, `terminations`,
`truncations` and perhaps `infos`; what belongs to an action has padding in the last row. A dict is a struct, and a
tuple one of `0`, `1`, …; arrays are flat lists, whose shapes the spaces in `metadata.json` say. (Source: Minari's
`arrow_storage.py`, version 0.5.)

The rules are those of `minari`, and so are the names: a tuple's items are `_index_<i>`. Only that tuples within
`infos` cannot be told from dicts, and keep `0`, `1`, …. Of an episode: `attributes/…` is its `metadata.json`.

An episode is held in memory while it is read, since Parquet has it in one piece.
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
from kabuki_rlds.files.placeholders import check_is_data
from kabuki_rlds.formats.demos.demo_episode import (
    DemoEpisode,
    EmptyEpisodeError,
    RowReader,
    UnreadableEpisode,
    attempt,
    padding,
)
from kabuki_rlds.formats.demos.minari import METADATA, NAMES, add_steps, check_counts, info_of, read_metadata
from kabuki_rlds.formats.demos.robomimic import ends
from kabuki_rlds.formats.demos.source import Assumptions

_FORMATS = ("arrow", "parquet")


@dataclasses.dataclass(frozen=True)
class _Folder:
    """The folder with the data of a dataset.

    Attributes:
      path: it.
      metadata: what its `metadata.json` says.
      episodes: the folders of the episodes, in the order of their numbers.
    """

    path: pathlib.Path
    metadata: Mapping[str, Any]
    episodes: Sequence[pathlib.Path]


class MinariArrow:
    """Minari's layout in Arrow or Parquet."""

    name = "minari"
    assumptions: Mapping[str, tuple[str, ...]] = {}

    @contextlib.contextmanager
    def open(self, path: str, *, quiet: bool = False) -> Iterator[_Folder]:
        folder = pathlib.Path(path)
        yield _Folder(folder, read_metadata(folder), _numbered(folder))

    def why_not(self, file: _Folder, name: str, value: str) -> str:
        return ""

    def files(self, path: str) -> list[str]:
        return sorted(os.fspath(file) for file in pathlib.Path(path).rglob("*") if file.is_file())

    def extras(self, file: _Folder) -> Iterator[tuple[set[str], set[str]]]:
        yield from ()

    def episodes(
        self, file: _Folder, assume: Assumptions, of_episode: Collection[str]
    ) -> Iterator[DemoEpisode | UnreadableEpisode]:
        steps: int | None = 0
        for folder in file.episodes:
            found = attempt(folder.name, functools.partial(_episode, folder, file.metadata))
            steps = add_steps(steps, found)
            yield found
        check_counts(file.path / METADATA, file.metadata, len(file.episodes), steps)

    def info(self, file: _Folder) -> Info:
        return info_of(file.metadata)


def recognises(folder: pathlib.Path) -> bool:
    """Whether a folder is one with the data of such a dataset.

    Raises:
      KabukiError: its `metadata.json` cannot be read.
    """
    # TFDS writes a file of this name too, beside one with features.
    if (folder / "features.json").exists():
        return False
    try:
        return read_metadata(folder).get("data_format") in _FORMATS
    except KabukiError:
        if _numbered(folder):
            raise
        # Others write one too, and of another form.
        return False


def _numbered(folder: pathlib.Path) -> list[pathlib.Path]:
    """What stands in a folder under a number, in the order of those."""
    numbered = sorted((int(each.name), each) for each in folder.iterdir() if re.fullmatch(r"\d+", each.name))
    return [each for _, each in numbered]


def _episode(folder: pathlib.Path, metadata: Mapping[str, Any]) -> DemoEpisode:
    import pyarrow.dataset

    data_format = metadata["data_format"]
    # macOS keeps attributes of a file in a file named `._<name>` beside it.
    files = sorted(os.fspath(file) for file in folder.glob(f"*.{data_format}") if not file.name.startswith("._"))
    if not files:
        raise DamagedDataError(f"no .{data_format} file", file=folder)
    for file in files:
        check_is_data(file)
    dataset = pyarrow.dataset.dataset(files, format=data_format)
    length = dataset.count_rows()
    said = read_metadata(folder)
    if length < 2 and not said.get("total_steps"):
        raise EmptyEpisodeError(f"{folder}: a table of {length} rows, so no steps, since the last is none")
    count = said.get("total_steps", length - 1)
    if count != length - 1:
        raise DamagedDataError(
            f"says total_steps {count}, but has {length} rows, the last of which is none", file=folder
        )
    table = functools.cache(lambda: _whole_table(dataset))
    steps: dict[str, RowReader] = {}
    for column in dataset.schema:
        if column.name == "episode_id":
            continue
        space = metadata.get({"observations": "observation_space", "actions": "action_space"}.get(column.name, ""))
        for path, leaf in _leaves(folder, (column.name,), column, space):
            of_action = column.name not in ("observations", "infos")
            first, *rest = path
            label = f"{folder}: {'/'.join(path)}"
            steps["/".join([NAMES.get(first, first), *rest])] = _Rows(label, leaf, length, of_action, table)
    lacking = {"observation", "action", "reward", "terminations", "truncations"} - {
        name.split("/")[0] for name in steps
    }
    if lacking:
        raise DamagedDataError(f"the table has no column for {sorted(lacking)[0]}", file=folder)
    steps["is_terminal"] = ends(length, _is_terminal(folder, dataset))
    return DemoEpisode(folder.name, length, steps, {**dict(_said("attributes", said)), "file_path": os.fspath(folder)})


def _said(prefix: str, said: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a `metadata.json` says, a dict in it level by level, as fields of an episode."""
    for name, value in said.items():
        path = f"{prefix}/{name}"
        if isinstance(value, dict):
            yield from _said(path, value)
        elif isinstance(value, (str, bool, int, float)):
            yield path, value if isinstance(value, str) else np.asarray(value)[()]
        elif value is not None:
            array = np.asarray(value) if _is_plain(value) else None
            yield path, json.dumps(value) if array is None else array


def _is_plain(value: list[Any]) -> bool:
    """Whether lists are those of an array of numbers."""
    try:
        return np.asarray(value).dtype.kind in "biuf"
    except ValueError:
        return False


def _is_terminal(folder: pathlib.Path, dataset: Any) -> bool:
    """Whether the last step ended terminal: the row after it is padding."""
    import pyarrow as pa

    kind = dataset.schema.field("terminations").type
    # All else would be true: a text whatever it says.
    if not (pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise DamagedDataError(f"terminations is of type {kind}, and no flag", file=folder)
    return bool(_whole_table(dataset, ["terminations"])["terminations"][-2].as_py())


def _whole_table(dataset: Any, columns: list[str] | None = None) -> Any:
    table = dataset.to_table(columns=columns)
    # Lengths and places within an Arrow file are believed otherwise.
    table.validate(full=True)
    return table


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """A column of numbers or texts within those of a table.

    Attributes:
      places: the name of the column, and the number of the child at each level below.
      field: what a row is.
    """

    places: tuple[str | int, ...]
    field: Field


def _leaves(
    folder: pathlib.Path, path: tuple[str, ...], column: Any, space: Any, places: tuple[str | int, ...] = ()
) -> Iterator[Any]:
    """Path and leaf of all that an Arrow field holds, with its space in Minari's JSON, or None where there is none."""
    import pyarrow as pa

    places = places or (column.name,)
    kind = space.get("type") if isinstance(space, dict) else None
    below = space.get("subspaces") if isinstance(space, dict) else None
    if pa.types.is_struct(column.type):
        for i, child in enumerate(column.type):
            name, inner = child.name, None
            if kind == "Tuple" and isinstance(below, list) and name.isdecimal() and int(name) < len(below):
                name, inner = f"_index_{name}", below[int(name)]
            elif kind == "Dict" and isinstance(below, dict):
                inner = below.get(name)
            yield from _leaves(folder, (*path, name), child, inner, (*places, i))
        return
    yield path, _Leaf(places, _field(f"{folder}: {'/'.join(path)}", column, space if kind else None))


def _field(label: str, column: Any, space: Mapping[str, Any] | None) -> Field:
    import pyarrow as pa

    kind = column.type
    shape: tuple[int | None, ...] = ()
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        if space is None or space.get("type") != "Box":
            return Field(BYTES, (), "text")
        height, width, *channels = _stated_shape(label, space)
        return Field(np.dtype(np.uint8), (height, width, *(channels or [1])), "image", encoded=True)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return Field(BYTES, (), "text")
    if pa.types.is_fixed_size_list(kind):
        shape = _shape(label, column, space)
        kind = kind.value_type
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        shape = (None,)
        kind = kind.value_type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise DamagedDataError(
            f"{column.type} is no type of a field; numbers, text and lists of numbers can be read", file=label
        )
    return Field(np.dtype(kind.to_pandas_dtype()), shape)


def _shape(label: str, column: Any, space: Mapping[str, Any] | None) -> tuple[int, ...]:
    """The shape of what is stored as a flat list: its space says it, or in `infos` the column itself."""
    size = column.type.list_size
    stated = (column.metadata or {}).get(b"shape")
    if stated is not None:
        shape = tuple(int(d) if d.isdecimal() else -1 for d in stated.decode(errors="replace").split(",") if d)
    elif space is None:
        shape = (size,)
    else:
        shape = _stated_shape(label, space)
    if math.prod(shape) != size or any(d < 0 for d in shape):
        raise DamagedDataError(f"lists of {size} values, where its shape is {shape}", file=label)
    return shape


def _stated_shape(label: str, space: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of what a space holds."""
    try:
        if space["type"] == "MultiDiscrete":
            return np.shape(space["nvec"])
        if space["type"] == "MultiBinary":
            return tuple(operator.index(d) for d in np.atleast_1d(space["n"]))
        return tuple(operator.index(d) for d in space["shape"])
    except (KeyError, TypeError, ValueError) as e:
        raise DamagedDataError(f"its space in {METADATA} has no shape that makes sense: {e}", file=label) from e


class _Rows:
    """The rows of one leaf of an episode's table.

    Args:
      label: the folder of the episode and the name of the leaf, for a message.
      leaf: the leaf.
      length: how many rows the table has.
      of_action: whether the last row is padding.
      table: reads the table.
    """

    def __init__(self, label: str, leaf: _Leaf, length: int, of_action: bool, table: Any):
        self.field = leaf.field
        self.is_blank = False
        self._label = label
        self._places = leaf.places
        self._length = length
        self._of_action = of_action
        self._table = table

    def __len__(self) -> int:
        return self._length

    @functools.cached_property
    def _array(self) -> Any:
        name, *places = self._places
        array = self._table()[name].combine_chunks()
        for place in places:
            # Not `field`, which knows nothing of rows that have no value.
            array = array.flatten()[place]
        return array

    def read(self, start: int, stop: int, threads: concurrent.futures.Executor) -> Column:
        stored = min(stop, self._length - self._of_action)
        column = _column(self._array.slice(start, max(stored - start, 0)), self.field, self._label)
        return column if stored == stop else concatenate([column, padding(self.field)])


def _column(array: Any, field: Field, label: str) -> Column:
    """The rows of an Arrow array."""
    import pyarrow as pa

    if array.null_count:
        raise DamagedDataError(f"{array.null_count} rows without a value, for which there is no form", file=label)
    if field.dtype == BYTES or field.encoded:
        is_large = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
        column = np.empty(len(array), object)
        column[:] = array.cast(pa.large_binary() if is_large else pa.binary()).to_pylist()
        return column
    if not field.shape and not pa.types.is_nested(array.type):
        return array.to_numpy(zero_copy_only=False)
    values = array.flatten()
    if values.null_count:
        raise DamagedDataError(f"{values.null_count} elements without a value, for which there is no form", file=label)
    flat = values.to_numpy(zero_copy_only=False)
    if None in field.shape:
        return Ragged(flat, array.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)[:, None])
    return flat.reshape(len(array), *field.shape)
