"""What the bytes of a Riegeli file are made of: varints, and compressed runs of bytes."""

from __future__ import annotations

import numpy as np

from kabuki_rlds.data.block import row_splits
from kabuki_rlds.formats.varint import varint

_NONE, _BROTLI, _ZSTD, _SNAPPY = 0, *b"bzs"
#: The most that a part of a chunk unpacks to. A chunk has a megabyte unless its writer was told, or a record is larger.
_MAX_BYTES = 512 << 20


class ByteReader:
    """Takes one thing after the other from some bytes. An `IndexError` says that there is no more."""

    def __init__(self, data: bytes):
        self._data = data
        self._at = 0

    @property
    def is_done(self) -> bool:
        """Whether all bytes are taken."""
        return self._at == len(self._data)

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("a number is longer than 64 bits")

    def take(self, count: int) -> bytes:
        if self._at + count > len(self._data):
            raise IndexError("it ends too early")
        self._at += count
        return self._data[self._at - count : self._at]

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)


def decompress(compression: int, data: bytes) -> bytes:
    """The bytes that were compressed; `compression` is Riegeli's letter for how.

    Raises:
      ValueError: it is none of Riegeli's ways, or they are not what was compressed in this way.
    """
    if compression == _NONE or not data:
        return data
    import cramjam

    ways = {
        _BROTLI: cramjam.brotli.decompress_into,
        _ZSTD: cramjam.zstd.decompress_into,
        _SNAPPY: cramjam.snappy.decompress_raw_into,
    }
    if compression not in ways:
        raise ValueError(f"compression {compression} is none that Riegeli has")
    reader = ByteReader(data)
    size = reader.varint()
    if size > _MAX_BYTES:
        raise ValueError(f"it says that it unpacks to {size:,} bytes, and {_MAX_BYTES:,} are the most that are read")
    # Not a byte more is unpacked than it says.
    out = bytearray(size)
    try:
        taken = ways[compression](reader.rest(), out)
    except cramjam.DecompressionError as e:
        raise ValueError(str(e)) from e
    if taken != size:
        raise ValueError(f"{taken} bytes where there should be {size}")
    return bytes(out)


def varints(data: bytes | np.ndarray) -> np.ndarray:
    """The numbers that stand one after the other in some bytes: uint64, modulo 2**64."""
    taken = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
    ends = np.flatnonzero(taken < 0x80)
    if len(taken) and (not len(ends) or ends[-1] != len(taken) - 1):
        raise ValueError("a number is cut off")
    if len(ends) == len(taken):
        return taken.astype(np.uint64)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(taken)) - np.repeat(starts, ends - starts + 1)
    if len(place) and place.max() > 9:
        raise ValueError("a number is longer than 64 bits")
    return np.add.reduceat((taken & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64), starts)


def string_sizes(buffer: np.ndarray, count: int) -> np.ndarray:
    """How many bytes each string takes, with the length that stands before it."""
    data = buffer.tobytes()
    first = ByteReader(data)
    length = first.varint()
    prefix = varint(length)
    stride = len(prefix) + length
    if stride * count == len(data):
        begins = buffer.reshape(count, stride)[:, : len(prefix)]
        if (begins == np.frombuffer(prefix, np.uint8)).all():
            return np.full(count, stride)
    sizes = []
    at = 0
    for _ in range(count):
        value = shift = 0
        begin = at
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 63:
                raise ValueError("a number is longer than 64 bits")
        at += value
        sizes.append(at - begin)
    return np.array(sizes, np.int64)


def runs(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The positions `start, start + 1, …`, so many of each run, one run after the other."""
    splits = row_splits(counts)
    return np.arange(splits[-1]) + np.repeat(starts - splits[:-1], counts)


def windows(buffer: np.ndarray, size: int) -> np.ndarray:
    """All runs of so many bytes, a view: row i begins at byte i."""
    # NumPy's own function for it takes longer than most uses.
    return np.ndarray((max(len(buffer) - size + 1, 0), size), np.uint8, buffer, strides=(1, 1))
