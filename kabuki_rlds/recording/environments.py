"""`record`, which wraps an environment and records its episodes."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from kabuki_rlds.data.schema import Info
from kabuki_rlds.errors import InvalidArgumentError
from kabuki_rlds.formats.envlogger.specs import to_json
from kabuki_rlds.recording import environment_specs
from kabuki_rlds.recording.recorder import Recorder, RecordingOptions, Unfinished

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

    from kabuki_rlds.recording.image_fields import ImageFormats


def record(
    env: Any,
    path: str | os.PathLike[str],
    *,
    split: str = "train",
    info: bool | Sequence[str] = False,
    images: ImageFormats = "png",
    unfinished: Unfinished = "keep",
    config: tfds.rlds.rlds_base.DatasetConfig | None = None,
    description: str = "",
    citation: str = "",
    homepage: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> Any:
    """Wraps an environment and records its episodes to a dataset.

    Use the wrapper like the environment itself:

        env = gymnasium.make("CartPole-v1")
        with kabuki_rlds.record(env, "runs/cartpole") as env:
            observation, info = env.reset(seed=0)
            ended = False
            while not ended:
                observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
                ended = terminated or truncated
            env.set_episode_metadata({"goal": "balance"})

    The end of the `with` block, or `close`, ends the recording and closes the environment.
    The wrapper has these additional members:

    * `set_episode_metadata({"goal": "red"})` sets fields of the current episode, or of
      the episode that has just ended.
    * `discard_episode()` removes the current episode, or the episode that has just ended.
      The remaining steps of a discarded episode are not recorded either.
    * `num_episodes` is the number of episodes recorded so far.

    An episode is on disk when its last `step` returns. If the process is killed, only the
    current episodes are lost. The next recording to the same path recovers all others.

    The fields are learned from the specs or spaces of the environment and from the first
    step. Every later step must have the same fields, shapes and compatible dtypes.

    Args:
      env: a dm_env environment, a Gymnasium environment, or a Gymnasium `VectorEnv`. Each
        environment of a `VectorEnv` has its own episodes, which are written as they end.
        For a `VectorEnv`, the two methods above also take the index of the environment:
        `set_episode_metadata({"goal": "red"}, index)` and `discard_episode(index)`.
      path: a folder for an RLDS dataset (`runs/hopper` means `runs/hopper/1.0.0`), or an
        HDF5 file that ends in `.hdf5` or `.h5`. Episodes are appended to an existing
        dataset.
      split: name of the split.
      info: names of the entries of Gymnasium's `info` to record as step fields. True
        records all entries that the first step has. Entries that `reset` does not return
        are zero or empty in the first row of an episode.
      images: the format of images, which are uint8 arrays (height, width, 1, 3 or 4). An
        RLDS dataset stores them as "png" or, smaller and lossy, as "jpeg". A new HDF5 file
        stores the pixels; `build` then uses this format. A dict maps the paths of fields
        to formats.
      unfinished: what to do with an episode that `reset` or `close` truncates. "keep"
        writes it, with `is_last` and without `is_terminal` in its last row. "drop" does
        not write it. An episode without a step after `reset` is never written.
      config: a TFDS `DatasetConfig` with the features of a new dataset, which are then not
        learned.
      description: description of a new dataset.
      citation: citation of a new dataset.
      homepage: URL of a new dataset.
      metadata: further facts about a new dataset, stored together with the specs of the
        environment.

    Returns:
      The wrapped environment, of the same kind as `env`.

    Raises:
      InvalidArgumentError: `env` is not such an environment, or an option is invalid.
      KabukiError: the path cannot be recorded to, or another process records to it.
    """
    kind = _kind(env)
    if kind == "dm_env":
        if info is not False:
            raise InvalidArgumentError("info: only Gymnasium environments have info; leave it out for dm_env")
        hints, stated = environment_specs.of_dm_env(env)
    else:
        space = ("single_" if kind == "vector" else "") + "{}_space"
        spaces = (getattr(env, space.format(name)) for name in ("observation", "action"))
        hints, stated = environment_specs.of_gymnasium(env, *spaces)
    made = Info(
        description=description,
        citation=citation,
        homepage=homepage,
        environment=to_json({**stated, **(metadata or {})}),
    )
    recorder = Recorder(path, RecordingOptions(split, images, unfinished, config, made, hints))
    if kind == "dm_env":
        from kabuki_rlds.recording.dm_environment import RecordedEnvironment

        return RecordedEnvironment(env, recorder)
    if kind == "vector":
        from kabuki_rlds.recording.gymnasium_vector_env import RecordedVectorEnv

        return RecordedVectorEnv(env, recorder, info)
    from kabuki_rlds.recording.gymnasium_env import RecordedEnv

    return RecordedEnv(env, recorder, info)


def _kind(env: Any) -> Literal["dm_env", "gymnasium", "vector"]:
    # If Gymnasium is not imported, `env` cannot be a Gymnasium environment. This avoids the import.
    if "gymnasium" in sys.modules:
        import gymnasium

        if isinstance(env, gymnasium.vector.VectorEnv):
            return "vector"
        if isinstance(env, gymnasium.Env):
            return "gymnasium"
    if all(hasattr(env, name) for name in ("reset", "step", "observation_spec", "action_spec", "reward_spec")):
        return "dm_env"
    raise InvalidArgumentError(
        f"record: expected a dm_env or Gymnasium environment, got {type(env).__module__}.{type(env).__qualname__}; "
        "use kabuki_rlds.Logger to record without an environment"
    )
