"""Detects and reads image files in the datasets of other writers.

HDF5 has no type for files, so writers store an image file in one of four forms:

    lists    a variable-length row of bytes
    strings  a fixed-length string, padded with NULs
    opaque   an opaque value, padded with NULs
    padded   a row of a byte array (rows, length of the longest file), padded with NULs

All forms except the last may have several files per row: shape (rows, files).

PNG and JPEG files do not end with a NUL, so the padding can be removed. Variable-length
strings cannot store image files, because they end at the first NUL.

No attribute marks these datasets. `content_of` reads a sample of rows: the dataset has
image files if most nonempty rows begin with a PNG or JPEG header. Other rows are then
treated as damaged files, and are reported when they are read.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeAlias, TypeVar

import h5py
import numpy as np

from kabuki_rlds.data.block import row_range
from kabuki_rlds.data.schema import Field
from kabuki_rlds.formats.safe_hdf5.vlen_rows import VlenRows, has_vlen_rows
from kabuki_rlds.images.damage import damage_of
from kabuki_rlds.images.headers import ImageHeader, header_of

_log = logging.getLogger("kabuki_rlds")

Form: TypeAlias = Literal["lists", "strings", "opaque", "padded"]

#: The accepted file sizes. PNG and JPEG files have at least 64 bytes, and a damaged type may declare gigabytes per row.
_SHORTEST_FILE = 64
_LONGEST_FILE = 1 << 28
#: The sample has the first and the last row, and rows at equal distances that divide the dataset into so many parts.
_SAMPLE_PARTS = 4
#: The search for a nonempty row reads batches of about so many bytes, and at most so many rows.
_SEARCH_BYTES = 1 << 20
_SEARCH_ROWS = 256

#: The first bytes of PNG and JPEG files.
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class ImageFileForm:
    """The result of `content_of`.

    Attributes:
      field: the field of the image files, or None if the dataset has none.
      is_blank: whether all rows are empty or NULs. The dataset may then be a column of missing image files.
    """

    field: Field | None = None
    is_blank: bool = False


def form_of(dataset: h5py.Dataset) -> Form | None:
    """Returns the form in which a dataset could store image files, from its type and shape, or None if it cannot."""
    dtype = _dtype_of(dataset)
    # A fast check first: the calls to h5py below are slow, and most datasets have numbers of several bytes.
    if dtype is None or dtype.kind in "bfc" or (dtype.kind in "iu" and dtype.itemsize > 1):
        return None
    shape = dataset.shape
    if not shape or (dtype.kind == "O" and h5py.check_string_dtype(dtype) is not None):
        return None
    if dtype.itemsize * math.prod(shape[1:]) > _LONGEST_FILE:
        return None
    element = h5py.check_vlen_dtype(dtype)
    # All dimensions of a row except one must be 1. (OpenCV returns a file as (n, 1).)
    longest = max(shape[1:], default=1)
    if math.prod(shape[1:]) != longest:
        return None
    if element is not None:
        return "lists" if _is_byte(element) else None
    if _is_byte(dtype) and longest >= _SHORTEST_FILE:
        return "padded"
    if dtype.kind == "S":
        # h5py gives opaque data with the tag "NUMPY:|S21" the dtype of strings.
        return "strings" if isinstance(dataset.id.get_type(), h5py.h5t.TypeStringID) else None
    return "opaque" if is_opaque(dtype) else None


def files_per_row(dataset: h5py.Dataset, form: Form) -> int:
    """Returns the number of files in a row."""
    return 1 if form == "padded" else math.prod(dataset.shape[1:])


def _dtype_of(dataset: h5py.Dataset) -> np.dtype | None:
    try:
        dtype: np.dtype = dataset.dtype
    except TypeError:
        # The type has no NumPy equivalent.
        return None
    return dtype


def is_opaque(dtype: np.dtype) -> bool:
    """Returns whether values have an opaque HDF5 type."""
    return dtype.kind == "V" and dtype.names is None and dtype.subdtype is None


def _is_byte(dtype: np.dtype) -> bool:
    return dtype.kind in "iuSV" and dtype.itemsize == 1 and h5py.check_enum_dtype(dtype) is None


def content_of(dataset: h5py.Dataset) -> ImageFileForm:
    """Reads a sample of rows to detect image files. If rows cannot be read, the result has no image files."""
    form = form_of(dataset)
    try:
        if form is None:
            _warn_of_cut_files(dataset)
            return ImageFileForm()
        if not len(dataset):
            return ImageFileForm()
        files = _sample(dataset, form)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        # The error is reported when the rows are read.
        return ImageFileForm()
    if not files:
        return ImageFileForm(is_blank=True)
    headers = [(file, header) for file in files if (header := header_of(file)) is not None]
    decodable = [(file, header) for file, header in headers if header.bits is not None]
    if 2 * len(decodable) > len(files):
        # Prefer intact files, because a damaged header may state any size.
        intact = [header for file, header in decodable if damage_of(file) is None]
        field = _field_of(intact or [header for _, header in decodable])
        files_in_row = files_per_row(dataset, form)
        return ImageFileForm(
            field if files_in_row == 1 else dataclasses.replace(field, shape=(files_in_row, *field.shape))
        )
    # No warning about BMP, because text may begin like a BMP file ("BM").
    if 2 * len(headers) > len(files) and all(header.file_format != "bmp" for _, header in headers):
        _warn_of_undecodable(dataset.file.filename, dataset.name, headers[0][1].file_format)
    return ImageFileForm()


def _field_of(headers: Sequence[ImageHeader]) -> Field:
    shape = tuple(_common(values) for values in zip(*((h.height, h.width, h.channels) for h in headers), strict=True))
    return Field(
        np.dtype(np.uint16 if headers[0].bits == 16 else np.uint8),
        shape,
        "image",
        encoded=True,
        file_format=_common(header.file_format for header in headers) or "",
    )


def _common(values: Iterable[_T]) -> _T | None:
    """Returns the common value, or None if the values differ."""
    first, *others = set(values)
    return None if others else first


def _sample(dataset: h5py.Dataset, form: Form) -> list[bytes]:
    """Returns the nonempty files of some rows that are spread over a dataset."""
    read = file_reader(dataset, form)
    last = len(dataset) - 1
    rows = sorted({last * part // _SAMPLE_PARTS for part in range(_SAMPLE_PARTS + 1)})
    files = [file for row in rows for file in read(np.array([row])) if file.strip(b"\0")]
    if files:
        return files
    # All sampled rows are empty: search for the first nonempty row.
    row_nbytes = dataset.dtype.itemsize * math.prod(dataset.shape[1:])
    step = max(1, min(_SEARCH_ROWS, _SEARCH_BYTES // row_nbytes))
    for start in range(0, len(dataset), step):
        found = read(np.arange(start, min(start + step, len(dataset))))
        files = [file for file in found if file.strip(b"\0")]
        if files:
            return files
    return []


def file_reader(dataset: h5py.Dataset, form: Form) -> Callable[[np.ndarray], list[bytes]]:
    """Returns a function that reads the files of some rows, without padding.

    The argument of the function is the row numbers, ascending: int64, (count,). They must be consecutive unless the
    form is "lists". The function raises OSError, RuntimeError or ValueError if the rows cannot be read.
    """
    if form == "lists":
        return VlenRows(dataset).read
    is_padded_by_spaces = form == "strings" and dataset.id.get_type().get_strpad() == h5py.h5t.STR_SPACEPAD
    pad = b" " if is_padded_by_spaces else b"\0"

    def read(rows: np.ndarray) -> list[bytes]:
        start, stop = row_range(rows)
        if form == "padded":
            return unpadded(np.asarray(dataset[start:stop]))
        return unpadded(_raw(dataset, start, stop).reshape(-1), pad)

    return read


def unpadded(rows: np.ndarray, pad: bytes = b"\0") -> list[bytes]:
    """Returns the bytes of each row of an array, without the padding at the end."""
    return [row.tobytes().rstrip(pad) for row in rows]


def _raw(dataset: h5py.Dataset, start: int, stop: int) -> np.ndarray:
    """Returns the stored bytes of strings or opaque values, because HDF5 cuts some strings at the first NUL.

    Returns:
      an array of void values: (rows, *shape).
    """
    rows = np.empty((stop - start, *dataset.shape[1:]), f"V{dataset.dtype.itemsize}")
    if rows.size:
        space = dataset.id.get_space()
        space.select_hyperslab((start,) + (0,) * (dataset.ndim - 1), rows.shape)
        dataset.id.read(h5py.h5s.create_simple(rows.shape), space, rows, mtype=dataset.id.get_type())
    return rows


def _warn_of_cut_files(dataset: h5py.Dataset) -> None:
    """Warns if image files were written as variable-length strings, which HDF5 cuts at the first NUL."""
    dtype = _dtype_of(dataset)
    if dtype is None or dtype.kind != "O" or h5py.check_string_dtype(dtype) is None or dataset.ndim != 1:
        return
    if not len(dataset):
        return
    if has_vlen_rows(dataset) and VlenRows(dataset).read(np.arange(1))[0].startswith(_SIGNATURES):
        _warn(
            dataset.file.filename,
            f"{dataset.name[1:]}: has only the first bytes of image files, because variable-length HDF5 strings end at "
            "the first NUL; the images are lost. Write them again as variable-length uint8",
        )


def _warn_of_undecodable(path: str, name: str, file_format: str) -> None:
    _warn(
        path,
        f"{name[1:]}: has image files that TFDS cannot decode ({file_format.upper()}); they are kept as bytes, not as "
        "images",
    )


@functools.cache
def _warn(path: str, message: str) -> None:
    # Cached: one warning per file, even if it is opened several times.
    _log.warning("%s: %s", path, message)
