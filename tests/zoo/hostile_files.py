"""Writes hostile HDF5 files: valid files of which a structure, or a few, are changed. The same files in each run."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

from tests.zoo import base_files, hostile_objects, hostile_structures, hostile_types
from tests.zoo.field_changes import field_changes, message_changes
from tests.zoo.hdf5_bytes import Bytes


def write_all(folder: Path, changes: int | None = None) -> list[Path]:
    """Writes the files into a folder.

    Args:
      folder: the folder; it is created.
      changes: how many of the files of `field_changes` and of `message_changes` to write, chosen at random; None
        writes all, about 3,000.

    Returns:
      the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    valid = base_files.write_all(folder)
    files = {version: Bytes(path) for version, path in valid.items()}
    made: list[Iterator[tuple[str, bytes]]] = [
        hostile_structures.patched(folder, files),
        hostile_types.nested_types(folder),
        hostile_objects.written(folder),
    ]
    for version, make in itertools.product(files, (field_changes, message_changes)):
        named = ((f"{version}_{name}", content) for name, content in make(files[version]))
        made.append(named if changes is None else iter(random.Random(0).sample(list(named), changes)))
    paths = list(valid.values())
    for name, content in itertools.chain(*made):
        paths.append(folder / f"{name}.hdf5")
        paths[-1].write_bytes(content)
    return paths
