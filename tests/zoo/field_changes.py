"""Changes every field of every structure of a file, one at a time, to values that are dangerous for its size."""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Iterator

from tests.zoo.hdf5_bytes import Bytes, trees_by_kind


def _values(size: int, at: int, stored: int, length: int) -> list[int]:
    """Dangerous values of a field: its limits, a loop, the end of the file, and one more than is stored."""
    top = (1 << 8 * size) - 1
    values = {1: [0, 1, 2, 8, 127, top], 2: [0, 1, top >> 1, top], 4: [0, 1, 1 << 20, top >> 1, top]}.get(
        size, [0, 1, 8, at, length - 8, length, 1 << 32, 1 << 62, top >> 1, top - 1, top]
    )
    return [value for value in dict.fromkeys((*values, stored + 1 & top)) if value != stored]


def field_changes(file: Bytes) -> Iterator[tuple[str, bytes]]:
    """Changes each field of each structure with a signature. Of several structures of a kind, it takes two."""
    for signature, group in itertools.groupby(
        sorted(file.structures, key=lambda each: each.signature), lambda s: s.signature
    ):
        if signature == b"OCHK":
            continue
        structures = list(group)
        if signature == b"BTHD":
            structures = list(trees_by_kind(file).values())
        elif len(structures) > 2:
            structures = [structures[0], structures[-1]]
        for number, each in enumerate(structures):
            for at, size in each.fields:
                name = f"{signature.decode() if signature.isalpha() else 'superblock'}_{number}_{at - each.at}"
                for value in _values(size, each.at, file.number(at, size), len(file)):
                    yield f"{name}_{value:x}", file.changed((at, value.to_bytes(size, "little")))


def message_changes(file: Bytes) -> Iterator[tuple[str, bytes]]:
    """Changes the bytes of the messages of object headers. Of messages that begin alike, it takes one."""
    chosen = {
        (each.kind, each.size, file.number(each.body, min(8, each.size))): each for each in file.messages if each.kind
    }
    for number, each in enumerate(chosen.values()):
        rng = random.Random(number)
        name = f"message_{each.kind}_{number}"
        places = list(range(min(each.size, 48)))
        for offset in rng.sample(places, min(len(places), 6)):
            value = rng.choice((0, 1, 2, 0x7F, 0x80, 0xFF))
            yield f"{name}_{offset}_{value:x}", file.changed((each.body + offset, bytes([value])))
        for offset in rng.sample(places[::4], min(len(places[::4]), 4)):
            new = rng.choice(
                (
                    b"\xff" * 4,
                    b"\xff" * 8,
                    b"\xff\xff\xff\x7f",
                    bytes(8),
                    bytes(7) + b"\x80",
                    struct.pack("<Q", each.header),
                )
            )
            yield f"{name}_{offset}_{new.hex()}", file.changed((each.body + offset, new[: each.size - offset]))
        kind = rng.choice((1, 3, 4, 6, 7, 8, 9, 11, 12, 15, 16, 17, 19, 20, 22, 23, 24))
        yield f"{name}_as_{kind}", file.changed((each.at, bytes([kind])))
        yield f"{name}_shared", file.changed((each.flags_at, b"\x02"))
        yield f"{name}_empty", file.changed((each.flags_at - 2, b"\0\0"))
