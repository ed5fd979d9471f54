"""Known hostile structures, patched into valid files."""

from __future__ import annotations

import itertools
import re
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

from tests.zoo import base_files
from tests.zoo.hdf5_bytes import Bytes, Message, lookup3, trees_by_kind

_DATASPACE, _DATATYPE, _LINK_INFO, _FILL, _LAYOUT, _GROUP_INFO, _FILTERS, _ATTRIBUTE, _CONTINUATION, _ATTRIBUTE_INFO = (
    1, 3, 2, 5, 8, 10, 11, 12, 16, 21,
)  # fmt: skip
_UNDEFINED = (1 << 64) - 1
#: A type of variable length with elements of 16 bytes: a sequence (0) or a text (1).
_VARIABLE = rb"[\x19\x29\x39\x49\x59]%b.\0\x10\0\0\0"


def patched(folder: Path, files: dict[str, Bytes]) -> Iterator[tuple[str, bytes]]:
    """Yields the names and the contents of files, each with one hostile structure."""
    for version, file in files.items():
        for name, content in itertools.chain(
            _element_sizes(file), _continuations(file), _group_info(file), _btrees(file), _heap_ids(file),
            _spaces(file), _layouts(file), _shared_types(file), _addresses(file),
        ):  # fmt: skip
            yield f"{version}_{name}", content
    yield from _shared_local_heaps(files["earliest"])
    yield from _global_heap(files["earliest"])
    yield from _virtual(folder)


def _messages(file: Bytes, kind: int) -> list[Message]:
    return [message for message in file.messages if message.kind == kind]


def _element_sizes(file: Bytes) -> Iterator[tuple[str, bytes]]:
    """Types of variable length whose stored size is not 16: in object headers and in the heap of attributes."""
    for kind in (0, 1):
        offsets = [found.start() for found in re.finditer(_VARIABLE % bytes([kind]), file.changed())]
        for owner, at in enumerate(dict.fromkeys((offsets[0], offsets[len(offsets) // 2], offsets[-1]))):
            for size in (0, 1, 8, 15, 17, 24, 4096, 1 << 20, 1 << 30, (1 << 31) - 1, (1 << 32) - 1):
                new = size.to_bytes(4, "little")
                yield f"vlen_{owner}_{kind}_size_{size}", file.changed((at + 4, new))
            for other in (2, 3, 15):
                yield f"vlen_{owner}_{kind}_as_{other}", file.changed((at + 1, bytes([other])))
            # A sequence of itself, of references, and of a type of 4 GiB.
            for name, base in {"vlen": 0x19, "reference": 0x17, "compound": 0x16, "array": 0x3A, "time": 0x12}.items():
                yield f"vlen_{owner}_{kind}_of_{name}", file.changed((at + 8, bytes([base])))
            yield f"vlen_{owner}_{kind}_of_4_gib", file.changed((at + 12, b"\xff" * 4))


def _continuations(file: Bytes) -> Iterator[tuple[str, bytes]]:
    """Object headers that continue in themselves, outside of the file, or in nothing."""
    for number, each in enumerate(_messages(file, _CONTINUATION)[:2]):
        for address, length in (
            (each.header, 512), (each.header, 16), (each.header + 16, 64), (each.at, 24), (0, len(file)),
            (len(file) - 8, 64), (1 << 63, 64), (each.header, 1 << 40), (each.header, _UNDEFINED), (8, 0),
        ):  # fmt: skip
            yield (
                f"continuation_{number}_{address:x}_{length:x}",
                file.changed((each.body, struct.pack("<QQ", address, length))),
            )
    # Any other message as a continuation.
    for number, each in enumerate(
        [message for message in file.messages if message.kind == 0 and message.size >= 16][:2]
    ):
        place = (each.body, struct.pack("<QQ", each.header, 256))
        yield f"continuation_of_nothing_{number}", file.changed((each.at, bytes([_CONTINUATION])), place)


def _group_info(file: Bytes) -> Iterator[tuple[str, bytes]]:
    for version in (1, 2, 127, 255):
        for each in _messages(file, _GROUP_INFO)[:2]:
            yield f"group_info_version_{version}_{each.at}", file.changed((each.body, bytes([version])))


def _btrees(file: Bytes) -> Iterator[tuple[str, bytes]]:
    """B-trees of version 2 with impossible sizes of records and nodes."""
    for kind, each in trees_by_kind(file).items():
        for size in (0, 1, 3, 512, 65_535):
            yield f"btree_{kind}_records_of_{size}", file.changed((each.at + 10, size.to_bytes(2, "little")))
        for size in (0, 1, 10, 17, 1 << 31, (1 << 32) - 1):
            yield f"btree_{kind}_nodes_of_{size}", file.changed((each.at + 6, size.to_bytes(4, "little")))
        for depth in (1, 2, 255, 65_535):
            yield f"btree_{kind}_depth_{depth}", file.changed((each.at + 12, depth.to_bytes(2, "little")))


def _heap_ids(file: Bytes) -> Iterator[tuple[str, bytes]]:
    """Variable-length elements that refer to wrong places."""
    (heap, *_) = file.of(b"GCOL")
    at = file.find(struct.pack("<Q", heap.at)) - 4
    for length, address, index in (
        (1 << 31, heap.at, 1), (_UNDEFINED >> 32, heap.at, 1), (5, 0, 1), (5, heap.at + 8, 1),
        (5, len(file), 1), (5, _UNDEFINED - 1, 1), (5, heap.at, 0), (5, heap.at, 65_535),
        (5, heap.at, _UNDEFINED >> 32), (0, heap.at, 1), (1, 1 << 63, 1),
    ):  # fmt: skip
        content = file.changed((at, base_files.heap_id(address, index, length)))
        yield f"heap_id_{length:x}_{address:x}_{index:x}", content


def _spaces(file: Bytes) -> Iterator[tuple[str, bytes]]:
    """Dataspaces with impossible ranks and dimensions."""
    spaces = [each for each in _messages(file, _DATASPACE) if file.number(each.body + 1, 1)]
    for rank in (1, 2):
        each = next(each for each in spaces if file.number(each.body + 1, 1) == rank)
        dimensions = each.body + (8 if file.number(each.body, 1) == 1 else 4)
        for value in (0, 1 << 31, 1 << 61, 1 << 62, 1 << 63, _UNDEFINED - 1, _UNDEFINED):
            yield f"rank_{rank}_of_{value:x}", file.changed((dimensions, struct.pack("<Q", value) * rank))
        for other in (0, 3, 32, 33, 127, 255):
            yield f"rank_{rank}_as_{other}", file.changed((each.body + 1, bytes([other])))


def _layouts(file: Bytes) -> Iterator[tuple[str, bytes]]:
    """Chunks of no bytes or of too many, and data at wild addresses."""
    for number, each in enumerate(_messages(file, _LAYOUT)):
        version, kind = file.number(each.body, 1), file.number(each.body + 1, 1)
        if kind != 2:
            place = (each.body + 2, struct.pack("<QQ", _UNDEFINED - 64, 1 << 40)[: each.size - 2])
            yield f"layout_{number}_data_at_the_end", file.changed(place)
            continue
        sizes = each.body + (11 if version == 3 else 5)
        width = 4 if version == 3 else file.number(each.body + 4, 1)
        for value in (0, 1, (1 << 8 * width) - 1, 1 << 8 * width - 1):
            yield f"layout_{number}_chunks_of_{value:x}", file.changed((sizes, value.to_bytes(width, "little")))
        for rank in (0, 1, 5, 33, 255):
            yield f"layout_{number}_rank_{rank}", file.changed((each.body + (2 if version == 3 else 3), bytes([rank])))
        if version == 3:
            for address in (0, each.header, len(file) - 8, 1 << 63):
                yield f"layout_{number}_index_at_{address:x}", file.changed((each.body + 3, struct.pack("<Q", address)))


def _shared_types(file: Bytes) -> Iterator[tuple[str, bytes]]:
    """Types that are stored in themselves, in another type or in no object."""
    named = [each for each in _messages(file, _DATATYPE) if each.size >= 10]
    first, last = named[0], named[-1]
    for name, address in {"itself": last.header, "other": first.header, "nothing": 0, "the_end": len(file)}.items():
        for version, form in {1: "<BB6xQ", 2: "<BBQ", 3: "<BBQ"}.items():
            reference = struct.pack(form, version, 2 if version == 3 else 0, address)[: last.size]
            changes = [(last.flags_at, b"\x02"), (last.body, reference)]
            yield f"type_{version}_in_{name}", file.changed(*changes)
            if name == "other":
                back = struct.pack(form, version, 2 if version == 3 else 0, last.header)[: first.size]
                yield f"type_{version}_in_a_loop", file.changed(*changes, (first.flags_at, b"\x02"), (first.body, back))


def _addresses(file: Bytes) -> Iterator[tuple[str, bytes]]:
    """Each object header in the place of another: groups that contain themselves, datasets that are groups."""
    targets = [file.headers[0], file.headers[-1]]
    stored = file.changed()
    for number, header in enumerate(file.headers[1:40:4]):
        at = stored.find(struct.pack("<Q", header))
        for target in targets:
            if at >= 0 and target != header:
                yield f"header_{number}_is_{target:x}", file.changed((at, struct.pack("<Q", target)))
    for size in (0, 7, 48, 96, 512, len(file) // 2, len(file) - 1):
        yield f"cut_at_{size}", file.changed(length=size)


def _shared_local_heaps(file: Bytes) -> Iterator[tuple[str, bytes]]:
    """Local heaps that share their data segment, or have it in another structure."""
    heaps = file.of(b"HEAP")
    addresses = [file.number(each.at + 24, 8) for each in heaps]
    sizes = [file.number(each.at + 8, 8) for each in heaps]
    for i, j in itertools.permutations(range(len(heaps)), 2):
        yield f"heap_{i}_in_heap_{j}", file.changed((heaps[i].at + 24, struct.pack("<Q", addresses[j])))
    # A copy of a segment at the end of the file, which both heaps name.
    end = len(file)
    segment = file.changed()[addresses[1] : addresses[1] + sizes[1]]
    for i, j in itertools.combinations(range(len(heaps)), 2):
        for shift in (0, 8, 88):
            yield f"heaps_{i}_{j}_share_{shift}", file.changed(
                (40, struct.pack("<Q", end + len(segment) + 512)), (heaps[i].at + 24, struct.pack("<Q", end)),
                (heaps[j].at + 24, struct.pack("<Q", end + shift)), (end, segment + bytes(512)),
            )  # fmt: skip
    for i, each in enumerate(heaps):
        for name, address in {"superblock": 0, "itself": each.at, "next": each.at + 32, "end": end - 8}.items():
            yield f"heap_{i}_in_{name}", file.changed((each.at + 24, struct.pack("<Q", address)))


def _global_heap(file: Bytes) -> Iterator[tuple[str, bytes]]:
    """A global heap whose objects have wrong sizes, or the same number."""
    (heap, *_) = file.of(b"GCOL")
    for size in (0, 1, 8, 15, 16, 24, 4096, 1 << 20, 1 << 31, 1 << 32, 1 << 62, _UNDEFINED - 7, _UNDEFINED):
        yield f"global_heap_of_{size:x}", file.changed((heap.at + 8, struct.pack("<Q", size)))
        yield f"global_heap_object_of_{size:x}", file.changed((heap.at + 24, struct.pack("<Q", size)))
    second = heap.at + 32 + -(-file.number(heap.at + 24, 8) // 8) * 8
    for index in (0, 1, 65_535):
        yield f"global_heap_second_object_{index}", file.changed((second, struct.pack("<H", index)))
        free = (second, struct.pack("<HHIQ", index, 1, 0, 0))
        yield f"global_heap_second_object_{index}_empty", file.changed(free)


def _virtual(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Virtual datasets whose list of sources is wrong."""
    path = Path(shutil.copy(folder / "latest.hdf5", folder / "virtual"))
    base_files.append_virtual_dataset(path)
    file = Bytes(path)
    path.unlink()
    heap = next(each.at for each in reversed(file.of(b"GCOL")))
    # The object has a version, the number of entries, the entries, and a checksum.
    begin, size = heap + 32, file.number(heap + 24, 8)
    stored = file.changed()[begin : begin + size]
    for count in (
        0,
        1,
        3,
        1 << 20,
        1 << 31,
        1 << 32,
        (1 << 60) - 1,
        1 << 60,
        1 << 61,
        (1 << 61) + 1,
        1 << 63,
        _UNDEFINED,
    ):
        new = stored[:1] + struct.pack("<Q", count) + stored[9:-4]
        yield f"virtual_of_{count:x}_entries", file.changed((begin, new + lookup3(new)))
    for version in (1, 2, 255):
        new = bytes([version]) + stored[1:-4]
        yield f"virtual_version_{version}", file.changed((begin, new + lookup3(new)))
    for at in range(9, min(size - 4, 120), 3):
        new = stored[:at] + b"\xff" * 4 + stored[at + 4 : -4]
        yield f"virtual_entry_byte_{at}", file.changed((begin, new + lookup3(new)))
    cut = stored[:9]
    yield "virtual_without_entries", file.changed((begin, cut + lookup3(cut)), (heap + 24, struct.pack("<Q", 13)))
