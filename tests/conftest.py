"""Fixtures for the datasets of `tests.datasets`. Each dataset is written once per session."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import settings

import kabuki_rlds
from tests.places import FIXTURES

# No deadline, because the duration of an example varies on a busy machine. CI uses the same examples in every run.
settings.register_profile("kabuki", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("kabuki")

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # Before anything imports TensorFlow.
os.environ.setdefault("MUJOCO_GL", "disable")  # Nothing is rendered, and there may be no display.


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """Restores the logger after `main` changed it. Otherwise `caplog` is empty in later tests."""
    log = logging.getLogger("kabuki_rlds")
    before = log.handlers, log.propagate, log.level
    yield
    log.handlers, log.propagate = before[:2]
    log.setLevel(before[2])


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the parent folder of the datasets, for `--data-dir`."""
    return tmp_path_factory.mktemp("tensorflow_datasets")


@pytest.fixture(scope="session")
def dataset(data_dir: Path) -> Callable[[str], Path]:
    """Returns a function that writes a dataset: `dataset("plain")` is its folder, `…/plain/1.0.0`."""
    from tests import datasets

    @functools.cache
    def write(name: str) -> Path:
        return datasets.write(getattr(datasets, name)(), data_dir)

    return write


@pytest.fixture(scope="session")
def converted(dataset: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Returns a function that converts a dataset: `converted("plain", "encoded")` is a Kabuki file with image files."""
    folder = tmp_path_factory.mktemp("converted")

    @functools.cache
    def convert(name: str, images: Literal["arrays", "encoded"]) -> Path:
        return kabuki_rlds.convert(dataset(name), folder / f"{name}-{images}.hdf5", images=images).path

    return lambda name, images="arrays": convert(name, images)


@pytest.fixture(scope="session")
def expected(dataset: Callable[[str], Path]) -> Callable[..., object]:
    """Returns a function: `expected("plain", "test")` is the `Expected` that TFDS decodes from the split "test".

    For a dataset that TFDS cannot read, it contains the written values.
    """
    from tests import datasets
    from tests import expected as module

    @functools.cache
    def read(name: str, split: str = "train") -> module.Expected:
        if name in datasets.NOT_READ_BY_TFDS:
            return module.generated(getattr(datasets, name)(), split)
        return module.read(dataset(name), split)

    return read


@pytest.fixture(scope="session")
def old_dataset() -> Path:
    """Returns the folder of a dataset that TFDS 4.4 wrote. `old_robot.json` contains its expected values."""
    return FIXTURES / "tfds_4_4" / "old_robot" / "1.0.0"
