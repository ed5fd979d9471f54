"""Searches for Minari datasets in Parquet and Arrow files that break the package.

    python -m tests.robustness.fuzz.minari [--inputs 2000] [--seed 0] [--keep DIR]

The bytes of a table are changed, or its columns, through pyarrow, or a place of a `metadata.json`, or the set of files.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests import layout_files
from tests.robustness.fuzz import changes
from tests.robustness.fuzz.readers import RLDS
from tests.robustness.fuzz.report import report, search_arguments, secret_in
from tests.robustness.fuzz.watched import Worker, try_all

_FORMATS = ("parquet", "arrow")


def seeds(folder: Path) -> list[Path]:
    """A valid dataset in each format."""
    return [layout_files.minari_arrow(folder / name, [3, 1, 2], name) for name in _FORMATS]


def mutated(folders: Sequence[Path], count: int, seed: int, folder: Path) -> Iterator[Path]:
    """Yields changed datasets. See `changes.changed_folders`."""
    return changes.changed_folders(folders, count, seed, folder, _CHANGES)


def _bytes(folder: Path, rng: random.Random) -> None:
    changes.change_bytes(rng.choice(_tables(folder) or [next(folder.rglob("*.json"))]), rng)


def _metadata(folder: Path, rng: random.Random) -> None:
    changes.change_json(rng.choice(sorted(folder.rglob("metadata.json"))), rng)


def _tables(folder: Path) -> list[Path]:
    return sorted(path for name in _FORMATS for path in folder.rglob(f"*.{name}"))


def _columns(folder: Path, rng: random.Random) -> None:
    """Changes a column of one table, or of all in the same way."""
    tables = _tables(folder)
    if rng.random() < 0.5:
        tables = rng.sample(tables, min(1, len(tables)))
    seed = rng.random()
    for path in tables:
        _change_columns(path, random.Random(seed))


def _change_columns(path: Path, rng: random.Random) -> None:
    """Replaces, removes, renames or repeats a column of a table, or changes its number of rows."""
    import pyarrow as pa
    import pyarrow.dataset

    name = path.suffix[1:]
    try:
        table = pyarrow.dataset.dataset(path, format=name).to_table()
    except (pa.ArrowException, OSError):  # It was damaged before.
        return
    if not table.num_columns:
        return
    rows, at = table.num_rows, rng.randrange(table.num_columns)
    kind = rng.randrange(6)
    if kind == 0:
        table = table.remove_column(at)
    elif kind == 1:
        table = table.slice(rng.randrange(rows + 1), rng.randrange(rows + 1))
    elif kind == 2:
        names = table.column_names
        names[at] = rng.choice((*names, "", "infos", "observations/a", "../x", "\x1b[2J", "é"))
        table = table.rename_columns(names)
    elif kind == 3:
        table = pa.concat_tables([table] * rng.choice((2, 200)))
    else:
        try:
            table = table.set_column(at, table.column_names[at], rng.choice(_COLUMNS)(rows))
        except (pa.ArrowException, NotImplementedError):
            return
    try:
        pyarrow.dataset.write_dataset(table, path.parent, format=name, existing_data_behavior="overwrite_or_ignore")
    except (pa.ArrowException, NotImplementedError):  # The format cannot hold the column.
        return


def _columns_of() -> list[Any]:
    import pyarrow as pa

    return [
        lambda n: pa.nulls(n),
        lambda n: pa.array([None] + [1.0] * (n - 1) if n else [], pa.float64()),
        lambda n: pa.array(["text"] * n),
        lambda n: pa.array([b"\xff" * 30] * n),
        lambda n: pa.array([[1.0] * i for i in range(n)], pa.list_(pa.float64())),
        lambda n: pa.array([[[1], []]] * n),
        lambda n: pa.array([{"a": 1, "b": [2]}] * n),
        lambda n: pa.array(["x"] * n).dictionary_encode(),
        lambda n: pa.array(np.zeros(n, "M8[s]")),
        lambda n: pa.array(np.zeros(n, "f2")),
        lambda n: pa.array([2**63] * n, pa.uint64()),
        lambda n: pa.array([float("nan")] * n),
        lambda n: pa.array([True, None] * n, pa.bool_()).slice(0, n),
        lambda n: pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(n * 4)), 4),
        lambda n: pa.array([[] for _ in range(n)], pa.list_(pa.float64(), 0)),
        lambda n: pa.chunked_array([pa.array([0.0] * n).slice(i, 1) for i in range(n)], pa.float64()),
        lambda n: pa.array([0.5] * n, pa.decimal128(10, 2)),
        lambda n: pa.array([(("k", 1),)] * n, pa.map_(pa.string(), pa.int32())),
    ]


_COLUMNS = _columns_of()
_CHANGES = (_bytes, _bytes, _columns, _columns, _columns, _metadata, _metadata, changes.change_files)


def main() -> None:
    """Searches, and prints what was found."""
    arguments = search_arguments(__doc__, 2000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = mutated(seeds(folder / "seeds"), arguments.inputs, arguments.seed, folder)
        with Worker(secret_in(folder)) as worker:
            good = report("minari tables", try_all(worker, RLDS, paths), arguments.keep)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
