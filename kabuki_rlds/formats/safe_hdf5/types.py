"""Which HDF5 types h5py can read.

h5py 3.16 crashes when it reads a sequence of region references, with HDF5 1.14 and 2.0. It cannot read opaque data
either, unless it is all that a dataset holds: see `image_files.is_opaque`. So the types whose values are read are
listed here.
"""

from __future__ import annotations

from collections.abc import Iterator

import h5py

#: Types nest no deeper than this in any file of steps.
_MAX_DEPTH = 32

_READ = (
    h5py.h5t.TypeIntegerID,
    h5py.h5t.TypeFloatID,
    h5py.h5t.TypeEnumID,
    h5py.h5t.TypeStringID,
    h5py.h5t.TypeArrayID,
    h5py.h5t.TypeVlenID,
    h5py.h5t.TypeCompoundID,
    # With HDF5 2.0 only.
    getattr(h5py.h5t, "TypeComplexID", h5py.h5t.TypeFloatID),
)
_WORDS = {
    h5py.h5t.TypeReferenceID: "references",
    h5py.h5t.TypeOpaqueID: "opaque data",
    h5py.h5t.TypeBitfieldID: "bit fields",
    h5py.h5t.TypeTimeID: "times",
}


def unreadable(kind: h5py.h5t.TypeID) -> str:
    """Names what a type contains that is not read, for example "references"; "" if its values are read."""
    for part, depth, in_sequence in _parts(kind):
        if depth > _MAX_DEPTH:
            return f"types nested more than {_MAX_DEPTH} deep"
        if not isinstance(part, _READ):
            return _WORDS.get(type(part), "a type that h5py does not know")
        if in_sequence and isinstance(part, h5py.h5t.TypeCompoundID):
            # HDF5 fails to convert some of them.
            return "sequences of compounds"
    try:
        kind.dtype  # noqa: B018
    except (TypeError, ValueError):
        return "a type that NumPy does not have"
    return ""


def has_sequence_of_references(kind: h5py.h5t.TypeID) -> bool:
    """Whether h5py crashes when it reads values of a type."""
    return any(in_sequence and isinstance(part, h5py.h5t.TypeReferenceID) for part, _, in_sequence in _parts(kind))


def is_defined(kind: h5py.h5t.TypeID) -> bool:
    """Whether each part of variable length is a sequence or a text. HDF5 2.0 crashes on anything else."""
    # The class and the version take two bytes of the encoded type; then follows which of the two it is.
    return all(part.encode()[3] & 15 in (0, 1) for part, _, _ in _parts(kind) if isinstance(part, h5py.h5t.TypeVlenID))


def _parts(
    kind: h5py.h5t.TypeID, depth: int = 0, in_sequence: bool = False
) -> Iterator[tuple[h5py.h5t.TypeID, int, bool]]:
    """A type and those within it, each with its depth and whether it is within a sequence."""
    yield kind, depth, in_sequence
    if depth > _MAX_DEPTH:
        return
    if isinstance(kind, h5py.h5t.TypeCompoundID):
        for i in range(kind.get_nmembers()):
            yield from _parts(kind.get_member_type(i), depth + 1, in_sequence)
    elif isinstance(kind, (h5py.h5t.TypeArrayID, h5py.h5t.TypeVlenID)):
        yield from _parts(kind.get_super(), depth + 1, in_sequence or isinstance(kind, h5py.h5t.TypeVlenID))
