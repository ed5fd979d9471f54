"""Generates demonstrations in robomimic's layout, and the methods that `benchmarks.demonstrations` compares."""

from __future__ import annotations

import os
import pathlib
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks.done import Done

#: The number of steps per demonstration.
STEPS = 100
CAMERAS = ("agentview_image", "robot0_eye_in_hand_image")


def make(path: pathlib.Path, demos: int) -> pathlib.Path:
    """Writes a file with `demos` demonstrations if it does not exist. Returns its path."""
    import h5py

    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:84, :84].astype(np.float32)[..., None]
    partial = path.with_suffix(".new")
    with h5py.File(partial, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = '{"env_name": "Lift"}'
        data.attrs["total"] = demos * STEPS
        for number in range(demos):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = STEPS
            demo["actions"] = rng.normal(size=(STEPS, 7))
            demo["obs/state"] = rng.normal(size=(STEPS, 9))
            for camera in CAMERAS:
                t = np.arange(STEPS)[:, None, None, None] + number
                scene = 120 + 60 * np.sin((x + t) / 9 + np.arange(3)) + 50 * np.cos((y - t) / 13)
                demo[f"obs/{camera}"] = np.clip(scene + rng.normal(0, 3, scene.shape), 0, 255).astype(np.uint8)
            for name in ("rewards", "dones"):
                demo[name] = (np.arange(STEPS) == STEPS - 1).astype(np.int64)
    os.replace(partial, path)
    return path


def template(file: pathlib.Path, target: pathlib.Path, demos: int | None) -> Done:
    """Runs a TFDS `GeneratorBasedBuilder` that makes a dict for each step."""
    import h5py
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    tfds.disable_progress_bar()
    picture = tfds.features.Image(shape=(84, 84, 3), encoding_format="png")
    step = {
        "observation": {
            **dict.fromkeys(CAMERAS, picture),
            "state": tfds.features.Tensor(shape=(9,), dtype=np.float32),
        },
        "action": tfds.features.Tensor(shape=(7,), dtype=np.float32),
        **dict.fromkeys(("reward", "discount"), np.float32),
        **dict.fromkeys(("is_first", "is_last", "is_terminal"), np.bool_),
    }

    with registered.skip_registration():

        class Template(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self) -> Any:
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict({"steps": tfds.features.Dataset(step)})
                )

            def _split_generators(self, dl_manager: Any) -> Any:
                return {"train": self._generate_examples()}

            def _generate_examples(self) -> Any:
                with h5py.File(file) as opened:
                    for name in list(opened["data"])[:demos]:
                        yield name, {"steps": list(_steps(opened["data"][name]))}

    with tempfile.TemporaryDirectory(dir=target.parent) as data_dir:
        builder = Template(data_dir=data_dir)
        start = time.perf_counter()
        builder.download_and_prepare()
        took = time.perf_counter() - start
        assert builder.info.splits["train"].num_examples == demos
    assert demos is not None
    return Done(demos * STEPS, seconds=took)


def _steps(demo: Any) -> Any:
    pictures = {camera: demo[f"obs/{camera}"][:] for camera in CAMERAS}
    state, actions = demo["obs/state"][:], demo["actions"][:]
    for i in range(len(actions)):
        last = i == len(actions) - 1
        yield {
            "observation": {**{c: p[i] for c, p in pictures.items()}, "state": state[i].astype(np.float32)},
            "action": actions[i].astype(np.float32),
            "reward": float(last),
            "discount": 1.0,
            "is_first": i == 0,
            "is_last": last,
            "is_terminal": last,
        }


def project(file: pathlib.Path, target: pathlib.Path, demos: int | None) -> Done:
    """Calls `kabuki_rlds.build` with a recipe."""
    import kabuki_rlds

    with tempfile.TemporaryDirectory(dir=target.parent) as data_dir:
        recipe = pathlib.Path(data_dir) / "recipe.yaml"
        recipe.write_text(
            "assume: {last_observation: none}\n"
            "steps: {action: {cast: float32}, reward: {cast: float32}, observation/state: {cast: float32}}\n"
            "drop: [dones]\n"
        )
        start = time.perf_counter()
        steps = kabuki_rlds.build(file, data_dir, name="lift", recipe=recipe).num_steps
        return Done(steps, seconds=time.perf_counter() - start)
