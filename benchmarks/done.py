"""What a method of a benchmark did."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Done:
    """What a method did.

    Attributes:
      steps: how many steps it read.
      reading: seconds of it that were reading, for methods that read all and then write.
      seconds: how long it took, for methods that do more than is to be timed.
    """

    steps: int
    reading: float | None = None
    seconds: float | None = None
