"""Files that strangers made: what reaches out of a file, or promises more than it holds, is not read."""

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
from kabuki_rlds.formats.safe_hdf5 import vlen_lengths as claims_of
from tests import handmade
from tests.robustness.fuzz.watched import Opened

SECRET = b"what another file of this machine holds"


@pytest.fixture
def secret(tmp_path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    return path


def external_link(file: h5py.File, secret: Path) -> None:
    file["reward"] = h5py.ExternalLink(secret, "/reward")


def external_link_on_the_way(file: h5py.File, secret: Path) -> None:
    file["info/camera"] = h5py.ExternalLink(secret, "/")
    file["reward"] = h5py.SoftLink("/info/camera/reward")


def a_link_of_another_kind(file: h5py.File, secret: Path) -> None:
    # h5py does not make such, but the library below does for a program that says how they are followed.
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


def petabytes_in_one_piece(file: h5py.File, secret: Path) -> None:
    file.create_dataset("reward", (1 << 50,), np.float32)


def petabytes_in_many_pieces(file: h5py.File, secret: Path) -> None:
    for i in range(20):
        file.create_dataset(f"reward/{i:02}", (1 << 24,), np.float32)


def rows_of_nothing(file: h5py.File, secret: Path) -> None:
    file.create_dataset("reward", (1 << 40, 0), np.float32)


def a_filter_that_is_a_plugin(file: h5py.File, secret: Path) -> None:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((8,))
    properties.set_filter(32_015, h5py.h5z.FLAG_OPTIONAL, (3,))
    h5py.h5d.create(file.id, b"reward", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((8,)), properties)


def a_huge_chunk(file: h5py.File, secret: Path) -> None:
    file.create_dataset("reward", (8,), np.float32, maxshape=(None,), chunks=(1 << 29,), compression="gzip")


def chunks_far_larger_than_the_file(file: h5py.File, secret: Path) -> None:
    for i in range(3):
        chunks = {"maxshape": (None,), "chunks": (1 << 24,), "compression": "gzip"}
        file.create_dataset(f"reward/{i}", (8,), np.float32, **chunks)


def deflated_twice(file: h5py.File, secret: Path) -> None:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((8,))
    properties.set_deflate(9)
    properties.set_deflate(9)
    h5py.h5d.create(file.id, b"reward", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((8,)), properties)


def a_group_within_itself(file: h5py.File, secret: Path) -> None:
    inner = file.create_group("info/inner")
    inner["outer"] = file["info"]


def a_group_that_doubles(file: h5py.File, secret: Path) -> None:
    group = file.create_group("info")
    for _ in range(20):
        inner = group.create_group("left")
        group["right"] = inner
        group = inner


def groups_without_end(file: h5py.File, secret: Path) -> None:
    file.create_group("/".join(["info"] * 1000))


def a_name_that_is_not_utf8(file: h5py.File, secret: Path) -> None:
    h5py.h5g.create(file.id, b"info\xff")


def an_attribute_whose_name_is_not_utf8(file: h5py.File, secret: Path) -> None:
    h5py.h5a.create(file.id, b"name\xff", h5py.h5t.NATIVE_INT32, h5py.h5s.create_simple((1,)))


def an_absurd_attribute(file: h5py.File, secret: Path) -> None:
    file.attrs["features"] = np.zeros(16 << 20, np.int64)


def a_chunk_smaller_than_its_checksum(file: h5py.File, secret: Path) -> None:
    dataset = file.create_dataset("reward", (8,), np.float32, chunks=(8,), fletcher32=True)
    dataset.id.write_direct_chunk((0,), b"abc")


def a_checksum_before_another_filter(file: h5py.File, secret: Path) -> None:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((8,))
    properties.set_fletcher32()
    properties.set_deflate(1)
    h5py.h5d.create(file.id, b"reward", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((8,)), properties)


def links_in_a_circle(file: h5py.File, secret: Path) -> None:
    file["reward"] = h5py.SoftLink("/other")
    file["other"] = h5py.SoftLink("/reward")


def too_many_attributes(file: h5py.File, secret: Path) -> None:
    for i in range(10_001):
        file.attrs[f"a{i}"] = 0


HOSTILE: dict[Callable[[h5py.File, Path], None], str] = {
    external_link: "/reward: a link into another file",
    external_link_on_the_way: "/info/camera: a link into another file",
    a_link_of_another_kind: "/reward: a link of a kind that HDF5 does not define",
    external_storage: "/reward: stored in another file",
    virtual_dataset: "/reward: a virtual dataset",
    petabytes: "/reward: says that it holds 4,503,599,627,370,496 bytes",
    petabytes_in_one_piece: "/reward: says that it holds 4,503,599,627,370,496 bytes",
    petabytes_in_many_pieces: "/reward/16: says with those before it that they hold 1,140,850",
    rows_of_nothing: "/reward: says that it has 1,099,511,627,776 rows",
    a_filter_that_is_a_plugin: "/reward: filter 32015, which is not part of HDF5, and plugins are not loaded",
    a_huge_chunk: "/reward: chunks of 2,147,483,648 bytes",
    chunks_far_larger_than_the_file: "/reward/2: chunks of 67,108,864 bytes, 201,326,592 with those before it, in a",
    deflated_twice: "/reward: a filter that goes over its chunks more than once",
    a_group_within_itself: "/info/inner/outer: a group that stands in the file twice",
    a_group_that_doubles: "a group that stands in the file twice",
    groups_without_end: "nested more than 32 deep",
    a_name_that_is_not_utf8: "a name that is not UTF-8",
    an_attribute_whose_name_is_not_utf8: "whose name is not UTF-8",
    an_absurd_attribute: "an attribute of 134,217,728 bytes",
    a_chunk_smaller_than_its_checksum: "/reward: a chunk that is smaller than its checksum",
    a_checksum_before_another_filter: "/reward: a checksum that is not the last of its filters",
    links_in_a_circle: "a link that leads to no end",
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
def test_it_is_refused_and_what_and_where_is_said(make, reader, secret, tmp_path):
    path = tmp_path / "stranger.hdf5"
    # Attributes of more than 64 KiB are of newer HDF5 alone.
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


# --- damage that HDF5 does not survive ---


def in_bytes(path: Path, signature: bytes, change: Callable[[bytearray, int], None]) -> Path:
    """Changes what stands at the first place of a signature."""
    stored = bytearray(path.read_bytes())
    change(stored, stored.index(signature))
    path.write_bytes(stored)
    return path


def with_a_text(path: Path) -> Path:
    return handmade.write(path, handmade.fields(), {"name": "a text of variable length"})


def free_space_of_nothing(stored: bytearray, at: int) -> None:
    # The heap holds one text of 25 bytes, then the space that is left.
    free = at + 16 + 16 + 32
    assert stored[free : free + 2] == b"\0\0"
    stored[free + 8 : free + 16] = bytes(8)


def an_object_larger_than_the_heap(stored: bytearray, at: int) -> None:
    stored[at + 24 : at + 32] = b"\xff" * 8


def next_to_itself(stored: bytearray, at: int) -> None:
    stored[at + 16 : at + 24] = at.to_bytes(8, "little")


@pytest.mark.parametrize("reader", ["validate", "inspect", "convert"])
@pytest.mark.parametrize(
    ("signature", "change", "what"),
    [
        (b"GCOL", free_space_of_nothing, "heap"),
        (b"GCOL", an_object_larger_than_the_heap, "heap"),
        (b"TREE", next_to_itself, "tree"),
    ],
)
def test_what_hdf5_would_never_return_from_is_not_given_to_it(signature, change, what, reader, tmp_path):
    file = in_bytes(with_a_text(tmp_path / "f.hdf5"), signature, change)
    with pytest.raises(kabuki_rlds.KabukiError, match=f"the {what} at byte .* is damaged"):
        READERS[reader](file)


@pytest.mark.parametrize("of", ["links", "attributes"])
def test_many_names_of_which_some_are_damaged_do_not_end_the_process(of, tmp_path):
    """HDF5 1.14 dies of them where it sorts them: so in a process of its own, in which memory is looked at."""
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

    code = f"import kabuki_rlds; kabuki_rlds.validate({str(in_bytes(file, b'FHDB', change))!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "MALLOC_PERTURB_": "99"}
    )
    assert done.returncode == 1, done.stderr
    assert "f.hdf5: the HDF5 library cannot read how this file is built, it is damaged" in done.stderr


def test_what_only_looks_like_a_heap_or_a_tree_is_read(tmp_path):
    texts = np.array([b"GCOL", b"TREE", b"GCOL TREE", b"GCOL\x02"] * 2, "S12")
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields() | {"text": texts})
    assert kabuki_rlds.validate(file) == []
    # Within a heap, before what is taken for its size.
    rows = np.empty(8, object)
    rows[:] = [
        np.frombuffer(b"GCOL\x01\0\0\0ABCDEFGHIJK"[:length], np.uint8) for length in (5, 6, 8, 9, 12, 16, 18, 19)
    ]
    fields = handmade.fields() | {"text": handmade.Stored(rows, {"dtype": h5py.vlen_dtype("u1")})}
    assert kabuki_rlds.validate(handmade.write(tmp_path / "h.hdf5", fields)) == []
    # As the bytes of another file do.
    inner = np.frombuffer(with_a_text(tmp_path / "inner.hdf5").read_bytes(), np.uint8)
    file = handmade.write(tmp_path / "g.hdf5", handmade.fields() | {"files": np.tile(inner, (8, 1))})
    assert kabuki_rlds.validate(file) == []


@pytest.mark.parametrize("chunks", [None, (4,)])
def test_rows_that_say_that_they_are_longer_than_the_file_are_not_read(chunks, tmp_path):
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
    assert "they say that they hold" in violation.message
    with pytest.raises(kabuki_rlds.KabukiError, match=r"field 'more': .* they say that they hold"):
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
def test_rows_behind_any_filter_are_asked_how_long_they_say_that_they_are(shape, filters, tmp_path, monkeypatch):
    monkeypatch.setattr(claims_of, "_UNCHECKED_TEXT_BYTES", 0)
    path = handmade.write(tmp_path / "f.hdf5", handmade.fields())
    claims = np.zeros(shape, [("elements", "<u4"), ("heap", "<u8"), ("index", "<u4")])
    claims["elements"][5] = 0x7FFFFFFF
    with h5py.File(path, "r+") as file:
        # The last of the chunks is not full, and lies across the two dimensions.
        options = {"shape": shape, "chunks": (3, 2)[: len(shape)], **filters}
        # HDF5 leaves the shuffle out for rows, which a bit says of each chunk.
        of_claims = file.create_dataset("claims", data=claims, **options | {"shuffle": False})
        of_rows = file.create_dataset(
            "more", dtype=h5py.string_dtype() if shape[1:] else h5py.vlen_dtype("f8"), **options
        )
        for i in range(of_claims.id.get_num_chunks()):
            at = of_claims.id.get_chunk_info(i).chunk_offset
            mask, stored = of_claims.id.read_direct_chunk(at)
            of_rows.id.write_direct_chunk(at, stored, mask << 1 | 1 if "shuffle" in filters else mask)
        del file["claims"]
    violation = kabuki_rlds.validate(path)[0]
    assert violation.field == "more"
    assert "they say that they hold" in violation.message


@pytest.mark.parametrize("library", ["earliest", "latest"])
@pytest.mark.parametrize("values", ["a text", ["a text", "another"], [np.arange(7)]], ids=["text", "texts", "rows"])
def test_an_attribute_that_says_that_it_is_longer_than_the_file_is_not_read(values, library, tmp_path):
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
    # Its value is the number of elements, and where they stand: of the first heap, their first object.
    heap = (data.index(b"GCOL") - 512).to_bytes(8, "little")
    at = data.index(elements + heap, data.index(b"lesson"))
    path.write_bytes(data[:at] + b"\xff\xff\xff\x7f" + data[at + 4 :])
    if library == "latest":
        # Its header has a checksum, and does not hold any more.
        says = "cannot read how this file is built|checksum"
    else:
        says = "/reward: an attribute that says it holds"
    with pytest.raises(kabuki_rlds.KabukiError, match=says):
        kabuki_rlds.validate(path)


@pytest.mark.parametrize("of", ["an attribute", "a dataset"])
def test_a_type_of_variable_length_that_is_neither_sequence_nor_text_is_refused(of, tmp_path):
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
    # The class, that it is a sequence, its size, and what it is a sequence of.
    kind = b"\x19\0\0\0\x10\0\0\0\x10\0\0\0\1\0\0\0"
    assert data.count(kind) == 1
    path.write_bytes(data.replace(kind, b"\x19\x09" + kind[2:]))
    with pytest.raises(kabuki_rlds.KabukiError, match="of a type that HDF5 does not define"):
        kabuki_rlds.validate(path)


def test_an_attribute_that_cannot_be_read_is_named(tmp_path):
    def change(stored: bytearray, at: int) -> None:
        stored[at : at + 4] = b"LOST"

    file = in_bytes(with_a_text(tmp_path / "f.hdf5"), b"GCOL", change)
    with pytest.raises(kabuki_rlds.KabukiError, match=r"an attribute b'name' that cannot be read"):
        kabuki_rlds.validate(file)


def test_what_a_terminal_would_obey_is_spelt_out(tmp_path, capsys):
    fields = handmade.fields()
    bad = fields | {"\x1b[2Jgone\nkabuki-rlds: valid": np.zeros(3)}
    file = handmade.write(tmp_path / "f.hdf5", bad, {"name": "\x1b]0;title\x07"})
    assert main(["validate", str(file)]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert "\\x1b[2Jgone kabuki-rlds: valid: 3 rows, where other fields have 8" in line
    assert main(["convert", str(file), str(tmp_path / "out.hdf5")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()
    file = handmade.write(tmp_path / "g.hdf5", fields, {"name": "\x1b]0;title\x07"})
    assert main(["inspect", str(file)]) == 0
    assert capsys.readouterr().out.replace("\n", "").isprintable()


def test_a_file_makes_hdf5_look_for_no_plugin(tmp_path):
    """The library looks where the environment says when it is loaded, so this is another process."""
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    path = handmade.write(tmp_path / "f.hdf5", handmade.fields())
    with h5py.File(path, "r+") as file:
        del file["reward"]
        a_filter_that_is_a_plugin(file, path)
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
    assert done.stdout.strip() == str([str(plugins)]), "it is as it was before"
    assert opened.take() == []
    opened.close()


def test_what_is_harmless_is_read(tmp_path):
    """Links within the file, one dataset under two names, and zeros that were never stored."""
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


def test_one_place_alone_opens_files_to_read():
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
    # The demo reads its own file, to show how it is done with h5py alone.
    assert opening == {
        ("formats/safe_hdf5/open_file.py", "r"),
        ("formats/hdf5/sink.py", "w"),
        ("commands/export.py", "w"),
        ("commands/demo.py", "r"),
        # In memory alone.
        ("formats/safe_hdf5/vlen_lengths.py", "w"),
    }
