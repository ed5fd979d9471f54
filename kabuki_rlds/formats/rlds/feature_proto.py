"""Items of columns as the lists of `tf.train.Feature`s, in protobuf's wire format.

A Feature holds one list, of int64, float32 or bytes. Numbers are packed: float32 as
they stand in memory, int64 as varints (7 bits a byte, the lowest first, the high bit
set on all but the last). Byte strings stand one after the other, each behind its
length. The lists of all episodes of a block are made at once, end to end; where each
begins is told by its offset. (Source: protobuf's "Encoding" page, `feature.proto` of
TensorFlow.)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import numpy as np

from kabuki_rlds.data.block import row_splits
from kabuki_rlds.formats.rlds.example_decoder import ListType
from kabuki_rlds.formats.varint import varint

#: The field number of each list in a Feature, as its tag.
_LIST_TAGS: dict[ListType, bytes] = {"string": b"\x0a", "float32": b"\x12", "int64": b"\x1a"}
#: The tag of a length-delimited field of number 1: of all that is repeated here.
_TAG_1 = b"\x0a"


@dataclasses.dataclass(frozen=True)
class FeatureProto:
    """The elements of one list of each of several episodes.

    Attributes:
      data: the wire format of all of them, end to end.
      offsets: where in `data` each episode's begin, and the end.
    """

    data: bytes
    offsets: list[int]

    def __getitem__(self, episode: int) -> bytes:
        return self.data[self.offsets[episode] : self.offsets[episode + 1]]


def floats(values: np.ndarray, at: np.ndarray) -> FeatureProto:
    """float32 `values`, (elements,), of which each episode's begin at `at`: int64, (episodes + 1,)."""
    return FeatureProto(np.ascontiguousarray(values, "<f4").tobytes(), (at * 4).tolist())


def integers(values: np.ndarray, at: np.ndarray) -> FeatureProto:
    """Integers or booleans, (elements,), of which each episode's begin at `at`."""
    if values.dtype == bool:
        return FeatureProto(values.tobytes(), at.tolist())
    # A negative number has the bits of its two's complement of 64 bits.
    bits = values.astype(np.int64, copy=False).view(np.uint64)
    longest = int(bits.max(initial=0))
    if longest < 128:
        return FeatureProto(bits.astype(np.uint8).tobytes(), at.tolist())
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
    return FeatureProto(data.tobytes(), begins[at].tolist())


def byte_strings(items: Sequence[bytes], at: np.ndarray) -> FeatureProto:
    """Byte strings, of which each episode's begin at `at`."""
    heads = [_TAG_1 + varint(len(item)) for item in items]
    sizes = np.fromiter(map(len, heads), np.int64, len(items)) + np.fromiter(map(len, items), np.int64, len(items))
    data = b"".join(part for pair in zip(heads, items, strict=True) for part in pair)
    return FeatureProto(data, row_splits(sizes)[at].tolist())


def arrays_as_bytes(items: np.ndarray, at: np.ndarray) -> FeatureProto:
    """Arrays of one shape as byte strings, (items, *shape), of which each episode's begin at `at`."""
    raw = np.ascontiguousarray(items).reshape(-1).view(np.uint8).reshape(len(items), -1) if items.size else None
    nbytes = 0 if raw is None else raw.shape[1]
    head = np.frombuffer(_TAG_1 + varint(nbytes), np.uint8)
    data = np.empty((len(items), len(head) + nbytes), np.uint8)
    data[:, : len(head)] = head
    if raw is not None:
        data[:, len(head) :] = raw
    return FeatureProto(data.tobytes(), (at * data.shape[1]).tolist())


def example(lists: Iterable[tuple[bytes, ListType, bytes]], entries: bytes) -> bytes:
    """A serialized `tf.train.Example`.

    Args:
      lists: its features: key, type of the list, and its payload.
      entries: more of its map of features, serialized already.
    """
    parts: list[bytes] = []
    for key, kind, data in lists:
        parts += (_feature_head(key, kind, len(data)), data)
    features = b"".join((*parts, entries))
    return _TAG_1 + varint(len(features)) + features


@functools.lru_cache(1 << 14)
def _feature_head(key: bytes, kind: ListType, nbytes: int) -> bytes:
    """All that stands before the payload in an entry of an Example's map of features."""
    # Numbers are packed into one field of the list, which is left out where there are none.
    packed = _TAG_1 + varint(nbytes) if kind != "string" and nbytes else b""
    feature = _LIST_TAGS[kind] + varint(len(packed) + nbytes) + packed
    entry = _TAG_1 + varint(len(key)) + key + b"\x12" + varint(len(feature) + nbytes) + feature
    return _TAG_1 + varint(len(entry) + nbytes) + entry
