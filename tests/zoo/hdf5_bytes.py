"""Finds the structures of an HDF5 file and changes their fields. Checksums are recomputed.

Without a valid checksum, the HDF5 library rejects a structure before it reads its fields.
Source: the HDF5 File Format Specification, version 3.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from pathlib import Path

import h5py

#: The fields after the signature, as characters of `struct`: B, H, I and Q have 1, 2, 4 and 8 bytes, x is skipped.
#: Addresses and lengths have 8 bytes. Arrays are listed only as far as their first elements.
FIELDS = {
    b"TREE": "BBHQQQQQQ",
    b"SNOD": "BxHQQIIQQ",
    b"HEAP": "B3xQQQ",
    b"GCOL": "B3xQHH4xQ",
    b"FRHP": "BHHBI" + "Q" * 12 + "HQQHHQH",
    b"FHDB": "BQI",
    b"FHIB": "BQIQQQ",
    b"BTHD": "BBIHHBBQHQ",
    b"BTLF": "BBQQQ",
    b"BTIN": "BBQQQ",
    b"FAHD": "BBBBQQ",
    b"FADB": "BBQQQ",
    b"EAHD": "BBBBBBBB" + "Q" * 7,
    b"EAIB": "BBQQQQQQ",
    b"EASB": "BBQIQQ",
    b"EADB": "BBQIQQ",
    b"FSHD": "BBQQQQHHHQQQQ",
    b"FSSE": "BQBQB",
    b"SMTB": "BHIHHHQQ",
    b"SMLI": "BIIQ",
    b"OHDR": "BBB",
    b"\x89HDF\r\n\x1a\n\x00": "BBBxBBxHHIQQQQQQI4xQQ",
    b"\x89HDF\r\n\x1a\n\x02": "BBBQQQQ",
    b"\x89HDF\r\n\x1a\n\x03": "BBBQQQQ",
}
#: Structures without a checksum.
_UNCHECKED = (b"TREE", b"SNOD", b"HEAP", b"GCOL", b"\x89HDF\r\n\x1a\n\x00")
#: Direct blocks have their checksum after their header, not at their end.
_DIRECT_BLOCK = b"FHDB"
#: Larger structures are not searched for their checksum.
_MAX_BYTES = 2500
_WIDTHS = {"B": 1, "H": 2, "I": 4, "Q": 8}


@dataclasses.dataclass(frozen=True)
class Structure:
    """A structure of a file.

    Attributes:
      signature: the bytes that it begins with.
      at: its byte offset.
      size: the number of bytes before its checksum, 0 if it has none.
    """

    signature: bytes
    at: int
    size: int

    @property
    def fields(self) -> list[tuple[int, int]]:
        """The offset in the file and the number of bytes of each field."""
        places, at = [], self.at + len(self.signature)
        for character in _expanded(FIELDS[self.signature]):
            if character != "x":
                places.append((at, _WIDTHS[character]))
            at += _WIDTHS.get(character, 1)
        return places


def _expanded(characters: str) -> Iterator[str]:
    count = ""
    for character in characters:
        if character.isdigit():
            count += character
        else:
            yield from character * int(count or 1)
            count = ""


@dataclasses.dataclass(frozen=True)
class Message:
    """A message of an object header.

    Attributes:
      kind: the number of the type, for example 3 for a datatype.
      at: the offset of its type, size and flags.
      flags_at: the offset of its flags.
      body: the offset of its body.
      size: the number of bytes of its body.
      header: the offset of the object header.
    """

    kind: int
    at: int
    flags_at: int
    body: int
    size: int
    header: int


class Bytes:
    """The bytes of a file, with its structures.

    Attributes:
      structures: the structures with a signature, in the order of their offsets.
      messages: the messages of the object headers of all groups, datasets and named types.
    """

    def __init__(self, path: Path):
        self._stored = path.read_bytes()
        self.structures = sorted(self._structures(), key=lambda each: each.at)
        self.headers = _header_addresses(path)
        self.messages = [message for at in self.headers for message in self._messages(at)]

    def __len__(self) -> int:
        return len(self._stored)

    def find(self, part: bytes, start: int = 0) -> int:
        """Returns the offset of the first occurrence of `part`. Raises ValueError if it does not occur."""
        return self._stored.index(part, start)

    def number(self, at: int, size: int) -> int:
        return int.from_bytes(self._stored[at : at + size], "little")

    def of(self, signature: bytes) -> list[Structure]:
        return [each for each in self.structures if each.signature == signature]

    def changed(self, *changes: tuple[int, bytes], length: int | None = None) -> bytes:
        """Returns the bytes with changes (offset, new bytes), and with valid checksums.

        Args:
          changes: the changes; those after the end append to the file.
          length: the length of the result. None keeps the length.
        """
        data = bytearray(self._stored)
        for at, new in changes:
            data[at : at + len(new)] = new
        for each in self.structures:
            end = each.at + each.size
            if each.size and any(each.at < at + len(new) and at < end for at, new in changes):
                self._seal(data, each)
        return bytes(data if length is None else data[:length].ljust(length, b"\0"))

    def _seal(self, data: bytearray, each: Structure) -> None:
        if each.signature == _DIRECT_BLOCK:
            at = self._direct_block_checksum(each.at)
            data[at : at + 4] = bytes(4)
            data[at : at + 4] = lookup3(data[each.at : each.at + each.size])
        else:
            data[each.at + each.size : each.at + each.size + 4] = lookup3(data[each.at : each.at + each.size])

    def _structures(self) -> Iterator[Structure]:
        for signature in (*FIELDS, b"OCHK"):
            at = self._stored.find(signature)
            while at >= 0:
                if signature in _UNCHECKED:
                    yield Structure(signature, at, 0)
                elif (size := self._checked_size(signature, at)) is not None:
                    yield Structure(signature, at, size)
                at = self._stored.find(signature, at + 1)

    def _checked_size(self, signature: bytes, at: int) -> int | None:
        """Returns the number of bytes that the checksum after them belongs to; None if no checksum matches."""
        if signature == _DIRECT_BLOCK:
            place = self._direct_block_checksum(at)
            stored, size = self._stored[place : place + 4], 512
            while at + size <= len(self):
                block = bytearray(self._stored[at : at + size])
                block[place - at : place - at + 4] = bytes(4)
                if lookup3(block) == stored:
                    return size
                size *= 2
            return None
        for size in range(len(signature) + 2, min(_MAX_BYTES, len(self) - at - 4)):
            if lookup3(self._stored[at : at + size]) == self._stored[at + size : at + size + 4]:
                return size
        return None

    def _direct_block_checksum(self, at: int) -> int:
        # The heap header is named in the block; it has the number of bits of an offset in the heap.
        heap = self.number(at + 5, 8)
        return at + 13 + -(-self.number(heap + 128, 2) // 8)

    def _messages(self, header: int) -> Iterator[Message]:
        if self._stored[header : header + 4] == b"OHDR":
            flags = self._stored[header + 5]
            at = header + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
            width = 1 << (flags & 3)
            blocks = [(at + width, self.number(at, width))]
            form, around = struct.Struct("<BHB" + ("2x" if flags & 4 else "")), 4
        else:
            blocks = [(header + 16, self.number(header + 8, 4))]
            form, around = struct.Struct("<HHB3x"), 0
        for start, size in blocks:
            at = start
            while at + form.size <= start + size:
                kind, length, _ = form.unpack_from(self._stored, at)
                flags_at = at + (3 if around else 4)
                yield Message(kind, at, flags_at, at + form.size, length, header)
                if kind == 0x10:
                    place, nbytes = struct.unpack_from("<QQ", self._stored, at + form.size)
                    blocks.append((place + around, nbytes - 2 * around))
                at += form.size + length


def trees_by_kind(file: Bytes) -> dict[int, Structure]:
    """The last B-tree of version 2 of each kind, for example the indices of links, attributes and chunks."""
    return {file.number(each.at + 5, 1): each for each in file.of(b"BTHD")}


def _header_addresses(path: Path) -> list[int]:
    with h5py.File(path) as file:
        found = [h5py.h5o.get_info(file.id).addr]
        h5py.h5o.visit(file.id, lambda name: found.append(h5py.h5o.get_info(file.id, name).addr))
    return found


def lookup3(data: bytes | bytearray) -> bytes:
    """Returns Bob Jenkins's checksum of the data, as the four bytes that HDF5 stores.

    Example:
      assert lookup3(b"") == (0xDEADBEEF).to_bytes(4, "little")
    """
    a = b = c = (0xDEADBEEF + len(data)) & _MASK
    at = 0
    while len(data) - at > 12:
        x, y, z = struct.unpack_from("<III", data, at)
        a, b, c = (a + x) & _MASK, (b + y) & _MASK, (c + z) & _MASK
        a = (a - c & _MASK) ^ _rotated(c, 4)
        c = (c + b) & _MASK
        b = (b - a & _MASK) ^ _rotated(a, 6)
        a = (a + c) & _MASK
        c = (c - b & _MASK) ^ _rotated(b, 8)
        b = (b + a) & _MASK
        a = (a - c & _MASK) ^ _rotated(c, 16)
        c = (c + b) & _MASK
        b = (b - a & _MASK) ^ _rotated(a, 19)
        a = (a + c) & _MASK
        c = (c - b & _MASK) ^ _rotated(b, 4)
        b = (b + a) & _MASK
        at += 12
    if at < len(data):
        x, y, z = struct.unpack("<III", bytes(data[at:]).ljust(12, b"\0"))
        a, b, c = (a + x) & _MASK, (b + y) & _MASK, (c + z) & _MASK
        c = ((c ^ b) - _rotated(b, 14)) & _MASK
        a = ((a ^ c) - _rotated(c, 11)) & _MASK
        b = ((b ^ a) - _rotated(a, 25)) & _MASK
        c = ((c ^ b) - _rotated(b, 16)) & _MASK
        a = ((a ^ c) - _rotated(c, 4)) & _MASK
        b = ((b ^ a) - _rotated(a, 14)) & _MASK
        c = ((c ^ b) - _rotated(b, 24)) & _MASK
    return c.to_bytes(4, "little")


_MASK = 0xFFFFFFFF


def _rotated(value: int, count: int) -> int:
    return (value << count & _MASK) | value >> 32 - count
