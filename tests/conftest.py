"""Fixtures: the datasets of `tests.datasets`, each written once a session."""

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

# How long one example takes says nothing on a busy machine; a check that a change must pass draws the same each time.
settings.register_profile("kabuki", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("kabuki")

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # Before anything imports TensorFlow.
os.environ.setdefault("MUJOCO_GL", "disable")  # Nothing is drawn, and there may be no screen.


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """Undoes what `main` does to the log of this process, which would hide from `caplog` what later tests log."""
    log = logging.getLogger("kabuki_rlds")
    before = log.handlers, log.propagate, log.level
    yield
    log.handlers, log.propagate = before[:2]
    log.setLevel(before[2])


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder under which the datasets are written, as `--data-dir` takes it."""
    return tmp_path_factory.mktemp("tensorflow_datasets")


@pytest.fixture(scope="session")
def dataset(data_dir: Path) -> Callable[[str], Path]:
    """`dataset("plain")` is the folder of the dataset of that recipe, `…/plain/1.0.0`."""
    from tests import datasets

    @functools.cache
    def write(name: str) -> Path:
        return datasets.write(getattr(datasets, name)(), data_dir)

    return write


@pytest.fixture(scope="session")
def converted(dataset: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`converted("plain", "encoded")` is a Kabuki file of that dataset, and of its images."""
    folder = tmp_path_factory.mktemp("converted")

    @functools.cache
    def convert(name: str, images: Literal["arrays", "encoded"]) -> Path:
        return kabuki_rlds.convert(dataset(name), folder / f"{name}-{images}.hdf5", images=images).path

    return lambda name, images="arrays": convert(name, images)


@pytest.fixture(scope="session")
def expected(dataset: Callable[[str], Path]) -> Callable[..., object]:
    """`expected("plain", "test")` is what TFDS decodes from that split, an `Expected`.

    Of a dataset that TFDS cannot read, it is what was written.
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
    """The folder of a dataset that TFDS 4.4 wrote; `read_json(…/"old_robot.json")` is expected."""
    return FIXTURES / "tfds_4_4" / "old_robot" / "1.0.0"
