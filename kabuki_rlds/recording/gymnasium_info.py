"""Selects the entries of Gymnasium's `info` that become step fields."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from kabuki_rlds.errors import InvalidArgumentError, SchemaMismatchError

_log = logging.getLogger("kabuki_rlds")


class InfoFields:
    """Selects the entries of `info` to record.

    Args:
      names: the names of the entries; True for all entries that the first step has, False for none.
    """

    def __init__(self, names: bool | Sequence[str]):
        if isinstance(names, str):
            raise InvalidArgumentError(f"info: give a list of names, [{names!r}]")
        self._names = None if names is True else tuple(names or ())
        self._reported: set[str] = set()

    @property
    def is_known(self) -> bool:
        """Whether the names of the entries are known. With `names=True`, they are known after the first step."""
        return self._names is not None

    def from_reset(self, info: Mapping[str, Any]) -> dict[str, Any]:
        """The selected entries of the info that `reset` returned. Entries may be missing."""
        return {name: info[name] for name in self._names or () if name in info}

    def from_step(self, info: Mapping[str, Any]) -> dict[str, Any]:
        """The selected entries of the info that `step` returned.

        Raises:
          KabukiError: a selected entry is missing.
        """
        if self._names is None:
            self._names = tuple(info)
            self._reported = set(info)
        elif self._reported and not self._reported.issuperset(info):
            new = sorted(info.keys() - self._reported)
            self._reported.update(new)
            _log.warning("info has %s, which the first step did not have; not recorded", ", ".join(map(repr, new)))
        try:
            return {name: info[name] for name in self._names}
        except KeyError as e:
            have = ", ".join(map(repr, info)) or "nothing"
            raise SchemaMismatchError(
                f"info has no entry {e}, which is recorded in every step; the step returned {have}"
            ) from None
