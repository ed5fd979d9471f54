"""Writes Kabuki files with h5py only, without the package, as a user might do.

The contents of a file are a dict from path to array or `Stored`. The paths `episodes/…` are the episode index. The
attributes of the root group are a separate dict.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

LENGTHS = (3, 1, 4)
TERMINAL = (True, False, True)


@dataclasses.dataclass(frozen=True)
class Stored:
    """Values of a dataset with attributes and with options for h5py's `create_dataset`."""

    values: Any
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def fields(lengths: Sequence[int] = LENGTHS, terminal: Sequence[bool] = TERMINAL) -> dict[str, Any]:
    """Returns the step fields of a minimal valid file (rules 1 to 5)."""
    n = sum(lengths)
    ends = np.cumsum(lengths, dtype=int)
    is_first, is_last, is_terminal = np.zeros((3, n), bool)
    is_last[ends - 1] = True
    is_first[[0, *ends[:-1]][: len(ends)]] = True
    is_terminal[ends - 1] = terminal
    discount = np.where(np.append(is_terminal, False)[1:], 0, 1).astype(np.float32)
    return {
        "observation": np.arange(2 * n, dtype=np.float32).reshape(n, 2),
        "action": np.arange(n, dtype=np.int32),
        "reward": np.arange(n, dtype=np.float64) / 2,
        "discount": discount,
        "is_first": is_first,
        "is_last": is_last,
        "is_terminal": is_terminal,
    }


def index(lengths: Sequence[int] = LENGTHS) -> dict[str, Any]:
    """Returns the episode index and an episode field (rule 6)."""
    return {
        "episodes/start": np.array([0, *np.cumsum(lengths)][: len(lengths)], np.int64),
        "episodes/length": np.array(lengths, np.int64),
        "episodes/source": np.zeros(len(lengths), np.int32),
        "episodes/metadata/seed": np.arange(len(lengths)),
    }


def companions() -> dict[str, Any]:
    """Returns fields with companion datasets (rule 9), 8 rows each."""
    rows = _vlen([np.arange(i, dtype=np.int64) for i in range(8)])
    unknown = {"shape": np.array([-1, -1]), "dtype": "int64"}
    words = _vlen([np.frombuffer(b"abc"[:i] * i, np.uint8) for i in range(4)] * 2)
    return {
        "boxes": dataclasses.replace(rows, attributes={**unknown, "companion": "/companion/boxes"}),
        "companion/boxes/shape": np.array([[i, 1] for i in range(8)]),
        # Each row is a list of one list.
        "lists": dataclasses.replace(rows, attributes={**unknown, "nested": 2, "companion": "/companion/lists"}),
        "companion/lists/lengths_1": _vlen([np.array([i], np.int64) for i in range(8)]),
        "words": dataclasses.replace(
            words, attributes={"shape": [-1], "dtype": "text", "companion": "/companion/words"}
        ),
        "companion/words/lengths_1": _vlen([np.full(i, i, np.int64) for i in range(4)] * 2),
        "notes": Stored(["a"] * 8, {"dtype": h5py.string_dtype()}, {"companion": "/companion/notes"}),
        "companion/notes/exact_row": np.array([2, 5]),
        "companion/notes/exact_bytes": _vlen([np.frombuffer(b"a\0b", np.uint8), np.frombuffer(b"a\0", np.uint8)]),
    }


def _vlen(rows: Sequence[np.ndarray]) -> Stored:
    values = np.empty(len(rows), object)
    values[:] = rows
    return Stored(values, {"dtype": h5py.vlen_dtype(rows[0].dtype)})


def attributes(lengths: Sequence[int] = LENGTHS) -> dict[str, Any]:
    """Returns the attributes of the root group (rule 7)."""
    return {
        "format": "kabuki",
        "format_version": "1.0",
        "num_steps": sum(lengths),
        "num_episodes": len(lengths),
        "features": "",
        "sources": json.dumps([{"path": "/by/hand", "format": "kabuki"}]),
        "environment": json.dumps({"name": "by hand"}),
        "created_by": "a hand",
        "complete": True,
    }


def write(path: Path, datasets: Mapping[str, Any], root: Mapping[str, Any] | None = None) -> Path:
    """Writes the file and returns its path."""
    with h5py.File(path, "w") as file:
        for name, item in datasets.items():
            stored = item if isinstance(item, Stored) else Stored(item)
            dataset = file.create_dataset(name, data=stored.values, **stored.options)
            dataset.attrs.update(stored.attributes)
        file.attrs.update(root or {})
    return path


def contents(path: Path, without: Sequence[str] = ("sources",)) -> dict[str, Any]:
    """Each dataset of a file but `episodes/source`, with its type and attributes, and the root attributes.

    Args:
      path: the file.
      without: root attributes to leave out.
    """
    found: dict[str, Any] = {}

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and name != "episodes/source":
            attributes = {key: np.asarray(value).tolist() for key, value in item.attrs.items()}
            values = [v if isinstance(v, bytes) else v.tobytes() for v in item[:]]
            found[name] = (
                str(item.dtype), item.shape, item.chunks, item.compression, item.maxshape, attributes, values
            )  # fmt: skip

    with h5py.File(path) as file:
        file.visititems(visit)
        found["attributes"] = {k: np.asarray(v).tolist() for k, v in file.attrs.items() if k not in without}
    return found


def put_chunk(path: Path, name: str, stored: bytes) -> Path:
    """Replaces the stored bytes of the first chunk of a dataset."""
    with h5py.File(path, "r+") as file:
        dataset = file[name]
        dataset.id.write_direct_chunk((0,) * dataset.ndim, stored)
    return path


def chunked(values: np.ndarray, **options: Any) -> Stored:
    """Returns a dataset with all rows in one gzip-compressed chunk."""
    return Stored(values, {"chunks": values.shape, "compression": "gzip", **options})


def gzip_with_a_flipped_bit(values: np.ndarray) -> bytes:
    """Compresses an array with zlib level 0 and flips one bit of the data. Only the checksum reveals the damage."""
    stored = bytearray(zlib.compress(np.ascontiguousarray(values).tobytes(), 0))
    stored[len(stored) // 2] ^= 1
    return bytes(stored)


def slow(path: Path, steps: int) -> Path:
    """Writes a small file that takes long to convert. All rows are zero, and all chunks are identical."""
    columns = {**dict.fromkeys(_NUMBERS, ("float32", ())), **dict.fromkeys(_FLAGS, ("bool", ()))}
    with h5py.File(path, "w") as file:
        for name, (dtype, shape) in {**columns, "observation": ("float32", (64,))}.items():
            rows = (1 << 18) // np.zeros(shape, dtype).nbytes
            chunk = zlib.compress(np.zeros((rows, *shape), dtype).tobytes(), 9)
            dataset = file.create_dataset(name, (steps, *shape), dtype, chunks=(rows, *shape), compression="gzip")
            for row in range(0, steps, rows):
                dataset.id.write_direct_chunk((row, *(0 for _ in shape)), chunk)
        file["episodes/start"] = [0]
    return path


_NUMBERS = ("action", "reward", "discount")
_FLAGS = ("is_first", "is_last", "is_terminal")
