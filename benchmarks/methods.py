"""The ways to get a dataset's steps out of its shards that the benchmarks compare.

Each takes the dataset's folder, the file to write and how many episodes to take
(None: all), and returns what it did. Whatever a method imports stands outside its
functions' time: `prepare` is called before the clock starts.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Done:
    """What a method did.

    Attributes:
      steps: how many steps it read.
      reading: seconds of it that were reading, for methods that read all and then write.
    """

    steps: int
    reading: float | None = None


Method = Callable[[pathlib.Path, pathlib.Path, int | None], Done]


def prepare() -> None:
    """Imports what the methods need, so that no run pays for it."""
    import logging

    import h5py  # noqa: F401
    import tensorflow as tf
    import tensorflow_datasets  # noqa: F401

    import kabuki_rlds  # noqa: F401

    logging.getLogger("kabuki_rlds").setLevel(logging.ERROR)
    tf.get_logger().setLevel("ERROR")


def project(folder: pathlib.Path, target: pathlib.Path, episodes: int | None, **options: Any) -> Done:
    """`kabuki_rlds.convert`, the whole call."""
    import kabuki_rlds

    return Done(kabuki_rlds.convert(folder, target, split=_split(episodes), overwrite=True, **options).steps)


def two_loops(folder: pathlib.Path, target: pathlib.Path, episodes: int | None) -> Done:
    """The usual script: a loop over episodes, one over steps, then h5py with gzip."""
    start = time.perf_counter()
    columns: dict[str, list[np.ndarray]] = {}
    for episode in _dataset(folder, episodes):
        for step in episode["steps"]:
            for path, value in _flat(step):
                columns.setdefault(path, []).append(value.numpy())
    reading = time.perf_counter() - start
    return Done(_write(target, {path: np.stack(rows) for path, rows in columns.items()}), reading)


def skip_decoding(folder: pathlib.Path, target: pathlib.Path, episodes: int | None) -> Done:
    """TFDS's `SkipDecoding`, which hands over an episode as arrays; then h5py with gzip."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    def decode(episode: dict[str, Any]) -> dict[str, Any]:
        image = episode["steps"]["observation"]["image"]
        decoded = tf.map_fn(functools.partial(tf.io.decode_jpeg, channels=3), image, fn_output_signature=tf.uint8)
        episode["steps"]["observation"]["image"] = decoded
        return episode

    start = time.perf_counter()
    dataset = _dataset(folder, episodes, decoders={"steps": tfds.decode.SkipDecoding()})
    if _has_images(folder):
        dataset = dataset.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    columns: dict[str, list[np.ndarray]] = {}
    for episode in dataset:
        for path, value in _flat(episode["steps"]):
            columns.setdefault(path, []).append(value.numpy())
    reading = time.perf_counter() - start
    return Done(_write(target, {path: np.concatenate(rows) for path, rows in columns.items()}), reading)


def parse_floor(folder: pathlib.Path, target: pathlib.Path, episodes: int | None) -> Done:
    """All records through one `parse_example`, nothing written: what TensorFlow itself takes."""
    import tensorflow as tf

    assert episodes is None
    types = {"observation": tf.float32, "action": tf.float32, "reward": tf.float32, "discount": tf.float32}
    types |= dict.fromkeys(("is_first", "is_last", "is_terminal"), tf.int64)
    spec = {f"steps/{name}": tf.io.RaggedFeature(dtype, row_splits_dtype=tf.int64) for name, dtype in types.items()}
    spec |= {"episode_id": tf.io.RaggedFeature(tf.int64), "episode_return": tf.io.RaggedFeature(tf.float32)}
    records = tf.data.TFRecordDataset(_shards(folder)).batch(512)
    steps = 0
    for parsed in records.map(lambda r: tf.io.parse_example(r, spec), num_parallel_calls=2).prefetch(1):
        steps += len(parsed["steps/reward"].flat_values)
    return Done(steps)


def decode_each(folder: pathlib.Path, target: pathlib.Path, episodes: int | None) -> Done:
    """All images decoded by a parallel map over images, nothing written."""
    import tensorflow as tf

    assert episodes is None
    images = _jpegs(folder).flat_map(tf.data.Dataset.from_tensor_slices)
    images = images.map(functools.partial(tf.io.decode_jpeg, channels=3), num_parallel_calls=2)
    return Done(sum(len(batch) for batch in images.batch(64).prefetch(1)))


def decode_episodes(folder: pathlib.Path, target: pathlib.Path, episodes: int | None) -> Done:
    """All images decoded by a parallel map over episodes, nothing written."""
    import tensorflow as tf

    assert episodes is None
    decode = functools.partial(tf.io.decode_jpeg, channels=3)
    images = _jpegs(folder).map(
        lambda files: tf.map_fn(decode, files, fn_output_signature=tf.uint8), num_parallel_calls=2
    )
    return Done(sum(len(batch) for batch in images.prefetch(1)))


METHODS: Mapping[str, Method] = {
    "project": project,
    "project_none": functools.partial(project, compression="none"),
    "project_encoded": functools.partial(project, images="encoded"),
    "two_loops": two_loops,
    "skip_decoding": skip_decoding,
    "parse_floor": parse_floor,
    "decode_each": decode_each,
    "decode_episodes": decode_episodes,
}


def _split(episodes: int | None) -> str:
    return "train" if episodes is None else f"train[:{episodes}]"


def _dataset(folder: pathlib.Path, episodes: int | None, **options: Any) -> Any:
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(folder).as_dataset(split=_split(episodes), **options)


def _shards(folder: pathlib.Path) -> list[str]:
    return sorted(str(path) for path in folder.glob("*.tfrecord-*"))


def _has_images(folder: pathlib.Path) -> bool:
    return folder.parent.name.startswith("camera")


def _jpegs(folder: pathlib.Path) -> Any:
    """The JPEG files of each episode."""
    import tensorflow as tf

    key = "steps/observation/image"
    spec = {key: tf.io.RaggedFeature(tf.string)}
    return tf.data.TFRecordDataset(_shards(folder)).map(lambda r: tf.io.parse_single_example(r, spec)[key])


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def _write(target: pathlib.Path, columns: dict[str, np.ndarray]) -> int:
    import h5py

    with h5py.File(target, "w") as file:
        for path, column in columns.items():
            file.create_dataset(path, data=column, compression="gzip")
    return len(columns["reward"])
