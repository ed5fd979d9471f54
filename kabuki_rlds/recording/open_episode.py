"""The steps of the current episode as columns, in SAR alignment.

Row t holds observation t and its metadata, the action taken after this observation, and
the reward and discount that followed. In the last row, action, reward and discount are
padding.
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
    """The columns of the current episode. `reset` reuses them for the next episode.

    Args:
      observation: an empty column, or group of columns, for the observation.
      outcome: the same for the action, the reward and the discount.
      metadata: name of each additional step field to its empty column.

    Attributes:
      num_rows: the number of observations of the episode so far.
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
        """Begins an episode. Missing metadata fields are padded in the first row.

        Raises:
          KabukiError: a value does not match its field. No episode is begun.
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
          KabukiError: a value does not match its field. The step is not added.
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
        """Path to column, for all steps of the episode. The columns are valid until the next `reset`."""
        last = self.num_rows - 1
        made: dict[str, Column] = {}
        for column in (self._action, self._reward, self._discount):
            column.pad(last)
            made |= column.columns(self.num_rows)
        for column in (self._observation, *self._metadata.values()):
            made |= column.columns(self.num_rows)
        row = np.arange(self.num_rows)
        return made | {IS_FIRST: row == 0, IS_LAST: row == last, IS_TERMINAL: (row == last) & is_terminal}

    def _put_metadata(self, row: int, metadata: Mapping[str, Any]) -> None:
        for name, column in self._metadata.items():
            if name in metadata:
                column.put(row, metadata[name])
            elif row:
                raise SchemaMismatchError(
                    f"step {row} of the episode has no metadata {name!r}, which every step must have"
                )
            else:
                column.pad(row)
        unknown = metadata.keys() - self._metadata.keys()
        if unknown:
            have = ", ".join(map(str, self._metadata)) or "none"
            raise SchemaMismatchError(
                f"step metadata {min(map(str, unknown))!r} was not in the first step of the recording, which has {have}"
            )
