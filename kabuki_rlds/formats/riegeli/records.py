"""The records of a chunk of a Riegeli file: byte strings, one after the other."""

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
      data: their bytes, one record after the other: uint8, (bytes,).
      splits: where each begins, and the end: int64, (records + 1,).
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
    """All records of the parts, of which there is at least one."""
    if len(parts) == 1:
        return parts[0]
    lengths = np.concatenate([np.diff(part.splits) for part in parts])
    return Records(np.concatenate([part.data for part in parts]), row_splits(lengths))


def decode(header: chunks.ChunkHeader, data: bytes) -> Records:
    """The records of a chunk whose data is as it was written.

    Raises:
      KabukiError: it is compressed in a way that is not known, or is not what its kind says.
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
    """All whole records of a small file, each with its position, and what is wrong with the rest."""
    found = chunks.headers(path)
    # A file that was not finished is whole as far as it goes.
    wrong = [gap.reason for gap in found if isinstance(gap, chunks.DamagedGap) and not gap.is_tail]
    records = []
    headers = [header for header in found if isinstance(header, chunks.ChunkHeader) and header.has_records]
    for header, data in chunks.read(path, headers):
        if data is None:
            wrong.append(f"the chunk at byte {header.begin} is damaged")
            continue
        part = decode(header, data)
        whole = part.data.tobytes()
        bounds = part.splits.tolist()
        records += [(header.begin + i, whole[bounds[i] : bounds[i + 1]]) for i in range(len(part))]
    return records, "; ".join(wrong)


def _simple(header: chunks.ChunkHeader, data: bytes) -> Records:
    """A chunk that holds the sizes of the records, then the records."""
    reader = ByteReader(data)
    compression = reader.byte()
    lengths = varints(decompress(compression, reader.take(reader.varint())))
    return Records(np.frombuffer(decompress(compression, reader.rest()), np.uint8), row_splits(lengths))
