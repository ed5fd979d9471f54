"""The result of a benchmark method."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Done:
    """The result of a benchmark method.

    Attributes:
      steps: the number of steps that it processed.
      reading: the seconds spent reading, for methods that read everything before they write; else None.
      seconds: the seconds to report, for methods that time only a part of their work; None means all of it.
    """

    steps: int
    reading: float | None = None
    seconds: float | None = None
