"""Finds image files in the datasets of other writers, and reads them.

HDF5 has no type for a file, so writers choose one of several. A row is

    lists    bytes of variable length
    strings  a string of fixed length, padded with NULs
    opaque   an opaque value, padded likewise
    padded   a row of an array of bytes (rows, longest file), padded likewise

All but the last can have several files in a row: (rows, files), as many in each.

PNG and JPEG files do not end with a NUL, so the padding can be told from the file. Strings of
variable length cannot hold one: they end at the first NUL, and all image files have some.

No attribute tells which datasets these are. Some rows are read, spread over the dataset:
it holds image files if most of those that are not empty begin with the header of a PNG or
JPEG file. The others are then damaged files, and reported when they are read.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias, TypeVar

import h5py
import numpy as np

from kabuki_rlds.data.schema import Field
from kabuki_rlds.formats.safe_hdf5.vlen_lengths import check_lengths
from kabuki_rlds.images.damage import damage_of
from kabuki_rlds.images.headers import ImageHeader, header_of

_log = logging.getLogger("kabuki_rlds")

Form: TypeAlias = Literal["lists", "strings", "opaque", "padded"]

#: No PNG or JPEG file is shorter, and no longer one is looked for: a damaged type may state gigabytes a row.
_SHORTEST_FILE = 64
_LONGEST_FILE = 1 << 28
#: Into so many parts a dataset is cut, and a row read at each cut.
_SAMPLE_PARTS = 4
#: Rows that are read at once to find one that is not empty take about this much, and are no more than:
_SEARCH_BYTES = 1 << 20
_SEARCH_ROWS = 256

#: What image files begin with.
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class ImageFileForm:
    """What a dataset of bytes holds.

    Attributes:
      field: of the image files, None if it holds something else.
      is_blank: no row holds anything but NULs, so it may be a column of image files that are all missing.
    """

    field: Field | None = None
    is_blank: bool = False


def form_of(dataset: h5py.Dataset) -> Form | None:
    """How a dataset could hold image files, by its type and shape alone; None if it cannot."""
    dtype = _dtype_of(dataset)
    # Most datasets hold numbers of several bytes, and asking h5py takes long.
    if dtype is None or dtype.kind in "bfc" or (dtype.kind in "iu" and dtype.itemsize > 1):
        return None
    shape = dataset.shape
    if not shape or (dtype.kind == "O" and h5py.check_string_dtype(dtype) is not None):
        return None
    if dtype.itemsize * math.prod(shape[1:]) > _LONGEST_FILE:
        return None
    element = h5py.check_vlen_dtype(dtype)
    # All dimensions of a row but one are 1: OpenCV gives a file as (n, 1).
    longest = max(shape[1:], default=1)
    if math.prod(shape[1:]) != longest:
        return None
    if element is not None:
        return "lists" if _is_byte(element) else None
    if _is_byte(dtype) and longest >= _SHORTEST_FILE:
        return "padded"
    return "strings" if dtype.kind == "S" else "opaque" if is_opaque(dtype) else None


def files_per_row(dataset: h5py.Dataset, form: Form) -> int:
    """How many files a row of a dataset in such a form holds."""
    return 1 if form == "padded" else math.prod(dataset.shape[1:])


def _dtype_of(dataset: h5py.Dataset) -> np.dtype | None:
    try:
        dtype: np.dtype = dataset.dtype
    except TypeError:
        # Of a type that NumPy does not have.
        return None
    return dtype


def is_opaque(dtype: np.dtype) -> bool:
    """Whether values are bytes of no stated meaning."""
    return dtype.kind == "V" and dtype.names is None and dtype.subdtype is None


def _is_byte(dtype: np.dtype) -> bool:
    return dtype.kind in "iuSV" and dtype.itemsize == 1 and h5py.check_enum_dtype(dtype) is None


def content_of(dataset: h5py.Dataset) -> ImageFileForm:
    """Looks at some rows of a dataset to find out whether it holds image files. Rows that cannot be read hold none."""
    form = form_of(dataset)
    try:
        if form is None:
            _warn_of_cut_files(dataset)
            return ImageFileForm()
        if not len(dataset):
            return ImageFileForm()
        files = _sample(dataset, form)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        # Whoever reads the rows reports it.
        return ImageFileForm()
    if not files:
        return ImageFileForm(is_blank=True)
    headers = [(file, header) for file in files if (header := header_of(file)) is not None]
    decodable = [(file, header) for file, header in headers if header.bits is not None]
    if 2 * len(decodable) > len(files):
        # A damaged header may state any size.
        whole = [header for file, header in decodable if damage_of(file) is None]
        field = _field_of(whole or [header for _, header in decodable])
        files_in_row = files_per_row(dataset, form)
        return ImageFileForm(
            field if files_in_row == 1 else dataclasses.replace(field, shape=(files_in_row, *field.shape))
        )
    # Text may begin as a BMP file does.
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
    """The one value of all, None if they differ."""
    first, *others = set(values)
    return None if others else first


def _sample(dataset: h5py.Dataset, form: Form) -> list[bytes]:
    """Some rows that are not empty, spread over a dataset."""
    last = len(dataset) - 1
    rows = sorted({last * part // _SAMPLE_PARTS for part in range(_SAMPLE_PARTS + 1)})
    files = [file for row in rows for file in read_files(dataset, form, row, row + 1) if file.strip(b"\0")]
    if files:
        return files
    # Perhaps they are all among the others.
    row_nbytes = dataset.dtype.itemsize * math.prod(dataset.shape[1:])
    step = max(1, min(_SEARCH_ROWS, _SEARCH_BYTES // row_nbytes))
    for start in range(0, len(dataset), step):
        found = read_files(dataset, form, start, min(start + step, len(dataset)))
        files = [file for file in found if file.strip(b"\0")]
        if files:
            return files
    return []


def read_files(dataset: h5py.Dataset, form: Form, start: int, stop: int) -> list[bytes]:
    """The files of some rows, end to end, without padding.

    Raises:
      OSError, RuntimeError, ValueError: they cannot be read.
    """
    if form == "lists":
        check_lengths(dataset, start, stop)
        return [file.tobytes() for file in dataset[start:stop].reshape(-1)]
    if form == "padded":
        return unpadded(np.asarray(dataset[start:stop]))
    pad = b"\0"
    if form == "strings" and dataset.id.get_type().get_strpad() == h5py.h5t.STR_SPACEPAD:
        pad = b" "
    return unpadded(_raw(dataset, start, stop).reshape(-1), pad)


def unpadded(rows: np.ndarray, pad: bytes = b"\0") -> list[bytes]:
    """The bytes of each row of an array, without the padding at its end."""
    return [row.tobytes().rstrip(pad) for row in rows]


def _raw(dataset: h5py.Dataset, start: int, stop: int) -> np.ndarray:
    """Rows of strings or opaque values as they are stored: HDF5 would end some kinds of strings at their first NUL."""
    rows = np.empty((stop - start, *dataset.shape[1:]), f"V{dataset.dtype.itemsize}")
    if rows.size:
        space = dataset.id.get_space()
        space.select_hyperslab((start,) + (0,) * (dataset.ndim - 1), rows.shape)
        dataset.id.read(h5py.h5s.create_simple(rows.shape), space, rows, mtype=dataset.id.get_type())
    return rows


def _warn_of_cut_files(dataset: h5py.Dataset) -> None:
    """Warns of strings of variable length that image files were written to: HDF5 keeps what is before the first NUL."""
    dtype = _dtype_of(dataset)
    if dtype is None or dtype.kind != "O" or h5py.check_string_dtype(dtype) is None or dataset.ndim != 1:
        return
    if not len(dataset):
        return
    check_lengths(dataset, 0, 1)
    text = dataset[0]
    if isinstance(text, bytes) and text.startswith(_SIGNATURES):
        _warn(
            dataset.file.filename,
            f"{dataset.name[1:]} holds only the first bytes of image files, since HDF5 strings of variable length end "
            "at a NUL; the images are lost. Write them again as uint8 of variable length",
        )


def _warn_of_undecodable(path: str, name: str, file_format: str) -> None:
    _warn(
        path,
        f"{name[1:]} holds image files ({file_format.upper()}) of a kind that TFDS does not decode; they are kept as "
        "bytes, not as images",
    )


@functools.cache
def _warn(path: str, message: str) -> None:
    # Once, although a file is opened several times.
    _log.warning("%s: %s", path, message)
