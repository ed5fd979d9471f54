"""Samples of a Kabuki file, read with h5py only, to compare with those of `kabuki_rlds.dataset`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import kabuki_rlds
from tests import by_hand

Sample = dict[str, Any]


class PlainSamples:
    """All samples of a file.

    Args:
      file: the file.
      plain: the file to read with h5py. It differs from `file` if `file` has image files, which h5py does not decode.

    Attributes:
      dataset: the dataset that is compared, with all fields and all episode fields.
      batch_size: so that an epoch has several batches.
      worker_counts: 1, 2 and 8; 2 for a small file.
    """

    def __init__(self, file: str, plain: str):
        self._steps, self._episodes = by_hand.read(Path(plain))
        with h5py.File(plain) as opened:
            index = opened["episodes"]
            self._starts = index["start"][:]
            counts = index["length"][:] - (0 if "last_is_step" in index and index["last_is_step"][:].all() else 1)
        places = ((episode, step) for episode, count in enumerate(counts.tolist()) for step in range(count))
        self._index = {place: i for i, place in enumerate(places)}
        names = sorted({path.partition("/")[0] for path in self._episodes})
        self.dataset = kabuki_rlds.dataset(file, episode_metadata=names)
        assert len(self.dataset) == len(self)
        is_small = len(self) < 100
        self.batch_size = 3 if is_small else 64
        self.worker_counts: tuple[int, ...] = (2,) if is_small else (1, 2, 8)

    def __len__(self) -> int:
        return len(self._index)

    def check(
        self, samples: Iterable[Sample], what: str, *, shuffled: bool, part: Collection[int] | None = None
    ) -> list[int]:
        """Checks that the samples are those with the indices `part`, each once, with equal values.

        Args:
          samples: the samples.
          what: how they were read, for messages.
          shuffled: whether they have another order than `part`.
          part: the indices; None is all, in order.

        Returns:
          the index of each sample.
        """
        wanted = list(range(len(self))) if part is None else list(part)
        found = [self._checked(sample) for sample in samples]
        assert sorted(found) == sorted(wanted), f"{what}: read the samples {found}"
        assert (found != wanted) == shuffled, f"{what}: the order is {found}"
        print(f"  {what}: each of {len(found)} samples once, {len(self._steps) + len(self._episodes)} fields equal")
        return found

    def _checked(self, sample: Sample) -> int:
        episode, step = place_of(sample)
        found = dict(_leaves(sample))
        wanted = {path: rows[self._starts[episode] + step] for path, rows in self._steps.items()}
        wanted |= {f"episode_metadata/{path}": rows[episode] for path, rows in self._episodes.items()}
        assert found.keys() == wanted.keys() | {"episode_index", "step_index"}
        for path, value in wanted.items():
            assert _equal(found[path], value), (
                f"episode {episode}, step {step}: {path} is {found[path]!r}, in h5py {value!r}"
            )
        return self._index[episode, step]


def place_of(sample: Sample) -> tuple[int, int]:
    """(index of the episode, index of the step)."""
    return int(sample["episode_index"]), int(sample["step_index"])


def places(batches: Iterable[Iterable[Sample]]) -> list[tuple[int, int]]:
    """The places of all samples of some batches."""
    return [place_of(sample) for batch in batches for sample in batch]


def _leaves(tree: Sample, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def _equal(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, bytes):
        return bool(found == wanted)
    if isinstance(wanted, list) or np.asarray(found).dtype == object:
        return len(found) == len(wanted) and all(map(_equal, found, wanted))
    found, wanted = np.asarray(found), np.asarray(wanted)
    if found.dtype.name == "bfloat16":
        # HDF5 reads bfloat16 as float32: the same values, but another NaN.
        found = np.where(np.isnan(found) & np.isnan(wanted), wanted, found.astype(np.float32))
    return (found.dtype, found.shape, found.tobytes()) == (wanted.dtype, wanted.shape, wanted.tobytes())


def main(checks: dict[str, Callable[[PlainSamples], None]]) -> None:
    """Runs a check for each file: `python -m tests.judges.MODULE CHECK FILE PLAIN [FILE PLAIN …]`."""
    check = checks[sys.argv[1]]
    for file, plain in zip(sys.argv[2::2], sys.argv[3::2], strict=True):
        print(f"{Path(file).name}, {check.__doc__}")
        check(PlainSamples(file, plain))
