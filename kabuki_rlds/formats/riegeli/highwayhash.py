"""HighwayHash, the hash of Riegeli's headers and chunks.

The hash updates its state with 32 bytes at a time, so NumPy cannot vectorise the hash of one string. It can vectorise
the hashes of many: update i of all strings is one operation. Constants and operations are those of google/highwayhash.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_PACKET = 32
#: Four lanes of 64 bits: "Riegeli/" and "records\n", twice.
_KEY = np.frombuffer(b"Riegeli/records\nRiegeli/records\n", "<u8")
_MUL0 = np.array([0xDBE6D5D5FE4CCE2F, 0xA4093822299F31D0, 0x13198A2E03707344, 0x243F6A8885A308D3], np.uint64)
_MUL1 = np.array([0x3BD39E10CB0EF593, 0xC0ACF169B5F18A8C, 0xBE5466CF34E90C6C, 0x452821E638D01377], np.uint64)
#: The permutation of the bytes of two lanes, and of four.
_ZIPPER = np.array([3, 12, 2, 5, 14, 1, 15, 0, 11, 4, 10, 13, 9, 6, 8, 7])
_ZIPPER = np.concatenate([_ZIPPER, _ZIPPER + 16])
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def hash_all(strings: Sequence[bytes]) -> list[int]:
    """Returns the 64-bit hash of each string, with Riegeli's key."""
    order = sorted(range(len(strings)), key=lambda i: -len(strings[i]))
    state = _State(len(strings))
    counts = np.array([len(strings[i]) // _PACKET for i in order], np.int64)
    views = [np.frombuffer(strings[i], "<u8", int(n) * 4).reshape(-1, 4) for i, n in zip(order, counts, strict=True)]
    done = 0
    # Strings are sorted by length, longest first, so those with packets left come first.
    for active in range(len(order), 0, -1):
        until = int(counts[active - 1])
        if until > done:
            packets = np.stack([view[done:until] for view in views[:active]], axis=1)
            state.update(packets)
            done = until
    for row, i in enumerate(order):
        rest = strings[i][int(counts[row]) * _PACKET :]
        if rest:
            state.finish_rest(row, rest)
    return [int(value) for value in state.digest()[np.argsort(order)]] if order else []


class _State:
    """The states of several hashes: four arrays of shape (hashes, 4), uint64."""

    def __init__(self, count: int):
        self.mul0 = np.tile(_MUL0, (count, 1))
        self.mul1 = np.tile(_MUL1, (count, 1))
        self.v0 = self.mul0 ^ _KEY
        self.v1 = self.mul1 ^ _swap_halves(_KEY)

    def update(self, packets: np.ndarray) -> None:
        """Updates the first hashes with packets: uint64, (packets, hashes, 4)."""
        count = packets.shape[1]
        v0, v1, mul0, mul1 = (x[:count] for x in (self.v0, self.v1, self.mul0, self.mul1))
        a, b = np.empty_like(v0), np.empty_like(v0)
        zipper = (np.arange(count)[:, None] * _PACKET + _ZIPPER).reshape(-1)
        v0_bytes, v1_bytes = v0.view(np.uint8).reshape(-1), v1.view(np.uint8).reshape(-1)
        mixed = a.view(np.uint8).reshape(-1)
        for packet in packets:
            np.add(mul0, packet, out=a)
            np.add(v1, a, out=v1)
            np.bitwise_and(v1, _LOW, out=a)
            np.right_shift(v0, _HALF, out=b)
            np.multiply(a, b, out=a)
            np.bitwise_xor(mul0, a, out=mul0)
            np.add(v0, mul1, out=v0)
            np.bitwise_and(v0, _LOW, out=a)
            np.right_shift(v1, _HALF, out=b)
            np.multiply(a, b, out=a)
            np.bitwise_xor(mul1, a, out=mul1)
            v1_bytes.take(zipper, out=mixed, mode="clip")
            np.add(v0, a, out=v0)
            v0_bytes.take(zipper, out=mixed, mode="clip")
            np.add(v1, a, out=v1)

    def finish_rest(self, row: int, rest: bytes) -> None:
        """Updates one hash with its last 1 to 31 bytes."""
        size = len(rest)
        whole, odd = rest[: size & ~3], rest[size & ~3 :]
        packet = bytearray(_PACKET)
        packet[: len(whole)] = whole
        if size & 16:
            packet[28:] = rest[-4:]
        elif odd:
            packet[16], packet[17], packet[18] = odd[0], odd[len(odd) >> 1], odd[-1]
        one = _State.__new__(_State)
        one.v0, one.v1, one.mul0, one.mul1 = (x[row : row + 1] for x in (self.v0, self.v1, self.mul0, self.mul1))
        one.v0 += np.uint64((size << 32) + size)
        halves = one.v1.view(np.uint32)
        halves[:] = (halves << np.uint32(size)) | (halves >> np.uint32(32 - size))
        one.update(np.frombuffer(bytes(packet), "<u8").reshape(1, 1, 4))

    def digest(self) -> np.ndarray:
        for _ in range(4):
            self.update(_swap_halves(self.v0[:, [2, 3, 0, 1]])[None])
        total: np.ndarray = self.v0[:, 0] + self.v1[:, 0] + self.mul0[:, 0] + self.mul1[:, 0]
        return total


def _swap_halves(lanes: np.ndarray) -> np.ndarray:
    return (lanes >> _HALF) | (lanes << _HALF)
