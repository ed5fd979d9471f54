"""Prints each `raise` statement of the package that the tests do not execute.

    python -m coverage run -m pytest [TESTS...]
    python -m tests.raises

Coverage writes one file per process, and the results of several runs are combined. `python -m coverage erase` deletes
these files. Tests that limit the file size fail under coverage, because the limit also applies to coverage's files.
Code in TensorFlow's threads is measured only by Python >= 3.12 with `COVERAGE_CORE=sysmon python -m coverage run ...`.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from coverage import CoverageData, CoverageException

import kabuki_rlds

PACKAGE = Path(kabuki_rlds.__file__).parent
#: Exceptions of statements that cannot be reached: abstract methods, and cases that no caller can cause.
UNREACHABLE = ("AssertionError", "NotImplementedError")


def raises(module: Path) -> Iterator[tuple[int, str]]:
    """Yields (line, text) of each `raise` in a module, except statements that re-raise a caught exception."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Raise) and node.exc is not None:
            text = ast.unparse(node)
            if not text.removeprefix("raise ").startswith(UNREACHABLE):
                yield node.lineno, text


def reached(folder: Path) -> dict[str, set[int]]:
    """Returns the executed lines of each path, from all coverage files in a folder."""
    lines: dict[str, set[int]] = {}
    for file in folder.glob(".coverage*"):
        data = CoverageData(str(file))
        try:
            data.read()
        except CoverageException:
            # The process was killed while it wrote the file.
            continue
        for path in data.measured_files():
            lines.setdefault(path, set()).update(data.lines(path) or ())
    return lines


def main() -> None:
    """Prints the statements that were not executed. Exits with 1 if there are any."""
    ran = reached(Path.cwd())
    missed = [
        f"{module.relative_to(PACKAGE.parent)}:{line}: {text}"
        for module in sorted(PACKAGE.rglob("*.py"))
        for line, text in raises(module)
        if line not in ran.get(str(module), ())
    ]
    print(*missed, sep="\n")
    sys.exit(f"{len(missed)} not reached" if missed else 0)


if __name__ == "__main__":
    main()
