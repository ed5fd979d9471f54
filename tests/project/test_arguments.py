"""Messages name arguments in Python syntax, or as flags on the command line."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import kabuki_rlds
from kabuki_rlds.cli.main import main
from tests import handmade

PACKAGE = Path(kabuki_rlds.__file__).parent
#: Where flags may be written out: the command line itself, and the options of TFDS's own command.
_MAY_NAME_FLAGS = ("cli/", "arguments.py", "commands/tfds_builder.py")


def _strings(module: Path) -> list[tuple[int, str]]:
    """Returns (line, value) of each string in a module, except docstrings."""
    tree = ast.parse(module.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented) and node.body
                  and isinstance(node.body[0], ast.Expr)}  # fmt: skip
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docstrings]
    return [(node.lineno, node.value) for node in found if isinstance(node.value, str)]


def test_only_the_cli_contains_flags_in_strings() -> None:
    found = [
        f"{name}:{line}: {text}"
        for module in PACKAGE.rglob("*.py")
        if not (name := str(module.relative_to(PACKAGE))).startswith(_MAY_NAME_FLAGS)
        for line, text in _strings(module)
        if re.search(r"(?<![\w-])--[a-z]", text)
    ]
    assert not found


def test_argument_is_formatted_as_python() -> None:
    from kabuki_rlds.arguments import argument

    assert argument("split") == "split"
    assert argument("overwrite", True) == "overwrite=True"
    assert argument("last_row", "step") == "last_row='step'"
    assert argument("fill", {"observation": float("nan")}) == "fill={'observation': float('nan')}"


def test_argument_is_formatted_as_a_flag() -> None:
    from kabuki_rlds.arguments import argument, named_as_flags

    with named_as_flags():
        assert argument("data_dir") == "--data-dir"
        assert argument("overwrite", True) == "--overwrite"
        assert argument("split", "train[:4shard]") == "--split 'train[:4shard]'"
        assert argument("assume", {"instruction": "fold it"}) == "--assume instruction='fold it'"
        assert argument("fill", {"observation": float("nan")}) == "--fill observation=nan"
    assert argument("data_dir") == "data_dir"


def test_error_names_the_argument_in_python_and_the_flag_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields())
    kabuki_rlds.convert(file, tmp_path / "k.hdf5")
    with pytest.raises(FileExistsError, match="already exists; overwrite=True replaces it"):
        kabuki_rlds.convert(file, tmp_path / "k.hdf5")
    assert main(["convert", str(file), str(tmp_path / "k.hdf5")]) == 1
    assert "already exists; --overwrite replaces it" in capsys.readouterr().err
    # After the context, messages use Python syntax again.
    with pytest.raises(FileExistsError, match="overwrite=True"):
        kabuki_rlds.convert(file, tmp_path / "k.hdf5")
