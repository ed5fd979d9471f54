"""Encodes columns as lists of `tf.train.Feature`s, in protobuf's wire format.

A Feature has one list, of int64, float32 or bytes. Numbers are packed: float32 as
little-endian bytes, int64 as varints (7 bits per byte, lowest bits first, the high bit is
set in all bytes except the last). Byte strings follow each other, each after its length.
The functions encode the lists of all episodes of a block at once and return the offset of
each episode. (Source: "Encoding" in the protobuf documentation; TensorFlow's
`feature.proto`.)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, TypeAlias

import numpy as np

from kabuki_rlds.data.block import row_splits
from kabuki_rlds.formats.rlds.example_decoder import ListType
from kabuki_rlds.formats.varint import varint

#: List type to the tag of its field in a Feature.
_LIST_TAGS: dict[ListType, bytes] = {"string": b"\x0a", "float32": b"\x12", "int64": b"\x1a"}
#: The tag of a length-delimited field with number 1. All repeated fields used here have this tag.
_TAG_1 = b"\x0a"
#: Encoding an integer takes up to 64 bytes of memory for a time.
_INTEGERS_AT_ONCE = 1 << 20


@dataclasses.dataclass(frozen=True)
class StoredBytes:
    """Bytes in a temporary file."""

    file: BinaryIO
    offset: int
    size: int

    def __len__(self) -> int:
        return self.size

    def read(self) -> bytes:
        self.file.seek(self.offset)
        return self.file.read(self.size)


#: A part of a record.
Part: TypeAlias = bytes | StoredBytes


def read_parts(parts: Iterable[Part]) -> Iterator[bytes]:
    """Yields the bytes of the parts."""
    for part in parts:
        yield part if isinstance(part, bytes) else part.read()


@dataclasses.dataclass(frozen=True)
class FeatureProto:
    """The encoded elements of one list, for several episodes.

    Attributes:
      data: the encoded elements of all episodes, concatenated.
      offsets: the elements of episode i are `data[offsets[i]:offsets[i + 1]]`.
    """

    data: bytes
    offsets: list[int]

    def __getitem__(self, episode: int) -> bytes:
        return self.data[self.offsets[episode] : self.offsets[episode + 1]]


def floats(values: np.ndarray, at: np.ndarray) -> FeatureProto:
    """Encodes a float list.

    Args:
      values: elements of all episodes: float32, float16 or bfloat16, (elements,).
      at: the elements of episode i are `values[at[i]:at[i + 1]]`: int64, (episodes + 1,).
    """
    return FeatureProto(np.ascontiguousarray(values, "<f4").tobytes(), (at * 4).tolist())


def integers(values: np.ndarray, at: np.ndarray) -> FeatureProto:
    """Encodes an int64 list from integers or booleans, (elements,). `at` as for `floats`."""
    if values.dtype == bool:
        return FeatureProto(values.tobytes(), at.tolist())
    data: list[bytes] = []
    offsets = np.zeros(len(at), np.int64)
    done = 0
    for start in range(0, max(len(values), 1), _INTEGERS_AT_ONCE):
        part, begins = _varints(values[start : start + _INTEGERS_AT_ONCE])
        inside = (at >= start) & (at - start < len(begins))
        offsets[inside] = done + begins[at[inside] - start]
        done += len(part)
        data.append(part)
    return FeatureProto(data[0] if len(data) == 1 else b"".join(data), offsets.tolist())


def _varints(values: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Encodes integers. Returns the bytes, and the offset of each integer and of the end: int64, (elements + 1,)."""
    # Protobuf encodes negative numbers as 64-bit two's complement.
    bits = values.astype(np.int64, copy=False).view(np.uint64)
    longest = int(bits.max(initial=0))
    if longest < 128:
        return bits.astype(np.uint8).tobytes(), np.arange(len(bits) + 1)
    sizes = np.ones(len(bits), np.int64)
    for more in range(1, 10):
        if longest < 1 << 7 * more:
            break
        sizes += bits >= np.uint64(1 << 7 * more)
    begins = row_splits(sizes)
    data = np.empty(int(begins[-1]), np.uint8)
    left = bits
    places, left_sizes = begins[:-1], sizes
    while len(left):
        goes_on = left_sizes > 1
        data[places] = (left & np.uint64(0x7F)).astype(np.uint8) | (goes_on.astype(np.uint8) << 7)
        left, places, left_sizes = left[goes_on] >> np.uint64(7), places[goes_on] + 1, left_sizes[goes_on] - 1
    return data.tobytes(), begins


def byte_strings(items: Sequence[bytes], at: np.ndarray) -> FeatureProto:
    """Encodes a bytes list from byte strings. `at` as for `floats`."""
    heads = [_TAG_1 + varint(len(item)) for item in items]
    sizes = np.fromiter(map(len, heads), np.int64, len(items)) + np.fromiter(map(len, items), np.int64, len(items))
    data = b"".join(part for pair in zip(heads, items, strict=True) for part in pair)
    return FeatureProto(data, row_splits(sizes)[at].tolist())


def arrays_as_bytes(items: np.ndarray, at: np.ndarray) -> FeatureProto:
    """Encodes a bytes list from arrays, (items, *shape), each as one byte string. `at` as for `floats`."""
    raw = np.ascontiguousarray(items).reshape(-1).view(np.uint8).reshape(len(items), -1) if items.size else None
    nbytes = 0 if raw is None else raw.shape[1]
    head = np.frombuffer(_TAG_1 + varint(nbytes), np.uint8)
    data = np.empty((len(items), len(head) + nbytes), np.uint8)
    data[:, : len(head)] = head
    if raw is not None:
        data[:, len(head) :] = raw
    return FeatureProto(data.tobytes(), (at * data.shape[1]).tolist())


def example(lists: Iterable[tuple[bytes, ListType, Sequence[Part]]], entries: bytes) -> list[Part]:
    """Returns the parts of a serialized `tf.train.Example`.

    Args:
      lists: (key, list type, parts of the encoded elements) of each feature.
      entries: further entries of the map of features, already serialized.
    """
    parts: list[Part] = []
    for key, kind, data in lists:
        parts += (_feature_head(key, kind, sum(map(len, data))), *data)
    parts.append(entries)
    return [_TAG_1 + varint(sum(map(len, parts))), *parts]


@functools.lru_cache(1 << 14)
def _feature_head(key: bytes, kind: ListType, nbytes: int) -> bytes:
    """Returns the bytes that precede the encoded elements in an entry of an Example's map of features."""
    # Packed numbers are one field of the list. An empty list has no such field.
    packed = _TAG_1 + varint(nbytes) if kind != "string" and nbytes else b""
    feature = _LIST_TAGS[kind] + varint(len(packed) + nbytes) + packed
    entry = _TAG_1 + varint(len(key)) + key + b"\x12" + varint(len(feature) + nbytes) + feature
    return _TAG_1 + varint(len(entry) + nbytes) + entry
