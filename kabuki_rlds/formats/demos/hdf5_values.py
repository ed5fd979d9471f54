"""Reads datasets and attributes of other writers' HDF5 files as values of episode fields."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import h5py
import numpy as np

from kabuki_rlds.errors import DamagedDataError
from kabuki_rlds.formats.hdf5 import image_files
from kabuki_rlds.formats.hdf5.column_reader import READ_ERRORS
from kabuki_rlds.formats.hdf5.datasets import datasets_in
from kabuki_rlds.formats.hdf5.sequences import SequenceReader
from kabuki_rlds.formats.safe_hdf5 import types
from kabuki_rlds.formats.safe_hdf5.attributes import Attributes
from kabuki_rlds.formats.safe_hdf5.vlen_rows import VlenRows, has_vlen_rows

_log = logging.getLogger("kabuki_rlds")

#: The value of an episode field.
MetadataValue: TypeAlias = str | bytes | np.generic | np.ndarray

#: How many items a warning lists.
_LISTED = 4


def all_datasets(group: h5py.Group, label: str, skip: Sequence[str] = ()) -> dict[str, h5py.Dataset]:
    """Returns path to dataset for all datasets in a group and in the groups below it.

    Args:
      group: the group.
      label: the name of the group in messages; "" for the file.
      skip: names of members of `group` to leave out.

    Raises:
      DamagedDataError: a link in the group is broken.
    """
    broken: list[str] = []
    found = datasets_in(group, broken, skip=skip)
    if broken:
        path = "/".join(filter(None, (label, broken[0])))
        raise DamagedDataError(f"{path!r} is a link that leads nowhere", file=group.file.filename)
    return found


def num_rows(dataset: h5py.Dataset) -> int | None:
    """Returns the length of the first dimension; None if the dataset is a scalar or empty (H5S_NULL)."""
    return int(dataset.shape[0]) if dataset.shape else None


def check_num_rows(dataset: h5py.Dataset, path: str, count: int, label: str = "") -> None:
    """Checks that a dataset has a row per action.

    Args:
      dataset: the dataset.
      path: its path in the episode.
      count: number of actions.
      label: the episode's location in the file, for messages; "" if the file is one episode.

    Raises:
      DamagedDataError: it has another number of rows.
    """
    if num_rows(dataset) != count:
        raise DamagedDataError(
            f"{label}/{path}".lstrip("/") + f": {num_rows(dataset) or 'no'} rows, where there are {count} actions",
            file=dataset.file.filename,
            field=path,
        )


def read_value(dataset: h5py.Dataset, at: int | tuple[()] = ()) -> Any:
    """Reads one row of a dataset, or all of it.

    Raises:
      ValueError: the dataset cannot be read. The message names it.
    """
    try:
        # An opaque value is as many bytes as its type states. Within compound types h5py does not know its size.
        may_be_unreadable = dataset.dtype.kind in "OV" and not image_files.is_opaque(dataset.dtype)
        if may_be_unreadable and (reason := types.unreadable_reason(dataset.id.get_type())):
            raise ValueError(f"its type has {reason}, which are not read")
        if dataset.shape is not None and has_vlen_rows(dataset):
            return _vlen_values(dataset)[at]
        if dataset.dtype.hasobject:
            raise ValueError("its type has parts of variable length, which are not read")
        return dataset[at]
    except READ_ERRORS as e:
        raise ValueError(f"{dataset.name[1:]}: {e}") from e


def _vlen_values(dataset: h5py.Dataset) -> np.ndarray:
    """Reads texts or sequences: an object array of bytes or of arrays, with the shape of the dataset."""
    rows = np.arange(len(dataset) if dataset.shape else 1)
    if h5py.check_string_dtype(dataset.dtype):
        values: list[Any] = VlenRows(dataset).read(rows)
    else:
        elements, counts = SequenceReader(dataset).read(rows)
        values = np.split(elements, np.cumsum(counts)[:-1]) if len(counts) else []
    found = np.empty(len(values), object)
    for i, value in enumerate(values):
        found[i] = value
    return found.reshape(dataset.shape)


def read_metadata_value(dataset: h5py.Dataset) -> MetadataValue:
    """Reads a whole dataset as the value of an episode field.

    Raises:
      DamagedDataError: an episode field cannot have its dtype.
      ValueError: the dataset cannot be read.
    """
    value = read_value(dataset)
    if dataset.shape is None:
        return ""
    if image_files.is_opaque(dataset.dtype):
        return _opaque_bytes(value)
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


def _opaque_bytes(value: Any) -> bytes | np.ndarray:
    """Converts one opaque value to bytes, or an array of them to an object array of bytes."""
    array = np.asarray(value)
    if not array.shape:
        return array.tobytes()
    texts = np.empty(array.size, object)
    texts[:] = [each.tobytes() for each in array.reshape(-1)]
    return texts.reshape(array.shape)


def text_bytes(text: str) -> bytes:
    """Encodes text that h5py decoded. h5py turns bytes that are not UTF-8 into surrogates."""
    return text.encode(errors="surrogateescape")


def read_attributes(item: h5py.HLObject, prefix: str) -> dict[str, MetadataValue]:
    """Reads the attributes of a file, group or dataset as episode fields `<prefix>/<name>`.

    Raises:
      ValueError: an attribute cannot be read. The message names it.
    """
    found: dict[str, MetadataValue] = {}
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


def read_all_attributes(
    group: h5py.Group, datasets: Mapping[str, h5py.Dataset], prefix: str
) -> dict[str, MetadataValue]:
    """Reads the attributes of a group, and of all groups and datasets below it, as episode fields.

    Args:
      group: the group.
      datasets: its datasets, as returned by `all_datasets`.
      prefix: the first part of the paths of the fields.
    """
    found = read_attributes(group, prefix)
    inner = {
        "/".join(parts[:i]): None for path in datasets for parts in [path.split("/")] for i in range(1, len(parts))
    }
    for path in inner:
        found |= read_attributes(group[path], f"{prefix}/{path}")
    for path, dataset in datasets.items():
        if h5py.h5a.get_num_attrs(dataset.id):
            found |= read_attributes(dataset, f"{prefix}/{path}")
    return found


def warn_of_unknown_members(group: h5py.Group, known: Collection[str]) -> None:
    """Warns of the members of a group that the layout does not define. They are not read."""
    unknown = [name for name in group if name not in known]
    if unknown:
        more = f" and {len(unknown) - _LISTED} more" if len(unknown) > _LISTED else ""
        where = group.name.strip("/")
        names = ", ".join(f"{where}/{name}" if where else name for name in unknown[:_LISTED])
        _log.warning("%s: %s%s: not in the layout, and left out", group.file.filename, names, more)


def is_true(dataset: h5py.Dataset, row: int) -> bool:
    """Returns whether a flag is true in a row; if a row has several flags, whether any is.

    Raises:
      DamagedDataError: the dataset does not hold numbers or booleans.
      ValueError: the dataset cannot be read.
    """
    value = read_value(dataset, row)
    check_flag(dataset)
    return bool(np.any(value))


def check_flag(dataset: h5py.Dataset) -> None:
    """Rejects a dataset that cannot hold flags, such as text: NumPy 2 treats any text that is not empty as true.

    Raises:
      DamagedDataError: the dataset does not hold numbers or booleans.
    """
    if dataset.dtype.kind not in "biuf" or h5py.check_vlen_dtype(dataset.dtype):
        raise DamagedDataError(
            f"{dataset.name[1:]} is of type {dataset.dtype}, and no flag", file=dataset.file.filename
        )


def as_json(value: object) -> Any:
    """Converts a value to what JSON can hold."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, (np.ndarray, np.generic)):
        return json.loads(json.dumps(value.tolist(), default=lambda x: as_json(x)))
    return value if isinstance(value, (str, int, float, bool)) else str(value)
