"""A resumed conversion writes the same file as an uninterrupted one."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import kabuki_rlds
from kabuki_rlds.cli.main import main
from tests import handmade


def contents(item: h5py.Group | h5py.Dataset) -> dict[str, Any]:
    """Returns the contents of a file: names, types, chunks, filters, attributes, and the bytes of the values."""
    found: dict[str, Any] = {"attributes": {name: np.asarray(value).tolist() for name, value in item.attrs.items()}}
    if isinstance(item, h5py.Group):
        return found | {name: contents(inner) for name, inner in item.items()}
    properties = item.id.get_create_plist()
    filters = [properties.get_filter(i) for i in range(properties.get_nfilters())]
    found |= {"type": item.id.get_type().encode(), "shape": item.shape, "chunks": item.chunks, "filters": filters}
    if h5py.check_vlen_dtype(item.dtype) and not h5py.check_string_dtype(item.dtype):
        return found | {"values": [row.tobytes() for row in item[:]]}
    if item.dtype.kind == "O":
        return found | {"values": item[:].tolist()}
    if item.chunks and item.size:
        chunks = [item.id.get_chunk_info(i).chunk_offset for i in range(item.id.get_num_chunks())]
        found["stored"] = {offset: item.id.read_direct_chunk(offset) for offset in chunks}
    return found | {"values": item[()].tobytes()}


def assert_same(a: Path, b: Path) -> None:
    with h5py.File(a) as mine, h5py.File(b) as other:
        # Not compared with `assert`, because pytest would format a difference of the whole contents.
        assert list(differing(contents(mine), contents(other))) == []


def differing(mine: Any, other: Any, at: str = "") -> Iterator[str]:
    """Yields the paths at which two contents differ."""
    if isinstance(mine, dict) and isinstance(other, dict):
        for name in mine | other:
            yield from differing(mine.get(name), other.get(name), f"{at}/{name}")
    elif mine != other:
        yield at


@pytest.fixture
def small_parts(monkeypatch) -> None:
    """Sets a small part size, so that a part contains a few episodes."""
    monkeypatch.setattr(sys.modules["kabuki_rlds.commands.resume"], "_PART_BYTES", 4000)


class StoppedError(Exception):
    pass


@pytest.fixture
def stop_after(monkeypatch):
    """Returns a function: after `stop_after(n)`, a conversion stops after its `n`-th part as if it were killed."""
    from kabuki_rlds.formats.hdf5.sink import KabukiSink

    commit = KabukiSink.commit
    left = [-1]

    def stopping(self, *what) -> None:
        commit(self, *what)
        left[0] -= 1
        if not left[0]:
            raise StoppedError

    monkeypatch.setattr(KabukiSink, "commit", stopping)
    return lambda count: left.__setitem__(0, count)


def parts(dest: Path) -> list[str]:
    return sorted(path.name for path in dest.with_name(f"{dest.name}.parts").glob("*.hdf5"))


RECIPES = ["plain", "array_record", "every_kind", "uncovered", "zero_size", "oxe_style", "no_discount", "no_steps"]


@pytest.mark.parametrize("images", ["arrays", "encoded"])
@pytest.mark.parametrize("name", RECIPES)
def test_resumed_conversion_keeps_every_kind_of_field(
    name, images, dataset, converted, small_parts, stop_after, tmp_path
):
    dest = tmp_path / "out.hdf5"
    stop_after(2)
    with pytest.raises(StoppedError):
        kabuki_rlds.convert(dataset(name), dest, images=images, resume=True)
    # Of a dataset that is one part, the second file to be whole is the one that was asked for.
    assert dest.exists() == (len(parts(dest)) == 1)
    stop_after(-1)
    kabuki_rlds.convert(dataset(name), dest, images=images, resume=True, overwrite=True)
    assert_same(dest, converted(name, images))
    assert [path.name for path in tmp_path.iterdir()] == ["out.hdf5"]


@pytest.mark.parametrize("options", [{"conform": True}, {"fill": {"reward": 2.0}, "compression": "none"}])
def test_resumed_conversion_reports_changed_and_derived_fields_of_all_sources(
    options, dataset, small_parts, stop_after, tmp_path
):
    name = "no_reward" if "fill" in options else "oxe_style"
    other = kabuki_rlds.convert(dataset(name), tmp_path / "other.hdf5", fill={"reward": 1.0}).path
    sources = [dataset(name), other, dataset(name)]
    undisturbed = kabuki_rlds.convert(sources, tmp_path / "undisturbed.hdf5", **options)
    dest = tmp_path / "out.hdf5"
    for count in (1, 1, 2, 2):
        stop_after(count)
        with pytest.raises(StoppedError):
            kabuki_rlds.convert(sources, dest, resume=True, **options)
    assert len(parts(dest)) == 6
    stop_after(-1)
    result = kabuki_rlds.convert(sources, dest, resume=True, **options)
    assert (result.changed, result.derived) == (undisturbed.changed, undisturbed.derived)
    assert (result.warnings, result.num_steps) == (undisturbed.warnings, undisturbed.steps)
    assert_same(dest, undisturbed.path)


def test_resume_does_not_read_finished_episodes_again(dataset, small_parts, stop_after, tmp_path, monkeypatch):
    from kabuki_rlds.formats.rlds.pipeline import Pipeline

    read = Pipeline.read
    episodes = []

    def count(self, shards, batch):
        episodes.append(sum(shard.expected for shard in shards))
        return read(self, shards, batch)

    dest = tmp_path / "out.hdf5"
    stop_after(1)
    with pytest.raises(StoppedError):
        kabuki_rlds.convert(dataset("plain"), dest, resume=True)
    stop_after(-1)
    monkeypatch.setattr(Pipeline, "read", count)
    kabuki_rlds.convert(dataset("plain"), dest, resume=True)
    assert 0 < sum(episodes) < 10


def test_conversion_of_a_kabuki_file_is_resumed_by_episodes(tmp_path, small_parts, stop_after):
    lengths = [3, 0, 0, 500, 1, 700, 2, 0]
    fields = handmade.fields([n for n in lengths if n], [True] * 5) | handmade.index(lengths)
    source = handmade.write(tmp_path / "in.hdf5", fields)
    undisturbed = kabuki_rlds.convert(source, tmp_path / "undisturbed.hdf5").path
    dest = tmp_path / "out.hdf5"
    stop_after(2)
    with pytest.raises(StoppedError):
        kabuki_rlds.convert(source, dest, resume=True)
    assert parts(dest)
    stop_after(-1)
    kabuki_rlds.convert(source, dest, resume=True)
    assert_same(dest, undisturbed)


def test_episodes_of_stored_parts_keep_their_origins(tmp_path, small_parts, stop_after):
    files = [handmade.write(tmp_path / f"{name}.hdf5", handmade.fields((300,), (True,))) for name in "ab"]
    source = kabuki_rlds.convert(files, tmp_path / "in.hdf5").path
    dest = tmp_path / "out.hdf5"
    stop_after(2)
    with pytest.raises(StoppedError):
        kabuki_rlds.convert(source, dest, resume=True)
    assert len(parts(dest)) == 2
    stop_after(-1)
    kabuki_rlds.convert(source, dest, resume=True)
    with h5py.File(dest) as f:
        assert f["episodes/source"][:].tolist() == [0, 1]
        assert [origin["path"] for origin in json.loads(f.attrs["sources"])] == list(map(str, files))


@pytest.fixture
def stopped(dataset, small_parts, stop_after, tmp_path) -> Path:
    """Returns the destination of an interrupted conversion."""
    dest = tmp_path / "out.hdf5"
    stop_after(2)
    with pytest.raises(StoppedError):
        kabuki_rlds.convert(dataset("plain"), dest, resume=True)
    stop_after(-1)
    return dest


def test_resume_with_other_options_is_rejected_and_names_them(stopped, dataset):
    for options, what in (
        ({"conform": True}, "conform"),
        ({"split": "test"}, "sources, files"),
        ({"fill": {"reward": 1.0}}, "fill"),
    ):
        folder = re.escape(f"{stopped}.parts")
        message = f"^{folder}: contains parts of a conversion with different {what};"
        with pytest.raises(kabuki_rlds.InvalidArgumentError, match=message):
            kabuki_rlds.convert(dataset("plain"), stopped, resume=True, **options)
    assert len(parts(stopped)) == 2


def test_resume_rejects_a_source_that_changed(stopped, dataset, tmp_path):
    dest = tmp_path / "again.hdf5"
    os.rename(f"{stopped}.parts", f"{dest}.parts")
    plan = Path(f"{dest}.parts", "plan.json")
    was = json.loads(plan.read_text())
    was["files"][next(iter(was["files"]))][1] += 1
    plan.write_text(json.dumps(was))
    with pytest.raises(kabuki_rlds.KabukiError, match="with different files; repeat the earlier call, or"):
        kabuki_rlds.convert(dataset("plain"), dest, resume=True)


def test_conversion_without_resume_restarts_and_removes_parts(stopped, dataset, converted):
    kabuki_rlds.convert(dataset("plain"), stopped)
    assert [path.name for path in stopped.parent.iterdir()] == ["out.hdf5"]
    assert_same(stopped, converted("plain"))


def test_parts_folder_without_a_plan_is_not_removed(dataset, tmp_path):
    folder = tmp_path / "out.hdf5.parts"
    folder.mkdir()
    (folder / "00000.hdf5").write_bytes(b"mine")
    kabuki_rlds.convert(dataset("plain"), tmp_path / "out.hdf5")
    assert (folder / "00000.hdf5").read_bytes() == b"mine"


def test_unwritable_parts_are_reported(dataset, tmp_path):
    (tmp_path / "out.hdf5.parts").write_bytes(b"a file")
    with pytest.raises(kabuki_rlds.KabukiError, match=r"out.hdf5.parts: cannot be used"):
        kabuki_rlds.convert(dataset("plain"), tmp_path / "out.hdf5", resume=True)


def test_damaged_plan_is_reported(stopped, dataset):
    Path(f"{stopped}.parts", "plan.json").write_text("{")
    with pytest.raises(kabuki_rlds.KabukiError, match=r"cannot be used .*; leave out resume=True"):
        kabuki_rlds.convert(dataset("plain"), stopped, resume=True)


def damage_counts(text: str | None):
    def damage(folder: Path) -> None:
        (folder / "00001.json").unlink() if text is None else (folder / "00001.json").write_text(text)

    return damage


def swap(folder: Path) -> None:
    for end in ("hdf5", "json"):
        (folder / f"00000.{end}").rename(folder / "other")
        (folder / f"00001.{end}").rename(folder / f"00000.{end}")
        (folder / "other").rename(folder / f"00001.{end}")


def lose_a_field(folder: Path) -> None:
    with h5py.File(folder / "00001.hdf5", "r+") as part:
        del part["action"]


def become_a_folder(folder: Path) -> None:
    (folder / "00001.hdf5").unlink()
    (folder / "00001.hdf5").mkdir()


DAMAGES = {
    "no counts": damage_counts(None),
    "counts cut short": damage_counts("{"),
    "counts nested without end": damage_counts("[" * 100_000),
    "counts that are a list": damage_counts("[1]"),
    "counts that are text": damage_counts('{"reward": "1"}'),
    "a part cut short": lambda folder: os.truncate(folder / "00001.hdf5", 500),
    "parts in another order": swap,
    "a part that lacks a field": lose_a_field,
    "a part that is a folder": become_a_folder,
    "a plan nested without end": lambda folder: (folder / "plan.json").write_text("[" * 100_000),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_parts_are_named_with_a_remedy(damage, stopped, dataset):
    DAMAGES[damage](Path(f"{stopped}.parts"))
    with pytest.raises(
        kabuki_rlds.KabukiError, match=r"out.hdf5.parts.*leave out resume=True to restart the conversion"
    ):
        kabuki_rlds.convert(dataset("plain"), stopped, resume=True)
    assert not stopped.exists()


def test_parts_without_a_plan_are_rejected(stopped, dataset):
    Path(f"{stopped}.parts", "plan.json").unlink()
    with pytest.raises(
        kabuki_rlds.KabukiError,
        match=r"out.hdf5.parts: contains part files but no plan.json; move or remove",
    ):
        kabuki_rlds.convert(dataset("plain"), stopped, resume=True)


def test_parts_that_are_also_sources_are_kept(stopped):
    # For example, the parts of a source that no longer exists.
    were = parts(stopped)
    with pytest.raises(kabuki_rlds.KabukiError, match="would be deleted; write to another file"):
        kabuki_rlds.convert(f"{stopped}.parts/*.hdf5", stopped)
    assert parts(stopped) == were
    assert kabuki_rlds.convert(f"{stopped}.parts/*.hdf5", stopped.with_name("saved.hdf5")).num_episodes > 0


def test_parts_in_the_source_folder_are_not_sources(small_parts, stop_after, tmp_path):
    for name in "ab":
        handmade.write(tmp_path / f"{name}.hdf5", handmade.fields((300, 300), (True, True)))
    stop_after(2)
    with pytest.raises(StoppedError):
        kabuki_rlds.convert(tmp_path, tmp_path / "out.hdf5", resume=True)
    stop_after(-1)
    assert parts(tmp_path / "out.hdf5")
    assert kabuki_rlds.convert(tmp_path, tmp_path / "out.hdf5", resume=True).num_episodes == 4


def test_full_disk_error_names_the_file(dataset, small_parts, tmp_path, monkeypatch):
    def full(file: int) -> None:
        if os.readlink(f"/proc/self/fd/{file}").endswith("00000.json"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(kabuki_rlds.KabukiError, match=r"00000.json: cannot be written \(No space"):
        kabuki_rlds.convert(dataset("plain"), tmp_path / "out.hdf5", resume=True)


def test_unremovable_parts_are_reported(stopped, dataset):
    Path(f"{stopped}.parts", "00007.hdf5").mkdir()
    with pytest.raises(kabuki_rlds.KabukiError, match=r"00007.hdf5: cannot be removed .* by hand"):
        kabuki_rlds.convert(dataset("plain"), stopped)


def test_interrupt_message_explains_how_to_resume(dataset, small_parts, tmp_path, capfd, monkeypatch):
    from kabuki_rlds.formats.hdf5.sink import KabukiSink

    def interrupted(self) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(KabukiSink, "commit", interrupted)
    assert main(["convert", str(dataset("plain")), str(tmp_path / "out.hdf5"), "--resume", "--quiet"]) == 1
    assert capfd.readouterr().err == "kabuki-rlds: error: interrupted; run the same command again to resume\n"


_SMALL_PARTS = """
import sys
from kabuki_rlds.commands import resume
from kabuki_rlds.cli.main import main
resume._PART_BYTES = 20_000
sys.exit(main(sys.argv[1:]))
"""


def test_conversion_resumed_after_kills_equals_an_uninterrupted_one(tmp_path):
    rng = random.Random(5)
    source = handmade.write(tmp_path / "in.hdf5", handmade.fields([1000] * 300, [True] * 300))
    undisturbed = kabuki_rlds.convert(source, tmp_path / "undisturbed.hdf5").path
    dest = tmp_path / "made" / "out.hdf5"
    dest.parent.mkdir()
    command = [sys.executable, "-c", _SMALL_PARTS, "convert", str(source), str(dest), "--resume", "--quiet"]
    for _ in range(3):
        before = len(parts(dest))
        with subprocess.Popen(command) as process:
            more = rng.randint(1, 4)
            while process.poll() is None and len(parts(dest)) < before + more:
                pass
            process.kill()
        assert not dest.exists()
    subprocess.run(command, check=True)
    assert_same(dest, undisturbed)
    assert [path.name for path in dest.parent.iterdir()] == ["out.hdf5"]
