"""The demo: records a real environment, then converts, validates, inspects and reads the dataset."""

from __future__ import annotations

import os
import pathlib
import shutil
import sys
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np

from kabuki_rlds.commands.convert import convert
from kabuki_rlds.commands.inspect import inspect, to_text
from kabuki_rlds.commands.validate import validate
from kabuki_rlds.data.units import format_bytes
from kabuki_rlds.errors import DestinationExistsError, KabukiError
from kabuki_rlds.extras import require
from kabuki_rlds.files.paths import local_path

_STEPS = 20_000
#: Marks a folder that the demo created. A later demo may replace its files.
_MARK = ".kabuki-demo"


def run(folder: str | os.PathLike[str]) -> None:
    """Runs the demo in a folder and prints each step.

    Raises:
      KabukiError: an extra is not installed, or the folder holds files that are not from the demo.
    """
    folder = local_path(folder)
    with_envlogger = _find_extras()
    if folder.exists() and not folder.is_dir():
        raise DestinationExistsError(f"{folder}: is a file; name a folder")
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARK).exists():
        raise DestinationExistsError(f"{folder}: is not empty and not from an earlier demo; name another folder")
    # Delete only the files that the demo created.
    shutil.rmtree(folder / "hopper", ignore_errors=True)
    (folder / "hopper.hdf5").unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).touch()
    recorded = folder / "hopper" / "1.0.0"

    how = "EnvLogger" if with_envlogger else "kabuki_rlds.record"
    _say(f"Recording {_STEPS:,} steps of Gymnasium's Hopper-v5 with {how}, as an RLDS dataset")
    episodes = record_hopper(recorded, _STEPS, with_envlogger)
    print(f"{recorded}: {episodes:,} episodes")

    file = folder / "hopper.hdf5"
    _say(f"kabuki-rlds convert {recorded} {file}")
    result = convert(recorded, file, progress=sys.stderr.isatty())
    print(f"{file}: {result.num_steps:,} steps in {result.num_episodes:,} episodes, {format_bytes(result.num_bytes)}")

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
        print(f"ends         {'terminated' if f['is_terminal'][start + length - 1] else 'truncated'}")


def record_hopper(folder: pathlib.Path, steps: int, with_envlogger: bool) -> int:
    """Records complete episodes of a noisy controller on Hopper-v5 until there are at least `steps` steps.

    Args:
      folder: the folder of the RLDS dataset.
      steps: minimum number of steps.
      with_envlogger: log a dm_env environment with EnvLogger. Otherwise record the Gymnasium environment.

    Returns:
      The number of episodes.
    """
    import gymnasium

    from kabuki_rlds.recording.environments import record

    about: dict[str, Any] = {
        "description": "Hopper-v5 of Gymnasium under a noisy controller, recorded by the demo of kabuki_rlds.",
        "homepage": "https://gymnasium.farama.org/environments/mujoco/hopper/",
    }
    hopper = gymnasium.make("Hopper-v5")
    if with_envlogger:
        return _act_in_dm_env(_dm_env(hopper), folder, steps, about)
    with record(hopper, folder, **about) as env:

        def step(action: np.ndarray) -> tuple[np.ndarray, bool]:
            observation, _, terminated, truncated, _ = env.step(action)
            return observation, terminated or truncated

        env.reset(seed=0)
        return _act(lambda: env.reset()[0], step, steps)


def _act_in_dm_env(environment: Any, folder: pathlib.Path, steps: int, about: dict[str, Any]) -> int:
    import envlogger

    from kabuki_rlds.recording.envlogger_backend import EnvLoggerBackend

    with envlogger.EnvLogger(environment, backend=EnvLoggerBackend, path=folder, **about) as env:

        def step(action: np.ndarray) -> tuple[np.ndarray, bool]:
            timestep = env.step(action)
            return timestep.observation, timestep.last()

        return _act(lambda: env.reset().observation, step, steps)


def _act(reset: Callable[[], np.ndarray], step: Callable[[np.ndarray], tuple[np.ndarray, bool]], steps: int) -> int:
    """Runs the controller and returns the number of episodes. `step` returns (observation, whether it is the last)."""
    rng = np.random.default_rng(0)
    acted = episodes = 0
    while acted < steps:
        observation, ended = reset(), False
        noise = rng.uniform(0.05, 1.0)
        acted += 1
        while not ended:
            # PD control on joint angles and velocities. More noise makes the hopper fall earlier.
            action = -1.5 * observation[2:5] - 0.1 * observation[8:11] + rng.normal(0, noise, 3)
            observation, ended = step(np.clip(action, -1, 1).astype(np.float32))
            acted += 1
        episodes += 1
    return episodes


def _dm_env(environment: Any) -> Any:
    """Wraps a Gymnasium environment with vector spaces as a dm_env environment, which EnvLogger needs."""
    import dm_env
    from dm_env import specs

    class Environment(dm_env.Environment):  # type: ignore[misc]
        def __init__(self) -> None:
            self._seed: int | None = 0

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


def _find_extras() -> bool:
    """Checks that the environment is installed. Returns whether EnvLogger is installed."""
    require("the demo, which records MuJoCo's Hopper,", "tensorflow", "tensorflow_datasets", "gymnasium", "mujoco")
    import gymnasium

    try:
        gymnasium.spec("Hopper-v5")
    except gymnasium.error.Error as e:
        raise KabukiError(f"the demo needs MuJoCo's Hopper ({e}): pip install 'kabuki_rlds[environments]'") from e
    try:
        import dm_env  # noqa: F401
        import envlogger  # noqa: F401
    except ImportError:
        # EnvLogger supports few Python versions. The demo then uses `record`.
        return False
    return True


def _say(step: str) -> None:
    print(f"\n== {step}", flush=True)
