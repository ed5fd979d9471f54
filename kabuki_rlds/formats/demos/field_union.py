"""Combines the fields of many episodes into the fields of one dataset."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Mapping

import numpy as np

from kabuki_rlds.data.common_schema import difference, join_fields, warn_of_shapes
from kabuki_rlds.data.schema import Field
from kabuki_rlds.errors import SchemaMismatchError

_log = logging.getLogger("kabuki_rlds")


class FieldUnion:
    """The fields that hold the rows of all episodes seen so far.

    Step fields must be in every episode. An episode field may be missing in some episodes, and its first dimension may
    vary.

    Args:
      what: the kind of field in messages: "step field" or "episode field".
      of_steps: whether they are step fields.

    Attributes:
      fields: path to field.
    """

    def __init__(self, what: str, *, of_steps: bool):
        self._what = what
        self._of_steps = of_steps
        self._first_episode = ""
        self._blank: set[str] = set()
        self._num_episodes = 0
        self.fields: dict[str, Field] = {}
        # The first episode with a field, and the first without it.
        self._first_with: dict[str, str] = {}
        self._first_without: dict[str, str] = {}
        self._num_with: dict[str, int] = {}
        self._new_dtypes: dict[str, np.dtype] = {}
        self._new_shapes: dict[str, str] = {}

    def add(self, fields: Mapping[str, Field], label: str, blank: Collection[str] = ()) -> None:
        """Adds the fields of one episode.

        Args:
          fields: path to field.
          label: the episode, for messages.
          blank: the fields whose rows are all empty. They may stand for missing image files.

        Raises:
          SchemaMismatchError: a field cannot be combined with that of the episodes before.
        """
        self._first_episode = self._first_episode or label
        for path, theirs in fields.items():
            self._num_with[path] = self._num_with.get(path, 0) + 1
            mine = self.fields.get(path)
            if mine is None:
                self.fields[path] = theirs
                self._first_with[path] = label
                if self._num_episodes:
                    self._first_without[path] = self._first_episode
            elif theirs.encoded and path in self._blank:
                self.fields[path] = theirs
            elif not (mine.encoded and path in blank):
                self.fields[path] = self._join(path, mine, theirs, label)
        for path in self.fields:
            if path not in fields:
                self._first_without.setdefault(path, label)
        self._blank = self._blank & set(blank) if self._num_episodes else set(blank)
        self._num_episodes += 1

    def _join(self, path: str, mine: Field, theirs: Field, label: str) -> Field:
        """Returns the field that holds the rows of both.

        Raises:
          SchemaMismatchError: no field does.
        """
        dtype = _common_dtype(mine.dtype, theirs.dtype)
        # An image decoder would scale 8-bit values to 16 bits.
        differ_in_depth = mine.encoded and mine.dtype != theirs.dtype
        joint = None
        if dtype is not None and not differ_in_depth:
            joint = join_fields(
                dataclasses.replace(mine, dtype=dtype),
                dataclasses.replace(theirs, dtype=dtype),
                of_any_length=not self._of_steps,
            )
        if joint is None:
            raise SchemaMismatchError(
                difference(self._what, path, mine, self._first_with[path], theirs, label), fields=(path,)
            )
        if joint.dtype != mine.dtype or joint.dtype != theirs.dtype:
            self._new_dtypes[path] = joint.dtype
        if theirs.shape != mine.shape:
            self._new_shapes.setdefault(path, difference(self._what, path, mine, self._first_with[path], theirs, label))
        return joint

    def finish(self, label: str) -> None:
        """Warns of fields that differ between episodes, once all episodes were added.

        Args:
          label: the source, for messages.

        Raises:
          SchemaMismatchError: a step field is missing in some episodes.
        """
        if self._first_without and self._of_steps:
            missing = (
                f"{self._what} {path!r} is in {self._first_with[path]}, but not in {without}"
                for path, without in self._first_without.items()
            )
            raise SchemaMismatchError("; ".join(missing), fields=tuple(self._first_without))
        for path, dtype in self._new_dtypes.items():
            _log.warning("%s: %r is of several types, and all of it %s now, which holds each value", label, path, dtype)
        for why in self._new_shapes.values():
            warn_of_shapes(why)
        paths_by_count: dict[int, list[str]] = {}
        for path, count in self._num_with.items():
            paths_by_count.setdefault(self._num_episodes - count, []).append(path)
        for num_without, paths in paths_by_count.items():
            if num_without:
                _log.warning(
                    "%s: %d of %d episodes have no %s; zeros and empty text stand for it",
                    label, num_without, self._num_episodes, ", ".join(map(repr, paths)),
                )  # fmt: skip


def _common_dtype(a: np.dtype, b: np.dtype) -> np.dtype | None:
    """Returns the one of two dtypes of one kind that holds all values of both; None if neither does."""
    if a.kind != b.kind:
        return None
    return a if np.can_cast(b, a) else b if np.can_cast(a, b) else None
