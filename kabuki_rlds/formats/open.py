"""Finds out what a source is by looking at it."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from kabuki_rlds.data.skipped_episodes import NothingLeftError, report, skip_damaged, skipped_for
from kabuki_rlds.data.source import Skipped, Source
from kabuki_rlds.data.split_syntax import ALL, WHOLE, SplitError, select_episodes
from kabuki_rlds.errors import InvalidArgumentError, KabukiError
from kabuki_rlds.files.paths import StrPath
from kabuki_rlds.formats.demos import registry
from kabuki_rlds.formats.demos.d4rl import D4rl
from kabuki_rlds.formats.demos.demo_episode import EmptyEpisodeError
from kabuki_rlds.formats.demos.source import Layout
from kabuki_rlds.formats.hdf5.source import KabukiSource
from kabuki_rlds.formats.locate import FEATURES, is_looked_up, locate

_Read = TypeVar("_Read")

_log = logging.getLogger("kabuki_rlds")

#: How many things that are left out a warning names.
_NAMED = 5


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
    """Opens datasets, whatever they are.

    Args:
      sources: each is a file, a folder, a pattern of names, or the name of a TFDS dataset; see `formats.locate`.
      split: which split of a TFDS dataset, by default `train`; or which mask of demonstrations; or a part of one in
        TFDS's syntax (`train[:10%]`, see `formats.split`). A Kabuki file is one split, `train`, and so are a log, and
        demonstrations without masks.
      data_dir: where TFDS datasets are; by default `TFDS_DATA_DIR` or `~/tensorflow_datasets`.
      images: how images that are stored as image files are read.
      skip_bad: leave out episodes that are damaged, and files that are if there are others. All data is read for it.
      assume: what files in a layout of others do not say: {"dones": "reward"}; see its module.
      recipe_assume: the same according to a recipe, which may be used for files that need no assumption.

    Returns:
      the sources in order. Files that follow each other in one layout of others are one source.

    Raises:
      KabukiError: there is no such dataset, or it is none of these.
    """
    opened: list[Source] = []
    lost = _DamagedFiles(skip_bad)
    try:
        for source in _opened(sources, split, data_dir, images, lost, assume, recipe_assume):
            opened.append(source)
        _check_data_dir(sources, data_dir)
        lost.report_to(opened)
    except BaseException:
        for source in opened:
            source.close()
        raise
    return opened


class _DamagedFiles:
    """Files that are left out, since they are damaged or hold no steps.

    Args:
      skip_bad: whether damaged files are left out.
    """

    def __init__(self, skip_bad: bool):
        self.skip_bad = skip_bad
        self._skipped: list[Skipped] = []
        self._first: KabukiError | None = None

    def unless(self, path: pathlib.Path, read: Callable[[], _Read]) -> _Read | None:
        """What is read of a file; None if it is left out."""
        try:
            return read()
        except NothingLeftError as e:
            self._skipped += e.skipped
            self._first = self._first or e
        except KabukiError as e:
            is_damaged = self.skip_bad and path.is_file() and not isinstance(e, SplitError)
            if not (is_damaged or isinstance(e, EmptyEpisodeError)):
                raise
            self._skipped.append(skipped_for(os.fspath(path), 0, e))
            self._first = self._first or e
        return None

    def report_to(self, opened: Sequence[Source]) -> None:
        """Adds what is left out to what the sources leave out.

        Raises:
          KabukiError: no source is left.
        """
        if self._first is None:
            return
        if not opened:
            raise self._first
        report(opened[0].label, self._skipped)
        opened[0].skipped = [*self._skipped, *opened[0].skipped]


def _check_data_dir(sources: Sequence[StrPath], data_dir: StrPath | None) -> None:
    """Refuses a folder of TFDS datasets if no source is looked up in it."""
    if data_dir is not None and not any(is_looked_up(source, data_dir) for source in sources):
        raise InvalidArgumentError(
            f"data_dir: no source is the name of a dataset in {os.fspath(data_dir)}: {os.fspath(sources[0])} is a path"
        )


def _opened(
    sources: Sequence[StrPath],
    split: str | None,
    data_dir: StrPath | None,
    images: Literal["arrays", "encoded"],
    lost: _DamagedFiles,
    assume: Mapping[str, str] | None,
    recipe_assume: Mapping[str, str] | None,
) -> Iterator[Source]:
    paths: list[pathlib.Path] = []
    for source in sources:
        located = locate(source, data_dir)
        for level, note in located.notes:
            _log.log(level, "%s", note)
        paths += located.paths
    found = []
    for path in paths:
        known = lost.unless(path, functools.partial(_with_layout, path))
        if known is not None:
            found.append(known)
    if assume and found and not any(layout for _, layout in found):
        raise InvalidArgumentError(f"assume: {', '.join(assume)}: said of no file, since none is in a layout of others")
    assumed = {**(recipe_assume or {}), **(assume or {})}
    for layout, group in itertools.groupby(found, key=lambda each: each[1]):
        files = [path for path, _ in group]
        # Demonstrations in several files are one source.
        is_joined = layout is not None and not isinstance(layout, D4rl)
        for together in [files] if is_joined else [[path] for path in files]:
            read = (
                functools.partial(_open, together[0], split, images, lost.skip_bad)
                if layout is None
                else functools.partial(
                    registry.open_files,
                    layout,
                    together,
                    split=split,
                    assume=assumed,
                    asked=list(assume or {}),
                    images=images,
                    skip_bad=lost.skip_bad,
                )
            )
            opened = lost.unless(together[0], read)
            if opened is not None:
                yield opened


def _with_layout(path: pathlib.Path) -> tuple[pathlib.Path, Layout | D4rl | None]:
    return path, registry.layout_of(path)


def _open(path: pathlib.Path, split: str | None, images: Literal["arrays", "encoded"], skip_bad: bool) -> Source:
    """Opens what is in no layout of others."""
    if path.is_file():
        return _open_kabuki(path, split, images, skip_bad)
    if not (path / FEATURES).is_file():
        from kabuki_rlds.formats.envlogger.source import EnvLoggerSource

        logs = EnvLoggerSource(path, skip_bad=skip_bad)
        whole = np.arange(logs.num_episodes)
        return logs if split is None else logs.select(select_episodes(split, {WHOLE: whole, ALL: whole}, logs.label))
    # TensorFlow is imported with it, so only when there is something to read.
    from kabuki_rlds.formats.rlds.source import RldsSource

    return RldsSource(path, "train" if split is None else split, images, skip_bad=skip_bad)


def _open_kabuki(
    path: pathlib.Path, split: str | None, images: Literal["arrays", "encoded"], skip_bad: bool
) -> KabukiSource:
    try:
        file = KabukiSource(path, images)
    except KabukiError as e:
        raise registry.unknown(path, e) from e
    try:
        file.check_whole()
        left_out = file.left_out()
        if left_out:
            more = f" and {len(left_out) - _NAMED:,} more" if len(left_out) > _NAMED else ""
            what = ", ".join(left_out[:_NAMED]) + more
            _log.warning("%s: left out, since the format has no place for it: %s", path, what)
        if split is not None:
            file = file.of_split(split)
        return skip_damaged(file) if skip_bad else file
    except BaseException:
        file.close()
        raise
