"""Times building an RLDS dataset from robomimic-shaped HDF5, beside a builder as labs write it.

    python -m benchmarks.demonstrations [--demos 200] [--rounds 3] [--data-dir DIR]

The file has two cameras of 84 x 84, a state and actions, 100 steps a demonstration. A
lab's builder goes by the field's template: it opens a demonstration, makes a dict of
each step, and TFDS encodes one after the other. Both store the pictures as PNG.
`benchmarks/README.md` says what was measured.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks import generate
from benchmarks.worker import Worker

STEPS = 100
CAMERAS = ("agentview_image", "robot0_eye_in_hand_image")
#: The lab's builder gets one of so many demonstrations; it takes a time for each step.
SHARE = 10
#: Titles of the methods, and whether each takes all demonstrations.
METHODS = {
    "robomimic_template": ("a builder by the template, in `tfds`", False),
    "robomimic_project": ("kabuki_rlds.build", True),
}


def make(path: pathlib.Path, demos: int) -> pathlib.Path:
    """A file of so many demonstrations; what is there already is taken."""
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


def template(file: pathlib.Path, target: pathlib.Path, demos: int | None) -> Any:
    """A `GeneratorBasedBuilder` that makes a dict of each step."""
    import h5py
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    from benchmarks.methods import Done

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


def project(file: pathlib.Path, target: pathlib.Path, demos: int | None) -> Any:
    """`kabuki_rlds.build` with a recipe, the whole call."""
    import kabuki_rlds
    from benchmarks.methods import Done

    with tempfile.TemporaryDirectory(dir=target.parent) as data_dir:
        recipe = pathlib.Path(data_dir) / "recipe.yaml"
        recipe.write_text(
            "assume: {last_observation: none}\n"
            "steps: {action: {cast: float32}, reward: {cast: float32}, observation/state: {cast: float32}}\n"
            "drop: [dones]\n"
        )
        start = time.perf_counter()
        steps = kabuki_rlds.build(file, data_dir, name="lift", recipe=recipe).steps
        return Done(steps, seconds=time.perf_counter() - start)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demonstrations", description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", type=pathlib.Path, default=generate.DATA_DIR, help="where the files are")
    parser.add_argument("--demos", type=int, default=200, help="how many demonstrations there are")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each method")
    arguments = parser.parse_args()
    folder = arguments.data_dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.demos < SHARE:
        parser.error(f"--demos is {SHARE} or more")
    sizes = {demos: folder / f"robomimic_{demos}.hdf5" for demos in (arguments.demos, arguments.demos // SHARE)}
    with tempfile.TemporaryDirectory(dir=folder) as work:
        workers: dict[str, Worker] = {}
        runs: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
        # The files are made by a process of its own, so that this one, whose size its children begin with, stays small.
        if os.fork() == 0:
            for demos, path in sizes.items():
                make(path, demos)
            os._exit(0)
        if os.wait()[1]:
            raise SystemExit("the files could not be made")
        file, few = sizes[arguments.demos], arguments.demos // SHARE
        for method, (_, takes_all) in METHODS.items():
            workers[method] = Worker(method, file, pathlib.Path(work) / method)
            # Not counted: it warms up what is to be timed.
            workers[method].run(None if takes_all else 2)
        for _ in range(arguments.rounds):
            for method, (_, takes_all) in METHODS.items():
                runs[method].append(workers[method].run(None if takes_all else few))
        for worker in workers.values():
            worker.close()
        small = Worker("robomimic_project", sizes[few], pathlib.Path(work) / "small")
        peak_of_few = small.run(None)["peak"]
        small.close()
    size = file.stat().st_size / 1e6
    print(f"{os.cpu_count()} cores; {arguments.demos} demonstrations of {STEPS} steps, {size:.0f} MB;")
    print(f"median of {arguments.rounds} runs in turn, after one that is not counted\n")
    print("| robomimic to RLDS | steps/s | times as fast | peak memory, MB |\n| --- | ---: | ---: | ---: |")
    speeds = {m: statistics.median(run["steps"] / run["seconds"] for run in done) for m, done in runs.items()}
    for method, (title, _) in METHODS.items():
        peak = max(run["peak"] for run in runs[method]) / 1e6
        times = speeds[method] / speeds["robomimic_template"]
        print(f"| {title} | {speeds[method]:,.0f} | {times:.1f} | {peak:.0f} |")
    print(f"\nThe template's builder took {few} demonstrations in each run, this project's all of them.")
    print(f"kabuki_rlds.build of {few} demonstrations held {peak_of_few / 1e6:.0f} MB at the most.")


if __name__ == "__main__":
    main()
