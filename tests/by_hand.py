"""Reads a Kabuki file row by row with h5py only, as docs/format.md describes.

It shares no code with the package. It is the independent reader with which the tests check files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np


def read(path: Path) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """Returns (step fields, episode fields). Each maps a path to one value per row, in the form of `tests.expected`."""
    with h5py.File(path, "r") as f:
        steps = columns(f, skip=("episodes", "companion"))
        episodes = columns(f["episodes/metadata"]) if "metadata" in f["episodes"] else {}
        return steps, episodes


def columns(group: h5py.Group, skip: tuple[str, ...] = ()) -> dict[str, list[Any]]:
    """Returns the rows of every dataset in a group, including subgroups."""
    found: dict[str, list[Any]] = {}

    def visit(name: str, item: h5py.HLObject) -> None:
        if isinstance(item, h5py.Dataset) and name.split("/")[0] not in skip:
            found[name] = rows(item)

    group.visititems(visit)
    return found


def rows(dataset: h5py.Dataset) -> list[Any]:
    """Returns the rows of a dataset. A row is an array, `bytes`, or a list of these."""
    attributes = dataset.attrs
    companion = dataset.file[attributes["companion"]] if "companion" in attributes else {}
    if h5py.check_string_dtype(dataset.dtype):
        return _texts(dataset, companion)
    raw = dataset[()]
    if h5py.check_vlen_dtype(dataset.dtype) is None:
        return list(raw)
    shape = tuple(attributes["shape"])
    inner = [companion[name][()] for name in sorted(companion) if name.startswith("lengths_")]
    is_bytes = attributes["dtype"] == "text" or attributes.get("encoded", False)
    if is_bytes and not inner:
        return [row.tobytes() for row in raw]
    result = []
    for t, row in enumerate(raw):
        levels = [lengths[t] for lengths in inner]
        items: Any = row
        if is_bytes:
            ends = np.cumsum(levels.pop())
            items = [row.tobytes()[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=False)] if len(ends) else []
        if "nested" in attributes:
            item_shape = shape[attributes["nested"] :]
            if not is_bytes:
                items = row.reshape(-1, *item_shape)
            for lengths in reversed(levels):
                ends = np.cumsum(lengths)
                items = [items[e - n : e] for e, n in zip(ends, lengths, strict=True)]
            result.append(items)
        elif is_bytes:
            result.append(items)
        else:
            result.append(row.reshape(companion["shape"][t] if "shape" in companion else shape))
    return result


def _texts(dataset: h5py.Dataset, companion: Any) -> list[Any]:
    flat = dataset[()].reshape(-1)
    if "exact_row" in companion:
        for row, exact in zip(companion["exact_row"][()], companion["exact_bytes"][()], strict=True):
            flat[row] = exact.tobytes()
    texts = flat.reshape(dataset.shape)
    return [row if isinstance(row, bytes) else row.tolist() for row in texts]
