"""Reads `kabuki_rlds.dataset` with PyTorch's `DataLoader`. `test_judges.py` runs it in a Python that has PyTorch.

python -m tests.judges.torch_loaders fork|spawn|parts FILE PLAIN [FILE PLAIN …]
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset, default_collate, random_split

from tests.judges.plain_samples import PlainSamples, Sample, main


def _loader(plain: PlainSamples, dataset: Dataset | None = None, **options: Any) -> DataLoader:
    """`collate_fn=list` keeps samples as they are. The default stacks fields, but shapes of a field can differ."""
    return DataLoader(plain.dataset if dataset is None else dataset, plain.batch_size, collate_fn=list, **options)


def _epoch(loader: DataLoader) -> list[Sample]:
    return [sample for batch in loader for sample in batch]


def fork(plain: PlainSamples) -> None:
    """forked workers, in order and shuffled, while the files are open in the parent process"""
    plain.dataset[0]
    for workers in (0, *plain.worker_counts):
        options: dict[str, Any] = {"num_workers": workers}
        if workers:
            options["multiprocessing_context"] = "fork"
        plain.check(_epoch(_loader(plain, **options)), f"{workers} workers, in order", shuffled=False)
        _shuffled_epochs(plain, f"{workers} workers", options)


def spawn(plain: PlainSamples) -> None:
    """spawned workers, shuffled"""
    for workers in plain.worker_counts:
        options = {"num_workers": workers, "multiprocessing_context": "spawn", "persistent_workers": True}
        _shuffled_epochs(plain, f"{workers} workers", options)


def _shuffled_epochs(plain: PlainSamples, what: str, options: dict[str, Any]) -> None:
    loader = _loader(plain, shuffle=True, **options)
    first, second = (plain.check(_epoch(loader), f"{what}, epoch {epoch}", shuffled=True) for epoch in (1, 2))
    assert first != second


def parts(plain: PlainSamples) -> None:
    """shards, subsets and stacked batches"""
    chosen = range(0, len(plain), 3)
    plain.check(_epoch(_loader(plain, Subset(plain.dataset, chosen))), "Subset", shuffled=False, part=chosen)
    for part in random_split(plain.dataset, [0.5, 0.5], torch.Generator().manual_seed(0)):
        plain.check(
            _epoch(_loader(plain, part, num_workers=1)), "random_split", shuffled=False, part=list(part.indices)
        )
    shards = [plain.dataset.shard(rank, 2) for rank in range(2)]
    samples = [sample for shard in shards for sample in _epoch(_loader(plain, shard, shuffle=True, num_workers=1))]
    plain.check(samples, "two shards", shuffled=True)
    # The sampler would repeat a sample if it could not divide the dataset.
    assert len(plain) % 2 == 0
    samplers = [DistributedSampler(plain.dataset, 2, rank) for rank in range(2)]
    samples = [sample for sampler in samplers for sample in _epoch(_loader(plain, sampler=sampler))]
    plain.check(samples, "two DistributedSamplers", shuffled=True)
    _stacked(plain)


def _stacked(plain: PlainSamples) -> None:
    """Compares batches that PyTorch stacks, field by field, with NumPy's."""
    stacked = 0
    for path, field in plain.dataset.fields.items():
        # PyTorch has no text. It takes no bfloat16 of NumPy, and no scalar that exceeds int64.
        if field.is_fixed and field.dtype.kind in "biuf" and (field.shape or field.dtype != np.uint64):
            samples = plain.dataset.__getitems__(range(0, len(plain), 5))
            values = [_at(sample, path) for sample in samples]
            tensor = _at(default_collate([{path: value} for value in values]), path)
            assert tensor.numpy().dtype == field.dtype and np.array_equal(tensor, np.stack(values), equal_nan=True)
            stacked += 1
    assert stacked >= 7


def _at(tree: Any, path: str) -> Any:
    if path in tree:
        return tree[path]
    name, _, rest = path.partition("/")
    return _at(tree[name], rest)


if __name__ == "__main__":
    main({"fork": fork, "spawn": spawn, "parts": parts})
