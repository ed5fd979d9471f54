"""Reads columns of image files, in all forms that `image_files` supports."""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Callable

import h5py
import numpy as np

from kabuki_rlds.data.block import Column, Ragged, row_range
from kabuki_rlds.data.schema import Field
from kabuki_rlds.formats.hdf5 import image_files
from kabuki_rlds.formats.hdf5.fixed import FixedReader
from kabuki_rlds.formats.hdf5.variable_reader import VariableReader

#: The number of rows of a dataset without chunks that are read together if one of them is requested.
_RUN_ROWS = 64


class ImageFileReader(VariableReader):
    """Reads image files as `bytes` objects, (rows,). If a row has several files, as ragged rows of `bytes` objects."""

    def __init__(self, dataset: h5py.Dataset, field: Field, executor: concurrent.futures.Executor):
        super().__init__(dataset, field)
        form = image_files.form_of(dataset)
        assert form is not None
        self._form = form
        self._files_per_row = image_files.files_per_row(dataset, form)
        # `FixedReader` unpacks the chunks in threads.
        self._padded = FixedReader(dataset, executor) if form == "padded" and dataset.dtype.kind in "iu" else None
        if form != "lists":
            self.run_rows = int(dataset.chunks[0]) if dataset.chunks else _RUN_ROWS

    @property
    def _reads_any_rows(self) -> bool:
        return self._form == "lists"

    @functools.cached_property
    def _read_files(self) -> Callable[[np.ndarray], list[bytes]]:
        return image_files.file_reader(self._dataset, self._form)

    def _read(self, rows: np.ndarray) -> Column:
        if self._padded is not None:
            files = image_files.unpadded(self._padded.read(*row_range(rows)))
        else:
            files = self._read_files(rows)
        column = np.empty(len(files), object)
        column[:] = files
        if not self._field.is_list_of_images:
            return column
        return Ragged(column, np.full((len(rows), 1), self._files_per_row, np.int64))
