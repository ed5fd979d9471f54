"""Compares the conversion times of this project, of other methods, and of a lower bound (floor).

    python -m benchmarks.convert [--scale 0.05] [--data-dir DIR] [--rounds 3] [--no-memory]

Prints a table for each dataset, the peak memory for the dataset and for 10 copies of it,
and whether each target is met. `benchmarks/README.md` describes the measurements.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import statistics
from typing import Any

from benchmarks import generate
from benchmarks.worker import Worker


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
      method: name in `benchmarks.methods.METHODS`.
      title: name in the table.
      sample: for slow methods, the number of episodes per run at scale 1. The time for all
        episodes is then extrapolated.
    """

    method: str
    title: str
    sample: int | None = None

    def episodes(self, scale: float) -> int | None:
        """The number of episodes per run; None means all."""
        return None if self.sample is None else max(3, round(self.sample * scale))


HOPPER = (
    Row("project", "this project, gzip"),
    Row("two_loops", "two Python loops, h5py gzip", sample=400),
    Row("skip_decoding", "SkipDecoding, h5py gzip"),
    Row("parse_floor", "floor: one parse_example, nothing written"),
)
CAMERA = (
    Row("project_none", "this project, images decoded, no compression"),
    Row("project", "this project, images decoded, gzip"),
    Row("project_encoded", "this project, --images encoded"),
    Row("two_loops", "two Python loops, h5py gzip", sample=20),
    Row("skip_decoding", "SkipDecoding, map_fn of the decoder, h5py gzip", sample=20),
    Row("decode_each", "floor: decode in a map over images, nothing written"),
    Row("decode_episodes", "floor: decode in a map over episodes, nothing written"),
)
MEMORY = (("hopper", "project"), ("camera", "project_none"), ("camera", "project"))


@dataclasses.dataclass(frozen=True)
class Timing:
    """Medians over the runs of a row, scaled to all steps of the dataset.

    Attributes:
      seconds: elapsed time.
      cpu: CPU time in seconds.
      rate: steps per second.
      reading: the fraction of the time that was spent reading; None if it was not measured.
      sampled: the number of steps per run if the times are extrapolated, else None.
    """

    seconds: float
    cpu: float
    rate: float
    reading: float | None
    sampled: int | None


def time_all(
    rows: tuple[Row, ...], folder: pathlib.Path, work: pathlib.Path, rounds: int, scale: float
) -> dict[str, Timing]:
    """Runs all rows `rounds` times, interleaved, after a warm-up run. Returns method to timing."""
    total = 0
    workers = {}
    results: dict[str, list[dict[str, Any]]] = {row.method: [] for row in rows}
    try:
        for row in rows:
            workers[row.method] = Worker(row.method, folder, work / f"{row.method}.hdf5")
            warm = workers[row.method].run(None if row.sample is None else 2)
            total = total or warm["steps"]
        for _ in range(rounds):
            for row in rows:
                results[row.method].append(workers[row.method].run(row.episodes(scale)))
    finally:
        for worker in workers.values():
            worker.close()
    return {row.method: _timing(row, results[row.method], total) for row in rows}


def _timing(row: Row, runs: list[dict[str, Any]], total: int) -> Timing:
    steps = runs[0]["steps"]
    if row.sample is None and steps != total:
        raise RuntimeError(f"{row.title}: read {steps} steps, expected {total}")
    seconds, cpu = (statistics.median(run[key] for run in runs) * total / steps for key in ("seconds", "cpu"))
    reading = None
    if runs[0]["reading"] is not None:
        reading = statistics.median(run["reading"] / run["seconds"] for run in runs)
    return Timing(seconds, cpu, total / seconds, reading, steps if row.sample is not None else None)


def peak_memory(method: str, folder: pathlib.Path, work: pathlib.Path) -> int:
    """The peak memory in bytes of a new process that converts the dataset once."""
    worker = Worker(method, folder, work / "memory.hdf5")
    try:
        peak: int = worker.run(None)["peak"]
        return peak
    finally:
        worker.close()


def print_table(name: str, rows: tuple[Row, ...], timings: dict[str, Timing]) -> None:
    """Prints a Markdown table. Times are relative to the first row."""
    ours = timings[rows[0].method].seconds
    print(f"\n| {name} | steps/s | seconds | CPU seconds | time / first row |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for row in rows:
        timing = timings[row.method]
        sampled = " (sample)" if timing.sampled else ""
        print(
            f"| {row.title}{sampled} | {timing.rate:,.0f} | {timing.seconds:.2f} | {timing.cpu:.2f} "
            f"| {timing.seconds / ours:.2f} |"
        )
    for row in rows:
        timing = timings[row.method]
        notes = []
        if timing.sampled:
            notes.append(f"each run read {timing.sampled:,} steps; the time for all steps is extrapolated")
        if timing.reading is not None:
            notes.append(f"{timing.reading:.0%} of the time is reading, the rest writing")
        if notes:
            print(f"\n{row.title}: {'; '.join(notes)}.")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convert", description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", type=pathlib.Path, default=generate.DATA_DIR, help="folder of the datasets")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="0.05 takes a twentieth of the steps, for a quick test"
    )
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each method")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    arguments = parser.parse_args()
    data_dir, scale = arguments.data_dir.resolve(), arguments.scale
    _generate(data_dir, scale)
    work = generate.folder(data_dir, "hopper", scale).parent.parent / "out"
    work.mkdir(exist_ok=True)

    print(f"{os.cpu_count()} cores; median of {arguments.rounds} interleaved runs after a warm-up run")
    hopper = time_all(HOPPER, generate.folder(data_dir, "hopper", scale), work, arguments.rounds, scale)
    print_table("hopper", HOPPER, hopper)
    camera = time_all(CAMERA, generate.folder(data_dir, "camera", scale), work, arguments.rounds, scale)
    print_table("camera", CAMERA, camera)

    floor = min(camera["decode_each"].seconds, camera["decode_episodes"].seconds)
    targets = [
        ("hopper: time / floor", 3.0, hopper["project"].seconds / hopper["parse_floor"].seconds),
        ("hopper: speed-up over two loops", -200.0, hopper["two_loops"].seconds / hopper["project"].seconds),
        ("camera: time / faster floor", 1.5, camera["project_none"].seconds / floor),
    ]
    if not arguments.no_memory:
        print(f"\n| peak memory, MB | 1x | {generate.TIMES}x | ratio |")
        print("| --- | ---: | ---: | ---: |")
        for name, method in MEMORY:
            once, times = (
                peak_memory(method, generate.folder(data_dir, dataset, scale), work)
                for dataset in (name, f"{name}_x{generate.TIMES}")
            )
            title = f"{name}, {'no compression' if method == 'project_none' else 'gzip'}"
            print(f"| {title} | {once / 1e6:.0f} | {times / 1e6:.0f} | {times / once:.3f} |")
            targets.append((f"{title}: peak memory at {generate.TIMES} times the data", 1.1, times / once))

    if scale != 1:
        print("\nThe targets are for scale 1. At smaller scales, fixed costs have more weight.")
    print("\n| target | wanted | measured | |")
    print("| --- | ---: | ---: | --- |")
    for title, wanted, measured in targets:
        met = measured >= -wanted if wanted < 0 else measured <= wanted
        limit = f"at least {-wanted:g}" if wanted < 0 else f"at most {wanted:g}"
        print(f"| {title} | {limit} | {measured:.2f} | {'met' if met else 'NOT met'} |")


def _generate(data_dir: pathlib.Path, scale: float) -> None:
    """Generates the datasets in a separate process, to keep this one small."""
    import subprocess
    import sys

    command = [sys.executable, "-m", "benchmarks.generate", "--data-dir", str(data_dir), "--scale", str(scale)]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run(command, check=True, env=environment, cwd=pathlib.Path(__file__).parent.parent)


if __name__ == "__main__":
    main()
