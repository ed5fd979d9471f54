"""Reads the attributes of HDF5 objects. No other module of the package reads attributes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import h5py

from kabuki_rlds.formats.safe_hdf5 import types

#: The attributes of HDF5 dimension scales. This package does not use them.
DIMENSION_SCALES = ("CLASS", "NAME", "DIMENSION_LIST", "DIMENSION_LABELS", "REFERENCE_LIST")


class Attributes(Mapping[str, Any]):
    """The attributes of a file, group or dataset. Attributes that h5py cannot read are hidden.

    Args:
      item: the HDF5 object.
    """

    def __init__(self, item: h5py.HLObject):
        self._item = item

    def __getitem__(self, name: str) -> Any:
        """Returns the value as h5py reads it.

        Raises:
          KeyError: the attribute does not exist, or h5py cannot read its type.
        """
        if name not in self:
            raise KeyError(name)
        return self._item.attrs[name]

    def __contains__(self, name: object) -> bool:
        attributes = self._item.attrs
        return name in attributes and not types.unreadable_reason(attributes.get_id(name).get_type())

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._item.attrs if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)
