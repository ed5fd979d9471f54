"""Converts columns to the form that users get: NumPy arrays in nested dicts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kabuki_rlds.data.block import Column, Nested, Ragged


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts made from a dict of paths: `{"a/b": 1}` becomes `{"a": {"b": 1}}`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *groups, name = path.split("/")
        at = tree
        for group in groups:
            at = at.setdefault(group, {})
        at[name] = value
    return tree


def as_array(column: Column, lead: tuple[int, ...] = ()) -> np.ndarray:
    """A column as one array. Rows of different shapes become an array of objects.

    Args:
      column: the rows of consecutive samples.
      lead: shape of a sample in rows: () if a sample is one row, (length,) for windows of `length` rows.

    Returns:
      an array of shape (samples, *lead, *row shape), or an object array of shape (samples, *lead).
    """
    if isinstance(column, Ragged):
        bounds = itertools.pairwise(column.splits.tolist())
        rows = [column.values[a:b].reshape(shape) for (a, b), shape in zip(bounds, column.shapes.tolist(), strict=True)]
    elif isinstance(column, Nested):
        items = column.values
        for splits in reversed(column.splits):
            items = _objects([items[a:b] for a, b in itertools.pairwise(splits.tolist())])
        rows = list(items)
    else:
        return column.reshape(len(column) // math.prod(lead), *lead, *column.shape[1:])
    return _objects(rows).reshape(-1, *lead)


def _objects(items: Sequence[Any]) -> np.ndarray:
    """A one-dimensional object array of the items. `np.array` would stack items of equal shape instead."""
    array = np.empty(len(items), object)
    for i, item in enumerate(items):
        array[i] = item
    return array
