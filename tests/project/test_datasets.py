"""TFDS decodes the generated values from the test datasets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import datasets, expected


def same(a, b) -> bool:
    """Returns whether two values of an `Expected` have equal types, shapes and bits."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.dtype == b.dtype:
        equal = a.tolist() == b.tolist() if a.dtype == object else a.tobytes() == b.tobytes()
        return a.shape == b.shape and equal
    return type(a) is type(b) and bool(a == b)


def assert_same(got: expected.Expected, want: expected.Expected) -> None:
    assert got.lengths == want.lengths
    for columns, others in ((got.steps, want.steps), (got.episodes, want.episodes)):
        assert columns.keys() == others.keys()
        different = [path for path in columns if not same(columns[path], others[path])]
        assert not different


@pytest.mark.parametrize("split", ["train", "test"])
def test_tfds_reads_the_generated_datasets(dataset, split):
    want = expected.generated(datasets.in_order(), split)
    assert_same(expected.read(dataset("in_order"), split), want)


def test_tfds_reads_empty_episodes(dataset):
    want = expected.generated(datasets.no_steps())
    assert want.lengths == [0, 3, 0, 0, 2, 0]
    assert_same(expected.read(dataset("no_steps")), want)


def test_array_record_and_tfrecord_have_equal_contents(dataset):
    assert_same(expected.read(dataset("array_record")), expected.read(dataset("plain")))


@pytest.mark.parametrize("split", ["train", "test"])
def test_current_tfds_reads_an_old_dataset_like_the_old_tfds(old_dataset: Path, split):
    want = expected.read_json(old_dataset.parent.parent / "old_robot.json", split)
    assert_same(expected.read(old_dataset, split), want)


@pytest.mark.reference
def test_catch_is_recorded(tmp_path):
    got = expected.read(datasets.record_catch(tmp_path, episodes=5))
    assert got.lengths == [10] * 5
    assert got.steps["reward"][0].dtype == np.float64
    assert got.steps["observation"][0].shape == (10, 5)
    assert [int(number) for number in got.episodes["number"]] == list(range(5))
