"""After any failure the destination is unchanged, and no `.partial` file remains."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow_datasets as tfds

import kabuki_rlds
from kabuki_rlds.commands.export import export
from kabuki_rlds.formats.hdf5 import source as hdf5_source
from tests import datasets, handmade
from tests.disks import small_disk

OLD = b"the old file, which need not be HDF5"


@pytest.fixture(params=["no old file", "an old file"])
def dest(request, tmp_path) -> Path:
    """A destination, once with and once without an existing file."""
    path = tmp_path / "made" / "out.hdf5"
    path.parent.mkdir()
    if request.param == "an old file":
        path.write_bytes(OLD)
    return path


def assert_as_before(dest: Path) -> None:
    """The folder holds only the old file, or nothing if there was none."""
    assert [path.name for path in dest.parent.iterdir()] in ([], ["out.hdf5"])
    assert not dest.exists() or dest.read_bytes() == OLD


def assert_whole(dest: Path, steps: int) -> None:
    """The folder holds only the new file."""
    assert [path.name for path in dest.parent.iterdir()] == [dest.name]
    with h5py.File(dest) as f:
        assert f.attrs["complete"]
        assert len(f["reward"]) == f.attrs["num_steps"] == steps


def convert(source, dest: Path, **options):
    return kabuki_rlds.convert(source, dest, overwrite=dest.exists(), **options)


@pytest.fixture
def small(tmp_path) -> Path:
    return handmade.write(tmp_path / "small.hdf5", handmade.fields())


# --- damaged sources ---


@pytest.fixture(params=["plain", "array_record"])
def damaged(request, dataset, tmp_path) -> Path:
    """A copy of a dataset, which the test damages."""
    return Path(shutil.copytree(dataset(request.param), tmp_path / "copy" / request.param / "1.0.0"))


def shard(folder: Path, which: int) -> Path:
    return sorted(folder.glob("*-train.*-of-*"))[which]


def change_stated_episodes(folder: Path, change: int) -> None:
    """Adds `change` to the number of episodes that `dataset_info.json` states for the last shard of "train"."""
    info = json.loads((folder / "dataset_info.json").read_text())
    (train,) = (split for split in info["splits"] if split["name"] == "train")
    train["shardLengths"][-1] = str(int(train["shardLengths"][-1]) + change)
    (folder / "dataset_info.json").write_text(json.dumps(info))


def test_a_truncated_shard_is_rejected(damaged, dest):
    path = shard(damaged, 1)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(kabuki_rlds.KabukiError, match=path.name):
        convert(damaged, dest)
    assert_as_before(dest)


def test_a_shard_with_a_flipped_bit_is_rejected(damaged, dest):
    path = shard(damaged, 1)
    stored = bytearray(path.read_bytes())
    # ArrayRecord pads its files with zeros, so a flipped bit there has no effect.
    data = [i for i, byte in enumerate(stored[100:-100]) if byte]
    stored[100 + data[len(data) // 2]] ^= 4
    path.write_bytes(stored)
    with pytest.raises(kabuki_rlds.KabukiError, match=path.name):
        convert(damaged, dest)
    assert_as_before(dest)


@pytest.mark.parametrize("which", [0, 2])
def test_an_empty_shard_is_rejected(which, damaged, dest):
    path = shard(damaged, which)
    path.write_bytes(b"")
    with pytest.raises(kabuki_rlds.KabukiError, match=path.name):
        convert(damaged, dest)
    assert_as_before(dest)


def test_a_missing_shard_is_rejected(damaged, dest):
    path = shard(damaged, 1)
    path.unlink()
    with pytest.raises(kabuki_rlds.KabukiError, match=f"{path.name}: this shard is missing"):
        convert(damaged, dest)
    assert_as_before(dest)


@pytest.mark.parametrize(("change", "found"), [(1, r"\d+"), (-1, r"at least \d+")])
def test_a_wrong_number_of_episodes_is_rejected(change, found, damaged, dest):
    path = shard(damaged, 2)
    change_stated_episodes(damaged, change)
    with pytest.raises(
        kabuki_rlds.KabukiError, match=rf"{path.name}: has {found} episodes, expected \d+ by dataset_info"
    ):
        convert(damaged, dest)
    assert_as_before(dest)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pythonClassName": "os.system"}'])
def test_damaged_features_are_rejected(text, damaged, dest):
    (damaged / "features.json").write_text(text)
    with pytest.raises(kabuki_rlds.KabukiError, match="features"):
        convert(damaged, dest)
    assert_as_before(dest)


def test_a_damaged_second_source_leaves_no_output(damaged, dataset, dest):
    path = shard(damaged, 1)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(kabuki_rlds.KabukiError, match=path.name):
        convert([dataset("plain"), damaged], dest)
    assert_as_before(dest)


def test_a_damaged_kabuki_source_leaves_no_output(dest, tmp_path, monkeypatch):

    # Without this, the sample for the size estimate would find the damage first.
    monkeypatch.setattr(hdf5_source, "_BLOCK_ROWS", 1024)
    fields = handmade.fields([5000], [True])
    chunks = {"chunks": (1000,), "compression": "gzip"}
    file = handmade.write(tmp_path / "f.hdf5", fields | {"reward": handmade.Stored(fields["reward"], chunks)})
    with h5py.File(file, "r+") as f:
        f["reward"].id.write_direct_chunk((4000,), b"no zlib stream")
    with pytest.raises(kabuki_rlds.KabukiError, match="field 'reward'"):
        convert(file, dest)
    assert_as_before(dest)


@pytest.fixture
def fails_in_the_middle(small, monkeypatch) -> Path:
    """A source that raises MemoryError after the first block."""
    from kabuki_rlds.formats.hdf5.source import KabukiSource

    blocks = KabukiSource.blocks

    def fail_later(self, only=None):
        yield from blocks(self, only)
        raise MemoryError

    monkeypatch.setattr(KabukiSource, "blocks", fail_later)
    return small


def test_any_error_during_conversion_leaves_no_output(fails_in_the_middle, dest):
    with pytest.raises(MemoryError):
        convert(fails_in_the_middle, dest)
    assert_as_before(dest)


# --- signals ---


@contextlib.contextmanager
def converting(source, dest: Path, *options: str) -> Iterator[subprocess.Popen]:
    """Runs a process that is in the middle of a conversion."""
    command = [sys.executable, "-m", "kabuki_rlds.cli", "convert", str(source), str(dest), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            partial = dest.with_name(dest.name + ".partial")
            while not (partial.exists() and partial.stat().st_size > 1 << 16):
                assert process.poll() is None, process.communicate()
                time.sleep(0.005)
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def slow(tmp_path_factory) -> Path:
    """A small file with 5 GB of zeros."""
    return handmade.slow(tmp_path_factory.mktemp("slow") / "slow.hdf5", 20_000_000)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_output_and_prints_one_line(number, slow, dest):
    with converting(slow, dest, "--overwrite", "--quiet") as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err == "kabuki-rlds: error: interrupted; nothing was written\n"
    assert_as_before(dest)


def test_ctrl_c_is_delayed_until_no_lock_is_held(small, dest, monkeypatch):
    from kabuki_rlds.formats.hdf5.sink import KabukiSink

    write = KabukiSink.write
    written = []

    def interrupted(self, block) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        write(self, block)
        written.append(block.num_steps)

    monkeypatch.setattr(KabukiSink, "write", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        convert(small, dest)
    assert written == [8]
    assert signal.getsignal(signal.SIGINT) is handler
    assert_as_before(dest)


def test_the_next_run_cleans_up_after_a_kill(slow, small, dest):
    with converting(slow, dest, "--overwrite", "--quiet") as process:
        process.kill()
        process.wait()
    assert not dest.exists() or dest.read_bytes() == OLD
    assert dest.with_name("out.hdf5.partial").exists()
    convert(small, dest)
    assert_whole(dest, 8)


def test_a_second_writer_to_the_same_file_is_rejected(small, dest, tmp_path):
    source = handmade.slow(tmp_path / "slow.hdf5", 2_000_000)
    with converting(source, dest, "--overwrite", "--quiet") as process:
        with pytest.raises(kabuki_rlds.KabukiError, match="another process is writing this file"):
            kabuki_rlds.convert(small, dest, overwrite=True)
        assert not dest.exists() or dest.read_bytes() == OLD
        process.wait()
    assert process.returncode == 0
    assert_whole(dest, 2_000_000)


def test_a_file_created_during_conversion_is_not_overwritten(small, tmp_path, monkeypatch):
    from kabuki_rlds.files.atomic_file import StagedFile

    dest = tmp_path / "made" / "out.hdf5"
    dest.parent.mkdir()
    commit = StagedFile.commit

    def too_late(self) -> None:
        dest.write_bytes(OLD)
        commit(self)

    monkeypatch.setattr(StagedFile, "commit", too_late)
    with pytest.raises(kabuki_rlds.KabukiError, match="already exists"):
        kabuki_rlds.convert(small, dest)
    assert dest.read_bytes() == OLD
    assert_as_before(dest)


def test_file_systems_without_hard_links_are_supported(small, dest, monkeypatch):
    def link(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    convert(small, dest)
    assert_whole(dest, 8)


def test_a_partial_file_hard_linked_to_the_destination_does_not_delete_it(fails_in_the_middle, dest):
    # The state after a kill between the two steps of the rename.
    dest.write_bytes(OLD)
    os.link(dest, dest.with_name("out.hdf5.partial"))
    with pytest.raises(MemoryError):
        kabuki_rlds.convert(fails_in_the_middle, dest, overwrite=True)
    assert_as_before(dest)


def test_a_broken_link_as_destination_is_rejected_before_conversion(small, tmp_path):
    dest = tmp_path / "made" / "out.hdf5"
    dest.parent.mkdir()
    dest.symlink_to(tmp_path / "nowhere.hdf5")
    with pytest.raises(kabuki_rlds.KabukiError, match="already exists"):
        kabuki_rlds.convert(small, dest)
    assert dest.is_symlink()


def test_a_special_file_is_not_replaced(small, tmp_path):
    """A FIFO stands for any special file, such as `/dev/null`."""
    dest = tmp_path / "out.hdf5"
    os.mkfifo(dest)
    with pytest.raises(kabuki_rlds.KabukiError, match="is not a regular file; give the path of the HDF5 file"):
        kabuki_rlds.convert(small, dest, overwrite=True)
    assert dest.is_fifo()
    assert {path.name for path in tmp_path.iterdir()} == {"small.hdf5", "out.hdf5"}


def test_links_in_place_of_partial_files_are_not_followed(small, tmp_path):
    """In a shared folder, another user could create such a link."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_bytes(OLD)
    (tmp_path / "out.hdf5.partial").symlink_to(precious / "file")
    with pytest.raises(kabuki_rlds.KabukiError, match=r"out.hdf5.partial: cannot be written \(it is a symbolic link\)"):
        kabuki_rlds.convert(small, tmp_path / "out.hdf5")
    (tmp_path / "d" / "x").mkdir(parents=True)
    (tmp_path / "d" / "x" / "1.0.0.partial").symlink_to(precious)
    with pytest.raises(kabuki_rlds.KabukiError, match=r"1.0.0.partial: cannot be written"):
        kabuki_rlds.build(small, tmp_path / "d", name="x")
    assert (precious / "file").read_bytes() == OLD


def test_a_destination_inside_the_source_folder_is_rejected(small, tmp_path):
    for name in "ab":
        shutil.copy(small, tmp_path / f"data-{name}.hdf5")
    dest = tmp_path / "data-all.hdf5"
    episodes = kabuki_rlds.convert(f"{tmp_path}/data-*.hdf5", dest).num_episodes
    before = dest.read_bytes()
    for source in (tmp_path, f"{tmp_path}/data-*.hdf5", [tmp_path, dest]):
        with pytest.raises(kabuki_rlds.KabukiError, match=r"data-all.hdf5: is among the files of"):
            kabuki_rlds.convert(source, dest, overwrite=True)
    assert dest.read_bytes() == before
    # An explicitly named destination may be a source.
    assert kabuki_rlds.convert([dest, dest], dest, overwrite=True).num_episodes == 2 * episodes


def test_a_source_with_the_name_of_the_partial_file_is_kept(small, tmp_path):
    source = shutil.copy(small, tmp_path / "all.hdf5.partial")
    with pytest.raises(kabuki_rlds.KabukiError, match="would be deleted"):
        kabuki_rlds.convert(source, tmp_path / "all.hdf5")
    assert Path(source).read_bytes() == small.read_bytes()


@pytest.mark.parametrize("name", ["", ".", "..", "/", "all/", "../"])
def test_a_destination_that_names_a_folder_is_rejected(name, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kabuki_rlds.KabukiError, match="is a folder; give the path of the HDF5 file"):
        kabuki_rlds.convert(small, name, overwrite=True)


def test_too_long_names_and_unknown_home_folders_are_reported(small, tmp_path):
    for name in ("x" * 250, "x" * 300):
        with pytest.raises(kabuki_rlds.KabukiError, match="File name too long"):
            kabuki_rlds.convert(small, tmp_path / name)
        with pytest.raises(kabuki_rlds.KabukiError, match="no such file"):
            kabuki_rlds.convert(name, tmp_path / "all.hdf5")
    with pytest.raises(kabuki_rlds.KabukiError, match="~nobody-at-all does not exist"):
        kabuki_rlds.convert(small, "~nobody-at-all/all.hdf5")
    with pytest.raises(kabuki_rlds.KabukiError, match="no such file"):
        kabuki_rlds.convert("~nobody-at-all/all.hdf5", tmp_path / "all.hdf5")


def test_new_files_have_the_permissions_of_the_umask(small, tmp_path):
    before = os.umask(0o027)
    try:
        kabuki_rlds.convert(small, tmp_path / "out.hdf5")
    finally:
        os.umask(before)
    assert (tmp_path / "out.hdf5").stat().st_mode & 0o777 == 0o640


# --- full disks, and folders that cannot be written ---


@pytest.mark.parametrize("made", ["convert", "build", "export"])
def test_failures_of_fsync_are_reported(made, small, tmp_path, monkeypatch):
    file = handmade.write(tmp_path / "in.hdf5", handmade.fields([3, 4], [True, False]))
    calls: dict[str, Callable[[Path], object]] = {
        "convert": lambda dest: kabuki_rlds.convert(small, dest),
        "build": lambda dest: kabuki_rlds.build(file, dest, name="x"),
        "export": lambda dest: export(file, dest, "robomimic"),
    }

    def fails(*args):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fails)
    (tmp_path / "out").mkdir()
    with pytest.raises(kabuki_rlds.KabukiError, match=f"^{tmp_path}/out/.*: cannot be written .Input/output error."):
        calls[made](tmp_path / "out" / "x.hdf5")
    assert not list((tmp_path / "out").iterdir())


def test_disk_errors_during_writing_are_reported(incompressible, tmp_path, monkeypatch):
    def fails(file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fails)
    monkeypatch.setattr("kabuki_rlds.formats.hdf5.chunks._SYNC_BYTES", 1 << 10)
    dest = tmp_path / "out.hdf5"
    with pytest.raises(kabuki_rlds.KabukiError, match=f"^{dest}: cannot be written .Input/output error."):
        kabuki_rlds.convert(incompressible, dest)
    assert not list(tmp_path.iterdir())


def test_a_result_larger_than_the_disk_is_rejected_before_writing(small, dest, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000, 990, 10))
    with pytest.raises(kabuki_rlds.KabukiError, match=r"out.hdf5: needs about .*, but .* has 10 bytes free"):
        convert(small, dest)
    assert_as_before(dest)


def test_too_little_space_for_decoded_images_suggests_encoded_ones(dest, tmp_path, monkeypatch):
    source = datasets.write(_with_black_images(), tmp_path)
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000, 990, 10))
    with pytest.raises(kabuki_rlds.KabukiError, match="; images='encoded' needs about "):
        convert(source, dest)
    assert_as_before(dest)


def _with_black_images() -> datasets.Recipe:
    recipe = datasets.one_step()
    image = tfds.features.Image(shape=(64, 64, 3))
    steps = {**recipe.features["steps"].feature, "observation": {"image": image}}
    for episode in recipe.splits["train"]:
        for step in episode["steps"]:
            step["observation"] = {"image": np.zeros((64, 64, 3), np.uint8)}
    return dataclasses.replace(
        recipe,
        features=tfds.features.FeaturesDict({**recipe.features, "steps": tfds.features.Dataset(steps)}),
        splits={"train": recipe.splits["train"]},
    )


# The size estimate comes from a sample, so the disk can still fill up.
_ON_A_FULL_DISK = """
import resource, shutil, sys
from kabuki_rlds.cli.main import main
shutil.disk_usage = lambda path: shutil._ntuple_diskusage(0, 0, 1 << 60)
limit = int(sys.argv.pop(1))
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def incompressible(tmp_path_factory) -> Path:
    """A file with 10 MB of noise, in all types of datasets."""
    n = 100_000
    rng = np.random.default_rng(0)
    fields = handmade.fields([n], [True]) | {"observation": rng.standard_normal((n, 10))}
    fields["text"] = handmade.Stored([rng.bytes(9).hex() for _ in range(n)], {"dtype": h5py.string_dtype()})
    fields["rows"] = handmade.Stored([rng.random(i % 4) for i in range(n)], {"dtype": h5py.vlen_dtype("f8")})
    return handmade.write(tmp_path_factory.mktemp("noise") / "noise.hdf5", fields)


def assert_fails_for_want_of_space(
    source: Path, dest: Path, limit: int, *options: str, command: Sequence[str] = ("convert", "--quiet", "--overwrite")
) -> None:
    command = [sys.executable, "-c", _ON_A_FULL_DISK, str(limit), *command]
    done = subprocess.run([*command, str(source), str(dest), *options], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"kabuki-rlds: error: {dest}: ")
    assert len(done.stderr.splitlines()) == 1
    assert "this is a bug" not in done.stderr


@pytest.mark.parametrize("limit", [1 << 10, 100 << 10, 3 << 20, 7 << 20])
def test_a_failed_write_leaves_no_output(limit, incompressible, dest):
    assert_fails_for_want_of_space(incompressible, dest, limit)
    assert_as_before(dest)


@pytest.mark.parametrize("layout", ["robomimic", "minari", "d4rl"])
@pytest.mark.parametrize("limit", [1 << 10, 7 << 20])
def test_a_failed_export_leaves_no_output(layout, limit, tmp_path):
    n = 30_000
    noise = np.random.default_rng(0).standard_normal((n, 30))
    source = handmade.write(tmp_path / "in.hdf5", handmade.fields([n], [True]) | {"observation": noise})
    dest = tmp_path / "made" / "out-v0"
    dest.parent.mkdir()
    assert_fails_for_want_of_space(source, dest, limit, "--to", layout, command=["export"])
    assert list(dest.parent.iterdir()) == []


@pytest.mark.parametrize("compression", ["gzip", "lzf", "none"])
def test_a_full_disk_leaves_no_output(compression, incompressible, tmp_path):
    with small_disk(tmp_path / "disk", "3m") as folder:
        dest = folder / "out.hdf5"
        assert_fails_for_want_of_space(incompressible, dest, 0, "--compression", compression)
        assert_as_before(dest)


def test_a_missing_destination_folder_is_rejected(small, tmp_path):
    with pytest.raises(kabuki_rlds.KabukiError, match="does not exist; create it first"):
        kabuki_rlds.convert(small, tmp_path / "none" / "out.hdf5")
    with pytest.raises(kabuki_rlds.KabukiError, match=r"small.hdf5.*(does not exist|not a folder)"):
        kabuki_rlds.convert(small, small / "out.hdf5")


@contextlib.contextmanager
def not_root() -> Iterator[None]:
    """Switches to another user, because root may write anywhere."""
    if os.getuid():
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_a_read_only_folder_is_rejected():
    # Other users cannot enter the temporary folders of pytest.
    with tempfile.TemporaryDirectory() as folder:
        source = handmade.write(Path(folder) / "small.hdf5", handmade.fields())
        closed = Path(folder) / "closed"
        closed.mkdir()
        os.chmod(folder, 0o755)
        os.chmod(closed, 0o555)
        # Other users may not be able to start the Python of the process that probes files.
        kabuki_rlds.inspect(source)
        with not_root(), pytest.raises(kabuki_rlds.KabukiError, match=r"out.hdf5.*Permission denied"):
            kabuki_rlds.convert(source, closed / "out.hdf5")
        assert list(closed.iterdir()) == []


def test_an_unreadable_source_is_rejected(tmp_path):
    with tempfile.TemporaryDirectory() as folder:
        source = handmade.write(Path(folder) / "small.hdf5", handmade.fields())
        os.chmod(folder, 0o755)
        os.chmod(source, 0o000)
        with not_root(), pytest.raises(kabuki_rlds.KabukiError, match="no permission to read it"):
            kabuki_rlds.convert(source, Path(folder) / "out.hdf5")


def test_the_threads_of_a_failed_conversion_end(small, dest, monkeypatch):
    import threading

    before = set(threading.enumerate())
    with pytest.raises(kabuki_rlds.KabukiError):
        convert([small, dest.parent], dest)
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert not {name for name in left if name.startswith("kabuki")}
