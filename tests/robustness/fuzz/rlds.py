"""Searches for RLDS datasets that break the package.

    python -m tests.robustness.fuzz.rlds [--inputs 2000] [--seed 0] [--keep DIR]

Small datasets that TFDS wrote are changed, a place or a few: the bytes of a shard, an
episode behind checksums that are right again, a description, or which files there are.
Each is converted, as it is and without the episodes that are damaged, in a process that
is watched. A long search can be had in parts, as in `tests.robustness.fuzz.hdf5`.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests import datasets
from tests.robustness.fuzz import changes
from tests.robustness.fuzz.readers import RLDS
from tests.robustness.fuzz.report import report, search_arguments, secret_in
from tests.robustness.fuzz.watched import tensorflow_worker, try_all

#: Recipes of `tests.datasets`, and how often each is taken: TensorFlow takes seconds to see how to decode the first.
SEEDS = {"every_kind": 1} | dict.fromkeys(
    ("plain", "array_record", "oxe_style", "uncovered", "in_order", "no_steps", "zero_size"), 2
)

_NUMBERS = changes.NUMBERS


def seeds(data_dir: Path) -> list[Path]:
    """The folders of valid datasets, each as often as it is to be taken."""
    folders = [[datasets.write(getattr(datasets, name)(), data_dir)] * count for name, count in SEEDS.items()]
    return [folder for each in folders for folder in each]


def mutated(folders: Sequence[Path], count: int, seed: int, folder: Path, made: changes.Changes = ()) -> Iterator[Path]:
    """Yields changed datasets. See `changes.changed_folders`. `made` are the changes to choose from; by default all."""
    return changes.changed_folders(folders, count, seed, folder, made or _CHANGES)


def _shard(folder: Path, rng: random.Random) -> Path | None:
    shards = sorted(path for path in folder.iterdir() if "-train" in path.name)
    return rng.choice(shards) if shards else None


def _bytes(folder: Path, rng: random.Random) -> None:
    """The bytes of a shard."""
    shard = _shard(folder, rng)
    if shard is not None:
        changes.change_bytes(shard, rng)


def _episode(folder: Path, rng: random.Random) -> None:
    """What an episode holds."""
    import tensorflow as tf

    from tests import tfrecords

    shard = _shard(folder, rng)
    if shard is None or "tfrecord" not in shard.name:
        return
    try:
        records = [record.data for record in tfrecords.read(shard)]
        number = rng.randrange(len(records))
        example = tf.train.Example.FromString(records[number])
    except Exception:  # It was damaged before.
        return
    feature = example.features.feature
    if not feature:
        return
    key = rng.choice(sorted(feature))
    values = getattr(feature[key], feature[key].WhichOneof("kind") or "int64_list").value
    kind = rng.randrange(8)
    if kind == 0:
        del feature[key]
    elif kind == 1:
        feature[key].Clear()
    elif kind == 2 and len(values):
        values.pop(rng.randrange(len(values)))
    elif kind == 3 and len(values):
        values.append(values[rng.randrange(len(values))])
    elif kind == 4:
        feature[key].CopyFrom(feature[rng.choice(sorted(feature))])
    elif len(values):
        _value(values, rng)
    records[number] = example.SerializeToString()
    if kind == 5:
        data = bytearray(records[number])
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        records[number] = bytes(data)
    tfrecords.write(shard, records)


def _value(values: Any, rng: random.Random) -> None:
    at = rng.randrange(len(values))
    if isinstance(values[at], int):
        values[at] = rng.choice(_NUMBERS)
    elif isinstance(values[at], float):
        values[at] = rng.choice((float("nan"), float("inf"), 0.0, -1.0, 1e300))
    else:
        data = bytearray(values[at])
        for _ in range(rng.choice((1, 2, 8))):
            if data:
                data[min(rng.randrange(len(data)), rng.choice((8, 24, 64, 1 << 30)))] = rng.randrange(256)
        values[at] = rng.choice((bytes(data), bytes(data[: len(data) // 2]), b"", rng.randbytes(40)))


def _description(folder: Path, rng: random.Random) -> None:
    """A place in a JSON file."""
    path = folder / rng.choice(("features.json", "dataset_info.json"))
    if path.is_file():
        changes.change_json(path, rng)


_CHANGES = (_bytes, _bytes, _episode, _episode, _episode, _description, _description, changes.change_files)


def main() -> None:
    """Searches, and prints what was found."""
    arguments = search_arguments(__doc__, 2000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        secret = secret_in(folder)
        valid, good = seeds(folder / "seeds"), True
        with tensorflow_worker(secret) as worker:
            for corpus, made in (("rlds", _CHANGES), ("rlds descriptions", (_description,))):
                paths = mutated(valid, arguments.inputs // 2, arguments.seed, folder, made)
                good &= report(corpus, try_all(worker, RLDS, paths), arguments.keep)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
