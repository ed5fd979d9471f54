"""Paths that users give."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Sequence
from typing import TypeAlias

from kabuki_rlds.errors import InvalidArgumentError

#: A path as users give it.
StrPath: TypeAlias = str | os.PathLike[str]

#: The beginning of a URL, also as `pathlib` writes it, with one slash. `./gs:/x` is a path.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")


def local_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """A path that a user gives, with `~` expanded.

    Raises:
      KabukiError: it is a URL. As a path, it would name a local folder like `gs:`.
    """
    text = os.fspath(path)
    found = _URL.match(text)
    if found is not None:
        raise InvalidArgumentError(
            f"{text}: a URL ({found[1]}:), and only local files are supported; copy the data to a local disk, and give "
            "its path"
        )
    local = pathlib.Path(os.path.expanduser(text))
    # `pathlib` leaves out the `./` that tells it from a URL.
    return local.absolute() if _URL.match(os.fspath(local)) else local


def path_list(paths: StrPath | Sequence[StrPath]) -> list[StrPath]:
    """One path or several, as a list."""
    return [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)


def subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folders in a folder, those that links lead to among them, and none twice.

    Links to folders above it are left out, and links to folders below it, which are found there.
    """
    here = os.path.realpath(folder)
    found: dict[str, pathlib.Path] = {}
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_symlink(), path)):
        if path.is_dir():
            target = os.path.realpath(path)
            if not path.is_symlink() or os.path.commonpath([here, target]) not in (here, target):
                found.setdefault(target, path)
    return list(found.values())
