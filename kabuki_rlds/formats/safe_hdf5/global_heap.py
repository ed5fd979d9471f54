"""Reads the objects of HDF5's global heaps, where the rows of variable-length datasets are stored.

A file has many heaps ("collections"), each with up to 65,535 objects. A heap is a list of
objects without an index, so all object headers are read to find one object:

    heap     "GCOL", version 1, 3 unused bytes, size of the heap, objects
    object   index (2 bytes), reference count (2), 4 unused bytes, size, data padded to 8 bytes

Index 0 is the free space at the end. The HDF5 library does not check these headers well:
some damage makes it loop forever or read out of bounds, and it reads heaps under its global
lock. Source: "Global Heap" in the HDF5 File Format Specification.
"""

from __future__ import annotations

import array
import itertools
import operator
import struct
import threading
from typing import NoReturn, TypeAlias

import numpy as np

from kabuki_rlds.formats.safe_hdf5.stored_file import StoredFile

#: The size of the header of a heap, and of an object. Sizes of less than 8 bytes are padded.
_HEADER_BYTES = 16
_OBJECT = struct.Struct("<HxxxxxxQ")

#: Heaps that the HDF5 library writes have about this size, unless a single object is larger.
_HEAP_BYTES = 64 << 10
#: The part of a larger heap that is read to find the objects.
_PART_BYTES = 4 << 10
#: If the first object has fewer bytes, the heap is expected to have many small objects.
_SMALL_BYTES = 512
#: The positions of about so many objects are kept. They take 16 bytes each.
_KEPT_OBJECTS = 1 << 18

#: The addresses and sizes of the objects of a heap, by index. The address is 0 if the heap does not have the object.
_Objects: TypeAlias = "tuple[array.array[int], array.array[int]]"


class DamagedObjectError(ValueError):
    """A heap is damaged, or does not have an object.

    Attributes:
      place: the index of the requested object.
    """

    def __init__(self, place: int, message: str):
        super().__init__(message)
        self.place = place


class GlobalHeaps:
    """Reads objects of the global heaps of a file. Can be used by several threads."""

    def __init__(self, file: StoredFile):
        self._file = file
        self._length_mask = (1 << 8 * min(file.length_bytes, 8)) - 1
        self._lock = threading.Lock()
        self._kept: dict[int, _Objects] = {}
        self._num_kept = 0

    def read(self, heaps: np.ndarray, indices: np.ndarray, sizes: np.ndarray) -> list[bytes]:
        """Reads objects. Each heap is read once.

        Args:
          heaps: address of the heap of each object: unsigned integers, (count,).
          indices: index of each object in its heap: integers, (count,).
          sizes: number of bytes of each object: int64, (count,). Empty objects are not read.

        Raises:
          DamagedObjectError: a heap is damaged, or an object does not exist or has another size.
        """
        objects = [b""] * len(sizes)
        places = np.flatnonzero(sizes)
        if not len(places):
            return objects
        heaps = heaps[places]
        if (heaps[1:] < heaps[:-1]).any():
            order = np.argsort(heaps, kind="stable")
            places, heaps = places[order], heaps[order]
        indices, sizes = indices[places], sizes[places]
        cuts = [0, *(np.flatnonzero(heaps[1:] != heaps[:-1]) + 1).tolist(), len(places)]
        # Intact heaps do not overlap. Overlapping heaps could make each of many reads as long as the file.
        unread = self._file.num_bytes
        for a, b in itertools.pairwise(cuts):
            heap = int(heaps[a])
            try:
                unread -= self._read_heap(
                    heap, places[a:b].tolist(), indices[a:b].tolist(), sizes[a:b].tolist(), objects
                )
                if unread < 0:
                    raise ValueError(f"the heap at address {heap:,} overlaps others")
            except DamagedObjectError:
                raise
            except ValueError as e:
                raise DamagedObjectError(int(places[a]), str(e)) from None
        return objects

    def _read_heap(
        self, heap: int, places: list[int], indices: list[int], sizes: list[int], objects: list[bytes]
    ) -> int:
        """Reads objects of one heap into `objects[places]`. Returns the number of parsed bytes of the heap."""
        found, part, parsed = self._kept.get(heap), b"", 0
        if found is None:
            part = self._file.read_at_most(heap, _HEAP_BYTES if max(sizes) < _HEAP_BYTES else _PART_BYTES)
            found, parsed = self._parse(heap, part)
            self._keep(heap, found)
        addresses, stored_sizes = found
        try:
            starts = list(map(addresses.__getitem__, indices))
            is_intact = 0 not in starts and list(map(stored_sizes.__getitem__, indices)) == sizes
        except IndexError:
            is_intact = False
        if not is_intact:
            self._reject(heap, found, places, indices, sizes)
        ends = list(map(operator.add, starts, sizes))
        first, end = min(starts), max(ends)
        if end > heap + len(part):
            if end - first > 2 * sum(sizes) + _PART_BYTES:
                for place, start, size in zip(places, starts, sizes, strict=True):
                    objects[place] = self._read_objects(start, size)
                return parsed
            heap, part = first, self._read_objects(first, end - first)
        values = [part[start - heap : end - heap] for start, end in zip(starts, ends, strict=True)]
        for place, value in zip(places, values, strict=True):
            objects[place] = value
        return parsed

    def _read_objects(self, start: int, nbytes: int) -> bytes:
        stored = self._file.read_at_most(start, nbytes)
        if len(stored) != nbytes:
            # Heaps that reach beyond the end of the file are rejected when they are parsed.
            raise ValueError("the file became shorter while it was read")
        return stored

    def _reject(self, heap: int, found: _Objects, places: list[int], indices: list[int], sizes: list[int]) -> NoReturn:
        """Raises the error for the first object that does not exist or has another size."""
        for place, index, size in zip(places, indices, sizes, strict=True):
            stored = found[1][index] if index < len(found[0]) and found[0][index] else None
            if stored is None:
                raise DamagedObjectError(place, f"the heap at address {heap:,} has no object {index}")
            if stored != size:
                raise DamagedObjectError(
                    place,
                    f"it declares {size:,} bytes, but object {index} of the heap at address {heap:,} has {stored:,}",
                )
        raise AssertionError

    def _keep(self, heap: int, found: _Objects) -> None:
        with self._lock:
            if heap not in self._kept:
                self._kept[heap] = found
                self._num_kept += len(found[0])
            while self._num_kept > _KEPT_OBJECTS and len(self._kept) > 1:
                self._num_kept -= len(self._kept.pop(next(iter(self._kept)))[0])

    def _parse(self, heap: int, part: bytes) -> tuple[_Objects, int]:
        """Finds the objects of a heap.

        Args:
          heap: address of the heap.
          part: the first bytes of the heap.

        Returns:
          the objects, and the size of the heap in bytes.

        Raises:
          ValueError: the heap is damaged.
        """
        if part[:5] != b"GCOL\1" or len(part) < _HEADER_BYTES:
            raise ValueError(f"there is no heap at address {heap:,}")
        num_bytes = int.from_bytes(part[8:16], "little") & self._length_mask
        if num_bytes > self._file.num_bytes - heap:
            raise ValueError(f"the heap at address {heap:,} reaches beyond the end of the file")
        if num_bytes <= len(part) and int.from_bytes(part[24:32], "little") < _SMALL_BYTES:
            return self._parse_small(heap, part[:num_bytes]), num_bytes
        return self._parse_large(heap, part, num_bytes), num_bytes

    def _parse_small(self, heap: int, stored: bytes) -> _Objects:
        """Finds the objects of a heap with many small objects. `stored` is the whole heap."""
        words = np.frombuffer(stored, "<u8", len(stored) // 8)
        # Treat every word as the start of an object, and compute at which word the next object would start.
        sizes = np.minimum(words[1:] & np.uint64(self._length_mask), np.uint64(len(stored))).astype(np.int64)
        following = (np.arange(2, len(words) + 1) + (sizes + 7 >> 3)).data
        at, last = _HEADER_BYTES // 8, len(words) - 2
        starts = []
        while at <= last:
            starts.append(at)
            at = following[at]
        at_word = np.array(starts, np.int64)
        indices = (words[at_word] & np.uint64(0xFFFF)).astype(np.int64)
        free = np.flatnonzero(indices == 0)
        if len(free):
            at_word, indices = at_word[: free[0]], indices[: free[0]]
        sizes, at_byte = sizes[at_word], 8 * at_word + _OBJECT.size
        beyond = np.flatnonzero(at_byte + sizes > len(stored))
        if len(beyond):
            raise _beyond_heap(heap, int(indices[beyond[0]]))
        counts = np.bincount(indices, minlength=1)
        if counts.max() > 1:
            raise _twice(heap, int(counts.argmax()))
        found = np.zeros((2, len(counts)), np.int64)
        found[0, indices], found[1, indices] = heap + at_byte, sizes
        return array.array("q", found[0].tobytes()), array.array("q", found[1].tobytes())

    def _parse_large(self, heap: int, part: bytes, num_bytes: int) -> _Objects:
        """Finds the objects of a heap. Arguments as `_parse`; `num_bytes` is the size of the heap."""
        addresses, sizes = array.array("q", [0]), array.array("q", [0])
        mask, unpack, header = self._length_mask, _OBJECT.unpack_from, _OBJECT.size
        # `at` is the position of the next object in the heap, and `first` that of the first byte of `part`.
        at, first, last = _HEADER_BYTES, 0, num_bytes - header
        while at <= last:
            if at + header > first + len(part):
                first, part = at, self._file.read_at_most(heap + at, min(_PART_BYTES, num_bytes - at))
            index, size = unpack(part, at - first)
            size &= mask
            if not index:
                break
            start = at + header
            at = start + (size + 7 & -8)
            if start + size > num_bytes:
                raise _beyond_heap(heap, index)
            if index == len(addresses):
                addresses.append(heap + start)
                sizes.append(size)
                continue
            missing = index + 1 - len(addresses)
            if missing > 0:
                addresses.extend([0] * missing)
                sizes.extend([0] * missing)
            elif addresses[index]:
                # This also limits the number of objects.
                raise _twice(heap, index)
            addresses[index], sizes[index] = heap + start, size
        return addresses, sizes


def _beyond_heap(heap: int, index: int) -> ValueError:
    return ValueError(f"object {index} reaches beyond the end of its heap at address {heap:,}")


def _twice(heap: int, index: int) -> ValueError:
    return ValueError(f"the heap at address {heap:,} has several objects {index}")
