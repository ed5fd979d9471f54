"""The row ranges of the episodes of a table, and of their actions."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Episodes:
    """The row ranges of episodes in a table, and how they end. All arrays have the shape (episodes,).

    Attributes:
      starts: the first row: int64.
      ends: the row after the last row: int64.
      action_ends: the row after the last row with an action: int64. It is `ends` if the last row is a step, else
        `ends` - 1.
      terminates: whether the last row is a terminal step: bool. False if the last row is only an observation; the
        row's is_terminal then says how the episode ends.
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
        """The number of rows: int64."""
        return self.ends - self.starts

    @property
    def num_actions(self) -> np.ndarray:
        """The number of rows with an action: int64."""
        return np.maximum(self.action_ends - self.starts, 0)

    @property
    def transition_ends(self) -> np.ndarray:
        """The row after the last row at which a transition begins: int64.

        No observation follows a last row that is a step. Such a row begins a transition only if it is terminal.
        """
        return np.where(self.terminates, self.action_ends, np.minimum(self.action_ends, self.ends - 1))
