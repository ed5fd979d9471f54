"""Destinations that are symbolic links: `overwrite` replaces a link, and a recording follows it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import kabuki_rlds
from kabuki_rlds import Logger
from tests import handmade
from tests.disks import small_disk

WRITERS: dict[str, Callable[..., object]] = {
    "convert": lambda source, dest, **options: kabuki_rlds.convert(source, dest, **options),
    "resume": lambda source, dest, **options: kabuki_rlds.convert(source, dest, resume=True, **options),
    "robomimic": lambda source, dest, **options: kabuki_rlds.export(source, dest, "robomimic", **options),
    "build": lambda source, dest, **options: kabuki_rlds.build(source, dest.parent.parent, name="x", **options),
    "minari": lambda source, dest, **options: kabuki_rlds.export(source, dest.parent, "minari", **options),
}


def destination(kind: str, folder: Path) -> Path:
    """The path that is renamed at the end."""
    return folder / {"build": "x/1.0.0", "minari": "x-v0/data"}.get(kind, "x.hdf5")


@pytest.fixture
def file(tmp_path) -> Path:
    return handmade.write(tmp_path / "in.hdf5", handmade.fields([3, 4], [True, False]))


def content(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return {str(each.relative_to(path.parent)): each.read_bytes() for each in files if each.is_file()}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("is_broken", [False, True])
def test_overwrite_replaces_a_link_and_not_what_it_leads_to(kind, is_broken, file, tmp_path):
    target = destination(kind, tmp_path / "target")
    dest = destination(kind, tmp_path / "links")
    dest.parent.mkdir(parents=True)
    if not is_broken:
        target.parent.mkdir(parents=True)
        WRITERS[kind](file, target)
    dest.symlink_to(target)
    before = content(target) if target.exists() else {}
    with pytest.raises(kabuki_rlds.DestinationExistsError, match="already exists"):
        WRITERS[kind](file, dest)
    WRITERS[kind](file, dest, overwrite=True)
    assert dest.exists() and not dest.is_symlink()
    assert [path.name for path in dest.parent.iterdir()] == [dest.name]
    assert (content(target) if target.exists() else {}) == before


@pytest.mark.parametrize("kind", ["convert", "build"])
def test_overwrite_replaces_a_link_to_another_file_system(kind, file, tmp_path):
    with small_disk(tmp_path / "disk", "10m") as disk:
        target = destination(kind, disk)
        target.parent.mkdir(parents=True, exist_ok=True)
        WRITERS[kind](file, target)
        before = content(target)
        dest = destination(kind, tmp_path / "links")
        dest.parent.mkdir(parents=True)
        dest.symlink_to(target)
        WRITERS[kind](file, dest, overwrite=True)
        assert not dest.is_symlink()
        assert content(target) == before


@pytest.mark.parametrize("kind", ["convert", "build"])
def test_a_link_in_place_of_a_parent_folder_is_followed(kind, file, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for overwrite in (False, True):
        WRITERS[kind](file, destination(kind, tmp_path / "link"), overwrite=overwrite)
    assert (tmp_path / "link").is_symlink()
    assert destination(kind, tmp_path / "real").exists()


@pytest.mark.parametrize("is_broken", [False, True])
def test_a_recording_appends_to_the_file_that_a_link_leads_to(is_broken, tmp_path):
    target, link = tmp_path / "target.hdf5", tmp_path / "link.hdf5"
    link.symlink_to(target)

    def record(path: Path) -> None:
        with Logger(path) as logger:
            logger.reset(0.0)
            logger.step(1, 1.0, 1.0, terminal=True)

    if not is_broken:
        record(target)
    with Logger(link) as logger:
        logger.reset(0.0)
        logger.step(1, 1.0, 1.0, terminal=True)
        with pytest.raises(kabuki_rlds.KabukiError, match="another process records there"):
            record(target)
    assert link.is_symlink()
    assert kabuki_rlds.inspect(target).num_episodes == 2 - is_broken
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.hdf5", "target.hdf5"]


@pytest.mark.parametrize("kind", ["convert", "robomimic"])
def test_a_link_to_a_folder_is_not_replaced_by_a_file(kind, file, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "x.hdf5").symlink_to(tmp_path / "folder")
    with pytest.raises(kabuki_rlds.KabukiError, match="is a folder"):
        WRITERS[kind](file, tmp_path / "x.hdf5", overwrite=True)
    assert (tmp_path / "x.hdf5").is_symlink()
