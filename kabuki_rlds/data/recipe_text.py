"""One-line recipes that messages suggest to the user."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from kabuki_rlds.data.schema import BYTES, Field, is_within

_PLAIN = re.compile(r"[A-Za-z_][\w./-]*")


def steps(entries: Iterable[str]) -> str:
    """A recipe with the given entries under `steps`, in backticks."""
    return f"`steps: {{{', '.join(entries)}}}`"


def renamed(path: str, source: str, more: str = "") -> str:
    """A recipe entry that copies a field or group under a new path.

    Args:
      path: the new path.
      source: the path in the source.
      more: further operations, for example ", cast: bool".
    """
    return f"{_name(path)}: {{from: {_name(source)}{more}}}"


def one_array(name: str, fields: Mapping[str, Field]) -> str:
    """A recipe that concatenates the fields of a group to one array.

    Fields that are not scalars or vectors of fixed length are kept under a new name.

    Args:
      name: the group.
      fields: all step fields.
    """
    inner = [path for path in fields if is_within(path, name)]
    flat = [p for p in inner if fields[p].is_fixed and fields[p].dtype != BYTES and len(fields[p].shape) < 2]
    joined = flat or inner[:1]
    if len(joined) > 1:
        entries = [f"{_name(name)}: {{concatenate: [{', '.join(map(_name, joined))}]}}"]
    else:
        entries = [renamed(name, joined[0])]
    return steps([*entries, *(renamed(path.replace("/", "_"), path) for path in inner if path not in joined)])


def _name(path: str) -> str:
    return path if _PLAIN.fullmatch(path) else json.dumps(path)
