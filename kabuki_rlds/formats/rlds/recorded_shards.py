"""The files that a recording into an RLDS dataset has beside the listed shards."""

from __future__ import annotations

import pathlib

from kabuki_rlds.files.records import Scan

#: `shard_path` as TFDS writes it in `dataset_info.json`: the name of a shard while their number is not known.
SHARD_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"


def log_path(folder: pathlib.Path, dataset: str, split: str) -> pathlib.Path:
    """The log of a split: the episodes since the last shard. TFDS does not take it for a shard."""
    return folder / f"{dataset}-{split}.recording"


def shard_path(folder: pathlib.Path, dataset: str, split: str, index: int) -> pathlib.Path:
    """A recorded shard. Its name does not state the number of shards, which grows."""
    return folder / f"{dataset}-{split}.tfrecord-{index:05d}"


def unlisted(folder: pathlib.Path, dataset: str, split: str, num_shards: int) -> dict[pathlib.Path, int]:
    """The files with episodes that `dataset_info.json` does not list, and the number of episodes of each.

    These are a shard, if the recording was killed before it listed it, and the log of a
    recording that was killed or has not ended.
    """
    found = {}
    for path in (shard_path(folder, dataset, split, num_shards), log_path(folder, dataset, split)):
        if path.is_file() and (records := Scan(path).records):
            found[path] = records
    return found
