"""Compares the time to record a step with that of EnvLogger's backends.

    python -m benchmarks.record [--steps 20000] [--rounds 3]

Needs EnvLogger, and so Python 3.11. The environments are Catch, with episodes of 10 steps,
one with Hopper's fields and episodes of 500 steps, and one with a camera. All methods run
interleaved with a run of the environment alone, whose time is subtracted. The time includes
closing the recording, but not imports.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import dm_env
import envlogger
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from dm_env import specs
from envlogger.backends import tfds_backend_writer

from kabuki_rlds.recording.environments import record
from kabuki_rlds.recording.envlogger_backend import EnvLoggerBackend

#: The required speed-up over `TFDSBackendWriter`.
_TARGET = 5


class Bench(dm_env.Environment):  # type: ignore[misc]
    """An environment with episodes of fixed length and constant observations, which costs almost no time."""

    def __init__(self, shape: tuple[int, ...], dtype: type, actions: Any, length: int):
        self._observation = np.random.default_rng(0).integers(0, 99, shape).astype(dtype)
        self._actions = actions
        self._length = length
        self._row = length

    def reset(self) -> dm_env.TimeStep:
        self._row = 1
        return dm_env.restart(self._observation.copy())

    def step(self, action: Any) -> dm_env.TimeStep:
        self._row += 1
        if self._row == self._length:
            return dm_env.termination(0.1, self._observation.copy())
        return dm_env.transition(0.1, self._observation.copy(), 1.0)

    def observation_spec(self) -> specs.Array:
        return specs.Array(self._observation.shape, self._observation.dtype)

    def action_spec(self) -> specs.Array:
        return self._actions


def catch() -> Bench:
    """An environment with the specs of Catch: a 10 x 5 board and three actions."""
    return Bench((10, 5), np.float32, specs.DiscreteArray(3, np.int64), 10)


def hopper() -> Bench:
    """An environment with the specs of Hopper: 11 floats of observation and 3 of action."""
    return Bench((11,), np.float64, specs.BoundedArray((3,), np.float32, -1, 1), 500)


def camera() -> Bench:
    """Images of 84 x 84 pixels, and four floats of action."""
    return Bench((84, 84, 3), np.uint8, specs.BoundedArray((4,), np.float32, -1, 1), 200)


def tfds_config(environment: Bench) -> Any:
    """The config for `TFDSBackendWriter`. The encoding "bytes" keeps float64."""

    def tensor(spec: Any) -> Any:
        encoding = "bytes" if spec.dtype == np.float64 else "none"
        return tfds.features.Tensor(shape=spec.shape, dtype=spec.dtype, encoding=encoding)

    return tfds.rlds.rlds_base.DatasetConfig(
        name="bench",
        observation_info=tensor(environment.observation_spec()),
        action_info=tensor(environment.action_spec()),
        reward_info=tensor(environment.reward_spec()),
        discount_info=tensor(environment.discount_spec()),
    )


Wrap = Callable[[Bench, str], Any]


def by_tfds_backend_writer(environment: Bench, folder: str) -> Any:
    """Records with EnvLogger's RLDS backend, which was removed in EnvLogger 1.3."""
    backend = tfds_backend_writer.TFDSBackendWriter(folder, tfds_config(environment), version="1.0.0")
    return envlogger.EnvLogger(environment, backend=backend)


METHODS: dict[str, Wrap | None] = {
    "environment without recording": None,
    "EnvLogger, kabuki_rlds.EnvLoggerBackend": lambda environment, folder: envlogger.EnvLogger(
        environment, backend=EnvLoggerBackend, path=folder
    ),
    "kabuki_rlds.record, without EnvLogger": record,
    "kabuki_rlds.record to HDF5": lambda environment, folder: record(environment, f"{folder}/x.hdf5"),
    "EnvLogger, Riegeli": lambda environment, folder: envlogger.EnvLogger(environment, data_directory=folder),
    "EnvLogger 1.2, TFDSBackendWriter": by_tfds_backend_writer,
}


def seconds_per_step(make: Callable[[], Bench], wrap: Wrap | None, steps: int) -> float:
    """The mean time of a step in seconds, for a run of `steps` steps."""
    with tempfile.TemporaryDirectory() as folder:
        environment = make()
        folder_of_version = pathlib.Path(folder) / "1.0.0"
        folder_of_version.mkdir()
        wrapped = environment if wrap is None else wrap(environment, str(folder_of_version))
        begun = time.perf_counter()
        _act(wrapped, steps, environment.action_spec())
        wrapped.close()
        ended = time.perf_counter()
        del wrapped  # EnvLogger's backends write again when they are garbage-collected.
    return (ended - begun) / steps


def _act(environment: Any, steps: int, actions: specs.Array) -> None:
    action = actions.generate_value()
    timestep = environment.reset()
    for _ in range(steps - 1):
        timestep = environment.reset() if timestep.last() else environment.step(action)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.record", description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=20_000, help="steps of each run")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each method")
    arguments = parser.parse_args()
    tf.get_logger().setLevel("ERROR")

    print(f"{os.cpu_count()} cores; median of {arguments.rounds} interleaved runs after a warm-up run")
    ratios = {}
    for name, make in (
        ("Catch, 10 steps per episode", catch),
        ("Hopper, 500 steps per episode", hopper),
        ("Camera, 200 steps per episode", camera),
    ):
        taken: dict[str, list[float]] = {method: [] for method in METHODS}
        for turn in range(arguments.rounds + 1):
            for method, wrap in METHODS.items():
                seconds = seconds_per_step(make, wrap, arguments.steps)
                if turn:
                    taken[method].append(seconds)
        alone, ours, *others = (statistics.median(times) for times in taken.values())
        print(f"\n| {name} | µs per recorded step | relative to the first row |")
        print("| --- | ---: | ---: |")
        for method, seconds in zip(list(METHODS)[1:], (ours, *others), strict=True):
            print(f"| {method} | {(seconds - alone) * 1e6:.1f} | {(seconds - alone) / (ours - alone):.1f} |")
        ratios[name] = (others[-1] - alone) / (ours - alone)

    print("\n| target | wanted | measured | |")
    print("| --- | ---: | ---: | --- |")
    for name, ratio in ratios.items():
        met = "met" if ratio >= _TARGET else "NOT met"
        print(f"| {name}: TFDSBackendWriter / ours | at least {_TARGET} | {ratio:.1f} | {met} |")


if __name__ == "__main__":
    main()
