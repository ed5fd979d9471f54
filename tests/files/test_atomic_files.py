"""The destination is the old file, the new whole file, or not there; and no `.partial` stays behind."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import fcntl
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

OLD = b"the old file, which need not be HDF5"


@pytest.fixture(params=["no old file", "an old file"])
def dest(request, tmp_path) -> Path:
    """A destination, with and without an old file to overwrite."""
    path = tmp_path / "made" / "out.hdf5"
    path.parent.mkdir()
    if request.param == "an old file":
        path.write_bytes(OLD)
    return path


def assert_as_before(dest: Path) -> None:
    """Nothing is there but the old file, if there was one."""
    assert [path.name for path in dest.parent.iterdir()] in ([], ["out.hdf5"])
    assert not dest.exists() or dest.read_bytes() == OLD


def assert_whole(dest: Path, steps: int) -> None:
    """The new file is there, and nothing else."""
    assert [path.name for path in dest.parent.iterdir()] == [dest.name]
    with h5py.File(dest) as f:
        assert f.attrs["complete"]
        assert len(f["reward"]) == f.attrs["num_steps"] == steps


def convert(source, dest: Path, **options):
    return kabuki_rlds.convert(source, dest, overwrite=dest.exists(), **options)


@pytest.fixture
def small(tmp_path) -> Path:
    return handmade.write(tmp_path / "small.hdf5", handmade.fields())


# --- sources that turn out to be damaged ---


@pytest.fixture(params=["plain", "array_record"])
def damaged(request, dataset, tmp_path) -> Path:
    """A copy of a dataset, to be damaged."""
    return Path(shutil.copytree(dataset(request.param), tmp_path / "copy" / request.param / "1.0.0"))


def shard(folder: Path, which: int) -> Path:
    return sorted(folder.glob("*-train.*-of-*"))[which]


def episodes_said(folder: Path, change: int) -> None:
    """Makes `dataset_info.json` say so many more episodes of the last shard of "train"."""
    info = json.loads((folder / "dataset_info.json").read_text())
    (train,) = (split for split in info["splits"] if split["name"] == "train")
    train["shardLengths"][-1] = str(int(train["shardLengths"][-1]) + change)
    (folder / "dataset_info.json").write_text(json.dumps(info))


def test_a_shard_cut_short_is_refused(damaged, dest):
    path = shard(damaged, 1)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(kabuki_rlds.KabukiError, match=path.name):
        convert(damaged, dest)
    assert_as_before(dest)


def test_a_shard_with_a_flipped_bit_is_refused(damaged, dest):
    path = shard(damaged, 1)
    stored = bytearray(path.read_bytes())
    # ArrayRecord fills its files up with zeros, of which none matters.
    data = [i for i, byte in enumerate(stored[100:-100]) if byte]
    stored[100 + data[len(data) // 2]] ^= 4
    path.write_bytes(stored)
    with pytest.raises(kabuki_rlds.KabukiError, match=path.name):
        convert(damaged, dest)
    assert_as_before(dest)


@pytest.mark.parametrize("which", [0, 2])
def test_an_empty_shard_is_refused(which, damaged, dest):
    path = shard(damaged, which)
    path.write_bytes(b"")
    with pytest.raises(kabuki_rlds.KabukiError, match=path.name):
        convert(damaged, dest)
    assert_as_before(dest)


def test_a_missing_shard_is_refused(damaged, dest):
    path = shard(damaged, 1)
    path.unlink()
    with pytest.raises(kabuki_rlds.KabukiError, match=f"{path.name}: this shard is missing"):
        convert(damaged, dest)
    assert_as_before(dest)


@pytest.mark.parametrize(("change", "word"), [(1, "fewer"), (-1, "more")])
def test_another_number_of_episodes_than_the_dataset_says_is_refused(change, word, damaged, dest):
    path = shard(damaged, 2)
    episodes_said(damaged, change)
    with pytest.raises(kabuki_rlds.KabukiError, match=f"{path.name}: {word} episodes than dataset_info.json says"):
        convert(damaged, dest)
    assert_as_before(dest)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pythonClassName": "os.system"}'])
def test_features_that_are_damaged_are_refused(text, damaged, dest):
    (damaged / "features.json").write_text(text)
    with pytest.raises(kabuki_rlds.KabukiError, match="features"):
        convert(damaged, dest)
    assert_as_before(dest)


def test_a_damaged_second_source_leaves_nothing_of_the_first(damaged, dataset, dest):
    path = shard(damaged, 1)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(kabuki_rlds.KabukiError, match=path.name):
        convert([dataset("plain"), damaged], dest)
    assert_as_before(dest)


def test_a_damaged_kabuki_source_leaves_nothing(dest, tmp_path, monkeypatch):

    # Else the sample that is looked at beforehand would find it.
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
    """A source whose reading ends in a MemoryError after the first block."""
    from kabuki_rlds.formats.hdf5.source import KabukiSource

    blocks = KabukiSource.blocks

    def fail_later(self, only=None):
        yield from blocks(self, only)
        raise MemoryError

    monkeypatch.setattr(KabukiSource, "blocks", fail_later)
    return small


def test_any_error_in_the_middle_leaves_nothing(fails_in_the_middle, dest):
    with pytest.raises(MemoryError):
        convert(fails_in_the_middle, dest)
    assert_as_before(dest)


# --- signals ---


@contextlib.contextmanager
def converting(source, dest: Path, *options: str) -> Iterator[subprocess.Popen]:
    """A process in the middle of a conversion."""
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
    """5 GB of zeros in a small file."""
    return handmade.slow(tmp_path_factory.mktemp("slow") / "slow.hdf5", 20_000_000)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_and_says_so_in_one_line(number, slow, dest):
    with converting(slow, dest, "--overwrite", "--quiet") as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err == "kabuki-rlds: error: interrupted; nothing was written\n"
    assert_as_before(dest)


def test_ctrl_c_waits_until_no_lock_is_held(small, dest, monkeypatch):
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


def test_after_a_kill_the_next_run_cleans_up(slow, small, dest):
    with converting(slow, dest, "--overwrite", "--quiet") as process:
        process.kill()
        process.wait()
    assert not dest.exists() or dest.read_bytes() == OLD
    assert dest.with_name("out.hdf5.partial").exists()
    convert(small, dest)
    assert_whole(dest, 8)


def test_of_two_at_once_one_wins_and_the_other_says_so(small, dest, tmp_path):
    source = handmade.slow(tmp_path / "slow.hdf5", 2_000_000)
    with converting(source, dest, "--overwrite", "--quiet") as process:
        with pytest.raises(kabuki_rlds.KabukiError, match="another process is writing this file"):
            kabuki_rlds.convert(small, dest, overwrite=True)
        assert not dest.exists() or dest.read_bytes() == OLD
        process.wait()
    assert process.returncode == 0
    assert_whole(dest, 2_000_000)


def test_a_file_that_appears_meanwhile_is_not_overwritten(small, tmp_path, monkeypatch):
    from kabuki_rlds.files.atomic_file import StagedFile

    dest = tmp_path / "made" / "out.hdf5"
    dest.parent.mkdir()
    commit = StagedFile.commit

    def too_late(self) -> None:
        dest.write_bytes(OLD)
        commit(self)

    monkeypatch.setattr(StagedFile, "commit", too_late)
    with pytest.raises(kabuki_rlds.KabukiError, match="already there"):
        kabuki_rlds.convert(small, dest)
    assert dest.read_bytes() == OLD
    assert_as_before(dest)


def test_a_file_system_without_hard_links_will_do(small, dest, monkeypatch):
    def link(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    convert(small, dest)
    assert_whole(dest, 8)


def test_a_partial_file_that_is_the_destination_under_another_name_does_not_cost_it(fails_in_the_middle, dest):
    # As a kill between the two calls that give the file its name leaves it.
    dest.write_bytes(OLD)
    os.link(dest, dest.with_name("out.hdf5.partial"))
    with pytest.raises(MemoryError):
        kabuki_rlds.convert(fails_in_the_middle, dest, overwrite=True)
    assert_as_before(dest)


def test_a_link_that_leads_nowhere_is_refused_before_the_work(small, tmp_path):
    dest = tmp_path / "made" / "out.hdf5"
    dest.parent.mkdir()
    dest.symlink_to(tmp_path / "nowhere.hdf5")
    with pytest.raises(kabuki_rlds.KabukiError, match="already there"):
        kabuki_rlds.convert(small, dest)
    assert dest.is_symlink()


def test_what_is_no_file_is_not_replaced_by_one(small, tmp_path):
    """As `/dev/null` would be."""
    dest = tmp_path / "out.hdf5"
    os.mkfifo(dest)
    with pytest.raises(kabuki_rlds.KabukiError, match="is not a regular file; give the path of the HDF5 file"):
        kabuki_rlds.convert(small, dest, overwrite=True)
    assert dest.is_fifo()
    assert {path.name for path in tmp_path.iterdir()} == {"small.hdf5", "out.hdf5"}


def test_a_partial_file_or_folder_that_is_a_link_is_not_followed(small, tmp_path):
    """In a folder that others write to, they could lay it there."""
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


def test_a_destination_among_the_sources_of_a_folder_is_refused(small, tmp_path):
    for name in "ab":
        shutil.copy(small, tmp_path / f"data-{name}.hdf5")
    dest = tmp_path / "data-all.hdf5"
    episodes = kabuki_rlds.convert(f"{tmp_path}/data-*.hdf5", dest).episodes
    before = dest.read_bytes()
    for source in (tmp_path, f"{tmp_path}/data-*.hdf5"):
        with pytest.raises(kabuki_rlds.KabukiError, match=r"data-all.hdf5: is among the files of"):
            kabuki_rlds.convert(source, dest, overwrite=True)
    assert dest.read_bytes() == before
    # Who names it means it.
    assert kabuki_rlds.convert([dest, dest], dest, overwrite=True).episodes == 2 * episodes


def test_a_partial_file_that_is_the_source_is_kept(small, tmp_path):
    source = shutil.copy(small, tmp_path / "all.hdf5.partial")
    with pytest.raises(kabuki_rlds.KabukiError, match="would be lost"):
        kabuki_rlds.convert(source, tmp_path / "all.hdf5")
    assert Path(source).read_bytes() == small.read_bytes()


@pytest.mark.parametrize("name", ["", ".", "..", "/", "all/", "../"])
def test_a_destination_that_only_a_folder_can_be_is_refused(name, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kabuki_rlds.KabukiError, match="is a folder; give the path of the HDF5 file"):
        kabuki_rlds.convert(small, name, overwrite=True)


def test_names_that_are_too_long_or_of_nobody_s_home_are_said(small, tmp_path):
    for name in ("x" * 250, "x" * 300):
        with pytest.raises(kabuki_rlds.KabukiError, match="File name too long"):
            kabuki_rlds.convert(small, tmp_path / name)
        with pytest.raises(kabuki_rlds.KabukiError, match="no such file"):
            kabuki_rlds.convert(name, tmp_path / "all.hdf5")
    with pytest.raises(kabuki_rlds.KabukiError, match="~nobody-at-all does not exist"):
        kabuki_rlds.convert(small, "~nobody-at-all/all.hdf5")
    with pytest.raises(kabuki_rlds.KabukiError, match="no such file"):
        kabuki_rlds.convert("~nobody-at-all/all.hdf5", tmp_path / "all.hdf5")


def test_a_new_file_has_the_permissions_that_the_umask_gives(small, tmp_path):
    before = os.umask(0o027)
    try:
        kabuki_rlds.convert(small, tmp_path / "out.hdf5")
    finally:
        os.umask(before)
    assert (tmp_path / "out.hdf5").stat().st_mode & 0o777 == 0o640


# --- a disk that is full, folders that cannot be written ---


@pytest.mark.parametrize("call", ["fsync", "flock"])
@pytest.mark.parametrize("made", ["convert", "build", "export"])
def test_a_disk_that_fails_at_the_end_or_has_no_locks_is_said(made, call, small, tmp_path, monkeypatch):
    file = handmade.write(tmp_path / "in.hdf5", handmade.fields([3, 4], [True, False]))
    calls: dict[str, Callable[[Path], object]] = {
        "convert": lambda dest: kabuki_rlds.convert(small, dest),
        "build": lambda dest: kabuki_rlds.build(file, dest, name="x"),
        "export": lambda dest: export(file, dest, "robomimic"),
    }

    def fails(*args):
        number = errno.EIO if call == "fsync" else errno.ENOLCK
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os if call == "fsync" else fcntl, call, fails)
    says = {"fsync": "cannot be written .Input/output error.", "flock": "cannot be locked .No locks available."}[call]
    (tmp_path / "out").mkdir()
    with pytest.raises(kabuki_rlds.KabukiError, match=f"^{tmp_path}/out/.*: {says}"):
        calls[made](tmp_path / "out" / "x.hdf5")
    left = [path.name for path in (tmp_path / "out").rglob("*")]
    # Without a lock nobody can know whose a partial file or folder is, so it stays.
    assert not left if call == "fsync" else left[-1].endswith(".partial")


def test_a_disk_that_fails_in_the_middle_is_said(incompressible, tmp_path, monkeypatch):
    def fails(file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fails)
    monkeypatch.setattr("kabuki_rlds.formats.hdf5.chunks._SYNC_BYTES", 1 << 10)
    dest = tmp_path / "out.hdf5"
    with pytest.raises(kabuki_rlds.KabukiError, match=f"^{dest}: cannot be written .Input/output error."):
        kabuki_rlds.convert(incompressible, dest)
    assert not list(tmp_path.iterdir())


def test_what_the_disk_cannot_hold_is_refused_beforehand(small, dest, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000, 990, 10))
    with pytest.raises(kabuki_rlds.KabukiError, match=r"out.hdf5: needs about .*, but .* has 10 bytes free"):
        convert(small, dest)
    assert_as_before(dest)


def test_images_that_the_disk_cannot_hold_decoded_name_the_remedy(dest, tmp_path, monkeypatch):
    source = datasets.write(_with_black_images(), tmp_path)
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000, 990, 10))
    with pytest.raises(kabuki_rlds.KabukiError, match="; --images encoded needs about "):
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


# The space is checked beforehand by a sample, so a disk can still fill up.
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
    """10 MB of noise in every kind of dataset."""
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
    assert "fault of the tool" not in done.stderr


@pytest.mark.parametrize("limit", [1 << 10, 100 << 10, 3 << 20, 7 << 20])
def test_a_write_that_fails_leaves_nothing(limit, incompressible, dest):
    assert_fails_for_want_of_space(incompressible, dest, limit)
    assert_as_before(dest)


@pytest.mark.parametrize("layout", ["robomimic", "minari", "d4rl"])
@pytest.mark.parametrize("limit", [1 << 10, 7 << 20])
def test_an_export_that_fails_leaves_nothing(layout, limit, tmp_path):
    n = 30_000
    noise = np.random.default_rng(0).standard_normal((n, 30))
    source = handmade.write(tmp_path / "in.hdf5", handmade.fields([n], [True]) | {"observation": noise})
    dest = tmp_path / "made" / "out-v0"
    dest.parent.mkdir()
    assert_fails_for_want_of_space(source, dest, limit, "--to", layout, command=["export"])
    assert list(dest.parent.iterdir()) == []


@pytest.mark.parametrize("compression", ["gzip", "lzf", "none"])
def test_a_full_disk_leaves_nothing(compression, incompressible, tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        dest = folder / "out.hdf5"
        assert_fails_for_want_of_space(incompressible, dest, 0, "--compression", compression)
        assert_as_before(dest)
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_folder_that_is_not_there_is_refused(small, tmp_path):
    with pytest.raises(kabuki_rlds.KabukiError, match="does not exist; create it first"):
        kabuki_rlds.convert(small, tmp_path / "none" / "out.hdf5")
    with pytest.raises(kabuki_rlds.KabukiError, match=r"small.hdf5.*(does not exist|not a folder)"):
        kabuki_rlds.convert(small, small / "out.hdf5")


@contextlib.contextmanager
def not_root() -> Iterator[None]:
    """Root may write anywhere, so for a while this is someone else."""
    if os.getuid():
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_a_folder_that_must_not_be_written_is_refused():
    # pytest's own folders are closed to anyone else.
    with tempfile.TemporaryDirectory() as folder:
        source = handmade.write(Path(folder) / "small.hdf5", handmade.fields())
        closed = Path(folder) / "closed"
        closed.mkdir()
        os.chmod(folder, 0o755)
        os.chmod(closed, 0o555)
        with not_root(), pytest.raises(kabuki_rlds.KabukiError, match=r"out.hdf5.*Permission denied"):
            kabuki_rlds.convert(source, closed / "out.hdf5")
        assert list(closed.iterdir()) == []


def test_a_source_that_must_not_be_read_is_refused(tmp_path):
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
