"""Formats arguments in messages: `overwrite=True` in Python, `--overwrite` on the command line.

Also warns of deprecated names of arguments and attributes.
"""

from __future__ import annotations

import contextlib
import logging
import math
import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

_log = logging.getLogger("kabuki_rlds")

#: Whether messages name command-line flags instead of Python arguments.
_flags = False


def argument(name: str, value: object = None) -> str:
    """Returns an argument for a message, with its value if one is given: in Python syntax or as a command-line flag.

    Example (Python, command line):
      argument("split")                   split              --split
      argument("overwrite", True)         overwrite=True     --overwrite
      argument("fill", {"reward": 0})     fill={'reward': 0} --fill reward=0
    """
    if not _flags:
        return name if value is None else f"{name}={_in_python(value)}"
    flag = f"--{name.replace('_', '-')}"
    if value is None or value is True:
        return flag
    if isinstance(value, Mapping):
        return " ".join(f"{flag} {key}={shlex.quote(str(each))}" for key, each in value.items())
    return f"{flag} {shlex.quote(str(value))}"


@contextlib.contextmanager
def named_as_flags() -> Iterator[None]:
    """A context in which messages name command-line flags. It applies to all threads of the process."""
    global _flags
    before, _flags = _flags, True
    try:
        yield
    finally:
        _flags = before


def warn_deprecated(message: str) -> None:
    """Warns of a deprecated name.

    In Python, this is a `DeprecationWarning` at the line that calls the package. On the command line, it is a line on
    stderr.
    """
    if _flags:
        _log.warning("%s", message)
        return
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals["__name__"].partition(".")[0] in ("kabuki_rlds", "contextlib"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, DeprecationWarning, stacklevel=level)


def renamed(old: str, new: str) -> Any:
    """Returns a property that gives the attribute `new` under its deprecated name `old`, for one minor version."""

    def read(result: object) -> Any:
        warn_deprecated(f"{type(result).__name__}.{old} is deprecated; use {new}")
        return getattr(result, new)

    return property(read)


def _in_python(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_in_python(each)}" for key, each in value.items()) + "}"
    return "float('nan')" if isinstance(value, float) and math.isnan(value) else repr(value)
