"""Converts datasets into one Kabuki HDF5 file."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
from tqdm import tqdm

from kabuki_rlds import interruption
from kabuki_rlds.block import Block, Column, nbytes
from kabuki_rlds.completion import CompletedSource
from kabuki_rlds.convention import DISCOUNT, FLAGS, RuleChecker, Violation, field_violations, one_per_row
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.formats.detect import open_source
from kabuki_rlds.formats.hdf5.chunks import Compression, pack
from kabuki_rlds.formats.hdf5.reader import KabukiSource
from kabuki_rlds.formats.hdf5.writer import KabukiWriter
from kabuki_rlds.formats.source import Size, Source
from kabuki_rlds.schema import DERIVED_IN_PART, Schema
from kabuki_rlds.sizes import human_bytes

Path: TypeAlias = str | os.PathLike[str]

_log = logging.getLogger("kabuki_rlds")

#: Where decoded images make a file this many times its source, it is said beforehand.
_MUCH_LARGER = 3


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What came of a conversion.

    Attributes:
      path: the file that was made.
      steps: number of its steps.
      episodes: number of its episodes.
      num_bytes: its size on disk.
      warnings: rules of the format that the source breaks, and so the file.
      changed: field to number of rows that `conform` changed.
      derived: field that the source lacks to how it was made.
    """

    path: pathlib.Path
    steps: int
    episodes: int
    num_bytes: int
    warnings: list[Violation]
    changed: dict[str, int]
    derived: dict[str, str]


@interruption.held_back()
def convert(
    sources: Path | Sequence[Path],
    dest: Path,
    *,
    split: str | None = None,
    data_dir: Path | None = None,
    images: Literal["arrays", "encoded"] = "arrays",
    compression: Compression = "gzip",
    fill: Mapping[str, float] | None = None,
    conform: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> Conversion:
    """Converts one or more datasets into one Kabuki HDF5 file.

    The file is written beside `dest` and renamed when it is whole: an error leaves
    no partial file, and an old file as it was.

    Args:
      sources: a TFDS dataset's folder, a TFDS name, a Kabuki HDF5 file; or several,
        which are stitched in the order given.
      dest: the file to write.
      split: which split of the TFDS datasets, in TFDS's syntax: `train[:10%]`; by default
        `train`. A Kabuki file is one split, of which all is taken.
      data_dir: where a TFDS name is looked up.
      images: store images decoded ("arrays"), or as the bytes of their files
        ("encoded").
      compression: "gzip" for any reader, "lzf" for h5py alone, "none".
      fill: constants for required fields that a source lacks: {"reward": 0.0}.
      conform: change values that break the rules on episode ends and discounts to
        what the rules say; without it they are kept, and warned of.
      overwrite: replace `dest`.
      progress: show a progress bar on stderr.

    Raises:
      KabukiError: a source cannot be read or lacks a field, the sources do not fit
        each other, the disk cannot hold the result, `dest` exists, or what was read
        is not what a source says it holds.
    """
    paths = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    if not paths:
        raise KabukiError("no source to convert")
    dest = pathlib.Path(dest).expanduser()
    if os.path.lexists(dest) and not overwrite:
        raise KabukiError(f"{dest}: already there; --overwrite replaces it")
    with contextlib.ExitStack() as stack:
        opened = [
            open_source(path, split="train" if split is None else split, data_dir=data_dir, images=images)
            for path in paths
        ]
        for source in opened:
            stack.callback(source.close)
        _check_applies(opened, split, images)
        completed = [CompletedSource(source, fill, conform) for source in opened]
        schema = _common_schema(completed, opened)
        total = _check_disk([source.size() for source in opened], dest, compression)
        origins = [origin for source in opened for origin in source.origins]
        checker = RuleChecker()
        with (
            KabukiWriter(dest, schema, origins, compression=compression, overwrite=overwrite) as writer,
            tqdm(total=total, unit=" steps", unit_scale=True, disable=not progress, desc=dest.name) as bar,
        ):
            first_origin = 0
            for source, whole in zip(opened, completed, strict=True):
                before = writer.num_episodes
                for block, origin_of in _with_origins(whole, source):
                    _check(checker, block)
                    writer.write(block, origin_of + first_origin)
                    bar.update(block.num_steps)
                got = writer.num_episodes - before
                if got != source.num_episodes:
                    raise KabukiError(f"{source.label}: says {source.num_episodes} episodes, but {got} were read")
                first_origin += len(source.origins)
            warnings = [*field_violations(schema.steps, schema.steps), *checker.finish()]
            interruption.check()
            writer.commit()
    changed: dict[str, int] = {}
    for whole in completed:
        for name, count in whole.changed.items():
            changed[name] = changed.get(name, 0) + count
    derived = {path: field.derived for path, field in schema.steps.items() if field.derived}
    return Conversion(dest, writer.num_steps, writer.num_episodes, dest.stat().st_size, warnings, changed, derived)


def _check_applies(opened: list[Source], split: str | None, images: str) -> None:
    """Refuses an option that would do nothing at all, and warns of one that does nothing to some sources."""
    files = [source for source in opened if isinstance(source, KabukiSource)]
    for source in files:
        pixels = [p for p, f in source.schema.steps.items() if f.kind == "image" and not f.encoded]
        if images == "encoded" and pixels:
            _log.warning("%s: its images are arrays already and stay so: %s", source.label, ", ".join(pixels))
        if split is None:
            continue
        if len(files) == len(opened):
            raise KabukiError(f"{source.label}: a Kabuki file is one split, so {split!r} cannot be taken of it")
        _log.warning("%s: a Kabuki file is one split; all of it is taken, and not %r", source.label, split)


def _with_origins(whole: CompletedSource, source: Source) -> Iterator[tuple[Block, np.ndarray]]:
    """Each block with which of the source's origins each of its episodes came from."""
    at = 0
    for block in whole.blocks():
        yield block, source.origin_of[at : at + block.num_episodes]
        at += block.num_episodes


def _common_schema(completed: list[CompletedSource], opened: list[Source]) -> Schema:
    """The schema of what all sources make.

    A field that some sources have and others lack is `derived` in part, and says of which.
    """
    first = completed[0].schema
    for whole, source in zip(completed[1:], opened[1:], strict=True):
        first.check_fit(whole.schema, opened[0].label, source.label)
    steps = {}
    for path, field in first.steps.items():
        how = [whole.schema.steps[path].derived for whole in completed]
        if len(set(how)) > 1:
            some = (f"{text}{DERIVED_IN_PART}{source.label}" for text, source in zip(how, opened, strict=True) if text)
            field = dataclasses.replace(field, derived="; ".join(some))
        steps[path] = field
    return dataclasses.replace(first, steps=steps)


def _check(checker: RuleChecker, block: Block) -> None:
    flags = [one_per_row(block.steps[name]) for name in FLAGS]
    if any(flag is None for flag in flags):
        return
    is_first, is_last, is_terminal = (flag.astype(bool) for flag in flags if flag is not None)
    checker.check_index(is_first, block.begins[:-1])
    checker.check(is_first, is_last, is_terminal, one_per_row(block.steps[DISCOUNT]))


def _check_disk(sizes: list[Size], dest: pathlib.Path, compression: Compression) -> int:
    """Says how large the file will be, and refuses where the disk cannot hold it.

    Returns:
      How many steps there will be, or about that many.
    """
    steps = sum(size.steps for size in sizes)
    on_disk = sum(size.num_bytes for size in sizes)
    raw = packed = images = 0.0
    for size in sizes:
        if size.sample is None or not size.sample.num_steps:
            continue
        scale = size.steps / size.sample.num_steps
        for path, column in size.sample.steps.items():
            column_bytes = nbytes([column]) * scale
            raw += column_bytes
            packed += column_bytes * _ratio(column, compression)
            if path in size.image_fields:
                images += column_bytes
    about = "" if all(size.is_exact for size in sizes) else "about "
    _log.info(
        "%s%s steps, %s as arrays, about %s in %s; the source takes %s",
        about,
        f"{steps:,}",
        human_bytes(raw),
        human_bytes(packed),
        dest.name,
        human_bytes(on_disk),
    )
    if images > _MUCH_LARGER * on_disk:
        _log.warning(
            "decoded images take %s of it, %.0f times the source; --images encoded keeps the image files as they are",
            human_bytes(images),
            images / max(on_disk, 1),
        )
    folder = dest.parent
    if folder.is_dir():
        free = shutil.disk_usage(folder).free
        if packed > free:
            remedy = "; --images encoded needs about " + human_bytes(on_disk) if images > on_disk else ""
            raise KabukiError(
                f"{dest}: needs about {human_bytes(packed)}, but {folder} has {human_bytes(free)} free{remedy}"
            )
    return steps


def _ratio(column: Column, compression: Compression) -> float:
    """How small a column becomes, by a part of it."""
    if compression == "none" or not isinstance(column, np.ndarray) or column.dtype == object or not column.size:
        return 1.0
    part = column[: max(1, (1 << 20) * len(column) // max(column.nbytes, 1))]
    return len(pack([part], len(part), deflate=True)) / part.nbytes
