"""Reads `kabuki_rlds.dataset` as a source of Grain. `test_judges.py` runs it in a Python that has Grain.

python -m tests.judges.grain_loaders dataset|loader FILE PLAIN [FILE PLAIN …]
"""

from __future__ import annotations

import json
from typing import Any

import absl.flags
import grain

from tests.judges.plain_samples import PlainSamples, main, place_of, places


def dataset(plain: PlainSamples) -> None:
    """grain.MapDataset: by index, in threads, and in spawned workers"""
    assert isinstance(plain.dataset, grain.sources.RandomAccessDataSource)
    source = grain.MapDataset.source(plain.dataset)
    shuffled = source.shuffle(seed=0)
    plain.check([source[i] for i in range(len(source))], "by index, in order", shuffled=False)
    plain.check([shuffled[i] for i in range(len(shuffled))], "by index, shuffled", shuffled=True)
    slices = [sample for rank in range(3) for sample in source[rank::3]]
    shards = [sample for rank in range(3) for sample in grain.MapDataset.source(plain.dataset.shard(rank, 3))]
    plain.check(slices, "three slices", shuffled=True)
    assert list(map(place_of, slices)) == list(map(place_of, shards))
    # `list` keeps samples as they are. The default stacks fields, but shapes of a field can differ.
    batches = shuffled.batch(plain.batch_size, batch_fn=list).to_iter_dataset()
    _epoch(plain, "threads", source.batch(plain.batch_size, batch_fn=list).to_iter_dataset(), shuffled=False)
    _epoch(plain, "threads", batches, shuffled=True)
    for workers in plain.worker_counts:
        options = grain.multiprocessing.MultiprocessingOptions(num_workers=workers)
        _epoch(plain, f"{workers} workers", batches.mp_prefetch(options), shuffled=True, resume=workers == 1)


def _epoch(plain: PlainSamples, what: str, batches: Any, *, shuffled: bool, resume: bool = True) -> None:
    """Checks an epoch, and that a saved state continues with the same samples."""
    iterator = iter(batches)
    first = next(iterator)
    state = json.dumps(iterator.get_state()) if resume else ""
    rest = list(iterator)
    plain.check([sample for batch in [first, *rest] for sample in batch], what, shuffled=shuffled)
    if resume:
        continued = iter(batches)
        continued.set_state(json.loads(state))
        assert places(continued) == places(rest), f"{what}: other samples after set_state"


def loader(plain: PlainSamples) -> None:
    """grain.DataLoader, with threads and spawned workers"""
    for workers in (0, *plain.worker_counts):
        for shuffle in (True,) if workers else (False, True):
            sampler = grain.samplers.IndexSampler(len(plain), shuffle=shuffle, seed=0, num_epochs=1)
            samples = grain.DataLoader(data_source=plain.dataset, sampler=sampler, worker_count=workers)
            iterator = iter(samples)
            first = next(iterator)
            state = iterator.get_state()
            rest = list(iterator)
            plain.check([first, *rest], f"{workers} workers, shuffle={shuffle}", shuffled=shuffle)
            if not workers:
                continued = iter(samples)
                continued.set_state(state)
                assert places([continued]) == places([rest])


if __name__ == "__main__":
    # Workers of Grain read options from the flags of absl.
    absl.flags.FLAGS.mark_as_parsed()
    main({"dataset": dataset, "loader": loader})
