"""Parses paths given by users, and lists folders."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Sequence
from typing import TypeAlias

from kabuki_rlds.errors import InvalidArgumentError

#: A path given by a user.
StrPath: TypeAlias = str | os.PathLike[str]

#: The start of a URL. `pathlib` writes a URL with one slash. `./gs:/x` is a path.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")


def local_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """The path with `~` expanded.

    Raises:
      KabukiError: the text is a URL. `pathlib` would treat it as a local folder named `gs:`.
    """
    text = os.fspath(path)
    found = _URL.match(text)
    if found is not None:
        raise InvalidArgumentError(
            f"{text}: is a URL ({found[1]}:), but only local files are supported; copy the data to a local disk and "
            "give its path"
        )
    local = pathlib.Path(os.path.expanduser(text))
    # `pathlib` drops the `./` that distinguishes a path such as `./gs:/x` from a URL.
    return local.absolute() if _URL.match(os.fspath(local)) else local


def path_list(paths: StrPath | Sequence[StrPath]) -> list[StrPath]:
    """One path or several, as a list."""
    return [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)


def absolute_paths(paths: StrPath | Sequence[StrPath], name: str) -> list[str]:
    """One path or several, as a list of absolute paths: the working directory may change before they are read.

    Args:
      paths: the paths.
      name: the name of the argument, for the message.

    Raises:
      InvalidArgumentError: there is no path, or one is a URL.
    """
    given = path_list(paths)
    if not given:
        raise InvalidArgumentError(f"{name} is empty; give at least one file")
    return [os.path.abspath(local_path(path)) for path in given]


def subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
    """The subfolders of a folder, including targets of links, each once.

    Links to `folder` itself, to its parents, or to folders inside it are ignored: they would cause cycles or
    duplicates.
    """
    here = os.path.realpath(folder)
    found: dict[str, pathlib.Path] = {}
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_symlink(), path)):
        if path.is_dir():
            target = os.path.realpath(path)
            if not path.is_symlink() or os.path.commonpath([here, target]) not in (here, target):
                found.setdefault(target, path)
    return list(found.values())
