"""Reads the table of an episode from Arrow or Parquet files, a few rows at a time.

A small file can hold a table of gigabytes, and pyarrow decodes as much as it is asked for. So Parquet is decoded in
batches of about 8 MiB, and texts as a dictionary with each text once. The record batches of an Arrow file are decoded
whole, so there is a limit for their size. pyarrow has no limit for a page of Parquet, which may have 2 GiB.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from kabuki_rlds.data.limits import MAX_ARROW_BATCH_BYTES, MAX_JSON_BYTES
from kabuki_rlds.errors import DamagedDataError, KabukiError
from kabuki_rlds.files.placeholders import check_is_data

#: The approximate size of a batch, and the most rows in one.
_BATCH_BYTES = 8 << 20
_BATCH_ROWS = 1 << 14
#: Bytes of a value of each physical type of Parquet. The values of the other types vary in size.
_VALUE_BYTES = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}


class ArrowTable:
    """The table of one episode.

    Args:
      files: its files, in order.
      data_format: "arrow" or "parquet".

    Attributes:
      schema: the Arrow schema. It describes texts as text; `rows` may return them as dictionaries.
      num_rows: number of rows.

    Raises:
      KabukiError: a file is not a regular file, not data, or exceeds a limit.
    """

    def __init__(self, files: Sequence[str], data_format: str):
        import pyarrow.dataset

        self._files = files
        self._is_parquet = data_format == "parquet"
        for file in files:
            if not os.path.isfile(file):
                raise KabukiError(f"{file}: not a regular file")
            check_is_data(file)
            if self._is_parquet:
                _check_footer(file)
        dataset = pyarrow.dataset.dataset(files, format=data_format)
        self.schema = dataset.schema
        self.num_rows: int = dataset.count_rows()
        self._restart()

    def _restart(self) -> None:
        self._batches = self.batches()
        #: Some consecutive batches, each with its first row, and the row after them.
        self._held: list[tuple[int, Any]] = []
        self._end = 0

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """Yields record batches of all rows, or of some columns of them."""
        for file in self._files:
            for batch in _parquet_batches(file, columns) if self._is_parquet else _arrow_batches(file):
                # Otherwise Arrow trusts the lengths and offsets in a file.
                batch.validate(full=True)
                yield batch

    def rows(self, start: int, stop: int) -> list[Any]:
        """Returns record batches with the rows `start` to `stop`. It is fast if each call continues the last one."""
        if self._held and start < self._held[0][0]:
            self._restart()
        while self._end < stop:
            batch = next(self._batches, None)
            if batch is None:
                raise DamagedDataError(f"has {self._end} rows, expected {self.num_rows}", file=self._files[-1])
            self._held = [each for each in self._held if each[0] + each[1].num_rows > start]
            self._held.append((self._end, batch))
            self._end += batch.num_rows
        slices = [batch.slice(max(start - first, 0), stop - max(start, first)) for first, batch in self._held]
        return [each for each in slices if each.num_rows]


def _parquet_batches(file: str, columns: Sequence[str] | None) -> Iterator[Any]:
    import pyarrow.parquet

    with contextlib.closing(pyarrow.parquet.ParquetFile(file)) as opened:
        metadata = opened.metadata
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
    texts = {chunk.path_in_schema for chunk in chunks if chunk.physical_type == "BYTE_ARRAY"}
    num_bytes = sum(
        chunk.num_values * _VALUE_BYTES.get(chunk.physical_type, 0) or chunk.total_uncompressed_size for chunk in chunks
    )
    rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * metadata.num_rows // max(num_bytes, 1)))
    # Without `buffer_size`, or with `pre_buffer`, pyarrow reads whole columns into memory.
    opened = pyarrow.parquet.ParquetFile(
        file, metadata=metadata, read_dictionary=list(texts), pre_buffer=False, buffer_size=1 << 20
    )
    with contextlib.closing(opened):
        yield from opened.iter_batches(batch_size=rows, columns=columns, use_threads=False)


def _check_footer(file: str) -> None:
    """Rejects a Parquet file whose metadata, which pyarrow parses as a whole, are large."""
    with open(file, "rb") as opened:
        size = opened.seek(0, io.SEEK_END)
        opened.seek(max(size - 8, 0))
        footer = int.from_bytes(opened.read(4), "little")
    if MAX_JSON_BYTES < footer < size:
        raise KabukiError(f"{file}: has {footer:,} bytes of metadata, more than the limit of {MAX_JSON_BYTES:,}")


def _arrow_batches(file: str) -> Iterator[Any]:
    import pyarrow as pa

    with pa.OSFile(file) as opened:
        opened.seek(8)
        schema = pa.ipc.read_schema(pa.ipc.read_message(opened))
        while True:
            at = opened.tell()
            size = _decoded_bytes(opened, file)
            if size is None:
                return
            if size > MAX_ARROW_BATCH_BYTES:
                raise KabukiError(
                    f"{file}: a record batch has {size:,} bytes, more than the limit of {MAX_ARROW_BATCH_BYTES:,}; "
                    "write it again with smaller batches, or as Parquet"
                )
            opened.seek(at)
            message = pa.ipc.read_message(opened)
            if message.type == "record batch":
                yield pa.ipc.read_record_batch(message, schema)


def _decoded_bytes(opened: Any, file: str) -> int | None:
    """Returns the decoded size of the message at the position of a file; None at the end of the messages.

    Each compressed buffer states its decoded size in its first 8 bytes. (Source: `Message.fbs` of Apache Arrow.)
    """
    try:
        mark, length = struct.unpack("<Ii", opened.read(8))
        if mark != 0xFFFFFFFF or length < 0:
            raise struct.error("a message begins with other bytes than since Arrow 0.15")
        if not length:
            return None
        metadata = opened.read(min(length, MAX_JSON_BYTES))
        body = opened.tell()
        message = _FlatTable(metadata, struct.unpack_from("<I", metadata)[0])
        size: int = message.number("<q", 3)
        batch = message.table(2)
        if batch.has(3):
            for offset, stored in batch.pairs(2):
                opened.seek(body + offset)
                if stored >= 8:
                    size += max(struct.unpack("<q", opened.read(8))[0], 0)
        return size
    except (struct.error, OverflowError) as e:
        raise DamagedDataError(f"is not a valid Arrow file: {e}", file=file) from e


class _FlatTable:
    """A table in FlatBuffers' format.

    Args:
      data: the buffer.
      at: the position of the table in it.
    """

    def __init__(self, data: bytes, at: int):
        self._data = data
        self._at = at
        self._index = at - self._unpack("<i", at)
        self._num_fields = (self._unpack("<H", self._index) - 4) // 2

    def _unpack(self, form: str, at: int) -> int:
        if at < 0:
            raise struct.error("a position is negative")
        value: int = struct.unpack_from(form, self._data, at)[0]
        return value

    def _field(self, number: int) -> int:
        """Returns the position of a field, 0 if the table does not have it."""
        offset = self._unpack("<H", self._index + 4 + 2 * number) if number < self._num_fields else 0
        return self._at + offset if offset else 0

    def has(self, number: int) -> bool:
        return bool(self._field(number))

    def number(self, form: str, number: int) -> int:
        return self._unpack(form, self._field(number)) if self.has(number) else 0

    def table(self, number: int) -> _FlatTable:
        at = self._field(number)
        return _FlatTable(self._data, at + self._unpack("<I", at))

    def pairs(self, number: int) -> Iterator[tuple[int, int]]:
        """Yields the items of a vector of pairs of int64."""
        if not self.has(number):
            return
        at = self._field(number) + self.number("<I", number)
        for i in range(self._unpack("<I", at)):
            yield self._unpack("<q", at + 4 + 16 * i), self._unpack("<q", at + 12 + 16 * i)
