"""The methods that the benchmarks compare.

Each method takes the dataset's folder or file, the file to write, and the number of
episodes to process (None: all). It returns a `Done`. The time to import packages is not
measured: `prepare` imports them before the clock starts.
"""

from __future__ import annotations

import functools
import itertools
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from benchmarks import robomimic
from benchmarks.done import Done

Method = Callable[[pathlib.Path, pathlib.Path, int | None], Done]


def prepare() -> None:
    """Imports the packages that the methods need."""
    import logging

    import h5py  # noqa: F401
    import tensorflow as tf
    import tensorflow_datasets  # noqa: F401

    import kabuki_rlds
    import kabuki_rlds.loading  # noqa: F401

    logging.getLogger("kabuki_rlds").setLevel(logging.ERROR)
    tf.get_logger().setLevel("ERROR")


def project(folder: pathlib.Path, target: pathlib.Path, episodes: int | None, **options: Any) -> Done:
    """Calls `kabuki_rlds.convert`."""
    import kabuki_rlds

    return Done(kabuki_rlds.convert(folder, target, split=_split(episodes), overwrite=True, **options).num_steps)


def two_loops(folder: pathlib.Path, target: pathlib.Path, episodes: int | None) -> Done:
    """A typical script: nested loops over episodes and steps, then h5py with gzip."""
    start = time.perf_counter()
    columns: dict[str, list[np.ndarray]] = {}
    for episode in _dataset(folder, episodes):
        for step in episode["steps"]:
            for path, value in _flat(step):
                columns.setdefault(path, []).append(value.numpy())
    reading = time.perf_counter() - start
    return Done(_write(target, {path: np.stack(rows) for path, rows in columns.items()}), reading)


def skip_decoding(folder: pathlib.Path, target: pathlib.Path, episodes: int | None) -> Done:
    """Reads each episode as arrays with TFDS's `SkipDecoding`, then writes with h5py and gzip."""
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
    """A lower bound: parses all records with TensorFlow's `parse_example` and writes nothing."""
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
    """A lower bound: decodes all images in a parallel map over images and writes nothing."""
    import tensorflow as tf

    assert episodes is None
    images = _jpegs(folder).flat_map(tf.data.Dataset.from_tensor_slices)
    images = images.map(functools.partial(tf.io.decode_jpeg, channels=3), num_parallel_calls=2)
    return Done(sum(len(batch) for batch in images.batch(64).prefetch(1)))


def decode_episodes(folder: pathlib.Path, target: pathlib.Path, episodes: int | None) -> Done:
    """A lower bound: decodes all images in a parallel map over episodes and writes nothing."""
    import tensorflow as tf

    assert episodes is None
    decode = functools.partial(tf.io.decode_jpeg, channels=3)
    images = _jpegs(folder).map(
        lambda files: tf.map_fn(decode, files, fn_output_signature=tf.uint8), num_parallel_calls=2
    )
    return Done(sum(len(batch) for batch in images.prefetch(1)))


# --- training batches, for `benchmarks.load` ---


def load_tfds(folder: pathlib.Path, target: pathlib.Path, episodes: int | None) -> Done:
    """Iterates over batches of TFDS's steps, as most training scripts do."""
    return _count(_tfds_steps(folder).batch(_BATCH))


def load_tfds_in_graph(folder: pathlib.Path, target: pathlib.Path, episodes: int | None) -> Done:
    """Like `load_tfds`, with the loop in TensorFlow's graph."""
    return _count_in_graph(_tfds_steps(folder).batch(_BATCH))


def load_tfds_cached(folder: pathlib.Path, target: pathlib.Path, episodes: int | None) -> Done:
    """Like `load_tfds`, but reuses the dataset object: TFDS caches its records after the first iteration."""
    return _count(_same_tfds_steps(folder).batch(_BATCH))


def load_tfds_shuffled(folder: pathlib.Path, target: pathlib.Path, episodes: int | None) -> Done:
    """Like `load_tfds`, with a shuffle buffer of 100,000 steps."""
    return _count(_tfds_steps(folder).shuffle(100_000).batch(_BATCH))


def load(
    folder: pathlib.Path,
    target: pathlib.Path,
    episodes: int | None,
    *,
    loader: str = "load_steps",
    on_disk: bool = False,
    in_graph: bool = False,
    **options: Any,
) -> Done:
    """Opens the Kabuki file next to `target` with one of this project's loaders, and iterates over all batches."""
    from kabuki_rlds import loading
    from kabuki_rlds.loading import batches

    if on_disk:
        batches.HELD_BYTES, batches.LOOK_AHEAD_BYTES = 0, 16 << 20
    count = _count_in_graph if in_graph else _count
    return count(getattr(loading, loader)(target.with_suffix(".hdf5"), _BATCH, **options))


_BATCH = 256


def _tfds_steps(folder: pathlib.Path) -> Any:
    return _dataset(folder, None).flat_map(lambda episode: episode["steps"])


_same_tfds_steps = functools.cache(_tfds_steps)


def _count(batches: Any) -> Done:
    return Done(sum(len(batch["reward"]) for batch in batches))


# --- datasets built from a Kabuki file, for `benchmarks.build`: here `folder` is the path of that file ---


def build_tfds(folder: pathlib.Path, target: pathlib.Path, episodes: int | None) -> Done:
    """Runs TFDS's `GeneratorBasedBuilder` with the same features, and with the arrays of each episode in memory."""
    import h5py
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    from kabuki_rlds.commands.opened_splits import open_splits

    tfds.disable_progress_bar()

    with open_splits(folder) as opened:
        features = opened.features
    with h5py.File(folder) as file:
        starts = np.append(file["episodes/start"][:episodes], file["episodes/start"][episodes:][:1] if episodes else [])
        stop = int(starts[episodes]) if episodes and len(starts) > episodes else len(file["reward"])
        steps = {name: file[name][:stop] for name in features["steps"].feature}
        metadata = {name: file[f"episodes/metadata/{name}"][:] for name in features if name != "steps"}
    bounds = np.append(starts[:episodes], stop).astype(int)

    with registered.skip_registration():

        class Generated(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self) -> Any:
                return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

            def _split_generators(self, dl_manager: Any) -> Any:
                return {"train": self._generate_examples()}

            def _generate_examples(self) -> Any:
                for i, (a, b) in enumerate(itertools.pairwise(bounds.tolist())):
                    columns = {name: column[a:b] for name, column in steps.items()}
                    yield i, {"steps": columns, **{name: column[i] for name, column in metadata.items()}}

    with tempfile.TemporaryDirectory(dir=target.parent) as data_dir:
        builder = Generated(data_dir=data_dir)
        start = time.perf_counter()
        builder.download_and_prepare()
        return Done(stop, seconds=time.perf_counter() - start)


def build_by_tfds(folder: pathlib.Path, target: pathlib.Path, episodes: int | None) -> Done:
    """Runs the builder that `tfds build builders/kabuki_hdf5` uses."""
    assert episodes is None
    import tensorflow_datasets as tfds

    from builders.kabuki_hdf5.kabuki_hdf5_dataset_builder import Builder
    from kabuki_rlds.commands.tfds_builder import KabukiConfig

    tfds.disable_progress_bar()
    with tempfile.TemporaryDirectory(dir=target.parent) as data_dir:
        start = time.perf_counter()
        Builder(config=KabukiConfig(name="hopper", path=str(folder)), data_dir=data_dir).download_and_prepare()
        return Done(_rows(folder), seconds=time.perf_counter() - start)


def build_project(folder: pathlib.Path, target: pathlib.Path, episodes: int | None) -> Done:
    """Calls `kabuki_rlds.build`."""
    assert episodes is None
    import kabuki_rlds

    with tempfile.TemporaryDirectory(dir=target.parent) as data_dir:
        start = time.perf_counter()
        steps = kabuki_rlds.build(folder, data_dir, name="hopper").num_steps
        return Done(steps, seconds=time.perf_counter() - start)


def _rows(file: pathlib.Path) -> int:
    import h5py

    with h5py.File(file) as f:
        return len(f["reward"])


def _count_in_graph(batches: Any) -> Done:
    import tensorflow as tf

    return Done(int(batches.reduce(0, lambda count, batch: count + tf.shape(batch["reward"])[0])))


METHODS: Mapping[str, Method] = {
    "project": project,
    "project_none": functools.partial(project, compression="none"),
    "project_encoded": functools.partial(project, images="encoded"),
    "two_loops": two_loops,
    "skip_decoding": skip_decoding,
    "parse_floor": parse_floor,
    "decode_each": decode_each,
    "decode_episodes": decode_episodes,
    "build_tfds": build_tfds,
    "build_by_tfds": build_by_tfds,
    "build_project": build_project,
    "robomimic_template": robomimic.template,
    "robomimic_project": robomimic.project,
    "load_tfds": load_tfds,
    "load_tfds_in_graph": load_tfds_in_graph,
    "load_tfds_cached": load_tfds_cached,
    "load_tfds_shuffled": load_tfds_shuffled,
    "load_steps": load,
    "load_steps_in_graph": functools.partial(load, in_graph=True),
    "load_steps_shuffled": functools.partial(load, shuffle=True),
    "load_steps_on_disk": functools.partial(load, shuffle=True, on_disk=True),
    "load_transitions": functools.partial(load, loader="load_transitions"),
    "load_transitions_shuffled": functools.partial(load, loader="load_transitions", shuffle=True),
    "load_steps_numpy": functools.partial(load, as_numpy=True),
    "load_steps_numpy_shuffled": functools.partial(load, as_numpy=True, shuffle=True),
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
    """A dataset with the encoded JPEG images of each episode."""
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
