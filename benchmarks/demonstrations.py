"""Times building an RLDS dataset from robomimic-shaped HDF5, beside a builder as labs write it.

    python -m benchmarks.demonstrations [--demos 200] [--rounds 3] [--data-dir DIR]

The file has two cameras of 84 x 84, a state and actions, 100 steps a demonstration. A
lab's builder goes by the field's template: it opens a demonstration, makes a dict of
each step, and TFDS encodes one after the other. Both store the pictures as PNG.
`benchmarks/README.md` says what was measured.
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

#: The lab's builder gets one of so many demonstrations; it takes a time for each step.
SHARE = 10
#: Titles of the methods, and whether each takes all demonstrations.
METHODS = {
    "robomimic_template": ("a builder by the template, in `tfds`", False),
    "robomimic_project": ("kabuki_rlds.build", True),
}


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demonstrations", description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", type=pathlib.Path, default=generate.DATA_DIR, help="where the files are")
    parser.add_argument("--demos", type=int, default=200, help="how many demonstrations there are")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each method")
    arguments = parser.parse_args()
    folder = arguments.data_dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.demos < SHARE:
        parser.error(f"--demos is {SHARE} or more")
    sizes = {demos: folder / f"robomimic_{demos}.hdf5" for demos in (arguments.demos, arguments.demos // SHARE)}
    with tempfile.TemporaryDirectory(dir=folder) as work:
        workers: dict[str, Worker] = {}
        runs: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
        # The files are made by a process of its own, so that this one, whose size its children begin with, stays small.
        if os.fork() == 0:
            for demos, path in sizes.items():
                make(path, demos)
            os._exit(0)
        if os.wait()[1]:
            raise SystemExit("the files could not be made")
        file, few = sizes[arguments.demos], arguments.demos // SHARE
        for method, (_, takes_all) in METHODS.items():
            workers[method] = Worker(method, file, pathlib.Path(work) / method)
            # Not counted: it warms up what is to be timed.
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
    print(f"median of {arguments.rounds} runs in turn, after one that is not counted\n")
    print("| robomimic to RLDS | steps/s | times as fast | peak memory, MB |\n| --- | ---: | ---: | ---: |")
    speeds = {m: statistics.median(run["steps"] / run["seconds"] for run in done) for m, done in runs.items()}
    for method, (title, _) in METHODS.items():
        peak = max(run["peak"] for run in runs[method]) / 1e6
        times = speeds[method] / speeds["robomimic_template"]
        print(f"| {title} | {speeds[method]:,.0f} | {times:.1f} | {peak:.0f} |")
    print(f"\nThe template's builder took {few} demonstrations in each run, this project's all of them.")
    print(f"kabuki_rlds.build of {few} demonstrations held {peak_of_few / 1e6:.0f} MB at the most.")


if __name__ == "__main__":
    main()
