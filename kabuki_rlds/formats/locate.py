"""Finds the files and folders that a source names: a path, a pattern, or the name of a TFDS dataset.

A folder, and all that a pattern matches, is read as follows:

* A TFDS dataset or an EnvLogger log takes precedence over HDF5 files. The HDF5 files are reported.
* Of several versions of a TFDS dataset, the newest is taken, as TFDS does.
* TFDS datasets with different names are joined in the order of their names. A folder with several configs of one
  dataset is an error.
* HDF5 files are taken in the order of the numbers in their names.

macOS keeps attributes of a file in a file named `._<name>` beside it. These are ignored.
"""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
import glob
import itertools
import json
import logging
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from kabuki_rlds.arguments import argument
from kabuki_rlds.data.limits import MAX_JSON_BYTES
from kabuki_rlds.errors import InvalidArgumentError, KabukiError, SourceNotFoundError
from kabuki_rlds.files.paths import StrPath, local_path, subfolders
from kabuki_rlds.files.side_files import read_side_file
from kabuki_rlds.formats.demos.minari import METADATA
from kabuki_rlds.formats.demos.minari_arrow import MINARI_ARROW
from kabuki_rlds.formats.envlogger import log
from kabuki_rlds.formats.episode_log import codec as episode_log

#: A folder with this file is a version of a TFDS dataset.
FEATURES = "features.json"
_INFO = "dataset_info.json"
_HDF5_SUFFIXES = (".hdf5", ".h5")
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
#: TFDS's form of a version: numbers without leading zeros.
_NUMBER = r"(0|[1-9]\d*)"
_VERSION = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}")
#: A version that is being written, or was not completed: `incomplete.ABC_1.0.0` or `1.0.0.incompleteABC` of TFDS,
#: `1.0.0.partial` or `1.0.0.old` of this package.
_INCOMPLETE = re.compile(rf"incomplete\..*_{_VERSION.pattern}|{_VERSION.pattern}\.(incomplete.*|partial|old)")
_MACOS_PREFIX = "._"
#: How many names a message lists.
_NAMED = 10


@dataclasses.dataclass(frozen=True)
class Located:
    """The files and folders that a source names.

    Attributes:
      paths: HDF5 files, folders of a version of a TFDS dataset, folders with EnvLogger logs or the log of a
        recording, and folders with a Minari dataset in Arrow or Parquet, in the order in which they are read.
      notes: messages for the user about the choice, each with its log level.
    """

    paths: list[pathlib.Path]
    notes: list[tuple[int, str]]


@dataclasses.dataclass
class _Contents:
    """The datasets in a folder, or those that a pattern matches.

    Attributes:
      datasets: folders of versions of TFDS datasets.
      logs: folders with EnvLogger logs.
      files: HDF5 files, folders with a Minari dataset in Arrow or Parquet, and folders with the log of a recording.
      notes: as in `Located`.
    """

    datasets: list[pathlib.Path] = dataclasses.field(default_factory=list)
    logs: list[pathlib.Path] = dataclasses.field(default_factory=list)
    files: list[pathlib.Path] = dataclasses.field(default_factory=list)
    notes: list[tuple[int, str]] = dataclasses.field(default_factory=list)

    def add(self, other: _Contents) -> None:
        """Adds what another one holds, and nothing twice."""
        self.datasets = list(dict.fromkeys([*self.datasets, *other.datasets]))
        self.logs = list(dict.fromkeys([*self.logs, *other.logs]))
        self.files = list(dict.fromkeys([*self.files, *other.files]))
        self.notes += other.notes

    @property
    def is_empty(self) -> bool:
        return not (self.datasets or self.logs or self.files)


def locate(source: StrPath, data_dir: StrPath | None = None) -> Located:
    """Finds what a source names. No data is read.

    Args:
      source: the path of a file or a folder; a pattern (`runs/*/demo.hdf5`, `data/**/*.h5`), whose wildcards may be in
        any component; or the name of a TFDS dataset, `name[/config][:version]`.
      data_dir: the folder that holds the TFDS datasets; by default `TFDS_DATA_DIR` or `~/tensorflow_datasets`.

    Raises:
      KabukiError: there is no such source, it is a URL, or a folder holds several configs of one TFDS dataset.
    """
    if not os.fspath(source):
        raise InvalidArgumentError("the name of a source is empty; give the name of a file, a folder or a dataset")
    path = local_path(source)
    data_dir = None if data_dir is None else local_path(data_dir)
    # `os.path` returns False for a name that is too long. `pathlib` raises an error.
    if os.path.isfile(path):
        return Located([path], [])
    if os.path.isdir(path):
        named = None if data_dir is None else _named_dataset(source, data_dir)
        return _in_folder(path, str(source)) if named is None else _shadowing(path, named)
    if not os.path.lexists(path) and glob.has_magic(os.fspath(path)):
        return _matches(path, str(source))
    if os.path.exists(path):
        raise KabukiError(f"{path}: not a regular file")
    return _by_name(source, data_dir)


def is_looked_up(source: StrPath, data_dir: StrPath) -> bool:
    """Returns whether a source is looked up in a folder of TFDS datasets: it is a name, or a path in that folder."""
    path, folder = local_path(source), local_path(data_dir)
    if not os.path.lexists(path) and not glob.has_magic(os.fspath(path)):
        return True
    is_within = os.path.realpath(folder) in map(os.fspath, pathlib.Path(os.path.realpath(path)).parents)
    return is_within or _named_dataset(source, folder) is not None


def _by_name(source: StrPath, data_dir: pathlib.Path | None) -> Located:
    """Finds a TFDS dataset by its name, `name[/config][:version]`.

    Raises:
      KabukiError: there is no such dataset or version.
    """
    folder = local_path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    named = _named_dataset(source, folder)
    if named is None:
        raise _not_found(source, folder, data_dir is not None)
    version = os.fspath(source).partition(":")[2]
    if not version:
        return _in_folder(named, str(source))
    if not (named / version / FEATURES).is_file():
        have = [each.name for each in _versions(named)]
        raise KabukiError(f"{source}: no such version in {named}; it has {', '.join(have) or 'none'}")
    return Located([named / version], [])


def _named_dataset(source: StrPath, data_dir: pathlib.Path) -> pathlib.Path | None:
    """Returns the folder of the TFDS dataset or config of this name; None if there is none."""
    name = os.fspath(source).partition(":")[0]
    path = pathlib.PurePath(name)
    if not name or path.is_absolute() or ".." in path.parts or _is_hdf5_name(name):
        return None
    folder = data_dir / name
    return folder if os.path.isdir(folder) else None


def _not_found(source: StrPath, data_dir: pathlib.Path, is_given: bool) -> SourceNotFoundError:
    if not is_given:
        return SourceNotFoundError(
            f"{source}: no such file or folder, and no TFDS dataset of this name under {data_dir}; give the path of "
            f"the dataset, or its name and the folder that holds it (TFDS_DATA_DIR, or {argument('data_dir')})"
        )
    if not os.path.isdir(data_dir):
        return SourceNotFoundError(f"{source}: no such file or folder, and the folder {data_dir} does not exist")
    have = sorted(each.name for each in data_dir.iterdir() if each.is_dir() and not each.name.startswith("."))
    return SourceNotFoundError(
        f"{source}: no such file or folder, and {data_dir} holds no dataset of this name "
        f"(it holds {_listed(have) or 'no folder'})"
    )


def _shadowing(path: pathlib.Path, named: pathlib.Path) -> Located:
    """Finds the datasets in the local folder `path`, which has the name of the TFDS dataset in the folder `named`."""
    if os.path.samefile(path, named):
        return _in_folder(path, str(path))
    shadows = f"the local folder {path.absolute()} has the name of the TFDS dataset {named}"
    try:
        found = _in_folder(path, str(path))
    except KabukiError as e:
        raise KabukiError(f"{e}; {shadows}: to read that, give its path") from e
    note = (logging.WARNING, f"{shadows}, and is read instead of it; to read the dataset, give its path")
    return dataclasses.replace(found, notes=[note, *found.notes])


def _in_folder(folder: pathlib.Path, label: str) -> Located:
    """Finds the datasets in a folder.

    Raises:
      KabukiError: it holds nothing that can be read, or several configs of one TFDS dataset.
    """
    contents = _contents_of(folder)
    if contents.is_empty:
        inside = sorted(each.name for each in folder.iterdir() if not each.name.startswith("."))
        holds = f" (it holds {_listed(inside)})" if inside else " (it is empty)"
        raise KabukiError(f"{label}: holds no TFDS dataset (features.json), no EnvLogger log and no HDF5 file{holds}")
    _check_configs(contents.datasets, label)
    return _choose(contents, folder, label)


def _matches(pattern: pathlib.Path, label: str) -> Located:
    """Finds all datasets that a pattern matches.

    Raises:
      KabukiError: it matches nothing that can be read.
    """
    *above, last = pattern.parts
    if last == "**":
        # A folder is read with all that is below it.
        pattern = pathlib.Path(*above)
        if not glob.has_magic(os.fspath(pattern)):
            return _in_folder(pattern, label)
    matched = sorted(_expand(pattern), key=_by_number)
    if not matched:
        raise KabukiError(f"{label}: no file or folder matches this pattern")
    contents = _Contents()
    others: list[pathlib.Path] = []
    for path in matched:
        if path.is_dir():
            inside = _contents_of(path)
            if inside.is_empty:
                others.append(path)
            elif path not in inside.datasets:
                _check_configs(inside.datasets, str(path))
            contents.add(inside)
        elif path.is_file() and (_is_hdf5_name(path.name) or _is_hdf5(path)):
            contents.files.append(path)
        else:
            others.append(path)
    contents.logs = [path for path in contents.logs if not any(each in path.parents for each in contents.logs)]
    if contents.is_empty:
        names = _listed([os.fspath(path) for path in others])
        raise KabukiError(f"{label}: matches no HDF5 file and no folder with a dataset; it matches {names}")
    found = {*contents.datasets, *contents.logs, *contents.files}
    folders = {parent for path in found for parent in path.parents}
    others = [path for path in others if path not in folders and found.isdisjoint(path.parents)]
    if others:
        names = _listed([os.fspath(path) for path in others])
        contents.notes.append((logging.WARNING, f"{label}: matches what is no dataset, and is ignored: {names}"))
    return _choose(contents, _fixed_part(pattern), label)


def _choose(contents: _Contents, base: pathlib.Path, label: str) -> Located:
    """Selects the datasets to read of those that were found. Messages name them relative to the folder `base`."""
    notes = list(contents.notes)

    def names(paths: Sequence[pathlib.Path]) -> list[str]:
        return [os.path.relpath(path, base) for path in paths]

    newest = _newest(contents.datasets)
    older = [path for path in contents.datasets if path not in newest]
    if older:
        notes.append((logging.INFO, f"{label}: older versions are not read: {_listed(names(older))}"))
    whole = sorted([*newest, *contents.logs], key=_by_number)
    if not whole:
        return Located(sorted(contents.files, key=_by_number), notes)
    if contents.files:
        kind = "TFDS dataset" if newest else "EnvLogger log"
        notes.append(
            (logging.WARNING, f"{label}: holds a {kind}; HDF5 files are not read: {_listed(names(contents.files))}")
        )
    if len(whole) > 1:
        notes.append((logging.INFO, f"{label}: joins {len(whole)} datasets in this order: {', '.join(names(whole))}"))
    return Located(whole, notes)


def _contents_of(folder: pathlib.Path) -> _Contents:
    """Finds the datasets in a folder and below it, with the newest version of each TFDS dataset.

    Raises:
      KabukiError: the newest version of a dataset is incomplete.
    """
    found = _Contents()
    for path, below, files in _walk(folder, found.notes):
        if FEATURES in files:
            found.datasets.append(path)
        elif episode_log.NAME in files or (METADATA in files and MINARI_ARROW.recognises(path)):
            found.files.append(path)
            below.clear()
        found.files += [path / name for name in files if _is_hdf5_name(name) and (path / name).is_file()]
    # Datasets in folders below a dataset do not belong to it.
    direct = [path for path in found.datasets if path == folder] or [
        path for path in found.datasets if path in _versions(folder)
    ]
    found.datasets = _newest(direct or found.datasets)
    for path in found.datasets:
        newest = _versions(path.parent)[-1] if _VERSION.fullmatch(path.name) and path != folder else path
        if newest != path:
            raise KabukiError(
                f"{newest}: the newest version of this dataset has no {FEATURES}, so it is incomplete; to read another "
                f"version, give its path: {path}"
            )
    logs = list(log.find(folder))
    if direct and logs:
        names = _listed([os.path.relpath(path, folder) for path in logs])
        found.notes.append((logging.WARNING, f"{folder}: holds a TFDS dataset; logs are not read: {names}"))
    elif logs:
        found.logs = logs if found.datasets else [folder]  # Logs that are alone in a folder are one source.
    found.files.sort(key=_by_number)
    return found


def _walk(folder: pathlib.Path, notes: list[tuple[int, str]]) -> Iterator[tuple[pathlib.Path, list[str], list[str]]]:
    """Walks a folder like `os.walk`, without unfinished datasets. Links are followed only in `folder` itself."""
    tops = [folder, *(each for each in subfolders(folder) if each.is_symlink())]
    for path, below, files in itertools.chain.from_iterable(map(os.walk, tops)):
        here = pathlib.Path(path)
        if here != folder and _is_unfinished(here, notes):
            below.clear()
            continue
        below.sort()
        yield here, below, [name for name in files if not name.startswith(_MACOS_PREFIX)]


def _is_unfinished(folder: pathlib.Path, notes: list[tuple[int, str]]) -> bool:
    """Returns whether a folder is an unfinished dataset, recording or conversion."""
    if _INCOMPLETE.fullmatch(folder.name):
        return True
    if folder.suffix == ".recording" and _is_hdf5_name(folder.stem):
        notes.append((logging.WARNING, f"{folder}: the recording has not ended and is not read; its path names it"))
        return True
    # Parts of a conversion with `resume`.
    return folder.suffix == ".parts" and (folder / "plan.json").is_file()


def _versions(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders in a folder that are named like a version, newest last."""
    found = [path for path in folder.iterdir() if _VERSION.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=_version)


def _version(path: pathlib.Path) -> tuple[int, ...]:
    return tuple(map(int, path.name.split(".")))


def _newest(datasets: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """Returns the newest version of each dataset."""
    newest: dict[tuple[pathlib.Path, bool], pathlib.Path] = {}
    for path in datasets:
        is_version = _VERSION.fullmatch(path.name) is not None
        key = (path.parent if is_version else path, is_version)
        if key not in newest or _version(path) > _version(newest[key]):
            newest[key] = path
    return list(newest.values())


def _check_configs(datasets: Sequence[pathlib.Path], label: str) -> None:
    """Refuses datasets among which are several configs of one.

    Raises:
      KabukiError: there are.
    """
    configs: dict[tuple[pathlib.Path, str], list[tuple[str, str]]] = collections.defaultdict(list)
    for path in datasets:
        folder = path.parent if _VERSION.fullmatch(path.name) else path
        name, config = _identity(path)
        if name:
            configs[folder.parent, name].append((folder.name, config))
    for (parent, name), group in configs.items():
        # TFDS before 4.0 does not state the config. The folder of a dataset has its name.
        if len(group) > 1 and (parent.name == name or all(config for _, config in group)):
            folders = [folder for folder, _ in group]
            raise KabukiError(
                f"{label}: holds {len(group)} configs of the dataset {name!r}: {', '.join(folders)}; give the path of "
                f"one of them, such as {parent / folders[0]}"
            )


def _identity(folder: pathlib.Path) -> tuple[str, str]:
    """(name, config) of the TFDS dataset in a folder; "" for what it does not state."""
    path = folder / _INFO
    try:
        stated: Any = json.loads(read_side_file(path, MAX_JSON_BYTES))
    except (KabukiError, OSError, ValueError, RecursionError):
        # The dataset is rejected when it is read.
        return "", ""
    if not isinstance(stated, dict):
        return "", ""
    # Protocol buffers as JSON have either form.
    return str(stated.get("name") or ""), str(stated.get("configName") or stated.get("config_name") or "")


def _expand(pattern: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the paths that a pattern matches. `**` matches any number of folders, and does not follow links."""
    base = _fixed_part(pattern)
    parts = [name for name, _ in itertools.groupby(pattern.parts[len(base.parts) :], key=lambda name: name)]
    return iter(dict.fromkeys(_expanded(base, parts)))


def _fixed_part(pattern: pathlib.Path) -> pathlib.Path:
    """Returns the part of a pattern before its first component with a wildcard."""
    fixed = itertools.takewhile(lambda name: not glob.has_magic(name), pattern.parts)
    return pathlib.Path(*fixed)


def _expanded(base: pathlib.Path, parts: Sequence[str]) -> Iterator[pathlib.Path]:
    if not parts:
        yield base
        return
    first, *rest = parts
    if not glob.has_magic(first):
        if os.path.lexists(base / first):
            yield from _expanded(base / first, rest)
        return
    try:
        names = sorted(os.listdir(base))
    except OSError:
        return
    if first == "**":
        yield from _expanded(base, rest)
    for name in names:
        if name.startswith(".") and not (first.startswith(".") and not name.startswith(_MACOS_PREFIX)):
            continue
        path = base / name
        if first == "**":
            if path.is_dir() and not path.is_symlink():
                yield from _expanded(path, parts)
        elif fnmatch.fnmatchcase(name, first):
            yield from _expanded(path, rest)


def _is_hdf5_name(name: str) -> bool:
    return name.lower().endswith(_HDF5_SUFFIXES) and not name.startswith(_MACOS_PREFIX)


def _is_hdf5(path: pathlib.Path) -> bool:
    """Returns whether a file begins with the signature of HDF5."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_HDF5_SIGNATURE)) == _HDF5_SIGNATURE
    except OSError:
        return False


def _by_number(path: pathlib.Path) -> list[tuple[int, str]]:
    """A key that sorts `episode_2` before `episode_10`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", os.fspath(path))]


def _listed(names: Sequence[str]) -> str:
    """Joins names for a message. Of many names, only the first and their number."""
    if len(names) <= _NAMED:
        return ", ".join(names)
    return f"{', '.join(names[:_NAMED])}, … ({len(names):,} in all)"
