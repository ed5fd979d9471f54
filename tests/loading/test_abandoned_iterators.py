"""Iterators that are dropped before their end, also by the garbage collector within other code."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

import kabuki_rlds
from tests import handmade


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    fields = handmade.fields([100] * 50, [True] * 50)
    return handmade.write(tmp_path_factory.mktemp("abandoned") / "in.hdf5", fields)


class _Cycle:
    """Keeps an object alive until the garbage collector runs."""

    def __init__(self, held):
        self.held, self.itself = held, self


READERS = {
    "steps": lambda file: iter(kabuki_rlds.load_steps(file, 10, as_numpy=True)),
    "shuffled": lambda file: iter(kabuki_rlds.load_steps(file, 10, shuffle=True, as_numpy=True)),
    "tensorflow": lambda file: iter(kabuki_rlds.load_steps(file, 10)),
    "episodes": lambda file: iter(kabuki_rlds.load(file)),
    "opened": lambda file: iter(kabuki_rlds.open(file)),
}


def kabuki_threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    # Recordings of earlier tests leave a thread that encodes images.
    return [name for name in names if name.startswith("kabuki") and not name.startswith("kabuki-record")]


def wait_for_the_end_of_threads() -> None:
    end = time.monotonic() + 10
    while kabuki_threads() and time.monotonic() < end:
        time.sleep(0.01)
    assert not kabuki_threads()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_iterator_collected_while_the_hdf5_library_is_locked_does_not_block(reader, file):
    """Within an h5py call, the lock of h5py is held. The threads of the iterator may wait for it."""
    done = threading.Event()

    def collect() -> None:
        for _ in range(3):
            iterator = READERS[reader](file)
            next(iterator)
            cycle = _Cycle(iterator)
            del iterator
            with h5py._hl.base.phil:
                del cycle
                gc.collect()
        done.set()

    gc.collect()
    gc.disable()
    try:
        threading.Thread(target=collect, daemon=True).start()
        assert done.wait(30), "blocked"
    finally:
        gc.enable()
    gc.collect()
    wait_for_the_end_of_threads()


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_iterators_dropped_by_threads_that_collect_garbage_all_the_time_do_not_block(file, monkeypatch):
    """With a threshold of 1, garbage is collected within the threads that read ahead, too."""
    stop = time.monotonic() + 5
    counts = []
    errors = []

    def drop(kind: str) -> None:
        count = 0
        try:
            while time.monotonic() < stop:
                iterator = READERS[kind](file)
                for _ in range(count % 4):
                    next(iterator)
                _Cycle(iterator)
                del iterator
                count += 1
        except BaseException as e:
            errors.append(e)
        counts.append(count)

    threads = [
        threading.Thread(target=drop, args=[kind], daemon=True)
        for kind in ("steps", "shuffled", "opened")
        for _ in "ab"
    ]
    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        gc.set_threshold(*before)
    assert not errors
    assert len(counts) == len(threads) and all(counts), "blocked"
    gc.collect()
    wait_for_the_end_of_threads()


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_files_of_a_dropped_iterator_are_closed(file, shuffle):
    def opened() -> list[str]:
        found = []
        for descriptor in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        return [path for path in found if path == str(file)]

    gc.collect()
    wait_for_the_end_of_threads()
    before = opened()
    for _ in kabuki_rlds.load_steps(file, 10, shuffle=shuffle, as_numpy=True):
        break
    wait_for_the_end_of_threads()
    assert opened() == before
    # At the normal end, the files are closed at once.
    for _ in kabuki_rlds.load_steps(file, 10, shuffle=shuffle, as_numpy=True):
        pass
    assert opened() == before


_EXIT = """
import sys, threading
import kabuki_rlds
file, options = sys.argv[1], {"last_row": "observation"}
readers = [
    iter(kabuki_rlds.load_steps(file, 10, as_numpy=True, **options)),
    iter(kabuki_rlds.load_steps(file, 10, shuffle=True, as_numpy=True, **options)),
    iter(kabuki_rlds.load_windows(file, 10, 50, shuffle=True, epochs=None, as_numpy=True, **options)),
    iter(kabuki_rlds.open(file, **options)),
]
for reader in readers:
    next(reader)
cycle = [readers]
cycle.append(cycle)
threading.Thread(target=lambda: [None for _ in readers[2]], daemon=True).start()
if sys.argv[2] == "error":
    raise SystemExit(3)
"""


@pytest.mark.parametrize(("how", "status"), [("return", 0), ("error", 3)])
def test_the_interpreter_exits_while_iterators_are_open(file, how, status):
    run = subprocess.run(
        [sys.executable, "-c", _EXIT, file, how], capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (status, "", "")


def test_the_thread_of_a_reader_ends_after_an_error(file, tmp_path):
    changed = tmp_path / "changed.hdf5"
    changed.write_bytes(file.read_bytes())
    loader = kabuki_rlds.load_steps(changed, 10, as_numpy=True)
    with h5py.File(changed, "r+") as opened:
        del opened["reward"]
        opened["reward"] = np.zeros(5000, np.int32)
    with pytest.raises(kabuki_rlds.KabukiError, match="was changed since it was loaded"):
        next(iter(loader))
    wait_for_the_end_of_threads()
