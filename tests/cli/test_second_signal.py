"""The second Ctrl-C or SIGTERM ends the process, whatever it is doing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import kabuki_rlds
from kabuki_rlds.cli.main import main
from tests import handmade, layout_files

#: A regular expression of this kind tries 2^40 ways to match.
_RECIPE = """
episode:
  name: {from: file_path, match: '(a+)+!'}
"""

#: While the recording is written, the main thread is in a library call of several minutes.
_NATIVE = """
import hashlib, sys
from kabuki_rlds.cli.main import main
from kabuki_rlds.formats.hdf5.sink import KabukiSink
KabukiSink.write = lambda *_: print("writing", flush=True) or hashlib.pbkdf2_hmac("sha256", b"", b"", 1 << 30)
main(["convert", *sys.argv[1:]])
"""


@contextlib.contextmanager
def running(*command: object) -> Iterator[subprocess.Popen[str]]:
    arguments = [sys.executable, *map(str, command)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def cpu_seconds(pid: int) -> float:
    return int(Path(f"/proc/{pid}/stat").read_text().split()[13]) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def file(tmp_path) -> Path:
    return handmade.write(tmp_path / "in.hdf5", handmade.fields([3, 4], [True, False]))


def assert_the_second_signal_ends(process: subprocess.Popen[str], number: signal.Signals) -> None:
    process.send_signal(number)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(number)
    assert process.wait(5) == 128 + number
    assert process.communicate() == ("", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_a_library_call(file, tmp_path, number):
    dest = tmp_path / "out.hdf5"
    with running("-c", _NATIVE, file, dest, "--quiet") as process:
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        assert_the_second_signal_ends(process, number)
    assert not dest.exists()
    # The next run replaces the partial file.
    assert main(["convert", str(file), str(dest), "--quiet"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.hdf5", "out.hdf5"]


def test_a_second_signal_ends_a_regular_expression(tmp_path):
    file = layout_files.robomimic(tmp_path / f"{'a' * 40}.hdf5", {0: 3})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(_RECIPE)
    arguments = ["-m", "kabuki_rlds.cli", "convert", file, tmp_path / "out.hdf5", "--recipe", recipe]
    with running(*arguments) as process:
        # A regular expression uses no other resource than the CPU.
        while cpu_seconds(process.pid) < 10:
            assert process.poll() is None
            time.sleep(0.1)
        assert_the_second_signal_ends(process, signal.SIGINT)


def test_two_signals_at_once_end_the_command_in_an_orderly_way(tmp_path):
    """`timeout` sends SIGTERM to the process and to its group."""
    source = handmade.slow(tmp_path / "slow.hdf5", 20_000_000)
    dest = tmp_path / "out.hdf5"
    with running("-m", "kabuki_rlds.cli", "convert", source, dest, "--quiet") as process:
        while not dest.with_name("out.hdf5.partial").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 1
        assert process.communicate() == ("", "kabuki-rlds: error: interrupted; nothing was written\n")
    assert [path.name for path in tmp_path.iterdir()] == ["slow.hdf5"]


def test_a_second_ctrl_c_interrupts_a_function_of_the_package(file, tmp_path, monkeypatch):
    from kabuki_rlds.formats.hdf5.sink import KabukiSink

    def write(self, block) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.6)
        raise AssertionError("was not interrupted")

    monkeypatch.setattr(KabukiSink, "write", write)
    with pytest.raises(KeyboardInterrupt):
        kabuki_rlds.convert(file, tmp_path / "out.hdf5")
    assert [path.name for path in tmp_path.iterdir()] == ["in.hdf5"]
