"""Times the training loaders beside TFDS, on the same steps.

    python -m benchmarks.load [--scale 0.05] [--data-dir DIR] [--rounds 3]

Prints a table with steps a second, the ratio to TFDS and the peak memory, and whether
each target is met. `benchmarks/README.md` says what is measured.
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
      title: what the table calls it.
      beside: the method that its speed is divided by.
    """

    method: str
    title: str
    beside: str


ROWS = (
    Row("load_tfds", "TFDS, flat_map(steps).batch(256)", "load_tfds"),
    Row("load_tfds_in_graph", "TFDS, taken by a loop in TensorFlow's graph", "load_tfds_in_graph"),
    Row(
        "load_tfds_cached",
        "TFDS, the same dataset from the second time on, of which it holds the records in memory",
        "load_tfds",
    ),
    Row("load_tfds_shuffled", "TFDS, flat_map(steps).shuffle(100_000).batch(256)", "load_tfds_shuffled"),
    Row("load_steps", "load_steps", "load_tfds"),
    Row("load_steps_in_graph", "load_steps, taken by a loop in TensorFlow's graph", "load_tfds_in_graph"),
    Row("load_steps_shuffled", "load_steps, shuffled, held in memory", "load_tfds_shuffled"),
    Row("load_steps_on_disk", "load_steps, shuffled, on disk: 16 MB of 68 MB looked ahead", "load_tfds_shuffled"),
    Row("load_transitions", "load_transitions", "load_tfds"),
    Row("load_transitions_shuffled", "load_transitions, shuffled, held in memory", "load_tfds_shuffled"),
    Row("load_steps_numpy", "load_steps, as_numpy", "load_tfds"),
    Row("load_steps_numpy_shuffled", "load_steps, as_numpy, shuffled, held in memory", "load_tfds_shuffled"),
)
#: (first, second, how many times as fast the first is to be)
TARGETS = (
    ("load_steps", "load_tfds", 10.0),
    ("load_steps_shuffled", "load_tfds_shuffled", 5.0),
    ("load_transitions", "load_steps", 0.5),
    ("load_transitions_shuffled", "load_steps_shuffled", 0.5),
)


def time_all(folder: pathlib.Path, file: pathlib.Path, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Runs every row `rounds` times in turn, each in a process of its own, after a run that is not counted."""
    workers: dict[str, Worker] = {}
    results: dict[str, list[dict[str, Any]]] = {row.method: [] for row in ROWS}
    try:
        for row in ROWS:
            # A worker removes its target, so the file that is read stands beside it.
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
    parser.add_argument("--data-dir", type=pathlib.Path, default=generate.DATA_DIR, help="where the datasets are")
    parser.add_argument("--scale", type=float, default=1.0, help="0.05 takes a twentieth of the steps, for a quick try")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each method")
    arguments = parser.parse_args()
    data_dir = arguments.data_dir.resolve()
    folder = generate.folder(data_dir, "hopper", arguments.scale)
    file = folder.parent.parent / "out" / "hopper.hdf5"
    _prepare(data_dir, arguments.scale, folder, file)

    print(f"{os.cpu_count()} cores; median of {arguments.rounds} runs in turn, after one that is not counted\n")
    results = time_all(folder, file, arguments.rounds)
    rates = {
        method: runs[0]["steps"] / statistics.median(run["seconds"] for run in runs) for method, runs in results.items()
    }
    print("| hopper, batches of 256 | steps/s | ratio to TFDS | CPU seconds | peak memory, MB |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for row in ROWS:
        cpu = statistics.median(run["cpu"] for run in results[row.method])
        peak = max(run["peak"] for run in results[row.method])
        ratio = rates[row.method] / rates[row.beside]
        print(f"| {row.title} | {rates[row.method]:,.0f} | {ratio:.2f} | {cpu:.2f} | {peak / 1e6:.0f} |")
    titles = {row.method: row.title for row in ROWS}
    print("\n| target: times as fast | wanted | measured | |")
    print("| --- | ---: | ---: | --- |")
    for first, second, wanted in TARGETS:
        measured = rates[first] / rates[second]
        met = "met" if measured >= wanted else "NOT met"
        print(f"| {titles[first]} / {titles[second]} | at least {wanted:g} | {measured:.2f} | {met} |")


def _prepare(data_dir: pathlib.Path, scale: float, folder: pathlib.Path, file: pathlib.Path) -> None:
    """Makes the dataset and its Kabuki file, in processes of their own, so that this one stays small."""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    root = pathlib.Path(__file__).parent.parent
    made = [[sys.executable, "-m", "benchmarks.generate", "--data-dir", str(data_dir), "--scale", str(scale)]]
    file.parent.mkdir(exist_ok=True)
    made.append([sys.executable, "-m", "kabuki_rlds.cli", "convert", str(folder), str(file), "--overwrite", "--quiet"])
    for command in made:
        subprocess.run(command, check=True, env=environment, cwd=root)


if __name__ == "__main__":
    main()
