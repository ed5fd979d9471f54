"""Rows of variable length: compared with h5py, on damaged heaps and references, and in threads."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import h5py
import hypothesis
import numpy as np
import pytest
from h5py._objects import phil
from hypothesis import strategies as st

from kabuki_rlds.data.schema import BFLOAT16
from kabuki_rlds.formats.hdf5 import layout
from kabuki_rlds.formats.hdf5.sequences import SequenceReader
from kabuki_rlds.formats.safe_hdf5 import global_heap, stored_references
from kabuki_rlds.formats.safe_hdf5.compact_storage import compact_bytes
from kabuki_rlds.formats.safe_hdf5.global_heap import GlobalHeaps
from kabuki_rlds.formats.safe_hdf5.stored_file import StoredFile
from kabuki_rlds.formats.safe_hdf5.vlen_rows import VlenRows

TEXTS = [h5py.h5t.py_create(h5py.string_dtype(encoding), logical=True) for encoding in ("utf-8", "ascii")]


def integers_of_20_bits() -> h5py.h5t.TypeID:
    kind = h5py.h5t.STD_I32BE.copy()
    kind.set_precision(20)
    kind.set_offset(2)
    return kind


def big_endian_bfloat16() -> h5py.h5t.TypeID:
    kind = layout.element_type(BFLOAT16)
    kind.set_order(h5py.h5t.ORDER_BE)
    return kind


DTYPES = ["u1", "i1", "<i2", ">u2", "<i4", ">i8", "<f2", ">f4", "<f8", "<c8", ">c16", "?"]
ELEMENTS = [
    *(h5py.h5t.py_create(np.dtype(name), logical=True) for name in DTYPES),
    h5py.h5t.py_create(h5py.enum_dtype({"off": 0, "on": 1, "unknown": 300}, "<i2"), logical=True),
    integers_of_20_bits(),
    layout.element_type(BFLOAT16),
    big_endian_bfloat16(),
]
#: HDF5 skips some of them for rows of variable length.
FILTERS = ["shuffle", "deflate", "lzf", "fletcher32"]


def create(
    group: h5py.Group,
    kind: h5py.h5t.TypeID,
    shape: tuple[int, ...],
    chunks: tuple[int, ...] | None,
    *,
    filters: tuple[str, ...] = (),
    compact: bool = False,
) -> h5py.Dataset:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    if compact:
        properties.set_layout(h5py.h5d.COMPACT)
    if chunks is not None:
        properties.set_chunk(chunks)
        for name in filters:
            number = getattr(h5py.h5z, f"FILTER_{name.upper()}")
            properties.set_filter(number, h5py.h5z.FLAG_OPTIONAL, (4,) if name == "deflate" else ())
    # HDF5 allows chunks larger than the shape only if the dataset may grow. Lengths of 4 bytes cannot be unlimited.
    limit = h5py.h5s.UNLIMITED if group.file.id.get_create_plist().get_sizes()[1] == 8 else 100
    space = h5py.h5s.create_simple(shape, None if chunks is None else (limit,) * len(shape))
    return h5py.Dataset(h5py.h5d.create(group.id, b"rows", kind, space, properties))


@st.composite
def datasets(draw: st.DrawFn) -> dict:
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=3)))
    storage = draw(st.sampled_from(["contiguous", "compact", "chunked", "chunked"]))
    chunks = tuple(draw(st.integers(1, size + 2)) for size in shape) if storage == "chunked" else None
    filters = tuple(name for name in FILTERS if chunks and draw(st.booleans()))
    sizes = st.integers(0, 20) | st.just(0) | st.integers(0, 9000)
    cells = st.tuples(*(st.integers(0, size - 1) for size in shape))
    return {
        "kind": draw(st.sampled_from(TEXTS) | st.sampled_from(ELEMENTS)),
        "shape": shape,
        "chunks": chunks,
        "filters": tuple(draw(st.permutations(filters))),
        "compact": storage == "compact",
        "library": draw(st.sampled_from(["earliest", "latest"])),
        "user_block": draw(st.sampled_from([0, 0, 512, 2048])),
        "size_of": draw(st.sampled_from([(8, 8), (8, 8), (4, 8), (8, 4), (2, 2)])),
        # Some rows are written several times, so that heaps have gaps, and others never.
        "writes": draw(st.lists(st.tuples(cells, sizes), max_size=30)),
        "seed": draw(st.integers(0, 1 << 16)),
        "rows": draw(st.lists(st.integers(0, shape[0] - 1), max_size=6)),
    }


def write(path: Path, given: dict) -> None:
    rng = np.random.default_rng(given["seed"])
    created = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    created.set_sizes(*given["size_of"])
    created.set_userblock(given["user_block"])
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    versions = {"earliest": h5py.h5f.LIBVER_EARLIEST, "latest": h5py.h5f.LIBVER_LATEST}
    # HDF5 cannot read the new structures if addresses have 2 bytes.
    library = "earliest" if given["size_of"] == (2, 2) else given["library"]
    access.set_libver_bounds(versions[library], h5py.h5f.LIBVER_LATEST)
    kind, is_text = given["kind"], given["kind"] in TEXTS
    with h5py.File(h5py.h5f.create(os.fsencode(path), h5py.h5f.ACC_TRUNC, created, access)) as file:
        stored = kind if is_text else h5py.h5t.vlen_create(kind)
        options = {"filters": given["filters"], "compact": given["compact"]}
        dataset = create(file, stored, given["shape"], given["chunks"], **options)
        for cell, count in given["writes"]:
            if given["size_of"] == (2, 2):
                # The file can have at most 64 KiB.
                count = min(count, 20)
            letters = "e0123456789" if kind is TEXTS[1] else "é0123456789"
            dataset[cell] = letters[: count % 12] * (count // 9) if is_text else elements(rng, kind, count)


def elements(rng: np.random.Generator, kind: h5py.h5t.TypeID, count: int) -> np.ndarray:
    dtype = kind.dtype
    if dtype.kind in "bi":
        return (
            rng.integers(0, 2, count).astype(dtype) if dtype.kind == "b" else rng.integers(-99, 99, count).astype(dtype)
        )
    # All bit patterns, also of NaN.
    return np.frombuffer(rng.bytes(count * dtype.itemsize), dtype)


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise AssertionError("the call does not end")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(datasets())
def test_rows_equal_those_of_h5py_bit_by_bit(tmp_path, given):
    path = tmp_path / "f.hdf5"
    write(path, given)
    rows = np.sort(np.array(given["rows"], np.int64))
    with h5py.File(path) as file:
        dataset = file["rows"]
        for chosen in (np.arange(len(dataset)), rows):
            expected = dataset[...][chosen].reshape(-1)
            if given["kind"] in TEXTS:
                assert VlenRows(dataset).read(chosen) == expected.tolist()
                continue
            values, counts = SequenceReader(dataset).read(chosen)
            assert counts.tolist() == [len(each) for each in expected]
            assert values.dtype == given["kind"].dtype
            assert values.tobytes() == b"".join(each.tobytes() for each in expected)
            assert values.flags.writeable


def test_bfloat16_keeps_its_bits(tmp_path):
    patterns = np.arange(1 << 16).astype(np.uint16)
    with h5py.File(tmp_path / "f.hdf5", "w") as file:
        dataset = create(file, h5py.h5t.vlen_create(h5py.h5t.STD_U16LE), (1,), None)
        dataset[0] = patterns
        stored = h5py.h5t.vlen_create(layout.element_type(BFLOAT16))
        # The same references, with another type.
        at = dataset.id.get_offset()
        other = h5py.Dataset(h5py.h5d.create(file.id, b"other", stored, dataset.id.get_space()))
        other[0] = np.zeros(1, np.float32)
        target = other.id.get_offset()
    data = bytearray((tmp_path / "f.hdf5").read_bytes())
    data[target : target + 16] = data[at : at + 16]
    (tmp_path / "f.hdf5").write_bytes(data)
    with h5py.File(tmp_path / "f.hdf5") as file:
        values, _ = SequenceReader(file["other"], BFLOAT16).read(np.arange(1))
    assert values.view(np.uint16).tolist() == patterns.tolist()


def test_rows_that_were_just_written_are_read(tmp_path):
    with h5py.File(tmp_path / "f.hdf5", "w") as file:
        dataset = file.create_dataset("rows", (3,), h5py.string_dtype())
        dataset[1] = "new"
        assert VlenRows(dataset).read(np.arange(3)) == [b"", b"new", b""]


def test_missing_rows_with_a_fill_value_are_an_error(tmp_path):
    """HDF5 2.0 cannot read them either, in a file that is open for reading."""
    with h5py.File(tmp_path / "f.hdf5", "w") as file:
        dataset = file.create_dataset("rows", (8,), h5py.string_dtype(), chunks=(4,), fillvalue="none")
        dataset[:4] = ["a", "b", "c", "d"]
    with h5py.File(tmp_path / "f.hdf5") as file:
        rows = VlenRows(file["rows"])
        assert rows.read(np.arange(4)) == [b"a", b"b", b"c", b"d"]
        with pytest.raises(ValueError, match="fill value"):
            rows.read(np.arange(8))


def test_positions_of_objects_are_kept_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(global_heap, "_KEPT_OBJECTS", 300)
    monkeypatch.setattr(stored_references, "_KEPT_BYTES", 16 * 64)
    texts = [f"{i:0200}" for i in range(2000)]
    with h5py.File(tmp_path / "f.hdf5", "w") as file:
        file.create_dataset("rows", data=texts, dtype=h5py.string_dtype(), chunks=(64,))
    with h5py.File(tmp_path / "f.hdf5") as file:
        reader = VlenRows(file["rows"])
        for row in np.random.default_rng(0).integers(0, 2000, 500):
            assert reader.read(np.array([row])) == [texts[row].encode()]
            assert reader._heaps._num_kept == sum(len(found) for found, _ in reader._heaps._kept.values()) < 700


def test_reading_does_not_need_the_lock_of_h5py(tmp_path):
    rng = np.random.default_rng(0)
    rows = np.empty(100, object)
    rows[:] = [rng.integers(0, 256, 3000 + i, np.uint8) for i in range(100)]
    with h5py.File(tmp_path / "f.hdf5", "w") as file:
        options = {"chunks": (10,), "compression": "gzip", "shuffle": True}
        file.create_dataset("rows", data=rows, dtype=h5py.vlen_dtype("u1"), **options)
    with h5py.File(tmp_path / "f.hdf5") as file:
        reader = SequenceReader(file["rows"])
        reader.read(np.arange(1))
        found = []
        thread = threading.Thread(target=lambda: found.append(reader.read(np.arange(100))))
        with phil:
            thread.start()
            thread.join(30)
            is_done = not thread.is_alive()
        thread.join()
    assert is_done
    assert found[0][0].tobytes() == b"".join(row.tobytes() for row in rows)


def test_several_threads_read_the_same_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(global_heap, "_KEPT_OBJECTS", 50)
    texts = [f"text {i} " * (i % 50) for i in range(5000)]
    with h5py.File(tmp_path / "f.hdf5", "w") as file:
        file.create_dataset("rows", data=texts, dtype=h5py.string_dtype(), chunks=(100,), compression="gzip")
    errors: list[int] = []

    def read(seed: int) -> None:
        for start in np.random.default_rng(seed).integers(0, 4000, 100):
            chosen = np.arange(start, start + 200)
            if reader.read(chosen) != [texts[row].encode() for row in chosen]:
                errors.append(start)

    with h5py.File(tmp_path / "f.hdf5") as file:
        reader = VlenRows(file["rows"])
        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors


# --- damage ---


def file_of_rows(path: Path, count: int = 16) -> Path:
    """Writes texts, short and long sequences: in compressed chunks, and contiguously."""
    rng = np.random.default_rng(0)
    texts = [f"text {i}" for i in range(count)]
    numbers = np.empty((2, count), object)
    for i in range(count):
        numbers[0, i], numbers[1, i] = rng.random(i % 5), rng.integers(0, 256, 4000 + 90 * i, np.uint8)
    with h5py.File(path, "w") as file:
        for options in ({}, {"chunks": (8,), "compression": "gzip"}):
            group = file.create_group("chunked" if options else "contiguous")
            group.create_dataset("texts", data=texts, dtype=h5py.string_dtype(), **options)
            group.create_dataset("floats", data=numbers[0], dtype=h5py.vlen_dtype("f8"), **options)
            group.create_dataset("files", data=numbers[1], dtype=h5py.vlen_dtype("u1"), **options)
    return path


def read_all(path: Path) -> tuple[int, list[str]]:
    """Returns the number of bytes that were read, and the errors."""
    nbytes, errors = 0, []
    with h5py.File(path) as file:
        for group in file.values():
            for dataset in group.values():
                try:
                    nbytes += sum(map(len, VlenRows(dataset).read(np.arange(len(dataset)))))
                except (OSError, ValueError, RuntimeError) as e:
                    errors.append(str(e))
    return nbytes, errors


@pytest.mark.parametrize("of", ["heaps", "references"])
def test_damaged_heaps_and_references_are_one_error_each(of, tmp_path):
    path = file_of_rows(tmp_path / "f.hdf5")
    intact = path.read_bytes()
    nbytes, errors = read_all(path)
    assert nbytes > 0 and not errors
    places: list[int] = []
    if of == "heaps":
        at = -1
        while (at := intact.find(b"GCOL\1", at + 1)) >= 0:
            # The header of the heap, and of the first objects.
            places += range(at, at + 100)
    else:
        with h5py.File(path) as file:
            for dataset in file["contiguous"].values():
                places += range(dataset.id.get_offset(), dataset.id.get_offset() + dataset.id.get_storage_size())
            for dataset in file["chunked"].values():
                dataset.id.chunk_iter(
                    lambda chunk: places.extend(range(chunk.byte_offset, chunk.byte_offset + chunk.size))
                )
    rng = np.random.default_rng(1)
    count = 0
    for _ in range(200):
        damaged = bytearray(intact)
        for at in rng.choice(places, rng.integers(1, 4)):
            damaged[at] = rng.choice([0, 0xFF, 1, damaged[at] ^ 1 << rng.integers(8), rng.integers(256)])
        path.write_bytes(damaged)
        with time_limit(20):
            nbytes, errors = read_all(path)
        assert nbytes <= len(intact)
        assert all(error.isprintable() and len(error) < 200 for error in errors)
        count += bool(errors)
    assert count > 50


@pytest.mark.parametrize("library", ["earliest", "latest"])
def test_damaged_headers_of_compact_datasets_are_one_error_each(library, tmp_path):
    path = tmp_path / "f.hdf5"
    with h5py.File(path, "w", libver=library) as file:
        create(file, TEXTS[0], (5,), None, compact=True)[:] = [b"text"] * 5
        for i in range(8):
            # They do not fit into the first block of the header.
            file["rows"].attrs[f"more_{i}"] = "x" * 30 * i
    intact = path.read_bytes()
    rng = np.random.default_rng(0)
    errors = 0
    # The file that HDF5 has open remains intact.
    with h5py.File(path) as file, open(tmp_path / "damaged", "w+b", buffering=0) as damaged:
        header = h5py.h5o.get_info(file["rows"].id).addr
        for _ in range(2000):
            stored = bytearray(intact)
            for at in header + rng.integers(0, min(600, len(intact) - header), rng.integers(1, 5)):
                stored[at] = rng.choice([0, 0xFF, 1, 16, stored[at] ^ 1 << rng.integers(8)])
            os.pwrite(damaged.fileno(), stored, 0)
            with time_limit(20):
                try:
                    assert len(compact_bytes(file["rows"], StoredFile(damaged.fileno(), 0, 8, 8))) < len(intact)
                except ValueError as e:
                    errors += 1
                    assert str(e).isprintable()
    assert errors > 20


def heap_of(*objects: tuple[int, int, bytes], size: int | None = None, signature: bytes = b"GCOL\1\0\0\0") -> bytes:
    """Returns a heap of objects, each (index, declared size, data)."""
    stored = b"".join(
        struct.pack("<HHIQ", index, 1, 0, n) + data.ljust(-(-len(data) // 8) * 8, b"\0") for index, n, data in objects
    )
    return signature + struct.pack("<Q", len(stored) + 16 if size is None else size) + stored


def heaps_in(tmp_path: Path, stored: bytes) -> GlobalHeaps:
    (tmp_path / "heap").write_bytes(stored)
    return GlobalHeaps(StoredFile(os.open(tmp_path / "heap", os.O_RDONLY), 0, 8, 8))


LARGE = b"x" * 1000


@pytest.mark.parametrize("data", [b"12345678", LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda n, d: heap_of((1, n, d), signature=b"GCOL\2\0\0\0"), "there is no heap at address 0"),
        (lambda n, d: heap_of((1, n, d), signature=b"GCOX\1\0\0\0"), "there is no heap at address 0"),
        (lambda n, d: heap_of((1, n, d))[:12], "there is no heap at address 0"),
        (lambda n, d: heap_of((1, n, d), size=1 << 40), "beyond the end of the file"),
        (lambda n, d: heap_of((1, n, d), (2, 1 << 63, d)), "object 2 reaches beyond the end of its heap"),
        (lambda n, d: heap_of((1, n, d), (2, (1 << 64) - 1, d)), "object 2 reaches beyond the end of its heap"),
        (lambda n, d: heap_of((2, n, d), (2, n, d)), "several objects 2"),
        (lambda n, d: heap_of((2, n, d)), "has no object 1"),
        # Free space of size 0 makes HDF5 loop forever.
        (lambda n, d: heap_of((0, 0, b""), (1, n, d)), "has no object 1"),
        (lambda n, d: heap_of((1, n - 1, d)), "it declares"),
        (lambda n, d: heap_of(size=0), "has no object 1"),
    ],
)
def test_damaged_heap_is_named(make, message, data, tmp_path):
    intact = heaps_in(tmp_path, heap_of((1, len(data), data), (2, 3, b"abc"), (0, 0, b"")))
    one, two = np.array([0, 0], np.uint64), np.array([1, 2], np.uint32)
    assert intact.read(one, two, np.array([len(data), 3])) == [data, b"abc"]
    damaged = heaps_in(tmp_path, make(len(data), data))
    with time_limit(10), pytest.raises(ValueError, match=message):
        damaged.read(one[:1], two[:1], np.array([len(data)]))


def test_overlapping_heaps_are_rejected(tmp_path):
    """Each object of one heap is the header of another, which would make reading quadratic."""
    count = 2000
    stored = heap_of(*((i + 1, 16, b"GCOL\1\0\0\0" + struct.pack("<Q", 32 * (count - i) - 16)) for i in range(count)))
    heaps = heaps_in(tmp_path, stored)
    addresses = 32 + 32 * np.arange(count - 1, dtype=np.uint64)
    with time_limit(10), pytest.raises(ValueError, match="overlaps others"):
        heaps.read(addresses, np.arange(2, count + 1), np.full(count - 1, 16))


def test_rows_that_share_a_long_object_are_rejected(tmp_path):
    with h5py.File(tmp_path / "f.hdf5", "w") as file:
        texts = file.create_dataset("rows", (1000,), h5py.string_dtype(), chunks=(1000,))
        texts[0] = "x" * (1 << 20)
    with h5py.File(tmp_path / "f.hdf5", "r+") as file:
        _, stored = file["rows"].id.read_direct_chunk((0,))
        file["rows"].id.write_direct_chunk((0,), stored[:16] * 1000)
    with h5py.File(tmp_path / "f.hdf5") as file, pytest.raises(ValueError, match="declare 1,048,576,000 bytes"):
        VlenRows(file["rows"]).read(np.arange(1000))


def test_damaged_row_is_named(tmp_path):
    path = file_of_rows(tmp_path / "f.hdf5")
    data = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        at = file["contiguous/texts"].id.get_offset() + 16 * 7
    data[at] += 1
    path.write_bytes(data)
    with h5py.File(path) as file, pytest.raises(ValueError, match=r"^row 7: it declares 7 bytes, but object \d+ of"):
        VlenRows(file["contiguous/texts"]).read(np.arange(2, 16))


@pytest.mark.parametrize("inner", [h5py.string_dtype(), h5py.vlen_dtype("i4")], ids=["texts", "sequences"])
def test_sequences_of_variable_elements_are_rejected(inner, tmp_path):
    with h5py.File(tmp_path / "f.hdf5", "w") as file:
        dataset = file.create_dataset("rows", (2,), h5py.vlen_dtype(inner))
        with pytest.raises(ValueError, match="are not read"):
            SequenceReader(dataset)
