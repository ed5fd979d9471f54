"""Files in the layouts of others that are damaged, or hold another thing in a place than the layout has."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    "observations of another length": (
        "aloha",
        {"observations/qpos": np.zeros((3, 14))},
        "observations/qpos: 3 rows, where there are 4 actions",
    ),
    "nothing for actions": ("d4rl", {"actions": NOTHING}, "no actions, so no steps"),
    "a single value for states": (
        "robosuite",
        {"data/demo_0/states": np.float32(3)},
        "demo_0/states: no rows, where there are 3 actions",
    ),
    "nothing for the next observations": (
        "robomimic",
        {"data/demo_0/next_obs/eef_pos": NOTHING},
        "demo_0/next_obs/eef_pos has no rows, where",
    ),
    "next observations of another length": (
        "robomimic",
        {"data/demo_1/next_obs/eef_pos": np.zeros((1, 3))},
        "demo_1/next_obs/eef_pos has 1 rows, where",
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
        for name, value in changes.items():  # type: ignore[attr-defined]
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
        with pytest.raises(kabuki_rlds.KabukiError, match="'/camera': invalid type or attributes"):
            read()


# --- damaged ---


def _damaged(path: Path, name: str) -> Path:
    """Stores a dataset anew, as one chunk that nothing unpacks."""
    with h5py.File(path, "r+") as file:
        values = file[name][()]
        attributes = dict(file[name].attrs)
        del file[name]
        dataset = file.create_dataset(name, data=values, chunks=values.shape, compression="gzip")
        dataset.attrs.update(attributes)
    return handmade.put_chunk(path, name, b"no chunk")


def _with_more(path: Path, layout: str) -> Path:
    with h5py.File(path, "r+") as file:
        if layout == "d4rl":
            file["metadata/returns"] = np.zeros(9)
        if layout == "robomimic":
            file["data/demo_0/gains"] = file["data/demo_1/gains"] = np.zeros(9)
            file["mask/train"] = np.array([b"demo_0"])
    return path


@pytest.mark.parametrize(
    ("layout", "name", "says"),
    [
        ("d4rl", "terminals", "cannot be read as d4rl: terminals: "),
        ("d4rl", "metadata/returns", "cannot be read as d4rl: metadata/returns: "),
        ("d4rl", "observations", "'observations': rows 0 to 3 cannot be read: "),
        ("minari", "episode_1/terminations", "cannot be read as minari: episode_1/terminations: "),
        ("minari", "episode_1/actions", "episode_1: field 'action': rows 0 to 1 cannot be read: "),
        ("robomimic", "data/demo_1/dones", "cannot be read as robomimic: data/demo_1/dones: "),
        ("robomimic", "data/demo_1/gains", "cannot be read as robomimic: data/demo_1/gains: "),
        ("robomimic", "mask/train", "cannot be read as robomimic: mask/train: "),
        (
            "robomimic",
            "data/demo_1/obs/eef_pos",
            "data/demo_1: field 'observation/eef_pos': rows 0 to 2 cannot be read",
        ),
        ("robosuite", "data/demo_0/states", "data/demo_0: field 'observation/states': rows 0 to 2 cannot be read: "),
        ("aloha", "observations/qpos", "the episode: field 'observation/qpos': rows 0 to 3 cannot be read: "),
    ],
)
def test_a_damaged_chunk_is_named(layout, name, says, tmp_path, capsys):
    path = _damaged(_with_more(MADE[layout](tmp_path / "f.hdf5"), layout), name)
    assert main(["convert", str(path), str(tmp_path / "out.hdf5"), "--fill", "reward=0", "--quiet"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"kabuki-rlds: error: {path}: {says}"), line
    assert [each.name for each in tmp_path.iterdir()] == ["f.hdf5"]


@pytest.mark.parametrize(("layout", "where"), [("d4rl", "/"), ("minari", "/episode_1"), ("robomimic", "/data/demo_1")])
def test_attribute_that_h5py_cannot_read_is_ignored_with_a_note(layout, where, tmp_path, capsys):
    path = MADE[layout](tmp_path / "f.hdf5")
    with h5py.File(path, "r+") as file:
        h5py.h5a.create(file[where].id, b"when", h5py.h5t.UNIX_D32LE, h5py.h5s.create(h5py.h5s.SCALAR))
    assert main(["convert", str(path), str(tmp_path / "out.hdf5"), "--quiet"]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if "'when'" in line]
    assert notes == [
        f"kabuki-rlds: warning: {path}: attributes with types that h5py cannot read are ignored: "
        f"'when' of {where} (times)"
    ]


def test_time_is_not_read_as_format_or_field(tmp_path, capsys):
    path = MADE["aloha"](tmp_path / "f.hdf5")
    with h5py.File(path, "r+") as file:
        h5py.h5d.create(file.id, b"when", h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((5,)))
        h5py.h5a.create(file.id, b"format", h5py.h5t.UNIX_D32LE, h5py.h5s.create(h5py.h5s.SCALAR))
    assert main(["inspect", str(path)]) == 1
    assert f"{path}: cannot be read as aloha: when: No NumPy equivalent" in capsys.readouterr().err
    assert main(["convert", str(path), str(tmp_path / "out.hdf5"), "--fill", "reward=0"]) == 1
    note, line = capsys.readouterr().err.splitlines()
    assert note.endswith("'format' of / (times)")
    assert line.startswith(f"kabuki-rlds: error: {path}: cannot be read as aloha: when: ")
    with h5py.File(path, "r+") as file:
        del file.attrs["format"]
    assert main(["convert", str(path), str(tmp_path / "out.hdf5"), "--fill", "reward=0"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"kabuki-rlds: error: {path}: cannot be read as aloha: when: ")


# --- what an episode says of itself ---


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.zeros(5, [("x", "f4")]), "calibration is of type [('x', '<f4')], and has not a row for each action"),
        (
            np.array([np.zeros(2, "f4"), np.zeros(3, "f4")], object),
            "calibration is arrays that vary in length",
        ),
    ],
)
def test_what_no_episode_can_say_is_refused(values, says, tmp_path, capsys):
    path = MADE["aloha"](tmp_path / "f.hdf5")
    with h5py.File(path, "r+") as file:
        dtype = h5py.vlen_dtype("f4") if values.dtype == object else values.dtype
        file.create_dataset("calibration", values.shape, dtype)[:] = values
    assert main(["convert", str(path), str(tmp_path / "out.hdf5"), "--fill", "reward=0"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"kabuki-rlds: error: {path}: {says}"), line


def test_text_of_an_episode_is_text_however_it_is_stored(tmp_path):
    path = MADE["aloha"](tmp_path / "f.hdf5")
    with h5py.File(path, "r+") as file:
        file["names"], file["nothing"] = np.array([b"left", b"right"]), NOTHING
        file["words"] = np.array(["é", "b", "c"], h5py.string_dtype())
    out = kabuki_rlds.convert(path, tmp_path / "out.hdf5", fill={"reward": 0}).path
    assert not kabuki_rlds.validate(out)
    with h5py.File(out) as file:
        said = file["episodes/metadata/file"]
        assert said["names"][0].tolist() == [b"left", b"right"]
        assert said["words"].asstr()[0].tolist() == ["é", "b", "c"]
        assert said["nothing"][0] == b""
        assert h5py.check_string_dtype(said["names"].dtype).length is None


def test_arrays_that_say_they_are_longer_than_their_file_are_refused(tmp_path, capsys):
    path = MADE["d4rl"](tmp_path / "f.hdf5")
    with h5py.File(path, "r+") as file:
        layers = file.create_dataset("metadata/layers", (2,), h5py.vlen_dtype("f4"))
        layers[0], layers[1] = np.zeros(2), np.zeros(3)
        at = layers.id.get_offset()
    stored = bytearray(path.read_bytes())
    stored[at : at + 4] = (1 << 30).to_bytes(4, "little")
    path.write_bytes(stored)
    assert main(["convert", str(path), str(tmp_path / "out.hdf5")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "metadata/layers: the rows declare 4,294,967,308 bytes, but the file has only " in line


def test_image_files_where_the_layout_has_none(tmp_path, capsys):
    path = MADE["aloha"](tmp_path / "f.hdf5")
    with h5py.File(path, "r+") as file:
        files = file.create_dataset("observations/camera", (4,), h5py.vlen_dtype("u1"))
        files.attrs.update({"kind": "image", "encoded": True, "shape": [48, 64, 3], "dtype": "uint8"})
    assert main(["convert", str(path), str(tmp_path / "out.hdf5"), "--fill", "reward=0"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"kabuki-rlds: error: {path}: observations/camera: an attribute of Kabuki's says")


# --- episodes without steps ---


@pytest.mark.parametrize("repeat", [False, True])
@pytest.mark.parametrize(
    ("make", "label"),
    [
        (robomimic, "data/demo_1"),
        (lambda path: layout_files.robomimic(path, {0: 3, 1: 2}, next_obs=False), "data/demo_1"),
        (lambda path: layout_files.robosuite(path, {0: 3, 1: 2}), "data/demo_1"),
        (MADE["aloha"], ""),
    ],
)
def test_an_episode_without_actions_is_left_out_if_it_is_not_the_only_one(make, label, repeat, tmp_path, capsys):
    path = make(tmp_path / "f.hdf5")
    with h5py.File(path, "r+") as file:
        group = file[label] if label else file
        names: list[str] = []
        group.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        for name in names:
            none = group[name][:0]
            del group[name]
            group[name] = none
        if label:
            group.attrs["num_samples"] = 0
            file["data"].attrs["total"] = 3
    assume = ["--assume", "last_observation=repeat"] if repeat else []
    out = tmp_path / "out.hdf5"
    code = main(["convert", str(path), str(out), "--fill", "reward=0", *assume])
    error = capsys.readouterr().err
    if make is robomimic and repeat:
        # Its files hold the last observation.
        assert (code, error.count("\n")) == (1, 1)
        assert "last_observation=repeat cannot apply" in error
    elif not label:
        assert (code, error) == (1, f"kabuki-rlds: error: {path}: no actions, so no steps\n")
    else:
        assert code == 0
        assert f"kabuki-rlds: warning: {path}: record 1: {label}: no actions, so no steps; left out\n" in error
        assert error.endswith("kabuki-rlds: warning: 1 episode was left out (empty or damaged); inspect names them\n")
        with h5py.File(out) as file:
            assert file["episodes/length"][:].tolist() == [4 if repeat or make is robomimic else 3]
        assert main(["inspect", str(out)]) == 0
        assert f"  left out  {path}: record 1: {label}: no actions, so no steps\n" in capsys.readouterr().out


@pytest.mark.parametrize(("layout", "group"), [("robomimic", "data/demo_"), ("minari", "episode_")])
def test_a_number_of_thousands_of_digits_is_none(layout, group, tmp_path, caplog):
    path = MADE[layout](tmp_path / "f.hdf5")
    with h5py.File(path, "r+") as file:
        file.create_group(group + "1" * 5000)
    assert kabuki_rlds.convert(path, tmp_path / "out.hdf5").num_episodes == 2
    assert f"{group}{'1' * 5000}: not in the layout, and left out" in caplog.text


# --- files that change ---


def _two(folder: Path, layout: str) -> tuple[Path, Path]:
    """Two datasets in one layout, and the file of the first that is to change."""
    if layout == "minari in Parquet":
        first, _ = (layout_files.minari_arrow(folder / f"{name}-v0", [3, 2]) for name in "ab")
        return first / "data", next((first / "data" / "1").glob("*.parquet"))
    first, _ = (MADE[layout](folder / f"{name}.hdf5") for name in "ab")
    return first, first


def _swap(file: Path) -> None:
    """Swaps the lengths of two episodes, which leaves the size as it is."""
    if file.suffix == ".parquet":
        other = next(file.parents[1].joinpath("0").glob("*.parquet"))
        for name in (file.name, "metadata.json"):
            one, two = file.parent / name, other.parent / name
            one.rename(file.parent / "moved")
            two.rename(one)
            (file.parent / "moved").rename(two)
        return
    with h5py.File(file, "r+") as h5:
        group, names = (h5["data"], ("demo_0", "demo_1")) if "data" in h5 else (h5, ("episode_0", "episode_1"))
        for old, new in ((names[0], "moved"), (names[1], names[0]), ("moved", names[1])):
            group.move(old, new)


CHANGES: dict[str, Callable[[Path], None]] = {
    "touched": lambda file: os.utime(file, ns=(0, file.stat().st_mtime_ns + 1)),
    "cut": lambda file: os.truncate(file, 100),
    "gone": os.unlink,
    "other lengths at the same time": _swap,
}


@pytest.mark.parametrize("layout", ["robomimic", "minari", "minari in Parquet"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_between_a_look_at_it_and_its_reading(change, layout, tmp_path, monkeypatch):
    from kabuki_rlds.formats.hdf5.sink import KabukiSink

    made = tmp_path / "made"
    made.mkdir()
    path, file = _two(made, layout)
    begin = KabukiSink.__enter__

    def change_it(self):
        # All files were looked at by now, and a first block was read to learn how large it is.
        times = {each: each.stat().st_mtime_ns for each in made.rglob("*")}
        CHANGES[change](file)
        if change == "other lengths at the same time":
            for each, time in times.items():
                os.utime(each, ns=(time, time))
        return begin(self)

    monkeypatch.setattr(KabukiSink, "__enter__", change_it)
    with pytest.raises(kabuki_rlds.KabukiError, match=re.escape(f"{path}: changed while it was read")):
        kabuki_rlds.convert(made, tmp_path / "out.hdf5")
    assert [each.name for each in tmp_path.iterdir()] == ["made"]


# Its layout is found out the first two times, then what it has, and then how long its episodes are.
@pytest.mark.parametrize("times", [3, 4])
def test_a_file_that_changes_while_the_next_is_looked_at(times, tmp_path, monkeypatch):
    made = tmp_path / "made"
    made.mkdir()
    first, second = (layout_files.aloha(made / f"episode_{number}.hdf5", 4) for number in range(2))
    begin = h5py.File.__init__
    opened: list[str] = []

    def change_it(self, name, *args, **kwargs):
        begin(self, name, *args, **kwargs)
        opened.append(str(name))
        if opened[-1] == str(second) and opened.count(str(second)) == times:
            layout_files.aloha(first.with_suffix(".new"), 5).replace(first)

    monkeypatch.setattr(h5py.File, "__init__", change_it)
    with pytest.raises(kabuki_rlds.KabukiError, match=r"episode_0.hdf5: changed while it was read"):
        kabuki_rlds.convert(made, tmp_path / "out.hdf5", fill={"reward": 0})


# --- Minari ---


def _minari(folder: Path, data_format: str) -> Path:
    """The folder with the data of three episodes of Minari's, with `metadata.json`, in whichever of its storages."""
    if data_format != "hdf5":
        return layout_files.minari_arrow(folder / "door-v0", [4, 1, 3], data_format) / "data"
    data = folder / "door-v0" / "data"
    data.mkdir(parents=True)
    layout_files.minari(data / "main_data.hdf5", [4, 1, 3])
    (data / "metadata.json").write_text(json.dumps({"total_episodes": 3, "total_steps": 8, "data_format": "hdf5"}))
    return data


def _error(capsys: pytest.CaptureFixture[str], source: Path) -> str:
    """The one line that `convert` says."""
    out = source.parent / "out.hdf5"
    assert main(["convert", str(source), str(out), "--quiet"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kabuki-rlds: error: ")
    assert "this is a bug" not in line
    assert not out.exists()
    return line.removeprefix("kabuki-rlds: error: ")


@pytest.mark.parametrize("key", ["total_episodes", "total_steps"])
@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
def test_episodes_that_are_missing_are_an_error(tmp_path, data_format, key, capsys):
    data = _minari(tmp_path, data_format)
    said = json.loads((data / "metadata.json").read_text())
    (data / "metadata.json").write_text(json.dumps({**said, key: 9}))
    count = {"total_episodes": 3, "total_steps": 8}[key]
    message = f"{data / 'metadata.json'}: says {key} 9, but there are {count}; correct the number or the file"
    assert _error(capsys, data.parent) == message


@pytest.mark.parametrize("key", ["total_episodes", "total_steps"])
def test_counts_that_a_file_says_by_itself_are_checked(tmp_path, key, capsys):
    path = MADE["minari"](tmp_path / "f.hdf5")
    with h5py.File(path, "r+") as file:
        file.attrs.update({"total_episodes": 2, "total_steps": 4, key: 9})
    assert _error(capsys, path).startswith(f"{path}: says {key} 9, but there are ")
    # `metadata.json` is the newer way to say it.
    (tmp_path / "metadata.json").write_text(json.dumps({"total_episodes": 2, "total_steps": 4}))
    assert kabuki_rlds.convert(path, tmp_path / "out.hdf5").num_episodes == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "cannot be read: it is no dict"),
        ("{", "cannot be read: Expecting property name"),
        ('{"observation_space": "{"}', "cannot be read: Expecting property name"),
        ("{}" + " " * (16 << 20), "has 16,777,218 bytes, more than the limit of 16,777,216"),
    ],
)
@pytest.mark.parametrize("data_format", ["hdf5", "parquet"])
def test_metadata_that_make_no_sense(tmp_path, data_format, text, message, capsys):
    data = _minari(tmp_path, data_format)
    (data / "metadata.json").write_text(text)
    assert _error(capsys, data.parent).startswith(f"{data / 'metadata.json'}: {message}")


def test_metadata_of_others_are_passed_over(tmp_path):
    """`metadata.json` is what other recorders write as well, and not always a dict."""
    folder = tmp_path / "episodes"
    folder.mkdir()
    MADE["aloha"](folder / "episode_0.hdf5")
    (folder / "metadata.json").write_text('[{"robot": "aloha"}]')
    assert kabuki_rlds.convert(folder, tmp_path / "out.hdf5", fill={"reward": 0}).num_episodes == 1


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("terminations", 1.0, ": no terminations, one a step"),
        ("terminations", np.array([b"False"]), "/terminations is of type |S5, and no flag"),
        ("actions", [1, 2, 3, 4], "/actions: 4 rows, where there are 1 steps"),
        ("observations/joints", [1], "/observations/joints: 1 rows, where there are 1 steps"),
        ("observations/joints", 1.0, "/observations/joints: no rows, where there are 1 steps"),
        ("total_steps", 4, ": says total_steps 4, but has 1 terminations"),
        ("total_steps", [4, 4], ": says total_steps [4 4], but has 1 terminations"),
    ],
)
def test_episodes_that_make_no_sense(tmp_path, path, value, message, capsys):
    source = MADE["minari"](tmp_path / "f.hdf5")
    with h5py.File(source, "r+") as file:
        if path == "total_steps":
            file["episode_1"].attrs[path] = value
        else:
            del file[f"episode_1/{path}"]
            file[f"episode_1/{path}"] = value
    assert _error(capsys, source) == f"{source}: episode_1{message}"


def _with(name: str, values: Any) -> Callable[[Any], Any]:
    import pyarrow as pa

    return lambda table: table.set_column(table.column_names.index(name), name, pa.array(values))


@pytest.mark.parametrize("data_format", ["arrow", "parquet"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: None, "data/1: no .{} file"),
        # Not an empty episode, since its metadata say that it has a step.
        (lambda table: table.slice(0, 1), "data/1: says total_steps 1, but has 1 rows, the last of which is none"),
        (lambda table: table.slice(0, 2).take([0, 0, 1]), "data/1: says total_steps 1, but has 3 rows, the last of"),
        (lambda table: table.drop_columns(["rewards"]), "data/1: the table has no column for reward"),
        (_with("rewards", [None, 0.5]), "data/1: rewards: 1 rows without a value"),
        (_with("rewards", [[1.0, None], [2.0, 3.0]]), "'reward' is float64 in .*0, but float64 .*in .*1"),
        (_with("observations", [[1, 2], [3, 4]]), "'observation' is float64 .3,. in .* but int64"),
        (_with("actions", np.zeros(2, "datetime64[s]")), "data/1: actions: timestamp.* is no type of a field"),
        (_with("terminations", [{"a": 1}, {"a": 0}]), "data/1: terminations is of type struct.*, and no flag"),
        (_with("terminations", ["False", "False"]), "data/1: terminations is of type string, and no flag"),
    ],
)
def test_tables_that_make_no_sense(tmp_path, capsys, data_format, change, message):
    data = _minari(tmp_path, data_format)
    layout_files.change_table(data / "1", data_format, change)
    line = _error(capsys, data.parent)
    assert re.search(message.format(data_format), line), line


@pytest.mark.parametrize("data_format", ["arrow", "parquet"])
def test_elements_without_a_value(tmp_path, capsys, data_format):
    data = layout_files.minari_arrow(tmp_path / "door-v0", [1], data_format) / "data"
    layout_files.change_table(data / "0", data_format, _with("rewards", [[1.0, None], [2.0, 3.0]]))
    assert _error(capsys, data.parent) == (
        f"{data / '0'}: rewards: 1 elements without a value, for which there is no form"
    )


@pytest.mark.parametrize("data_format", ["arrow", "parquet"])
def test_a_table_that_is_damaged(tmp_path, capsys, data_format):
    data = _minari(tmp_path, data_format)
    (file,) = (data / "1").glob(f"*.{data_format}")
    file.write_bytes(file.read_bytes()[:-20])
    line = _error(capsys, data.parent)
    assert line.startswith(f"{data}: cannot be read as minari: ")
    assert str(file) in line


def test_a_dataset_of_no_episodes(tmp_path, capsys):
    data = layout_files.minari_arrow(tmp_path / "door-v0", []) / "data"
    assert _error(capsys, data.parent) == f"{data}: holds no episode"


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"type": "Box", "shape": [4]}, "lists of 3 values, where its shape is (4,)"),
        ({"type": "Box", "shape": [-1, -3]}, "lists of 3 values, where its shape is (-1, -3)"),
        ({"type": "MultiBinary", "n": [2, 2]}, "lists of 3 values, where its shape is (2, 2)"),
        ({"type": "MultiDiscrete", "nvec": [5]}, "lists of 3 values, where its shape is (1,)"),
        ({"type": "Box"}, "its space in metadata.json has no shape that makes sense: 'shape'"),
        ({"type": "Box", "shape": [1.5, 2]}, "its space in metadata.json has no shape that makes sense: 'float'"),
        ({"type": "Box", "shape": None}, "its space in metadata.json has no shape that makes sense: 'NoneType'"),
        ({"type": "MultiDiscrete", "nvec": [[1], [1, 2]]}, "its space in metadata.json has no shape that makes sense"),
    ],
)
def test_a_space_that_does_not_fit_its_lists(tmp_path, capsys, space, message):
    data = _minari(tmp_path, "parquet")
    said = json.loads((data / "metadata.json").read_text())
    (data / "metadata.json").write_text(json.dumps({**said, "observation_space": json.dumps(space)}))
    assert _error(capsys, data.parent).startswith(f"{data / '0'}: observations: {message}")


@pytest.mark.parametrize("shape", ["3", "2,x", "-3"])
def test_a_shape_that_does_not_fit_the_lists_of_infos(tmp_path, capsys, shape):
    import pyarrow as pa

    def change(table: Any) -> Any:
        place = pa.field("place", pa.list_(pa.float64(), 2), metadata={"shape": shape})
        infos = pa.StructArray.from_arrays([pa.array([[1.0, 2.0]] * len(table), place.type)], fields=[place])
        return table.append_column("infos", infos)

    data = layout_files.minari_arrow(tmp_path / "door-v0", [1]) / "data"
    layout_files.change_table(data / "0", "parquet", change)
    assert _error(capsys, data.parent).startswith(f"{data / '0'}: infos/place: lists of 2 values, where its shape is ")
