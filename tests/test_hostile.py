"""Files that strangers made: what reaches out of a file, or promises more than it holds, is not read."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

import kabuki_rlds
from tests import handmade

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


def a_huge_chunk(file: h5py.File, secret: Path) -> None:
    file.create_dataset("reward", (8,), np.float32, maxshape=(None,), chunks=(1 << 29,), compression="gzip")


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


HOSTILE: dict[Callable[[h5py.File, Path], None], str] = {
    external_link: "/reward: a link into another file",
    external_link_on_the_way: "/info/camera: a link into another file",
    external_storage: "/reward: stored in another file",
    virtual_dataset: "/reward: a virtual dataset",
    petabytes: "/reward: says that it holds 4,503,599,627,370,496 bytes",
    petabytes_in_one_piece: "/reward: says that it holds 4,503,599,627,370,496 bytes",
    a_huge_chunk: "/reward: chunks of 2,147,483,648 bytes",
    deflated_twice: "/reward: a filter that goes over its chunks more than once",
    a_group_within_itself: "/info/inner/outer: a group that stands in the file twice",
    a_group_that_doubles: "a group that stands in the file twice",
    groups_without_end: "nested more than 32 deep",
    a_name_that_is_not_utf8: "a name that is not UTF-8",
    an_attribute_whose_name_is_not_utf8: "whose name is not UTF-8",
    an_absurd_attribute: "an attribute of 134,217,728 bytes",
}

READERS: dict[str, Callable[[Path], object]] = {
    "validate": kabuki_rlds.validate,
    "inspect": kabuki_rlds.inspect,
    "convert": lambda path: kabuki_rlds.convert(path, path.with_name("out.hdf5")),
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
    assert opening == {("formats/hdf5/file.py", "r"), ("formats/hdf5/writer.py", "w"), ("demo.py", "r")}
