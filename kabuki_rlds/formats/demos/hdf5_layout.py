"""What layouts share that store each episode in a group or file of its own in HDF5."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence

import h5py

from kabuki_rlds.formats.demos.layout import DemoOptions, EpisodeLayout
from kabuki_rlds.formats.demos.source import DemosSource
from kabuki_rlds.formats.safe_hdf5.open_file import open_file


class Hdf5EpisodeLayout(EpisodeLayout):
    """Base class of these layouts."""

    joins_files = True

    def open_source(self, paths: Sequence[str], options: DemoOptions) -> DemosSource:
        return DemosSource(self, paths, options)

    def open(self, path: str, *, quiet: bool = False) -> contextlib.AbstractContextManager[h5py.File]:
        return open_file(path, quiet=quiet)

    def files(self, path: str) -> list[str]:
        return [path]

    def why_inapplicable(self, file: h5py.File, name: str, value: str) -> str:
        return ""


def numbered_names(parent: h5py.Group, prefix: str) -> list[str]:
    """Returns the names of the groups named `<prefix><number>`, in numeric order. Numbers may have gaps."""
    # Python does not parse numbers of thousands of digits.
    pattern = re.compile(rf"{re.escape(prefix)}(\d{{1,18}})")
    named = [(int(found[1]), name) for name in parent if (found := pattern.fullmatch(name))]
    return [name for _, name in sorted(named) if parent.get(name, getclass=True) is h5py.Group]


def numbered_groups(parent: h5py.Group, prefix: str) -> Iterator[tuple[str, h5py.Group]]:
    """Yields (name, group) of the groups that `numbered_names` lists. Opens one at a time, to save memory."""
    for name in numbered_names(parent, prefix):
        yield name, parent[name]
