"""Finds out what a source is by looking at it."""

from __future__ import annotations

import os
import pathlib
import re
from typing import Literal

from kabuki_rlds.errors import KabukiError
from kabuki_rlds.formats.envlogger import log
from kabuki_rlds.formats.hdf5.reader import KabukiSource
from kabuki_rlds.formats.source import Source

#: A folder with this is a TFDS dataset.
_FEATURES = "features.json"
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)$")


def open_source(
    source: str | os.PathLike[str],
    *,
    split: str = "train",
    data_dir: str | os.PathLike[str] | None = None,
    images: Literal["arrays", "encoded"] = "arrays",
    skip_bad: bool = False,
) -> Source:
    """Opens a dataset, whatever it is.

    Args:
      source: a Kabuki HDF5 file; a log of EnvLogger's, or a folder with logs in it; the
        folder of a TFDS dataset, or of one of its versions; or a TFDS name,
        `name[/config][:version]`, under `data_dir`.
      split: which split of a TFDS dataset, in TFDS's syntax. A Kabuki file is one split, and so is a log.
      data_dir: where TFDS datasets are; by default `TFDS_DATA_DIR` or `~/tensorflow_datasets`.
      images: how the images of a TFDS dataset are read.
      skip_bad: leave out the damaged episodes of a TFDS dataset or a log.

    Raises:
      KabukiError: there is no such dataset, or it is none of these.
    """
    path = locate(source, data_dir)
    if path.is_file():
        source_file = KabukiSource(path)
        try:
            source_file.check_whole()
        except BaseException:
            source_file.close()
            raise
        return source_file
    if not (path / _FEATURES).is_file():
        from kabuki_rlds.formats.envlogger.source import EnvLoggerSource

        return EnvLoggerSource(path, skip_bad=skip_bad)
    # TensorFlow is imported with it, so only when there is something to read.
    from kabuki_rlds.formats.rlds.source import RldsSource

    return RldsSource(path, split, images, skip_bad=skip_bad)


def locate(source: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Where a source is: a file, the folder of a version of a TFDS dataset, or one with logs. Reads nothing of it.

    Raises:
      KabukiError: there is no such dataset.
    """
    path = pathlib.Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        return _version_folder(path, f"{path}")
    if data_dir is None:
        data_dir = os.environ.get("TFDS_DATA_DIR") or pathlib.Path.home() / "tensorflow_datasets"
    name, _, version = os.fspath(source).partition(":")
    named = pathlib.Path(data_dir).expanduser() / name
    if path.is_absolute() or path.suffix in (".h5", ".hdf5") or ".." in path.parts or not named.is_dir():
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
