"""`record`: an environment that is used as always, and recorded."""

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
    """Wraps an environment, such that all that happens in it is recorded.

        with kabuki_rlds.record(env, "runs/hopper") as env:
            ...

    The environment is then used as always, and closed at the end. It has further:

    * `set_episode_metadata({"goal": "red"})`: fields of the episode that is open, or
      has just ended;
    * `discard_episode()`: forgets that episode, and if it is open all that is to come of it;
    * `num_episodes`: how many were recorded.

    An episode is on the disk when the step that ended it returns. If the process is
    killed, the episodes that were open are lost and no other; the next recording to the
    same place takes up the rest.

    What an environment says of its observations and actions beforehand, and what the
    first step has, tell what the fields are. Every later step must be like it.

    Args:
      env: an environment of dm_env or Gymnasium; or vectorized environments of
        Gymnasium, of which each has its own episodes, written as they end. There the two
        methods above take the index of the environment besides.
      path: where to record: a folder for an RLDS dataset (`runs/hopper` means
        `runs/hopper/1.0.0`), or a file that ends in `.hdf5` or `.h5`. What is there
        already is appended to.
      split: name of the split.
      info: which entries of Gymnasium's `info` become fields of the steps; True for all
        that the first step has. What `reset` does not give is empty in the first row.
      images: how an RLDS dataset stores images, uint8 arrays (height, width, 1, 3 or 4): as "png",
        or as "jpeg", which is smaller and lossy; or path of a field to either. A new HDF5 file
        stores the pixels, and `build` stores these in this format.
      unfinished: "keep" writes an episode that was cut short, by `reset` or `close`,
        ending with `is_last` and not `is_terminal`; "drop" does not. One that has not
        gone beyond its reset is never written.
      config: a TFDS `DatasetConfig`, to say the features of a new dataset instead of
        learning them.
      description: what a new dataset says of itself.
      citation: how to cite it.
      homepage: where there is more of it.
      metadata: further facts about the dataset, beside the environment's specs.

    Raises:
      KabukiError: it is no such environment; or nothing can be recorded there, or
        another process records there.
    """
    kind = _kind(env)
    if kind == "dm_env":
        if info is not False:
            raise InvalidArgumentError("info: an environment of dm_env has none, only those of Gymnasium do")
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
    # An environment of Gymnasium is only where Gymnasium is.
    if "gymnasium" in sys.modules:
        import gymnasium

        if isinstance(env, gymnasium.vector.VectorEnv):
            return "vector"
        if isinstance(env, gymnasium.Env):
            return "gymnasium"
    if all(hasattr(env, name) for name in ("reset", "step", "observation_spec", "action_spec", "reward_spec")):
        return "dm_env"
    raise InvalidArgumentError(
        f"record: a {type(env).__module__}.{type(env).__qualname__} is no environment of dm_env or Gymnasium; "
        "kabuki_rlds.Logger records without one"
    )
