"""Recipes of one line, as messages suggest them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from kabuki_rlds.data.schema import BYTES, Field, is_within

_PLAIN = re.compile(r"[A-Za-z_][\w./-]*")


def steps(entries: Iterable[str]) -> str:
    """The recipe with these entries, in backticks."""
    return f"`steps: {{{', '.join(entries)}}}`"


def renamed(path: str, source: str, more: str = "") -> str:
    """An entry that makes a field of another field, or a group of a group.

    Args:
      path: the field.
      source: the field that it is made from.
      more: further operations: ", cast: bool".
    """
    return f"{_name(path)}: {{from: {_name(source)}{more}}}"


def one_array(name: str, fields: Mapping[str, Field]) -> str:
    """The recipe that makes one array of a group, and keeps what is no list of numbers under another name.

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
