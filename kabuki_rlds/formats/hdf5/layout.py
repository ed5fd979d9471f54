"""The layout of a schema in a Kabuki HDF5 file: paths, types and attributes.

A step field is the dataset at its path. An episode field is under `episodes/metadata/`.
The attributes of a dataset give what its HDF5 type and shape cannot express:

    kind          "text", "label" or "image"; absent for numbers
    class_names   class names of a label
    shape         shape of one row of a variable-length dataset; -1 marks a dimension that varies
    nested        number of leading dimensions of `shape` that are nested lists
    encoded       true if rows are the bytes of image files
    dtype         dtype of the decoded images, or of elements that are stored as bytes
    file_format   "png" or "jpeg": the format of the image files, or of the files that images were decoded from
    derived       how the column was computed, if the source did not have it
    companion     path of a group with the data that is needed to read the rows exactly
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
from kabuki_rlds.formats.safe_hdf5 import types
from kabuki_rlds.formats.safe_hdf5.attributes import DIMENSION_SCALES, Attributes
from kabuki_rlds.formats.safe_hdf5.vlen_rows import VlenRows, has_vlen_rows

_log = logging.getLogger("kabuki_rlds")

FORMAT = "kabuki"
FORMAT_VERSION = "1.1"
#: The versions that this package can read.
FORMAT_VERSIONS = ("1.0", FORMAT_VERSION)

EPISODES = "episodes"
METADATA = "episodes/metadata"
COMPANION = "companion"

#: Names at the root that are not step fields.
RESERVED = (EPISODES, COMPANION)

#: The attributes that the format defines, for the root and for fields.
_FILE_ATTRIBUTES = ("format", "format_version", "num_steps", "num_episodes", "complete", "features", "name", "version")
_DATA_ATTRIBUTES = (
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
ROOT_ATTRIBUTES = (*_FILE_ATTRIBUTES, *_DATA_ATTRIBUTES)
_OWN_FIELD_ATTRIBUTES = (
    *("kind", "class_names", "shape", "nested", "encoded", "dtype", "derived", "companion", "file_format"),
)
FIELD_ATTRIBUTES = (*_OWN_FIELD_ATTRIBUTES, *DIMENSION_SCALES)

#: The field attributes that describe a row. A dataset with one of them is not searched for image files.
_ROW_ATTRIBUTES = frozenset(("kind", "class_names", "shape", "nested", "encoded", "dtype", "companion"))

#: The approximate size of a chunk: small enough to read one episode or one step at
#: little cost, large enough to compress well and to stream.
CHUNK_BYTES = 256 << 10
_MAX_CHUNK_ROWS = 1 << 16
#: The approximate size of one chunk of every column together, and the least size of a chunk.
_CHUNKS_BYTES = 64 << 20
_MIN_CHUNK_BYTES = 4 << 10
#: Rows in a chunk of a variable-length dataset. The chunk stores a reference of 16 bytes for each.
VARIABLE_CHUNK_ROWS = 1024


#: HDF5 limits attributes to 64 KiB, and each string takes 16 bytes. More class names go to the companion.
_MAX_ATTRIBUTE_NAMES = 4000


def chunk_rows(row_nbytes: int, num_columns: int = 1) -> int:
    """Returns the number of rows in a chunk: a power of two, so that the chunks of all columns align.

    The chunks of hundreds of columns are smaller, because a reader or writer needs one of each in memory.
    """
    num_bytes = min(CHUNK_BYTES, max(_MIN_CHUNK_BYTES, _CHUNKS_BYTES // num_columns))
    rows = max(1, min(_MAX_CHUNK_ROWS, num_bytes // max(row_nbytes, 1)))
    return 1 << (rows.bit_length() - 1)


def variable_chunk_rows(texts: int) -> int:
    """Returns the number of rows in a chunk of a text dataset with `texts` texts per row."""
    return max(1, VARIABLE_CHUNK_ROWS // (1 << max(texts - 1, 0).bit_length()))


def long_class_names(field: Field) -> tuple[str, ...] | None:
    """Returns the class names of a label if they are too many for an attribute, else None."""
    return field.names if field.names is not None and len(field.names) > _MAX_ATTRIBUTE_NAMES else None


def element_type(dtype: np.dtype) -> h5py.h5t.TypeID:
    """Returns the little-endian HDF5 type of a dtype.

    bfloat16 is stored as a custom HDF5 float with 8 bits of exponent and 7 bits of
    mantissa, which the HDF5 library converts to float32 when it reads.
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
    """Returns the native dtype of a dataset's elements. For a variable-length dataset, of the elements of its rows."""
    hdf5_type = dataset.id.get_type()
    if isinstance(hdf5_type, h5py.h5t.TypeVlenID):
        hdf5_type = hdf5_type.get_super()
    if types.is_bfloat16(hdf5_type):
        return BFLOAT16
    dtype = h5py.check_vlen_dtype(dataset.dtype) or dataset.dtype
    if h5py.check_enum_dtype(dtype) is not None:
        # Without the metadata of the enumeration, which h5py would write too.
        dtype = np.dtype(dtype.str)
    return BYTES if h5py.check_string_dtype(dataset.dtype) else np.dtype(dtype).newbyteorder("=")


def stored_row_nbytes(dataset: h5py.Dataset) -> int | None:
    """Returns the bytes of a row as HDF5 reads it, or None if the size of rows varies."""
    kind = dataset.id.get_type()
    if isinstance(kind, h5py.h5t.TypeVlenID) or (isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str()):
        return None
    return math.prod(dataset.shape[1:]) * kind.get_size()


def check_path(path: str) -> None:
    """Checks that HDF5 can store a field at a path.

    Raises:
      SchemaMismatchError: the path has an empty component, the component ".", or a NUL.
    """
    parts = path.split("/")
    if any(part in ("", ".") for part in parts) or "\0" in path:
        raise SchemaMismatchError(
            f"field {path!r}: HDF5 does not allow this name; rename the field with a recipe", fields=(path,)
        )


def check_step_path(path: str) -> None:
    """Checks the path of a step field, including the names that the format reserves.

    Raises:
      SchemaMismatchError: HDF5 or the format does not allow the path.
    """
    check_path(path)
    if path.split("/")[0] in RESERVED:
        raise SchemaMismatchError(
            f"step field {path!r}: the Kabuki format reserves the name {path.split('/')[0]!r}; rename the field with "
            "a recipe",
            fields=(path,),
        )


def attribute(item: h5py.HLObject, name: str, default: object = None) -> object:
    """Returns the value of an attribute, `default` if there is no such attribute, or None if it is empty.

    For an array of one element, returns the element: some writers store single values in this form.
    """
    return _single(Attributes(item).get(name, default))


def text_attribute(item: h5py.HLObject, name: str, default: str = "") -> str:
    """Returns an attribute as text, also if it is a fixed-length HDF5 string, which h5py reads as `bytes`."""
    value = attribute(item, name)
    return default if value is None else _as_text(value)


def flag_attribute(item: h5py.HLObject, name: str, default: bool) -> bool:
    """Returns an attribute as a boolean. A value that is not a single number is false."""
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
    # h5py reads invalid UTF-8 as surrogates, which cannot be written.
    raw = value if isinstance(value, bytes) else str(value).encode(errors="surrogateescape")
    return raw.decode(errors="replace")


def holds_integers(dataset: h5py.Dataset) -> bool:
    """Returns whether the elements of a dataset are integers."""
    try:
        return dataset.dtype.kind in "iu"
    except TypeError:
        # The type has no NumPy equivalent.
        return False


def check_no_conflicts(paths: Collection[str]) -> None:
    """Checks that no path is both a field and a group. TFDS allows the fields `a` and `a/b` together, HDF5 does not.

    Raises:
      SchemaMismatchError: there is such a path.
    """
    for path in paths:
        parts = path.split("/")
        for i in range(1, len(parts)):
            if "/".join(parts[:i]) in paths:
                raise SchemaMismatchError(
                    f"field {path!r}: conflicts with the field {'/'.join(parts[:i])!r}, because an HDF5 path cannot be "
                    "both a field and a group; rename one with a recipe",
                    fields=(path,),
                )


def field_attributes(field: Field) -> dict[str, Any]:
    """Returns the attributes of a field's dataset."""
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
    """Returns the field that a dataset stores, from its type, its shape and its attributes.

    A dataset without describing attributes, in a file that is not a Kabuki file, is also searched for image files.

    Raises:
      DamagedDataError: a field cannot have this type, or the attributes contradict it.
    """
    try:
        field = _read_field(dataset)
    except (TypeError, ValueError, KeyError, OSError, RuntimeError) as e:
        raise DamagedDataError(
            f"dataset {dataset.name!r}: invalid type or attributes: {e}",
            file=dataset.file.filename,
            field=dataset.name[1:],
        ) from e
    field.check_size(f"dataset {dataset.name!r}", dataset.file.filename)
    return field


def _read_field(dataset: h5py.Dataset) -> Field:
    # Counting attributes is much faster than looking up one that does not exist.
    attributes: Mapping[str, Any] = Attributes(dataset) if h5py.h5a.get_num_attrs(dataset.id) else {}
    if _is_true(attributes.get("encoded", False)):
        return _read_encoded_field(dataset, attributes)
    if not _ROW_ATTRIBUTES.intersection(attributes) and text_attribute(dataset.file, "format") != FORMAT:
        found = image_files.content_of(dataset).field
        if found is not None:
            return found
    dtype = element_dtype(dataset)
    is_object = dtype.kind == "O" and not h5py.check_string_dtype(dataset.dtype)
    if is_object or (dtype.kind not in "biufcO" and dtype != BFLOAT16):
        kind = f"a compound of {len(dtype.names):,} members" if dtype.names else dtype
        raise DamagedDataError(
            f"dataset {dataset.name!r}: has the type {kind}, expected numbers, booleans, text, or variable-length "
            "arrays of these; delete or convert the dataset",
            file=dataset.file.filename,
            field=dataset.name[1:],
        )
    variable = isinstance(dataset.id.get_type(), h5py.h5t.TypeVlenID)
    shape: tuple[int | None, ...] = dataset.shape[1:]
    stored = dtype
    if variable:
        if dataset.ndim > 1:
            raise ValueError(f"a row has {dataset.shape[1:]} variable-length arrays, expected one")
        shape = _shape_attribute(attributes) or (None,)
        name = _as_text(attributes.get("dtype", dtype.name))
        dtype = BYTES if name == "text" else BFLOAT16 if name == "bfloat16" else np.dtype(name)
    kind = _as_text(attributes.get("kind", "text" if dtype == BYTES else "array"))
    # A kind that the element type does not allow is ignored.
    if kind not in ("array", "text", "label", "image") or (kind == "text" and dtype != BYTES):
        kind = "array"
    nested = int(attributes.get("nested", 0))
    if nested and not (variable and 2 <= nested <= len(shape) and None not in shape[nested:]):
        raise ValueError(f"`nested` is {nested}, which does not fit the row shape {shape}")
    if variable:
        if None not in shape and not nested:
            raise ValueError(f"the rows have variable length, but no dimension of `shape` {shape} varies")
        if stored != (np.uint8 if dtype == BYTES else dtype):
            raise ValueError(f"the stored type is {stored}, but the attribute `dtype` is {name}")
    names = _names(dataset, attributes)
    enumerated = h5py.check_enum_dtype(h5py.check_vlen_dtype(dataset.dtype) or dataset.dtype)
    if enumerated is not None and kind == "array":
        # An HDF5 enumeration with the values 0, 1, 2, … is a label.
        if sorted(enumerated.values()) == list(range(len(enumerated))):
            kind, names = "label", sorted(enumerated, key=lambda name: enumerated[name])
        else:
            _warn_of_enumeration(dataset.file.filename, dataset.name.rpartition("/")[2])
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
    """Returns the field of a dataset whose attribute `encoded` is true."""
    form = image_files.form_of(dataset)
    shape = _shape_attribute(attributes)
    dtype = np.dtype(_as_text(attributes.get("dtype", "uint8")))
    if shape is None and (found := image_files.content_of(dataset).field) is not None:
        shape, dtype = found.shape, found.dtype
    is_image = _as_text(attributes.get("kind", "")) == "image"
    if form is None or not is_image or shape is None or not _is_decoded_image(dtype, shape):
        raise ValueError(f"`encoded` is true, but the rows are not image files of dtype {dtype} and shape {shape}")
    has_several = image_files.files_per_row(dataset, form) > 1
    if has_several != (len(shape) > 3 and "companion" not in attributes):
        raise ValueError(f"rows of shape {dataset.shape[1:]} do not fit image files of shape {shape}")
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


def _shape_attribute(attributes: Mapping[str, Any]) -> tuple[int | None, ...] | None:
    stated = attributes.get("shape")
    return None if stated is None else tuple(None if d < 0 else int(d) for d in np.atleast_1d(stated))


def _names(dataset: h5py.Dataset, attributes: Mapping[str, Any]) -> Sequence[Any] | None:
    """Returns the class names of a label, from the attribute or the companion, or None if there are none."""
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
        raise ValueError("class_names is not a list of texts")
    return texts.tolist()


def _companion_names(companion: h5py.Dataset) -> np.ndarray:
    if companion.ndim != 1 or len(companion) > MAX_CLASSES:
        raise ValueError(
            f"{companion.name} has the shape {companion.shape}, expected (classes,) and at most {MAX_CLASSES:,}"
        )
    if reason := types.unreadable_reason(companion.id.get_type()):
        raise ValueError(f"the type of {companion.name} contains {reason}, expected text")
    if h5py.check_string_dtype(companion.dtype) is None:
        raise ValueError("class_names is not a list of texts")
    texts = VlenRows(companion).read(np.arange(len(companion))) if has_vlen_rows(companion) else companion[:]
    return np.array(texts, object)


@functools.cache
def _warn_of_enumeration(path: str, name: str) -> None:
    # Cached: one warning per file, even if each episode has such a dataset.
    _log.warning("%s: %r: the names of the enumeration are ignored, because its values are not 0, 1, 2, …", path, name)


def _is_decoded_image(dtype: np.dtype, shape: tuple[int | None, ...]) -> bool:
    """Returns whether TFDS can decode image files to such an array, or to a list of such arrays."""
    channels = shape[-1] if len(shape) >= 3 else -1
    if dtype == np.float32:
        return channels == 1
    return dtype in (np.uint8, np.uint16) and (channels is None or 0 <= channels <= 4)
