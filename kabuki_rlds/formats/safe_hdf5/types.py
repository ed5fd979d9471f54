"""Decides which HDF5 types h5py can read.

h5py 3.16 crashes when it reads a sequence of region references, with HDF5 1.14 and 2.0.
It reads opaque data only as the whole element of a dataset (`image_files.is_opaque`).
Therefore this module lists the types that are read and rejects all others.
"""

from __future__ import annotations

from collections.abc import Iterator

import h5py

#: Types in real datasets are nested less deeply.
_MAX_DEPTH = 32

_READABLE = (
    h5py.h5t.TypeIntegerID,
    h5py.h5t.TypeFloatID,
    h5py.h5t.TypeEnumID,
    h5py.h5t.TypeStringID,
    h5py.h5t.TypeArrayID,
    h5py.h5t.TypeVlenID,
    h5py.h5t.TypeCompoundID,
    # Only with HDF5 2.0.
    getattr(h5py.h5t, "TypeComplexID", h5py.h5t.TypeFloatID),
)
_NAMES = {
    h5py.h5t.TypeReferenceID: "references",
    h5py.h5t.TypeOpaqueID: "opaque data",
    h5py.h5t.TypeBitfieldID: "bit fields",
    h5py.h5t.TypeTimeID: "times",
}


def unreadable_reason(kind: h5py.h5t.TypeID) -> str:
    """Returns the part of a type that h5py cannot read, for example "references", or "" if h5py can read the type."""
    for part, depth, in_sequence in _parts(kind):
        if depth > _MAX_DEPTH:
            return f"types nested more than {_MAX_DEPTH} deep"
        if not isinstance(part, _READABLE):
            return _NAMES.get(type(part), "a type that h5py does not know")
        if in_sequence and isinstance(part, h5py.h5t.TypeCompoundID):
            # HDF5 cannot convert some sequences of compounds.
            return "sequences of compounds"
    try:
        kind.dtype  # noqa: B018
    except (TypeError, ValueError):
        return "a type without a NumPy equivalent"
    return ""


def is_too_deep(kind: h5py.h5t.TypeID) -> bool:
    """Returns whether types are nested so deep that h5py takes minutes to convert them."""
    return any(depth > _MAX_DEPTH for _, depth, _ in _parts(kind))


def has_sequence_of_references(kind: h5py.h5t.TypeID) -> bool:
    """Returns whether a type contains a sequence of references. h5py crashes when it reads such values."""
    return any(in_sequence and isinstance(part, h5py.h5t.TypeReferenceID) for part, _, in_sequence in _parts(kind))


def is_defined(kind: h5py.h5t.TypeID) -> bool:
    """Returns whether each variable-length part is a sequence or a string. HDF5 2.0 crashes on any other kind."""
    # Byte 3 (from 0) of the encoded type is the kind: 0 for a sequence, 1 for a string.
    return all(part.encode()[3] & 15 in (0, 1) for part, _, _ in _parts(kind) if isinstance(part, h5py.h5t.TypeVlenID))


def needs_conversion(kind: h5py.h5t.TypeID) -> bool:
    """Returns whether the library converts numbers of a type when it reads them, apart from their byte order."""
    if not isinstance(kind, (h5py.h5t.TypeIntegerID, h5py.h5t.TypeFloatID)) or is_bfloat16(kind):
        return False
    return not kind.equal(h5py.h5t.py_create(kind.dtype))


def is_bfloat16(kind: h5py.h5t.TypeID) -> bool:
    """Returns whether the values of a type are bfloat16."""
    if not isinstance(kind, h5py.h5t.TypeFloatID) or kind.get_size() != 2:
        return False
    return tuple(kind.get_fields()) == (15, 7, 8, 0, 7) and kind.get_ebias() == 127


def _parts(
    kind: h5py.h5t.TypeID, depth: int = 0, in_sequence: bool = False
) -> Iterator[tuple[h5py.h5t.TypeID, int, bool]]:
    """Yields a type and all types inside it: (type, depth, whether it is inside a sequence)."""
    yield kind, depth, in_sequence
    if depth > _MAX_DEPTH:
        return
    if isinstance(kind, h5py.h5t.TypeCompoundID):
        for i in range(kind.get_nmembers()):
            yield from _parts(kind.get_member_type(i), depth + 1, in_sequence)
    elif isinstance(kind, (h5py.h5t.TypeArrayID, h5py.h5t.TypeVlenID)):
        yield from _parts(kind.get_super(), depth + 1, in_sequence or isinstance(kind, h5py.h5t.TypeVlenID))
