"""Finds out what a source is by looking at it."""

from __future__ import annotations

import glob
import itertools
import logging
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from kabuki_rlds.errors import KabukiError
from kabuki_rlds.formats.envlogger import log
from kabuki_rlds.formats.hdf5.reader import KabukiSource
from kabuki_rlds.formats.layouts import minari_arrow
from kabuki_rlds.formats.source import Source

Path: TypeAlias = str | os.PathLike[str]

_log = logging.getLogger("kabuki_rlds")

#: How many things that are left out a warning names.
_NAMED = 5
#: A folder with this is a TFDS dataset.
_FEATURES = "features.json"
#: How the names of HDF5 files end.
_HDF5 = (".hdf5", ".h5")
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)$")


def open_source(source: Path, **options: Any) -> Source:
    """Opens one dataset: see `open_sources`."""
    (opened,) = open_sources([source], **options)
    return opened


def open_sources(
    sources: Sequence[Path],
    *,
    split: str | None = None,
    data_dir: Path | None = None,
    images: Literal["arrays", "encoded"] = "arrays",
    skip_bad: bool = False,
    assume: Mapping[str, str] | None = None,
    recipe_assume: Mapping[str, str] | None = None,
) -> list[Source]:
    """Opens datasets, whatever they are.

    Args:
      sources: each is a Kabuki HDF5 file, or one in a layout of others (`formats.layouts`); a folder of such files,
        or a pattern of their names (`data/*.hdf5`), which are taken in the order of the numbers in their names; a log
        of EnvLogger's, or a folder with logs in it; the folder of a TFDS dataset, or of one of its versions; or a TFDS
        name, `name[/config][:version]`, under `data_dir`.
      split: which split of a TFDS dataset, in TFDS's syntax, by default `train`; or which mask of demonstrations. A
        Kabuki file is one split, and so is a log.
      data_dir: where TFDS datasets are; by default `TFDS_DATA_DIR` or `~/tensorflow_datasets`.
      images: how images that are stored as image files are read.
      skip_bad: leave out the damaged episodes of a TFDS dataset or a log.
      assume: what files in a layout of others do not say: {"dones": "reward"}; see its module.
      recipe_assume: the same according to a recipe, which may be used for files that need no assumption.

    Returns:
      the sources in order. Files that follow each other in one layout of others are one source.

    Raises:
      KabukiError: there is no such dataset, or it is none of these.
    """
    opened: list[Source] = []
    try:
        for source in _opened(sources, split, data_dir, images, skip_bad, assume, recipe_assume):
            opened.append(source)
    except BaseException:
        for source in opened:
            source.close()
        raise
    return opened


def _opened(
    sources: Sequence[Path],
    split: str | None,
    data_dir: Path | None,
    images: Literal["arrays", "encoded"],
    skip_bad: bool,
    assume: Mapping[str, str] | None,
    recipe_assume: Mapping[str, str] | None,
) -> Iterator[Source]:
    from kabuki_rlds.formats.layouts import registry

    paths = [path for source in sources for path in locate_all(source, data_dir)]
    found = [(path, registry.layout_of(path)) for path in paths]
    if assume and not any(layout for _, layout in found):
        raise KabukiError(f"assume: {', '.join(assume)}: said of no file, since none is in a layout of others")
    assumed = {**(recipe_assume or {}), **(assume or {})}
    for layout, group in itertools.groupby(found, key=lambda each: each[1]):
        files = [path for path, _ in group]
        if layout is not None:
            yield from registry.open_files(layout, files, split=split, assume=assumed, images=images)
            continue
        for path in files:
            yield _open(path, split, images, skip_bad)


def _open(path: pathlib.Path, split: str | None, images: Literal["arrays", "encoded"], skip_bad: bool) -> Source:
    """Opens what is in no layout of others."""
    if path.is_file():
        try:
            source_file = KabukiSource(path)
        except KabukiError as e:
            from kabuki_rlds.formats.layouts import registry

            raise registry.unknown(path, e) from e
        try:
            source_file.check_whole()
            left_out = source_file.left_out()
        except BaseException:
            source_file.close()
            raise
        if left_out:
            more = f" and {len(left_out) - _NAMED:,} more" if len(left_out) > _NAMED else ""
            what = ", ".join(left_out[:_NAMED]) + more
            _log.warning("%s: left out, since the format has no place for it: %s", path, what)
        return source_file
    if not (path / _FEATURES).is_file():
        from kabuki_rlds.formats.envlogger.source import EnvLoggerSource

        return EnvLoggerSource(path, skip_bad=skip_bad)
    # TensorFlow is imported with it, so only when there is something to read.
    from kabuki_rlds.formats.rlds.source import RldsSource

    return RldsSource(path, "train" if split is None else split, images, skip_bad=skip_bad)


def locate_all(source: Path, data_dir: Path | None = None) -> list[pathlib.Path]:
    """Where a source is, as `locate` says; or all the HDF5 files that a folder holds, or whose names fit a pattern.

    Of a dataset of Minari's in Arrow or Parquet it is the folder with its data.

    Raises:
      KabukiError: there is no such dataset.
    """
    if not os.fspath(source):
        # A path would take it for the working folder, and all the files in there.
        raise KabukiError("the name of a source is empty; give that of a file, a folder or a dataset")
    path = pathlib.Path(os.path.expanduser(source))
    # Not asked of the path, which fails where a name is longer than a name can be.
    if not os.path.exists(path) and any(c in path.name for c in "*?["):
        files = [file for file in _glob(path) if file.is_file()]
        if not files:
            raise KabukiError(f"{source}: no file has such a name")
        return sorted(files, key=_by_number)
    if os.path.isdir(path) and not (path / _FEATURES).is_file():
        files = [file for file in path.rglob("*") if file.suffix in _HDF5 and file.is_file()]
        files = [file for file in files if file.parent == path or not _holds_parts(file.parent)]
        files += minari_arrow.find(path)
        if files:
            return sorted(files, key=_by_number)
    return [locate(source, data_dir)]


def _holds_parts(folder: pathlib.Path) -> bool:
    """Whether it is where `resume` keeps what is done of a file, which is no data of its own yet."""
    return folder.suffix == ".parts" and (folder / "plan.json").is_file()


def _glob(pattern: pathlib.Path) -> list[pathlib.Path]:
    return [pathlib.Path(found) for found in glob.glob(os.fspath(pattern), recursive=True)]


def _by_number(path: pathlib.Path) -> list[tuple[int, str]]:
    """Sorts `episode_2` before `episode_10`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", os.fspath(path))]


def locate(source: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Where a source is: a file, the folder of a version of a TFDS dataset, or one with logs. Reads nothing of it.

    Raises:
      KabukiError: there is no such dataset.
    """
    path = pathlib.Path(os.path.expanduser(source))
    if os.path.isfile(path):
        return path
    if os.path.isdir(path):
        return _version_folder(path, f"{path}")
    if data_dir is None:
        data_dir = os.environ.get("TFDS_DATA_DIR") or pathlib.Path.home() / "tensorflow_datasets"
    name, _, version = os.fspath(source).partition(":")
    named = pathlib.Path(os.path.expanduser(data_dir)) / name
    if path.is_absolute() or path.suffix in (".h5", ".hdf5") or ".." in path.parts or not os.path.isdir(named):
        raise KabukiError(
            f"{source}: no such file or folder, and no TFDS dataset of this name under {data_dir}; "
            "give the path of the dataset, or its name and --data-dir"
        )
    if version and not (named / version).is_dir():
        have = sorted(p.name for p in named.iterdir() if _VERSION.match(p.name))
        raise KabukiError(f"{source}: no such version in {named}; it has {', '.join(have) or 'none'}")
    return _version_folder(named / version if version else named, str(source))


def _version_folder(folder: pathlib.Path, label: str) -> pathlib.Path:
    """The folder itself if it holds a dataset or logs, else that of the newest version in it."""
    if (folder / _FEATURES).is_file():
        return folder
    inside = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    versions = {name: tuple(map(int, found.groups())) for name in inside if (found := _VERSION.match(name))}
    newest = max(versions, key=lambda name: versions[name], default=None)
    if newest is not None and (folder / newest / _FEATURES).is_file():
        return folder / newest
    if folder.is_dir() and next(log.find(folder), None) is not None:
        return folder
    hint = f"; it holds {', '.join(inside[:8])}" if inside else ""
    raise KabukiError(
        f"{label}: no TFDS dataset here, since there is no features.json, and no log of EnvLogger's{hint}"
    )
