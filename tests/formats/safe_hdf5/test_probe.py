"""Files that this process did not write are opened by a worker process first."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

import kabuki_rlds
from kabuki_rlds.formats.safe_hdf5 import probe, verdicts
from tests import handmade


def worker_ids(pid: int | str = "self") -> list[int]:
    """Process ids of the workers that a process has started and that still run."""
    children = Path(f"/proc/{os.getpid() if pid == 'self' else pid}/task").glob("*/children")
    ids = [int(child) for text in children for child in text.read_text().split()]
    return [child for child in ids if b"probe_worker" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.fixture
def without_worker():
    """No worker runs when the test begins."""
    probe._stop()


@pytest.fixture
def file(tmp_path) -> Path:
    return handmade.write(tmp_path / "foreign.hdf5", handmade.fields())


def crashing_file(path: Path) -> Path:
    """Two groups whose local heaps have the same data segment. HDF5 frees it twice."""
    with h5py.File(path, "w", libver="earliest") as file:
        file.create_group("a/b").create_dataset("x", data=np.zeros(3))
    stored = bytearray(path.read_bytes())
    first = stored.index(b"HEAP", stored.index(b"HEAP") + 1)
    second = stored.index(b"HEAP", first + 1)
    # The address of the data segment follows the signature, the version, and two sizes.
    segment = -(-len(stored) // 8) * 8
    size, at = struct.unpack_from("<Q8xQ", stored, second + 8)
    stored += bytes(segment - len(stored)) + stored[at : at + size] + bytes(512)
    struct.pack_into("<Q", stored, 40, len(stored))
    for heap in (first, second):
        struct.pack_into("<Q", stored, heap + 24, segment)
    path.write_bytes(stored)
    return path


def test_a_file_that_crashes_the_library_is_rejected_in_one_line(tmp_path, without_worker):
    file = crashing_file(tmp_path / "crash.hdf5")
    for _ in range(2):
        with pytest.raises(kabuki_rlds.DamagedDataError) as error:
            kabuki_rlds.inspect(file)
        assert str(error.value) == f"{file}: crashes the HDF5 library (SIGSEGV); get an intact copy of the file"


def test_the_command_line_rejects_a_file_that_crashes_the_library(tmp_path):
    file = crashing_file(tmp_path / "crash.hdf5")
    for command in (["validate", file], ["inspect", file], ["convert", file, tmp_path / "out.hdf5"]):
        done = subprocess.run(
            [sys.executable, "-m", "kabuki_rlds.cli", *command], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert "crashes the HDF5 library" in done.stdout + done.stderr
        assert len((done.stdout + done.stderr).splitlines()) <= 3
    assert os.listdir(tmp_path) == ["crash.hdf5"]


def test_a_crash_does_not_reject_the_next_file(tmp_path, file, without_worker):
    with pytest.raises(kabuki_rlds.DamagedDataError):
        kabuki_rlds.inspect(crashing_file(tmp_path / "crash.hdf5"))
    assert kabuki_rlds.inspect(file).num_steps == 8


def test_a_worker_that_was_killed_is_replaced(tmp_path, file, without_worker):
    assert kabuki_rlds.validate(file) == []
    (worker,) = worker_ids()
    os.kill(worker, signal.SIGKILL)
    other = handmade.write(tmp_path / "other.hdf5", handmade.fields())
    assert kabuki_rlds.validate(other) == []
    assert worker_ids() != [worker]


def test_one_worker_probes_many_files_and_each_version_once(tmp_path, monkeypatch, without_worker):
    probed: list[str] = []
    send = probe._Worker.probe

    def count(self: probe._Worker, path: str, cpu_seconds: float) -> object:
        probed.append(path)
        return send(self, path, cpu_seconds)

    monkeypatch.setattr(probe._Worker, "probe", count)
    files = [handmade.write(tmp_path / f"{i}.hdf5", handmade.fields()) for i in range(5)]
    for _ in range(2):
        for path in files:
            assert kabuki_rlds.inspect(path).num_steps == 8
    assert probed == list(map(str, files))
    assert len(worker_ids()) == 1
    handmade.write(files[0], handmade.fields((2,), (True,)))
    assert kabuki_rlds.inspect(files[0]).num_steps == 2
    assert probed == [*map(str, files), str(files[0])]


def test_files_that_this_process_wrote_are_opened_without_a_worker(tmp_path, without_worker):
    file = handmade.write(tmp_path / "foreign.hdf5", handmade.fields((4, 4), (True, False)))
    made = kabuki_rlds.convert(file, tmp_path / "made.hdf5").path
    exported = kabuki_rlds.export(made, tmp_path / "hopper-v0", "minari").path
    probe._stop()
    assert kabuki_rlds.validate(made) == []
    assert kabuki_rlds.inspect(made).num_steps == kabuki_rlds.inspect(exported).num_steps == 8
    assert worker_ids() == []


def _children_of_a_process_that_reads(path: str) -> list[int]:
    assert kabuki_rlds.inspect(path).num_steps == 8
    return worker_ids()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_verdicts_pass_to_child_processes(method, tmp_path, file):
    other = handmade.write(tmp_path / "other.hdf5", handmade.fields())
    kabuki_rlds.inspect(file)
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(_children_of_a_process_that_reads, (str(file),)) == []
        # The child probes what its parent has not seen.
        assert len(pool.apply(_children_of_a_process_that_reads, (str(other),))) == 1
    assert kabuki_rlds.inspect(file).num_steps == 8


def test_the_worker_ends_with_its_process(file):
    code = f"""
import kabuki_rlds, os, signal, sys
kabuki_rlds.inspect({str(file)!r})
from tests.formats.safe_hdf5.test_probe import worker_ids
print(*worker_ids(), flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {name: value for name, value in os.environ.items() if name != "KABUKI_RLDS_VERDICTS"}
    for how in ("killed", "returns"):
        done = subprocess.run(
            [sys.executable, "-c", code, how], capture_output=True, text=True, check=False, env=environment
        )
        (worker,) = map(int, done.stdout.split())
        assert "Traceback" not in done.stderr
        deadline = 100
        while Path(f"/proc/{worker}").exists() and b"probe_worker" in Path(f"/proc/{worker}/cmdline").read_bytes():
            deadline -= 1
            assert deadline, "the worker still runs"
            signal.sigtimedwait([], 0.1)


def test_the_worker_does_not_import_from_the_current_folder(file, tmp_path):
    (tmp_path / "h5py.py").write_text("raise SystemExit('imported')")
    code = f"import kabuki_rlds; print(kabuki_rlds.inspect({str(file)!r}).num_steps)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, h5py; sys.path.insert(0, ''); {code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(kabuki_rlds.__file__).parent.parent)},
    )
    assert (done.returncode, done.stdout) in ((0, "8\n"), (1, "")), done
    if done.returncode:
        # `python -c` imports from the current folder itself.
        assert "imported" in done.stderr


def test_a_worker_that_cannot_start_is_one_clear_error(file, monkeypatch, without_worker):
    for program in ("/nonexistent/python", "/bin/true"):
        monkeypatch.setattr(sys, "executable", program)
        with pytest.raises(kabuki_rlds.KabukiError, match="cannot start the process that checks HDF5 files"):
            kabuki_rlds.inspect(file)


@pytest.mark.parametrize("limit", [(resource.RLIMIT_CPU, 1000), (resource.RLIMIT_AS, 1000 << 20)])
def test_files_are_probed_under_lower_limits_of_the_process(limit, file):
    def set_limit() -> None:
        resource.setrlimit(limit[0], (limit[1], limit[1]))
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGXCPU])

    code = f"from kabuki_rlds.formats.safe_hdf5.open_file import open_file; open_file({str(file)!r}).close()"
    environment = {name: value for name, value in os.environ.items() if name != "KABUKI_RLDS_VERDICTS"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**environment, "OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=set_limit,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_no_warning_at_exit(file):
    code = f"import kabuki_rlds; kabuki_rlds.inspect({str(file)!r})"
    environment = {name: value for name, value in os.environ.items() if name != "KABUKI_RLDS_VERDICTS"}
    done = subprocess.run(
        [sys.executable, "-W", "always::ResourceWarning", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert "ResourceWarning" not in done.stderr


def test_verdicts_without_proc_leave_no_open_descriptors(tmp_path, monkeypatch):
    opened = os.open

    def without_proc(path, *args, **options):
        if str(path).startswith("/proc/self/fd"):
            raise FileNotFoundError(path)
        return opened(path, *args, **options)

    monkeypatch.setattr(os, "open", without_proc)
    monkeypatch.setattr(verdicts, "_shared", None)
    monkeypatch.delenv("KABUKI_RLDS_VERDICTS", raising=False)
    counts = []
    for i in range(2):
        kabuki_rlds.inspect(handmade.write(tmp_path / f"{i}.hdf5", handmade.fields()))
        counts.append(len(os.listdir("/proc/self/fd")))
    assert counts[0] == counts[1]


def test_a_process_that_is_forked_while_the_worker_starts_does_not_hide_its_end(tmp_path, monkeypatch, without_worker):
    start = subprocess.Popen._execute_child  # type: ignore[attr-defined]
    is_starting = threading.Event()

    def start_slowly(self, *args):
        is_starting.set()
        time.sleep(0.3)
        start(self, *args)

    monkeypatch.setattr(subprocess.Popen, "_execute_child", start_slowly)
    problems = []

    def read() -> None:
        try:
            kabuki_rlds.inspect(crashing_file(tmp_path / "crash.hdf5"))
        except kabuki_rlds.DamagedDataError as e:
            problems.append(str(e))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    assert is_starting.wait(60)
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    try:
        thread.join(30)
        assert len(problems) == 1
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_process_that_is_forked_while_a_verdict_is_written_reads_files(file):
    kabuki_rlds.inspect(file)
    with verdicts._lock:
        child = os.fork()
        if not child:
            try:
                signal.alarm(20)
                os._exit(kabuki_rlds.inspect(file).num_steps)
            finally:
                os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 8


@pytest.mark.parametrize("filter_name", ["scaleoffset", "nbit"])
def test_files_with_uncommon_filters_are_read(filter_name, tmp_path):
    fields = handmade.fields()
    path = tmp_path / "f.hdf5"
    with h5py.File(path, "w") as file:
        for name, column in fields.items():
            if name != "reward":
                file[name] = column
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((4,))
        if filter_name == "nbit":
            properties.set_filter(h5py.h5z.FILTER_NBIT)
        else:
            properties.set_scaleoffset(h5py.h5z.SO_FLOAT_DSCALE, 4)
        reward = fields["reward"]
        space = h5py.h5s.create_simple(reward.shape)
        h5py.h5d.create(file.id, b"reward", h5py.h5t.py_create(reward.dtype), space, properties)
        file["reward"][:] = reward
    (violation,) = kabuki_rlds.validate(path)
    assert violation.message == f"filter {filter_name} is not in every HDF5 library; use gzip and shuffle"
