"""Small files next to the data that are pipes, devices, folders or too large: one clear error, no hang."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kabuki_rlds
from kabuki_rlds.errors import KabukiError
from tests import layout_files


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def link_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate((16 << 20) + 1)


REPLACEMENTS = [make_pipe, link_device, Path.mkdir, make_large]


@contextlib.contextmanager
def no_hang() -> Iterator[None]:
    """Raises `TimeoutError` in the code within after 20 s."""

    def stop(*_: object) -> None:
        raise TimeoutError("the file was read without end")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def replace(path: Path, by: Callable[[Path], None]) -> None:
    path.unlink(missing_ok=True)
    by(path)


@pytest.mark.parametrize("by", REPLACEMENTS)
@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "metadata.json", "label.labels.txt"])
def test_files_of_an_rlds_dataset(name, by, dataset, tmp_path):
    folder = Path(shutil.copytree(dataset("plain"), tmp_path / "plain" / "1.0.0"))
    replace(folder / name, by)
    with no_hang(), pytest.raises(KabukiError) as caught:
        kabuki_rlds.convert(folder, tmp_path / "made.hdf5")
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("by", REPLACEMENTS)
@pytest.mark.parametrize("of_episode", [False, True])
def test_metadata_of_a_minari_dataset(by, of_episode, tmp_path):
    pytest.importorskip("pyarrow")
    data = layout_files.minari_arrow(tmp_path / "door-v0", [3, 4]) / "data"
    replace(data / "0" / "metadata.json" if of_episode else data / "metadata.json", by)
    with no_hang(), pytest.raises(KabukiError, match=r"metadata\.json"):
        kabuki_rlds.convert(data, tmp_path / "made.hdf5")


@pytest.mark.parametrize("by", [make_pipe, link_device, Path.mkdir])
@pytest.mark.parametrize("data_format", ["parquet", "arrow"])
def test_table_of_a_minari_dataset(data_format, by, tmp_path):
    pytest.importorskip("pyarrow")
    data = layout_files.minari_arrow(tmp_path / "door-v0", [3, 4], data_format) / "data"
    (table,) = (data / "1").glob(f"*.{data_format}")
    replace(table, by)
    with no_hang(), pytest.raises(KabukiError, match="not a regular file"):
        kabuki_rlds.convert(data, tmp_path / "made.hdf5")


@pytest.mark.parametrize("by", [make_pipe, link_device, make_large])
def test_instruction_next_to_an_aloha_file(by, tmp_path, caplog):
    layout_files.aloha(tmp_path / "episode_0.hdf5", 4)
    by(tmp_path / "instruction.json")
    with no_hang():
        kabuki_rlds.convert(tmp_path / "episode_0.hdf5", tmp_path / "made.hdf5", fill={"reward": 0})
    is_read_as_json_file = by is make_large
    assert is_read_as_json_file == ("instruction.json: has 16,777,217 bytes" in caplog.text)
