"""Files in the layouts of others that are damaged, or hold another thing in a place than the layout has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

import kabuki_rlds
from kabuki_rlds.cli.main import main
from tests import handmade, layout_files


def robomimic(path: Path) -> Path:
    return layout_files.robomimic(path, {0: 3, 1: 2})


def d4rl(path: Path) -> Path:
    ends = np.array([0, 0, 1, 0], bool)
    return layout_files.d4rl(path, terminals=ends, timeouts=np.roll(ends, 1))


MADE: dict[str, Callable[[Path], Path]] = {
    "robomimic": robomimic,
    "robosuite": lambda path: layout_files.robosuite(path, {0: 3}),
    "aloha": lambda path: layout_files.aloha(path, 4),
    "d4rl": d4rl,
    "minari": lambda path: layout_files.minari(path, [3, 1]),
}

NOTHING = h5py.Empty("f4")

CASES = {
    "a single value for actions": ("aloha", {"action": np.float32(3)}, "action"),
    "nothing for actions": ("d4rl", {"actions": NOTHING}, "no actions, so no steps"),
    "a single value for states": (
        "robosuite",
        {"data/demo_0/states": np.float32(3)},
        "demo_0/states: no rows, where there are 3 actions",
    ),
    "nothing for the next observations": (
        "robomimic",
        {"data/demo_0/next_obs/eef_pos": NOTHING},
        "next_obs/eef_pos is of another type or shape than /data/demo_0/obs/eef_pos",
    ),
    "next observations of another length": (
        "robomimic",
        {"data/demo_1/next_obs/eef_pos": np.zeros((1, 3))},
        "demo_1/next_obs/eef_pos has 1 rows, where data/demo_1/obs/eef_pos has 2",
    ),
    "next observations of another type": (
        "robomimic",
        {"data/demo_1/next_obs/eef_pos": np.zeros((2, 3), np.float32)},
        "next_obs/eef_pos is of another type or shape than /data/demo_1/obs/eef_pos",
    ),
    "a single value for a flag": ("minari", {"episode_1/terminations": np.bool_(True)}, "no terminations"),
    "a mask that is one name": ("robomimic", {"mask/train": b"demo_0"}, "mask/train is no list of demonstrations"),
}


@pytest.mark.parametrize("case", CASES)
def test_another_thing_in_a_place_is_refused(case, tmp_path, capsys):
    layout, changes, says = CASES[case]
    path = MADE[layout](tmp_path / "f.hdf5")
    with h5py.File(path, "r+") as file:
        for name, value in changes.items():
            if name in file:
                del file[name]
            file[name] = value
    assert main(["convert", str(path), str(tmp_path / "out.hdf5"), "--fill", "reward=0"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"kabuki-rlds: error: {path}")
    assert says in line
    assert [each.name for each in tmp_path.iterdir()] == ["f.hdf5"]


def test_an_attribute_that_is_no_utf8_is_kept_to_the_byte(tmp_path):
    path = robomimic(tmp_path / "f.hdf5")
    with h5py.File(path, "r+") as file:
        file["data/demo_1"].attrs.create("model_file", b"\xff\xfe", dtype=h5py.string_dtype())
    out = kabuki_rlds.convert(path, tmp_path / "out.hdf5").path
    with h5py.File(out) as file:
        assert file["episodes/metadata/attributes/model_file"][1] == b"\xff\xfe"
        assert file["episodes/metadata/attributes/model_file"][0] == b"<mujoco model='0'/>"


@pytest.mark.parametrize(
    ("dtype", "attributes"),
    [
        ("f4", {"shape": [40, 32, 3]}),
        ("u1", {"shape": [40, 32, 3], "dtype": "float32"}),
        ("u1", {"shape": [40, 32, 5], "dtype": "uint8"}),
        ("u1", {"shape": [40]}),
    ],
)
def test_there_are_no_image_files_of_what_is_no_image(dtype, attributes, tmp_path):
    rows = np.empty(8, object)
    rows[:] = [np.arange(3, dtype=dtype) for _ in range(8)]
    stored = handmade.Stored(rows, {"dtype": h5py.vlen_dtype(dtype)}, {"kind": "image", "encoded": True, **attributes})
    path = handmade.write(tmp_path / "f.hdf5", handmade.fields() | {"camera": stored})
    for read in (
        lambda: kabuki_rlds.convert(path, tmp_path / "out.hdf5"),
        lambda: next(iter(kabuki_rlds.load_steps(path, 4, as_numpy=True))),
    ):
        with pytest.raises(kabuki_rlds.KabukiError, match="'/camera' has a type or attributes that make no sense"):
            read()
