"""Refuses HDF5 files that reach outside of themselves, or promise more than they hold.

HDF5 lets a file name any other file of the machine as the place of its data (external
links, external storage, virtual datasets), and declare petabytes in a kilobyte. Here
the structure of a file is looked at before any of its data is read: what each link and
each dataset says of itself, and nothing else.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TypeAlias

import h5py

from kabuki_rlds.errors import KabukiError
from kabuki_rlds.formats.safe_hdf5 import types, vlen_lengths

#: No file of steps nests deeper, or has more objects, than this.
_MAX_DEPTH = 32
_MAX_OBJECTS = 10_000_000
#: By links a reader may meet an object more than once; so many in all, and so many times those that there are.
_MAX_MET = 10_000
_MAX_MET_RATIO = 4
#: Attributes of one object, and the bytes of one.
_MAX_ATTRIBUTES = 10_000
_MAX_ATTRIBUTE_BYTES = 64 << 20
#: Deflate makes nothing smaller than by 1032 times. What was never stored may be this large.
_MAX_RATIO = 1100
_MAX_UNSTORED_BYTES = 64 << 20
#: What was never stored of all datasets together.
_MAX_UNSTORED_IN_ALL = 1 << 30
#: HDF5 reads a chunk as a whole, and readers keep one of each dataset that they read.
_MAX_CHUNK_BYTES = 1 << 30
#: Chunks of at least so many bytes may together be so many, and so many times their file.
_LARGE_CHUNK_BYTES = 4 << 20
_MAX_LARGE_CHUNKS = 128 << 20
_MAX_LARGE_CHUNKS_RATIO = 16
_CHECKSUM_BYTES = 4

#: An attribute that is not read: the path of its object ("" for the root), its name, and what its type contains.
Unread: TypeAlias = tuple[str, str, str]


def check_structure(file: h5py.File, path: str) -> list[Unread]:
    """Looks at all objects of a file that was just opened.

    Returns:
      the attributes that are not read because of their types.

    Raises:
      KabukiError: the file is not one to read, and what in it is why.
    """
    with open(path, "rb") as stored:
        walk = _Walk(path, file, stored.fileno())
        walk.group(file.id, "", 0)
        walk.soft_links()
    # HDF5's own walk sees more of what is damaged, and fails where a later one might not return.
    h5py.h5o.visit(file.id, lambda name: None)
    return walk.unread


@dataclasses.dataclass(frozen=True)
class _Identified:
    """What h5py asks of an object whose attributes it reads."""

    id: h5py.h5g.GroupID | h5py.h5d.DatasetID


class _Walk:
    """Visits each object of a file once, by hard links alone."""

    def __init__(self, path: str, file: h5py.File, descriptor: int):
        self._path = path
        self._file_bytes = file.id.get_filesize()
        self._descriptor = descriptor
        created = file.id.get_create_plist()
        # Where an object stands is counted from the end of what others may keep before HDF5's own bytes.
        self._base = created.get_userblock()
        self._has_long_addresses = created.get_sizes() == (8, 8)
        #: Each group, with how many objects are in it, and the groups among them.
        self._groups: dict[object, tuple[int, list[object]]] = {}
        self._soft: list[tuple[h5py.h5g.GroupID, bytes, str, list[object]]] = []
        self.unread: list[Unread] = []
        self._count = 0
        self._promised = 0
        self._large_chunks = 0

    def _refuse(self, name: str, why: str) -> KabukiError:
        return KabukiError(f"{self._path}: {name or '/'}: {why}; the file is not read")

    def group(self, group: h5py.h5g.GroupID, name: str, depth: int) -> object:
        """Looks at a group and all that is in it, and returns its token."""
        token = _token(group)
        if token in self._groups:
            raise self._refuse(name, "a group that stands in the file twice, or within itself")
        inner: list[object] = []
        self._groups[token] = group.get_num_objs(), inner
        if depth > _MAX_DEPTH:
            raise self._refuse(name, f"groups nested more than {_MAX_DEPTH} deep")
        self._attributes(group, name)
        links = group.links
        self._count += group.get_num_objs()
        if self._count > _MAX_OBJECTS:
            raise self._refuse(name, f"more than {_MAX_OBJECTS:,} objects in one file")
        names: list[bytes] = []
        # In the order in which they are stored: to sort them, HDF5 1.14 makes a table, of which it dies where one
        # cannot be read.
        links.iterate(names.append, order=h5py.h5.ITER_NATIVE)
        for raw in sorted(names):
            try:
                part = raw.decode()
            except UnicodeDecodeError:
                raise self._refuse(f"{name}/{raw!r}", "a name that is not UTF-8") from None
            self._link(group, links, raw, f"{name}/{part}", depth, inner)
        return token

    def _link(
        self, group: h5py.h5g.GroupID, links: object, raw: bytes, name: str, depth: int, inner: list[object]
    ) -> None:
        kind = links.get_info(raw).type  # type: ignore[attr-defined]
        if kind == h5py.h5l.TYPE_EXTERNAL:
            other = links.get_val(raw)[0].decode(errors="replace")  # type: ignore[attr-defined]
            raise self._refuse(name, f"a link into another file, {other!r}")
        if kind == h5py.h5l.TYPE_SOFT:
            self._soft.append((group, raw, name, inner))
            return
        if kind != h5py.h5l.TYPE_HARD:
            raise self._refuse(name, "a link of a kind that HDF5 does not define")
        item = h5py.h5o.open(group, raw)
        if isinstance(item, h5py.h5g.GroupID):
            inner.append(self.group(item, name, depth + 1))
        elif isinstance(item, h5py.h5d.DatasetID):
            self._attributes(item, name)
            self._dataset(item, name)

    def soft_links(self) -> None:
        """Follows the soft links, once it is known that none of the links of this file leaves it."""
        for group, raw, name, inner in self._soft:
            try:
                item = h5py.h5o.open(group, raw)
            except KeyError:
                # It leads nowhere, which is for those to say who need it.
                continue
            except RuntimeError as e:
                raise self._refuse(name, f"a link that leads to no end ({e})") from None
            if isinstance(item, h5py.h5g.GroupID):
                inner.append(_token(item))
        self._budget = _MAX_MET + _MAX_MET_RATIO * self._count
        self._meet(next(iter(self._groups)), ())

    def _meet(self, group: object, above: tuple[object, ...]) -> None:
        """Counts what a reader meets that goes where all links lead, but not into a group that it is in."""
        if len(above) > _MAX_DEPTH:
            raise self._refuse("", f"groups nested more than {_MAX_DEPTH} deep by links")
        count, inner = self._groups[group]
        self._budget -= count
        if self._budget < 0:
            raise self._refuse("", "links that lead to the same groups again and again")
        above = (*above, group)
        for other in inner:
            if other not in above:
                self._meet(other, above)

    def _attributes(self, item: h5py.h5g.GroupID | h5py.h5d.DatasetID, name: str) -> None:
        count = h5py.h5a.get_num_attrs(item)
        if count > _MAX_ATTRIBUTES:
            raise self._refuse(name, f"{count:,} attributes")
        if count and self._has_long_addresses:
            claimed = vlen_lengths.claimed_by_attributes(self._descriptor, self._base + h5py.h5o.get_info(item).addr)
            if claimed > self._file_bytes:
                raise self._refuse(name, f"an attribute that says it holds {claimed:,} bytes, more than the file")
        names: list[bytes] = []
        h5py.h5a.iterate(item, names.append, order=h5py.h5.ITER_NATIVE)
        for raw in sorted(names):
            attribute = h5py.h5a.open(item, raw)
            try:
                raw.decode()
            except UnicodeDecodeError:
                raise self._refuse(name, f"an attribute {raw!r} whose name is not UTF-8") from None
            # HDF5 takes it for an error that an attribute holds nothing.
            size = attribute.get_storage_size() if attribute.get_space().get_simple_extent_npoints() else 0
            if size > _MAX_ATTRIBUTE_BYTES:
                raise self._refuse(name, f"an attribute of {size:,} bytes")
            kind = attribute.get_type()
            if not types.is_defined(kind):
                raise self._refuse(name, f"an attribute {raw!r} of a type that HDF5 does not define")
            reason = types.unreadable(kind)
            if reason:
                self.unread.append((name, raw.decode(), reason))
                continue
            try:
                h5py.AttributeManager(_Identified(item))[attribute.name]
            except (OSError, RuntimeError, ValueError, KeyError, TypeError) as e:
                raise self._refuse(name, f"an attribute {raw!r} that cannot be read ({e})") from e

    def _dataset(self, dataset: h5py.h5d.DatasetID, name: str) -> None:
        properties = dataset.get_create_plist()
        layout = properties.get_layout()
        if layout == h5py.h5d.VIRTUAL:
            raise self._refuse(name, "a virtual dataset, which reads from other files")
        if properties.get_external_count():
            other = properties.get_external(0)[0].decode(errors="replace")
            raise self._refuse(name, f"stored in another file, {other!r}")
        if not types.is_defined(dataset.get_type()):
            raise self._refuse(name, "of a type that HDF5 does not define")
        if types.has_sequence_of_references(dataset.get_type()):
            raise self._refuse(name, "its type has sequences of references, which crash h5py; delete this dataset")
        itemsize = dataset.get_type().get_size()
        shape = dataset.get_space().get_simple_extent_dims() if dataset.rank else ()
        if layout == h5py.h5d.CHUNKED:
            chunk = math.prod(properties.get_chunk()) * itemsize
            if chunk >= _LARGE_CHUNK_BYTES:
                self._large_chunks += chunk
            if (
                chunk > _MAX_CHUNK_BYTES
                or self._large_chunks > _MAX_LARGE_CHUNKS + _MAX_LARGE_CHUNKS_RATIO * self._file_bytes
            ):
                before = f", {self._large_chunks:,} with those before it" if self._large_chunks > chunk else ""
                raise self._refuse(
                    name,
                    f"chunks of {chunk:,} bytes{before}, in a file of {self._file_bytes:,}; "
                    "h5repack -l CHUNK=... makes them smaller",
                )
            filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
            if len(set(filters)) < len(filters):
                raise self._refuse(name, "a filter that goes over its chunks more than once")
            for number in filters:
                # Asked while plugins are shut out, so that it is not loaded for the asking.
                if not h5py.h5z.filter_avail(number):
                    raise self._refuse(
                        name,
                        f"filter {number}, which is not part of HDF5, and plugins are not loaded; "
                        "h5repack -f GZIP=4 makes a file without it",
                    )
            if h5py.h5z.FILTER_FLETCHER32 in filters:
                self._checksums(dataset, name, filters)
        # What a dataset says of its storage may be no truer than its shape.
        promised, stored = math.prod(shape) * itemsize, min(dataset.get_storage_size(), self._file_bytes)
        if promised > _MAX_UNSTORED_BYTES + _MAX_RATIO * stored:
            raise self._refuse(name, f"says that it holds {promised:,} bytes, but {stored:,} are stored")
        # Rows without a byte take their time too.
        if shape and shape[0] > _MAX_UNSTORED_BYTES + _MAX_RATIO * self._file_bytes:
            raise self._refuse(name, f"says that it has {shape[0]:,} rows, in a file of {self._file_bytes:,} bytes")
        self._promised += promised
        if self._promised > _MAX_UNSTORED_IN_ALL + _MAX_RATIO * self._file_bytes:
            raise self._refuse(
                name,
                f"says with those before it that they hold {self._promised:,} bytes, in a file of {self._file_bytes:,}",
            )

    def _checksums(self, dataset: h5py.h5d.DatasetID, name: str, filters: list[int]) -> None:
        """HDF5 2.0 reads beyond a chunk that is smaller than its own checksum."""
        if filters[-1] != h5py.h5z.FILTER_FLETCHER32:
            raise self._refuse(name, "a checksum that is not the last of its filters")
        sizes: list[int] = []
        dataset.chunk_iter(lambda chunk: sizes.append(chunk.size))
        if min(sizes, default=_CHECKSUM_BYTES) < _CHECKSUM_BYTES:
            raise self._refuse(name, "a chunk that is smaller than its checksum")


def _token(group: h5py.h5g.GroupID) -> object:
    info = h5py.h5o.get_info(group)
    return info.fileno, info.addr
