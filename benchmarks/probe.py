"""Measures what it costs to open HDF5 files in a worker process first.

    python -m benchmarks.probe [--files 5000] [--rounds 5]

Each case runs with files that were not probed before, and with files whose verdict is already known. Each run is a
new process. `benchmarks/README.md` has the results.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

import h5py
import numpy as np

#: Steps of a large file: 1 GB of images.
IMAGES = 20_000

_START = """
import time, sys, logging
import kabuki_rlds, kabuki_rlds.loading
from kabuki_rlds.formats.safe_hdf5 import verdicts
from kabuki_rlds.formats.safe_hdf5.open_file import open_file
logging.getLogger("kabuki_rlds").setLevel(logging.ERROR)
is_known, *paths = sys.argv[1:]
if is_known == "known":
    for path in paths:
        verdicts.trust(path)
start = time.perf_counter()
"""
_END = "\nprint(time.perf_counter() - start)\n"

#: Name of each case to the timed code.
CASES = {
    "`inspect` of a small file": "kabuki_rlds.inspect(paths[0])",
    "opening {files:,} small files": "for path in paths: open_file(path).close()",
    "first shuffled batch of a 1 GB file": "next(iter(kabuki_rlds.load_steps(paths[0], batch_size=32, as_numpy=True)))",
}


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probe", description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=5000, help="number of small files")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each case")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        small = [pathlib.Path(folder, f"{i}.hdf5") for i in range(arguments.files)]
        for path in small:
            write(path, 50, (8, 8, 3))
        large = pathlib.Path(folder, "large.hdf5")
        write(large, IMAGES, (128, 128, 3))
        seconds = {(case, state): [] for case in CASES for state in ("known", "new")}  # type: dict[tuple[str, str], list[float]]
        for _ in range(arguments.rounds):
            for case, state in seconds:
                paths = small if "files" in case else [large] if "GB" in case else small[:1]
                seconds[case, state].append(run(CASES[case], state, paths))
    print(f"{os.cpu_count()} cores; medians of {arguments.rounds} interleaved runs\n")
    print("| case | without probe, s | with probe, s | ratio |\n| --- | ---: | ---: | ---: |")
    for case in CASES:
        known, new = (statistics.median(seconds[case, state]) for state in ("known", "new"))
        print(f"| {case.format(files=arguments.files)} | {known:.3f} | {new:.3f} | {new / known:.2f} |")


def run(code: str, state: str, paths: list[pathlib.Path]) -> float:
    """Returns the seconds that the code takes in a new process."""
    command = [sys.executable, "-c", _START + code + _END, state, *map(str, paths)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def write(path: pathlib.Path, steps: int, image: tuple[int, ...]) -> None:
    """Writes a Kabuki file of one episode with h5py."""
    is_last = np.zeros(steps, bool)
    is_last[-1] = True
    with h5py.File(path, "w") as file:
        file.create_dataset("observation/image", (steps, *image), np.uint8, chunks=(min(steps, 4), *image))
        for start in range(0, steps, 100):
            file["observation/image"][start : start + 100] = np.ones((min(steps - start, 100), *image), np.uint8)
        file["observation/state"] = np.zeros((steps, 11), np.float32)
        file["action"] = np.zeros((steps, 3), np.float32)
        for name in ("reward", "discount"):
            file[name] = np.zeros(steps, np.float32)
        file["is_first"], file["is_last"], file["is_terminal"] = is_last[::-1], is_last, is_last


if __name__ == "__main__":
    main()
