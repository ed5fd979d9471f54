"""Peak memory of commands in a process of their own: constant in the number of episodes and fields, or limited."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests import layout_files

#: Peak memory of a process that only imports the package, with a margin: bytes.
BASE = 100 << 20

#: Prints the peak memory at the end. `ru_maxrss` would begin at that of the parent process.
PROGRAM = """
import sys
from kabuki_rlds.cli.main import main
try:
    sys.exit(main(sys.argv[1:]))
finally:
    sys.stderr.flush()
    print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM:")))
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def run(*arguments: str | Path) -> tuple[int, int, str]:
    """Runs the command line. Returns exit code, peak memory in bytes, and output."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, check=False
    )
    output, _, peak = done.stdout.rpartition("VmHWM:")
    return done.returncode, int(peak.split()[0]) << 10, output


def peak_of(*arguments: str | Path) -> int:
    code, peak, output = run(*arguments)
    assert not code, output
    return peak


def write_columns(path: Path, num_rows: int, columns: Mapping[str, np.ndarray], episode: int = 10) -> Path:
    """Writes a Kabuki file with episodes of `episode` rows."""
    row = np.arange(num_rows)
    is_last = row % episode == episode - 1
    zeros = np.zeros(num_rows, np.float32)
    with h5py.File(path, "w", libver="latest") as file:
        for name, values in {"action": zeros, "reward": zeros, "discount": zeros + 1, **columns}.items():
            file[name] = values
        file["is_first"], file["is_last"], file["is_terminal"] = row % episode == 0, is_last, row < 0
    return path


def test_memory_is_constant_in_the_number_of_episodes(tmp_path):
    peaks = []
    for count in (40, 320):
        path = layout_files.minari(tmp_path / f"{count}.hdf5", [10] * count)
        peaks.append(peak_of("convert", path, tmp_path / "made.hdf5", "--overwrite"))
    assert peaks[1] < 1.1 * peaks[0]


def test_views_of_chunks_are_not_retained(tmp_path):
    # The chunks of all episodes together have 400 MB.
    path = tmp_path / "few_rows.hdf5"
    with h5py.File(path, "w") as file:
        for number in range(100):
            episode = file.create_group(f"episode_{number}")
            for name, rows in (("observations", 4), ("actions", 3), ("rewards", 3)):
                chunks = (1 << 18,) if name == "observations" else None
                filters = {"chunks": chunks, "maxshape": (None,), "compression": "gzip"} if chunks else {}
                episode.create_dataset(name, (rows,), np.float64, data=np.arange(rows) + 0.5, **filters)
            episode["terminations"] = np.arange(3) == 2
            episode["truncations"] = np.zeros(3, bool)
    assert peak_of("convert", path, tmp_path / "made.hdf5") < BASE + (40 << 20)


def test_chunks_of_exports_fit_their_episodes(tmp_path):
    source = write_columns(tmp_path / "source.hdf5", 200, {"observation/state": np.zeros((200, 3))})
    peak_of("export", source, tmp_path / "steps-v0", "--to", "minari")
    peak_of("export", source, tmp_path / "robomimic.hdf5", "--to", "robomimic")
    sizes = set()

    def note(_: str, item: h5py.HLObject) -> None:
        if isinstance(item, h5py.Dataset):
            sizes.add(item.chunks[0])

    for file in (tmp_path / "robomimic.hdf5", tmp_path / "steps-v0" / "data" / "main_data.hdf5"):
        with h5py.File(file) as opened:
            opened.visititems(note)
    assert max(sizes) == 10


def test_thousand_fields_need_little_memory(tmp_path):
    columns = {f"observation/f{i}": np.arange(20.0) for i in range(1000)}
    source = write_columns(tmp_path / "source.hdf5", 20, columns)
    made = tmp_path / "made.hdf5"
    assert peak_of("convert", source, made) < BASE + (80 << 20)
    assert peak_of("validate", made) < BASE + (80 << 20)


def write_table(folder: Path, data_format: str, width: int, num_rows: int) -> Path:
    """Writes an episode of zeros in Minari's Arrow storage, which compresses a thousandfold and more."""
    import pyarrow as pa
    import pyarrow.parquet

    data = folder / "data"
    (data / "0").mkdir(parents=True)
    zeros = np.zeros(num_rows)
    is_last = np.arange(num_rows) == num_rows - 2
    columns = {
        "observations": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(num_rows * width)), width),
        "infos": pa.StructArray.from_arrays([pa.array([b"x" * (1 << 20)] * num_rows)], ["text"]),
        "actions": pa.array(zeros),
        "rewards": pa.array(zeros),
        "terminations": pa.array(is_last),
        "truncations": pa.array(is_last & False),
    }
    table = pa.table(columns)
    if data_format == "parquet":
        pa.parquet.write_table(table, data / "0" / "0.parquet", compression="zstd")
    else:
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(str(data / "0" / "0.arrow"), table.schema, options=options) as file:
            file.write_table(table)
    (data / "0" / "metadata.json").write_text(json.dumps({"total_steps": num_rows - 1}))
    space = {"type": "Box", "dtype": "float64", "shape": [width], "low": 0, "high": 1}
    (data / "metadata.json").write_text(json.dumps({"data_format": data_format, "observation_space": space}))
    return data


def test_parquet_that_expands_is_read_in_batches(tmp_path):
    pytest.importorskip("pyarrow")
    data = write_table(tmp_path, "parquet", 1 << 18, 150)
    assert sum(file.stat().st_size for file in data.rglob("*")) < 1 << 17
    # 450 MB of values.
    assert peak_of("convert", data, tmp_path / "made.hdf5") < BASE + (200 << 20)


def test_arrow_batch_above_the_limit_is_rejected(tmp_path):
    pytest.importorskip("pyarrow")
    data = write_table(tmp_path, "arrow", 1 << 18, 150)
    code, peak, output = run("convert", data, tmp_path / "made.hdf5")
    assert code == 1 and "more than the limit of 268,435,456" in output and output.count("\n") == 1
    assert peak < BASE + (100 << 20)


def test_build_does_not_hold_an_episode_in_memory(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    small = write_columns(tmp_path / "small.hdf5", 4, {"observation": np.zeros((4, 4), np.uint8)}, 4)
    rows = np.full((14, 16 << 20), 200, np.uint8)
    large = write_columns(tmp_path / "large.hdf5", 14, {"observation": rows}, 14)
    least = peak_of("build", small, "--out", tmp_path / "small", "--name", "made")
    # The record has 470 MB: each value takes two bytes. Earlier versions needed about 2 GB more.
    assert peak_of("build", large, "--out", tmp_path / "large", "--name", "made") < least + (440 << 20)
