"""Opens sources of any format: finds the files that a source names, and the format of each."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from kabuki_rlds.arguments import argument
from kabuki_rlds.data.skipped_episodes import NothingLeftError, report, skip_damaged, skipped_for
from kabuki_rlds.data.source import Skipped, Source
from kabuki_rlds.data.split_syntax import ALL, WHOLE, select_episodes
from kabuki_rlds.errors import InvalidArgumentError, KabukiError, MissingDependencyError
from kabuki_rlds.extras import require
from kabuki_rlds.files.paths import StrPath
from kabuki_rlds.formats.demos import registry
from kabuki_rlds.formats.demos.demo_episode import EmptyEpisodeError
from kabuki_rlds.formats.demos.layout import DemoOptions, Layout
from kabuki_rlds.formats.episode_log import codec as episode_log
from kabuki_rlds.formats.episode_log.source import EpisodeLogSource
from kabuki_rlds.formats.hdf5.source import KabukiSource
from kabuki_rlds.formats.locate import FEATURES, is_looked_up, locate

if TYPE_CHECKING:
    from kabuki_rlds.formats.envlogger.source import EnvLoggerSource

_Result = TypeVar("_Result")

_log = logging.getLogger("kabuki_rlds")

#: How many items of a file a warning lists.
_LISTED = 5


def open_source(source: StrPath, **options: Any) -> Source:
    """Opens one dataset: see `open_sources`."""
    (opened,) = open_sources([source], **options)
    return opened


def open_sources(
    sources: Sequence[StrPath],
    *,
    split: str | None = None,
    data_dir: StrPath | None = None,
    images: Literal["arrays", "encoded"] = "arrays",
    skip_bad: bool = False,
    assume: Mapping[str, str] | None = None,
    recipe_assume: Mapping[str, str] | None = None,
) -> list[Source]:
    """Opens datasets of any format.

    Args:
      sources: each is a file, a folder, a pattern of names, or the name of a TFDS dataset (see `formats.locate`).
      split: a split of a TFDS dataset, by default `train`; a mask of demonstrations; or a part of one in TFDS's syntax
        (`train[:10%]`, see `data.split_syntax`). A Kabuki file, an EnvLogger log, and demonstrations without masks have
        one split, `train`.
      data_dir: the folder of TFDS datasets; by default `TFDS_DATA_DIR` or `~/tensorflow_datasets`.
      images: whether images stored as image files are decoded ("arrays") or read as bytes ("encoded").
      skip_bad: leave out damaged episodes, and damaged files if there are others. All data is read to find them.
      assume: semantics that layouts of demonstrations do not define: {"dones": "reward"} (see `formats.demos`).
      recipe_assume: the same, stated by a recipe. Unlike `assume`, they need not apply to any file.

    Returns:
      the sources in order. Consecutive files of one layout of demonstrations are one source, if the layout joins files.

    Raises:
      KabukiError: there is no such dataset, or it cannot be read.
    """
    options = DemoOptions(
        split=split,
        assume={**(recipe_assume or {}), **(assume or {})},
        asked=list(assume or {}),
        images=images,
        skip_bad=skip_bad,
    )
    damaged = _DamagedFiles(skip_bad)
    opened: list[Source] = []
    try:
        for source in _open_each(_find_files(sources, data_dir), options, damaged):
            opened.append(source)
        _check_data_dir(sources, data_dir)
        damaged.add_to(opened)
    except BaseException:
        for source in opened:
            source.close()
        raise
    return opened


class _DamagedFiles:
    """Collects the files that are left out because they are damaged or have no steps.

    Args:
      skip_bad: whether damaged files are left out.
    """

    def __init__(self, skip_bad: bool):
        self._skip_bad = skip_bad
        self._skipped: list[Skipped] = []
        self._first_error: KabukiError | None = None

    def read(self, path: pathlib.Path, function: Callable[[], _Result]) -> _Result | None:
        """Returns the result of a function that reads a file; None if the file is left out."""
        try:
            return function()
        except NothingLeftError as e:
            self._skipped += e.skipped
            self._first_error = self._first_error or e
        except (InvalidArgumentError, MissingDependencyError):
            raise
        except KabukiError as e:
            is_damaged = self._skip_bad and path.is_file()
            if not (is_damaged or isinstance(e, EmptyEpisodeError)):
                raise
            self._skipped.append(skipped_for(os.fspath(path), 0, e))
            self._first_error = self._first_error or e
        return None

    def add_to(self, opened: Sequence[Source]) -> None:
        """Reports the files, and adds them to what the first source leaves out.

        Raises:
          KabukiError: there is no source.
        """
        if self._first_error is None:
            return
        if not opened:
            raise self._first_error
        report(opened[0].label, self._skipped)
        opened[0].skipped = [*self._skipped, *opened[0].skipped]


def _check_data_dir(sources: Sequence[StrPath], data_dir: StrPath | None) -> None:
    """Rejects a folder of TFDS datasets if no source is looked up in it."""
    if data_dir is not None and not any(is_looked_up(source, data_dir) for source in sources):
        raise InvalidArgumentError(
            f"{argument('data_dir')}: no source is the name of a dataset in {os.fspath(data_dir)}: "
            f"{os.fspath(sources[0])} is a path"
        )


def _find_files(sources: Sequence[StrPath], data_dir: StrPath | None) -> list[pathlib.Path]:
    paths: list[pathlib.Path] = []
    for source in sources:
        located = locate(source, data_dir)
        for level, note in located.notes:
            _log.log(level, "%s", note)
        paths += located.paths
    return paths


def _open_each(paths: Sequence[pathlib.Path], options: DemoOptions, damaged: _DamagedFiles) -> Iterator[Source]:
    """Opens files in order. Consecutive files of a layout that joins files are opened as one source."""
    found = []
    for path in paths:
        known = damaged.read(path, functools.partial(_with_layout, path))
        if known is not None:
            found.append(known)
    if options.asked and found and not any(layout for _, layout in found):
        raise InvalidArgumentError(
            f"{argument('assume')}: {', '.join(options.asked)}: said of no file, since none is in a layout of others"
        )
    for layout, group in itertools.groupby(found, key=lambda each: each[1]):
        files = [path for path, _ in group]
        for together in [files] if layout is not None and layout.joins_files else [[path] for path in files]:
            source = damaged.read(together[0], functools.partial(_open, layout, together, options))
            if source is not None:
                yield source


def _with_layout(path: pathlib.Path) -> tuple[pathlib.Path, Layout | None]:
    return path, registry.find_layout(path)


def _open(layout: Layout | None, paths: Sequence[pathlib.Path], options: DemoOptions) -> Source:
    """Opens files that make one source."""
    if layout is not None:
        demos = layout.open_source([os.fspath(path) for path in paths], options)
        return skip_damaged(demos) if options.skip_bad else demos
    (path,) = paths
    if path.is_file():
        return _open_kabuki(path, options)
    if (path / episode_log.NAME).is_file():
        log = EpisodeLogSource(path)
        if log.is_appended:
            _log.warning("%s: left out, since %s has its episodes", path, episode_log.file_of(path))
            log = log.select(np.arange(0))
        return _of_split(log, options.split)
    if not (path / FEATURES).is_file():
        from kabuki_rlds.formats.envlogger.source import EnvLoggerSource

        return _of_split(EnvLoggerSource(path, skip_bad=options.skip_bad), options.split)
    require(f"{path}: reading an RLDS dataset", "tensorflow", "tensorflow_datasets")
    from kabuki_rlds.formats.rlds.source import RldsSource

    split = "train" if options.split is None else options.split
    return RldsSource(path, split, options.images, skip_bad=options.skip_bad)


def _of_split(log: EnvLoggerSource | EpisodeLogSource, split: str | None) -> Source:
    """Returns the episodes of a part of a log. A log has one split."""
    if split is None:
        return log
    whole = np.arange(log.num_episodes)
    return log.select(select_episodes(split, {WHOLE: whole, ALL: whole}, log.label))


def _open_kabuki(path: pathlib.Path, options: DemoOptions) -> KabukiSource:
    try:
        file = KabukiSource(path, options.images)
    except KabukiError as e:
        raise registry.unknown_format(path, e) from e
    try:
        file.check_complete()
        left_out = file.left_out()
        if left_out:
            more = f" and {len(left_out) - _LISTED:,} more" if len(left_out) > _LISTED else ""
            names = ", ".join(left_out[:_LISTED]) + more
            _log.warning("%s: left out, since the format has no place for it: %s", path, names)
        if options.split is not None:
            file = file.of_split(options.split)
        return skip_damaged(file) if options.skip_bad else file
    except BaseException:
        file.close()
        raise
