"""Kills a recording agent with SIGKILL at random moments, and checks that no finished episode is lost.

    python -m benchmarks.kill_recording [--kills 50] [--seed 0] [--hdf5]

The agent acts in Gymnasium's CartPole. When the last step of an episode has returned, the
agent prints the number of the episode and the SHA-256 hash of its data. It closes the
recording from time to time and starts a new one, so that some kills happen while shards
are created or while a killed recording is recovered. At the end, every reported episode
must exist exactly once and bit by bit: for `convert` immediately, and for TFDS after one
more recording.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from typing import Any

import h5py
import numpy as np

#: A small size, to get many shards, and to append to an HDF5 file many times.
_SHARD_BYTES = 30_000
#: The maximum time in seconds between the agent's first action and the kill.
_LONGEST = 0.6

_FIELDS = ("observation", "action", "reward", "is_terminal")


def act(path: str, first: int) -> None:
    """Records episodes numbered from `first` on, until the process is killed."""
    import gymnasium

    from kabuki_rlds.recording import hdf5_destination, rlds_recording
    from kabuki_rlds.recording.environments import record

    rlds_recording._SHARD_BYTES = hdf5_destination._LOG_BYTES = _SHARD_BYTES
    number = first
    while True:
        with record(gymnasium.make("CartPole-v1"), path) as env:
            print("acting", flush=True)
            for _ in range(random.randrange(1, 150)):
                _act_once(env, number)
                number += 1


def _act_once(env: Any, number: int) -> None:
    rows: dict[str, list[Any]] = {name: [] for name in _FIELDS}
    observation, _ = env.reset(seed=number)
    env.set_episode_metadata({"number": number})
    ended = False
    while not ended:
        rows["observation"].append(observation)
        rows["is_terminal"].append(False)
        action = env.action_space.sample()
        observation, reward, terminated, truncated, _ = env.step(action)
        rows["action"].append(action)
        rows["reward"].append(np.float64(reward))
        ended = terminated or truncated
    rows["observation"].append(observation)
    rows["is_terminal"].append(terminated)
    print(number, _digest(rows), flush=True)


def _digest(rows: dict[str, Any]) -> str:
    """The SHA-256 hash of all rows, without the padding in the last row."""
    return hashlib.sha256(b"".join(np.asarray(rows[name]).tobytes() for name in _FIELDS)).hexdigest()


def run_and_kill(path: pathlib.Path, first: int, delay: float) -> dict[int, str]:
    """Starts an agent and kills it after `delay` seconds. Returns number to hash of the episodes it reported."""
    command = [sys.executable, "-m", "benchmarks.kill_recording", "--act", str(path), "--first", str(first)]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        begun = process.stdout.readline()
        if begun != "acting\n":
            raise RuntimeError(f"the agent did not start: exit code {process.wait()}")
        time.sleep(delay)
        process.kill()
        reported = process.stdout.read().split("\n")[:-1]
    return {int(line.split()[0]): line.split()[1] for line in reported if line != "acting"}


def digests(file: pathlib.Path) -> dict[int, str]:
    """Number to hash of all episodes in a Kabuki file."""
    found = {}
    with h5py.File(file) as f:
        columns = {name: f[name][:] for name in _FIELDS}
        index = zip(f["episodes/metadata/number"][:], f["episodes/start"][:], f["episodes/length"][:], strict=True)
        for number, start, length in index:
            rows = {
                name: column[start : start + length - (name in ("action", "reward"))]
                for name, column in columns.items()
            }
            if int(number) in found:
                raise RuntimeError(f"episode {number} is stored twice")
            found[int(number)] = _digest(rows)
    return found


def check(what: str, file: pathlib.Path, reported: dict[int, str]) -> bool:
    """Whether a file is valid and contains all reported episodes."""
    import kabuki_rlds

    violations = kabuki_rlds.validate(file)
    found = digests(file)
    missing = reported.keys() - found.keys()
    differing = [number for number in reported.keys() & found.keys() if reported[number] != found[number]]
    print(
        f"{what}: {len(found):,} episodes, {len(reported):,} reported, {len(missing)} missing, "
        f"{len(differing)} different, {len(violations)} rules broken"
    )
    return not (missing or differing or violations)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kill_recording", description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="number of kills")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    parser.add_argument("--hdf5", action="store_true", help="record to an HDF5 file")
    parser.add_argument("--act", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.act:
        act(arguments.act, arguments.first)
        return
    import tensorflow_datasets as tfds

    import kabuki_rlds
    from kabuki_rlds.recording.logger import Logger

    moments = random.Random(arguments.seed)
    reported: dict[int, str] = {}
    with tempfile.TemporaryDirectory() as work:
        path = pathlib.Path(work) / ("killed.hdf5" if arguments.hdf5 else "killed")
        for kill in range(arguments.kills):
            # Never reuse a number: an unreported episode may have it.
            reported |= run_and_kill(path, (kill + 1) * 1_000_000, moments.uniform(0, _LONGEST))
        good = True
        if arguments.hdf5:
            copy = pathlib.Path(work) / "converted.hdf5"
            folder = path.with_name(f"{path.name}.recording")
            kabuki_rlds.convert([path, folder] if (folder / "episodes.log").exists() else path, copy)
            good = check("converted as it was left", copy, reported)
            Logger(path).close()
            good &= check("after one more recording", path, reported)
        else:
            copy = pathlib.Path(work) / "converted.hdf5"
            kabuki_rlds.convert(path, copy)
            good = check("converted directly after the kill", copy, reported)
            Logger(path).close()
            good &= check("after one more recording", kabuki_rlds.convert(path, copy, overwrite=True).path, reported)
            split = tfds.builder("killed", data_dir=work).as_dataset(split="train")
            numbers = {int(episode["number"]) for episode in split}
            print(
                f"TFDS reads {len(numbers):,} episodes of {len(list((path / '1.0.0').glob('*.tfrecord-*'))):,} shards"
            )
            good &= reported.keys() <= numbers
    print(f"{arguments.kills} kills: {'no finished episode is lost' if good else 'FAILED: finished episodes are lost'}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
