"""An episode in the making: its steps as columns, in SAR alignment.

Row t holds the observation and the metadata of step t, then the action taken after it
and the reward and discount that followed. The row of the last observation has
padding for these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kabuki_rlds.data.block import Column
from kabuki_rlds.data.rules import IS_FIRST, IS_LAST, IS_TERMINAL
from kabuki_rlds.errors import SchemaMismatchError
from kabuki_rlds.recording.growing_columns import GrowingColumn


class OpenEpisode:
    """The columns of one episode after the other: they are used again.

    Args:
      observation: empty columns of the observation.
      outcome: those of the action, the reward and the discount.
      metadata: those of each further field of the steps.

    Attributes:
      num_rows: how many observations the episode has so far.
    """

    def __init__(
        self,
        observation: GrowingColumn,
        outcome: tuple[GrowingColumn, GrowingColumn, GrowingColumn],
        metadata: dict[str, GrowingColumn],
    ):
        self._observation = observation
        self._action, self._reward, self._discount = outcome
        self._metadata = metadata
        self.num_rows = 0

    def reset(self, observation: Any, metadata: Mapping[str, Any] | None) -> None:
        """Begins an episode. Metadata that the first row lacks is padding.

        Raises:
          KabukiError: a value does not fit; then no episode is begun.
        """
        self.num_rows = 0
        self._observation.put(0, observation)
        if metadata or self._metadata:
            self._put_metadata(0, metadata or {})
        self.num_rows = 1

    def step(
        self, action: Any, reward: Any, discount: Any, observation: Any, metadata: Mapping[str, Any] | None
    ) -> None:
        """Adds a step.

        Raises:
          KabukiError: a value does not fit; then the step is not added.
        """
        row = self.num_rows
        self._action.put(row - 1, action)
        self._reward.put(row - 1, reward)
        self._discount.put(row - 1, discount)
        self._observation.put(row, observation)
        if metadata or self._metadata:
            self._put_metadata(row, metadata or {})
        self.num_rows = row + 1

    def columns(self, is_terminal: bool) -> dict[str, Column]:
        """Path to column, of the whole episode. They hold until the next one begins."""
        last = self.num_rows - 1
        made: dict[str, Column] = {}
        for rows in (self._action, self._reward, self._discount):
            rows.pad(last)
            made |= rows.columns(self.num_rows)
        for rows in (self._observation, *self._metadata.values()):
            made |= rows.columns(self.num_rows)
        row = np.arange(self.num_rows)
        return made | {IS_FIRST: row == 0, IS_LAST: row == last, IS_TERMINAL: (row == last) & is_terminal}

    def _put_metadata(self, row: int, metadata: Mapping[str, Any]) -> None:
        for name, rows in self._metadata.items():
            if name in metadata:
                rows.put(row, metadata[name])
            elif row:
                raise SchemaMismatchError(f"step {row} of the episode has no {name!r}, which the steps before had")
            else:
                rows.pad(row)
        unknown = metadata.keys() - self._metadata.keys()
        if unknown:
            have = ", ".join(map(str, self._metadata)) or "none"
            raise SchemaMismatchError(
                f"step metadata {min(map(str, unknown))!r} was not in the first step of the recording, but {have}"
            )
