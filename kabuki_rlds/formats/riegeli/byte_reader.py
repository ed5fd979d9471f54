"""Reads the elements of Riegeli's encoding: bytes, varints, strings and compressed data."""

from __future__ import annotations

import numpy as np

from kabuki_rlds.data.block import row_splits
from kabuki_rlds.formats.varint import varint

_NONE, _BROTLI, _ZSTD, _SNAPPY = 0, *b"bzs"
#: The largest decompressed size of a part of a chunk. By default, writers make chunks of 1 MiB.
_MAX_BYTES = 512 << 20


class ByteReader:
    """Reads bytes from front to back. Reading past the end raises `IndexError`."""

    def __init__(self, data: bytes):
        self._data = data
        self._at = 0

    @property
    def is_done(self) -> bool:
        """Whether all bytes were read."""
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
    """Decompresses data. `compression` is Riegeli's code of the algorithm.

    Raises:
      ValueError: the algorithm is unknown, or the data is damaged.
    """
    if compression == _NONE or not data:
        return data
    import cramjam

    algorithms = {
        _BROTLI: cramjam.brotli.decompress_into,
        _ZSTD: cramjam.zstd.decompress_into,
        _SNAPPY: cramjam.snappy.decompress_raw_into,
    }
    if compression not in algorithms:
        raise ValueError(f"compression {compression} is none that Riegeli has")
    reader = ByteReader(data)
    size = reader.varint()
    if size > _MAX_BYTES:
        raise ValueError(f"it says that it unpacks to {size:,} bytes, and {_MAX_BYTES:,} are the most that are read")
    # Data that decompresses to more than the stated size fails instead of using more memory.
    out = bytearray(size)
    try:
        written = algorithms[compression](reader.rest(), out)
    except cramjam.DecompressionError as e:
        raise ValueError(str(e)) from e
    if written != size:
        raise ValueError(f"{written} bytes where there should be {size}")
    return bytes(out)


def varints(data: bytes | np.ndarray) -> np.ndarray:
    """Decodes consecutive varints: uint64, modulo 2**64.

    Raises:
      ValueError: the last varint is cut off, or a varint is longer than 64 bits.
    """
    encoded = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
    ends = np.flatnonzero(encoded < 0x80)
    if len(encoded) and (not len(ends) or ends[-1] != len(encoded) - 1):
        raise ValueError("a number is cut off")
    if len(ends) == len(encoded):
        return encoded.astype(np.uint64)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(encoded)) - np.repeat(starts, ends - starts + 1)
    if len(place) and place.max() > 9:
        raise ValueError("a number is longer than 64 bits")
    return np.add.reduceat((encoded & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64), starts)


def string_sizes(buffer: np.ndarray, count: int) -> np.ndarray:
    """Returns the sizes of `count` strings in a buffer, including the varint of their length: int64, (count,).

    Raises:
      IndexError, ValueError: the buffer has fewer strings, or a length is longer than 64 bits.
    """
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
    """Returns the positions of several runs of bytes, concatenated: int64.

    Args:
      starts: the first position of each run.
      counts: the length of each run.

    Example:
      >>> runs(np.array([5, 0]), np.array([2, 3]))
      array([5, 6, 0, 1, 2])
    """
    splits = row_splits(counts)
    return np.arange(splits[-1]) + np.repeat(starts - splits[:-1], counts)


def windows(buffer: np.ndarray, size: int) -> np.ndarray:
    """Returns a view of all runs of `size` bytes: row i begins at byte i. uint8, (len(buffer) - size + 1, size)."""
    # `np.lib.stride_tricks.sliding_window_view` takes longer than most uses of the result.
    return np.ndarray((max(len(buffer) - size + 1, 0), size), np.uint8, buffer, strides=(1, 1))
