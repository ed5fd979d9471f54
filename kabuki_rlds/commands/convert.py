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
    """The result of `convert`.

    Attributes:
      path: the file that was written.
      num_steps: number of steps in the file.
      num_episodes: number of episodes in the file.
      num_bytes: size on disk in bytes.
      warnings: rules of the format that the source, and therefore the file, breaks.
      changed: maps each field that `conform` changed to the number of changed rows.
      derived: maps each field that is missing from the source to how it was derived.
      skipped: episodes that were left out because they are damaged or empty.
      last_rows: whether the last row of each episode is a step, and the reason.
      nan_actions: the rows whose action contains NaN, by field.
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

    The file is written to a temporary file, which is renamed to `dest` at the end. If an error occurs, no partial file
    is left, and an existing `dest` is unchanged.

    Args:
      sources: the folder of a TFDS dataset, a TFDS name, an EnvLogger log, a Kabuki HDF5 file, or demonstrations in the
        layout of another project (a file, a folder, or a file name pattern). Several sources are concatenated in this
        order.
      dest: the file to write.
      split: the split of each source, or a part of it in TFDS syntax: `train[:10%]`, `train[17:18]`, `train+test`. The
        default for TFDS datasets is `train`. For demonstrations it is the name of a mask or of a split of the recipe;
        the default is all episodes. Kabuki files, logs, and demonstrations without masks have one split, `train`.
      data_dir: the folder in which a TFDS name is looked up.
      images: "arrays" stores decoded images. "encoded" stores the bytes of the image files.
      compression: "gzip" (any HDF5 library can read it), "lzf" (only h5py can read it) or "none".
      fill: constants for required fields that are missing from a source: {"reward": 0.0}.
      assume: semantics that the source format leaves undefined: {"dones": "reward"}. See the module of the layout in
        `formats.demos`.
      recipe: maps the fields of the sources to those of the file: a YAML file or the name of a built-in recipe.
      last_row: whether the last row of each episode is a "step" or only an "observation". The default is determined
        from the metadata, layout or values of the source: see `data.last_row`.
      conform: correct values that break the rules on episode ends and discounts. Otherwise these values are kept, with
        a warning.
      skip_bad_episodes: leave out episodes that cannot be read, and damaged files if there are several sources. The
        file lists them. All data is read twice. Demonstrations without steps are always left out.
      resume: save finished parts in `<dest>.parts` during the conversion, and reuse the parts that an interrupted call
        with the same sources and options left there. The resulting file is the same. The parts need as much disk space
        as the file; they are deleted at the end.
      overwrite: replace an existing `dest`.
      progress: show a progress bar on stderr.

    Returns:
      The path, size and counts of the file, and the reports on its data: broken rules, derived fields, and so on.

    Raises:
      KabukiError: a source cannot be read, a required field is missing, the fields of the sources are incompatible, the
        disk has too little space, `dest` exists, the data contradict the numbers that a source states, or a source
        changed during the conversion.

    Example:
      result = kabuki_rlds.convert("~/tensorflow_datasets/hopper/1.0.0", "hopper.hdf5", split="train[:10%]")
      print(result.num_episodes, result.num_steps)
    """
    paths = path_list(sources)
    if not paths:
        raise InvalidArgumentError("no source to convert")
    dest = destination_of(dest)
    if os.path.lexists(dest) and not overwrite:
        raise DestinationExistsError(f"{dest}: already exists; {argument('overwrite', True)} replaces it")
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
            # Only after the sink is open, because the sink detects another conversion that is writing to `dest`.
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
    """Checks that writing `dest` does not overwrite or delete a file that is read.

    A `dest` that the user also names as a source is allowed.
    """
    files = [os.path.realpath(file) for source in opened for file in source.files]
    named = [os.path.realpath(local_path(path)) for path in paths]
    real = os.path.realpath(dest)
    if files.count(real) > named.count(real):
        raise InvalidArgumentError(
            f"{dest}: is among the files of {names_of_some(list(map(str, paths)))}, so its episodes would be stored "
            "twice; write to another file"
        )
    ours = [os.path.realpath(f"{dest}{end}") for end in (".partial", ".parts")]
    for name in files:
        if name in ours or os.path.dirname(name) in ours:
            raise InvalidArgumentError(
                f"{name}: is a temporary file of the conversion to {dest}, so it would be deleted; "
                "write to another file"
            )


def _check_images(opened: list[Source], images: str) -> None:
    """Rejects `images="encoded"` if all images are stored as arrays, and warns of each source with such images."""
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
        _log.warning("%s: has images that are stored as arrays; they stay arrays: %s", label, ", ".join(paths))


def _is_array_of_pixels(field: Field) -> bool:
    """Returns whether a field holds images as arrays, according to its kind or its shape (height, width, channels)."""
    by_shape = field.dtype == np.uint8 and len(field.shape) == 3 and field.shape[-1] in (1, 3, 4)
    return not field.encoded and (field.kind == "image" or by_shape)


def _common_schema(completed: Sequence[CompletedSource]) -> Schema:
    """Returns the common schema of all sources.

    If a field is derived for some sources only, its `derived` names these sources.
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
