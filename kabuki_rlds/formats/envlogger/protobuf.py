"""Finds the fields of many Protocol Buffers messages at once.

Positions are int64 arrays with one entry per message. Only the wire types that EnvLogger uses are supported. (Source:
https://protobuf.dev/programming-guides/encoding/.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from kabuki_rlds.formats.riegeli.byte_reader import runs, windows

_VARINT, _LENGTH_DELIMITED = 0, 2


@dataclasses.dataclass(frozen=True)
class Spans:
    """Ranges of bytes: one message or value of each of some records.

    Attributes:
      data: the bytes of all records: uint8.
      rows: the number of the record of each range, ascending.
      start: the begin of each range in `data`.
      stop: the end of each range.
    """

    data: np.ndarray
    rows: np.ndarray
    start: np.ndarray
    stop: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: np.ndarray | slice) -> Spans:
        return Spans(self.data, self.rows[chosen], self.start[chosen], self.stop[chosen])

    @property
    def lengths(self) -> np.ndarray:
        return self.stop - self.start

    def matrix(self) -> np.ndarray:
        """Returns the bytes of ranges that all have the same length > 0: uint8, (ranges, length)."""
        length = int(self.stop[0] - self.start[0])
        return windows(self.data, length)[self.start]

    def flat(self) -> np.ndarray:
        """Returns the bytes of all ranges, concatenated."""
        return self.data[runs(self.start, self.lengths)]

    def strings(self) -> list[bytes]:
        """Returns the bytes of each range."""
        if not len(self):
            return []
        first = int(self.start.min())
        data = self.data[first : int(self.stop.max())].tobytes()
        return [data[a:b] for a, b in zip((self.start - first).tolist(), (self.stop - first).tolist(), strict=True)]

    def groups(self) -> Iterator[tuple[bytes, np.ndarray]]:
        """Yields each distinct content, and the indices of the ranges with it."""
        if not len(self):
            return
        lengths = self.lengths
        for length in np.unique(lengths).tolist():
            chosen = np.flatnonzero(lengths == length)
            if not length:
                yield b"", chosen
                continue
            found = self[chosen].matrix()
            same = (found == found[0]).all(axis=1)
            if same.all():
                yield found[0].tobytes(), chosen
                continue
            numbers: dict[bytes, list[int]] = {}
            for i, text in zip(chosen.tolist(), self[chosen].strings(), strict=True):
                numbers.setdefault(text, []).append(i)
            for text, indices in numbers.items():
                yield text, np.array(indices)


def fields(messages: Spans) -> Iterator[tuple[int, Spans]]:
    """Finds the fields of messages in their order: the first fields of all messages, the second fields, and so on.

    Yields:
      the number of a field, and its values in the messages that have it at this place. The value of a varint is the
      encoded varint.

    Raises:
      ValueError: a message is damaged, or has a wire type that EnvLogger does not use.
    """
    at, left = messages.start, messages
    while True:
        more = at < left.stop
        if not more.all():
            at, left = at[more], left[more]
        if not len(left):
            return
        tags = left.data[at]
        after = np.empty_like(at)
        for tag in np.unique(tags).tolist():
            chosen = np.flatnonzero(tags == tag)
            begin, end = _value(left.data, at[chosen] + 1, tag & 7)
            # A length of 64 bits may overflow to a negative number.
            if ((end < begin) | (end > left.stop[chosen])).any():
                raise ValueError("a field is longer than its message")
            after[chosen] = end
            yield tag >> 3, Spans(left.data, left.rows[chosen], begin, end)
        at = after


def _value(data: np.ndarray, at: np.ndarray, wire: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns begin and end of the values at some positions."""
    if wire == _VARINT:
        return at, _varints(data, at)[1]
    if wire == _LENGTH_DELIMITED:
        lengths, begin = _varints(data, at)
        return begin, begin + lengths
    raise ValueError(f"a field of wire type {wire}, which EnvLogger does not write")


def _varints(data: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decodes the varints at some positions.

    Returns:
      their values modulo 2**64, as int64, and the positions after them.
    """
    byte = data[at]
    values = (byte & 0x7F).astype(np.int64)
    after = at + 1
    more = np.flatnonzero(byte & 0x80)
    shift = 7
    while len(more):
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")
        byte = data[after[more]]
        values[more] |= (byte & 0x7F).astype(np.int64) << shift
        after[more] += 1
        more = more[(byte & 0x80) != 0]
        shift += 7
    return values, after
