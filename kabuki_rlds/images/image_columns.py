"""Checks the image files in the columns of a source, and decodes the selected fields."""

from __future__ import annotations

import concurrent.futures
import logging
from collections.abc import Callable, Collection, Mapping
from typing import TypeAlias

import numpy as np

from kabuki_rlds.data.block import Column, Ragged
from kabuki_rlds.data.schema import Field
from kabuki_rlds.errors import DamagedDataError, KabukiError, MissingDependencyError
from kabuki_rlds.images.damage import DamagedImageError, check_files
from kabuki_rlds.images.decode import ImageDecoder, decoded

_log = logging.getLogger("kabuki_rlds")

#: Maps a row of a column to (file, episode, row in the episode), for example `("demo.hdf5", "data/demo_3", 17)`. The
#: last item is None for episode metadata.
Place: TypeAlias = Callable[[int], tuple[str, str, int | None]]


class ImageColumns:
    """Checks and decodes the image files of a source.

    Args:
      fields: path to field, as stored in the source.
      label: name of the source, for error messages.
      decode: paths of the fields whose image files are decoded.
      like_headers: paths of the fields whose shape and dtype were read from the headers of a few files. All other files
        of these fields must have the same number of channels and the same bit depth.

    Attributes:
      fields: path to field, as returned by `serve`.
      decoded: paths of the fields that are decoded.
    """

    def __init__(
        self, fields: Mapping[str, Field], label: str, *, decode: Collection[str], like_headers: Collection[str] = ()
    ):
        self._stored = {path: field for path, field in fields.items() if field.encoded}
        self._like_headers = like_headers
        self._label = label
        self._mixed: set[str] = set()
        self.decoded = tuple(path for path in self._stored if path in decode)
        self._decoder = ImageDecoder({path: fields[path] for path in self.decoded}, label) if self.decoded else None
        self.fields = {path: decoded(field) if path in self.decoded else field for path, field in fields.items()}

    def serve(
        self, columns: Mapping[str, Column], place: Place, threads: concurrent.futures.Executor
    ) -> dict[str, Column]:
        """The columns, with pixels in the fields that are decoded. All image files are checked.

        Args:
          columns: path to column, as stored in the source.
          place: maps a row to its file, episode and row in the episode, for error messages.
          threads: the thread pool that decodes.

        Raises:
          KabukiError: a file is damaged, or does not match its field.
        """
        return {path: self._serve(path, column, place, threads) for path, column in columns.items()}

    def _serve(self, path: str, column: Column, place: Place, threads: concurrent.futures.Executor) -> Column:
        field = self._stored.get(path)
        if field is None:
            return column
        assert isinstance(column, (np.ndarray, Ragged))
        files = (column if isinstance(column, np.ndarray) else column.values).tolist()
        try:
            dtype = field.dtype if path in self._like_headers else None
            formats = check_files(files, field.shape, dtype=dtype, decodes=path in self.decoded)
            served: Column = column
            if self._decoder is not None and path in self.decoded:
                served = self._decoder.decode_column(path, column, threads)
        except DamagedImageError as e:
            if isinstance(column, np.ndarray):
                raise _damaged(path, place(e.number), f"the image {e.problem}") from e
            row = int(np.searchsorted(column.splits, e.number, "right")) - 1
            number = e.number - int(column.splits[row])
            raise _damaged(path, place(row), f"image {number} {e.problem}") from e
        except MissingDependencyError as e:
            raise MissingDependencyError(f"{self._label}: field {path!r}: {e}") from e
        except KabukiError as e:
            raise KabukiError(f"{self._label}: field {path!r}: {e}") from e
        if field.file_format and formats - {field.file_format} and path not in self._mixed:
            self._mixed.add(path)
            _log.warning(
                "%s: field %r: some images are %s files, but the field states the format %s",
                self._label, path, " and ".join(sorted(formats)), field.file_format,
            )  # fmt: skip
        return served


def _damaged(path: str, place: tuple[str, str, int | None], problem: str) -> DamagedDataError:
    file, within, row = place
    if row is None:
        return DamagedDataError(f"{within}: field {path!r}: {problem}", file=file, field=path)
    problem = f"{within}: row {row}: field {path!r}: {problem}"
    return DamagedDataError(problem, file=file, field=path, rows=range(row, row + 1))
