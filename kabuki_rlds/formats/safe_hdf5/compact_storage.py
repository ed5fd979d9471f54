"""Reads the values of compact datasets, which are stored in the object header of the dataset.

For values of variable length, the HDF5 library does not return what is stored, but follows
the references into the heap. Source: "Data Object Headers" in the HDF5 File Format
Specification.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import h5py

from kabuki_rlds.formats.safe_hdf5.stored_file import StoredFile

#: Message types.
_LAYOUT = 0x08
_CONTINUATION = 0x10
#: Layout class of compact storage.
_COMPACT = 0
#: The most bytes of an object header that are read. A block counts as at least `_MIN_BLOCK_BYTES`.
_MAX_HEADER_BYTES = 64 << 20
_MIN_BLOCK_BYTES = 1 << 10
#: Flags of a version 2 header: optional parts that are present.
_HAS_TIMES, _HAS_LIMITS, _HAS_ORDER = 0x20, 0x10, 0x04


def compact_bytes(dataset: h5py.Dataset, file: StoredFile) -> bytes:
    """Returns the stored values of a compact dataset.

    Raises:
      ValueError: the object header of the dataset is damaged.
    """
    try:
        for kind, body in _messages(file, h5py.h5o.get_info(dataset.id).addr):
            if kind == _LAYOUT:
                return _compact_values(body)
    except (struct.error, IndexError):
        pass
    raise ValueError("the object header of the dataset is damaged")


def _compact_values(layout: bytes) -> bytes:
    version = layout[0]
    if version >= 3:
        kind, at, (size,) = layout[1], 4, struct.unpack_from("<H", layout, 2)
    else:
        at = 12 + 4 * layout[1]
        kind, (size,) = layout[2], struct.unpack_from("<I", layout, at - 4)
    if kind != _COMPACT or len(layout) < at + size:
        raise IndexError
    return layout[at : at + size]


def _messages(file: StoredFile, address: int) -> Iterator[tuple[int, bytes]]:
    """Yields the type and the body of each message of the object header at an address."""
    head = file.read_at_most(address, 64)
    if head[:4] == b"OHDR":
        flags = head[5]
        at = 6 + (16 if flags & _HAS_TIMES else 0) + (4 if flags & _HAS_LIMITS else 0)
        width = 1 << (flags & 3)
        blocks = [(address + at + width, int.from_bytes(head[at : at + width], "little"))]
        # Further blocks have a signature before the messages and a checksum after them.
        message, unused, signature, checksum = struct.Struct("<BHx"), 2 if flags & _HAS_ORDER else 0, 4, 4
    else:
        blocks = [(address + 16, int.from_bytes(head[8:12], "little"))]
        message, unused, signature, checksum = struct.Struct("<HHxxxx"), 0, 0, 0
    unread = _MAX_HEADER_BYTES
    for start, size in blocks:
        # Damaged blocks can overlap or form a loop.
        unread -= max(size, _MIN_BLOCK_BYTES)
        if unread < 0:
            raise IndexError
        data = file.read(start, size)
        at = 0
        while at + message.size + unused <= len(data):
            kind, nbytes = message.unpack_from(data, at)
            at += message.size + unused
            body = data[at : at + nbytes]
            at += nbytes
            yield kind, body
            if kind == _CONTINUATION:
                place = int.from_bytes(body[: file.address_bytes], "little")
                length = int.from_bytes(body[file.address_bytes :][: file.length_bytes], "little")
                blocks.append((place + signature, length - signature - checksum))
