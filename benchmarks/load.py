"""Compares the speed of the training loaders with that of TFDS.

    python -m benchmarks.load [--scale 0.05] [--data-dir DIR] [--rounds 3]

Prints a table with steps per second, the ratio to TFDS and the peak memory, and whether
each target is met. `benchmarks/README.md` describes the measurements.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import statistics
import subprocess
import sys
from typing import Any

from benchmarks import generate
from benchmarks.worker import Worker

BATCH_SIZE = 256


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      method: name in `benchmarks.methods.METHODS`.
      title: name in the table.
      baseline: the method that its speed is divided by.
    """

    method: str
    title: str
    baseline: str


ROWS = (
    Row("load_tfds", "TFDS, flat_map(steps).batch(256)", "load_tfds"),
    Row("load_tfds_in_graph", "TFDS, iterated in TensorFlow's graph", "load_tfds_in_graph"),
    Row(
        "load_tfds_cached",
        "TFDS, second and later iterations, with the records cached in memory",
        "load_tfds",
    ),
    Row("load_tfds_shuffled", "TFDS, flat_map(steps).shuffle(100_000).batch(256)", "load_tfds_shuffled"),
    Row("load_steps", "load_steps", "load_tfds"),
    Row("load_steps_in_graph", "load_steps, iterated in TensorFlow's graph", "load_tfds_in_graph"),
    Row("load_steps_shuffled", "load_steps, shuffled, loaded into memory", "load_tfds_shuffled"),
    Row("load_steps_on_disk", "load_steps, shuffled, from disk: reads 16 MB of 68 MB ahead", "load_tfds_shuffled"),
    Row("load_transitions", "load_transitions", "load_tfds"),
    Row("load_transitions_shuffled", "load_transitions, shuffled, loaded into memory", "load_tfds_shuffled"),
    Row("load_steps_numpy", "load_steps, as_numpy", "load_tfds"),
    Row("load_steps_numpy_shuffled", "load_steps, as_numpy, shuffled, loaded into memory", "load_tfds_shuffled"),
)
#: (method, baseline, required ratio of their speeds)
TARGETS = (
    ("load_steps", "load_tfds", 10.0),
    ("load_steps_shuffled", "load_tfds_shuffled", 5.0),
    ("load_transitions", "load_steps", 0.5),
    ("load_transitions_shuffled", "load_steps_shuffled", 0.5),
)


def time_all(folder: pathlib.Path, file: pathlib.Path, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Runs all rows `rounds` times, interleaved, each in its own process, after a warm-up run."""
    workers: dict[str, Worker] = {}
    results: dict[str, list[dict[str, Any]]] = {row.method: [] for row in ROWS}
    try:
        for row in ROWS:
            # A worker deletes its target, so the target is not the file that it reads.
            workers[row.method] = Worker(row.method, folder, file.with_suffix(f".{row.method}"))
            workers[row.method].run(None)
        for _ in range(rounds):
            for row in ROWS:
                results[row.method].append(workers[row.method].run(None))
    finally:
        for worker in workers.values():
            worker.close()
    return results


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", type=pathlib.Path, default=generate.DATA_DIR, help="folder of the datasets")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="0.05 takes a twentieth of the steps, for a quick test"
    )
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each method")
    arguments = parser.parse_args()
    data_dir = arguments.data_dir.resolve()
    folder = generate.folder(data_dir, "hopper", arguments.scale)
    file = folder.parent.parent / "out" / "hopper.hdf5"
    _prepare(data_dir, arguments.scale, folder, file)

    print(f"{os.cpu_count()} cores; median of {arguments.rounds} interleaved runs after a warm-up run\n")
    results = time_all(folder, file, arguments.rounds)
    rates = {
        method: runs[0]["steps"] / statistics.median(run["seconds"] for run in runs) for method, runs in results.items()
    }
    print("| hopper, batches of 256 | steps/s | ratio to TFDS | CPU seconds | peak memory, MB |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for row in ROWS:
        cpu = statistics.median(run["cpu"] for run in results[row.method])
        peak = max(run["peak"] for run in results[row.method])
        ratio = rates[row.method] / rates[row.baseline]
        print(f"| {row.title} | {rates[row.method]:,.0f} | {ratio:.2f} | {cpu:.2f} | {peak / 1e6:.0f} |")
    titles = {row.method: row.title for row in ROWS}
    print("\n| target: speed ratio | wanted | measured | |")
    print("| --- | ---: | ---: | --- |")
    for first, second, wanted in TARGETS:
        measured = rates[first] / rates[second]
        met = "met" if measured >= wanted else "NOT met"
        print(f"| {titles[first]} / {titles[second]} | at least {wanted:g} | {measured:.2f} | {met} |")


def _prepare(data_dir: pathlib.Path, scale: float, folder: pathlib.Path, file: pathlib.Path) -> None:
    """Generates the dataset and its Kabuki file in separate processes, to keep this one small."""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    root = pathlib.Path(__file__).parent.parent
    made = [[sys.executable, "-m", "benchmarks.generate", "--data-dir", str(data_dir), "--scale", str(scale)]]
    file.parent.mkdir(exist_ok=True)
    made.append([sys.executable, "-m", "kabuki_rlds.cli", "convert", str(folder), str(file), "--overwrite", "--quiet"])
    for command in made:
        subprocess.run(command, check=True, env=environment, cwd=root)


if __name__ == "__main__":
    main()
