"""Converts datasets into one Kabuki HDF5 file."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from tqdm import tqdm

from kabuki_rlds.commands.resume import ConversionParts, discard
from kabuki_rlds.data import recipe_text
from kabuki_rlds.data.block import Block, Column
from kabuki_rlds.data.common_schema import common_schema, fit_block
from kabuki_rlds.data.last_row import LastRow, LastRows, joined, warn_of_conflict
from kabuki_rlds.data.nan_actions import NanActionCounter, NanRows, warn_of_nan
from kabuki_rlds.data.rules import (
    DISCOUNT,
    FLAGS,
    RuleChecker,
    Violation,
    field_violations,
    is_flag_or_number,
    one_per_row,
)
from kabuki_rlds.data.schema import DERIVED_IN_PART, Field, Schema
from kabuki_rlds.data.source import Fingerprints, Skipped, Source
from kabuki_rlds.errors import DamagedDataError, DestinationExistsError, InvalidArgumentError
from kabuki_rlds.files import signals
from kabuki_rlds.files.atomic_file import destination_of
from kabuki_rlds.files.paths import StrPath, local_path
from kabuki_rlds.formats.hdf5 import size_estimate
from kabuki_rlds.formats.hdf5.chunks import Compression
from kabuki_rlds.formats.hdf5.sink import KabukiSink
from kabuki_rlds.formats.locate import locate
from kabuki_rlds.formats.open import open_sources
from kabuki_rlds.transforms.reading_options import ReadingOptions
from kabuki_rlds.transforms.required_fields import CompletedSource

_log = logging.getLogger("kabuki_rlds")


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
      skipped: episodes of the sources that were left out, since they are damaged or empty.
      last_rows: whether the last row of each episode is a step, and why.
      nan_actions: the rows whose action has a NaN, by field.
    """

    path: pathlib.Path
    steps: int
    episodes: int
    num_bytes: int
    warnings: list[Violation]
    changed: dict[str, int]
    derived: dict[str, str]
    skipped: list[Skipped]
    last_rows: LastRows
    nan_actions: list[NanRows]


@signals.held_back()
def convert(
    sources: StrPath | Sequence[StrPath],
    dest: StrPath,
    *,
    split: str | None = None,
    data_dir: StrPath | None = None,
    images: Literal["arrays", "encoded"] = "arrays",
    compression: Compression = "gzip",
    fill: Mapping[str, float] | None = None,
    assume: Mapping[str, str] | None = None,
    recipe: StrPath | None = None,
    last_row: LastRow | None = None,
    conform: bool = False,
    skip_bad_episodes: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> Conversion:
    """Converts one or more datasets into one Kabuki HDF5 file.

    The file is written beside `dest` and renamed when it is whole: an error leaves
    no partial file, and an old file as it was.

    Args:
      sources: a TFDS dataset's folder, a TFDS name, a Kabuki HDF5 file, demonstrations in
        a layout of others (a file, a folder, a pattern of names); or several, which are
        stitched in the order given.
      dest: the file to write.
      split: which split of each source, or which part of it in TFDS's syntax: `train[:10%]`,
        `train[17:18]`, `train+test`. Of TFDS datasets it is by default `train`. Of
        demonstrations it is the name of a mask, or of a split of the recipe; by default all.
        A Kabuki file is one split, `train`, and so are a log, and demonstrations without masks.
      data_dir: where a TFDS name is looked up.
      images: store images decoded ("arrays"), or as the bytes of their files
        ("encoded").
      compression: "gzip" for any reader, "lzf" for h5py alone, "none".
      fill: constants for required fields that a source lacks: {"reward": 0.0}.
      assume: what files in a layout of others do not say: {"dones": "reward"}; see the
        module of the layout in `formats.demos`.
      recipe: how the fields of the sources become those of the file: a YAML file, or the
        name of a recipe that comes with the package.
      last_row: whether the last row of each episode is a "step" or only an "observation"; by default
        the source decides (see `last_row`).
      conform: change values that break the rules on episode ends and discounts to
        what the rules say; without it they are kept, and warned of.
      skip_bad_episodes: leave out the episodes that cannot be read, and the damaged files among
        several, and convert the rest. The file says which they are. All data is read twice.
        Demonstrations without steps are left out in any case.
      resume: keep what is done in `<dest>.parts`, and go on from what is there already,
        which an earlier call with the same sources and options left. The result is the same as if it had
        not been interrupted. Until the end it takes twice the room.
      overwrite: replace `dest`.
      progress: show a progress bar on stderr.

    Raises:
      KabukiError: a source cannot be read or lacks a field, the sources do not fit
        each other, the disk cannot hold the result, `dest` exists, what was read
        is not what a source says it holds, or a source changed meanwhile.
    """
    paths = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    if not paths:
        raise InvalidArgumentError("no source to convert")
    dest = destination_of(dest)
    if os.path.lexists(dest) and not overwrite:
        raise DestinationExistsError(f"{dest}: already there; --overwrite replaces it")
    reading = ReadingOptions(recipe, assume, fill, last_row)
    options = {"images": images, "conform": conform, "skip_bad_episodes": skip_bad_episodes} | reading.to_json()
    with contextlib.ExitStack() as stack:
        opened = open_sources(
            paths,
            split=reading.split_of(split),
            data_dir=data_dir,
            images=images,
            skip_bad=skip_bad_episodes,
            assume=reading.assume,
            recipe_assume=reading.recipe_assume,
        )
        for source in opened:
            stack.callback(source.close)
        _check_images(opened, images)
        _check_apart(paths, data_dir, opened, dest)
        stamps = Fingerprints(opened)
        completed = [reading.complete(source, conform) for source in opened]
        schema = _common_schema(completed)
        total = size_estimate.check([source.size() for source in completed], dest, compression, copies=1 + resume)
        origins = [origin for source in opened for origin in source.origins]
        skipped = [loss for source in opened for loss in source.skipped]
        checker = RuleChecker()
        nan = NanActionCounter(schema.steps)
        with (
            KabukiSink(dest, schema, origins, compression=compression, overwrite=overwrite, skipped=skipped) as writer,
            tqdm(total=total, unit=" steps", unit_scale=True, disable=not progress, desc=dest.name) as bar,
        ):
            # Only now, since what another conversion is writing is its own.
            parts = ConversionParts(dest, stamps.to_json() | options) if resume else None
            if parts is None:
                discard(dest)
            first_origin = 0
            decided: list[LastRows] = []
            for source in completed:
                before = writer.num_episodes
                # Where only the values tell, the decision comes after the last block.
                evidence = source.evidence()
                blocks = source.blocks() if parts is None else parts.blocks(source)
                for block in blocks:
                    known = source.last_rows
                    rows = None if known is None else known.rows(block, writer.num_episodes - before)
                    _check(checker, block, rows)
                    if known is None:
                        evidence.observe(block)
                    nan.observe(block)
                    writer.write(fit_block(block, schema).from_origins_at(first_origin))
                    bar.update(block.num_steps)
                got = writer.num_episodes - before
                if got != source.num_episodes:
                    raise DamagedDataError(
                        f"says {source.num_episodes} episodes, but {got} were read", file=source.label
                    )
                first_origin += len(source.origins)
                decided.append(source.last_rows or evidence.decide(source.num_episodes))
                warn_of_conflict(decided[-1], source.label)
                checker.decide(bool(decided[-1].is_step.all()))
            last_rows = joined(decided)
            warnings = [*field_violations(schema.steps, schema.steps), *checker.finish()]
            signals.check()
            stamps.check()
            writer.commit(last_rows, warnings)
            if parts is not None:
                discard(dest)
    changed: dict[str, int] = {}
    for source in completed:
        for name, count in source.changed.items():
            changed[name] = changed.get(name, 0) + count
    nan_actions = nan.finish(last_rows.is_step)
    warn_of_nan(nan_actions, os.fspath(dest))
    derived = {path: field.derived for path, field in schema.steps.items() if field.derived}
    return Conversion(
        dest,
        writer.num_steps,
        writer.num_episodes,
        dest.stat().st_size,
        warnings,
        changed,
        derived,
        skipped,
        last_rows,
        nan_actions,
    )


def _check_apart(paths: Sequence[StrPath], data_dir: StrPath | None, opened: list[Source], dest: pathlib.Path) -> None:
    """Refuses a destination that is among what is read, unless the user says so, and sources that it would cost."""
    # Where there is no such file yet, the folders and patterns need not be looked through once more.
    for path in paths if os.path.exists(dest) else ():
        found = [os.path.realpath(file) for file in locate(path, data_dir).paths]
        if os.path.realpath(dest) in found and os.path.realpath(local_path(path)) not in found:
            raise InvalidArgumentError(
                f"{dest}: is among the files of {path}, so its episodes would be there twice; write to another file"
            )
    ours = [os.path.realpath(f"{dest}{end}") for end in (".partial", ".parts")]
    for name in (os.path.realpath(file) for source in opened for file in source.files):
        if name in ours or os.path.dirname(name) in ours:
            raise InvalidArgumentError(
                f"{name}: is what a conversion to {dest} keeps until it is done, and would be lost; "
                "write to another file"
            )


def _check_images(opened: list[Source], images: str) -> None:
    """Refuses `images="encoded"` if all images are stored as arrays, and warns of the sources where they are."""
    if images != "encoded":
        return
    pixels = {
        source.label: [p for p, field in source.schema.steps.items() if _is_array_of_pixels(field)] for source in opened
    }
    pixels = {label: paths for label, paths in pixels.items() if paths}
    if pixels and not any(field.encoded for source in opened for field in source.schema.steps.values()):
        label, paths = next(iter(pixels.items()))
        remedy = recipe_text.steps([recipe_text.renamed(paths[0], paths[0], ", encode: png")])
        raise InvalidArgumentError(
            f"images: the images of {label} are stored as arrays ({', '.join(paths)}), so there are no image files to "
            f"keep; a recipe can make them: {remedy}"
        )
    for label, paths in pixels.items():
        _log.warning("%s: its images are arrays already and stay so: %s", label, ", ".join(paths))


def _is_array_of_pixels(field: Field) -> bool:
    """Whether a field holds images as arrays: it says so, or has the shape of images."""
    by_shape = field.dtype == np.uint8 and len(field.shape) == 3 and field.shape[-1] in (1, 3, 4)
    return not field.encoded and (field.kind == "image" or by_shape)


def _common_schema(completed: Sequence[CompletedSource]) -> Schema:
    """The schema of what all sources make.

    A field that some sources have and others lack is `derived` in part, and says of which.
    """
    common = common_schema([source.schema for source in completed], [source.label for source in completed])
    steps = {}
    for path, field in common.steps.items():
        how = [source.schema.steps[path].derived for source in completed]
        if len(set(how)) > 1:
            some = (f"{text}{DERIVED_IN_PART}{each.label}" for text, each in zip(how, completed, strict=True) if text)
            field = dataclasses.replace(field, derived="; ".join(some))
        steps[path] = field
    return dataclasses.replace(common, steps=steps)


def _check(checker: RuleChecker, block: Block, last_is_step: np.ndarray | None) -> None:
    columns = {name: _checkable(block.steps[name]) for name in (*FLAGS, DISCOUNT)}
    discount = columns.pop(DISCOUNT)
    flags = {name: column for name, column in columns.items() if column is not None}
    if len(flags) < len(FLAGS):
        return
    for name, column in flags.items():
        checker.check_flag(name, column)
    is_first, is_last, is_terminal = (column.astype(bool) for column in flags.values())
    checker.check_index(is_first, block.begins[:-1])
    checker.check(is_first, is_last, is_terminal, discount, last_is_step)


def _checkable(column: Column) -> np.ndarray | None:
    """A column of one real number a row, which the rules on values speak of; else None, and rule 2 is broken."""
    values = one_per_row(column)
    return values if values is not None and is_flag_or_number(values.dtype) else None
