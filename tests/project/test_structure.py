"""The structure of the package: layers, import cycles, names of classes and modules, sizes of modules."""

from __future__ import annotations

import ast
import collections
from collections.abc import Iterator
from pathlib import Path

import pytest

import kabuki_rlds

PACKAGE = Path(kabuki_rlds.__file__).parent

#: A module may import from its own layer and from those before it.
LAYERS = (
    ("arguments", "errors", "version"),
    ("extras",),
    ("files",),
    ("data",),
    ("images",),
    ("formats",),
    ("transforms",),
    ("loading", "recording"),
    ("commands",),
    ("kabuki_rlds",),
    ("cli",),
)

#: The most lines that a module may have.
MAX_LINES = 450


def _modules() -> dict[str, Path]:
    """Maps the name of each module, without `kabuki_rlds.`, to its file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "kabuki_rlds"] = path
    return found


MODULES = _modules()


def _imports(name: str, *, of_functions: bool = True) -> Iterator[str]:
    """The modules of the package that a module imports.

    Args:
      name: the module.
      of_functions: whether imports within functions count too.
    """
    tree = ast.parse(MODULES[name].read_text())
    nodes = ast.walk(tree) if of_functions else _outside_functions(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            named = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for each in named:
            if each.partition(".")[0] == "kabuki_rlds":
                yield _module_of(each.removeprefix("kabuki_rlds."))


def _outside_functions(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node
            yield from _outside_functions(node)


def _module_of(name: str) -> str:
    """Returns the longest prefix of a dotted name that is a module."""
    while name not in MODULES and "." in name:
        name = name.rpartition(".")[0]
    return name if name in MODULES else "kabuki_rlds"


def _layer(module: str) -> int:
    top = module.partition(".")[0]
    return next(number for number, names in enumerate(LAYERS) if top in names)


def test_every_module_has_a_layer():
    tops = {module.partition(".")[0] for module in MODULES}
    assert tops <= {name for names in LAYERS for name in names}


def test_no_module_imports_from_a_higher_layer():
    found = set()
    for module in MODULES:
        for imported in _imports(module):
            tops = module.partition(".")[0], imported.partition(".")[0]
            if _layer(imported) > _layer(module) or (_layer(imported) == _layer(module) and tops[0] != tops[1]):
                found.add((module, imported))
    assert not found


def test_there_are_no_import_cycles():
    graph = {module: set(_imports(module, of_functions=False)) - {module} for module in MODULES}
    while True:
        leaves = {module for module, imported in graph.items() if not imported}
        if not leaves:
            break
        graph = {module: imported - leaves for module, imported in graph.items() if module not in leaves}
    assert not graph, f"these modules import each other, or a module that does: {sorted(graph)}"


def test_class_names_are_unique():
    places = collections.defaultdict(list)
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(module)
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}


def test_modules_are_short():
    assert [name for name, path in MODULES.items() if len(path.read_text().splitlines()) > MAX_LINES] == []


@pytest.mark.parametrize("name", kabuki_rlds.__all__)
def test_no_public_name_shadows_a_module(name):
    assert name not in MODULES


@pytest.mark.parametrize("name", ["utils", "helpers", "common", "misc"])
def test_no_module_has_a_generic_name(name):
    assert not [module for module in MODULES if module.rpartition(".")[2] == name]
