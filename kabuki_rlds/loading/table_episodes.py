"""Where the episodes of a table are, and which of their rows have an action."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Episodes:
    """Where episodes are in a table, and how they end. All arrays are (episodes,).

    Attributes:
      starts: the first row: int64.
      ends: the row after the last: int64.
      action_ends: the row after the last that has an action: int64. It is `ends` if the last row is a step, else
        `ends` - 1.
      terminates: whether the last row is terminal: bool. False where it is an observation, which says so itself.
    """

    starts: np.ndarray
    ends: np.ndarray
    action_ends: np.ndarray
    terminates: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, episodes: slice | np.ndarray) -> Episodes:
        return Episodes(
            self.starts[episodes], self.ends[episodes], self.action_ends[episodes], self.terminates[episodes]
        )

    @property
    def lengths(self) -> np.ndarray:
        """How many rows each has: int64."""
        return self.ends - self.starts

    @property
    def num_actions(self) -> np.ndarray:
        """How many rows of each have an action: int64."""
        return np.maximum(self.action_ends - self.starts, 0)

    @property
    def transition_ends(self) -> np.ndarray:
        """The row after the last that a transition begins at: int64.

        After a last row that is a step no observation follows, so it is a transition only if the episode terminates.
        """
        return np.where(self.terminates, self.action_ends, np.minimum(self.action_ends, self.ends - 1))
