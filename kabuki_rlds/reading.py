"""How datasets are to be read where they are silent: what is assumed of them, and filled in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kabuki_rlds.completion import CompletedSource
from kabuki_rlds.formats.source import Source


class Reading:
    """What the user says of the sources.

    Args:
      assume: what files in a layout of others do not say.
      fill: constants for required fields that a source lacks.
    """

    def __init__(self, assume: Mapping[str, str] | None = None, fill: Mapping[str, float] | None = None):
        self.assume = dict(assume or {})
        self.fill = dict(fill or {})

    def complete(self, source: Source, conform: bool = False) -> CompletedSource:
        """The source with all that is filled in.

        Raises:
          KabukiError: it lacks a field still.
        """
        return CompletedSource(source, self.fill, conform)

    def to_json(self) -> dict[str, Any]:
        """All that the result depends on."""
        return {"assume": self.assume, "fill": self.fill}
