"""Converts datasets into one Kabuki HDF5 file."""

from __future__ import annotations

import collections
import dataclasses
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from kabuki_rlds.arguments import argument, renamed
from kabuki_rlds.commands.resume import ConversionParts, discard
from kabuki_rlds.data import recipe_text
from kabuki_rlds.data.common_schema import common_schema
from kabuki_rlds.data.last_row import LastRow, LastRows
from kabuki_rlds.data.nan_actions import NanRows
from kabuki_rlds.data.rules import Violation
from kabuki_rlds.data.schema import DERIVED_IN_PART, Field, Schema, names_of_some
from kabuki_rlds.data.source import Fingerprints, Skipped, Source
from kabuki_rlds.errors import DestinationExistsError, InvalidArgumentError
from kabuki_rlds.files import signals
from kabuki_rlds.files.atomic_file import destination_of
from kabuki_rlds.files.paths import StrPath, local_path, path_list
from kabuki_rlds.formats.hdf5 import size_estimate
from kabuki_rlds.formats.hdf5.chunks import Compression
from kabuki_rlds.formats.hdf5.sink import KabukiSink
from kabuki_rlds.transforms.reading_options import ReadingOptions
from kabuki_rlds.transforms.required_fields import CompletedSource
from kabuki_rlds.transforms.transfer import progress_bar, transfer

_log = logging.getLogger("kabuki_rlds")


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What came of a conversion.

    Attributes:
      path: the file that was made.
      num_steps: number of its steps.
      num_episodes: number of its episodes.
      num_bytes: its size on disk.
      warnings: rules of the format that the source breaks, and so the file.
      changed: field to number of rows that `conform` changed.
      derived: field that the source lacks to how it was made.
      skipped: episodes of the sources that were left out, since they are damaged or empty.
      last_rows: whether the last row of each episode is a step, and why.
      nan_actions: the rows whose action has a NaN, by field.
    """

    path: pathlib.Path
    num_steps: int
    num_episodes: int
    num_bytes: int
    warnings: list[Violation]
    changed: dict[str, int]
    derived: dict[str, str]
    skipped: list[Skipped]
    last_rows: LastRows
    nan_actions: list[NanRows]

    steps = renamed("steps", "num_steps")
    episodes = renamed("episodes", "num_episodes")


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
    paths = path_list(sources)
    if not paths:
        raise InvalidArgumentError("no source to convert")
    dest = destination_of(dest)
    if os.path.lexists(dest) and not overwrite:
        raise DestinationExistsError(f"{dest}: already there; {argument('overwrite', True)} replaces it")
    reading = ReadingOptions(recipe, assume, fill, last_row)
    options = {"images": images, "conform": conform, "skip_bad_episodes": skip_bad_episodes} | reading.to_json()
    with reading.open(paths, split=split, data_dir=data_dir, images=images, skip_bad=skip_bad_episodes) as opened:
        _check_images(opened, images)
        _check_apart(paths, opened, dest)
        fingerprints = Fingerprints(opened)
        completed = [reading.complete(source, conform) for source in opened]
        schema = _common_schema(completed)
        total = size_estimate.check([source.size() for source in completed], dest, compression, copies=1 + resume)
        origins = [origin for source in opened for origin in source.origins]
        skipped = [loss for source in opened for loss in source.skipped]
        with (
            KabukiSink(dest, schema, origins, compression=compression, overwrite=overwrite, skipped=skipped) as sink,
            progress_bar(total, dest.name, progress) as bar,
        ):
            # Only now, since what another conversion is writing is its own.
            parts = ConversionParts(dest, fingerprints.to_json() | options) if resume else None
            if parts is None:
                discard(dest)
            read = CompletedSource.blocks if parts is None else parts.blocks
            moved = transfer(
                completed, sink, schema, fingerprints, bar, label=os.fspath(dest), check_rules=True, read=read
            )
            if parts is not None:
                discard(dest)
    changed: collections.Counter[str] = collections.Counter()
    for source in completed:
        changed.update(source.changed)
    derived = {path: field.derived for path, field in schema.steps.items() if field.derived}
    return Conversion(
        dest,
        moved.num_steps,
        moved.num_episodes,
        dest.stat().st_size,
        moved.violations,
        dict(changed),
        derived,
        skipped,
        moved.last_rows,
        moved.nan_actions,
    )


def _check_apart(paths: Sequence[StrPath], opened: list[Source], dest: pathlib.Path) -> None:
    """Refuses a destination that is among what is read, unless the user says so, and sources that it would cost."""
    files = [os.path.realpath(file) for source in opened for file in source.files]
    named = [os.path.realpath(local_path(path)) for path in paths]
    real = os.path.realpath(dest)
    if files.count(real) > named.count(real):
        raise InvalidArgumentError(
            f"{dest}: is among the files of {names_of_some(list(map(str, paths)))}, so its episodes would be there "
            "twice; write to another file"
        )
    ours = [os.path.realpath(f"{dest}{end}") for end in (".partial", ".parts")]
    for name in files:
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
            f"{argument('images')}: the images of {label} are stored as arrays ({', '.join(paths)}), "
            f"so there are no image files to keep; a recipe can make them: {remedy}"
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
