"""The files of a recording that `dataset_info.json` does not list."""

from __future__ import annotations

import pathlib

from kabuki_rlds.files.records import Scan

#: `shard_path` as a TFDS filename template, as in `dataset_info.json`.
SHARD_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"


def log_path(folder: pathlib.Path, dataset: str, split: str) -> pathlib.Path:
    """Returns the path of a split's log, which has the episodes since the last shard. TFDS does not read this file."""
    return folder / f"{dataset}-{split}.recording"


def shard_path(folder: pathlib.Path, dataset: str, split: str, index: int) -> pathlib.Path:
    """Returns the path of a recorded shard. The name has no number of shards, because that number grows."""
    return folder / f"{dataset}-{split}.tfrecord-{index:05d}"


def unlisted(folder: pathlib.Path, dataset: str, split: str, num_shards: int) -> dict[pathlib.Path, int]:
    """Returns the unlisted files with episodes, as path to number of episodes.

    These are the log, if the recording is running or was killed, and before it a shard, if
    the recording was killed before it listed that shard.

    Args:
      folder: folder of the dataset.
      dataset: name of the dataset.
      split: name of the split.
      num_shards: number of shards that `dataset_info.json` lists for the split.
    """
    found = {}
    for path in (shard_path(folder, dataset, split, num_shards), log_path(folder, dataset, split)):
        if path.is_file() and (records := Scan(path).records):
            found[path] = records
    return found
