"""Uses all features of the base install, without TensorFlow, TFDS and pyarrow. Runs in a separate process.

python -m tests.project.base_tour FOLDER
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

#: What only extras install. Where they are installed, they are hidden.
EXTRAS = ("tensorflow", "tensorflow_datasets", "pyarrow", "gymnasium", "dm_env", "envlogger", "rlds")
for name in EXTRAS:
    sys.modules[name] = None  # type: ignore[assignment]  # An import of it fails.

import h5py  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

import kabuki_rlds  # noqa: E402
from kabuki_rlds.cli.main import main  # noqa: E402
from tests import handmade, layout_files  # noqa: E402
from tests.places import FIXTURES  # noqa: E402


def _image_files(form: str, count: int) -> tuple[list[bytes], np.ndarray]:
    """Returns image files of gradients, and their pixels."""
    y, x = np.mgrid[:48, :64]
    images = np.stack([np.stack([3 * x, 4 * y, np.full_like(x, 9 * i)], -1) for i in range(count)]).astype(np.uint8)
    files = []
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, form, **({"quality": 100, "subsampling": 0} if form == "JPEG" else {}))
        files.append(stream.getvalue())
    return files, images


def _check(source: Path, kabuki: Path, **options: Any) -> None:
    """Converts a source, and reads the result with every reader."""
    result = kabuki_rlds.convert(source, kabuki, overwrite=True, **options)
    assert kabuki_rlds.validate(kabuki) == []
    assert main(["validate", str(kabuki)]) == 0 and main(["inspect", str(kabuki)]) == 0
    assert kabuki_rlds.inspect(kabuki).num_steps == result.num_steps
    with kabuki_rlds.open(kabuki) as episodes:
        assert len(episodes) == result.num_episodes
        rows = np.concatenate([episode.steps["reward"] for episode in episodes])
    steps = list(kabuki_rlds.load_steps(kabuki, 5, keep_last=True, as_numpy=True))
    np.testing.assert_array_equal(np.concatenate([batch["reward"] for batch in steps]), rows)
    assert list(kabuki_rlds.load_transitions(kabuki, 5, shuffle=True, as_numpy=True))
    assert list(kabuki_rlds.load_windows(kabuki, 5, 2, pad=True, as_numpy=True))
    assert len(kabuki_rlds.dataset(kabuki)) and "reward" in kabuki_rlds.dataset(kabuki)[0]


def layouts(folder: Path) -> None:
    """Converts every layout of demonstrations."""
    ends = np.arange(9) % 4 == 3
    for source, options in (
        (layout_files.robomimic(folder / "robomimic.hdf5", {0: 4, 3: 2}), {}),
        (layout_files.libero(folder / "libero.hdf5", {0: 4, 1: 3}, "open the drawer"), {}),
        (layout_files.robosuite(folder / "robosuite.hdf5", {1: 4}), {"fill": {"reward": 0}}),
        (layout_files.aloha(folder / "aloha.hdf5", 6), {"fill": {"reward": 0}}),
        (layout_files.d4rl(folder / "d4rl.hdf5", terminals=ends, timeouts=np.zeros(9, bool)), {}),
        (layout_files.minari(folder / "minari.hdf5", [3, 5], _image_files("PNG", 3)[0]), {}),
    ):
        _check(source, folder / "kabuki.hdf5", **options)
        # Straight from the layout, too.
        with kabuki_rlds.open(source) as episodes:
            assert episodes[-1].num_steps


def exports(folder: Path) -> None:
    """Writes the layouts that can be written, and reads them again."""
    ends = np.arange(9) % 4 == 3
    demonstrations = layout_files.robomimic(folder / "demos.hdf5", {0: 4, 3: 2}, success=[3])
    flat = layout_files.d4rl(folder / "flat.hdf5", terminals=ends, timeouts=np.zeros(9, bool))
    written = (
        kabuki_rlds.export(demonstrations, folder / "robomimic.hdf5", "robomimic"),
        kabuki_rlds.export(demonstrations, folder / "lab" / "lift-v0", "minari"),
        kabuki_rlds.export(flat, folder / "d4rl.hdf5", "d4rl"),
    )
    for number, exported in enumerate(written):
        _check(exported.path, folder / f"again-{number}.hdf5")


def images(folder: Path) -> None:
    """Reads JPEG and PNG files, and writes them by a recipe."""
    recipe = folder / "recipe.yaml"
    for form in ("JPEG", "PNG"):
        files, pixels = _image_files(form, 6)
        source = layout_files.aloha(folder / "aloha.hdf5", len(files), files)
        for kept in ("arrays", "encoded"):
            _check(source, folder / f"{kept}.hdf5", fill={"reward": 0}, images=kept)
            (batch,) = kabuki_rlds.load_steps(folder / f"{kept}.hdf5", 9, keep_last=True, as_numpy=True)
            error = np.abs(batch["observation"]["images"]["top"].astype(int) - pixels)
            assert error.max() <= (0 if form == "PNG" else 9), error.max()
        operations = f"from: observation/images/top, flip: vertical, encode: {form.lower()}"
        recipe.write_text(f"steps:\n  observation/camera: {{{operations}}}\nrest: keep\n")
        _check(source, folder / "flipped.hdf5", fill={"reward": 0}, recipe=recipe)
        with h5py.File(folder / "flipped.hdf5") as file:
            assert file["observation/camera"][0].tobytes().startswith(b"\x89PNG" if form == "PNG" else b"\xff\xd8\xff")


def logs(folder: Path) -> None:
    """Reads an EnvLogger log."""
    result = kabuki_rlds.convert(FIXTURES / "envlogger_versions" / "1.2", folder / "log.hdf5")
    assert (result.num_episodes, kabuki_rlds.validate(folder / "log.hdf5")) == (4, [])


def records(folder: Path) -> None:
    """Records to HDF5, and appends to it."""
    path = folder / "recorded.hdf5"
    image = np.zeros((8, 8, 3), np.uint8)
    for run in range(2):
        with kabuki_rlds.Logger(path) as logger:
            for _ in range(3):
                logger.reset({"image": image, "state": np.zeros(2)})
                for t in range(4):
                    logger.step(np.float32(t), 1.0, {"image": image + t, "state": np.ones(2)}, terminal=t == 3)
        assert len(kabuki_rlds.open(path)) == 3 * (run + 1)
    _check(path, folder / "again.hdf5")


def by_hand(folder: Path) -> None:
    """Reads a file that was made with h5py."""
    _check(handmade.write(folder / "hand.hdf5", handmade.fields()), folder / "kabuki.hdf5")


def run(folder: Path) -> None:
    """Runs all steps."""
    heavy = {*EXTRAS, "simplejpeg"}
    assert not [each for each in heavy if sys.modules.get(each) is not None], "imported with the package"
    for part in (by_hand, layouts, exports, images, logs, records):
        (folder / part.__name__).mkdir()
        part(folder / part.__name__)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
    print("done")
