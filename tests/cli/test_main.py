"""The output and exit codes of the command line.

What must do without TensorFlow runs in a process of its own that cannot import it.
What needs TensorFlow runs in this one, which has it loaded, but for one test that
looks at the noise of its start.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import h5py
import numpy as np
import pytest

from kabuki_rlds import __version__, validate
from kabuki_rlds.cli import inspect as inspect_command
from kabuki_rlds.cli.main import main
from tests import handmade


class Result(NamedTuple):
    """The exit code, stdout and stderr of a call."""

    code: int
    out: str
    err: str


_NO_TENSORFLOW = """
import runpy, sys
for name in ("tensorflow", "tensorflow_datasets", "envlogger", "rlds"):
    sys.modules[name] = None  # An import of it fails.
sys.argv[0] = "kabuki-rlds"
runpy.run_module("kabuki_rlds.cli", run_name="__main__")
"""


def process(*arguments, code=("-m", "kabuki_rlds.cli"), **options) -> Result:
    """Runs the command in a new process."""
    command = [sys.executable, *code, *map(str, arguments)]
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"} | {"COLUMNS": "80"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, **options)
    return Result(done.returncode, done.stdout, done.stderr)


def light(*arguments, **options) -> Result:
    """Runs the command in a process where TensorFlow and other large packages cannot be imported."""
    return process(*arguments, code=("-c", _NO_TENSORFLOW), **options)


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs the command in this process."""

    def run(*arguments) -> Result:
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as e:
            code = e.code  # type: ignore[assignment]
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture
def valid(tmp_path):
    # Without the flag, the rewards in the last rows cause a warning.
    fields = handmade.fields() | handmade.index() | {"episodes/last_is_step": np.zeros(3, bool)}
    return handmade.write(tmp_path / "valid.hdf5", fields, handmade.attributes())


def assert_fails(result: Result, *words: str, code: int = 1) -> None:
    """Asserts that the last line of stderr is the error, and that earlier lines are not errors."""
    *before, error = result.err.splitlines()
    assert result.code == code
    assert result.out == ""
    assert error.startswith("kabuki-rlds: error: ")
    assert all(line.startswith("kabuki-rlds: ") and "error" not in line for line in before)
    assert "this is a bug" not in error
    for word in words:
        assert str(word) in error


# --- without TensorFlow ---


@pytest.mark.parametrize("command", [(), ("convert",), ("validate",), ("inspect",), ("demo",), ("build",)])
def test_help_needs_no_tensorflow(command):
    result = light(*command, "--help")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"usage: {' '.join(('kabuki-rlds', *command))}")
    assert "%%" not in result.out


def test_version_is_printed(call):
    assert call("--version") == (0, f"kabuki-rlds {__version__}\n", "")


def test_validate_exits_with_0_for_a_valid_file_and_needs_no_tensorflow(valid):
    assert light("validate", valid) == (0, f"{valid}: valid\n", "")


def test_validate_exits_with_1_and_prints_each_broken_rule(tmp_path):
    fields = handmade.fields()
    fields["discount"][1] = 1
    fields["reward"] = fields["reward"][1:]
    file = handmade.write(tmp_path / "f.hdf5", fields)
    assert light("validate", file) == (
        1,
        f"{file}: rule 1: reward: has 7 rows, expected 8 as in other fields\n"
        f"{file}: rule 4: discount: not 0 where the next row is terminal (row 1)\n",
        "",
    )


def test_inspect_needs_no_tensorflow(valid):
    result = light("inspect", valid)
    assert (result.code, result.err) == (0, "")
    assert "8 steps in 3 episodes" in result.out


def test_inspect_prints_one_json_object(valid, call):
    result = call("inspect", "--json", valid)
    assert (result.code, result.err) == (0, "")
    assert json.loads(result.out)["num_steps"] == 8


def test_converting_a_kabuki_file_needs_no_tensorflow(valid, tmp_path):
    result = light("convert", valid, valid, tmp_path / "out.hdf5")
    assert result.code == 0
    last_rows, line = result.out.splitlines()
    assert last_rows == "last rows: observations in 6 of 6 episodes (the file states it)"
    assert line.startswith(f"{tmp_path / 'out.hdf5'}: 16 steps in 6 episodes, ")
    assert result.err.startswith("kabuki-rlds: 16 steps, ")
    assert len(result.err.splitlines()) == 1


def test_missing_source_is_reported_without_tensorflow(tmp_path):
    result = light("convert", "nowhere", tmp_path / "out.hdf5", "--data-dir", tmp_path)
    assert_fails(result, "nowhere: no such file or folder", tmp_path, "holds no dataset of this name")


def test_existing_destination_is_reported_before_importing_tensorflow(tmp_path):
    (tmp_path / "out.hdf5").write_text("precious")
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "features.json").write_text("{}")
    assert_fails(light("convert", tmp_path / "dataset", tmp_path / "out.hdf5"), "already exists", "--overwrite")
    assert (tmp_path / "out.hdf5").read_text() == "precious"


def test_file_name_that_is_not_utf_8_is_printed(valid, tmp_path, monkeypatch):
    name = tmp_path / os.fsdecode(b"caf\xe9.hdf5")
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")
    for arguments in (("convert", valid, name), ("validate", name), ("inspect", name)):
        result = process(*arguments)
        assert (result.code, "caf\\udce9.hdf5" in result.out) == (0, True), result


@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_not_reused_for_files(streams, valid, tmp_path):
    dest = tmp_path / "out.hdf5"
    command = f'"{sys.executable}" -m kabuki_rlds.cli convert "{valid}" "{dest}" {streams}'
    assert subprocess.run(command, shell=True, capture_output=True, check=False).returncode == 0
    assert validate(dest) == []


def test_closed_output_pipe_is_not_an_error(valid):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        command = [sys.executable, "-m", "kabuki_rlds.cli", "inspect", valid]
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")


# --- usage ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "COMMAND"),
        (("transmogrify",), "'transmogrify'"),
        (("convert",), "SOURCE"),
        (("convert", "one"), "DEST.hdf5"),
        (("convert", "one", "two", "--frobnicate"), "--frobnicate"),
        (("convert", "one", "two", "--images", "png"), "'png'"),
        (("convert", "one", "two", "--compression", "zstd"), "'zstd'"),
        (("convert", "one", "two", "--fill", "rewards=0"), "'rewards'"),
        (("convert", "one", "two", "--fill", "reward=much"), "'much'"),
        (("convert", "one", "two", "--fill", "reward"), "not a number"),
        (("validate",), "SOURCE"),
        (("inspect", "a", "b"), "b"),
    ],
)
def test_wrong_usage_exits_with_2_and_prints_one_line(arguments, words, call):
    result = call(*arguments)
    assert_fails(result, words, "--help", code=2)
    assert len(result.err.splitlines()) == 1


# --- errors ---


@pytest.mark.parametrize("command", ["validate", "inspect"])
def test_unopenable_file_is_reported_in_one_line(command, tmp_path, call):
    (tmp_path / "text.hdf5").write_text("no HDF5 at all")
    (tmp_path / "cut.hdf5").write_bytes(handmade.write(tmp_path / "f.hdf5", handmade.fields()).read_bytes()[:3000])
    assert_fails(call(command, tmp_path / "none.hdf5"), f"{tmp_path / 'none.hdf5'}: no such file")
    # A folder is a source of the HDF5 files in it.
    (tmp_path / "empty").mkdir()
    assert_fails(call(command, tmp_path / "empty"), f"{tmp_path / 'empty'}: ", "no HDF5 file")
    assert_fails(call(command, tmp_path / "text.hdf5"), "not an HDF5 file")
    assert_fails(call(command, tmp_path / "cut.hdf5"), "damaged or truncated")


@pytest.mark.parametrize("command", [("convert", "{}", "out.hdf5"), ("inspect", "{}")])
def test_damaged_file_is_reported_in_one_line_with_the_field(command, tmp_path, call):
    fields = handmade.fields()
    file = handmade.write(tmp_path / "f.hdf5", fields | {"reward": handmade.chunked(fields["reward"])})
    handmade.put_chunk(file, "reward", b"no zlib stream")
    arguments = [tmp_path / a if a.endswith("hdf5") else a.format(file) for a in command]
    assert_fails(call(*arguments), file, "'reward'", "rows 0 to 7")  # type: ignore[arg-type]


def test_source_that_is_not_a_dataset_is_reported_in_one_line(tmp_path, call):
    (tmp_path / "text.hdf5").write_text("no HDF5 at all")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    assert_fails(call("convert", tmp_path / "text.hdf5", tmp_path / "out.hdf5"), "text.hdf5: not an HDF5 file")
    assert_fails(call("convert", tmp_path / "folder", tmp_path / "out.hdf5"), "features.json", "inner")
    assert_fails(call("convert", tmp_path / "none.hdf5", tmp_path / "out.hdf5"), "none.hdf5: no such file")
    assert_fails(call("convert", "folder:2.0.0", tmp_path / "out.hdf5", "--data-dir", tmp_path), "folder:2.0.0")


def test_existing_destination_is_kept(valid, tmp_path, call):
    (tmp_path / "out.hdf5").write_text("precious")
    assert_fails(call("convert", valid, tmp_path / "out.hdf5"), "out.hdf5: already exists; --overwrite replaces it")
    assert (tmp_path / "out.hdf5").read_text() == "precious"
    assert call("convert", valid, tmp_path / "out.hdf5", "--overwrite").code == 0
    assert call("validate", tmp_path / "out.hdf5").code == 0


def test_converting_a_file_onto_itself_keeps_its_data(valid, call):
    assert call("convert", valid, valid, "--overwrite").code == 0
    with h5py.File(valid) as f:
        assert f["reward"][:].tolist() == handmade.fields()["reward"].tolist()


def test_invalid_destination_is_reported_in_one_line(valid, tmp_path, call):
    (tmp_path / "folder").mkdir()
    assert_fails(call("convert", valid, tmp_path / "folder"), "folder")
    assert_fails(
        call("convert", valid, tmp_path / "folder", "--overwrite"), "is a folder; give the path of the HDF5 file"
    )
    assert_fails(call("convert", valid, tmp_path / "no" / "out.hdf5"), "does not exist; create it first")


def test_unknown_split_error_lists_the_splits(dataset, tmp_path, call):
    for split in ("valid", "train[", "train[:200%", "test+", ""):
        result = call("convert", dataset("plain"), tmp_path / "out.hdf5", "--split", split)
        assert_fails(result, dataset("plain"), repr(split), "train (10 episodes)", "test (4 episodes)")


def test_missing_field_error_contains_a_remedy(dataset, tmp_path, call):
    result = call("convert", dataset("no_reward"), tmp_path / "out.hdf5")
    assert_fails(result, dataset("no_reward"), "no 'reward'", "--fill reward=0")
    result = call("convert", dataset("no_reward"), tmp_path / "out.hdf5", "--fill", "reward=0")
    assert result.code == 0
    assert "reward: not in the source, filled with 0.0\n" in result.out


def test_incompatible_sources_error_names_the_field(valid, tmp_path, call):
    fields = handmade.fields()
    other = handmade.write(tmp_path / "other.hdf5", fields | {"reward": fields["reward"].astype(np.float32)})
    hand = handmade.write(tmp_path / "hand.hdf5", fields)
    assert_fails(
        call("convert", other, hand, tmp_path / "out.hdf5"),
        f"{hand} does not fit {other}: step field 'reward' is float32 in {other}, but float64 in {hand}",
    )
    assert_fails(call("convert", other, valid, tmp_path / "out.hdf5"), "valid.hdf5 does not fit")


def test_debug_prints_a_traceback(valid, tmp_path, call):
    (tmp_path / "out.hdf5").touch()
    result = call("convert", "--debug", valid, tmp_path / "out.hdf5")
    assert result.code == 1
    assert result.err.startswith("Traceback (most recent call last):")
    assert result.err.splitlines()[-1].startswith("kabuki-rlds: error: ")


def test_unexpected_exception_is_reported_in_one_line(valid, monkeypatch, call):
    def fail(*_, **__):
        raise RuntimeError("what nobody thought of\nand more of it")

    monkeypatch.setattr(inspect_command, "inspect", fail)
    result = call("inspect", valid)
    assert result == (
        1,
        "",
        "kabuki-rlds: error: RuntimeError: what nobody thought of; this is a bug, --debug shows the traceback\n",
    )


# --- convert ---


def test_tfds_name_is_converted_without_tensorflow_messages(dataset, data_dir, tmp_path):
    dataset("plain")
    result = process("convert", "plain", tmp_path / "out.hdf5", "--data-dir", data_dir)
    assert result.code == 0
    last_rows, line = result.out.splitlines()
    assert last_rows.startswith("last rows: observations in 10 of 10 episodes (rule 4: ")
    assert line.startswith(f"{tmp_path / 'out.hdf5'}: 139 steps in 10 episodes, ")
    assert len(result.err.splitlines()) == 1
    assert result.err.startswith("kabuki-rlds: 139 steps, ")


def test_error_is_printed_without_tensorflow_messages(dataset, tmp_path):
    result = process("convert", dataset("no_reward"), tmp_path / "out.hdf5")
    assert_fails(result, "--fill reward=0")
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("name", ["plain", "plain:1.0.0", "with_config/medium", "with_config/medium:1.0.0"])
def test_tfds_names_are_found(name, dataset, data_dir, tmp_path, call):
    dataset(name.partition("/")[0].partition(":")[0])
    result = call("convert", name, tmp_path / "out.hdf5", "--data-dir", data_dir)
    assert result.code == 0
    assert "139 steps in 10 episodes" in result.out


def test_folder_above_the_version_is_accepted(dataset, tmp_path, call):
    assert call("convert", dataset("plain").parent, tmp_path / "out.hdf5").code == 0


def test_unknown_version_error_lists_the_versions(dataset, data_dir, tmp_path, call):
    dataset("plain")
    result = call("convert", "plain:3.0.0", tmp_path / "out.hdf5", "--data-dir", data_dir)
    assert_fails(result, "plain:3.0.0", "1.0.0")


@pytest.mark.parametrize(
    ("split", "parts"),
    [
        ("test", [("test", 0, 4)]),
        ("train[:50%]", [("train", 0, 5)]),
        ("train[2:5]", [("train", 2, 5)]),
        ("train+test", [("train", 0, 10), ("test", 0, 4)]),
    ],
)
def test_split_option_accepts_tfds_syntax(split, parts, dataset, expected, tmp_path, call):
    lengths = [n for name, start, stop in parts for n in expected("plain", name).lengths[start:stop]]
    result = call("convert", dataset("plain"), tmp_path / "out.hdf5", "--split", split)
    assert result.code == 0
    assert f" {sum(lengths)} steps in {len(lengths)} episodes, " in result.out
    with h5py.File(tmp_path / "out.hdf5") as f:
        assert f["episodes/length"][:].tolist() == lengths


def test_kabuki_and_tfds_sources_are_concatenated(dataset, tmp_path, call):
    assert call("convert", dataset("plain"), tmp_path / "test.hdf5", "--split", "test").code == 0
    sources = (dataset("plain"), tmp_path / "test.hdf5", dataset("array_record"))
    result = call("convert", *sources, tmp_path / "out.hdf5")
    assert (result.code, " 295 steps in 24 episodes" in result.out) == (0, True)
    assert_fails(
        call("convert", *sources, dataset("one_step"), dataset("oxe_style"), tmp_path / "misfit.hdf5"),
        "oxe_style",
        "does not fit",
        "field '",
    )
    assert not (tmp_path / "misfit.hdf5").exists()


def test_quiet_prints_nothing(valid, dataset, tmp_path, call):
    assert call("convert", "--quiet", valid, tmp_path / "a.hdf5") == (0, "", "")
    assert call("convert", "--quiet", dataset("plain"), tmp_path / "b.hdf5") == (0, "", "")


def test_rule_violations_cause_a_warning_and_conform_corrects_them(dataset, tmp_path, call):
    result = call("convert", "--quiet", dataset("oxe_style"), tmp_path / "as-is.hdf5")
    assert (result.code, result.out) == (0, "")
    (warning,) = result.err.splitlines()
    assert warning.startswith("kabuki-rlds: warning: the source breaks rule 4: discount: ")
    assert "4 rows: " in warning and "--conform" in warning
    # The file lists the broken rule in its notes.
    noted = call("validate", tmp_path / "as-is.hdf5")
    assert noted.code == 0 and "noted: rule 4: discount" in noted.out

    result = call("convert", dataset("oxe_style"), tmp_path / "conformed.hdf5", "--conform")
    assert (result.code, "warning" in result.err) == (0, False)
    assert "discount: 4 rows changed to conform\n" in result.out
    assert call("validate", tmp_path / "conformed.hdf5").code == 0


def test_derived_field_is_reported(dataset, tmp_path, call):
    result = call("convert", dataset("no_discount"), tmp_path / "out.hdf5")
    assert "discount: not in the source, by the rules for discount\n" in result.out


def test_demo_without_extras_names_the_install_command(tmp_path, call, monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    assert_fails(call("demo", tmp_path / "demo"), "Hopper", "pip install 'kabuki_rlds[environments]'")
    assert not (tmp_path / "demo").exists()
