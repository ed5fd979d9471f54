"""Times what it costs to record a step, beside EnvLogger's own backends.

    python -m benchmarks.record [--steps 20000] [--rounds 3]

Needs EnvLogger, so Python 3.11. An agent that does nothing acts in Catch, whose
episodes have 10 steps, and in an environment with Hopper's fields and episodes of 500.
Each way to record takes turns with the environment alone, whose time is taken off. A
way's time includes the end of its recording, but not the imports.
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

#: What `TFDSBackendWriter` takes may be this many times what ours takes, at least.
_TARGET = 5


class Bench(dm_env.Environment):  # type: ignore[misc]
    """Episodes of one length, whose observations take no time to make."""

    def __init__(self, shape: tuple[int, ...], dtype: type, actions: Any, length: int):
        self._observation = np.ones(shape, dtype)
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
    """A board of 10 x 5, and one of three actions."""
    return Bench((10, 5), np.float32, specs.DiscreteArray(3, np.int64), 10)


def hopper() -> Bench:
    """Eleven floats, and three of action."""
    return Bench((11,), np.float64, specs.BoundedArray((3,), np.float32, -1, 1), 500)


def tfds_config(environment: Bench) -> Any:
    """The config that `TFDSBackendWriter` needs; an encoding keeps float64 as it is."""

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
    """EnvLogger's backend for RLDS, which 1.3 does not have any more."""
    backend = tfds_backend_writer.TFDSBackendWriter(folder, tfds_config(environment), version="1.0.0")
    return envlogger.EnvLogger(environment, backend=backend)


WAYS: dict[str, Wrap | None] = {
    "the environment alone": None,
    "EnvLogger, kabuki_rlds.EnvLoggerBackend": lambda environment, folder: envlogger.EnvLogger(
        environment, backend=EnvLoggerBackend, path=folder
    ),
    "kabuki_rlds.record, without EnvLogger": record,
    "EnvLogger, Riegeli": lambda environment, folder: envlogger.EnvLogger(environment, data_directory=folder),
    "EnvLogger 1.2, TFDSBackendWriter": by_tfds_backend_writer,
}


def seconds_a_step(make: Callable[[], Bench], wrap: Wrap | None, steps: int) -> float:
    """How long one step of a run of so many takes."""
    with tempfile.TemporaryDirectory() as folder:
        environment = make()
        folder_of_version = pathlib.Path(folder) / "1.0.0"
        folder_of_version.mkdir()
        wrapped = environment if wrap is None else wrap(environment, str(folder_of_version))
        begun = time.perf_counter()
        _act(wrapped, steps, environment.action_spec())
        wrapped.close()
        ended = time.perf_counter()
        del wrapped  # EnvLogger's backends write once more when they are forgotten.
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
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each way")
    arguments = parser.parse_args()
    tf.get_logger().setLevel("ERROR")

    print(f"{os.cpu_count()} cores; median of {arguments.rounds} runs in turn, after one that is not counted")
    ratios = {}
    for name, make in (("Catch, 10 steps an episode", catch), ("Hopper, 500 steps an episode", hopper)):
        taken: dict[str, list[float]] = {way: [] for way in WAYS}
        for turn in range(arguments.rounds + 1):
            for way, wrap in WAYS.items():
                seconds = seconds_a_step(make, wrap, arguments.steps)
                if turn:
                    taken[way].append(seconds)
        alone, ours, *others = (statistics.median(times) for times in taken.values())
        print(f"\n| {name} | µs a recorded step | times the first |")
        print("| --- | ---: | ---: |")
        for way, seconds in zip(list(WAYS)[1:], (ours, *others), strict=True):
            print(f"| {way} | {(seconds - alone) * 1e6:.1f} | {(seconds - alone) / (ours - alone):.1f} |")
        ratios[name] = (others[-1] - alone) / (ours - alone)

    print("\n| target | wanted | measured | |")
    print("| --- | ---: | ---: | --- |")
    for name, ratio in ratios.items():
        met = "met" if ratio >= _TARGET else "NOT met"
        print(f"| {name}: TFDSBackendWriter / ours | at least {_TARGET} | {ratio:.1f} | {met} |")


if __name__ == "__main__":
    main()
