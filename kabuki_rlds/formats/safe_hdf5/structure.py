"""Rejects HDF5 files that refer to other files, or that declare more data than they store.

An HDF5 file may refer to any other file of the machine (external links, external storage,
virtual datasets), and a file of a kilobyte may declare petabytes. This module checks the
declarations of all links, attributes and datasets before any data is read. It runs in the
worker process (see `probe`), and makes the same calls of the HDF5 library as the readers:
a file that crashes the library does so here.
"""

from __future__ import annotations

import dataclasses
import math

import h5py
import numpy as np

from kabuki_rlds.errors import DamagedDataError
from kabuki_rlds.formats.safe_hdf5 import types
from kabuki_rlds.formats.safe_hdf5.attributes import DIMENSION_SCALES
from kabuki_rlds.formats.safe_hdf5.filters import OWN_FILTERS, are_own_filters
from kabuki_rlds.formats.safe_hdf5.verdicts import Verdict

#: Real files of steps are nested less deeply and have fewer objects.
_MAX_DEPTH = 32
_MAX_OBJECTS = 10_000_000
#: Soft links can lead a reader to an object several times. The limit is `_MAX_VISITS` plus `_MAX_VISITS_RATIO` visits
#: per object.
_MAX_VISITS = 10_000
_MAX_VISITS_RATIO = 4
#: Limits for the number of attributes of one object, and for the size of one attribute.
_MAX_ATTRIBUTES = 10_000
_MAX_ATTRIBUTE_BYTES = 64 << 20
#: Deflate compresses at most 1032 times.
_MAX_RATIO = 1100
#: The bytes that one dataset may declare without storing them (fill values), and all datasets together.
_MAX_UNSTORED_BYTES = 64 << 20
_MAX_TOTAL_UNSTORED_BYTES = 1 << 30
#: HDF5 reads whole chunks, and a chunk takes three times its size while it is unpacked.
_MAX_CHUNK_BYTES = 256 << 20
#: One large chunk (at least `_LARGE_CHUNK_BYTES`) per dataset is summed. The limit of the sum is `_MAX_LARGE_CHUNKS`
#: plus `_MAX_LARGE_CHUNKS_RATIO` times the file size.
_LARGE_CHUNK_BYTES = 4 << 20
_MAX_LARGE_CHUNKS = 128 << 20
_MAX_LARGE_CHUNKS_RATIO = 16
_CHECKSUM_BYTES = 4

#: LZF expands a chunk at most 90 times, so only large chunks can exhaust the memory.
_MAX_LZF_CHUNK_BYTES = 8 << 20
_READ_BYTES = 16 << 20


def check_structure(file: h5py.File) -> Verdict:
    """Checks all objects of a file that was just opened, and returns the verdict that it is safe.

    Raises:
      DamagedDataError: the file is unsafe. The problem names the object and the reason.
    """
    walk = _Walk(file)
    walk.check_group(file.id, "", 0)
    walk.check_soft_links()
    # HDF5's own walk finds more kinds of damage.
    h5py.h5o.visit(file.id, lambda name: None)
    return Verdict(unreadable=tuple(walk.unreadable), filters=tuple(walk.filters.items()))


@dataclasses.dataclass(frozen=True)
class _Identified:
    """The interface that `h5py.AttributeManager` needs from an object."""

    id: h5py.h5g.GroupID | h5py.h5d.DatasetID


class _Walk:
    """Checks each object of a file once. The walk follows only hard links; soft links are checked afterwards."""

    def __init__(self, file: h5py.File):
        self._file_bytes = file.id.get_filesize()
        #: Token of each group to (number of its members, tokens of its subgroups).
        self._groups: dict[object, tuple[int, list[object]]] = {}
        #: Each soft link: its group, its name, its path, and the list of subgroups of its group.
        self._soft: list[tuple[h5py.h5g.GroupID, bytes, str, list[object]]] = []
        self.unreadable: list[tuple[str, str, str]] = []
        #: Number of each filter that this process does not have to the first dataset that needs it.
        self.filters: dict[int, str] = {}
        self._count = 0
        self._declared = 0
        self._large_chunks = 0

    def _reject(self, name: str, why: str) -> DamagedDataError:
        return DamagedDataError(f"{name or '/'}: {why}; file rejected")

    def check_group(self, group: h5py.h5g.GroupID, name: str, depth: int) -> object:
        """Checks a group and its members recursively, and returns the token of the group."""
        token = _token(group)
        if token in self._groups:
            raise self._reject(name, "this group has two hard links, or contains itself")
        inner: list[object] = []
        self._groups[token] = group.get_num_objs(), inner
        if depth > _MAX_DEPTH:
            raise self._reject(name, f"groups are nested more than {_MAX_DEPTH} deep")
        self._check_attributes(group, name)
        links = group.links
        self._count += group.get_num_objs()
        if self._count > _MAX_OBJECTS:
            raise self._reject(name, f"the file has more than {_MAX_OBJECTS:,} objects")
        for part in h5py.Group(group):
            # h5py returns names that it cannot decode as bytes.
            if isinstance(part, bytes):
                raise self._reject(f"{name}/{part!r}", "the name is not valid UTF-8")
            self._check_link(group, links, part.encode(), f"{name}/{part}", depth, inner)
        return token

    def _check_link(
        self, group: h5py.h5g.GroupID, links: object, raw: bytes, name: str, depth: int, inner: list[object]
    ) -> None:
        kind = links.get_info(raw).type  # type: ignore[attr-defined]
        if kind == h5py.h5l.TYPE_EXTERNAL:
            other = links.get_val(raw)[0].decode(errors="replace")  # type: ignore[attr-defined]
            raise self._reject(name, f"external link to {other!r}")
        if kind == h5py.h5l.TYPE_SOFT:
            self._soft.append((group, raw, name, inner))
            return
        if kind != h5py.h5l.TYPE_HARD:
            raise self._reject(name, "unknown link type")
        item = h5py.h5o.open(group, raw)
        if isinstance(item, h5py.h5g.GroupID):
            inner.append(self.check_group(item, name, depth + 1))
        elif isinstance(item, h5py.h5d.DatasetID):
            self._check_attributes(item, name)
            self._check_dataset(item, name)

    def check_soft_links(self) -> None:
        """Follows the soft links. Call it after `check_group`, which rejects external links."""
        for group, raw, name, inner in self._soft:
            try:
                item = h5py.h5o.open(group, raw)
            except KeyError:
                # A dangling link is an error only for a reader that needs its target.
                continue
            except RuntimeError as e:
                raise self._reject(name, f"endless chain of soft links ({e})") from None
            if isinstance(item, h5py.h5g.GroupID):
                inner.append(_token(item))
        self._visits_left = _MAX_VISITS + _MAX_VISITS_RATIO * self._count
        self._count_visits(next(iter(self._groups)), ())

    def _count_visits(self, group: object, above: tuple[object, ...]) -> None:
        """Counts the visits of a reader that follows all links, except links to a group that it is inside of."""
        if len(above) > _MAX_DEPTH:
            raise self._reject("", f"links nest groups more than {_MAX_DEPTH} deep")
        count, inner = self._groups[group]
        self._visits_left -= count
        if self._visits_left < 0:
            raise self._reject("", "too many links to the same groups")
        above = (*above, group)
        for other in inner:
            if other not in above:
                self._count_visits(other, above)

    def _check_attributes(self, item: h5py.h5g.GroupID | h5py.h5d.DatasetID, name: str) -> None:
        count = h5py.h5a.get_num_attrs(item)
        if count > _MAX_ATTRIBUTES:
            raise self._reject(name, f"{count:,} attributes, at most {_MAX_ATTRIBUTES:,} are allowed")
        if not count:
            return
        attributes = h5py.AttributeManager(_Identified(item))
        for attribute_name in attributes:
            if isinstance(attribute_name, bytes):
                raise self._reject(name, f"the name of the attribute {attribute_name!r} is not valid UTF-8")
            raw = attribute_name.encode()
            attribute = h5py.h5a.open(item, raw)
            # HDF5 raises an error for the storage size of an empty attribute.
            size = attribute.get_storage_size() if attribute.get_space().get_simple_extent_npoints() else 0
            if size > _MAX_ATTRIBUTE_BYTES:
                raise self._reject(
                    name, f"the attribute {raw!r} has {size:,} bytes, at most {_MAX_ATTRIBUTE_BYTES:,} are allowed"
                )
            kind = attribute.get_type()
            if not types.is_defined(kind):
                raise self._reject(name, f"the attribute {raw!r} has an undefined HDF5 type")
            reason = types.unreadable_reason(kind)
            if not reason:
                try:
                    attributes[attribute_name]
                except (OSError, RuntimeError, ValueError, KeyError, TypeError) as e:
                    raise self._reject(name, f"the attribute {raw!r} cannot be read ({e})") from e
            elif attribute_name not in DIMENSION_SCALES:
                self.unreadable.append((name, attribute_name, reason))

    def _check_dataset(self, dataset: h5py.h5d.DatasetID, name: str) -> None:
        properties = dataset.get_create_plist()
        layout = properties.get_layout()
        if layout == h5py.h5d.VIRTUAL:
            raise self._reject(name, "virtual dataset, which reads from other files")
        if properties.get_external_count():
            other = properties.get_external(0)[0].decode(errors="replace")
            raise self._reject(name, f"external storage in {other!r}")
        kind = dataset.get_type()
        if not types.is_defined(kind):
            raise self._reject(name, "the dataset has an undefined HDF5 type")
        if types.is_too_deep(kind):
            raise self._reject(name, "the type is nested more than 32 deep")
        if types.has_sequence_of_references(kind):
            raise self._reject(name, "the type contains sequences of references, which crash h5py; delete this dataset")
        itemsize = kind.get_size()
        filters: list[int] = []
        shape = dataset.get_space().get_simple_extent_dims() if dataset.rank else ()
        if layout == h5py.h5d.CHUNKED:
            chunk = math.prod(properties.get_chunk()) * itemsize
            if chunk >= _LARGE_CHUNK_BYTES:
                self._large_chunks += chunk
            if (
                chunk > _MAX_CHUNK_BYTES
                or self._large_chunks > _MAX_LARGE_CHUNKS + _MAX_LARGE_CHUNKS_RATIO * self._file_bytes
            ):
                before = f" ({self._large_chunks:,} with earlier datasets)" if self._large_chunks > chunk else ""
                raise self._reject(
                    name,
                    f"chunks of {chunk:,} bytes{before} in a file of {self._file_bytes:,}; "
                    "make them smaller with h5repack -l CHUNK=...",
                )
            filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
            if len(set(filters)) < len(filters):
                raise self._reject(name, "the same filter is applied more than once")
            for number in filters:
                if not h5py.h5z.filter_avail(number):
                    self.filters.setdefault(number, name)
            if h5py.h5z.FILTER_FLETCHER32 in filters:
                self._check_fletcher32(dataset, name, filters)
            # Reads the index of all chunks.
            dataset.get_num_chunks()
        # The declared storage size may be as wrong as the shape, but is at most the file size.
        declared, stored = math.prod(shape) * itemsize, min(dataset.get_storage_size(), self._file_bytes)
        if declared > _MAX_UNSTORED_BYTES + _MAX_RATIO * stored:
            raise self._reject(name, f"declares {declared:,} bytes, but stores only {stored:,}")
        # Reading rows of zero bytes takes time too.
        if shape and shape[0] > _MAX_UNSTORED_BYTES + _MAX_RATIO * self._file_bytes:
            raise self._reject(name, f"declares {shape[0]:,} rows in a file of {self._file_bytes:,} bytes")
        self._declared += declared
        if self._declared > _MAX_TOTAL_UNSTORED_BYTES + _MAX_RATIO * self._file_bytes:
            raise self._reject(
                name,
                f"this and earlier datasets declare {self._declared:,} bytes in a file of {self._file_bytes:,}",
            )
        if shape and declared and not types.unreadable_reason(kind):
            self._read_unusual(dataset, kind, filters, declared // shape[0])

    def _read_unusual(
        self, dataset: h5py.h5d.DatasetID, kind: h5py.h5t.TypeID, filters: list[int], row_bytes: int
    ) -> None:
        """Reads all data that the library has to decode or to convert later, with code that may crash.

        The library also decompresses a chunk to any size, however small the dataset says that it is. In this process
        the memory is limited.
        """
        is_own = are_own_filters(filters)
        if h5py.h5z.FILTER_LZF in filters:
            others = [number for number in filters if number != h5py.h5z.FILTER_LZF]
            chunk_bytes = math.prod(dataset.get_create_plist().get_chunk()) * kind.get_size()
            is_own = set(others) <= set(OWN_FILTERS) and chunk_bytes <= _MAX_LZF_CHUNK_BYTES
        if is_own and not types.needs_conversion(kind):
            return
        if not all(h5py.h5z.filter_avail(number) for number in filters):
            return
        rows = h5py.Dataset(dataset)
        step = max(_READ_BYTES // max(row_bytes, 1), 1)
        for start in range(0, len(rows), step):
            np.asarray(rows[start : start + step])

    def _check_fletcher32(self, dataset: h5py.h5d.DatasetID, name: str, filters: list[int]) -> None:
        """Rejects chunks that are smaller than their checksum. HDF5 2.0 reads beyond the end of such a chunk."""
        if filters[-1] != h5py.h5z.FILTER_FLETCHER32:
            raise self._reject(name, "the checksum is not the last filter")
        sizes: list[int] = []
        dataset.chunk_iter(lambda chunk: sizes.append(chunk.size))
        if min(sizes, default=_CHECKSUM_BYTES) < _CHECKSUM_BYTES:
            raise self._reject(name, "a chunk is smaller than its checksum")


def _token(group: h5py.h5g.GroupID) -> object:
    info = h5py.h5o.get_info(group)
    return info.fileno, info.addr
