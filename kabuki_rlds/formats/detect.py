"""Finds out what a source is by looking at it."""

from __future__ import annotations

import itertools
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from kabuki_rlds.errors import KabukiError
from kabuki_rlds.formats.hdf5.reader import KabukiSource
from kabuki_rlds.formats.locate import FEATURES, Path, is_looked_up, locate
from kabuki_rlds.formats.source import Source

_log = logging.getLogger("kabuki_rlds")

#: How many things that are left out a warning names.
_NAMED = 5


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
      sources: each is a file, a folder, a pattern of names, or the name of a TFDS dataset; see `formats.locate`.
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
        _check_split(opened, split)
        _check_data_dir(sources, data_dir)
    except BaseException:
        for source in opened:
            source.close()
        raise
    return opened


def _check_split(opened: Sequence[Source], split: str | None) -> None:
    """Refuses a split if no source has splits, and warns of the sources that are taken whole."""
    if split is None:
        return
    from kabuki_rlds.formats.envlogger.source import EnvLoggerSource

    kinds = {KabukiSource: "a Kabuki file", EnvLoggerSource: "a log"}
    whole = [(source, kinds[type(source)]) for source in opened if type(source) in kinds]
    for source, what in whole:
        if len(whole) == len(opened):
            raise KabukiError(f"{source.label}: {what} is one split, so {split!r} cannot be taken of it")
        _log.warning("%s: %s is one split; all of it is taken, and not %r", source.label, what, split)


def _check_data_dir(sources: Sequence[Path], data_dir: Path | None) -> None:
    """Refuses a folder of TFDS datasets if no source is looked up in it."""
    if data_dir is not None and not any(is_looked_up(source, data_dir) for source in sources):
        raise KabukiError(
            f"data_dir: no source is the name of a dataset in {os.fspath(data_dir)}: {os.fspath(sources[0])} is a path"
        )


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

    paths: list[pathlib.Path] = []
    for source in sources:
        located = locate(source, data_dir)
        for level, note in located.notes:
            _log.log(level, "%s", note)
        paths += located.paths
    found = [(path, registry.layout_of(path)) for path in paths]
    if assume and not any(layout for _, layout in found):
        raise KabukiError(f"assume: {', '.join(assume)}: said of no file, since none is in a layout of others")
    assumed = {**(recipe_assume or {}), **(assume or {})}
    for layout, group in itertools.groupby(found, key=lambda each: each[1]):
        files = [path for path, _ in group]
        if layout is not None:
            yield from registry.open_files(
                layout, files, split=split, assume=assumed, images=images, asked=list(assume or {})
            )
            continue
        for path in files:
            yield _open(path, split, images, skip_bad)


def _open(path: pathlib.Path, split: str | None, images: Literal["arrays", "encoded"], skip_bad: bool) -> Source:
    """Opens what is in no layout of others."""
    if path.is_file():
        try:
            source_file = KabukiSource(path, images)
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
    if not (path / FEATURES).is_file():
        from kabuki_rlds.formats.envlogger.source import EnvLoggerSource

        return EnvLoggerSource(path, skip_bad=skip_bad)
    # TensorFlow is imported with it, so only when there is something to read.
    from kabuki_rlds.formats.rlds.source import RldsSource

    return RldsSource(path, "train" if split is None else split, images, skip_bad=skip_bad)
