"""Unusual or hostile Kabuki HDF5 files: each is read correctly, or rejected with an error of one line."""

from __future__ import annotations

import importlib
from pathlib import Path

import h5py
import numpy as np
import pytest

import kabuki_rlds
from kabuki_rlds import KabukiError
from kabuki_rlds.data import schema
from kabuki_rlds.formats.hdf5 import layout
from kabuki_rlds.formats.hdf5.sink import KabukiSink
from kabuki_rlds.formats.hdf5.source import KabukiSource
from kabuki_rlds.formats.hdf5.variable_reader import VariableReader
from kabuki_rlds.images import png
from tests import handmade
from tests.handmade import Stored

# The package has a function of this name.
validation = importlib.import_module("kabuki_rlds.commands.validate_file")


def kabuki_file(path: Path, **more) -> Path:
    return handmade.write(path, handmade.fields() | handmade.index() | more, handmade.attributes())


def read_all(file: Path, folder: Path) -> None:
    """Reads a file with every reader. A reader may raise `KabukiError` with the path of the file."""
    for read in (
        kabuki_rlds.validate,
        kabuki_rlds.inspect,
        lambda path: kabuki_rlds.convert(path, folder / "out.hdf5", overwrite=True),
        lambda path: list(kabuki_rlds.load_steps(path, 3, as_numpy=True)),
    ):
        try:
            read(file)
        except KabukiError as e:
            assert str(file) in str(e)


# --- types without a NumPy equivalent ---


@pytest.mark.parametrize("name", sorted(handmade.attributes()))
def test_attribute_of_a_type_without_numpy_equivalent_is_ignored_with_a_warning(name, tmp_path, caplog):
    file = kabuki_file(tmp_path / "f.hdf5")
    with h5py.File(file, "r+") as opened:
        del opened.attrs[name]
        h5py.h5a.create(opened.id, name.encode(), h5py.h5t.UNIX_D32LE, h5py.h5s.create(h5py.h5s.SCALAR))
    read_all(file, tmp_path)
    caplog.clear()
    assert kabuki_rlds.validate(file) == []
    assert f"'{name}' of / (times)" in caplog.text


@pytest.mark.parametrize("name", ["reward", *handmade.index()])
def test_dataset_of_a_type_without_numpy_equivalent_is_a_violation(name, tmp_path):
    file = kabuki_file(tmp_path / "f.hdf5")
    with h5py.File(file, "r+") as opened:
        space = opened[name].id.get_space()
        del opened[name]
        h5py.h5d.create(opened.id, name.encode(), h5py.h5t.UNIX_D32LE, space)
    read_all(file, tmp_path)
    assert name in [violation.field for violation in kabuki_rlds.validate(file)]


# --- number types with another bit layout than NumPy's ---


def int12() -> h5py.h5t.TypeID:
    kind = h5py.h5t.STD_I16LE.copy()
    kind.set_precision(12)
    return kind


def int12_with_offset() -> h5py.h5t.TypeID:
    kind = int12()
    kind.set_offset(2)
    return kind


def with_exponent_bias(kind: h5py.h5t.TypeID, bias: int) -> h5py.h5t.TypeID:
    kind = kind.copy()
    kind.set_ebias(bias)
    return kind


TYPES = {
    "int12": int12,
    "int12 with offset": int12_with_offset,
    "float32 with another exponent bias": lambda: with_exponent_bias(h5py.h5t.IEEE_F32LE, 120),
    "float16 with another exponent bias": lambda: with_exponent_bias(h5py.h5t.IEEE_F16LE, 10),
    "bfloat16 with another exponent bias": lambda: with_exponent_bias(layout.element_type(schema.BFLOAT16), 120),
}


@pytest.mark.parametrize("name", TYPES)
def test_nonstandard_number_types_are_converted_by_hdf5(name, tmp_path):
    values = np.array([-5, 3, -1, 7, 0, -100, 100, 1], np.int16)
    file = kabuki_file(tmp_path / "f.hdf5")
    with h5py.File(file, "r+") as opened:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((4,))
        properties.set_deflate(1)
        more = h5py.h5d.create(opened.id, b"more", TYPES[name](), h5py.h5s.create_simple((8,)), properties)
        more.write(h5py.h5s.ALL, h5py.h5s.ALL, values)
    assert kabuki_rlds.validate(file) == []
    with h5py.File(kabuki_rlds.convert(file, tmp_path / "out.hdf5").path) as opened:
        assert opened["more"][:].tolist() == values.tolist()
    (batch,) = kabuki_rlds.load_steps(file, 8, keep_last=True, shuffle=True, seed=1, as_numpy=True)
    assert sorted(batch["more"].tolist()) == sorted(values.tolist())


@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}, {"fletcher32": True}], ids=str)
def test_boolean_other_than_0_or_1_is_rejected(options, tmp_path):
    more = np.zeros(8, bool)
    more[3] = True
    file = kabuki_file(tmp_path / "f.hdf5", more=Stored(more, {"chunks": (8,), **options}))
    with h5py.File(file, "r+") as opened:
        # Writing uint8 stores a value other than 0 and 1.
        opened["more"].id.write(h5py.h5s.ALL, h5py.h5s.ALL, more * np.uint8(2), mtype=opened["more"].id.get_type())
    assert [violation.field for violation in kabuki_rlds.validate(file)] == ["more"]
    with pytest.raises(KabukiError, match=r"'more': .*a boolean is neither 0 nor 1"):
        kabuki_rlds.convert(file, tmp_path / "out.hdf5")


@pytest.mark.parametrize("text", [np.array([b"False"] * 8), np.array([f"{i > 2}" for i in range(8)], object)])
def test_text_flags_do_not_mark_episode_starts(text, tmp_path):
    texts = text if text.dtype.kind == "S" else Stored(text, {"dtype": h5py.string_dtype()})
    fields = handmade.fields() | {"is_first": texts}
    assert kabuki_rlds.inspect(handmade.write(tmp_path / "f.hdf5", fields)).num_episodes == len(handmade.LENGTHS)
    with pytest.raises(KabukiError, match="cannot find the episodes"):
        kabuki_rlds.inspect(handmade.write(tmp_path / "g.hdf5", fields | {"is_last": texts}))


def test_flags_of_shape_n_by_1_mark_episode_starts(tmp_path):
    fields = handmade.fields()
    file = handmade.write(tmp_path / "f.hdf5", fields | {"is_first": fields["is_first"][:, None]})
    assert kabuki_rlds.inspect(file).num_episodes == len(handmade.LENGTHS)


def test_row_of_many_texts_round_trips(tmp_path):
    texts = np.zeros((8, 70_000), "S1")
    texts[5, 69_999] = b"x"
    file = kabuki_file(tmp_path / "f.hdf5", more=Stored(texts, {"chunks": (1, 70_000), "compression": "gzip"}))
    copy = kabuki_rlds.convert(file, tmp_path / "out.hdf5").path
    assert kabuki_rlds.validate(copy) == []
    with h5py.File(copy) as opened:
        assert opened["more"][5, 69_998:].tolist() == [b"", b"x"]


# --- attributes of fields ---


def convert_field(path: Path, values, options=None, **attributes):
    file = kabuki_file(path, more=Stored(values, options or {}, attributes))
    return kabuki_rlds.convert(file, path.with_name("out.hdf5")).path


def test_single_class_name_is_not_split_into_characters(tmp_path):
    copy = convert_field(tmp_path / "f.hdf5", np.zeros(8, int), kind="label", class_names="cat")
    with h5py.File(copy) as file:
        assert file["more"].attrs["class_names"].tolist() == ["cat"]


def test_companion_attribute_may_be_fixed_length_text(tmp_path):
    more = Stored(np.zeros(8, int), {}, {"kind": "label", "companion": np.bytes_("/companion/more")})
    file = kabuki_file(tmp_path / "f.hdf5", more=more, **{"companion/more/class_names": [b"cat", b"dog"]})
    with h5py.File(kabuki_rlds.convert(file, tmp_path / "out.hdf5").path) as opened:
        assert opened["more"].attrs["class_names"].tolist() == ["cat", "dog"]


def test_text_in_the_encoded_attribute_is_ignored(tmp_path):
    rows = np.empty(8, object)
    rows[:] = [np.arange(i, dtype=np.uint8) for i in range(8)]
    options = {"dtype": h5py.vlen_dtype(np.uint8)}
    copy = convert_field(tmp_path / "f.hdf5", rows, options, kind="image", shape=[-1, 1, 1], encoded="false")
    with h5py.File(copy) as file:
        assert "encoded" not in file["more"].attrs and file["more"][3].tolist() == [0, 1, 2]


def test_kind_text_is_ignored_for_numbers(tmp_path):
    copy = convert_field(tmp_path / "f.hdf5", np.arange(8.0), kind="text")
    with h5py.File(copy) as file:
        assert "kind" not in file["more"].attrs and file["more"][3] == 3
    assert "float64" in {c.path: c.holds for c in kabuki_rlds.inspect(copy).columns}["more"]


def test_variable_length_rows_of_rank_2_are_rejected(tmp_path):
    file = kabuki_file(tmp_path / "f.hdf5")
    with h5py.File(file, "r+") as opened:
        opened.create_dataset("more", (8, 3), h5py.vlen_dtype("f4"))
    with pytest.raises(KabukiError, match=r"f.hdf5: dataset '/more': .*variable-length"):
        kabuki_rlds.convert(file, tmp_path / "out.hdf5")


# --- rows larger than the file ---


def test_texts_that_share_one_heap_object_are_rejected(tmp_path):
    count = 20_000
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields((count,), (True,)))
    with h5py.File(file, "r+") as opened:
        texts = opened.create_dataset("more", (count,), h5py.string_dtype(), chunks=(count,))
        texts[0] = "x" * (1 << 20)
    with h5py.File(file, "r+") as opened:
        _, stored = opened["more"].id.read_direct_chunk((0,))
        opened["more"].id.write_direct_chunk((0,), stored[:16] * count)
    with pytest.raises(KabukiError, match=r"'more': .* the rows declare 20,971,520,000 bytes"):
        kabuki_rlds.convert(file, tmp_path / "out.hdf5")
    assert [violation.field for violation in kabuki_rlds.validate(file)] == ["more"]
    with pytest.raises(KabukiError, match=r"'more': .* the rows declare"):
        next(iter(kabuki_rlds.load_steps(file, 1 << 14, as_numpy=True)))


def test_texts_of_valid_length_are_read(tmp_path):
    rows = np.array([[f"{i} {'é' * 300}", ""] for i in range(8)], object)
    options = {"dtype": h5py.string_dtype()}
    for name, how in {"chunked": options | {"chunks": (3, 1), "compression": "gzip"}, "contiguous": options}.items():
        file = kabuki_file(tmp_path / f"{name}.hdf5", more=Stored(rows, how))
        assert kabuki_rlds.validate(file) == []
        (batch,) = kabuki_rlds.load_steps(file, 8, keep_last=True, as_numpy=True)
        assert [text.decode() for text in batch["more"].reshape(-1)] == rows.reshape(-1).tolist()


@pytest.mark.parametrize("read", [kabuki_rlds.validate, lambda path: len(list(KabukiSource(path).blocks()))])
def test_highly_compressed_text_is_read_a_few_rows_at_a_time(read, tmp_path, monkeypatch):
    most = []
    whole = VariableReader.read
    monkeypatch.setattr(
        VariableReader,
        "read",
        lambda self, start, stop: most.append(stop - start) or whole(self, start, stop),  # type: ignore[func-returns-value]
    )
    texts = Stored(np.full(64, b"x" * (1 << 20)), {"chunks": (1,), "compression": "gzip"})
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields((64,), (True,)) | {"more": texts})
    read(file)
    assert sum(most) == 64 and max(most) <= 16


def test_image_files_are_validated_a_few_rows_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "_READ_BYTES", 1 << 16)
    monkeypatch.setattr(validation, "_READ_ROWS", 1 << 16)
    most = []
    whole = VariableReader.read
    monkeypatch.setattr(
        VariableReader,
        "read",
        lambda self, start, stop: most.append(stop - start) or whole(self, start, stop),  # type: ignore[func-returns-value]
    )
    rows = np.empty(64, object)
    noise = np.random.default_rng(0).integers(0, 256, (37, 37, 3), np.uint8)
    rows[:] = [np.frombuffer(png.file(noise), np.uint8)] * 64
    image = {"kind": "image", "encoded": True, "dtype": "uint8", "shape": [-1, -1, 3]}
    more = Stored(rows, {"dtype": h5py.vlen_dtype(np.uint8)}, image)
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields((64,), (True,)) | {"more": more})
    assert kabuki_rlds.validate(file) == []
    assert sum(most) == 64 and max(most) <= 16


# --- links ---


#: Soft links (path to target group; the last target holds a field), and the expected message.
LINKS = {
    "exponentially many paths": (
        {f"group{i}/{name}": f"/group{i + 1}" for i in range(24) for name in "ab"},
        "too many links to the same groups",
    ),
    "every group links to every group": (
        {f"group{i}/to{j}": f"/group{j}" for i in range(12) for j in range(12)},
        "too many links to the same groups",
    ),
    "nested too deep": ({f"group{i}/on": f"/group{i + 1}" for i in range(2000)}, "more than 32 deep"),
}


@pytest.mark.parametrize("case", LINKS)
def test_soft_links_with_too_many_or_too_deep_paths_are_rejected(case, tmp_path):
    links, message = LINKS[case]
    file = kabuki_file(tmp_path / "f.hdf5")
    with h5py.File(file, "r+") as opened:
        for path, target in links.items():
            opened[path] = h5py.SoftLink(target)
        opened.require_group(target)["more"] = np.zeros(8)
    with pytest.raises(KabukiError, match=message):
        kabuki_rlds.inspect(file)


def test_soft_link_to_a_group_is_read_as_a_group(tmp_path):
    file = kabuki_file(tmp_path / "f.hdf5", **{"images/front": np.arange(8), "images/back": np.arange(8)})
    with h5py.File(file, "r+") as opened:
        opened["more/pictures"] = h5py.SoftLink("/images")
    copy = kabuki_rlds.convert(file, tmp_path / "out.hdf5").path
    with h5py.File(copy) as opened:
        assert opened["more/pictures/front"][3] == opened["images/back"][3] == 3


# --- data that conversion cannot keep ---


def test_convert_warns_about_data_that_it_leaves_out(tmp_path, caplog):
    file = kabuki_file(tmp_path / "f.hdf5", **{"episodes/task": np.arange(3), "companion": np.zeros(2)})
    with h5py.File(file, "r+") as opened:
        opened.attrs["license"] = "MIT"
        opened["reward"].attrs["unit"] = "points"
        opened["episodes/metadata/seed"].attrs["of"] = "the environment"
    kabuki_rlds.convert(file, tmp_path / "out.hdf5")
    (told,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert told.partition("for it: ")[2] == (
        "'episodes/task', 'companion', the attribute 'license', the attribute 'unit' of 'reward', "
        "the attribute 'of' of 'seed'"
    )
    caplog.clear()
    kabuki_rlds.convert(tmp_path / "out.hdf5", tmp_path / "again.hdf5")
    assert not [record for record in caplog.records if "left out" in record.getMessage()]


@pytest.mark.parametrize("name", ["episodes", "episodes/metadata"])
def test_convert_warns_about_a_dataset_named_like_a_reserved_group(name, tmp_path, caplog):
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields() | {name: np.arange(3)})
    kabuki_rlds.convert(file, tmp_path / "out.hdf5")
    assert f"no place for it: {name!r}" in caplog.text


def test_attribute_text_with_nul_or_surrogate_is_replaced_with_a_warning(tmp_path, caplog):
    info = schema.Info(description="a\0b", citation="\ud800")
    with KabukiSink(tmp_path / "f.hdf5", schema.Schema({}, {}, info=info), []) as writer:
        writer.commit()
    with h5py.File(tmp_path / "f.hdf5") as file:
        assert (file.attrs["description"], file.attrs["citation"]) == ("a\N{REPLACEMENT CHARACTER}b", "?")
    assert "'description'" in caplog.text and "'citation'" in caplog.text


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_class_names_with_nul_or_surrogate_are_rejected(name, tmp_path):
    label = schema.Field(np.dtype(int), kind="label", names=(name,))
    with pytest.raises(KabukiError, match="field 'more': HDF5 cannot store the attributes of the field"):
        KabukiSink(tmp_path / "f.hdf5", schema.Schema({"more": label}, {}), [])
    assert not list(tmp_path.iterdir())
