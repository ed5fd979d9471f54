"""Reads datasets with TFDS. The tests compare with these values."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from tests.datasets import Recipe


@dataclasses.dataclass(frozen=True)
class Expected:
    """The values of a split by field, in the order of the episodes in the shards.

    A value is an array (0-dimensional for a scalar), `bytes` for a scalar string, or a nested list of arrays for a
    sequence of sequences or of images with different sizes.

    Attributes:
      steps: maps each path ("observation/state") to one value per step, with all episodes concatenated.
      episodes: maps the path of each episode field to one value per episode.
      lengths: number of steps of each episode.
    """

    steps: dict[str, list[Any]]
    episodes: dict[str, list[Any]]
    lengths: list[int]


def read(folder: Path, split: str = "train") -> Expected:
    """Returns a split of the dataset in `folder`, read with the public API of TFDS in Python loops."""
    builder = tfds.builder_from_directory(folder)
    result = _nothing(builder.info.features)
    if split in builder.info.splits and not builder.info.splits[split].shard_lengths:
        return result  # TFDS raises "corresponds to no data".
    if builder.info.file_format is tfds.core.FileFormat.ARRAY_RECORD:
        source = builder.as_data_source(split=split)  # TFDS reads ArrayRecord only in this way.
    else:
        # By default, TFDS interleaves blocks of 16 episodes from several shards.
        config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
        source = builder.as_dataset(split=split, read_config=config, shuffle_files=False)
    _add(result, source, builder.info.features)
    return result


def collect(episodes: Iterable[dict[str, Any]], features: tfds.features.FeaturesDict) -> Expected:
    """Returns the values of decoded episodes that have these features."""
    result = _nothing(features)
    _add(result, episodes, features)
    return result


def generated(recipe: Recipe, split: str = "train") -> Expected:
    """Returns the values of a generated dataset without reading it: the expected result of a correct reader.

    Use it for datasets that TFDS can write but not read. It does not support a Sequence of dicts, JPEG or image files.
    """
    return collect(recipe.splits[split], recipe.features)


def read_json(file: Path, split: str = "train") -> Expected:
    """Returns the values that an older TFDS decoded. The scripts in `tests/fixtures` store them."""
    stored = json.loads(file.read_text())[split]

    def values(columns: dict[str, Any]) -> dict[str, list[Any]]:
        return {
            path: [
                value.encode() if column["dtype"] == "string" else np.array(value, column["dtype"])
                for value in column["values"]
            ]
            for path, column in columns.items()
        }

    return Expected(values(stored["steps"]), values(stored["episodes"]), stored["lengths"])


def _nothing(features: tfds.features.FeaturesDict) -> Expected:
    steps = features["steps"].feature.get_tensor_info()
    episode = {k: v.get_tensor_info() for k, v in features.items() if k != "steps"}
    return Expected(
        steps={path: [] for path, _ in _leaves(steps)},
        episodes={path: [] for path, _ in _leaves(episode)},
        lengths=[],
    )


def _add(result: Expected, source: Iterable[dict[str, Any]], features: tfds.features.FeaturesDict) -> None:
    step_info = dict(_leaves(features["steps"].feature.get_tensor_info()))
    episode_info = dict(_leaves({k: v.get_tensor_info() for k, v in features.items() if k != "steps"}))
    for episode in source:
        length = 0
        for step in episode["steps"]:
            for path, value in _leaves(step):
                result.steps[path].append(_to_numpy(value, step_info[path]))
            length += 1
        for path, value in _leaves({k: v for k, v in episode.items() if k != "steps"}):
            result.episodes[path].append(_to_numpy(value, episode_info[path]))
        result.lengths.append(length)


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (path, value) of every leaf of a nested dict."""
    for name, value in tree.items():
        if isinstance(value, tf.data.Dataset):  # Within a step: as a Sequence.
            elements = [dict(_leaves({name: element}, prefix)) for element in value]
            for path in elements[0]:
                rows = [e[path] for e in elements]
                yield path, np.stack(rows) if len({row.shape for row in rows}) == 1 else rows
        elif isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def _to_numpy(value: Any, info: tfds.features.TensorInfo) -> Any:
    """Converts a decoded or generated value to the form that `Expected` describes."""
    if isinstance(value, tf.RaggedTensor):
        return [_to_numpy(row, info) for row in value]
    if isinstance(value, tf.Tensor):
        value = value.numpy()
    if info.np_dtype == np.object_:  # Strings.
        return _to_bytes(value)
    if isinstance(value, list) and any(isinstance(row, (list, np.ndarray, tf.Tensor)) for row in value):
        return [_to_numpy(row, info) for row in value]
    return np.asarray(value, info.np_dtype)


def _to_bytes(value: Any) -> Any:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, list) and any(isinstance(row, list) for row in value):
        return [_to_bytes(row) for row in value]
    texts = np.asarray(value, object)
    result = np.empty(texts.shape, object)
    for i, text in np.ndenumerate(texts):
        result[i] = _to_bytes(text)
    return result
