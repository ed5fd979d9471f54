"""Types that no library writes: nested thousands of times, or with thousands of members."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from tests import handmade

#: A named type whose message has almost 64 KiB: its only member has a long name.
_LONG_NAME = "k" * 65_000


def nested_types(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Types that are nested thousands of times, or have thousands of members."""
    integer = bytes.fromhex("100800000400000000002000")
    shells = {
        "array": struct.pack("<B3xIBI", 0x3A, 4, 1, 1),
        "big_array": struct.pack("<B3xIBI", 0x3A, 0x7FFFFFFF, 1, 1 << 16),
        "empty_array": struct.pack("<B3xIBI", 0x3A, 0, 1, 0),
        "array_of_32_axes": struct.pack("<B3xIB32I", 0x3A, 4, 32, *[1] * 32),
        "array_of_255_axes": struct.pack("<B3xIB255I", 0x3A, 4, 255, *[1] * 255),
        "sequence": struct.pack("<B3xI", 0x19, 16),
        "sequence_of_0_bytes": struct.pack("<B3xI", 0x19, 0),
        "compound": struct.pack("<BHxI2sB", 0x36, 1, 4, b"a\0", 0),
        "enum": struct.pack("<BHxI", 0x38, 0, 4),
    }
    for name, shell in shells.items():
        for count in (1, 31, 33, 200, 1000, 60_000 // len(shell)):
            if count * len(shell) <= 64_000:
                yield from _with_type(folder, f"{name}_nested_{count}", shell * count + integer)
    for count in (0, 1, 3_000, 65_535):
        members = b"".join(struct.pack("<4sB", f"{i:03x}"[-3:].encode(), 0) + integer for i in range(min(count, 3_000)))
        yield from _with_type(folder, f"compound_of_{count}_members", struct.pack("<BHxI", 0x36, count, 4) + members)
        names = b"".join(f"{i:04x}".encode() + b"\0" for i in range(min(count, 6_000)))
        enum = struct.pack("<BHxI", 0x38, count, 4) + integer + names + bytes(4 * min(count, 6_000))
        yield from _with_type(folder, f"enum_of_{count}_members", enum)
    # A member that begins after the compound, and members that overlap.
    for offset in (1, 4, 255):
        inside = struct.pack("<BHxI2sB", 0x36, 1, 4, b"a\0", offset) + integer
        yield from _with_type(folder, f"compound_with_a_member_at_{offset}", inside)


def _with_type(folder: Path, name: str, encoded: bytes) -> Iterator[tuple[str, bytes]]:
    """Files with a named type, a dataset and an attribute of a type, from the type's encoded form."""
    for owner in ("named", "dataset", "attribute"):
        path = folder / "type"
        with h5py.File(path, "w", libver="earliest") as file:
            for field, column in handmade.fields().items():
                file[field] = column
            # An attribute in an object header has at most 64 KiB, with its name and its value.
            long = np.dtype([(_LONG_NAME[:64_300], "i4")])
            if owner == "named":
                file["type"] = long
            elif owner == "dataset":
                file.create_dataset("type", (8,), long)
            else:
                file.attrs.create("type", np.zeros((), long))
        stored = path.read_bytes()
        at = stored.index(_LONG_NAME[:64_300].encode()) - 8
        path.unlink()
        yield f"type_{owner}_{name}", stored[:at] + encoded + stored[at + len(encoded) :]
