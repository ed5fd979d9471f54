"""Reads the pages of the documentation, and creates the folder in which their examples run."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
from pathlib import Path

import h5py
import numpy as np

import kabuki_rlds
from tests import handmade, layout_files
from tests.places import FIXTURES, ROOT
from tests.transforms.test_recipes import _libero

#: Every page whose blocks are tested.
PAGES = sorted(
    [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + list((ROOT / "docs").glob("**/*.md"))
)
_FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>.+?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclasses.dataclass(frozen=True)
class Code:
    """A fenced block of code.

    Attributes:
      where: page and line.
      language: as the fence names it: "python", "sh" (commands), "console" (commands and their output), …
      text: the code.
      not_run: why a test cannot run it; empty where it is run.
      output: the block of the language `text` right after it, which is what it prints; empty if there is none.
    """

    where: str
    language: str
    text: str
    not_run: str
    output: str


def blocks(page: Path) -> list[Code]:
    """Returns the fenced blocks of a page, in order."""
    text = page.read_text()
    found = list(_FENCE.finditer(text))
    result = []
    for i, match in enumerate(found):
        following = found[i + 1] if i + 1 < len(found) else None
        follows = following and following["language"] == "text" and not text[match.end() : following.start()].strip()
        where = f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start('text'))}"
        output = following["text"] if following and follows else ""
        result.append(Code(where, match["language"], match["text"], match["reason"] or "", output))
    return result


def table_commands(page: Path) -> list[str]:
    """The commands within the tables of a page, as `kabuki-rlds convert hopper.hdf5 copy.hdf5`."""
    rows = [line for line in page.read_text().splitlines() if line.startswith("|")]
    return [command for row in rows for command in re.findall(r"`(kabuki-rlds [a-z]+ [^`…]+)`", row)]


def make_folder(home: Path) -> None:
    """Creates all files and datasets that the examples of the documentation use.

    `home` is both the home folder and the working directory of the examples.
    """
    # The files keep the paths that they were made from, so they are made with the paths of the examples.
    with contextlib.chdir(home):
        _make_files(Path())


def _make_files(home: Path) -> None:
    for name in ("a", "b", "c", "hopper"):
        _hopper(home / f"{name}.hdf5", 20)
    data_dir = home / "tensorflow_datasets"
    kabuki_rlds.build(home / "hopper.hdf5", data_dir, name="hopper")
    kabuki_rlds.convert(data_dir / "hopper/1.0.0", home / "hopper.hdf5", overwrite=True)
    _camera(home / "camera.hdf5")
    kabuki_rlds.build(home / "camera.hdf5", data_dir, name="camera")

    layout_files.robomimic(home / "demo.hdf5", {0: 30, 1: 40}, success=[1], masks={"train": [0], "valid": [1]})
    kabuki_rlds.convert(home / "demo.hdf5", home / "lift.hdf5")
    layout_files.robosuite(home / "robosuite.hdf5", {1: 3})
    layout_files.robomimic(home / "damaged.hdf5", {0: 30, 1: 40})
    with h5py.File(home / "damaged.hdf5", "a") as file:
        del file["data/demo_1/rewards"]
        file["data/demo_1/rewards"] = np.zeros(5)
    timeouts = np.array([0, 0, 0, 1], bool)
    layout_files.d4rl(home / "hopper-medium-v2.hdf5", terminals=np.zeros(4, bool), timeouts=timeouts)
    kabuki_rlds.export(home / "lift.hdf5", home / ".minari/datasets/D4RL/door/human-v2", "minari")
    (home / "libero").mkdir()
    _libero(home / "libero/open_the_drawer_demo.hdf5", {0: 3}, "open the drawer")
    (home / "episodes").mkdir()
    for number in range(2):
        layout_files.aloha(home / f"episodes/episode_{number}.hdf5", 3)
    (home / "my.yaml").write_text("split: {train: train, val: valid}\n")
    shutil.copytree(FIXTURES / "acme_dqn_catch", home / "runs/dqn")


def _hopper(path: Path, num_episodes: int) -> None:
    lengths = [12 + number % 5 for number in range(num_episodes)]
    steps = sum(lengths)
    rng = np.random.default_rng(0)
    fields = handmade.fields(lengths, [number % 4 > 0 for number in range(num_episodes)])
    fields |= {
        "observation": rng.normal(size=(steps, 11)),
        "action": rng.normal(size=(steps, 3)).astype(np.float32),
        "reward": rng.normal(size=steps),
        "discount": fields["discount"].astype(np.float64),
    }
    handmade.write(
        path,
        fields,
        {"description": "Hopper-v5 of Gymnasium under a noisy controller, recorded by the demo of kabuki_rlds."},
    )


def _camera(path: Path) -> None:
    fields = handmade.fields()
    steps = len(fields.pop("observation"))
    ramp = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
    fields |= {
        "observation/camera": np.stack([ramp + step for step in range(steps)]),
        "observation/joints": np.eye(steps),
    }
    handmade.write(path, fields)
    with h5py.File(path, "a") as file:
        file["observation/camera"].attrs["kind"] = "image"
