"""The order in which samples are served: an exact permutation of all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Up to so many numbers a permutation is drawn and held; beyond, it is computed piece by piece.
HELD_NUMBERS = 1 << 22

_ROUNDS = 8


class Permutation:
    """The numbers 0 to `count` - 1, each once, in an order that `key` decides.

    A few are permuted by NumPy, every order as likely as any other. For many, whose
    permutation would outgrow the memory, the i-th number is computed from i alone: a
    Feistel network, as in block ciphers, permutes the numbers of as many bits, and
    goes on from those that are too large until they are not. Either way it is a
    permutation, and takes no more memory as `count` grows.

    Args:
      count: how many numbers there are.
      key: integers from 0 on; the same ones give the same order.
    """

    def __init__(self, count: int, key: Sequence[int]):
        rng = np.random.default_rng(key)
        self._count = count
        self._held = rng.permutation(count) if count <= HELD_NUMBERS else None
        bits = max(count - 1, 1).bit_length()
        self._low_bits = np.uint64(bits // 2)
        self._low = np.uint64((1 << bits // 2) - 1)
        self._high = np.uint64((1 << bits - bits // 2) - 1)
        self._keys = rng.integers(0, 1 << 64, _ROUNDS, np.uint64)

    def __getitem__(self, part: slice) -> np.ndarray:
        """The numbers at some places of the order, int64."""
        if self._held is not None:
            return self._held[part]
        numbers = self._permute(np.arange(*part.indices(self._count), dtype=np.uint64))
        while (outside := np.flatnonzero(numbers >= self._count)).size:
            numbers[outside] = self._permute(numbers[outside])
        return numbers.astype(np.int64)

    def _permute(self, numbers: np.ndarray) -> np.ndarray:
        """Permutes all numbers of as many bits."""
        high, low = numbers >> self._low_bits, numbers & self._low
        # Each half in turn is changed by what depends on the other alone, which can be undone.
        for first, second in self._keys.reshape(-1, 2):
            high ^= _mixed(low + first) & self._high
            low ^= _mixed(high + second) & self._low
        return high << self._low_bits | low


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Each number's bits spread over all others: the last steps of SplitMix64 (Steele et al., 2014)."""
    numbers = (numbers ^ numbers >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ numbers >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return numbers ^ numbers >> np.uint64(31)
