"""The examples of the documentation run unchanged, and its internal links are valid."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import kabuki_rlds
from kabuki_rlds.cli import main as cli
from kabuki_rlds.formats.demos import registry
from tests import handmade
from tests.places import ROOT
from tests.project import documentation
from tests.project.documentation import PAGES, Code

#: Languages that no test runs.
NOT_CODE = {"text", "yaml", "julia", "matlab", "js", "cpp"}
#: Packages that an example may import and that are not installed everywhere. Without them it is only compiled.
OPTIONAL = {"dm_control", "envlogger", "grain", "gymnasium", "jax", "rlds", "torch"}
PROGRAMS = {"cat", "cd", "cp", "h5dump", "ls", "mkdir", "rm"}


@pytest.fixture(name="prepared", scope="module")
def _prepared(tmp_path_factory):
    home = tmp_path_factory.mktemp("prepared")
    documentation.make_folder(home)
    return home


@pytest.fixture(name="home")
def _home(prepared, tmp_path, monkeypatch):
    home = tmp_path / "home"
    shutil.copytree(prepared, home)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(home / ".minari/datasets"))
    monkeypatch.chdir(home)
    return home


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_code_block_of_the_page_runs(home, page, monkeypatch):
    names = stand_ins(page, monkeypatch)
    for block in documentation.blocks(page):
        with _located(block):
            run(block, names, home)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_in_a_table_runs(home, page):
    for command in documentation.table_commands(page):
        status, output = run_command(command)
        assert status == 0, f"{command}\n{output}"


@contextlib.contextmanager
def _located(block: Code):
    try:
        yield
    except Exception as e:
        e.add_note(f"in the block at {block.where}")
        raise


def run(block: Code, names: dict[str, Any], home: Path) -> None:
    """Runs a code block. A block that is marked as not run is only checked for syntax and names."""
    assert block.language, "a block has a language: ```python, ```sh, ```console or ```text"
    if block.language == "python":
        code = compile(block.text, block.where, "exec")
        if block.not_run or not _imports(block.text):
            return
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, names)
        if block.output:
            check_output(printed.getvalue(), block.output, home)
    elif block.language in ("sh", "console"):
        for command, expected in commands(block):
            if block.not_run:
                check_usage(command)
                continue
            status, output = run_command(command)
            fails = "kabuki-rlds: error" in expected
            assert status == (1 if fails else 0), f"{command}\n{output}"
            if block.language == "console":
                check_output(output, expected, home)
    else:
        assert block.language in NOT_CODE, block.language


def _imports(text: str) -> bool:
    """Returns whether all imports of a block are installed."""
    imported = {
        name
        for node in ast.walk(ast.parse(text))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    return all(_is_installed(name) for name in imported if name.partition(".")[0] in OPTIONAL)


def _is_installed(name: str) -> bool:
    try:
        return name in sys.modules or importlib.util.find_spec(name) is not None
    except ImportError:  # Its parent is not installed, or replaced.
        return False


def commands(block: Code) -> list[tuple[str, str]]:
    """Returns (command, expected output) of each command of a block."""
    text = block.text.replace("\\\n", " ")
    if block.language == "sh":
        return [(line, "") for line in text.splitlines() if line.strip() and not line.startswith("#")]
    parts = re.split(r"^\$ (.*)\n", text, flags=re.MULTILINE)
    assert not parts[0].strip(), "a console block begins with a command: `$ …`"
    return list(zip(parts[1::2], parts[2::2], strict=True))


def run_command(command: str) -> tuple[int, str]:
    """Returns (exit code, output) of a command."""
    words = shlex.split(command, comments=True)
    words = [os.path.expanduser(word) for word in words]
    if words[0] != "kabuki-rlds":
        assert words[0] in PROGRAMS, f"{command}: mark the block with <!-- not run: reason -->"
        if words[0] == "h5dump" and shutil.which("h5dump") is None:
            return 0, ""
        result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        return result.returncode, result.stdout + result.stderr
    file = words[words.index(">") + 1] if ">" in words else None
    arguments = words[1 : words.index(">")] if file else words[1:]
    make_room(arguments)
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        status = cli.main(arguments)
    if file:
        Path(file).write_text(out.getvalue())
    return status, out.getvalue()


def make_room(arguments: list[str]) -> None:
    """Removes what an earlier example wrote to the same destination: each is an example of its own."""
    if "--resume" in arguments:
        return
    parsed = cli._parser().parse_args(arguments)
    if arguments[0] in ("convert", "export"):
        Path(parsed.dest).unlink() if Path(parsed.dest).is_file() else shutil.rmtree(parsed.dest, ignore_errors=True)
    if arguments[0] == "build" and parsed.name:
        shutil.rmtree(Path(parsed.out, parsed.name), ignore_errors=True)


def check_usage(command: str) -> None:
    """Checks a command that is not run: its syntax and, where this project defines them, its options or targets."""
    subprocess.run(["bash", "-n", "-c", command], check=True)
    words = shlex.split(command, comments=True)
    if words[0] == "kabuki-rlds":
        cli._parser().parse_args(words[1 : words.index("|") if "|" in words else None])
    if words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word]
        defined = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(targets) <= set(defined), command
    if words[:2] == ["python", "-m"] and words[2].startswith(("benchmarks", "tests")):
        assert importlib.util.find_spec(words[2]), command


def check_output(printed: str, expected: str, home: Path) -> None:
    """Compares the output with the page, ignoring numbers and spaces. A line `…` matches any lines."""
    lines = _masked(expected, home).splitlines()
    wanted = "".join(r"(?:.*\n)*" if line == "…" else re.escape(line).replace("…", ".*") + r"\n" for line in lines)
    if not re.fullmatch(wanted, _masked(printed, home)):
        pytest.fail(f"printed:\n{printed}\nthe page says:\n{expected}")


def _masked(text: str, home: Path) -> str:
    text = text.replace(str(home), "~").replace("/home/me", "~")
    text = re.sub(r"-?\d[\d,.e+-]*( bytes| [kMGT]?B)?", "N", text)
    return "".join(" ".join(line.split()) + "\n" for line in text.splitlines() if line.strip())


def stand_ins(page: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Returns the names that the blocks of a page use but do not define."""
    names: dict[str, Any] = {"kabuki_rlds": kabuki_rlds, "np": np}
    if page.name in ("training.md", "README.md", "quickstart.md"):
        if importlib.util.find_spec("torch") is None:
            monkeypatch.setitem(sys.modules, "torch", _Torch("torch"))
        names |= {"value": lambda observation: observation[:, 0], "update": lambda *batch: None}
    if page.name == "recording.md":
        names |= {
            "camera": lambda: np.zeros((32, 32, 3), np.uint8),
            "joints": lambda: np.zeros(7),
            "policy": lambda observation: np.zeros(7),
            "robot": _Robot(3),
        }
    return names


class _Robot:
    def __init__(self, success_at: int | None):
        self._steps = 0
        self._success_at = success_at

    def move(self, action):
        self._steps += 1
        done = self._steps == self._success_at
        return float(done), done


class _Torch(types.ModuleType):
    """Replaces PyTorch if it is not installed. `from_numpy` rejects the same arrays as PyTorch does."""

    @staticmethod
    def from_numpy(array):
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufc":
            raise TypeError(f"can't convert {getattr(array, 'dtype', type(array))}")
        return array


def _block(page: str, with_text: str) -> Code:
    (block,) = [block for block in documentation.blocks(ROOT / page) if with_text in block.text]
    return block


@pytest.mark.parametrize("success_at", [3, None])
def test_robot_loop_distinguishes_terminated_from_truncated_episodes(tmp_path, monkeypatch, success_at):
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs/guides/recording.md"
    names = stand_ins(page, monkeypatch) | {"robot": _Robot(success_at)}
    exec(_block("docs/guides/recording.md", "robot.move").text, names)
    summary = kabuki_rlds.inspect("runs/robot.hdf5")
    assert (summary.terminal, summary.truncated) == ((1, 0) if success_at else (0, 1))
    assert summary.num_steps == (success_at or 200) + 1
    assert kabuki_rlds.validate("runs/robot.hdf5") == []


def test_the_pytorch_example_works_with_text_fields(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fields = handmade.fields()
    observation = fields.pop("observation")
    rows = len(observation)
    instructions = np.array([b"pick up", b"put down"] * rows, object)[:rows]
    fields |= {"observation/state": observation, "observation/instruction": instructions}
    handmade.write(tmp_path / "hopper.hdf5", fields)
    seen = []
    names = stand_ins(ROOT / "docs/guides/training.md", monkeypatch) | {
        "value": lambda observation: observation["state"][:, 0],
        "update": lambda observation, action, target: seen.append(observation),
    }
    exec(_block("docs/guides/training.md", "def tensors").text, names)
    assert {text for batch in seen for text in batch["instruction"]} == {b"pick up", b"put down"}
    assert len(seen) >= 10


def test_layout_of_the_contributor_guide_can_be_read(tmp_path, monkeypatch):
    layout, test = (_block("CONTRIBUTING.md", text) for text in ("class ToyLab", "def test_runs_become_episodes"))
    names: dict[str, Any] = {}
    exec(layout.text, names)
    monkeypatch.setattr(registry, "HDF5_LAYOUTS", (names["ToyLab"](), *registry.HDF5_LAYOUTS))
    exec(test.text, names)
    names["test_runs_become_episodes"](tmp_path)
    # As from a file, with a field of the wrong length and an episode without steps.
    names["toylab"](tmp_path / "bad.hdf5")
    with h5py.File(tmp_path / "bad.hdf5", "a") as file:
        del file["run_0/score"]
        file["run_0/score"] = [0.0]
        file.create_group("run_2")["command"] = np.zeros((0, 1))
    with pytest.raises(kabuki_rlds.DamagedDataError, match="run_0/score: has 1 rows, expected 3"):
        kabuki_rlds.convert(tmp_path / "bad.hdf5", tmp_path / "bad_converted.hdf5")
    made = kabuki_rlds.convert(tmp_path / "bad.hdf5", tmp_path / "rest.hdf5", skip_bad_episodes=True)
    assert kabuki_rlds.validate(made.path) == []
    assert len(made.skipped) == 2


def _anchors(page: Path) -> set[str]:
    """Returns the anchors of the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_internal_links_are_valid(page):
    for target, anchor in re.findall(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text()):
        file = page.parent / target if target else page
        assert file.exists(), target
        assert not anchor or anchor in _anchors(file), f"{target}#{anchor}"


def test_api_reference_contains_every_public_name():
    named = re.findall(r"^::: kabuki_rlds\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted([*kabuki_rlds.__all__, "EnvLoggerBackend"]), "docs/api.md lists each name"


def test_every_message_in_troubleshooting_exists_in_the_code():
    code = " ".join(path.read_text() for path in sorted((ROOT / "kabuki_rlds").glob("**/*.py")))
    # Parts of one text stand on several lines.
    code = re.sub(r'"\s*(f?)"', "", code)
    page = (ROOT / "docs/guides/troubleshooting.md").read_text()
    tables = page.partition("## Installation")[0]
    messages = re.findall(r"^\| `(.+?)` \|", tables, re.MULTILINE)
    assert len(messages) > 10
    assert [message for message in messages if message not in code] == []


def test_every_name_in_the_architecture_exists():
    text = (ROOT / "docs/architecture.md").read_text()
    package = ROOT / "kabuki_rlds"
    tops = {path.stem for path in package.iterdir() if path.name != "__init__.py"}
    names = {name for name in re.findall(r"`([\w.]+)`", text) if name.partition(".")[0] in tops and "." in name}
    assert len(names) > 60
    assert [name for name in sorted(names) if not _exists(name)] == []


def _exists(name: str) -> bool:
    """Returns whether a dotted name is a module of the package or a name in a module."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(["kabuki_rlds", *parts[:count]]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part, None)
        return found is not None
    return False
