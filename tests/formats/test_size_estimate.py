"""How large a result will be, as it is stated before the work begins."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

import kabuki_rlds
from tests.formats.test_kabuki_source import steps, write

#: Episodes whose lengths differ by a factor of 1,000, the long ones last.
LENGTHS = [*[3] * 200, *[30] * 40, 3000, 200, 3000]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """Datasets `small` and `large`, of one shard each, as TFRecord and as ArrayRecord."""
    folder = tmp_path_factory.mktemp("estimate")
    rng = np.random.default_rng(0)
    for name, width in (("small", 4), ("large", 2400)):
        parts = [steps(length) for length in LENGTHS]
        columns = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        file = write(folder / f"{name}.hdf5", columns)
        with h5py.File(file, "a") as f:
            f["state"] = rng.integers(0, 9, (sum(LENGTHS), width)).astype(np.float32)
        for file_format in ("tfrecord", "array_record"):
            kabuki_rlds.build(file, folder, name=f"{name}_{file_format}", file_format=file_format)
        file.unlink()
    return folder


def stated(text: str) -> tuple[int, float]:
    """(steps, bytes as arrays) of the line that the conversion begins with."""
    found = re.search(r"(?:about )?([\d,]+) steps, ([\d.]+) (\w+) as arrays", text)
    assert found is not None, text
    units = {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
    return int(found[1].replace(",", "")), float(found[2]) * units[found[3]]


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize(
    "split", ["train[:1]", "train[10:20]", "train[200:]", "train[-1:]", "train[:50%]", "train[-3:-1]"]
)
def test_a_part_of_a_shard_is_estimated_within_a_tenth(data_dir, tmp_path, caplog, size, file_format, split):
    caplog.set_level(logging.INFO, "kabuki_rlds")
    result = kabuki_rlds.convert(f"{size}_{file_format}", tmp_path / "x.hdf5", data_dir=data_dir, split=split)
    num_steps, num_bytes = stated(caplog.text)
    assert abs(num_steps - result.num_steps) <= result.num_steps / 10
    with h5py.File(result.path) as f:
        right = sum(f[name].nbytes for name in f if isinstance(f[name], h5py.Dataset))
    assert abs(num_bytes - right) <= right / 10


def test_a_part_that_fits_the_disk_is_not_refused(data_dir, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    assert kabuki_rlds.convert(data_dir / "large_tfrecord", tmp_path / "x.hdf5", split="train[:5]").num_steps == 15
    with pytest.raises(kabuki_rlds.KabukiError, match=r"needs about .* free"):
        kabuki_rlds.convert(data_dir / "large_tfrecord", tmp_path / "y.hdf5", split="train[200:]")
