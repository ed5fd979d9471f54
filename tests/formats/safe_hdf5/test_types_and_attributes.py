"""HDF5 types that h5py cannot read, or that crash it: attributes are ignored, datasets are rejected."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest

import kabuki_rlds
from kabuki_rlds.cli.main import main
from tests import handmade
from tests.places import CASES
from tests.robustness.test_demos_files import MADE

REGIONS = h5py.vlen_dtype(h5py.regionref_dtype)


def _regions(dataset: h5py.Dataset) -> np.ndarray:
    made = np.empty(1, object)
    made[0] = np.array([dataset.regionref[0:2], dataset.regionref[1:3]], h5py.regionref_dtype)
    return made


def _compound(dataset: h5py.Dataset) -> np.ndarray:
    inner = np.dtype([("regions", REGIONS)])
    made = np.zeros(1, np.dtype([("number", "i4"), ("inner", inner)]))
    made["inner"]["regions"] = _regions(dataset)
    return made


def _low_level(kind: Callable[[], h5py.h5t.TypeID]) -> Callable[[h5py.HLObject, h5py.Dataset], None]:
    """Creates an attribute without a value, because h5py cannot write values of this type."""

    def add(item: h5py.HLObject, dataset: h5py.Dataset) -> None:
        h5py.h5a.create(item.id, b"odd", kind(), h5py.h5s.create_simple((2,)))

    return add


def _opaque() -> h5py.h5t.TypeID:
    kind = h5py.h5t.create(h5py.h5t.OPAQUE, 7)
    kind.set_tag(b"a tag")
    return kind


def _in_compound(kind: h5py.h5t.TypeID) -> h5py.h5t.TypeID:
    made = h5py.h5t.create(h5py.h5t.COMPOUND, 8 + kind.get_size())
    made.insert(b"number", 0, h5py.h5t.STD_I32LE)
    made.insert(b"odd", 8, kind)
    return made


def _nested(kind: h5py.h5t.TypeID, depth: int) -> h5py.h5t.TypeID:
    for _ in range(depth):
        kind = h5py.h5t.array_create(kind, (1,))
    return kind


_SEQUENCE = h5py.h5t.vlen_create(h5py.h5t.STD_REF_DSETREG)

#: (function that adds an attribute to an object, given a dataset to refer to; the reason in the warning).
ATTRIBUTES: Mapping[str, tuple[Callable[[h5py.HLObject, h5py.Dataset], object], str]] = {
    "regions": (lambda item, d: item.attrs.create("odd", _regions(d), (1,), REGIONS), "references"),
    "regions in a compound": (lambda item, d: item.attrs.create("odd", _compound(d)), "references"),
    "no regions": (_low_level(lambda: _SEQUENCE), "references"),
    "sequences of regions": (_low_level(lambda: h5py.h5t.vlen_create(_SEQUENCE)), "references"),
    "arrays of regions": (_low_level(lambda: h5py.h5t.array_create(_SEQUENCE, (2,))), "references"),
    "compounds in sequences": (
        _low_level(lambda: h5py.h5t.vlen_create(_in_compound(_SEQUENCE))),
        "sequences of compounds",
    ),
    "one region": (lambda item, d: item.attrs.create("odd", d.regionref[:2], dtype=h5py.regionref_dtype), "references"),
    "one object": (lambda item, d: item.attrs.create("odd", d.ref, dtype=h5py.ref_dtype), "references"),
    "opaque": (lambda item, d: item.attrs.create("odd", np.void(b"some bytes")), "opaque data"),
    "opaque dates": (
        lambda item, d: item.attrs.create(
            "odd", np.array(["2020-02-02"], "M8[s]").astype(h5py.opaque_dtype(np.dtype("M8[s]")))
        ),
        "opaque data",
    ),
    "tagged": (_low_level(_opaque), "opaque data"),
    "sequence of opaque": (_low_level(lambda: h5py.h5t.vlen_create(_opaque())), "opaque data"),
    "bits": (_low_level(lambda: h5py.h5t.STD_B8LE), "bit fields"),
    "many bits": (_low_level(lambda: h5py.h5t.STD_B64BE), "bit fields"),
    "bits in an array": (_low_level(lambda: h5py.h5t.array_create(h5py.h5t.STD_B16LE, (3,))), "bit fields"),
    "bits in a compound": (_low_level(lambda: _in_compound(h5py.h5t.STD_B32LE)), "bit fields"),
    "a time": (_low_level(lambda: h5py.h5t.UNIX_D32LE), "times"),
    "deep": (_low_level(lambda: _nested(h5py.h5t.STD_I8LE, 100)), "types nested more than 32 deep"),
}

#: Objects of a Kabuki file.
PLACES = ("/", "observation", "reward", "companion", "companion/observation", "episodes", "episodes/metadata/seed")


def kabuki_file(path: Path, name: str, places: tuple[str, ...] = PLACES) -> Path:
    handmade.write(path, handmade.fields() | handmade.index(), handmade.attributes())
    with h5py.File(path, "r+") as file:
        file.create_group("companion/observation")
        for place in places:
            ATTRIBUTES[name][0](file[place], file["observation"])
    return path


#: Runs in a child process, because h5py could crash.
READ = """
import json, logging, pathlib, sys
import kabuki_rlds
from kabuki_rlds import export
from kabuki_rlds.recording.logger import Logger

notes = []
handler = logging.Handler()
handler.emit = lambda record: notes.append(record.getMessage())
logging.getLogger("kabuki_rlds").addHandler(handler)

out = pathlib.Path(sys.argv[1])

def record(path):
    # h5py stores the rows of these files contiguously.
    try:
        Logger(path).close()
    except kabuki_rlds.KabukiError as e:
        assert "cannot be appended to" in str(e)

READERS = {
    "validate": lambda path: kabuki_rlds.validate(path),
    "inspect": lambda path: kabuki_rlds.inspect(path),
    "convert": lambda path: kabuki_rlds.convert(path, out / "converted.hdf5", overwrite=True),
    "build": lambda path: kabuki_rlds.build(path, out / f"built-{path.stem}", name="x"),
    "load": lambda path: [list(episode["steps"]) for episode in kabuki_rlds.load(path)],
    "load_steps": lambda path: list(kabuki_rlds.load_steps(path, 4)),
    "load_windows": lambda path: list(kabuki_rlds.load_windows(path, 4, length=2, as_numpy=True)),
    "compare": lambda path: kabuki_rlds.compare(path, path),
    "record": record,
}
for path in map(pathlib.Path, sys.argv[2:]):
    for name, read in READERS.items():
        notes.clear()
        print(json.dumps([path.name, name]), flush=True)
        found = read(path)
        if name in ("validate", "compare"):
            assert found == [], found
        print(json.dumps([path.name, name, notes]), flush=True)
"""


def read_all(paths: list[Path], out: Path) -> dict[tuple[str, str], list[str]]:
    """Runs all readers on all files, and returns (file name, reader) to warnings."""
    done = subprocess.run([sys.executable, "-c", READ, out, *paths], capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (lines[-1], done.stderr[-2000:])
    return {(line[0], line[1]): line[2] for line in lines if len(line) == 3}


@pytest.mark.parametrize("half", [0, 1])
def test_unreadable_attributes_are_ignored_with_a_warning(half, tmp_path):
    names = list(ATTRIBUTES)[half::2]
    files = [kabuki_file(tmp_path / f"{i}.hdf5", name) for i, name in enumerate(names)]
    found = read_all(files, tmp_path)
    for i, name in enumerate(names):
        for reader in ("validate", "inspect", "convert", "build", "load", "load_steps", "load_windows"):
            (note,) = [note for note in found[f"{i}.hdf5", reader] if "cannot read" in note]
            assert note == (
                f"{files[i]}: attributes with types that h5py cannot read are ignored: "
                + ", ".join(f"'odd' of {place} ({ATTRIBUTES[name][1]})" for place in _in_order()[:5])
                + " and 2 more"
            )


def _in_order() -> list[str]:
    return sorted(("/" + place.strip("/") for place in PLACES), key=lambda path: path.split("/"))


def test_shared_case_with_region_references_is_read_with_a_warning(tmp_path):
    script = CASES / "mk_vlen_regref.py"
    if not script.is_file():
        pytest.skip("needs the shared cases")
    files = [tmp_path / "empty.hdf5", tmp_path / "full.hdf5"]
    subprocess.run([sys.executable, script, files[0]], check=True)
    subprocess.run([sys.executable, script, files[1], "x"], check=True)
    found = read_all(files, tmp_path)
    for file in files:
        for reader in ("validate", "inspect", "convert", "build", "load", "load_steps"):
            notes = [note for note in found[file.name, reader] if "ignored: 'regions' of /observation" in note]
            assert len(notes) == 1, reader


@pytest.mark.parametrize("layout", MADE)
@pytest.mark.parametrize("name", ["regions", "regions in a compound", "opaque", "bits"])
def test_layouts_ignore_unreadable_attributes(name, layout, tmp_path):
    path = MADE[layout](tmp_path / "f.hdf5")
    places: list[str] = []
    with h5py.File(path, "r+") as file:
        file.visit(places.append)
        some = next(file[place] for place in places if isinstance(file[place], h5py.Dataset) and file[place].ndim)
        for place in ("/", *places):
            ATTRIBUTES[name][0](file[place], some)
    command = ["-m", "kabuki_rlds.cli", "convert", path, tmp_path / "out.hdf5", "--fill", "reward=0"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    notes = [line for line in done.stderr.splitlines() if "cannot read are ignored" in line]
    assert len(notes) == 1 and f"{path}: " in notes[0]
    with h5py.File(tmp_path / "out.hdf5") as file:
        found: list[str] = []
        file.visit(found.append)
        assert not [path for path in found if path.endswith("/odd")]


@pytest.mark.parametrize("name", ["num_samples", "total", "num_demos", "env_args", "format", "features", "complete"])
def test_unreadable_attributes_with_a_meaning_are_ignored(name, tmp_path):
    made = MADE["robomimic"](tmp_path / "f.hdf5")
    kabuki = handmade.write(tmp_path / "k.hdf5", handmade.fields() | handmade.index(), handmade.attributes())
    for path in (made, kabuki):
        with h5py.File(path, "r+") as file:
            for item in (file, *file.values(), *file.get("data", {}).values()):
                item.attrs[name] = np.void(b"some bytes")
        out = kabuki_rlds.convert(path, tmp_path / "out.hdf5", overwrite=True, fill={"reward": 0})
        assert out.num_steps


def test_dimension_scales_cause_no_warning(tmp_path, caplog):
    path = handmade.write(tmp_path / "f.hdf5", handmade.fields())
    with h5py.File(path, "r+") as file:
        file["companion/axis"] = np.arange(2)
        file["companion/axis"].make_scale("axis")
        file["observation"].dims[1].attach_scale(file["companion/axis"])
    assert kabuki_rlds.validate(path) == []
    assert "cannot read" not in caplog.text


# --- datasets ---

KINDS: Mapping[str, tuple[Callable[[], h5py.h5t.TypeID], str]] = {
    "regions": (lambda: _SEQUENCE, "sequences of references, which crash h5py"),
    "sequences of regions": (lambda: h5py.h5t.vlen_create(_SEQUENCE), "sequences of references, which crash h5py"),
    "regions in a compound": (lambda: _in_compound(_SEQUENCE), "sequences of references, which crash h5py"),
    "regions in an array": (
        lambda: h5py.h5t.array_create(_SEQUENCE, (2,)),
        "sequences of references, which crash h5py",
    ),
    "one region": (lambda: h5py.h5t.STD_REF_DSETREG, "has the type object"),
    "opaque": (_opaque, "has the type |V7"),
    "a sequence of opaque": (lambda: h5py.h5t.vlen_create(_opaque()), "has the type |V7"),
    "bits in a compound": (lambda: _in_compound(h5py.h5t.STD_B8LE), "has the type a compound of 2 members"),
}


@pytest.mark.parametrize("place", ["odd", "observation/odd", "episodes/metadata/odd", "companion/reward/class_names"])
@pytest.mark.parametrize("kind", KINDS)
def test_unreadable_dataset_is_rejected_in_one_line(kind, place, tmp_path, capsys):
    fields = handmade.fields() | handmade.index()
    if place == "observation/odd":
        fields["observation/state"] = fields.pop("observation")
    path = handmade.write(tmp_path / "f.hdf5", fields)
    with h5py.File(path, "r+") as file:
        rows = 3 if place.startswith("episodes") else 8
        above, _, name = place.rpartition("/")
        group = file.require_group(above) if above else file
        h5py.h5d.create(group.id, name.encode(), KINDS[kind][0](), h5py.h5s.create_simple((rows,)))
        file["reward"].attrs["companion"] = "/companion/reward"
    assert main(["convert", str(path), str(tmp_path / "out.hdf5")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"kabuki-rlds: error: {path}: ")
    assert KINDS[kind][1] in line or place.startswith("companion"), line
    assert main(["validate", str(path)]) == 1
    output = capsys.readouterr()
    assert len([*output.err.splitlines(), *output.out.splitlines()]) == 1
    assert not (tmp_path / "out.hdf5").exists()


def test_only_the_attributes_module_reads_attributes():
    package = Path(kabuki_rlds.__file__).parent
    reading = set()
    for module in package.rglob("*.py"):
        tree = ast.parse(module.read_text())
        writes = {
            node.value
            for node in ast.walk(tree)
            if (isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store))
            or (isinstance(node, ast.Attribute) and node.attr == "update")
        }
        if any(
            isinstance(node, ast.Attribute) and node.attr == "attrs" and node not in writes for node in ast.walk(tree)
        ):
            reading.add(module.relative_to(package).as_posix())
    # The other modules read attributes that they have just written.
    assert reading == {"formats/safe_hdf5/attributes.py", "formats/hdf5/sink.py", "formats/demos/robomimic_sink.py"}
