"""The metadata fields of episodes, such as an instruction: one value per episode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kabuki_rlds.data.block import Column
from kabuki_rlds.data.schema import Field
from kabuki_rlds.errors import InvalidArgumentError, SchemaMismatchError
from kabuki_rlds.formats.rlds.feature_layout import STEPS
from kabuki_rlds.recording.column_groups import new_column
from kabuki_rlds.recording.field_learner import FieldLearner, Fields, leaves
from kabuki_rlds.recording.growing_columns import GrowingColumn


class EpisodeFields:
    """Learns the metadata fields of episodes from the first episode.

    Args:
      declared: the fields of an existing dataset; None for a new dataset.

    Attributes:
      fields: path to field.
      are_fixed: whether no more fields can be added: the dataset existed, or the first episode is complete.
    """

    def __init__(self, declared: Fields | None):
        self.fields: dict[str, Field] = dict(declared or {})
        self.are_fixed = declared is not None
        self._columns: dict[str, GrowingColumn] = {path: new_column(field, path) for path, field in self.fields.items()}

    def learn(self, metadata: Mapping[str, Any]) -> bool:
        """Adds the fields of an episode's metadata. Returns whether there is a new field.

        Raises:
          KabukiError: a value cannot be recorded, or a field is new although the fields are fixed.
        """
        given = leaves(dict(metadata), "", self._columns)
        new = [path for path in given if path not in self.fields]
        if new and self.are_fixed:
            have = ", ".join(self.fields) or "none"
            raise SchemaMismatchError(
                f"episode metadata: field {new[0]!r} is not in the dataset, whose episodes have {have}; "
                "set every field in the first episode of a dataset",
                fields=(new[0],),
            )
        if any(path.split("/")[0] == STEPS for path in new):
            raise InvalidArgumentError(f"episode metadata: the name {STEPS!r} is reserved for the steps; rename it")
        learner = FieldLearner({}, None)
        for path in new:
            learner.learn(given[path], path)
        columns = {path: new_column(field, path) for path, field in learner.fields.items()}
        for path, value in given.items():
            (columns if path in columns else self._columns)[path].put(0, value)
        self.fields |= learner.fields
        self._columns |= columns
        return bool(new)

    def columns(self, metadata: Mapping[str, Any]) -> dict[str, Column]:
        """Path to column of one row. A field that is missing in the metadata is zero or empty."""
        given = leaves(dict(metadata), "", self._columns)
        made: dict[str, Column] = {}
        for path, column in self._columns.items():
            if path in given:
                column.put(0, given[path])
            else:
                column.pad(0)
            made |= column.columns(1)
        return made

    def missing(self, metadata: Mapping[str, Any]) -> list[str]:
        """The paths of the fields that are missing in the metadata of an episode."""
        given = leaves(dict(metadata), "", self._columns)
        return [path for path in self.fields if path not in given]
