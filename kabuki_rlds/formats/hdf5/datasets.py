"""Finds the datasets of a Kabuki HDF5 file: its step fields and its episode fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import h5py

from kabuki_rlds.errors import DamagedDataError, KabukiError, system_error
from kabuki_rlds.files import disk
from kabuki_rlds.formats.hdf5 import layout


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
        try:
            item = group[name]
        except KeyError as e:
            number = system_error(e)
            if number is not None:
                raise KabukiError(f"{group.file.filename}: {disk.unreadable(number)}") from e
            dangling.append(prefix + name)
            continue
        if isinstance(item, h5py.Dataset):
            found[prefix + name] = item
        elif isinstance(item, h5py.Group) and item not in above:
            found |= datasets_in(item, dangling, f"{prefix}{name}/", above=above)
    return found


def common_length(path: str, datasets: Mapping[str, h5py.Dataset]) -> int:
    """Returns the number of rows of the step fields.

    Args:
      path: the file, for messages.
      datasets: path to dataset, for all step fields. There is at least one.

    Raises:
      DamagedDataError: the datasets differ in length, or one is a single value.
    """
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
