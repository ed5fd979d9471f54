"""Untrusted HDF5 files: references to other files, oversized declarations and dangerous damage are rejected."""

from __future__ import annotations

import ast
import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

import kabuki_rlds
from kabuki_rlds.cli.main import main
from kabuki_rlds.commands.export import export
from kabuki_rlds.formats.open import open_source
from kabuki_rlds.formats.safe_hdf5 import probe
from tests import handmade
from tests.robustness.fuzz.watched import Opened

SECRET = b"the content of another file of this machine"


@pytest.fixture
def secret(tmp_path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    return path


def external_link(file: h5py.File, secret: Path) -> None:
    file["reward"] = h5py.ExternalLink(secret, "/reward")


def soft_link_through_an_external_link(file: h5py.File, secret: Path) -> None:
    file["info/camera"] = h5py.ExternalLink(secret, "/")
    file["reward"] = h5py.SoftLink("/info/camera/reward")


def user_defined_link(file: h5py.File, secret: Path) -> None:
    # h5py cannot create user-defined links, so the C library is called directly.
    library = ctypes.CDLL(h5py.h5l.__file__)
    follow = ctypes.CFUNCTYPE(ctypes.c_int64)(lambda: -1)
    kind = 255

    class LinkClass(ctypes.Structure):
        _fields_ = (
            ("version", ctypes.c_int),
            ("kind", ctypes.c_int),
            ("comment", ctypes.c_char_p),
            *((name, ctypes.c_void_p) for name in ("create", "move", "copy", "follow", "delete", "query")),
        )

    described = LinkClass(1, kind, b"another", follow=ctypes.cast(follow, ctypes.c_void_p))
    assert library.H5Lregister(ctypes.byref(described)) >= 0
    group, name, default = ctypes.c_int64(file.id.id), b"reward", ctypes.c_int64(0)
    assert library.H5Lcreate_ud(group, name, kind, b"data", ctypes.c_size_t(4), default, default) >= 0
    assert library.H5Lunregister(kind) >= 0


def external_storage(file: h5py.File, secret: Path) -> None:
    file.create_dataset("reward", (8,), np.uint8, external=[(secret, 0, 8)])


def virtual_dataset(file: h5py.File, secret: Path) -> None:
    layout = h5py.VirtualLayout((8,), np.float32)
    layout[:] = h5py.VirtualSource(secret, "reward", (8,))
    file.create_virtual_dataset("reward", layout)


def petabytes(file: h5py.File, secret: Path) -> None:
    file.create_dataset("reward", (1 << 50,), np.float32, chunks=(1024,), compression="gzip")


def contiguous_petabytes(file: h5py.File, secret: Path) -> None:
    file.create_dataset("reward", (1 << 50,), np.float32)


def many_unwritten_datasets(file: h5py.File, secret: Path) -> None:
    for i in range(20):
        file.create_dataset(f"reward/{i:02}", (1 << 24,), np.float32)


def rows_of_zero_bytes(file: h5py.File, secret: Path) -> None:
    file.create_dataset("reward", (1 << 40, 0), np.float32)


def plugin_filter(file: h5py.File, secret: Path) -> None:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((8,))
    properties.set_filter(32_015, h5py.h5z.FLAG_OPTIONAL, (3,))
    h5py.h5d.create(file.id, b"reward", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((8,)), properties)


def huge_chunk(file: h5py.File, secret: Path) -> None:
    file.create_dataset("reward", (8,), np.float32, maxshape=(None,), chunks=(1 << 29,), compression="gzip")


def chunks_much_larger_than_the_file(file: h5py.File, secret: Path) -> None:
    for i in range(3):
        chunks = {"maxshape": (None,), "chunks": (1 << 24,), "compression": "gzip"}
        file.create_dataset(f"reward/{i}", (8,), np.float32, **chunks)


def deflated_twice(file: h5py.File, secret: Path) -> None:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((8,))
    properties.set_deflate(9)
    properties.set_deflate(9)
    h5py.h5d.create(file.id, b"reward", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((8,)), properties)


def group_that_contains_itself(file: h5py.File, secret: Path) -> None:
    inner = file.create_group("info/inner")
    inner["outer"] = file["info"]


def groups_with_two_hard_links(file: h5py.File, secret: Path) -> None:
    group = file.create_group("info")
    for _ in range(20):
        inner = group.create_group("left")
        group["right"] = inner
        group = inner


def deeply_nested_groups(file: h5py.File, secret: Path) -> None:
    file.create_group("/".join(["info"] * 1000))


def name_that_is_not_utf8(file: h5py.File, secret: Path) -> None:
    h5py.h5g.create(file.id, b"info\xff")


def attribute_name_that_is_not_utf8(file: h5py.File, secret: Path) -> None:
    h5py.h5a.create(file.id, b"name\xff", h5py.h5t.NATIVE_INT32, h5py.h5s.create_simple((1,)))


def huge_attribute(file: h5py.File, secret: Path) -> None:
    file.attrs["features"] = np.zeros(16 << 20, np.int64)


def chunk_smaller_than_its_checksum(file: h5py.File, secret: Path) -> None:
    dataset = file.create_dataset("reward", (8,), np.float32, chunks=(8,), fletcher32=True)
    dataset.id.write_direct_chunk((0,), b"abc")


def checksum_before_another_filter(file: h5py.File, secret: Path) -> None:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((8,))
    properties.set_fletcher32()
    properties.set_deflate(1)
    h5py.h5d.create(file.id, b"reward", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((8,)), properties)


def cyclic_soft_links(file: h5py.File, secret: Path) -> None:
    file["reward"] = h5py.SoftLink("/other")
    file["other"] = h5py.SoftLink("/reward")


def too_many_attributes(file: h5py.File, secret: Path) -> None:
    for i in range(10_001):
        file.attrs[f"a{i}"] = 0


HOSTILE: dict[Callable[[h5py.File, Path], None], str] = {
    external_link: "/reward: external link to '",
    soft_link_through_an_external_link: "/info/camera: external link to '",
    user_defined_link: "/reward: unknown link type",
    external_storage: "/reward: external storage in '",
    virtual_dataset: "/reward: virtual dataset",
    petabytes: "/reward: declares 4,503,599,627,370,496 bytes",
    contiguous_petabytes: "/reward: declares 4,503,599,627,370,496 bytes",
    many_unwritten_datasets: "/reward/16: this and earlier datasets declare 1,140,850",
    rows_of_zero_bytes: "/reward: declares 1,099,511,627,776 rows",
    plugin_filter: "/reward: filter 32015 needs a plugin, and plugins are not loaded",
    huge_chunk: "/reward: chunks of 2,147,483,648 bytes",
    chunks_much_larger_than_the_file: "/reward/2: chunks of 67,108,864 bytes (201,326,592 with earlier datasets) in a",
    deflated_twice: "/reward: the same filter is applied more than once",
    group_that_contains_itself: "/info/inner/outer: this group has two hard links, or contains itself",
    groups_with_two_hard_links: "this group has two hard links, or contains itself",
    deeply_nested_groups: "nested more than 32 deep",
    name_that_is_not_utf8: "the name is not valid UTF-8",
    attribute_name_that_is_not_utf8: "the name of the attribute b'name\\xff' is not valid UTF-8",
    huge_attribute: "the attribute b'features' has 134,217,728 bytes",
    chunk_smaller_than_its_checksum: "/reward: a chunk is smaller than its checksum",
    checksum_before_another_filter: "/reward: the checksum is not the last filter",
    cyclic_soft_links: "endless chain of soft links",
    too_many_attributes: "10,001 attributes",
}

READERS: dict[str, Callable[[Path], object]] = {
    "validate": kabuki_rlds.validate,
    "inspect": kabuki_rlds.inspect,
    "convert": lambda path: kabuki_rlds.convert(path, path.with_name("out.hdf5")),
    "build": lambda path: kabuki_rlds.build(path, path.with_name("built")),
    "load": lambda path: kabuki_rlds.load(path),
    "load_steps": lambda path: kabuki_rlds.load_steps(path, 4),
    "load_windows": lambda path: kabuki_rlds.load_windows(path, 4, length=2, as_numpy=True),
    "compare": lambda path: kabuki_rlds.compare(path, path),
    "export": lambda path: export(path, path.with_name("out.hdf5"), "d4rl"),
    "source": open_source,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_unsafe_file_is_rejected_with_location_and_reason(make, reader, secret, tmp_path):
    path = tmp_path / "unsafe.hdf5"
    # Attributes of more than 64 KiB need the newer file format.
    with h5py.File(path, "w", libver="latest") as file:
        for name, column in handmade.fields().items():
            if name != "reward":
                file[name] = column
        make(file, secret)
    with pytest.raises(kabuki_rlds.KabukiError) as error:
        READERS[reader](path)
    assert str(error.value).startswith(f"{path}: ")
    assert HOSTILE[make] in str(error.value)
    assert "\n" not in str(error.value)
    assert not path.with_name("out.hdf5").exists()


# --- damage that crashes or hangs HDF5 ---


def damage_at(path: Path, signature: bytes, change: Callable[[bytearray, int], None]) -> Path:
    """Calls `change(bytes of the file, offset of the first occurrence of the signature)`."""
    stored = bytearray(path.read_bytes())
    change(stored, stored.index(signature))
    path.write_bytes(stored)
    return path


def file_with_string_attribute(path: Path) -> Path:
    return handmade.write(path, handmade.fields(), {"name": "a text of variable length"})


def free_space_of_size_zero(stored: bytearray, at: int) -> None:
    # The heap holds one string of 25 bytes, then the free space.
    free = at + 16 + 16 + 32
    assert stored[free : free + 2] == b"\0\0"
    stored[free + 8 : free + 16] = bytes(8)


def object_larger_than_the_heap(stored: bytearray, at: int) -> None:
    stored[at + 24 : at + 32] = b"\xff" * 8


def node_linked_to_itself(stored: bytearray, at: int) -> None:
    stored[at + 16 : at + 24] = at.to_bytes(8, "little")


@pytest.mark.parametrize("reader", ["validate", "inspect", "convert"])
@pytest.mark.parametrize(
    ("signature", "change"),
    [(b"GCOL", free_space_of_size_zero), (b"GCOL", object_larger_than_the_heap), (b"TREE", node_linked_to_itself)],
)
def test_structure_that_hangs_hdf5_is_rejected(signature, change, reader, tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "MAX_CPU_SECONDS", 1)
    file = damage_at(file_with_string_attribute(tmp_path / "f.hdf5"), signature, change)
    # Some versions of HDF5 detect the damage.
    with pytest.raises(kabuki_rlds.DamagedDataError, match=r"takes too long|cannot (be )?read"):
        READERS[reader](file)


@pytest.mark.parametrize("of", ["links", "attributes"])
def test_damaged_names_do_not_crash_the_process(of, tmp_path):
    """HDF5 1.14 crashes when it sorts damaged names: then the process that probes files does."""
    file = tmp_path / "f.hdf5"
    with h5py.File(file, "w", libver="latest") as made:
        for name, column in handmade.fields().items():
            made[name] = column
        for i in range(20):
            if of == "links":
                made[f"more_{i:02}"] = made["reward"]
            else:
                made.attrs[f"more_{i:02}"] = i
    assert kabuki_rlds.validate(file) == []

    def change(stored: bytearray, at: int) -> None:
        at = stored.index(b"more_07", at)
        stored[at : at + 30] = bytes(30)

    code = f"import kabuki_rlds; kabuki_rlds.validate({str(damage_at(file, b'FHDB', change))!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "MALLOC_PERTURB_": "99"}
    )
    assert done.returncode == 1, done.stderr
    reasons = ("damaged: the HDF5 library cannot read the structure of the file", "crashes the HDF5 library")
    assert any(f"f.hdf5: {reason}" in done.stderr for reason in reasons)


def test_data_that_contains_heap_and_btree_signatures_is_accepted(tmp_path):
    texts = np.array([b"GCOL", b"TREE", b"GCOL TREE", b"GCOL\x02"] * 2, "S12")
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields() | {"text": texts})
    assert kabuki_rlds.validate(file) == []
    # A signature in the data of a heap, followed by bytes that would be its size.
    rows = np.empty(8, object)
    rows[:] = [
        np.frombuffer(b"GCOL\x01\0\0\0ABCDEFGHIJK"[:length], np.uint8) for length in (5, 6, 8, 9, 12, 16, 18, 19)
    ]
    fields = handmade.fields() | {"text": handmade.Stored(rows, {"dtype": h5py.vlen_dtype("u1")})}
    assert kabuki_rlds.validate(handmade.write(tmp_path / "h.hdf5", fields)) == []
    # A whole HDF5 file as data.
    inner = np.frombuffer(file_with_string_attribute(tmp_path / "inner.hdf5").read_bytes(), np.uint8)
    file = handmade.write(tmp_path / "g.hdf5", handmade.fields() | {"files": np.tile(inner, (8, 1))})
    assert kabuki_rlds.validate(file) == []


def second_object_is_free_space_of_size_zero(stored: bytearray, at: int) -> None:
    # The header of the heap, and an object of 20 numbers with its header.
    second = at + 16 + 16 + 160
    assert stored[second : second + 2] == b"\2\0"
    stored[second : second + 16] = bytes(16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (second_object_is_free_space_of_size_zero, "row 1: the heap at address .* has no object 2"),
        (object_larger_than_the_heap, "row 0: object 1 reaches beyond the end of its heap"),
    ],
)
def test_damaged_heap_of_rows_is_one_error_that_names_the_row(change, message, tmp_path):
    rows = np.empty(8, object)
    rows[:] = [np.arange(20 + i, dtype=np.float64) for i in range(8)]
    fields = handmade.fields() | {"more": handmade.Stored(rows, {"dtype": h5py.vlen_dtype("f8")})}
    path = damage_at(handmade.write(tmp_path / "f.hdf5", fields), b"GCOL", change)
    (violation,) = kabuki_rlds.validate(path)
    assert violation.field == "more"
    with pytest.raises(kabuki_rlds.KabukiError, match=f"f.hdf5: field 'more': .*{message}"):
        kabuki_rlds.convert(path, tmp_path / "out.hdf5")
    with pytest.raises(kabuki_rlds.KabukiError, match=f"f.hdf5: field 'more': .*{message}"):
        next(iter(kabuki_rlds.load_steps(path, 4, as_numpy=True)))
    with pytest.raises(kabuki_rlds.KabukiError, match=f"f.hdf5: .*field 'more': .*{message}"):
        kabuki_rlds.dataset(path)[1]


@pytest.mark.parametrize("chunks", [None, (4,)])
def test_rows_that_declare_more_bytes_than_the_file_are_rejected(chunks, tmp_path):
    rows = np.empty(8, object)
    rows[:] = [np.ones(6 + i) for i in range(8)]
    options = {"dtype": h5py.vlen_dtype("f8"), "chunks": chunks}
    fields = handmade.fields() | {"more": handmade.Stored(rows, options)}
    path = handmade.write(tmp_path / "f.hdf5", fields)
    assert kabuki_rlds.validate(path) == []
    with h5py.File(path) as file:
        dataset = file["more"].id
        at = dataset.get_offset() if chunks is None else dataset.get_chunk_info(0).byte_offset
    stored = bytearray(path.read_bytes())
    assert stored[at : at + 4] == (6).to_bytes(4, "little")
    stored[at : at + 4] = b"\xff\xff\xff\x7f"
    path.write_bytes(stored)
    (violation,) = kabuki_rlds.validate(path)
    assert (violation.rule, violation.field) == (1, "more")
    assert "the rows declare" in violation.message
    with pytest.raises(kabuki_rlds.KabukiError, match=r"field 'more': .* the rows declare"):
        kabuki_rlds.convert(path, tmp_path / "out.hdf5")


@pytest.mark.parametrize(
    "filters",
    [
        {"compression": "gzip"},
        {"compression": "gzip", "shuffle": True},
        {"compression": "lzf"},
        {"shuffle": True, "compression": "lzf"},
    ],
    ids=lambda filters: "-".join(map(str, filters)),
)
@pytest.mark.parametrize("shape", [(8,), (8, 3)], ids=str)
def test_declared_row_lengths_are_checked_behind_any_filter(shape, filters, tmp_path):
    path = handmade.write(tmp_path / "f.hdf5", handmade.fields())
    references = np.zeros(shape, [("elements", "<u4"), ("heap", "<u8"), ("index", "<u4")])
    references["elements"][5] = 0x7FFFFFFF
    with h5py.File(path, "r+") as file:
        # The last chunk of each dimension is only partly filled.
        options = {"shape": shape, "chunks": (3, 2)[: len(shape)], **filters}
        # HDF5 skips the shuffle filter for variable-length rows, and marks this in the filter mask of each chunk.
        source = file.create_dataset("references", data=references, **options | {"shuffle": False})
        rows = file.create_dataset("more", dtype=h5py.string_dtype() if shape[1:] else h5py.vlen_dtype("f8"), **options)
        for i in range(source.id.get_num_chunks()):
            at = source.id.get_chunk_info(i).chunk_offset
            mask, stored = source.id.read_direct_chunk(at)
            rows.id.write_direct_chunk(at, stored, mask << 1 | 1 if "shuffle" in filters else mask)
        del file["references"]
    violation = kabuki_rlds.validate(path)[0]
    assert violation.field == "more"
    assert "the rows declare" in violation.message


@pytest.mark.parametrize("library", ["earliest", "latest"])
@pytest.mark.parametrize("values", ["a text", ["a text", "another"], [np.arange(7)]], ids=["text", "texts", "rows"])
def test_attribute_that_declares_more_bytes_than_the_file_is_rejected(values, library, tmp_path):
    path = tmp_path / "f.hdf5"
    with h5py.File(path, "w", libver=library, userblock_size=512) as file:
        for name, column in handmade.fields().items():
            file[name] = column
        is_text = not isinstance(values[0], np.ndarray)
        stored = np.empty(1, object)
        stored[:] = values if not is_text else ""
        dtype = h5py.string_dtype() if is_text else h5py.vlen_dtype("i8")
        file["reward"].attrs.create("before", 3)
        file["reward"].attrs.create("lesson", values if is_text else stored, dtype=dtype)
    assert kabuki_rlds.validate(path) == []
    elements = (6 if is_text else 7).to_bytes(4, "little")
    data = path.read_bytes()
    # The stored value is the number of elements and their address: the first object of the first heap.
    heap = (data.index(b"GCOL") - 512).to_bytes(8, "little")
    at = data.index(elements + heap, data.index(b"lesson"))
    path.write_bytes(data[:at] + b"\xff\xff\xff\x7f" + data[at + 4 :])
    if library == "latest":
        # The header has a checksum, which is now wrong.
        message = "cannot read the structure of the file|checksum"
    else:
        message = "/reward: the attribute b'lesson' cannot be read"
    with pytest.raises(kabuki_rlds.KabukiError, match=message):
        kabuki_rlds.validate(path)


@pytest.mark.parametrize("of", ["an attribute", "a dataset"])
def test_variable_length_type_of_an_undefined_kind_is_rejected(of, tmp_path):
    path = handmade.write(tmp_path / "f.hdf5", handmade.fields())
    rows = np.empty(8, object)
    rows[:] = [np.arange(5, dtype=np.uint8)] * 8
    with h5py.File(path, "r+") as file:
        if of == "a dataset":
            file.create_dataset("more", data=rows, dtype=h5py.vlen_dtype("u1"))
        else:
            file["reward"].attrs.create("more", rows, dtype=h5py.vlen_dtype("u1"))
    assert kabuki_rlds.validate(path) == []
    data = path.read_bytes()
    # Encoded type: class, kind (sequence), size, element type.
    kind = b"\x19\0\0\0\x10\0\0\0\x10\0\0\0\1\0\0\0"
    assert data.count(kind) == 1
    path.write_bytes(data.replace(kind, b"\x19\x09" + kind[2:]))
    with pytest.raises(kabuki_rlds.KabukiError, match="has an undefined HDF5 type"):
        kabuki_rlds.validate(path)


def test_unreadable_attribute_is_named(tmp_path):
    def change(stored: bytearray, at: int) -> None:
        stored[at : at + 4] = b"LOST"

    file = damage_at(file_with_string_attribute(tmp_path / "f.hdf5"), b"GCOL", change)
    with pytest.raises(kabuki_rlds.KabukiError, match=r"the attribute b'name' cannot be read"):
        kabuki_rlds.validate(file)


def test_terminal_control_characters_are_escaped(tmp_path, capsys):
    fields = handmade.fields()
    bad = fields | {"\x1b[2Jgone\nkabuki-rlds: valid": np.zeros(3)}
    file = handmade.write(tmp_path / "f.hdf5", bad, {"name": "\x1b]0;title\x07"})
    assert main(["validate", str(file)]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert "\\x1b[2Jgone kabuki-rlds: valid: has 3 rows, expected 8 as in other fields" in line
    assert main(["convert", str(file), str(tmp_path / "out.hdf5")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()
    file = handmade.write(tmp_path / "g.hdf5", fields, {"name": "\x1b]0;title\x07"})
    assert main(["inspect", str(file)]) == 0
    assert capsys.readouterr().out.replace("\n", "").isprintable()


def test_hdf5_does_not_search_for_plugins(tmp_path):
    """Runs in a child process, because HDF5 reads `HDF5_PLUGIN_PATH` when it is loaded."""
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    path = handmade.write(tmp_path / "f.hdf5", handmade.fields())
    with h5py.File(path, "r+") as file:
        del file["reward"]
        plugin_filter(file, path)
    code = f"""
import h5py, kabuki_rlds
try:
    kabuki_rlds.validate({str(path)!r})
except kabuki_rlds.KabukiError:
    print([h5py.h5pl.get(i).decode() for i in range(h5py.h5pl.size())])
"""
    opened = Opened(plugins)
    environment = {**os.environ, "HDF5_PLUGIN_PATH": str(plugins)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([str(plugins)]), "the plugin path was not restored"
    assert opened.take() == []
    opened.close()


def test_internal_links_and_unwritten_zeros_are_accepted(tmp_path):
    """The file has a soft link, one dataset with two names, and zeros that were never stored."""
    path = handmade.write(tmp_path / "f.hdf5", handmade.fields())
    with h5py.File(path, "r+") as file:
        file["same"] = h5py.SoftLink("/reward")
        file["again"] = file["reward"]
        file.create_dataset("zeros", (8, 1 << 20), np.float16, chunks=(1, 1 << 20), compression="gzip")
    assert kabuki_rlds.validate(path) == []
    out = kabuki_rlds.convert(path, tmp_path / "out.hdf5").path
    with h5py.File(out) as file:
        assert (file["same"][:] == file["reward"][:]).all()
        assert (file["again"][:] == file["reward"][:]).all()
        assert not file["zeros"][:].any()


def test_only_open_file_opens_hdf5_files():
    package = Path(kabuki_rlds.__file__).parent
    opening = set()
    for module in package.rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called in ("h5py.File", "File") or called.endswith("h5f.open"):
                modes = [argument.value for argument in node.args[1:] if isinstance(argument, ast.Constant)]
                opening.add((module.relative_to(package).as_posix(), *modes))
    # The demo shows how to read its own file with h5py.
    assert opening == {
        ("formats/safe_hdf5/open_file.py", "r"),
        ("formats/safe_hdf5/probe_worker.py", "r"),
        ("formats/hdf5/sink.py", "w"),
        ("formats/hdf5/appending_sink.py", "r+"),
        ("formats/demos/demo_sink.py", "w"),
        ("commands/demo.py", "r"),
        # Only in memory.
        ("formats/hdf5/stored_chunks.py", "w"),
    }
