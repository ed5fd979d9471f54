"""Searches for recipes that break the package.

    python -m tests.robustness.fuzz.recipes [--inputs 2000] [--seed 0] [--keep DIR]

Recipes with every operation are changed, as text or as a tree, and applied to valid demonstrations. Images are resized
with TensorFlow.
"""

from __future__ import annotations

import importlib.resources
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from tests import layout_files
from tests.robustness.fuzz import changes
from tests.robustness.fuzz.report import report, search_arguments, secret_in
from tests.robustness.fuzz.watched import tensorflow_worker, try_all

_EVERY_OPERATION = """
about: every operation
for: libero
assume: {instruction: name}
fill: {reward: 0}
steps:
  observation/image: {from: observation/camera/agentview_image, rotate: 180, resize: [16, 8], encode: {jpeg: 95}}
  observation/other: {from: observation/camera/agentview_image, flip: vertical, swap: bgr, encode: png}
  observation/channels: {from: observation/camera/agentview_image, transpose: [2, 0, 1]}
  observation/state: {concatenate: [observation/eef_pos, action], cast: float32, select: [0, 1]}
  observation/part: {from: observation/eef_pos, select: "0:2"}
  constant: {constant: [1.0, 2.0]}
  text: {from: language_instruction, match: "pick (.*)", replace: {"cup": "mug"}}
  said: {constant: '{"a": "b"}', json: a}
  action: {cast: float32}
episode:
  episode_metadata/file_path: {from: file_path}
drop: [states]
rest: keep
"""


def seeds(folder: Path) -> list[tuple[Path, str]]:
    """Valid pairs of a file and a recipe."""
    folder.mkdir(exist_ok=True)
    libero = layout_files.libero(folder / "pick_up_the_cup_demo.hdf5", {0: 3, 1: 2}, "pick up the cup")
    aloha = layout_files.aloha(folder / "aloha.hdf5", 4)
    robomimic = layout_files.robomimic(folder / "robomimic.hdf5", {0: 3, 1: 2})
    library = importlib.resources.files("kabuki_rlds.transforms.recipes") / "library"
    return [
        (libero, _EVERY_OPERATION),
        (libero, _EVERY_OPERATION),
        (aloha, (library / "aloha.yaml").read_text()),
        (robomimic, (library / "robomimic.yaml").read_text()),
    ]


def mutated(valid: Sequence[tuple[Path, str]], count: int, seed: int, folder: Path) -> Iterator[Path]:
    """So many folders with a file and its recipe, the same for the same seed. Each is removed when the next is made."""
    for number in range(count):
        rng = random.Random(seed << 32 | number)
        source, text = rng.choice(valid)
        place = folder / f"{seed}-{number}"
        place.mkdir()
        (place / source.name).symlink_to(source)
        path = place / "recipe.yaml"
        if rng.random() < 0.6:
            tree = yaml.safe_load(text)
            for _ in range(rng.choice((1, 1, 2, 4))):
                changes.change_tree(tree, rng)
            text = yaml.safe_dump(tree, sort_keys=False)
        path.write_text(text)
        if rng.random() < 0.5:
            changes.change_bytes(path, rng)
        yield place
        shutil.rmtree(place)


def main() -> None:
    """Searches, and prints what was found."""
    arguments = search_arguments(__doc__, 2000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = mutated(seeds(folder / "seeds"), arguments.inputs, arguments.seed, folder)
        with tensorflow_worker(secret_in(folder)) as worker:
            good = report("recipes", try_all(worker, ["convert with recipe"], paths), arguments.keep)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
