"""Hostile files that the HDF5 library itself can write: many, deep or cyclic objects, and damaged chunks."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests import handmade


def written(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yields the names and the contents of files, in the oldest and the newest version of the format."""
    for version, make in itertools.product(("earliest", "latest"), _BY_H5PY):
        path = folder / "by_h5py"
        with h5py.File(path, "w", libver=version) as made:
            for name, column in handmade.fields().items():
                made[name] = column
            make(made)
        yield f"{version}{make.__name__}", path.read_bytes()
        path.unlink()


def _deep_groups(file: h5py.File) -> None:
    file.create_group("/".join(["info"] * 5000))


def _wide_group(file: h5py.File) -> None:
    group = file.create_group("info")
    for i in range(1000):
        group.id.links.create_soft(f"link {i}".encode(), b"/reward")


def _many_attributes(file: h5py.File) -> None:
    for i in range(5000):
        h5py.h5a.create(file.id, f"attribute {i}".encode(), h5py.h5t.STD_I8LE, h5py.h5s.create(h5py.h5s.SCALAR))


def _chain_of_soft_links(file: h5py.File) -> None:
    for i in range(500):
        file[f"info/{i}"] = h5py.SoftLink(f"/info/{(i + 1) % 500}")


def _soft_links_between_groups(file: h5py.File) -> None:
    for i in range(12):
        group = file.create_group(f"info/{i}")
        for j in range(12):
            group[f"link {j}"] = h5py.SoftLink(f"/info/{j}")


def _ring_of_groups(file: h5py.File) -> None:
    inner = file.create_group("info/a/b/c")
    inner["again"] = file["info"]


def _long_soft_link(file: h5py.File) -> None:
    file["info"] = h5py.SoftLink("/" + "reward/../" * 5000)


def _long_names(file: h5py.File) -> None:
    file.create_group("info/" + "n" * 60_000)
    file.attrs["a" * 60_000] = 1


def _garbage_in_chunks(file: h5py.File) -> None:
    rng = random.Random(0)
    options: list[dict[str, Any]] = [
        {"compression": "gzip"},
        {"compression": "lzf"},
        {"scaleoffset": 0},
        {"fletcher32": True},
        {"shuffle": True},
    ]
    if h5py.h5z.filter_avail(h5py.h5z.FILTER_SZIP):
        options.append({"compression": "szip"})
    for number, option in enumerate(options):
        dataset = file.create_dataset(f"more/{number}", (8, 64), "i8", chunks=(1, 64), **option)
        for row in range(8):
            garbage = (
                b"",
                b"\xff" * 600,
                rng.randbytes(40),
                rng.randbytes(600),
                bytes(21),
                b"\xff\xff\xff\xff" + bytes(40),
            )[row % 6]
            dataset.id.write_direct_chunk((row, 0), garbage or b"\0")


def _external_list(file: h5py.File) -> None:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    for i in range(100):
        properties.set_external(f"/nowhere/{i}".encode(), 0, 8)
    h5py.h5d.create(file.id, b"info", h5py.h5t.STD_I64LE, h5py.h5s.create_simple((100,)), properties)


def _huge_fill_value(file: h5py.File) -> None:
    file.create_dataset("info", (8,), np.dtype(("V", 60_000)), fillvalue=np.zeros((), "V60000"))


def _huge_chunks_of_nothing(file: h5py.File) -> None:
    for i in range(50):
        file.create_dataset(
            f"info/{i}", (8,), "i8", chunks=(1 << 20,), maxshape=(None,), fillvalue=i, compression="gzip"
        )


def _gzip_bomb(file: h5py.File) -> None:
    file.create_dataset("more", (8, 1 << 23), "i8", chunks=(1, 1 << 23), compression=9)[0] = 0


def _sequence_of_regions(file: h5py.File) -> None:
    kind = h5py.h5t.vlen_create(h5py.h5t.STD_REF_DSETREG)
    h5py.h5a.create(file.id, b"regions", kind, h5py.h5s.create(h5py.h5s.SCALAR))
    h5py.h5d.create(file.id, b"regions", kind, h5py.h5s.create_simple((8,)))


def _unusual_types(file: h5py.File) -> None:
    for name in ("S21", "M8[s]", "V7", "f4"):
        file.create_dataset(f"more/opaque {name}", (8,), h5py.opaque_dtype(np.dtype(name)))
    kinds = {"bits": h5py.h5t.STD_B8LE, "time": h5py.h5t.UNIX_D32LE, "vax": h5py.h5t.IEEE_F32LE.copy()}
    kinds["vax"].set_ebias(1)
    for name, kind in kinds.items():
        h5py.h5d.create(file["more"].id, name.encode(), kind, h5py.h5s.create_simple((8,)))
        h5py.h5a.create(file.id, name.encode(), kind, h5py.h5s.create_simple((8,)))


_BY_H5PY = (
    _deep_groups, _wide_group, _many_attributes, _chain_of_soft_links, _soft_links_between_groups, _ring_of_groups,
    _long_soft_link, _long_names, _garbage_in_chunks, _external_list, _huge_fill_value, _huge_chunks_of_nothing,
    _gzip_bomb, _sequence_of_regions, _unusual_types,
)  # fmt: skip
