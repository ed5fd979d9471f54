"""Writes valid HDF5 files that contain as many structures of the format as h5py can write.

Both are valid Kabuki files, so that every reader reads their fields.
"""

from __future__ import annotations

import struct
from pathlib import Path

import h5py
import numpy as np

from tests import handmade

_ROWS = sum(handmade.LENGTHS)
_DTYPES = {
    "sequence": h5py.vlen_dtype("i4"),
    "string": h5py.string_dtype(),
    "compound": np.dtype([("a", "<i4"), ("b", "<f8"), ("c", "S3"), ("d", "<u2", (2, 3))]),
    "enum": h5py.enum_dtype({"LEFT": 0, "RIGHT": 1}, "i2"),
    "array": np.dtype(("f4", (2, 3))),
    "opaque": np.dtype("V7"),
    "reference": h5py.ref_dtype,
    "region": h5py.regionref_dtype,
    "complex": np.dtype("c8"),
}


def write_all(folder: Path) -> dict[str, Path]:
    """Writes the files `earliest` and `latest`, named after the oldest and the newest version of the format."""
    return {version: _write(folder / f"{version}.hdf5", version) for version in ("earliest", "latest")}


def _write(path: Path, version: str) -> Path:
    # The free space of the file is stored in it.
    space = {"fs_strategy": "fsm", "fs_persist": True} if version == "latest" else {}
    with h5py.File(path, "w", libver=version, **space) as file:
        for name, column in handmade.fields().items():
            file[name] = column
        for name, value in handmade.attributes().items():
            file.attrs[name] = value
        _chunks(file.create_group("more"), version)
        _types(file["more"])
        _groups(file.require_group("info"))
        del file["info/link_20"]
    return path


def _chunks(group: h5py.Group, version: str) -> None:
    """Every index of chunks, and every filter that is built in."""
    table = np.arange(2.0 * _ROWS).reshape(_ROWS, 2)
    group.create_dataset("unlimited", data=table, chunks=(1, 2), maxshape=(None, 2))
    group.create_dataset("limited", data=table, chunks=(1, 2))
    group.create_dataset("both_unlimited", data=table, chunks=(1, 1), maxshape=(None, None))
    group.create_dataset("single", data=table, chunks=table.shape, compression="gzip")
    group.create_dataset("checked", data=table, chunks=(3, 2), shuffle=True, fletcher32=True)
    group.create_dataset("lzf", data=table, chunks=(4, 2), compression="lzf")
    group.create_dataset("scaled", data=np.arange(_ROWS), chunks=(4,), scaleoffset=0)
    group.create_dataset("filled", (_ROWS,), "f4", fillvalue=3)
    _low_level(group, "nbit", h5py.h5z.FILTER_NBIT, ())
    if h5py.h5z.filter_avail(h5py.h5z.FILTER_SZIP):
        group.create_dataset("szip", data=np.arange(64 * _ROWS).reshape(_ROWS, 64), chunks=(2, 64), compression="szip")
    _low_level(group, "early", h5py.h5z.FILTER_DEFLATE, (1,), early=True)
    compact = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    compact.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple((_ROWS,))
    h5py.h5d.create(group.id, b"compact", h5py.h5t.STD_I32LE, space, compact)


def _low_level(group: h5py.Group, name: str, filter_number: int, values: tuple[int, ...], early: bool = False) -> None:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((4,))
    properties.set_filter(filter_number, h5py.h5z.FLAG_OPTIONAL, values)
    if early:
        properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    space = h5py.h5s.create_simple((_ROWS,))
    created = h5py.h5d.create(group.id, name.encode(), h5py.h5t.STD_I32LE, space, properties)
    created.write(h5py.h5s.ALL, h5py.h5s.ALL, np.arange(_ROWS, dtype="i4"))


def _types(group: h5py.Group) -> None:
    """Every class of types: in a dataset, an attribute and a named type."""
    rows = np.empty(_ROWS, object)
    rows[:] = [np.arange(i, dtype="f8") for i in range(_ROWS)]
    group.create_dataset("rows", data=rows, dtype=h5py.vlen_dtype("f8"))
    texts = [f"text {i}" * i for i in range(_ROWS)]
    group.create_dataset("texts", data=texts, dtype=h5py.string_dtype(), chunks=(3,), maxshape=(None,))
    group["fixed"] = np.array([b"abc"] * _ROWS, "S5")
    group["switch"] = np.zeros(_ROWS, bool)
    named = group.file.create_group("info/types")
    for name, dtype in _DTYPES.items():
        kind = h5py.h5t.py_create(np.dtype(dtype), logical=True).copy()
        kind.commit(named.id, name.encode())
        h5py.h5a.create(group.id, f"attribute_{name}".encode(), kind, h5py.h5s.create_simple((1,)))
    # In a heap, because the group has many attributes, and in the object header of a dataset.
    for item in group, group["fixed"]:
        item.attrs["text"] = "a text"
        item.attrs.create("numbers", rows[:1], dtype=h5py.vlen_dtype("f8"))
    group.attrs["references"] = group.ref
    group.attrs.create("named", np.zeros(2, "i2"), dtype=named["enum"])
    group.attrs["empty"] = h5py.Empty("f4")
    # Many attributes are stored outside of the object header.
    many = group.create_dataset("limited_index", data=np.zeros(_ROWS))
    for i in range(12):
        many.attrs[f"many_{i}"] = f"value {i}"


def _groups(group: h5py.Group) -> None:
    """Links of every type, and enough of them for storage outside of the object header."""
    for i in range(30):
        group[f"link_{i}"] = np.full(_ROWS, i)
    group["soft"] = h5py.SoftLink("/info/link_3")
    inner = group.create_group("inner/innermost")
    inner["leaf"] = np.arange(_ROWS)
    # Two names of one dataset.
    inner["again"] = group["link_4"]


def append_virtual_dataset(path: Path) -> None:
    """Appends the dataset `virtual`, whose sources are in the file itself."""
    with h5py.File(path, "r+", libver="latest") as file:
        layout = h5py.VirtualLayout((2, _ROWS), "f8")
        for i in range(2):
            layout[i] = h5py.VirtualSource(".", "reward", (_ROWS,))
        file.create_virtual_dataset("virtual", layout)


def heap_id(address: int, index: int, length: int) -> bytes:
    """Returns the reference to an object in a global heap that a variable-length element stores."""
    return struct.pack("<IQI", length, address, index)
