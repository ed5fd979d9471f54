"""Reads bytes of an open HDF5 file at given addresses, without the HDF5 library and its global lock."""

from __future__ import annotations

import dataclasses
import os

import h5py


@dataclasses.dataclass(frozen=True)
class StoredFile:
    """The bytes of an open HDF5 file.

    Attributes:
      descriptor: descriptor of the open file. It belongs to the HDF5 library: the HDF5 file must stay open.
      base: size of the user block. Addresses in the file count from its end.
      address_bytes: size of an address in the file.
      length_bytes: size of a length in the file.
    """

    descriptor: int
    base: int
    address_bytes: int
    length_bytes: int

    @classmethod
    def of(cls, file: h5py.File) -> StoredFile:
        """Returns the bytes of an open file. Data that this process has written to it is flushed first."""
        file.flush()
        properties = file.id.get_create_plist()
        return cls(file.id.get_vfd_handle(), properties.get_userblock(), *properties.get_sizes())

    @property
    def num_bytes(self) -> int:
        """The size of the file without the user block."""
        return os.fstat(self.descriptor).st_size - self.base

    def read(self, address: int, nbytes: int) -> bytes:
        """Returns `nbytes` bytes.

        Raises:
          ValueError: they reach beyond the end of the file.
        """
        # The check comes first, because `os.pread` allocates the memory for all bytes.
        stored = self.read_at_most(address, nbytes) if 0 <= nbytes <= self.num_bytes else b""
        if len(stored) != nbytes:
            raise ValueError(f"{nbytes:,} bytes at address {address:,} reach beyond the end of the file")
        return stored

    def read_at_most(self, address: int, nbytes: int) -> bytes:
        """Returns `nbytes` bytes, or fewer at the end of the file."""
        try:
            return os.pread(self.descriptor, nbytes, self.base + address)
        except OverflowError:
            # A damaged address that is larger than any position in a file.
            return b""
