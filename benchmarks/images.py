"""Compares the speed of training from images with plain h5py, with other pipelines, and with decoding alone.

    python -m benchmarks.images [--scale 0.1] [--rounds 5] [--data-dir DIR]

Prints a table for images of 128x128 and of 640x480 pixels, and whether each target is met. The row of PyTorch needs
PyTorch, and is left out without it. `benchmarks/README.md` describes the measurements.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import importlib.util
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks import generate

LENGTH = 16
WINDOWS = 16
STEPS = 256
#: Batches that are timed after the first one.
BATCHES = 100
IMAGE = "observation/image"
FIELDS = [IMAGE, "action"]
#: Name of a file to the options of `convert`.
FILES = {
    "arrays": {"images": "arrays", "compression": "none"},
    "gzip": {"images": "arrays", "compression": "gzip"},
    "encoded": {"images": "encoded"},
}


@dataclasses.dataclass(frozen=True)
class Measured:
    """Items per second after the first batch, and the seconds until the first batch."""

    rate: float
    first: float


def timed(batches: Iterator[int], start: float) -> Measured:
    """Times an iterator over the numbers of items of batches, which was created at `start`."""
    next(batches)
    begin = time.perf_counter()
    items = sum(itertools.islice(batches, BATCHES))
    return Measured(items / (time.perf_counter() - begin), begin - start)


# --- methods: each takes the folder of the files and the folder of the RLDS dataset ---


def windows(file: str, folder: pathlib.Path, _: pathlib.Path) -> Measured:
    """Shuffled windows."""
    import kabuki_rlds

    start = time.perf_counter()
    loader = kabuki_rlds.load_windows(
        folder / f"{file}.hdf5", WINDOWS, LENGTH, shuffle=True, fields=FIELDS, epochs=None, as_numpy=True
    )
    return timed((len(batch["action"]) for batch in loader), start)


def steps(file: str, folder: pathlib.Path, _: pathlib.Path) -> Measured:
    """Shuffled steps."""
    import kabuki_rlds

    start = time.perf_counter()
    loader = kabuki_rlds.load_steps(
        folder / f"{file}.hdf5", STEPS, shuffle=True, fields=FIELDS, epochs=None, as_numpy=True
    )
    return timed((len(batch["action"]) for batch in loader), start)


def indexed(file: str, folder: pathlib.Path, _: pathlib.Path) -> Measured:
    """Shuffled windows by index, 256 at a time."""
    import kabuki_rlds

    start = time.perf_counter()
    data = kabuki_rlds.dataset(folder / f"{file}.hdf5", fields=FIELDS, offsets=dict.fromkeys(FIELDS, range(LENGTH)))
    rng = np.random.default_rng(0)
    batches = (len(data.__getitems__(rng.integers(0, len(data), WINDOWS))) for _ in itertools.count())
    return timed(batches, start)


def plain_h5py(file: str, folder: pathlib.Path, _: pathlib.Path, length: int = LENGTH, size: int = WINDOWS) -> Measured:
    """Slices of an h5py dataset at random, in one thread."""
    import h5py

    start = time.perf_counter()
    with h5py.File(folder / f"{file}.hdf5") as opened:
        image, action = opened[IMAGE], opened["action"]
        rng = np.random.default_rng(0)

        def batches() -> Iterator[int]:
            while True:
                rows = rng.integers(0, len(image) - length, size).tolist()
                np.stack([image[row : row + length] for row in rows])
                np.stack([action[row : row + length] for row in rows])
                yield size

        return timed(batches(), start)


def torch_h5py(file: str, folder: pathlib.Path, _: pathlib.Path) -> Measured:
    """A map-style dataset over h5py in two worker processes, as robomimic has it."""
    import h5py
    import torch

    class Windows(torch.utils.data.Dataset[Any]):
        opened: Any = None

        def __len__(self) -> int:
            return count

        def __getitem__(self, row: int) -> dict[str, np.ndarray]:
            if self.opened is None:
                self.opened = h5py.File(folder / f"{file}.hdf5")
            return {name: self.opened[name][row : row + LENGTH] for name in FIELDS}

    with h5py.File(folder / f"{file}.hdf5") as opened:
        count = len(opened["action"]) - LENGTH
    start = time.perf_counter()
    sampler = torch.utils.data.RandomSampler(Windows(), replacement=True, num_samples=WINDOWS * (BATCHES + 10))
    loader = torch.utils.data.DataLoader(Windows(), WINDOWS, sampler=sampler, num_workers=2)
    return timed((len(batch["action"]) for batch in loader), start)


def octo(_: str, __: pathlib.Path, dataset: pathlib.Path) -> Measured:
    """Single steps as Octo and OpenVLA read them: SkipDecoding, a shuffle buffer, and decoding in parallel."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(dataset)
    skip = {"steps": {"observation": {"image": tfds.decode.SkipDecoding()}}}
    start = time.perf_counter()
    episodes = builder.as_dataset(split="train", decoders=skip, shuffle_files=True).repeat()
    each = episodes.flat_map(
        lambda episode: episode["steps"].map(
            lambda step: {"image": step["observation"]["image"], "action": step["action"]}
        )
    )
    decoded = each.shuffle(10_000).map(
        lambda step: {**step, "image": tf.io.decode_image(step["image"], expand_animations=False)},
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    return timed((len(batch["action"]) for batch in decoded.batch(STEPS).prefetch(2)), start)


def floor_simplejpeg(file: str, folder: pathlib.Path, _: pathlib.Path) -> Measured:
    """Decoding alone, in a thread for each core."""
    import simplejpeg

    return decoding(lambda encoded: simplejpeg.decode_jpeg(encoded, fastdct=False, fastupsample=False), file, folder)


def floor_tensorflow(file: str, folder: pathlib.Path, _: pathlib.Path) -> Measured:
    """Decoding alone with TensorFlow, in a thread for each core."""
    import tensorflow as tf

    return decoding(lambda encoded: tf.io.decode_jpeg(encoded).numpy(), file, folder)


def decoding(decode: Callable[[bytes], np.ndarray], file: str, folder: pathlib.Path) -> Measured:
    """Frames per second of a decoder. The files are in memory before the clock starts."""
    import h5py

    with h5py.File(folder / f"{file}.hdf5") as opened:
        encoded = [value.tobytes() for value in opened[IMAGE][: 8 * STEPS]]
    decode(encoded[0])
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        start = time.perf_counter()
        parts = [encoded[i :: os.cpu_count() or 1] for i in range(os.cpu_count() or 1)]
        list(threads.map(lambda part: [decode(each) for each in part] and None, parts))
    return Measured(len(encoded) / (time.perf_counter() - start), 0)


#: Title of each row to (function, file, unit).
ROWS: dict[str, tuple[Callable[[str, pathlib.Path, pathlib.Path], Measured], str, str]] = {
    **{f"load_windows, {file}": (windows, file, "windows") for file in FILES},
    **{f"dataset, {file}": (indexed, file, "windows") for file in FILES},
    **{f"plain h5py, one thread, {file}": (plain_h5py, file, "windows") for file in ("arrays", "gzip")},
    **{f"PyTorch over h5py, 2 workers, {file}": (torch_h5py, file, "windows") for file in ("arrays", "gzip")},
    **{f"load_steps, {file}": (steps, file, "steps") for file in FILES},
    "Octo's pipeline": (octo, "", "steps"),
    "floor: decode with simplejpeg": (floor_simplejpeg, "encoded", "frames"),
    "floor: decode with TensorFlow": (floor_tensorflow, "encoded", "frames"),
}
#: (row, row that it is compared with, frames in an item of the first, wanted ratio)
TARGETS = (
    ("load_windows, arrays", "plain h5py, one thread, arrays", 1, 1.2),
    ("load_windows, gzip", "plain h5py, one thread, gzip", 1, 3.0),
    ("load_windows, encoded", "floor: decode with simplejpeg", LENGTH, 0.9),
    ("load_steps, encoded", "floor: decode with simplejpeg", 1, 0.9),
    ("dataset, arrays", "load_windows, arrays", 1, 0.9),
    ("dataset, gzip", "load_windows, gzip", 1, 0.9),
    ("dataset, encoded", "load_windows, encoded", 1, 0.9),
)
FIRST_BATCH_SECONDS = 0.3


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.images", description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", type=pathlib.Path, default=generate.DATA_DIR, help="folder of the datasets")
    parser.add_argument("--scale", type=float, default=1.0, help="0.1 takes a tenth of the steps, for a quick test")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each row, each in a new process")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--dataset", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        function, file, _ = ROWS[arguments.row]
        print(json.dumps(dataclasses.astuple(function(file, arguments.folder, arguments.dataset))))
        return
    print(f"{os.cpu_count()} cores; medians of {arguments.rounds} interleaved runs\n")
    for name, title in (("camera", "128x128"), ("camera_large", "640x480")):
        dataset = generate.generate_one(arguments.data_dir.resolve(), name, arguments.scale)
        table(title, convert(dataset), dataset, arguments.rounds)


def convert(dataset: pathlib.Path) -> pathlib.Path:
    """Converts the RLDS dataset to the files of `FILES`, and returns their folder."""
    folder = dataset.parent.parent / "out" / dataset.parent.name
    folder.mkdir(parents=True, exist_ok=True)
    for file, options in FILES.items():
        if not (folder / f"{file}.hdf5").exists():
            flags = [word for option, value in options.items() for word in (f"--{option}", value)]
            command = [sys.executable, "-m", "kabuki_rlds.cli", "convert", dataset, folder / f"{file}.hdf5", *flags]
            subprocess.run([*command, "--quiet"], check=True)
    return folder


def table(title: str, folder: pathlib.Path, dataset: pathlib.Path, rounds: int) -> None:
    """Runs all rows, and prints their table and the targets."""
    rows = [row for row in ROWS if "PyTorch" not in row or importlib.util.find_spec("torch")]
    runs: dict[str, list[Measured]] = {row: [] for row in rows}
    for _ in range(rounds):
        for row in rows:
            command = [
                sys.executable,
                "-m",
                "benchmarks.images",
                "--row",
                row,
                "--folder",
                folder,
                "--dataset",
                dataset,
            ]
            environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            runs[row].append(Measured(*json.loads(done.stdout)))
    sizes = ", ".join(f"{file} {(folder / f'{file}.hdf5').stat().st_size / 1e6:,.0f} MB" for file in FILES)
    print(f"| {title} ({sizes}) | items/s | first batch after, s |\n| --- | ---: | ---: |")
    rates = {row: statistics.median(each.rate for each in runs[row]) for row in rows}
    firsts = {row: statistics.median(each.first for each in runs[row]) for row in rows}
    for row in rows:
        first = f"{firsts[row]:.2f}" if firsts[row] else ""
        print(f"| {row} | {rates[row]:,.0f} {ROWS[row][2]} | {first} |")
    print("\n| target | wanted | measured | |\n| --- | ---: | ---: | --- |")
    for row, other, frames, wanted in TARGETS:
        measured = rates[row] * frames / rates[other]
        print(f"| {row} / {other} | at least {wanted:g} | {measured:.2f} | {met(measured >= wanted)} |")
    for row in (f"load_windows, {file}" for file in FILES):
        is_met = firsts[row] <= FIRST_BATCH_SECONDS
        print(f"| {row}: first batch, s | at most {FIRST_BATCH_SECONDS:g} | {firsts[row]:.2f} | {met(is_met)} |")
    print()


def met(is_met: bool) -> str:
    """The last column of a target."""
    return "met" if is_met else "NOT met"


if __name__ == "__main__":
    main()
