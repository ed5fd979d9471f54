"""Compares the time to build an RLDS dataset from a Kabuki file with that of TFDS's builder.

    python -m benchmarks.build [--scale 0.05] [--data-dir DIR] [--rounds 3]

Prints a table of times, the peak memory for the dataset and for 10 copies of it, and
whether the target is met. `benchmarks/README.md` describes the measurements.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks import generate
from benchmarks.worker import Worker

#: The number of episodes for TFDS's builder at scale 1: about 50,000 steps.
SAMPLE = 1000
#: The required speed-up of `tfds build` with this project's builder over TFDS's builder.
TARGET = 20.0

BUILDER = pathlib.Path(__file__).parent.parent / "builders" / "kabuki_hdf5"
TITLES = {
    "build_tfds": "TFDS's GeneratorBasedBuilder (sample)",
    "build_by_tfds": "this project's TFDS builder",
    "build_project": "kabuki_rlds.build",
}


def time_all(file: pathlib.Path, work: pathlib.Path, rounds: int, scale: float) -> dict[str, tuple[float, int]]:
    """Runs each method in its own process. Returns method to (median seconds, steps per run)."""
    sample = max(3, round(SAMPLE * scale))
    episodes = {"build_tfds": sample, "build_by_tfds": None, "build_project": None}
    workers: dict[str, Worker] = {}
    runs: dict[str, list[dict[str, Any]]] = {method: [] for method in episodes}
    try:
        for method, few in episodes.items():
            workers[method] = Worker(method, file, work / method)
            workers[method].run(few and 2)
        for _ in range(rounds):
            for method, few in episodes.items():
                runs[method].append(workers[method].run(few))
    finally:
        for worker in workers.values():
            worker.close()
    return {method: (statistics.median(r["seconds"] for r in done), done[0]["steps"]) for method, done in runs.items()}


def time_command(command: list[str], rounds: int) -> float:
    """The median run time of a command in seconds, including the start of the process."""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env=environment)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def peak_memory(file: pathlib.Path, work: pathlib.Path) -> int:
    """The peak memory in bytes of a new process that builds the dataset once."""
    worker = Worker("build_project", file, work / "memory")
    try:
        peak: int = worker.run(None)["peak"]
        return peak
    finally:
        worker.close()


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.build", description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", type=pathlib.Path, default=generate.DATA_DIR, help="folder of the datasets")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="0.05 takes a twentieth of the steps, for a quick test"
    )
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each method")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    arguments = parser.parse_args()
    data_dir, scale = arguments.data_dir.resolve(), arguments.scale
    names = ["hopper"] if arguments.no_memory else ["hopper", f"hopper_x{generate.TIMES}"]
    with tempfile.TemporaryDirectory(dir=_generate(data_dir, scale)) as temporary:
        work = pathlib.Path(temporary)
        files = {name: _convert(generate.folder(data_dir, name, scale), work / f"{name}.hdf5") for name in names}
        file = files["hopper"]

        print(f"{os.cpu_count()} cores; median of {arguments.rounds} interleaved runs after a warm-up run")
        times = time_all(file, work, arguments.rounds, scale)
        seconds, steps = times["build_tfds"]
        total = times["build_project"][1]
        tfds_seconds = seconds * total / steps
        print("\n| hopper | steps/s | seconds | speed-up over TFDS |\n| --- | ---: | ---: | ---: |")
        for method, (took, done) in times.items():
            whole = took * total / done
            print(f"| {TITLES[method]} | {total / whole:,.0f} | {whole:.2f} | {tfds_seconds / whole:.1f} |")
        config = json.dumps({"name": "hopper", "path": str(file)})
        commands = {
            "the command `tfds build`, including process start": [
                *(sys.executable, "-m", "tensorflow_datasets.scripts.cli.main", "build", str(BUILDER), "--overwrite"),
                *("--config", config, "--data_dir", str(work / "by_tfds")),
            ],
            "the command `kabuki-rlds build`, including process start": [
                *(sys.executable, "-m", "kabuki_rlds.cli", "build", str(file), "--overwrite", "--quiet"),
                *("--out", str(work / "by_us")),
            ],
        }
        for title, command in commands.items():
            took = time_command(command, arguments.rounds)
            print(f"| {title} | {total / took:,.0f} | {took:.2f} | {tfds_seconds / took:.1f} |")
        print(f"\nTFDS's builder ran on {steps:,} steps; its time for all {total:,} is extrapolated.")

        if not arguments.no_memory:
            once, times_more = (peak_memory(files[name], work) for name in names)
            print(f"\n| peak memory, MB | 1x | {generate.TIMES}x | ratio |\n| --- | ---: | ---: | ---: |")
            ratio = times_more / once
            print(f"| kabuki_rlds.build | {once / 1e6:.0f} | {times_more / 1e6:.0f} | {ratio:.3f} |")

        measured = tfds_seconds / times["build_by_tfds"][0]
        met = "met" if measured >= TARGET else "NOT met"
        print("\n| target | wanted | measured | |\n| --- | ---: | ---: | --- |")
        print(f"| hopper: speed-up over TFDS's builder | at least {TARGET:g} | {measured:.1f} | {met} |")


def _generate(data_dir: pathlib.Path, scale: float) -> pathlib.Path:
    """Generates the datasets in a separate process, to keep this one small. Returns a folder for temporary files."""
    command = [sys.executable, "-m", "benchmarks.generate", "--data-dir", str(data_dir), "--scale", str(scale)]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run(command, check=True, env=environment, cwd=pathlib.Path(__file__).parent.parent)
    return generate.folder(data_dir, "hopper", scale).parent.parent


def _convert(folder: pathlib.Path, file: pathlib.Path) -> pathlib.Path:
    command = [sys.executable, "-m", "kabuki_rlds.cli", "convert", str(folder), str(file), "--quiet"]
    subprocess.run(command, check=True)
    return file


if __name__ == "__main__":
    main()
