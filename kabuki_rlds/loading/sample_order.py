"""The order of samples: a permutation of all sample indices, the part of one of several processes, and repetitions."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kabuki_rlds.errors import InvalidArgumentError

#: Up to this count, the permutation is an array in memory. Above it, the entries are computed on demand.
HELD_NUMBERS = 1 << 22

_ROUNDS = 8


class Permutation:
    """A permutation of the numbers 0 to `count` - 1 that `key` determines.

    A small permutation is drawn by NumPy; all orders are equally likely. A large one
    would not fit in memory, so entry i is computed from i: a Feistel network, as in
    block ciphers, permutes all numbers with the same number of bits, and is applied
    again while the result is >= `count` (cycle walking). Both ways give an exact
    permutation, and memory use is bounded.

    Args:
      count: the number of entries.
      key: integers >= 0. Equal keys give equal permutations.
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
        """A slice of the permutation: int64."""
        if self._held is not None:
            return self._held[part]
        numbers = self._permute(np.arange(*part.indices(self._count), dtype=np.uint64))
        while (outside := np.flatnonzero(numbers >= self._count)).size:
            numbers[outside] = self._permute(numbers[outside])
        return numbers.astype(np.int64)

    def _permute(self, numbers: np.ndarray) -> np.ndarray:
        """Applies the Feistel network, which permutes all numbers with the bits of `count` - 1."""
        high, low = numbers >> self._low_bits, numbers & self._low
        # Each half is changed by a function of the other half only, so the round is invertible.
        for first, second in self._keys.reshape(-1, 2):
            high ^= _hash(low + first) & self._high
            low ^= _hash(high + second) & self._low
        return high << self._low_bits | low


def _hash(numbers: np.ndarray) -> np.ndarray:
    """A hash of each number: the finalizer of SplitMix64 (Steele et al., 2014)."""
    numbers = (numbers ^ numbers >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ numbers >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return numbers ^ numbers >> np.uint64(31)


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of the samples that one of several processes serves in each epoch.

    In shuffled order these are every `world`-th sample from sample `rank` on, otherwise consecutive samples.

    Attributes:
      rank: number of the process, from 0.
      world: the number of processes.
      drop_last: whether all processes serve the same number of complete batches, and no smaller one.

    Raises:
      InvalidArgumentError: not 0 <= rank < world.
    """

    rank: int = 0
    world: int = 1
    drop_last: bool = False

    def __post_init__(self) -> None:
        check_rank(self.rank, self.world)
        # Integers and booleans of NumPy may overflow, and JSON cannot store them.
        for name, kind in (("rank", int), ("world", int), ("drop_last", bool)):
            object.__setattr__(self, name, kind(getattr(self, name)))

    def of(self, num_samples: int, batch_size: int) -> tuple[int, int]:
        """(first sample in file order, number of samples) of this process."""
        each, rest = divmod(num_samples, self.world)
        if self.drop_last:
            return self.rank * each, each // batch_size * batch_size
        return self.rank * each + min(self.rank, rest), each + (self.rank < rest)

    def slice(self, start: int, stop: int) -> slice:
        """The positions in the shuffled order of the samples `start` to `stop` of this process."""
        return slice(self.rank + start * self.world, self.rank + stop * self.world, self.world)


def check_rank(rank: int, world: int) -> None:
    """Checks the number of a process, and the number of processes.

    Raises:
      InvalidArgumentError: they are not integers with 0 <= rank < world.
    """
    if not (isinstance(world, numbers.Integral) and isinstance(rank, numbers.Integral) and 0 <= rank < world):
        raise InvalidArgumentError(f"rank is {rank} and world is {world}; expected 0 <= rank < world")


@dataclasses.dataclass(frozen=True)
class Order:
    """The order in which samples are served. For the attributes see `load_steps`.

    Raises:
      InvalidArgumentError: an attribute is invalid, or shuffling processes have no common seed.
    """

    shuffle: bool
    seed: int | None
    epochs: int | None
    share: Share
    state: Mapping[str, Any] | None

    def __post_init__(self) -> None:
        if self.epochs is not None:
            count("epochs", self.epochs)
        if self.seed is not None:
            # `state` stores it as JSON.
            object.__setattr__(self, "seed", count("seed", self.seed, least=0))
        elif self.shuffle and self.share.world > 1 and self.state is None:
            raise InvalidArgumentError(
                "seed is None: with shuffle and several processes, give all of them the same seed; otherwise some "
                "samples are served twice, and others never"
            )


def count(name: str, value: int, least: int = 1) -> int:
    """Checks that an argument is an integer of at least `least`, and returns it."""
    if not isinstance(value, numbers.Integral) or value < least:
        raise InvalidArgumentError(f"{name} is {value}, expected an integer >= {least}")
    # A NumPy integer with few bits would overflow in products.
    return int(value)
