"""Random changes of files of any format, for the searches."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

NUMBERS = (0, 1, -1, 2, 7, 255, 256, 1 << 20, 1 << 31, 1 << 40, -(1 << 63), (1 << 63) - 1)
_VALUES: list[Any] = [
    *map(str, NUMBERS), *NUMBERS, 0.5, float("nan"), None, True, "", "../../x", "/etc/passwd", "os.system", [], {},
    [[[]]], "x" * 10_000, [0] * 10_000, "tensorflow_datasets.core.features.text_feature.Text", "zlib", "float64",
    "uint8", "string", "array_record", "arrow", "parquet", "Box", "Dict", "Tuple", "Text", "Discrete",
]  # fmt: skip


#: Functions that change a dataset in a folder.
Changes: TypeAlias = Sequence[Callable[[Path, random.Random], object]]


def changed_folders(folders: Sequence[Path], count: int, seed: int, folder: Path, changes: Changes) -> Iterator[Path]:
    """Yields copies of random datasets with one or two random changes each; the same for the same seed.

    A copy is removed when the next one is asked for.

    Args:
      folders: the datasets.
      count: the number of copies.
      seed: the seed.
      folder: where the copies are made.
      changes: the changes to choose from.
    """
    for number in range(count):
        rng = random.Random(seed << 32 | number)
        path = folder / f"{seed}-{number}"
        shutil.copytree(rng.choice(folders), path)
        for _ in range(rng.choice((1, 1, 2))):
            rng.choice(changes)(path, rng)
        yield path
        shutil.rmtree(path)


def change_bytes(path: Path, rng: random.Random) -> None:
    """Changes the bytes of a file in a few places, or cuts or extends it."""
    data = bytearray(path.read_bytes())
    if not data:
        return
    for _ in range(rng.choice((1, 1, 3))):
        # The end of some formats has their structure.
        at = rng.randrange(len(data) or 1) if rng.random() < 0.7 else max(0, len(data) - 1 - rng.randrange(400))
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + 8] = (rng.choice(NUMBERS) % (1 << 64)).to_bytes(8, "little")
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + rng.randrange(1, 200)]
        elif kind == 4:
            data[at:at] = rng.randbytes(rng.randrange(1, 200))
        else:
            data += data[at : at + 300]
    path.write_bytes(data)


def change_json(path: Path, rng: random.Random) -> None:
    """Changes a place in a JSON file, also in JSON texts within it, or cuts the file."""
    if rng.random() < 0.15:
        data = bytearray(path.read_bytes())
        del data[rng.randrange(len(data) or 1) :]
        path.write_bytes(data)
        return
    try:
        tree = json.loads(path.read_text())
    except ValueError:
        return
    change_tree(tree, rng)
    path.write_text(json.dumps(tree))


def change_tree(tree: Any, rng: random.Random) -> None:
    """Changes a place in nested dicts and lists: removes, copies or replaces a value."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            places.append((node, key))
            if isinstance(value, (dict, list)):
                walk(value)

    if not isinstance(tree, (dict, list)):
        return
    walk(tree)
    if not places:
        return
    node, key = rng.choice(places)
    value = node[key]
    if isinstance(value, str) and value[:1] in ("{", "[") and rng.random() < 0.7:
        inner = json.loads(value)
        change_tree(inner, rng)
        node[key] = json.dumps(inner)
    elif rng.random() < 0.2:
        del node[key]
    elif rng.random() < 0.3:
        other, place = rng.choice(places)
        node[key] = json.loads(json.dumps(other[place]))
    else:
        node[key] = rng.choice(_VALUES)


def change_files(folder: Path, rng: random.Random) -> None:
    """Removes, copies, empties or renames a file of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        return
    path, other = rng.choice(files), rng.choice(files)
    kind = rng.randrange(4)
    if kind == 0:
        path.unlink()
    elif kind == 1 and path != other:
        shutil.copy(path, other)
    elif kind == 2:
        path.write_bytes(b"")
    elif path != other:
        path.rename(other)
