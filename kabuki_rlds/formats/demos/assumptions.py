"""Assumptions: semantics that a layout does not define, which the user states with `assume`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TypeAlias

from kabuki_rlds.arguments import argument
from kabuki_rlds.errors import InvalidArgumentError

_log = logging.getLogger("kabuki_rlds")

#: Name of each assumption to its value: {"dones": "success"}.
Assumptions: TypeAlias = Mapping[str, str]

#: Values of `last_observation`: whether an episode gets a last row that repeats the last observation, where the layout
#: does not store the observation after the last action. By default it does not.
LAST_OBSERVATION = ("", "repeat")

#: Deprecated values, and the values that replace them.
_RENAMED = {("last_observation", "terminal"): "repeat", ("last_observation", "none"): ""}


def repeats_last_observation(assume: Assumptions) -> bool:
    """Returns whether episodes get a last row that repeats the last observation."""
    return assume.get("last_observation") == "repeat"


def complete_assumptions(layout: str, known: Mapping[str, tuple[str, ...]], assume: Assumptions) -> dict[str, str]:
    """Returns a value for each assumption of a layout: the user's, or the default.

    Args:
      layout: the name of the layout.
      known: its assumptions, each with its possible values.
      assume: the values that the user states.

    Raises:
      InvalidArgumentError: the layout has no such assumption, or the assumption no such value.
    """
    given = {}
    for name, value in assume.items():
        if (name, value) in _RENAMED:
            renamed = _RENAMED[name, value]
            now = f"use {name}={renamed}" if renamed else "leave it out, it is the default"
            _log.warning("assume: %s=%s is deprecated; %s", name, value, now)
            value = renamed
        given[name] = value
    for name, value in given.items():
        if name not in known:
            there = f"there is {', '.join(known)}" if known else "there is nothing to assume"
            raise InvalidArgumentError(
                f"{argument('assume')}: {name!r} says nothing of files laid out as {layout}; {there}"
            )
        if known[name] and value not in known[name]:
            raise InvalidArgumentError(
                f"{argument('assume')}: {name} is {' or '.join(filter(None, known[name]))}, not {value!r}"
            )
    return {name: values[0] for name, values in known.items() if values} | given


def inapplicable(label: str, name: str, value: str, reason: str) -> InvalidArgumentError:
    """Returns the error for an assumption that cannot apply to the files it was stated for."""
    return InvalidArgumentError(f"{label}: {argument('assume')}: {name}={value} cannot apply, since {reason}")
