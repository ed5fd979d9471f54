"""Reads rows of variable length: sequences of elements, and texts.

The HDF5 library reads only the structure of the dataset. The rows are read directly from the
file, because the library hangs or crashes on some damaged heaps, allocates memory for any
number of elements that a row declares, and reads one row at a time under a global lock.
"""

from __future__ import annotations

import math

import h5py
import numpy as np

from kabuki_rlds.formats.safe_hdf5.global_heap import DamagedObjectError, GlobalHeaps
from kabuki_rlds.formats.safe_hdf5.stored_file import StoredFile
from kabuki_rlds.formats.safe_hdf5.stored_references import StoredReferences


def has_vlen_rows(dataset: h5py.Dataset) -> bool:
    """Returns whether the values of a dataset are sequences or texts of variable length."""
    kind = dataset.id.get_type()
    return isinstance(kind, h5py.h5t.TypeVlenID) or _is_text(kind)


def _is_text(kind: h5py.h5t.TypeID) -> bool:
    return isinstance(kind, h5py.h5t.TypeStringID) and bool(kind.is_variable_str())


class VlenRows:
    """The rows of a dataset for which `has_vlen_rows` is true. Can be used by several threads.

    The elements of the sequences must have a fixed size.

    Args:
      dataset: the dataset. Its file must stay open. A scalar has one row.

    Raises:
      ValueError, RuntimeError: the storage of the dataset is damaged.
    """

    def __init__(self, dataset: h5py.Dataset):
        kind = dataset.id.get_type()
        self._is_text = _is_text(kind)
        self._element_bytes = 1 if self._is_text else int(kind.get_super().get_size())
        self._per_row = math.prod(dataset.shape[1:])
        self._file = StoredFile.of(dataset.file)
        self._references = StoredReferences(dataset, self._file)
        self._heaps = GlobalHeaps(self._file)

    def read(self, rows: np.ndarray) -> list[bytes]:
        """Returns the values of the given rows as they are stored: the elements of each sequence, or texts.

        Texts end at the first NUL, as h5py returns them. If a row has several values, they are concatenated in
        row-major order.

        Args:
          rows: row numbers, ascending, perhaps repeated: int64, (count,).

        Raises:
          OSError, ValueError, RuntimeError: the rows are damaged. A damaged row is named.
        """
        is_repeated = rows[1:] == rows[:-1]
        if is_repeated.any():
            distinct = self.read(rows[np.append(True, ~is_repeated)])
            runs = [distinct[i : i + self._per_row] for i in range(0, len(distinct), self._per_row)]
            return [value for i in np.cumsum(np.append(0, ~is_repeated)) for value in runs[i]]
        references = self._references.read(rows)
        counts = references["elements"].astype(np.int64)
        # Python's integers do not overflow.
        total = int(counts.sum()) * self._element_bytes
        if total > self._file.num_bytes:
            raise ValueError(f"the rows declare {total:,} bytes, but the file has only {self._file.num_bytes:,}")
        try:
            values = self._heaps.read(references["heap"], references["index"], counts * self._element_bytes)
        except DamagedObjectError as e:
            raise ValueError(f"row {rows[e.place // self._per_row]}: {e}") from None
        if self._is_text:
            values = [value if b"\0" not in value else value[: value.index(b"\0")] for value in values]
        return values
