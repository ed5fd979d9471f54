"""The whole way once, on a real environment: record, convert, validate, inspect, read back."""

from __future__ import annotations

import os
import pathlib
import shutil
import sys
from typing import Any

import h5py
import numpy as np

from kabuki_rlds.convert import convert
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.inspect import inspect, to_text
from kabuki_rlds.sizes import human_bytes
from kabuki_rlds.validate import validate

_STEPS = 20_000
#: Stands in a folder that the demo made, and may so make again.
_MARK = ".kabuki-demo"


def run(folder: str | os.PathLike[str]) -> None:
    """Runs the demo in a folder, and prints what it does.

    Raises:
      KabukiError: an extra is not installed, or the folder holds other things.
    """
    folder = pathlib.Path(folder)
    _import_extras()
    if folder.exists() and not folder.is_dir():
        raise KabukiError(f"{folder}: a file; name a folder")
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARK).exists():
        raise KabukiError(f"{folder}: not empty, and not made by an earlier demo; name another folder")
    # What the demo made, and nothing that was put beside it.
    shutil.rmtree(folder / "hopper", ignore_errors=True)
    (folder / "hopper.hdf5").unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).touch()
    recorded = folder / "hopper" / "1.0.0"

    _say(f"Recording {_STEPS:,} steps of Gymnasium's Hopper-v5 with EnvLogger, as an RLDS dataset")
    recorded.mkdir(parents=True)
    episodes = record_hopper(recorded, _STEPS)
    print(f"{recorded}: {episodes:,} episodes")

    file = folder / "hopper.hdf5"
    _say(f"kabuki-rlds convert {recorded} {file}")
    result = convert(recorded, file, progress=sys.stderr.isatty())
    print(f"{file}: {result.steps:,} steps in {result.episodes:,} episodes, {human_bytes(result.num_bytes)}")

    _say(f"kabuki-rlds validate {file}")
    violations = validate(file)
    print("\n".join(map(str, violations)) or f"{file}: valid")
    if violations:
        raise KabukiError(f"{file}: the recording breaks {len(violations)} rules of the format")

    _say(f"kabuki-rlds inspect {file}")
    print(to_text(inspect(file)))

    _say("Reading one episode with h5py alone")
    with h5py.File(file, "r") as f:
        start, length = f["episodes/start"][-1], f["episodes/length"][-1]
        episode = slice(start, start + length)
        print(f"observation  {f['observation'][episode].shape} {f['observation'].dtype}")
        print(f"action       {f['action'][episode].shape} {f['action'].dtype}")
        print(f"return       {f['reward'][start : start + length - 1].sum():.3f}")
        print(f"ends         {'in a terminal state' if f['is_terminal'][start + length - 1] else 'cut short'}")


def record_hopper(folder: pathlib.Path, steps: int) -> int:
    """Records a noisy controller on Hopper-v5, in whole episodes, until there are that many steps.

    Args:
      folder: where the RLDS dataset goes.
      steps: how many steps to record at least.

    Returns:
      The number of episodes.
    """
    import envlogger
    import gymnasium
    import tensorflow_datasets as tfds
    from envlogger.backends import tfds_backend_writer

    # Without an encoding, TFDS would quietly store float64 as float32.
    exact = {"dtype": np.float64, "encoding": "zlib"}
    config = tfds.rlds.rlds_base.DatasetConfig(
        name="hopper",
        overall_description="Hopper-v5 of Gymnasium under a noisy controller, recorded by the demo of kabuki_rlds.",
        homepage="https://gymnasium.farama.org/environments/mujoco/hopper/",
        observation_info=tfds.features.Tensor(shape=(11,), **exact),
        action_info=tfds.features.Tensor(shape=(3,), dtype=np.float32),
        reward_info=tfds.features.Tensor(shape=(), **exact),
        discount_info=tfds.features.Tensor(shape=(), **exact),
    )
    backend = tfds_backend_writer.TFDSBackendWriter(
        data_directory=str(folder), split_name="train", max_episodes_per_file=200, ds_config=config, version="1.0.0"
    )
    environment = _dm_env(gymnasium.make("Hopper-v5"), seed=0)
    rng = np.random.default_rng(0)
    recorded = episodes = 0
    with envlogger.EnvLogger(environment, backend=backend) as logged:
        while recorded < steps:
            timestep = logged.reset()
            noise = rng.uniform(0.05, 1.0)
            recorded += 1
            while not timestep.last():
                # The joints' angles and speeds fed back: falls sooner or later, by how much noise there is.
                angles, speeds = timestep.observation[2:5], timestep.observation[8:11]
                action = -1.5 * angles - 0.1 * speeds + rng.normal(0, noise, 3)
                timestep = logged.step(np.clip(action, -1, 1).astype(np.float32))
                recorded += 1
            episodes += 1
    return episodes


def _dm_env(environment: Any, seed: int) -> Any:
    """A Gymnasium environment with vector spaces as the dm_env environment that EnvLogger takes."""
    import dm_env
    from dm_env import specs

    class Environment(dm_env.Environment):  # type: ignore[misc]
        def __init__(self) -> None:
            self._seed: int | None = seed

        def reset(self) -> Any:
            observation, _ = environment.reset(seed=self._seed)
            self._seed = None
            return dm_env.restart(observation)

        def step(self, action: np.ndarray) -> Any:
            observation, reward, terminated, truncated, _ = environment.step(action)
            if terminated:
                return dm_env.termination(np.float64(reward), observation)
            if truncated:
                return dm_env.truncation(np.float64(reward), observation, np.float64(1.0))
            return dm_env.transition(np.float64(reward), observation, np.float64(1.0))

        def observation_spec(self) -> Any:
            space = environment.observation_space
            return specs.Array(space.shape, space.dtype, "observation")

        def action_spec(self) -> Any:
            space = environment.action_space
            return specs.BoundedArray(space.shape, space.dtype, space.low, space.high, "action")

    return Environment()


def _import_extras() -> None:
    try:
        import envlogger  # noqa: F401
    except ImportError as e:
        if "libgmpxx" in str(e):
            raise KabukiError(f"EnvLogger needs a system library ({e}): sudo apt-get install libgmpxx4ldbl") from e
        raise KabukiError(
            "the demo records with EnvLogger, which needs Python 3.11: "
            "pip install 'kabuki_rlds[envlogger,environments]'"
        ) from e
    remedy = "pip install 'kabuki_rlds[environments]'"
    try:
        import gymnasium
        import mujoco  # noqa: F401
    except ImportError as e:
        raise KabukiError(f"the demo needs MuJoCo's Hopper ({e}): {remedy}") from e
    try:
        gymnasium.spec("Hopper-v5")
    except gymnasium.error.Error as e:
        raise KabukiError(f"the demo needs MuJoCo's Hopper ({e}): {remedy}") from e


def _say(step: str) -> None:
    print(f"\n== {step}", flush=True)
