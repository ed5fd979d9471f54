"""The sink of one split of an RLDS dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets", reason="needs the extra `tensorflow`")

import tensorflow_datasets as tfds

from kabuki_rlds.data.block import Block
from kabuki_rlds.data.last_row import LastRows
from kabuki_rlds.formats.rlds.dataset_info import shard_template
from kabuki_rlds.formats.rlds.sink import SplitSink

FEATURES = tfds.features.FeaturesDict({"steps": tfds.features.Dataset({"reward": np.float32})})


def write(folder: Path, *, commits: bool) -> SplitSink:
    """Writes three episodes to two shards."""
    rewards = np.arange(7, dtype=np.float32)
    with SplitSink(shard_template(folder, "toy", "train", "tfrecord"), FEATURES, [2, 1]) as sink:
        sink.write(Block({"reward": rewards[:4]}, 4, np.array([0, 3]), {}))
        sink.write(Block({"reward": rewards[4:]}, 3, np.array([1]), {}))
        if commits:
            sink.commit(LastRows.of_all(False, 3, "test"))
    return sink


def test_a_committed_split_has_its_shards(tmp_path: Path) -> None:
    info = write(tmp_path, commits=True).info
    assert info is not None and info.shard_lengths == [2, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"toy-train.tfrecord-0000{i}-of-00002" for i in (0, 1)]


def test_nothing_remains_of_a_split_that_is_not_committed(tmp_path: Path) -> None:
    assert write(tmp_path, commits=False).info is None
    assert list(tmp_path.iterdir()) == []
