"""Compares the time to build an RLDS dataset from robomimic's HDF5 with that of a typical TFDS builder.

    python -m benchmarks.demonstrations [--demos 200] [--rounds 3] [--data-dir DIR]

The file has two 84 x 84 cameras, a state and actions, with 100 steps per demonstration.
The typical builder makes a dict for each step, which TFDS encodes one after the other.
Both methods store the images as PNG. `benchmarks/README.md` has the results.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import tempfile
from typing import Any

from benchmarks import generate
from benchmarks.robomimic import STEPS, make
from benchmarks.worker import Worker

#: The typical builder runs on 1 / SHARE of the demonstrations; its time per step is constant.
SHARE = 10
#: Method to (title, whether it runs on all demonstrations).
METHODS = {
    "robomimic_template": ("a typical TFDS builder", False),
    "robomimic_project": ("kabuki_rlds.build", True),
}


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demonstrations", description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", type=pathlib.Path, default=generate.DATA_DIR, help="folder of the files")
    parser.add_argument("--demos", type=int, default=200, help="number of demonstrations")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each method")
    arguments = parser.parse_args()
    folder = arguments.data_dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.demos < SHARE:
        parser.error(f"--demos must be at least {SHARE}")
    sizes = {demos: folder / f"robomimic_{demos}.hdf5" for demos in (arguments.demos, arguments.demos // SHARE)}
    with tempfile.TemporaryDirectory(dir=folder) as work:
        workers: dict[str, Worker] = {}
        runs: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
        # A child process generates the files, to keep this one small: its size is the start of the workers' peak.
        if os.fork() == 0:
            for demos, path in sizes.items():
                make(path, demos)
            os._exit(0)
        if os.wait()[1]:
            raise SystemExit("the files could not be generated")
        file, few = sizes[arguments.demos], arguments.demos // SHARE
        for method, (_, takes_all) in METHODS.items():
            workers[method] = Worker(method, file, pathlib.Path(work) / method)
            # A warm-up run, which is not counted.
            workers[method].run(None if takes_all else 2)
        for _ in range(arguments.rounds):
            for method, (_, takes_all) in METHODS.items():
                runs[method].append(workers[method].run(None if takes_all else few))
        for worker in workers.values():
            worker.close()
        small = Worker("robomimic_project", sizes[few], pathlib.Path(work) / "small")
        peak_of_few = small.run(None)["peak"]
        small.close()
    size = file.stat().st_size / 1e6
    print(f"{os.cpu_count()} cores; {arguments.demos} demonstrations of {STEPS} steps, {size:.0f} MB;")
    print(f"median of {arguments.rounds} interleaved runs after a warm-up run\n")
    print("| robomimic to RLDS | steps/s | speed-up | peak memory, MB |\n| --- | ---: | ---: | ---: |")
    speeds = {m: statistics.median(run["steps"] / run["seconds"] for run in done) for m, done in runs.items()}
    for method, (title, _) in METHODS.items():
        peak = max(run["peak"] for run in runs[method]) / 1e6
        times = speeds[method] / speeds["robomimic_template"]
        print(f"| {title} | {speeds[method]:,.0f} | {times:.1f} | {peak:.0f} |")
    print(f"\nThe typical builder ran on {few} demonstrations, this project's builder on all of them.")
    print(f"The peak memory of kabuki_rlds.build on {few} demonstrations is {peak_of_few / 1e6:.0f} MB.")


if __name__ == "__main__":
    main()
