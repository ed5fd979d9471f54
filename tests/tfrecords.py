"""Reads, writes and damages TFRecord files, without TensorFlow's reader."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Record:
    """One record.

    Attributes:
      start: where in the file it begins.
      data: what it holds: a serialized example.
    """

    start: int
    data: bytes


def shards(folder: Path, split: str = "train") -> list[Path]:
    """Returns the shards of a split, in order."""
    return sorted(folder.glob(f"*-{split}.*-of-*"))


def read(path: Path) -> list[Record]:
    """Returns all records of a file."""
    stored = path.read_bytes()
    records, at = [], 0
    while at < len(stored):
        (length,) = struct.unpack_from("<Q", stored, at)
        records.append(Record(at, stored[at + 12 : at + 12 + length]))
        at += length + 16
    return records


def write(path: Path, examples: Iterable[bytes]) -> None:
    """Writes a file with valid checksums."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for data in examples:
            writer.write(data)


def flip(path: Path, at: int, bit: int = 1) -> None:
    """Flips bits of one byte of a file."""
    stored = bytearray(path.read_bytes())
    stored[at] ^= bit
    path.write_bytes(stored)


def edit(path: Path, number: int, change: Callable[[tf.train.Example], object]) -> None:
    """Changes one example of a file and updates the checksums."""
    records = [record.data for record in read(path)]
    example = tf.train.Example.FromString(records[number])
    change(example)
    records[number] = example.SerializeToString()
    write(path, records)


def edit_info(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the entry of the split "train" in `dataset_info.json`."""
    info = json.loads((folder / "dataset_info.json").read_text())
    (train,) = (split for split in info["splits"] if split["name"] == "train")
    change(train)
    (folder / "dataset_info.json").write_text(json.dumps(info))
