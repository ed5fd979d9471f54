"""robomimic's own `SequenceDataset` reads what is exported, and serves the sequences of the original file.

It needs PyTorch, so it has a Python of its own: `make test-robomimic` sets it up.
"""

import os
import pathlib
import subprocess
import sys

import h5py
import numpy as np
import pytest

from kabuki_rlds import build, convert
from kabuki_rlds.export import export
from tests import layout_files

PYTHON = os.environ.get("ROBOMIMIC_PYTHON", "")
if not PYTHON:
    pytest.skip("ROBOMIMIC_PYTHON names no Python with robomimic", allow_module_level=True)

OBSERVATIONS = ("eef_pos", "agentview_image")


def _sequences(file, out, mask=None):
    script = pathlib.Path(__file__).with_name("robomimic_sequences.py")
    options = ["--mask", mask] if mask else []
    subprocess.run([PYTHON, script, file, out, *OBSERVATIONS, *options], check=True, stdout=sys.stderr)
    return dict(np.load(out))


@pytest.fixture(name="demo")
def _demo(tmp_path):
    masks = {"train": [0, 10], "valid": [3]}
    source = layout_files.robomimic(tmp_path / "demo.hdf5", {0: 30, 3: 4, 10: 12, 2: 1}, success=[0, 2], masks=masks)
    with h5py.File(source, "a") as file:
        for demo in file["data"].values():
            for kind in ("obs", "next_obs"):
                file.move(f"{demo.name}/{kind}/camera/agentview_image", f"{demo.name}/{kind}/agentview_image")
                del demo[f"{kind}/camera"]
    return source


@pytest.mark.parametrize("way", ["kabuki", "rlds", "straight"])
def test_its_sequences_are_those_of_the_original(tmp_path, demo, way):
    source = demo
    if way == "kabuki":
        convert(demo, tmp_path / "k.hdf5")
        source = tmp_path / "k.hdf5"
    elif way == "rlds":
        source = build(demo, tmp_path / "rlds", name="lift").path
    export(source, tmp_path / "back.hdf5", "robomimic")
    for mask, count in ((None, 47), ("train", 42), ("valid", 4)):
        expected = _sequences(demo, tmp_path / "old.npz", mask)
        found = _sequences(tmp_path / "back.hdf5", tmp_path / "new.npz", mask)
        assert set(found) == set(expected)
        assert len(expected["/actions"]) == count
        for path, values in expected.items():
            assert found[path].dtype == values.dtype, path
            np.testing.assert_array_equal(found[path], values, err_msg=path)
