"""Reads the attributes of HDF5 objects: the only place that does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import h5py

from kabuki_rlds.formats.safe_hdf5 import types

#: The attributes of axes that have names, as HDF5 itself writes them. Nothing here uses them.
AXES = ("CLASS", "NAME", "DIMENSION_LIST", "DIMENSION_LABELS", "REFERENCE_LIST")


class Attributes(Mapping[str, Any]):
    """The attributes of a file, group or dataset, without those that h5py cannot read.

    Args:
      item: the object.
    """

    def __init__(self, item: h5py.HLObject):
        self._item = item

    def __getitem__(self, name: str) -> Any:
        """The value, as h5py gives it.

        Raises:
          KeyError: there is no such attribute, or its type is not read.
        """
        if name not in self:
            raise KeyError(name)
        return self._item.attrs[name]

    def __contains__(self, name: object) -> bool:
        attributes = self._item.attrs
        return name in attributes and not types.unreadable(attributes.get_id(name).get_type())

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._item.attrs if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)
