"""An episode as a layout has it: for each field where its rows are stored, and what follows them."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import h5py
import numpy as np

from kabuki_rlds.data.block import Column, Ragged, concatenate
from kabuki_rlds.data.schema import BYTES, Field
from kabuki_rlds.errors import DamagedDataError, KabukiError
from kabuki_rlds.formats.hdf5 import image_files, layout
from kabuki_rlds.formats.hdf5.source import READ_ERRORS, column_reader, datasets_in
from kabuki_rlds.formats.safe_hdf5 import types, vlen_lengths
from kabuki_rlds.formats.safe_hdf5.attributes import Attributes

_log = logging.getLogger("kabuki_rlds")

#: What stands in the row of the last observation of an episode, if its layout stores no such row:
#: "zero" (padding), or "repeat" (the row before).
Final: TypeAlias = Literal["", "zero", "repeat"]


class EmptyEpisodeError(KabukiError):
    """An episode without steps. It is left out, and reported."""


class RowReader(Protocol):
    """The rows of one field in one episode.

    Attributes:
      field: what a row is.
      is_blank: all rows are empty, so they may be image files that are missing.
    """

    field: Field
    is_blank: bool

    def __len__(self) -> int:
        """How many there are."""

    def read(self, start: int, stop: int, threads: concurrent.futures.Executor) -> Column:
        """Some of them."""


@dataclasses.dataclass(frozen=True)
class DemoEpisode:
    """One episode of a file that is open.

    Attributes:
      label: where it stands in the file, for a message: `data/demo_3`.
      length: how many rows it has.
      steps: path to the rows of a step field, as many as `length`.
      metadata: path to what the episode says of itself: text, bytes, a number, or an array.
      masks: the names of the parts of the dataset that it is in.
      last_is_step: whether the last row is a step, since no observation follows the last action.
    """

    label: str
    length: int
    steps: Mapping[str, RowReader]
    metadata: Mapping[str, str | bytes | np.generic | np.ndarray]
    masks: frozenset[str] = frozenset()
    last_is_step: bool = False


@dataclasses.dataclass(frozen=True)
class UnreadableEpisode:
    """An episode of a file that cannot be read.

    Attributes:
      label: where it stands in the file, for a message.
      error: why it cannot be read.
      masks: as in `DemoEpisode`.
    """

    label: str
    error: Exception
    masks: frozenset[str] = frozenset()

    @property
    def is_empty(self) -> bool:
        """Whether it has no steps."""
        return isinstance(self.error, EmptyEpisodeError)


def attempt(
    label: str, read: Callable[[], DemoEpisode], masks: frozenset[str] = frozenset()
) -> DemoEpisode | UnreadableEpisode:
    """An episode, or why it cannot be read, so that the others of its file can be.

    Args:
      label: where it stands in the file, for a message.
      read: makes it.
      masks: the names of the parts of the dataset that it is in.
    """
    try:
        return read()
    except (KabukiError, *READ_ERRORS) as e:
        return UnreadableEpisode(label, e, masks)


class StoredRows:
    """The rows of a dataset, and perhaps one more.

    Args:
      dataset: (rows, …).
      final: what stands in one more row after them: a dataset, whose last row it is, or padding; "" for no such row.
        Image files are not padded; the last one is repeated.

    Raises:
      KabukiError: the dataset is of a type that no field has, or its last row of another, or it says that it
        holds image files.
    """

    def __init__(self, dataset: h5py.Dataset, final: h5py.Dataset | Final = ""):
        content = image_files.content_of(dataset)
        self.field = content.field or _plain_field(dataset)
        self.is_blank = content.is_blank
        if self.field.encoded and final == "zero":
            final = "repeat"
        self._dataset = dataset
        self._final = final
        self._stored = len(dataset)
        if isinstance(final, h5py.Dataset) and not self._fits(final):
            raise DamagedDataError(
                f"{final.name} is of another type or shape than {dataset.name}", file=dataset.file.filename
            )

    def _fits(self, other: h5py.Dataset) -> bool:
        """Whether another dataset holds rows of the same field."""
        if self.field.encoded:
            # The longest file of each may be of another length.
            return image_files.form_of(other) is not None
        mine = self._dataset
        return other.shape is not None and (other.dtype, other.shape[1:]) == (mine.dtype, mine.shape[1:])

    def __len__(self) -> int:
        return self._stored + (self._final != "")

    def read(self, start: int, stop: int, threads: concurrent.futures.Executor) -> Column:
        parts: list[Column] = []
        if start < self._stored:
            parts.append(self._read(self._dataset, start, min(stop, self._stored), threads))
        if stop > self._stored:
            parts.append(self._last_row(threads))
        return concatenate(parts)

    def _last_row(self, threads: concurrent.futures.Executor) -> Column:
        if isinstance(self._final, h5py.Dataset):
            return self._read(self._final, len(self._final) - 1, len(self._final), threads)
        if self._final == "repeat" and self._stored:
            return self._read(self._dataset, self._stored - 1, self._stored, threads)
        return padding(self.field)

    def _read(self, dataset: h5py.Dataset, start: int, stop: int, threads: concurrent.futures.Executor) -> Column:
        return column_reader(dataset, self.field, threads).read(start, stop)


class FollowedRows(StoredRows):
    """The rows of a dataset of observations, and one more for the last of those that came after them.

    The others that came after are the observations one row later, or else it is an error: they are not kept twice.

    Args:
      dataset: (rows, …).
      following: what came after each row: (rows, …).
      remedy: what to do where it is not the row after; "" where that is no error.

    Raises:
      KabukiError: the datasets are of different types, or one is of a type that no field has.
    """

    def __init__(self, dataset: h5py.Dataset, following: h5py.Dataset, remedy: str):
        if rows_of(following) != len(dataset):
            raise DamagedDataError(
                f"{following.name[1:]} has {rows_of(following) or 'no'} rows, "
                f"where {dataset.name[1:]} has {len(dataset)}",
                file=dataset.file.filename,
            )
        super().__init__(dataset, following)
        self._following = following
        self._remedy = remedy

    def read(self, start: int, stop: int, threads: concurrent.futures.Executor) -> Column:
        column = super().read(start, stop, threads)
        first, last = max(start, 1), min(stop, self._stored)
        if first < last and self._remedy:
            after = self._read(self._following, first - 1, last - 1, threads)
            if not are_equal(column[first - start : last - start], after):
                raise DamagedDataError(
                    f"{self._following.name[1:]}: rows {first - 1} to {last - 2} are "
                    f"not the observations one row later; {self._remedy}",
                    file=self._following.file.filename,
                    rows=range(first - 1, last - 2),
                )
        return column


class GivenRows:
    """Rows that are made, and not stored.

    Args:
      values: (rows, …).
      derived: how they were made, where the layout has no such field.
    """

    def __init__(self, values: np.ndarray, derived: str = ""):
        kind: Literal["text", "array"] = "text" if values.dtype == BYTES else "array"
        self.field = Field(values.dtype, values.shape[1:], kind, derived=derived)
        self.is_blank = False
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def read(self, start: int, stop: int, threads: concurrent.futures.Executor) -> Column:
        return self._values[start:stop]


def fields_of(group: h5py.Group, label: str, skip: Sequence[str] = ()) -> dict[str, h5py.Dataset]:
    """Path to dataset, of all that stands in a group.

    Args:
      group: the group.
      label: what to call it in a message; "" for the file.
      skip: names in it to pass over.

    Raises:
      KabukiError: a link in it leads nowhere.
    """
    nowhere: list[str] = []
    found = datasets_in(group, nowhere, skip=skip)
    if nowhere:
        path = "/".join(filter(None, (label, nowhere[0])))
        raise DamagedDataError(f"{path!r} is a link that leads nowhere", file=group.file.filename)
    return found


def rows_of(dataset: h5py.Dataset) -> int | None:
    """How many rows a dataset has, None where it is a single value or nothing."""
    return int(dataset.shape[0]) if dataset.shape else None


def value_of(dataset: h5py.Dataset, at: int | tuple[()] = ()) -> Any:
    """A row of a dataset, or all that it holds.

    Raises:
      ValueError: it cannot be read, and which it is.
    """
    try:
        # An opaque value is as many bytes as its type says; within other types h5py does not know it.
        may_be_unreadable = dataset.dtype.kind in "OV" and not image_files.is_opaque(dataset.dtype)
        if may_be_unreadable and (reason := types.unreadable_reason(dataset.id.get_type())):
            raise ValueError(f"its type has {reason}, which are not read")
        if dataset.shape and dataset.dtype.kind == "O":
            vlen_lengths.check_lengths(dataset, 0, len(dataset))
        return dataset[at]
    except READ_ERRORS as e:
        raise ValueError(f"{dataset.name[1:]}: {e}") from e


def whole(dataset: h5py.Dataset) -> str | bytes | np.generic | np.ndarray:
    """All that a dataset holds, as an episode field.

    Raises:
      KabukiError: it is of a type that no field has.
      ValueError: it cannot be read.
    """
    value = value_of(dataset)
    if dataset.shape is None:
        return ""
    if image_files.is_opaque(dataset.dtype):
        return as_bytes(value)
    if dataset.dtype.kind not in "biufc" and not h5py.check_string_dtype(dataset.dtype):
        varies = h5py.check_vlen_dtype(dataset.dtype) is not None
        what = "arrays that vary in length" if varies else f"of type {dataset.dtype}"
        raise DamagedDataError(
            f"{dataset.name[1:]} is {what}, and has not a row for each action; of an episode "
            "numbers, booleans and text can be kept",
            file=dataset.file.filename,
        )
    if isinstance(value, np.ndarray) and value.dtype.kind == "S":
        value = value.astype(object)
    assert isinstance(value, (bytes, np.generic, np.ndarray))
    return value


def as_bytes(value: Any) -> bytes | np.ndarray:
    """One opaque value, or an array of them, as byte strings."""
    array = np.asarray(value)
    if not array.shape:
        return array.tobytes()
    texts = np.empty(array.size, object)
    texts[:] = [each.tobytes() for each in array.reshape(-1)]
    return texts.reshape(array.shape)


def text_bytes(text: str) -> bytes:
    """The bytes of a text out of a file, which h5py gives as surrogates where they are not UTF-8."""
    return text.encode(errors="surrogateescape")


def attributes(item: h5py.HLObject, prefix: str) -> dict[str, str | bytes | np.generic | np.ndarray]:
    """The attributes of a group or a file, as fields of an episode under a prefix.

    Raises:
      ValueError: one cannot be read, and which it is.
    """
    found: dict[str, str | bytes | np.generic | np.ndarray] = {}
    readable = Attributes(item)
    for name in readable:
        try:
            value = readable[name]
        except READ_ERRORS as e:
            raise ValueError(f"the attribute {name!r} of {item.name}: {e}") from e
        if isinstance(value, h5py.Empty):
            value = ""
        elif isinstance(value, np.ndarray) and value.dtype.kind in "OSU":
            texts = [text if isinstance(text, bytes) else text_bytes(str(text)) for text in value.ravel().tolist()]
            value = np.array([*texts, None], object)[:-1].reshape(value.shape)
        elif not isinstance(value, (str, bytes)):
            value = np.asarray(value)
            if value.dtype.kind not in "biuf":
                value = str(value)
        found[f"{prefix}/{name}"] = value
    return found


def attributes_within(
    group: h5py.Group, fields: Mapping[str, h5py.Dataset], prefix: str
) -> dict[str, str | bytes | np.generic | np.ndarray]:
    """The attributes of a group, and of all datasets and groups in it, as fields of an episode under a prefix.

    Args:
      group: the group.
      fields: its datasets, as `fields_of` gives them.
      prefix: the prefix.
    """
    found = attributes(group, prefix)
    inner = {"/".join(parts[:i]): None for path in fields for parts in [path.split("/")] for i in range(1, len(parts))}
    for path in inner:
        found |= attributes(group[path], f"{prefix}/{path}")
    for path, dataset in fields.items():
        if h5py.h5a.get_num_attrs(dataset.id):
            found |= attributes(dataset, f"{prefix}/{path}")
    return found


def warn_of_rest(group: h5py.Group, known: Collection[str]) -> None:
    """Says what stands in a group beside what a layout knows, and is not read."""
    rest = [name for name in group if name not in known]
    if rest:
        more = f" and {len(rest) - 4} more" if len(rest) > 4 else ""
        where = group.name.strip("/")
        names = ", ".join(f"{where}/{name}" if where else name for name in rest[:4])
        _log.warning("%s: %s%s: not in the layout, and left out", group.file.filename, names, more)


def are_equal(a: Column, b: Column) -> bool:
    """Whether two columns are the same to the bit."""
    if isinstance(a, Ragged) and isinstance(b, Ragged):
        return np.array_equal(a.shapes, b.shapes) and are_equal(a.values, b.values)
    if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
        return False
    return np.array_equal(a, b) if a.dtype == BYTES else a.tobytes() == b.tobytes()


def is_true(dataset: h5py.Dataset, row: int) -> bool:
    """Whether a flag, or any of several, is true in a row.

    Raises:
      KabukiError: it is no flag.
      ValueError: it cannot be read.
    """
    value = value_of(dataset, row)
    check_flag(dataset)
    return bool(np.any(value))


def check_flag(dataset: h5py.Dataset) -> None:
    """Refuses what is no flag: NumPy 2 takes any text for true.

    Raises:
      KabukiError: it holds no numbers.
    """
    if dataset.dtype.kind not in "biuf" or h5py.check_vlen_dtype(dataset.dtype):
        raise DamagedDataError(
            f"{dataset.name[1:]} is of type {dataset.dtype}, and no flag", file=dataset.file.filename
        )


def _plain_field(dataset: h5py.Dataset) -> Field:
    """What a row of a dataset is, by its type.

    Raises:
      KabukiError: no field has this type, or an attribute of Kabuki's says that it holds image files.
    """
    if image_files.is_opaque(dataset.dtype):
        return Field(BYTES, dataset.shape[1:], "text")
    field = layout.read_field(dataset)
    if field.encoded:
        raise DamagedDataError(
            f"{dataset.name[1:]}: an attribute of Kabuki's says that it holds image "
            "files, which it does not; remove the attribute",
            file=dataset.file.filename,
        )
    return field


def padding(field: Field) -> Column:
    """One row of zeros, or of empty text."""
    row = empty_row(field)[None]
    return row if None not in field.shape else Ragged(row.reshape(-1), np.array([row.shape[1:]], np.int64))


def empty_row(field: Field) -> np.ndarray:
    """A row of zeros, or of empty text; what varies in size has none."""
    shape = tuple(d or 0 for d in field.shape)
    return np.full(shape, b"", object) if field.dtype == BYTES else np.zeros(shape, field.dtype)


def as_json(value: object) -> Any:
    """A value as JSON has it."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, (np.ndarray, np.generic)):
        return json.loads(json.dumps(value.tolist(), default=lambda x: as_json(x)))
    return value if isinstance(value, (str, int, float, bool)) else str(value)
