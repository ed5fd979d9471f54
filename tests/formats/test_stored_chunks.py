"""Rows are read from chunks of every form, and equal what h5py reads."""

from __future__ import annotations

import itertools
import struct
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

import kabuki_rlds
from tests import handmade

ROWS = 37
FILTERS: list[dict[str, object]] = [
    {},
    {"compression": "gzip"},
    {"compression": "gzip", "shuffle": True, "fletcher32": True},
    {"fletcher32": True},
    {"shuffle": True},
    {"compression": "lzf"},
]


def chunk_shapes(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Chunks of whole rows, of parts of rows, and of single elements."""
    return [(4, *shape[1:]), (5, *(3 for _ in shape[1:])), (1,) * len(shape)]


@pytest.fixture(
    params=list(itertools.product(["earliest", "latest"], [0, 512])), ids=lambda each: f"{each[0]}-{each[1]}"
)
def file(request, tmp_path) -> Path:
    """One field for each form of chunks. Some chunks were never written."""
    rng = np.random.default_rng(0)
    library, user_block = request.param
    path = tmp_path / "chunks.hdf5"
    with h5py.File(path, "w", libver=library, userblock_size=user_block) as made:
        for name, column in handmade.fields((ROWS,), (True,)).items():
            if name != "observation":
                made[name] = column
        shapes = ((ROWS,), (ROWS, 5), (ROWS, 6, 7))
        forms = itertools.product(["u1", "<f4", ">i8", "bool"], shapes, range(3), FILTERS)
        for number, (dtype, shape, form, filters) in enumerate(forms):
            values = rng.integers(0, 2 if dtype == "bool" else 100, shape).astype(dtype)
            chunks = chunk_shapes(shape)[form]
            column = made.create_dataset(
                f"observation/{number}", shape, dtype, chunks=chunks, fillvalue=True, **filters
            )
            column[:20], column[30:] = values[:20], values[30:]
    return path


@pytest.mark.parametrize("shuffle", [False, True])
def test_loaded_rows_equal_those_that_h5py_reads(shuffle, file):
    with h5py.File(file) as opened:
        expected = {name: column[()] for name, column in opened["observation"].items()}
    data = kabuki_rlds.dataset(file, fields=["observation"])
    order = np.random.default_rng(1).permutation(len(data)) if shuffle else np.arange(len(data))
    items = data.__getitems__(order.tolist())
    for name, column in expected.items():
        values = np.stack([item["observation"][name] for item in items])
        assert values.dtype == column.dtype.newbyteorder("=")
        np.testing.assert_array_equal(values, column[order], err_msg=name)


@pytest.mark.parametrize("library", ["earliest", "latest"])
def test_rows_that_can_grow_are_read(library, tmp_path):
    path = tmp_path / "f.hdf5"
    limits = [(ROWS, None, 6), (ROWS, None, None), (None, 9, 6), (ROWS, 9, 9), (ROWS, 4, None)]
    with h5py.File(path, "w", libver=library) as made:
        for name, column in handmade.fields((ROWS,), (True,)).items():
            if name != "observation":
                made[name] = column
        for i, maxshape in enumerate(limits):
            for j, dtype in enumerate(["<i4", h5py.string_dtype()]):
                for k, written in enumerate([0, 20, ROWS]):
                    column = made.create_dataset(
                        f"observation/{i}{j}{k}", (ROWS, 4, 6), dtype, chunks=(5, 2, 3), maxshape=maxshape,
                        compression="gzip", fillvalue=None if j else 7,
                    )  # fmt: skip
                    if written:
                        values = np.arange(written * 24).reshape(written, 4, 6)
                        column[:written] = values.astype(str).astype(object) if j else values
        expected = {name: column[()] for name, column in made["observation"].items()}
    (batch,) = kabuki_rlds.load_steps(path, ROWS, keep_last=True, as_numpy=True)
    for name, column in expected.items():
        np.testing.assert_array_equal(batch["observation"][name], column, err_msg=name)


def test_two_chunks_at_the_same_place_are_an_error(tmp_path):
    path = tmp_path / "f.hdf5"
    with h5py.File(path, "w") as made:
        for name, column in handmade.fields((ROWS,), (True,)).items():
            made.create_dataset(name, data=column, chunks=(20, *column.shape[1:]))
    stored = bytearray(path.read_bytes())
    # Keys of version 1 B-trees: size of the chunk, mask of skipped filters, first element.
    key = struct.pack("<IIQQQ", 20 * 2 * 4, 0, 20, 0, 0)
    at = stored.index(key)
    stored[at : at + len(key)] = struct.pack("<IIQQQ", 20 * 2 * 4, 0, 0, 0, 0)
    path.write_bytes(stored)
    with pytest.raises(kabuki_rlds.DamagedDataError, match="several chunks at the same place"):
        kabuki_rlds.convert(path, tmp_path / "out.hdf5")


@pytest.mark.parametrize("chunks", [(ROWS, 8), (ROWS, 4)])
def test_a_chunk_is_not_decompressed_beyond_its_size(chunks, tmp_path):
    path = tmp_path / "bomb.hdf5"
    with h5py.File(path, "w") as made:
        for name, column in handmade.fields((ROWS,), (True,)).items():
            if name != "observation":
                made[name] = column
        column = made.create_dataset("observation", (ROWS, 8), "u1", chunks=chunks, compression="gzip")
        column.id.write_direct_chunk((0, 0), zlib.compress(bytes(1 << 24)))
    with pytest.raises(kabuki_rlds.DamagedDataError, match=rf"a chunk has {np.prod(chunks) + 1} bytes, expected"):
        kabuki_rlds.convert(path, tmp_path / "out.hdf5")


def test_a_wrong_checksum_is_an_error(tmp_path):
    path = tmp_path / "f.hdf5"
    with h5py.File(path, "w") as made:
        for name, column in handmade.fields((ROWS,), (True,)).items():
            made.create_dataset(name, data=column, chunks=column.shape, fletcher32=name == "reward")
        at = made["reward"].id.get_chunk_info(0).byte_offset
    assert kabuki_rlds.validate(path) == []
    stored = bytearray(path.read_bytes())
    stored[at] ^= 1
    path.write_bytes(stored)
    with pytest.raises(kabuki_rlds.DamagedDataError, match=r"field 'reward'.*the checksum of a chunk does not match"):
        kabuki_rlds.convert(path, tmp_path / "out.hdf5")


@pytest.mark.parametrize("chunks", [None, (4,)])
def test_big_endian_bfloat16_is_read(chunks, tmp_path):
    fields = handmade.fields((4, 4), (True, False))
    big = h5py.h5t.IEEE_F32BE.copy()
    big.set_fields(15, 7, 8, 0, 7)
    big.set_size(2)
    big.set_ebias(127)
    # The upper half of a float32 is the bfloat16.
    values = np.arange(8, dtype=np.float32)
    with h5py.File(tmp_path / "f.hdf5", "w") as made:
        for name, column in fields.items():
            if name != "observation":
                made[name] = column
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        if chunks:
            properties.set_chunk(chunks)
        observation = h5py.h5d.create(made.id, b"observation", big, h5py.h5s.create_simple((8,)), properties)
        observation.write(h5py.h5s.ALL, h5py.h5s.ALL, (values.view(np.uint32) >> 16).astype(">u2"), mtype=big)
    (batch,) = kabuki_rlds.load_steps(tmp_path / "f.hdf5", 8, keep_last=True, as_numpy=True)
    assert batch["observation"].astype(np.float32).tolist() == values.tolist()
