"""Which entries of Gymnasium's `info` become fields of the steps."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from kabuki_rlds.errors import InvalidArgumentError, SchemaMismatchError

_log = logging.getLogger("kabuki_rlds")


class ChosenInfo:
    """The entries of `info` that are recorded.

    Args:
      names: of the entries; True for all that the first step has, False for none.
    """

    def __init__(self, names: bool | Sequence[str]):
        if isinstance(names, str):
            raise InvalidArgumentError(f"info: give a list of names, [{names!r}]")
        self._names = None if names is True else tuple(names or ())
        self._told: set[str] = set()

    @property
    def is_known(self) -> bool:
        """Whether the names are: with True, the first step tells them."""
        return self._names is not None

    def of_reset(self, info: Mapping[str, Any]) -> dict[str, Any]:
        """What is recorded of what `reset` gives, which may lack some."""
        return {name: info[name] for name in self._names or () if name in info}

    def of_step(self, info: Mapping[str, Any]) -> dict[str, Any]:
        """What is recorded of what `step` gives.

        Raises:
          KabukiError: an entry is not there.
        """
        if self._names is None:
            self._names = tuple(info)
            self._told = set(info)
        elif self._told and not self._told.issuperset(info):
            new = sorted(info.keys() - self._told)
            self._told.update(new)
            _log.warning("info has %s, which the first step had not: not recorded", ", ".join(map(repr, new)))
        try:
            return {name: info[name] for name in self._names}
        except KeyError as e:
            have = ", ".join(map(repr, info)) or "nothing"
            raise SchemaMismatchError(
                f"info has no {e}, which is to be recorded of every step; it has {have}"
            ) from None
