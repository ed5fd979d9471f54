"""Reads datasets whose rows are sequences of numbers: HDF5's variable-length type."""

from __future__ import annotations

import h5py
import numpy as np

from kabuki_rlds.data.schema import BFLOAT16
from kabuki_rlds.formats.hdf5 import layout
from kabuki_rlds.formats.safe_hdf5.vlen_rows import VlenRows


def has_sequences(dataset: h5py.Dataset) -> bool:
    """Returns whether the rows of a dataset are sequences."""
    return bool(dataset.ndim) and h5py.check_vlen_dtype(dataset.dtype) is not None


class SequenceReader:
    """Reads sequences of numbers. Can be used by several threads.

    Args:
      dataset: a dataset of sequences. Its file must stay open.
      dtype: the dtype of the elements that are returned. None uses the dtype of the dataset.

    Raises:
      OSError, ValueError, RuntimeError: the storage of the dataset is damaged.
    """

    def __init__(self, dataset: h5py.Dataset, dtype: np.dtype | None = None):
        self._rows = VlenRows(dataset)
        kind = dataset.id.get_type().get_super()
        stored = kind.dtype
        if stored.hasobject:
            raise ValueError("sequences of texts, of sequences or of references are not read")
        self._convert: tuple[h5py.h5t.TypeID, h5py.h5t.TypeID] | None = None
        if dtype == BFLOAT16 and kind.equal(layout.element_type(BFLOAT16)):
            # h5py would convert the elements to float32, and change some NaN.
            stored = BFLOAT16
        elif not kind.equal(memory := h5py.h5t.py_create(stored, logical=True)):
            # NumPy has no such type, for example integers of 20 bits.
            self._convert = kind, memory
        self._stored, self._dtype = stored, stored if dtype is None else dtype

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (elements of all sequences, concatenated; number of elements of each sequence).

        Args:
          rows: row numbers, ascending, perhaps repeated: int64, (count,).

        Raises:
          OSError, ValueError, RuntimeError: the rows are damaged. A damaged row is named.
        """
        sequences = self._rows.read(rows)
        element_bytes = self._stored.itemsize if self._convert is None else self._convert[0].get_size()
        counts = np.fromiter(map(len, sequences), np.int64, len(sequences)) // element_bytes
        # A bytearray, because arrays of bytes are read-only.
        values = bytearray().join(sequences)
        if self._convert is not None:
            values = self._converted(values, int(counts.sum()))
        return np.frombuffer(values, self._stored).astype(self._dtype, copy=False), counts

    def _converted(self, values: bytearray, count: int) -> bytearray:
        assert self._convert is not None
        kind, memory = self._convert
        # HDF5 converts in place.
        values.extend(bytes(count * max(memory.get_size() - kind.get_size(), 0)))
        h5py.h5t.convert(kind, memory, count, np.frombuffer(values, np.uint8))
        del values[count * memory.get_size() :]
        return values
