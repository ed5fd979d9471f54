"""How a schema is laid out in an HDF5 file: names, types and attributes.

A field of the steps is the dataset at its path; a field of the episodes stands
under `episodes/metadata/`. What a dataset cannot say by its type and shape is in
its attributes:

    kind          "text", "label" or "image"; absent for numbers
    class_names   the names of a label's classes
    shape         shape of one row where the dataset is of variable length; -1 varies
    nested        how many leading dimensions of `shape` are lists of lists
    encoded       true where rows are the bytes of image files
    dtype         what those decode to, or the type of elements that are stored as bytes
    file_format   "png" or "jpeg": of image files, or of those that images were decoded from
    derived       how the column was made, where the source had none
    companion     path of a group that holds what is missing to read the rows exactly
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from kabuki_rlds.data.limits import MAX_CLASSES
from kabuki_rlds.data.schema import BFLOAT16, BYTES, Field
from kabuki_rlds.errors import DamagedDataError, SchemaMismatchError
from kabuki_rlds.formats.hdf5 import image_files
from kabuki_rlds.formats.safe_hdf5 import types, vlen_lengths
from kabuki_rlds.formats.safe_hdf5.attributes import DIMENSION_SCALES, Attributes

_log = logging.getLogger("kabuki_rlds")

FORMAT = "kabuki"
FORMAT_VERSION = "1.1"
#: The versions that can be read.
FORMAT_VERSIONS = ("1.0", FORMAT_VERSION)

EPISODES = "episodes"
METADATA = "episodes/metadata"
COMPANION = "companion"

#: Names at the root that are not fields of the steps.
RESERVED = (EPISODES, COMPANION)

#: The attributes that the format knows, of the root and of a field.
_ABOUT_THE_FILE = ("format", "format_version", "num_steps", "num_episodes", "complete", "features", "name", "version")
_ABOUT_THE_DATA = (
    "description",
    "citation",
    "homepage",
    "environment",
    "sources",
    "skipped",
    "created_by",
    "notes",
    "rate_hz",
)
ROOT_ATTRIBUTES = (*_ABOUT_THE_FILE, *_ABOUT_THE_DATA)
_ABOUT_A_FIELD = ("kind", "class_names", "shape", "nested", "encoded", "dtype", "derived", "companion", "file_format")
FIELD_ATTRIBUTES = (*_ABOUT_A_FIELD, *DIMENSION_SCALES)

#: Of these, the ones that say what a row is.
_DESCRIBES = frozenset(("kind", "class_names", "shape", "nested", "encoded", "dtype", "companion"))

#: One chunk of a dataset is about this large: small enough to read one episode or
#: one step at little cost, large enough to compress well and to stream.
CHUNK_BYTES = 256 << 10
_MAX_CHUNK_ROWS = 1 << 16
#: Rows in a chunk of variable length, of which the dataset itself holds 16 bytes each.
VARIABLE_CHUNK_ROWS = 1024


#: An attribute holds 64 KiB at the most, and each text of it takes 16 bytes there.
_MAX_ATTRIBUTE_NAMES = 4000


def chunk_rows(row_nbytes: int) -> int:
    """Rows in a chunk: a power of two, so that chunks of all columns align."""
    rows = max(1, min(_MAX_CHUNK_ROWS, CHUNK_BYTES // max(row_nbytes, 1)))
    return 1 << (rows.bit_length() - 1)


def variable_chunk_rows(texts: int) -> int:
    """Rows in a chunk of text, where so many texts are in a row."""
    return max(1, VARIABLE_CHUNK_ROWS // (1 << max(texts - 1, 0).bit_length()))


def long_class_names(field: Field) -> tuple[str, ...] | None:
    """The names of a label's classes where they are too many for an attribute, and are a companion."""
    return field.names if field.names is not None and len(field.names) > _MAX_ATTRIBUTE_NAMES else None


def element_type(dtype: np.dtype) -> h5py.h5t.TypeID:
    """The HDF5 type of a dtype, little-endian.

    bfloat16 is the custom float of HDF5 with its 8 bits of exponent and 7 of
    mantissa, which any HDF5 reader converts to float32 by itself.
    """
    if dtype == BFLOAT16:
        bfloat16 = h5py.h5t.IEEE_F32LE.copy()
        bfloat16.set_fields(15, 7, 8, 0, 7)
        bfloat16.set_precision(16)
        bfloat16.set_size(2)
        bfloat16.set_ebias(127)
        return bfloat16
    return h5py.h5t.py_create(dtype.newbyteorder("<"), logical=True)


def element_dtype(dataset: h5py.Dataset) -> np.dtype:
    """The native dtype of a dataset's elements, or of those of its rows of variable length."""
    hdf5_type = dataset.id.get_type()
    if isinstance(hdf5_type, h5py.h5t.TypeVlenID):
        hdf5_type = hdf5_type.get_super()
    if _is_bfloat16(hdf5_type):
        return BFLOAT16
    dtype = h5py.check_vlen_dtype(dataset.dtype) or dataset.dtype
    if h5py.check_enum_dtype(dtype) is not None:
        # The numbers alone: h5py would write their names along.
        dtype = np.dtype(dtype.str)
    return BYTES if h5py.check_string_dtype(dataset.dtype) else np.dtype(dtype).newbyteorder("=")


def stored_row_nbytes(dataset: h5py.Dataset) -> int | None:
    """Bytes of a row as HDF5 gives it; None where rows differ in size."""
    kind = dataset.id.get_type()
    if isinstance(kind, h5py.h5t.TypeVlenID) or (isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str()):
        return None
    return math.prod(dataset.shape[1:]) * kind.get_size()


def _is_bfloat16(hdf5_type: h5py.h5t.TypeID) -> bool:
    if not isinstance(hdf5_type, h5py.h5t.TypeFloatID) or hdf5_type.get_size() != 2:
        return False
    return tuple(hdf5_type.get_fields()) == (15, 7, 8, 0, 7) and hdf5_type.get_ebias() == 127


def check_path(path: str) -> None:
    """Refuses a path that HDF5 cannot hold under its own name.

    Raises:
      KabukiError: the path has a component that HDF5 reads as something else.
    """
    parts = path.split("/")
    if any(part in ("", ".") for part in parts) or "\0" in path:
        raise SchemaMismatchError(
            f"field {path!r}: HDF5 cannot hold a field of this name; a recipe can give it another", fields=(path,)
        )


def check_step_path(path: str) -> None:
    """As `check_path`, and keeps step fields off the names that the format uses.

    Raises:
      KabukiError: the name cannot be used.
    """
    check_path(path)
    if path.split("/")[0] in RESERVED:
        raise SchemaMismatchError(
            f"step field {path!r}: the Kabuki format keeps {path.split('/')[0]!r} for itself; a recipe can give the "
            "field another name",
            fields=(path,),
        )


def attribute(item: h5py.HLObject, name: str, default: object = None) -> object:
    """What an attribute says, None where that is nothing.

    An array of one element, as other writers have a single value, is its element.
    """
    return _single(Attributes(item).get(name, default))


def text_attribute(item: h5py.HLObject, name: str, default: str = "") -> str:
    """An attribute as text. Files of other writers may have it as an HDF5 string of fixed length, `bytes` to h5py."""
    value = attribute(item, name)
    return default if value is None else _as_text(value)


def flag_attribute(item: h5py.HLObject, name: str, default: bool) -> bool:
    """An attribute as a boolean. What is no single number is false."""
    return _is_true(attribute(item, name, default))


def _single(value: object) -> object:
    if isinstance(value, h5py.Empty):
        return None
    return value.reshape(-1)[0] if isinstance(value, np.ndarray) and value.size == 1 else value


def _is_true(value: object) -> bool:
    value = _single(value)
    return isinstance(value, (bool, np.bool_, int, np.integer)) and bool(value)


def _as_text(value: object) -> str:
    value = _single(value)
    if value is None:
        return ""
    # h5py gives what is no UTF-8 as surrogates, which cannot be written again.
    raw = value if isinstance(value, bytes) else str(value).encode(errors="surrogateescape")
    return raw.decode(errors="replace")


def holds_integers(dataset: h5py.Dataset) -> bool:
    """Whether a dataset holds integers."""
    try:
        return dataset.dtype.kind in "iu"
    except TypeError:
        # Of a type that NumPy does not have.
        return False


def check_no_clash(paths: Collection[str]) -> None:
    """Refuses a field that stands at the name of a group: TFDS allows `a` beside `a/b`, HDF5 does not.

    Raises:
      KabukiError: there is such a field.
    """
    for path in paths:
        parts = path.split("/")
        for i in range(1, len(parts)):
            if "/".join(parts[:i]) in paths:
                raise SchemaMismatchError(
                    f"field {path!r}: HDF5 cannot hold it beside the field {'/'.join(parts[:i])!r}; "
                    "a recipe can rename one of them",
                    fields=(path,),
                )


def field_attributes(field: Field) -> dict[str, Any]:
    """The attributes that say what a dataset's type and shape do not."""
    attributes: dict[str, Any] = {}
    if field.kind != "array":
        attributes["kind"] = field.kind
    if field.names is not None and len(field.names) <= _MAX_ATTRIBUTE_NAMES:
        attributes["class_names"] = np.array(field.names, dtype=h5py.string_dtype())
    if not field.is_fixed:
        attributes["shape"] = np.array([-1 if d is None else d for d in field.shape], np.int64)
        attributes["dtype"] = "text" if field.dtype == BYTES else field.dtype.name
    if field.nested:
        attributes["nested"] = field.nested
    if field.encoded:
        attributes["encoded"] = True
    if field.kind == "image" and field.file_format:
        attributes["file_format"] = field.file_format
    if field.derived:
        attributes["derived"] = field.derived
    return attributes


def read_field(dataset: h5py.Dataset) -> Field:
    """What a dataset holds, by its type, its shape and, where it has them, its attributes.

    Image files are found by their content too, unless attributes or the format of the file describe the dataset.

    Raises:
      KabukiError: the type is not one that a field can have.
    """
    try:
        field = _read_field(dataset)
    except (TypeError, ValueError, KeyError, OSError, RuntimeError) as e:
        raise DamagedDataError(
            f"dataset {dataset.name!r} has a type or attributes that make no sense: {e}",
            file=dataset.file.filename,
            field=dataset.name[1:],
        ) from e
    field.check_size(f"dataset {dataset.name!r}", dataset.file.filename)
    return field


def _read_field(dataset: h5py.Dataset) -> Field:
    # To ask for one that is not there takes longer than all the rest.
    attributes: Mapping[str, Any] = Attributes(dataset) if h5py.h5a.get_num_attrs(dataset.id) else {}
    if _is_true(attributes.get("encoded", False)):
        return _read_encoded_field(dataset, attributes)
    if not _DESCRIBES.intersection(attributes) and text_attribute(dataset.file, "format") != FORMAT:
        found = image_files.content_of(dataset).field
        if found is not None:
            return found
    dtype = element_dtype(dataset)
    is_object = dtype.kind == "O" and not h5py.check_string_dtype(dataset.dtype)
    if is_object or (dtype.kind not in "biufcO" and dtype != BFLOAT16):
        raise DamagedDataError(
            f"dataset {dataset.name!r} has the type {dtype}, which is no field's; "
            "numbers, booleans, text and variable-length arrays of them can be read",
            file=dataset.file.filename,
            field=dataset.name[1:],
        )
    variable = isinstance(dataset.id.get_type(), h5py.h5t.TypeVlenID)
    shape: tuple[int | None, ...] = dataset.shape[1:]
    stored = dtype
    if variable:
        if dataset.ndim > 1:
            raise ValueError(f"a row is {dataset.shape[1:]} arrays of variable length, where it can be one")
        shape = _stated_shape(attributes) or (None,)
        name = _as_text(attributes.get("dtype", dtype.name))
        dtype = BYTES if name == "text" else BFLOAT16 if name == "bfloat16" else np.dtype(name)
    kind = _as_text(attributes.get("kind", "text" if dtype == BYTES else "array"))
    # What the type of the elements does not allow says nothing of them.
    if kind not in ("array", "text", "label", "image") or (kind == "text" and dtype != BYTES):
        kind = "array"
    nested = int(attributes.get("nested", 0))
    if nested and not (variable and 2 <= nested <= len(shape) and None not in shape[nested:]):
        raise ValueError(f"rows of {shape} are not lists of lists, {nested} deep")
    if variable:
        if None not in shape and not nested:
            raise ValueError(f"rows of variable length whose shape is {shape}, in which no dimension varies")
        if stored != (np.uint8 if dtype == BYTES else dtype):
            raise ValueError(f"{stored} is stored, where the attribute `dtype` says {name}")
    names = _names(dataset, attributes)
    enumerated = h5py.check_enum_dtype(h5py.check_vlen_dtype(dataset.dtype) or dataset.dtype)
    if enumerated is not None and kind == "array":
        # An enumeration of HDF5 names its values, as a label does its classes.
        if sorted(enumerated.values()) == list(range(len(enumerated))):
            kind, names = "label", sorted(enumerated, key=lambda name: enumerated[name])
        else:
            _tell_of_names(dataset.file.filename, dataset.name.rpartition("/")[2])
    return Field(
        dtype=dtype,
        shape=shape,
        kind=kind,  # type: ignore[arg-type]
        names=None if names is None else tuple(_as_text(n) for n in names),
        nested=nested,
        file_format=_as_text(attributes.get("file_format", "")),
        derived=_as_text(attributes.get("derived", "")),
    )


def _read_encoded_field(dataset: h5py.Dataset, attributes: Mapping[str, Any]) -> Field:
    """What a dataset holds whose attribute `encoded` says that its rows are image files."""
    form = image_files.form_of(dataset)
    shape = _stated_shape(attributes)
    dtype = np.dtype(_as_text(attributes.get("dtype", "uint8")))
    if shape is None and (found := image_files.content_of(dataset).field) is not None:
        shape, dtype = found.shape, found.dtype
    is_image = _as_text(attributes.get("kind", "")) == "image"
    if form is None or not is_image or shape is None or not _has_files(dtype, shape):
        raise ValueError(f"there are no image files of {dtype} {shape or ''}")
    has_several = image_files.files_per_row(dataset, form) > 1
    if has_several != (len(shape) > 3 and "companion" not in attributes):
        raise ValueError(f"rows of {dataset.shape[1:]} are not image files of {shape}")
    names = _names(dataset, attributes)
    return Field(
        dtype=dtype,
        shape=shape,
        kind="image",
        names=None if names is None else tuple(_as_text(n) for n in names),
        encoded=True,
        file_format=_as_text(attributes.get("file_format", "")),
        derived=_as_text(attributes.get("derived", "")),
    )


def _stated_shape(attributes: Mapping[str, Any]) -> tuple[int | None, ...] | None:
    stated = attributes.get("shape")
    return None if stated is None else tuple(None if d < 0 else int(d) for d in np.atleast_1d(stated))


def _names(dataset: h5py.Dataset, attributes: Mapping[str, Any]) -> Sequence[Any] | None:
    """The names of the classes of a label, by the attribute or the companion; None where there are none."""
    names = attributes.get("class_names")
    if names is None and "companion" in attributes:
        companion = dataset.file.get(f"{_as_text(attributes['companion'])}/class_names")
        names = _companion_names(companion) if isinstance(companion, h5py.Dataset) else None
    if names is None or isinstance(names, h5py.Empty):
        return None
    texts = np.atleast_1d(names)
    if texts.size > MAX_CLASSES:
        raise ValueError(f"class_names has {texts.size:,} names, expected at most {MAX_CLASSES:,}")
    if texts.ndim > 1 or texts.dtype.kind not in "OSU":
        raise ValueError("class_names are no list of texts")
    return texts.tolist()


def _companion_names(companion: h5py.Dataset) -> np.ndarray:
    if companion.ndim != 1 or len(companion) > MAX_CLASSES:
        raise ValueError(
            f"{companion.name} has the shape {companion.shape}, expected (classes,) and at most {MAX_CLASSES:,}"
        )
    if reason := types.unreadable_reason(companion.id.get_type()):
        raise ValueError(f"the type of {companion.name} has {reason}, expected text")
    vlen_lengths.check_lengths(companion, 0, len(companion))
    names: np.ndarray = companion[:]
    return names


@functools.cache
def _tell_of_names(path: str, name: str) -> None:
    # Once for all the episodes of a file, each of which may have such a dataset.
    _log.warning("%s: %r: its values have names, which are left out since they do not count from 0", path, name)


def _has_files(dtype: np.dtype, shape: tuple[int | None, ...]) -> bool:
    """Whether TFDS has image files that decode to such an array, or to a list of such."""
    channels = shape[-1] if len(shape) >= 3 else -1
    if dtype == np.float32:
        return channels == 1
    return dtype in (np.uint8, np.uint16) and (channels is None or 0 <= channels <= 4)
