"""Selects the reader for the rows of a dataset."""

from __future__ import annotations

import concurrent.futures
from typing import TypeAlias

import h5py

from kabuki_rlds.data.schema import BYTES, Field
from kabuki_rlds.formats.hdf5.fixed import ChunkMemory, FixedReader
from kabuki_rlds.formats.hdf5.image_file_reader import ImageFileReader
from kabuki_rlds.formats.hdf5.variable_reader import VariableReader
from kabuki_rlds.formats.safe_hdf5.attributes import Attributes

ColumnReader: TypeAlias = FixedReader | VariableReader

#: The errors that a reader raises for damaged files and unexpected types.
READ_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError)


def column_reader(
    dataset: h5py.Dataset, field: Field, executor: concurrent.futures.Executor, memory: ChunkMemory | None = None
) -> ColumnReader:
    """Returns a reader for the rows of a dataset.

    Args:
      dataset: the dataset.
      field: the field that the dataset stores.
      executor: threads that unpack chunks.
      memory: as in `FixedReader`.
    """
    if field.is_fixed and field.dtype != BYTES:
        return FixedReader(dataset, executor, field.dtype, memory)
    # `VariableReader` reads lists of images of variable length, which have a companion.
    if field.encoded and not (field.is_list_of_images and "companion" in Attributes(dataset)):
        return ImageFileReader(dataset, field, executor)
    return VariableReader(dataset, field)
