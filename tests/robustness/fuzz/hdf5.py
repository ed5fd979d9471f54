"""Searches for HDF5 files that break the package.

    python -m tests.robustness.fuzz.hdf5 [--inputs 10000] [--seed 0] [--keep DIR]

Small valid files of every kind and every layout are changed, a few places each, where
HDF5 keeps what it knows of a file: or through HDF5 itself, so that the file is
well-formed and what it holds is not. Each is validated, inspected and converted in a
process that is watched.

A long search can be had in parts: of one seed each, the counts add up.
"""

from __future__ import annotations

import random
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from kabuki_rlds.images import png
from tests import handmade, layout_files
from tests.robustness.fuzz.readers import DEMONSTRATIONS, HDF5
from tests.robustness.fuzz.report import report, search_arguments, secret_in
from tests.robustness.fuzz.watched import Worker, try_all

#: What HDF5 writes before its structures.
_SIGNATURES = (b"\x89HDF", b"TREE", b"SNOD", b"HEAP", b"GCOL", b"OHDR", b"OCHK", b"FRHP", b"FHDB", b"BTHD", b"FADB")
_NUMBERS = (0, 1, 2, 7, 8, 16, 127, 128, 255, 256, 1 << 15, 65535, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 63)


def seeds(folder: Path) -> list[Path]:
    """Valid Kabuki files, made by hand."""
    folder.mkdir(exist_ok=True)
    full = handmade.fields() | handmade.index() | handmade.companions()
    rows = [np.arange(i, dtype=np.float32) for i in range(8)]
    full["more/text"] = np.array(["a", "", "longer than it was"] * 2 + ["x", "y"], h5py.string_dtype())
    full["more/rows"] = handmade.Stored(rows, {"dtype": h5py.vlen_dtype("f4")})
    full["more/chunked"] = handmade.chunked(np.arange(24.0).reshape(8, 3), shuffle=True)
    full["more/checked"] = handmade.chunked(np.arange(8), fletcher32=True)
    full["more/label"] = handmade.Stored(
        np.arange(8) % 2, {}, {"kind": "label", "class_names": np.array(["a", "b"], h5py.string_dtype())}
    )
    made = [
        handmade.write(folder / "plain.hdf5", handmade.fields()),
        handmade.write(folder / "full.hdf5", full, handmade.attributes()),
    ]
    latest = folder / "latest.hdf5"
    with h5py.File(made[1]) as old, h5py.File(latest, "w", libver="latest") as new:
        for name in old:
            old.copy(name, new)
        new.attrs.update(old.attrs)
    return [*made, latest]


def demonstrations(folder: Path) -> list[Path]:
    """Valid files, one in each layout of others."""
    folder.mkdir(exist_ok=True)
    lengths = {0: 3, 2: 2, 10: 4}
    pictures = [png.file(np.full((40, 32, 3), i, np.uint8)) for i in range(4)]
    ends = np.array([0, 0, 1, 0, 0, 0, 0], bool)
    return [
        layout_files.robomimic(
            folder / "robomimic.hdf5", lengths, success=(2,), masks={"train": [0, 2], "valid": [10]}
        ),
        layout_files.libero(folder / "libero.hdf5", lengths, "pick up the cup"),
        layout_files.robosuite(folder / "robosuite.hdf5", lengths),
        layout_files.aloha(folder / "aloha.hdf5", 4, pictures),
        layout_files.d4rl(folder / "d4rl.hdf5", terminals=ends, timeouts=np.roll(ends, 2)),
        layout_files.minari(folder / "minari.hdf5", [3, 1, 3], pictures),
    ]


def mutated(files: Sequence[bytes], count: int, seed: int, folder: Path, secret: Path) -> Iterator[Path]:
    """So many files, one after the other, each from one of `files`; the same for the same seed.

    A file is removed when the next one is asked for.
    """
    for number in range(count):
        rng = random.Random(seed << 32 | number)
        path = folder / f"{seed}-{number}.hdf5"
        path.write_bytes(rng.choice(files))
        if rng.random() < 0.35:
            _through_hdf5(path, rng, secret)
        if rng.random() < 0.8:
            path.write_bytes(_bytes_changed(path.read_bytes(), rng))
        yield path
        path.unlink()


def _bytes_changed(stored: bytes, rng: random.Random) -> bytes:
    """Changes a few places of a file, most of them in HDF5's own structures."""
    data = bytearray(stored)
    places = [at for signature in _SIGNATURES for at in _all(stored, signature)]
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if not data:
            break
        at = rng.randrange(len(data))
        if places and rng.random() < 0.8:
            at = min(rng.choice(places) + rng.randrange(400), len(data) - 1)
        kind = rng.randrange(7)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.randrange(256)
        elif kind == 2:
            size = rng.choice((1, 2, 4, 8))
            value = rng.choice((*_NUMBERS, len(data), at)) % (1 << 8 * size)
            data[at : at + size] = value.to_bytes(size, "little")
        elif kind == 3:
            # An address of one structure in the place of another's.
            at -= at % 8
            data[at : at + 8] = struct.pack("<Q", rng.choice(places or [0]))
        elif kind == 4:
            start = rng.randrange(len(data))
            part = data[start : start + rng.randrange(1, 64)]
            data[at : at + len(part)] = part
        elif kind == 5 and rng.random() < 0.3:
            del data[at:]
        elif kind == 6 and rng.random() < 0.3:
            del data[at : at + rng.randrange(1, 64)]
    return bytes(data)


def _all(stored: bytes, part: bytes) -> Iterator[int]:
    at = stored.find(part)
    while at >= 0:
        yield at
        at = stored.find(part, at + 1)


def _through_hdf5(path: Path, rng: random.Random, secret: Path) -> None:
    """Changes what a file holds by HDF5's own means."""
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        datasets = [name for name in names if isinstance(file[name], h5py.Dataset)]
        name = rng.choice(datasets)
        rng.choice(_CHANGES)(file, name, rng, secret)


def _attribute(file: h5py.File, name: str, rng: random.Random, secret: Path) -> None:
    item = rng.choice((file, file[name], file[name].parent))
    key = rng.choice(
        [
            *item.attrs,
            *(
                "kind",
                "class_names",
                "shape",
                "dtype",
                "nested",
                "encoded",
                "derived",
                "companion",
                "format",
                "complete",
            ),
            *("format_version", "num_steps", "num_episodes", "features", "sources", "skipped", "environment"),
        ]
    )
    values: list[object] = [
        -1, 0, 3, 1 << 62, 1.5, True, "", "image", "label", "text", "float32", "bfloat16", "V99", "O", "{", "[" * 5000,
        "[3]", '[{"path": 3}]', '[{"path": "x", "record": "y", "count": [], "why": 0}]', "/reward", "/more", "/nowhere",
        np.array([-1, 3]), np.array([1 << 40, -1, -1]), np.zeros((2, 2)), np.array(["a"] * 8, h5py.string_dtype()),
        b"\xff\xfe", np.bytes_("image"), h5py.Empty("i4"), file.ref,
    ]  # fmt: skip
    item.attrs[key] = rng.choice(values)


def _values(file: h5py.File, name: str, rng: random.Random, secret: Path) -> None:
    dataset = file[name]
    if dataset.dtype.kind in "biuf" and dataset.size:
        at = tuple(rng.randrange(n) for n in dataset.shape)
        numbers = (-1, 0, 1, 5, 127) if dataset.dtype.kind != "f" else (0.0, -0.0, 1.0, np.nan, np.inf)
        dataset[at] = np.array(rng.choice(numbers)).astype(dataset.dtype)


def _another(file: h5py.File, name: str, rng: random.Random, secret: Path) -> None:
    """Another dataset in the place of one."""
    rows = rng.choice((0, 1, 7, 8, 8, 8, 9, 3))
    values: list[object] = [
        np.zeros(rows), np.zeros((rows, 0)), np.zeros((rows, 2, 3), np.uint8), np.float32(3), h5py.Empty("f4"),
        np.zeros(rows, [("a", "i4"), ("b", "f8")]), np.zeros(rows, "V7"), np.array([b"text"] * rows, "S4"),
        np.zeros(rows, complex), np.zeros(rows, ">i2"), np.zeros(rows, bool), np.zeros(rows, np.float16),
    ]  # fmt: skip
    del file[name]
    file[name] = rng.choice(values)


def _link(file: h5py.File, name: str, rng: random.Random, secret: Path) -> None:
    """A link in the place of a dataset."""
    group, _, _ = name.rpartition("/")
    other = str(secret / "secret.hdf5")
    del file[name]
    file[name] = rng.choice(
        [
            h5py.ExternalLink(other, "/reward"),
            h5py.SoftLink("/action"),
            h5py.SoftLink("/nowhere"),
            h5py.SoftLink(f"/{name}"),
            file[group] if group else file["/"],
        ]
    )


def _storage(file: h5py.File, name: str, rng: random.Random, secret: Path) -> None:
    """A dataset that is stored elsewhere, or not at all, in the place of one."""
    other = str(secret / "secret.hdf5")
    del file[name]
    if rng.random() < 0.3:
        layout = h5py.VirtualLayout((8,), "f4")
        layout[:] = h5py.VirtualSource(other, "reward", (8,))
        file.create_virtual_dataset(name, layout)
    elif rng.random() < 0.4:
        file.create_dataset(name, (8,), "f4", external=[(other, 0, 32)])
    else:
        shape = rng.choice([(1 << 50,), (8, 1 << 40), (1 << 20, 1 << 20), (8,), (1 << 24,)])
        file.create_dataset(name, shape, "f4", chunks=tuple(min(n, 1 << 10) for n in shape), compression="gzip")


def _chunk(file: h5py.File, name: str, rng: random.Random, secret: Path) -> None:
    """The bytes of a chunk changed."""
    dataset = file[name]
    if dataset.chunks and dataset.id.get_num_chunks():
        offset = dataset.id.get_chunk_info(0).chunk_offset
        _, stored = dataset.id.read_direct_chunk(offset)
        cut = rng.randrange(len(stored) + 1)
        dataset.id.write_direct_chunk(
            offset, rng.choice((b"0", stored[:cut] or b"1", stored + stored, rng.randbytes(50)))
        )


_CHANGES: list[Callable[[h5py.File, str, random.Random, Path], None]] = [
    _attribute, _attribute, _values, _another, _link, _storage, _chunk,
]  # fmt: skip


def main() -> None:
    """Searches, and prints what was found."""
    arguments = search_arguments(__doc__, 10_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        secret = secret_in(folder)
        kabuki, layouts = seeds(folder / "seeds"), demonstrations(folder / "seeds")
        good = True
        with Worker(secret) as worker:
            for corpus, valid, names in (("kabuki", kabuki, HDF5), ("layouts", layouts, DEMONSTRATIONS)):
                files = [path.read_bytes() for path in valid]
                paths = mutated(files, arguments.inputs // 2, arguments.seed, folder, secret)
                good &= report(corpus, try_all(worker, names, paths), arguments.keep)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
