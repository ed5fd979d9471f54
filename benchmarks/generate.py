"""Generates the datasets for the benchmarks.

    python -m benchmarks.generate [--scale 0.05] [--data-dir DIR]

    hopper/1.0.0       about 1,000,000 steps in 20,000 episodes, with the fields of D4RL's
                       Hopper: 11 floats of observation, 3 of action
    camera/1.0.0       about 20,000 steps with a 128x128 JPEG image in 200 episodes
    camera_large/1.0.0 about 2,000 steps with a 640x480 JPEG image in 20 episodes (made for `benchmarks.images`)
    hopper_x10/1.0.0   ten copies of the shards of hopper
    camera_x10/1.0.0   ten copies of the shards of camera

They are RLDS datasets in the form that TFDS writes. They are generated from columns,
because TFDS's writer works step by step. The numbers are smooth, and the images have
shapes and mild texture, so that the data compress about as well as real recordings.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

DATA_DIR = pathlib.Path(__file__).parent / "data"

#: Name of each dataset to its number of steps at scale 1.
STEPS = {"hopper": 1_019_843, "camera": 20_000, "camera_large": 2_000}
TIMES = 10

_VERSION = "1.0.0"
_SHARDS = 4
#: Height and width of the images.
_IMAGE_SIZES = {"camera": (128, 128), "camera_large": (480, 640)}


def folder(data_dir: pathlib.Path, name: str, scale: float = 1.0) -> pathlib.Path:
    """The folder of the dataset `name` at a scale. It may not exist yet."""
    return data_dir / f"scale_{scale:g}" / name / _VERSION


def generate(data_dir: pathlib.Path, scale: float = 1.0) -> None:
    """Generates all datasets of a scale that do not exist."""
    for name in ("hopper", "camera"):
        once, times = generate_one(data_dir, name, scale), folder(data_dir, f"{name}_x{TIMES}", scale)
        if not (times / "features.json").exists():
            print(f"generating {times}")
            _repeat(once, times)


def generate_one(data_dir: pathlib.Path, name: str, scale: float = 1.0) -> pathlib.Path:
    """Generates a dataset if it does not exist, and returns its folder."""
    once = folder(data_dir, name, scale)
    if not (once / "features.json").exists():
        print(f"generating {once}")
        steps = round(STEPS[name] * scale)
        if name == "hopper":
            _write(once, _hopper_features(), _hopper(steps))
        else:
            _write(once, _camera_features(_IMAGE_SIZES[name]), _camera(steps, _IMAGE_SIZES[name]))
    return once


# --- episodes ---


def _hopper(num_steps: int) -> Iterator[bytes]:
    """Yields serialized episodes of a simulated body with five joints and a noisy policy."""
    rng = np.random.default_rng(0)
    lengths = _lengths(rng, num_steps, mean=51.5, longest=1000)
    observation, action, reward = _rollouts(rng, lengths)
    start = 0
    for i, length in enumerate(lengths.tolist()):
        rows = slice(start, start + length)
        start += length
        yield _example(
            {
                "steps/observation": observation[rows],
                "steps/action": action[rows],
                "steps/reward": reward[rows],
                "episode_id": np.array([i]),
                "episode_return": reward[rows].sum(keepdims=True),
            }
            | _ends(length, terminal=length < 1000),
        )


def _camera(num_steps: int, size: tuple[int, int]) -> Iterator[bytes]:
    """Yields serialized episodes with images of blobs that move in front of a background."""
    rng = np.random.default_rng(1)
    lengths = _lengths(rng, num_steps, mean=100, longest=300)
    observation, action, reward = _rollouts(rng, lengths)
    start = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for i, length in enumerate(lengths.tolist()):
            rows = slice(start, start + length)
            start += length
            columns: dict[str, np.ndarray | list[bytes]] = {
                "steps/observation/image": list(pool.map(_jpeg, _images(rng, length, size))),
                "steps/observation/state": observation[rows],
                "steps/action": action[rows],
                "steps/reward": reward[rows],
                "episode_id": np.array([i]),
            }
            yield _example(columns | _ends(length, terminal=True))


def _lengths(rng: np.random.Generator, num_steps: int, *, mean: float, longest: int) -> np.ndarray:
    """Random episode lengths that sum to `num_steps`: many short ones, some long."""
    count = max(1, round(num_steps / mean))
    lengths = rng.gamma(3.0, mean / 3.0, 2 * count).astype(np.int64).clip(4, longest)
    ends = np.cumsum(lengths)
    lengths = lengths[: np.searchsorted(ends, num_steps) + 1]
    lengths[-1] -= lengths.sum() - num_steps
    return lengths


def _rollouts(rng: np.random.Generator, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(observation, action, reward) of all episodes, concatenated, as float32.

    The joints are damped springs. All episodes are simulated together in one array.
    """
    longest_first = np.argsort(-lengths, kind="stable")
    starts = (np.cumsum(lengths) - lengths)[longest_first]
    active = lengths[longest_first]
    total = int(lengths.sum())
    observation = np.empty((total, 11), np.float32)
    action = np.empty((total, 3), np.float32)
    reward = np.empty(total, np.float32)
    stiffness, push, policy = rng.uniform(4, 20, 5), rng.normal(0, 6, (3, 5)), rng.normal(0, 0.7, (11, 3))
    rest = np.array([1.25, 0, 0, 0, 0])
    position = rng.uniform(-5e-3, 5e-3, (len(lengths), 5)) + rest
    velocity = rng.uniform(-5e-3, 5e-3, (len(lengths), 6))
    for t in range(int(active[0])):
        n = int(np.searchsorted(-active, -t))
        position, velocity = position[:n], velocity[:n]
        now = np.concatenate([position, velocity.clip(-10, 10)], axis=1)
        chosen = np.tanh(now @ policy + rng.normal(0, 0.3, (n, 3)))
        rows = starts[:n] + t
        observation[rows], action[rows] = now, chosen
        reward[rows] = 1 + velocity[:, 0] - 1e-3 * np.square(chosen).sum(axis=1)
        pull = chosen @ push - stiffness * (position - rest) - 0.8 * velocity[:, 1:]
        velocity[:, 1:] += 0.008 * pull
        velocity[:, 0] += 0.008 * (2 * chosen[:, 0] + 1 - 0.5 * velocity[:, 0])
        position += 0.008 * velocity[:, 1:]
    return observation, action, reward


def _ends(length: int, *, terminal: bool) -> dict[str, np.ndarray]:
    """The flags and discounts of an episode."""
    is_first, is_last, is_terminal = np.zeros((3, length), np.int64)
    is_first[0] = is_last[-1] = 1
    is_terminal[-1] = terminal
    discount = np.ones(length, np.float32)
    discount[-2:] = not terminal
    return {
        "steps/discount": discount,
        "steps/is_first": is_first,
        "steps/is_last": is_last,
        "steps/is_terminal": is_terminal,
    }


def _images(rng: np.random.Generator, length: int, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Yields the images of an episode: uint8, (height, width, 3)."""
    height, width = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / np.array([height, width], np.float32)[:, None, None]
    corners = rng.uniform(40, 215, (3, 3)).astype(np.float32)
    backdrop = corners[0] + x[..., None] * (corners[1] - corners[0]) + y[..., None] * (corners[2] - corners[0])
    noise = rng.normal(0, 1, (height + 2, width + 2)).astype(np.float32)
    for i in range(3):
        for j in range(3):
            # Noise smoothed over 3x3 pixels.
            backdrop += 2.0 * noise[i : i + height, j : j + width, None]
    backdrop[(y > 0.7) & (np.floor(12 * x) % 2 == 0)] *= 0.7
    blobs = 5
    place, speed = rng.uniform(0, 1, (blobs, 2)), rng.normal(0, 0.01, (blobs, 2))
    radius, color = rng.uniform(0.04, 0.15, blobs), rng.uniform(0, 255, (blobs, 3)).astype(np.float32)
    for _ in range(length):
        frame = backdrop.copy()
        for (cx, cy), r, c in zip(place, radius, color, strict=True):
            inside = (x - cx) ** 2 + (y - cy) ** 2 < r * r
            frame[inside] = c * (1 - ((y - cy)[inside, None] / r) * 0.3)
        place += speed
        speed[(place < 0) | (place > 1)] *= -1
        yield frame.clip(0, 255).astype(np.uint8)


def _jpeg(frame: np.ndarray) -> bytes:
    import tensorflow as tf

    encoded: bytes = tf.io.encode_jpeg(frame, quality=90).numpy()
    return encoded


# --- files ---


def _hopper_features() -> Any:
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {
            "steps": _step_features(tfds.features.Tensor(shape=(11,), dtype=np.float32)),
            "episode_id": np.int64,
            "episode_return": np.float32,
        }
    )


def _camera_features(size: tuple[int, int]) -> Any:
    import tensorflow_datasets as tfds

    image = tfds.features.Image(shape=(*size, 3), encoding_format="jpeg")
    state = tfds.features.Tensor(shape=(11,), dtype=np.float32)
    return tfds.features.FeaturesDict(
        {"steps": _step_features({"image": image, "state": state}), "episode_id": np.int64}
    )


def _step_features(observation: Any) -> Any:
    import tensorflow_datasets as tfds

    return tfds.features.Dataset(
        {
            "observation": observation,
            "action": tfds.features.Tensor(shape=(3,), dtype=np.float32),
            "reward": np.float32,
            "discount": np.float32,
            "is_first": np.bool_,
            "is_last": np.bool_,
            "is_terminal": np.bool_,
        }
    )


def _example(columns: Mapping[str, np.ndarray | list[bytes]]) -> bytes:
    """A serialized episode in TFDS's form: for each field a flat list of the values of all steps."""
    import tensorflow as tf

    def feature(column: np.ndarray | list[bytes]) -> Any:
        if isinstance(column, list):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=column))
        values = column.reshape(-1).tolist()
        if column.dtype.kind == "f":
            return tf.train.Feature(float_list=tf.train.FloatList(value=values))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    features = tf.train.Features(feature={name: feature(column) for name, column in columns.items()})
    serialized: bytes = tf.train.Example(features=features).SerializeToString()
    return serialized


def _write(target: pathlib.Path, features: Any, episodes: Iterator[bytes]) -> None:
    import tensorflow as tf

    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    paths = _shard_paths(target, _SHARDS)
    records = list(episodes)
    bounds = np.linspace(0, len(records), _SHARDS + 1).astype(int).tolist()
    for path, start, stop in zip(paths, bounds, bounds[1:], strict=False):
        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in records[start:stop]:
                writer.write(record)
    _describe(target, features, np.diff(bounds).tolist())


def _repeat(once: pathlib.Path, target: pathlib.Path) -> None:
    """Writes ten copies of the dataset `once`, with hard links if the file system supports them."""
    import tensorflow_datasets as tfds

    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    info = tfds.builder_from_directory(once).info
    lengths = info.splits["train"].shard_lengths
    paths = _shard_paths(once, len(lengths))
    for source, path in zip(paths * TIMES, _shard_paths(target, len(lengths) * TIMES), strict=True):
        try:
            os.link(source, path)
        except OSError:
            shutil.copyfile(source, path)
    _describe(target, info.features, lengths * TIMES)


def _shard_paths(target: pathlib.Path, count: int) -> list[pathlib.Path]:
    name = target.parent.name
    return [target / f"{name}-train.tfrecord-{i:05d}-of-{count:05d}" for i in range(count)]


def _describe(target: pathlib.Path, features: Any, shard_lengths: list[int]) -> None:
    """Writes TFDS's metadata files."""
    import tensorflow_datasets as tfds

    num_bytes = sum(path.stat().st_size for path in _shard_paths(target, len(shard_lengths)))
    template = tfds.core.ShardedFileTemplate(
        data_dir=target, dataset_name=target.parent.name, split="train", filetype_suffix="tfrecord"
    )
    split = tfds.core.SplitInfo(
        name="train", shard_lengths=shard_lengths, num_bytes=num_bytes, filename_template=template
    )
    tfds.folder_dataset.write_metadata(
        data_dir=target,
        features=features,
        split_infos=[split],
        version=_VERSION,
        check_data=False,
        description="Made by the benchmarks of kabuki_rlds.",
    )


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generate", description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", type=pathlib.Path, default=DATA_DIR, help="folder for the datasets")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="0.05 makes a twentieth of the steps, for a quick test"
    )
    arguments = parser.parse_args()
    generate(arguments.data_dir, arguments.scale)


if __name__ == "__main__":
    main()
