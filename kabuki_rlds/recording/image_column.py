"""A column of images of the current episode, stored as PNG or JPEG files.

The pixels of a long episode may not fit into memory, and encoding all images at the end
of the episode would block the agent. So a background thread encodes them in batches.
"""

from __future__ import annotations

import collections
import concurrent.futures
import functools
from typing import Any

import numpy as np

from kabuki_rlds.data.block import Column
from kabuki_rlds.data.schema import BYTES, Field
from kabuki_rlds.images.encode import image_files
from kabuki_rlds.recording.growing_columns import ArrayColumn

#: Number of images in a batch.
_BATCH = 32
#: Maximum number of batches in the queue. If the queue is full, `put` blocks.
_WAITING = 4


class ImageColumn:
    """A column of images of one shape, one image per row.

    Args:
      field: dtype and shape of the pixels of an image.
      path: the path of the field.
      file_format: "png" or "jpeg".
    """

    def __init__(self, field: Field, path: str, file_format: str):
        self._field = field
        self._path = path
        self._format = file_format
        self._begin()

    def put(self, row: int, value: Any) -> None:
        if row == 0:
            self._begin()
        at = row % _BATCH
        if at == 0 and row:
            self._encode()
        self._open.put(at, value)

    def pad(self, row: int) -> None:
        self.put(row, np.zeros([d or 0 for d in self._field.shape], self._field.dtype))

    def columns(self, rows: int) -> dict[str, Column]:
        files = [file for batch in self._batches for file in batch.result()]
        files += image_files(list(self._pixels(rows - len(files))), self._format)
        column = np.empty(rows, BYTES)
        column[:] = files
        return {self._path: column}

    def _begin(self) -> None:
        self._batches: list[concurrent.futures.Future[list[bytes]]] = []
        self._waiting: collections.deque[concurrent.futures.Future[list[bytes]]] = collections.deque()
        self._open = ArrayColumn(self._field, self._path, _BATCH)

    def _encode(self) -> None:
        """Passes the full batch to the background thread and begins the next batch."""
        batch = _encoder().submit(image_files, list(self._pixels(_BATCH)), self._format)
        self._batches.append(batch)
        self._waiting.append(batch)
        if len(self._waiting) > _WAITING:
            self._waiting.popleft().result()
        self._open = ArrayColumn(self._field, self._path, _BATCH)

    def _pixels(self, rows: int) -> np.ndarray:
        column = self._open.columns(rows)[self._path]
        assert isinstance(column, np.ndarray)
        return column


@functools.cache
def _encoder() -> concurrent.futures.Executor:
    return concurrent.futures.ThreadPoolExecutor(1, "kabuki-record")
