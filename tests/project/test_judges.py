"""PyTorch, Grain, JAX and robomimic read Kabuki files and exports; the files that robosuite ships are converted.

These packages are large, so they have a Python of their own, without TensorFlow: `make test-judges` sets it up.
"""

import itertools
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import h5py
import numpy as np
import pytest

from kabuki_rlds import build, convert, validate
from kabuki_rlds.commands.export import export
from tests import handmade, layout_files
from tests.places import ROOT
from tests.project import documentation
from tests.project.test_documentation import check_output

PYTHON = os.environ.get("JUDGES_PYTHON", "") and os.path.abspath(os.environ["JUDGES_PYTHON"])
if not PYTHON:
    pytest.skip("JUDGES_PYTHON names no Python with PyTorch, Grain, JAX, robomimic, robosuite", allow_module_level=True)


@pytest.mark.parametrize(
    ("module", "check", "images"),
    [
        ("torch_loaders", "fork", "encoded"),
        ("torch_loaders", "spawn", "arrays"),
        ("torch_loaders", "parts", "encoded"),
        ("grain_loaders", "dataset", "encoded"),
        ("grain_loaders", "loader", "arrays"),
    ],
)
def test_each_index_arrives_once_with_the_values_of_h5py(module, check, images, converted, tmp_path):
    lengths = [1 + 7 * number % 40 for number in range(100)]
    steps = {"episodes/last_is_step": np.zeros(len(lengths), bool), **handmade.fields(lengths, [True] * len(lengths))}
    version = {"format_version": "1.1"}
    many = handmade.write(
        tmp_path / "many.hdf5", steps | handmade.index(lengths), handmade.attributes(lengths) | version
    )
    files = [converted("every_kind", images), converted("every_kind", "arrays"), many, many]
    command = [PYTHON, "-W", "ignore::UserWarning", "-m", f"tests.judges.{module}", check, *files]
    subprocess.run(command, check=True, cwd=ROOT, stdout=sys.stderr, timeout=240)


@pytest.fixture(name="home", scope="module")
def _home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    documentation.make_folder(home)
    return home


EXAMPLES = [
    block
    for page in ("README.md", "docs/guides/training.md")
    for block in documentation.blocks(ROOT / page)
    if re.search(r"^(import|from) (grain|jax|torch)\b", block.text, re.MULTILINE)
]


@pytest.mark.parametrize("block", EXAMPLES, ids=lambda block: block.where)
def test_examples_of_the_documentation_run_without_tensorflow(block, home, tmp_path):
    stand_ins = "value = lambda observation: observation[:, 0]\nupdate = lambda *batch: None\n"
    (tmp_path / "example.py").write_text(stand_ins + block.text)
    command = [PYTHON, "-W", "ignore::UserWarning", tmp_path / "example.py"]
    printed = subprocess.run(command, check=True, cwd=home, stdout=subprocess.PIPE, text=True, timeout=240).stdout
    check_output(printed, block.output, home)


def test_there_is_an_example_for_each_framework():
    for name in ("torch", "torch.utils.data", "grain", "jax"):
        assert any(re.search(rf"^(import|from) {re.escape(name)}\b", block.text, re.MULTILINE) for block in EXAMPLES)


def test_robomimic_reads_equal_sequences_from_the_export_and_the_original(tmp_path):
    masks = {"train": [0, 10], "valid": [3]}
    demo = layout_files.robomimic(tmp_path / "demo.hdf5", {0: 30, 3: 4, 10: 12, 2: 1}, success=[0, 2], masks=masks)
    with h5py.File(demo, "a") as file:
        for kind, each in itertools.product(("obs", "next_obs"), file["data"].values()):
            # robomimic names pictures at one level.
            each.move(f"{kind}/camera/agentview_image", f"{kind}/agentview_image")
            del each[f"{kind}/camera"]
    convert(demo, tmp_path / "k.hdf5")
    built = build(demo, tmp_path / "rlds", name="lift").path
    files = [demo]
    for way, source in (("straight", demo), ("kabuki", tmp_path / "k.hdf5"), ("rlds", built)):
        export(source, tmp_path / f"{way}.hdf5", "robomimic")
        files.append(tmp_path / f"{way}.hdf5")
    script = ROOT / "tests" / "robomimic_sequences.py"
    served = [file.with_suffix(".npz") for file in files]
    pairs = [path for pair in zip(files, served, strict=True) for path in pair]
    subprocess.run([PYTHON, script, *pairs], check=True, stdout=sys.stderr)
    expected, *found = (dict(np.load(path)) for path in served)
    assert [len(expected[f"{mask}/actions"]) for mask in (None, "train", "valid")] == [47, 42, 4]
    for sequences in found:
        assert set(sequences) == set(expected)
        for path, values in expected.items():
            assert sequences[path].dtype == values.dtype, path
            np.testing.assert_array_equal(sequences[path], values, err_msg=path)


def _demonstrations():
    """The folder of robosuite's demonstrations; nothing of it is imported."""
    find = "import importlib.util as u; print(u.find_spec('robosuite').submodule_search_locations[0])"
    found = subprocess.run([PYTHON, "-c", find], check=True, capture_output=True, text=True).stdout.strip()
    return pathlib.Path(found, "models", "assets", "demonstrations")


@pytest.mark.parametrize("name", ["lift", "wipe/panda", "handover/panda_panda"])
def test_robosuite_demonstrations_are_converted(tmp_path, name):
    source = _demonstrations() / name / "demo.hdf5"
    convert(source, tmp_path / "k.hdf5", fill={"reward": 0})
    assert not validate(tmp_path / "k.hdf5")
    built = build(source, tmp_path / "rlds", name="demonstrations", fill={"reward": 0})
    with h5py.File(source) as theirs, h5py.File(tmp_path / "k.hdf5") as ours:
        demos = sorted(theirs["data"].values(), key=lambda demo: int(demo.name.rpartition("_")[2]))
        assert len(ours["episodes/start"]) == built.num_episodes == len(demos)
        assert built.num_steps == len(ours["action"]) == sum(len(demo["actions"]) for demo in demos)
        of_steps = 0
        for number, demo in enumerate(demos):
            rows = slice(ours["episodes/start"][number], ours["episodes/start"][number] + len(demo["actions"]))
            stored: dict[str, Any] = {}
            demo.visititems(
                lambda path, item, into=stored: into.update({path: item[()]}) if _is_dataset(item) else None
            )
            for path, values in stored.items():
                at = {"actions": "action", "states": "observation/states"}.get(path, path)
                of_episode = ours.get(f"episodes/metadata/attributes/{path}")
                if of_episode is None:
                    np.testing.assert_array_equal(ours[at][rows], values, err_msg=path)
                    of_steps += 1
                else:
                    np.testing.assert_array_equal(of_episode[number], values.ravel(), err_msg=path)
            metadata = ours["episodes/metadata"]
            assert metadata["attributes/model_file"].asstr()[number] == demo.attrs["model_file"]
            assert metadata["file/env"].asstr()[number] == theirs["data"].attrs["env"]
        assert of_steps >= 2 * len(demos)


def _is_dataset(item):
    return isinstance(item, h5py.Dataset)
