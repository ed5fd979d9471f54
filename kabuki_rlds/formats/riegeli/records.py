"""Decodes the records of chunks of Riegeli files."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from kabuki_rlds.data.block import row_splits
from kabuki_rlds.errors import DamagedDataError
from kabuki_rlds.formats.riegeli import chunks, transposed
from kabuki_rlds.formats.riegeli.byte_reader import ByteReader, decompress, varints


@dataclasses.dataclass(frozen=True)
class Records:
    """Consecutive records.

    Attributes:
      data: the bytes of all records, concatenated: uint8, (bytes,).
      splits: the offset of each record in `data`, and the end: int64, (records + 1,).
    """

    data: np.ndarray
    splits: np.ndarray

    def __len__(self) -> int:
        return len(self.splits) - 1

    def __getitem__(self, rows: slice) -> Records:
        start, stop, _ = rows.indices(len(self))
        splits = self.splits[start : max(start, stop) + 1]
        return Records(self.data[splits[0] : splits[-1]], splits - splits[0])


def join(parts: list[Records]) -> Records:
    """Concatenates records. There must be at least one part."""
    if len(parts) == 1:
        return parts[0]
    lengths = np.concatenate([np.diff(part.splits) for part in parts])
    return Records(np.concatenate([part.data for part in parts]), row_splits(lengths))


def decode(header: chunks.ChunkHeader, data: bytes) -> Records:
    """Decodes the records of a chunk whose hash was verified.

    Raises:
      DamagedDataError: the compression is unknown, or the data does not fit the header.
    """
    try:
        found = (
            _simple(header, data)
            if header.kind == chunks.SIMPLE
            else Records(*transposed.decode(data, header.num_records))
        )
    except (IndexError, ValueError, OverflowError) as e:
        raise DamagedDataError(f"the chunk at byte {header.begin} cannot be decoded: {e}") from e
    if len(found) != header.num_records or len(found.data) != header.decoded_bytes:
        raise DamagedDataError(
            f"the chunk at byte {header.begin} says {header.num_records} records of {header.decoded_bytes} bytes, "
            f"but holds {len(found)} of {len(found.data)}"
        )
    return found


def read_small(path: pathlib.Path) -> tuple[list[tuple[int, bytes]], str]:
    """Reads all records of a small file.

    Returns:
      position and bytes of each readable record, and a description of the damage, "" if there is none. A file that ends
      within a chunk is not damaged: its writer was interrupted.
    """
    found = chunks.headers(path)
    damage = [gap.reason for gap in found if isinstance(gap, chunks.DamagedGap) and not gap.is_tail]
    records = []
    headers = [header for header in found if isinstance(header, chunks.ChunkHeader) and header.has_records]
    for header, data in chunks.read(path, headers):
        if data is None:
            damage.append(f"the chunk at byte {header.begin} is damaged")
            continue
        decoded = decode(header, data)
        content = decoded.data.tobytes()
        splits = decoded.splits.tolist()
        records += [(header.begin + i, content[splits[i] : splits[i + 1]]) for i in range(len(decoded))]
    return records, "; ".join(damage)


def _simple(header: chunks.ChunkHeader, data: bytes) -> Records:
    """Decodes a simple chunk: the sizes of the records, then the records."""
    reader = ByteReader(data)
    compression = reader.byte()
    lengths = varints(decompress(compression, reader.take(reader.varint())))
    return Records(np.frombuffer(decompress(compression, reader.rest()), np.uint8), row_splits(lengths))
