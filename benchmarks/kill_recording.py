"""Kills a recording agent with SIGKILL at random moments, and looks at what is left.

    python -m benchmarks.kill_recording [--kills 50] [--seed 0] [--hdf5]

The agent acts in Gymnasium's CartPole. Of each episode it says its number and the
SHA-256 of all that it saw, when the step that ended it has returned. It ends its
recording now and then, and begins another, so that the kills also meet the making of
shards and the taking up of what the last kill left. At the end every episode that was
told of must be there, once and to the bit, for `convert` at once, and for TFDS after
one more recording.
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

#: So small, that there are many shards.
_SHARD_BYTES = 30_000
#: A kill comes at most so many seconds after the agent began to act.
_LONGEST = 0.6

_FIELDS = ("observation", "action", "reward", "is_terminal")


def act(path: str, first: int) -> None:
    """Records until it is killed. Each episode has its number."""
    import gymnasium

    from kabuki_rlds.recording import rlds_recording
    from kabuki_rlds.recording.environments import record

    rlds_recording._SHARD_BYTES = _SHARD_BYTES
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
    """Of all rows but the padding of the last."""
    return hashlib.sha256(b"".join(np.asarray(rows[name]).tobytes() for name in _FIELDS)).hexdigest()


def run_and_kill(path: pathlib.Path, first: int, delay: float) -> dict[int, str]:
    """Lets an agent act, and kills it. Returns the episodes that it told of."""
    command = [sys.executable, "-m", "benchmarks.kill_recording", "--act", str(path), "--first", str(first)]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        begun = process.stdout.readline()
        if begun != "acting\n":
            raise RuntimeError(f"the agent did not begin: exit code {process.wait()}")
        time.sleep(delay)
        process.kill()
        told = process.stdout.read().split("\n")[:-1]
    return {int(line.split()[0]): line.split()[1] for line in told if line != "acting"}


def digests(file: pathlib.Path) -> dict[int, str]:
    """Number of each episode of a Kabuki file to its digest."""
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
                raise RuntimeError(f"episode {number} is there twice")
            found[int(number)] = _digest(rows)
    return found


def check(what: str, file: pathlib.Path, told: dict[int, str]) -> bool:
    """Whether a file is valid and has every episode that was told of."""
    import kabuki_rlds

    violations = kabuki_rlds.validate(file)
    found = digests(file)
    missing = told.keys() - found.keys()
    differing = [number for number in told.keys() & found.keys() if told[number] != found[number]]
    print(
        f"{what}: {len(found):,} episodes of {len(told):,} told of, {len(missing)} missing, "
        f"{len(differing)} that differ, {len(violations)} rules broken"
    )
    return not (missing or differing or violations)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kill_recording", description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="how often")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
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
    told: dict[int, str] = {}
    with tempfile.TemporaryDirectory() as work:
        path = pathlib.Path(work) / ("killed.hdf5" if arguments.hdf5 else "killed")
        for kill in range(arguments.kills):
            # Numbers are never used again, also not those of episodes that nobody told of.
            told |= run_and_kill(path, (kill + 1) * 1_000_000, moments.uniform(0, _LONGEST))
        good = True
        if arguments.hdf5:
            Logger(path).close()
            good = check("after one more recording", path, told)
        else:
            copy = pathlib.Path(work) / "converted.hdf5"
            kabuki_rlds.convert(path, copy)
            good = check("converted as it was left", copy, told)
            Logger(path).close()
            good &= check("after one more recording", kabuki_rlds.convert(path, copy, overwrite=True).path, told)
            split = tfds.builder("killed", data_dir=work).as_dataset(split="train")
            numbers = {int(episode["number"]) for episode in split}
            print(
                f"TFDS reads {len(numbers):,} episodes of {len(list((path / '1.0.0').glob('*.tfrecord-*'))):,} shards"
            )
            good &= told.keys() <= numbers
    print(f"{arguments.kills} kills: {'every finished episode is there' if good else 'NOT every episode is there'}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
