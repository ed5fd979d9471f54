"""The fields of the episodes of a recording: what is said of an episode as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kabuki_rlds.data.block import Column
from kabuki_rlds.data.schema import Field
from kabuki_rlds.errors import InvalidArgumentError, SchemaMismatchError
from kabuki_rlds.formats.rlds.feature_layout import STEPS
from kabuki_rlds.recording.column_groups import rows_of
from kabuki_rlds.recording.field_learner import FieldLearner, Fields, leaves
from kabuki_rlds.recording.growing_columns import GrowingColumn


class EpisodeFields:
    """Learns the fields of episodes, until the first of them is settled.

    Args:
      declared: what they are in the dataset that is recorded into; None where it is new.

    Attributes:
      fields: path to field.
      are_fixed: whether there can be no more.
    """

    def __init__(self, declared: Fields | None):
        self.fields: dict[str, Field] = dict(declared or {})
        self.are_fixed = declared is not None
        self._rows: dict[str, GrowingColumn] = {path: rows_of(field, path) for path, field in self.fields.items()}

    def learn(self, metadata: Mapping[str, Any]) -> bool:
        """Sees to it that an episode can have these fields, and says whether one is new.

        Raises:
          KabukiError: one cannot be recorded, or not any more.
        """
        given = leaves(dict(metadata), "", self._rows)
        new = [path for path in given if path not in self.fields]
        if new and self.are_fixed:
            have = ", ".join(self.fields) or "none"
            raise SchemaMismatchError(
                f"field {new[0]!r} of an episode: the episodes of this dataset have {have}; "
                "what the first episode has, all can have",
                fields=(new[0],),
            )
        if any(path.split("/")[0] == STEPS for path in new):
            raise InvalidArgumentError(f"field {STEPS!r} of an episode: this is where its steps are; rename it")
        learner = FieldLearner({}, None)
        for path in new:
            learner.learn(given[path], path)
        rows = {path: rows_of(field, path) for path, field in learner.fields.items()}
        for path, value in given.items():
            (rows if path in rows else self._rows)[path].put(0, value)
        self.fields |= learner.fields
        self._rows |= rows
        return bool(new)

    def columns(self, metadata: Mapping[str, Any]) -> dict[str, Column]:
        """Path to column of one row. What an episode does not have is empty."""
        given = leaves(dict(metadata), "", self._rows)
        columns: dict[str, Column] = {}
        for path, rows in self._rows.items():
            if path in given:
                rows.put(0, given[path])
            else:
                rows.pad(0)
            columns |= rows.columns(1)
        return columns

    def missing(self, metadata: Mapping[str, Any]) -> list[str]:
        """The fields that an episode does not have."""
        given = leaves(dict(metadata), "", self._rows)
        return [path for path in self.fields if path not in given]
