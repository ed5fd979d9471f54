"""Prints each `raise` of the package that the tests did not reach.

    python -m coverage run -m pytest [TESTS...]
    python -m tests.raises

Coverage keeps a file for each process that ran; several runs of parts of the tests add up.
`python -m coverage erase` forgets them. The tests in which no file may grow fail under it,
since its own may not either. What runs in TensorFlow's threads is seen by Python 3.12 alone:
`COVERAGE_CORE=sysmon python -m coverage run ...`.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from coverage import CoverageData, CoverageException

import kabuki_rlds

PACKAGE = Path(kabuki_rlds.__file__).parent
#: What cannot be reached, by what it raises: that of an abstract method, or of a case that no caller may bring about.
UNREACHABLE = ("AssertionError", "NotImplementedError")


def raises(module: Path) -> Iterator[tuple[int, str]]:
    """The line and the text of each `raise` in a module, but for those that raise again what was caught."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Raise) and node.exc is not None:
            text = ast.unparse(node)
            if not text.removeprefix("raise ").startswith(UNREACHABLE):
                yield node.lineno, text


def reached(folder: Path) -> dict[str, set[int]]:
    """Path to the lines that ran, by all of coverage's files in a folder."""
    lines: dict[str, set[int]] = {}
    for file in folder.glob(".coverage*"):
        data = CoverageData(str(file))
        try:
            data.read()
        except CoverageException:
            # Of a process that was killed.
            continue
        for path in data.measured_files():
            lines.setdefault(path, set()).update(data.lines(path) or ())
    return lines


def main() -> None:
    """Prints what was not reached, and exits with 1 if there is any."""
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
