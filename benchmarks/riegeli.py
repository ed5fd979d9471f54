"""Compares the time to convert EnvLogger's Riegeli logs with that of a loop over EnvLogger's reader.

    python -m benchmarks.riegeli [--steps 100000] [--data-dir DIR] [--rounds 3]

Needs EnvLogger, and so Python 3.11. The first run records two logs, one with Hopper's
fields and one with images. Prints a table for each log. The loops read only a sample of
the steps; all results are in steps per second.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np

import kabuki_rlds
from kabuki_rlds.formats.envlogger.source import EnvLoggerSource

#: The maximum number of steps for the loops.
_SAMPLE = 20_000
_EPISODE = 100


def main() -> None:
    """Records the logs if they do not exist, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--data-dir", type=pathlib.Path, default=pathlib.Path(__file__).parent / "data")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for name, shape, dtype, steps in (
        ("hopper", (11,), np.float64, arguments.steps),
        ("camera", (64, 64, 3), np.uint8, arguments.steps // 20),
    ):
        log = arguments.data_dir / f"riegeli_{name}_{steps}"
        if not log.exists():
            _record(log, shape, dtype, steps)
        _table(f"{name}, {steps:,} steps", log, steps, arguments.rounds)


def _table(title: str, log: pathlib.Path, steps: int, rounds: int) -> None:
    sample = min(steps, _SAMPLE)
    methods: dict[str, tuple[Callable[[pathlib.Path, int], None], int]] = {
        "this project, to gzip'd HDF5": (_convert, steps),
        "this project, columns only": (_columns, steps),
        "loop over envlogger.reader.Reader, to gzip'd HDF5": (_loop, sample),
        "loop over envlogger.reader.Reader, data discarded": (_read, sample),
        "serialized_step of EnvLogger's C++ reader, not decoded": (_serialized, sample),
    }
    taken: dict[str, list[float]] = {method: [] for method in methods}
    for turn in range(rounds + 1):
        for method, (run, count) in methods.items():
            start = time.perf_counter()
            run(log, count)
            if turn:
                taken[method].append((time.perf_counter() - start) / count)
    cost = {method: statistics.median(times) for method, times in taken.items()}
    print(f"\n| {title} | steps/s | time / first row |\n| --- | ---: | ---: |")
    first = next(iter(cost.values()))
    for method, seconds in cost.items():
        print(f"| {method} | {1 / seconds:,.0f} | {seconds / first:.2f} |")


def _convert(log: pathlib.Path, count: int) -> None:
    with tempfile.TemporaryDirectory(dir=log.parent) as folder:
        assert kabuki_rlds.convert(log, pathlib.Path(folder) / "out.hdf5").num_steps == count


def _columns(log: pathlib.Path, count: int) -> None:
    assert sum(block.num_steps for block in EnvLoggerSource(log).blocks()) == count


def _loop(log: pathlib.Path, count: int) -> None:
    """A typical script after EnvLogger's documentation: collects rows in lists and converts them to arrays."""
    from envlogger import reader

    rows: dict[str, list[Any]] = {"observation": [], "action": [], "reward": [], "discount": []}
    with reader.Reader(str(log)) as steps:
        for episode in steps.episodes:
            whole = list(episode)
            for step, after in zip(whole, [*whole[1:], None], strict=True):
                rows["observation"].append(step.timestep.observation)
                rows["action"].append(np.zeros(3, np.float32) if after is None else after.action)
                rows["reward"].append(0.0 if after is None else after.timestep.reward)
                rows["discount"].append(0.0 if after is None else after.timestep.discount)
            if len(rows["reward"]) >= count:
                break
    with tempfile.TemporaryDirectory(dir=log.parent) as folder, h5py.File(f"{folder}/out.hdf5", "w") as f:
        for name, values in rows.items():
            f.create_dataset(name, data=np.array(values), compression="gzip", shuffle=True)


def _read(log: pathlib.Path, count: int) -> None:
    from envlogger import reader

    with reader.Reader(str(log)) as steps:
        for number, _ in enumerate(steps.steps, start=1):
            if number == count:
                break


def _serialized(log: pathlib.Path, count: int) -> None:
    from envlogger.backends.python import riegeli_dataset_reader

    reader = riegeli_dataset_reader.RiegeliDatasetReader()
    reader.init(str(log))
    for number in range(count):
        reader.serialized_step(number)


def _record(folder: pathlib.Path, shape: tuple[int, ...], dtype: Any, steps: int) -> None:
    import dm_env
    import envlogger
    from dm_env import specs

    random = np.random.default_rng(0)
    # A random walk, because consecutive observations of a real recording are similar.
    walk = np.cumsum(random.normal(size=(_EPISODE, *shape)), axis=0)
    walk = (walk * 8 % 256).astype(dtype) if dtype == np.uint8 else walk

    class Walk(dm_env.Environment):
        def reset(self) -> Any:
            self._t = 0
            return dm_env.restart(walk[0])

        def step(self, action: Any) -> Any:
            self._t += 1
            reward, observation = float(random.normal()), walk[self._t]
            if self._t == _EPISODE - 1:
                return dm_env.termination(reward, observation)
            return dm_env.transition(reward, observation)

        def observation_spec(self) -> Any:
            return specs.Array(shape, dtype, "observation")

        def action_spec(self) -> Any:
            return specs.Array((3,), np.float32, "action")

    folder.mkdir(parents=True)
    print(f"recording {steps:,} steps in {folder}")
    with envlogger.EnvLogger(Walk(), data_directory=str(folder)) as logged:
        for _ in range(steps // _EPISODE):
            timestep = logged.reset()
            walk += random.normal(size=walk.shape).astype(dtype)
            while not timestep.last():
                timestep = logged.step(random.normal(size=3).astype(np.float32))


if __name__ == "__main__":
    main()
