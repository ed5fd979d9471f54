"""Reads the folder of an RLDS dataset: its metadata, and the shards of a split.

The dataset is untrusted. No class that it names is imported, no file outside of the
folder is read, and episode counts are checked against the sizes of the shards.
"""

from __future__ import annotations

import json
import logging
import os
import pathlib
import re
from typing import TYPE_CHECKING, Any

from kabuki_rlds.arguments import argument
from kabuki_rlds.data import limits
from kabuki_rlds.data.schema import Info
from kabuki_rlds.data.source import Skipped
from kabuki_rlds.errors import DamagedDataError, InvalidArgumentError, KabukiError, one_line
from kabuki_rlds.files.placeholders import INSTEAD, check_is_data, placeholder
from kabuki_rlds.files.records import FRAME, Scan
from kabuki_rlds.files.side_files import check_side_file, read_side_file
from kabuki_rlds.formats.rlds import parse_features, recorded_shards
from kabuki_rlds.formats.rlds.bad_records import MISSING
from kabuki_rlds.formats.rlds.shards import ShardSlice
from kabuki_rlds.formats.rlds.stored_last_rows import KEY

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_log = logging.getLogger("kabuki_rlds")

#: A folder with this file is a TFDS dataset.
FEATURES = "features.json"
_INFO = "dataset_info.json"
#: An error about a missing shard suggests `--split` slices of the other shards, if there are at most this many slices.
_MAX_SLICES = 3
_METADATA = "metadata.json"
#: The remedy in errors about rejected features or metadata.
_REMEDY = "Write the dataset again with features of `tfds.features`, or leave out the field"


def open_info(folder: pathlib.Path) -> tfds.core.DatasetInfo:
    """Reads the metadata of a dataset, without TFDS's builder, which would import any class (see `parse_features`).

    Raises:
      KabukiError: the folder has no TFDS dataset, a feature has a class that is not part of TFDS, or a limit is
        exceeded.
    """
    import tensorflow_datasets as tfds
    from google.protobuf import json_format
    from tensorflow_datasets.core import dataset_info

    try:
        _check_metadata(folder)
        stated = dataset_info.read_from_json(folder / _INFO)
        shards = len(stated.splits) + sum(len(split.shard_lengths) for split in stated.splits)
        if shards > limits.MAX_SHARDS:
            raise KabukiError(
                f"{folder / _INFO}: lists {shards:,} splits and shards, more than the limit of {limits.MAX_SHARDS:,}. "
                "Write the dataset again with fewer shards"
            )
        # As in TFDS, features in dataset_info.json come before those in features.json.
        if stated.HasField("features"):
            where, text = folder / _INFO, json_format.MessageToJson(stated.features)
        else:
            where = folder / FEATURES
            text = read_side_file(where, limits.MAX_JSON_BYTES, _REMEDY).decode("utf-8")
        features = parse_features.parse(text, os.fspath(where), _REMEDY)
        if stated.is_blocked:
            raise KabukiError(f"{folder}: TFDS has blocked this dataset: {stated.is_blocked}")
        info = tfds.core.DatasetInfo(
            builder=tfds.core.DatasetIdentity.from_proto(stated, os.fspath(folder)),
            description=stated.description,
            citation=stated.citation,
            features=features,
        )
        info.read_from_directory(folder)
        info.set_file_format(None)
    except KabukiError:
        raise
    except Exception as e:
        raise DamagedDataError(f"TFDS cannot open this dataset: {one_line(e)}", file=folder) from e
    return info


def _check_metadata(folder: pathlib.Path) -> None:
    """Checks the sizes of the metadata files before they are parsed.

    Raises:
      KabukiError: a file is not a regular file, is too large, lists too many classes, or is a placeholder (for example
        a Git LFS pointer).
    """
    for path in (folder / FEATURES, folder / _INFO, folder / _METADATA, *sorted(folder.glob("*.labels.txt"))):
        size = check_side_file(path, limits.MAX_JSON_BYTES, _REMEDY) if path.exists() else 0
        check_is_data(path, may_be_text=True)
        if size and path.suffix == ".txt":
            lines = read_side_file(path, limits.MAX_JSON_BYTES, _REMEDY).count(b"\n")
            if lines > limits.MAX_CLASSES:
                raise KabukiError(
                    f"{path}: names {lines:,} classes, more than the limit of {limits.MAX_CLASSES:,}. {_REMEDY}"
                )


def file_format(info: tfds.core.DatasetInfo, folder: pathlib.Path) -> str:
    """Returns the format of the shards: "tfrecord" or "array_record".

    Raises:
      KabukiError: the shards have another format.
    """
    found = str(info.file_format.value) if info.file_format else "tfrecord"
    if found not in ("tfrecord", "array_record"):
        raise KabukiError(
            f"{folder}: shards in the format {found!r} cannot be read, only tfrecord and array_record; "
            "write the dataset again in one of these formats"
        )
    return found


def shards(
    info: Any, split: str, folder: pathlib.Path, shard_format: str, *, skip_bad: bool
) -> tuple[list[ShardSlice], list[Skipped]]:
    """Finds the shards of a split.

    Args:
      info: the `DatasetInfo` of the dataset.
      split: the split, in TFDS's syntax.
      folder: the folder of the dataset.
      shard_format: "tfrecord" or "array_record".
      skip_bad: leave out shards that are missing or not listed, instead of raising an error.

    Returns:
      the slices of shards to read, and the episodes that are left out.

    Raises:
      KabukiError: the split does not exist, or its files do not match `dataset_info.json`.
    """
    if not info.splits:
        raise DamagedDataError(
            "lists no splits, so the dataset is incomplete; copy the whole dataset, or write it again",
            file=folder / _INFO,
        )
    for name, each in info.splits.items():
        if min(each.shard_lengths, default=0) < 0:
            raise DamagedDataError(f"split {name!r}: a shard has a negative number of episodes", file=folder / _INFO)
    try:
        found = info.splits[split]
        # TFDS cannot compute the file instructions of an empty split.
        instructions = found.file_instructions if found.num_examples else []
    except Exception as e:
        names = ", ".join(f"{name} ({s.num_examples} episodes)" for name, s in info.splits.items())
        raise InvalidArgumentError(f"{folder}: has no split {split!r}; the splits are {names}") from e
    for part in _absolute(info, split):
        # TFDS would return a negative number of episodes, or the rest of a shard.
        if None not in (part.from_, part.to) and part.from_ > part.to:
            raise InvalidArgumentError(
                f"{folder}: split {split!r}: the slice of {part.splitname!r} ends at episode {part.to}, "
                f"before its start at episode {part.from_}"
            )
    slices: list[ShardSlice] = []
    skipped: list[Skipped] = []
    for part in instructions:
        path = os.fspath(part.filename)
        check_inside(path, folder)
        rest = part.examples_in_shard - part.skip
        expected = rest if part.take == -1 else part.take
        if not os.path.isfile(path):
            if not skip_bad:
                check_is_data(path)
                raise DamagedDataError(f"{MISSING}; {_remedy_for_missing(info, split)}", file=path)
            instead = placeholder(path)
            skipped.append(Skipped(path, part.skip, expected, INSTEAD + instead if instead else MISSING))
            continue
        size, least = os.path.getsize(path), FRAME if shard_format == "tfrecord" else 1
        if (part.skip + expected) * least > size and not skip_bad:
            check_is_data(path)
            raise DamagedDataError(
                f"has {size:,} bytes, too few for the {part.skip + expected:,} episodes that dataset_info.json lists; "
                "the shard is truncated, or dataset_info.json is wrong. Copy the dataset again",
                file=path,
            )
        slices.append(ShardSlice(path, part.skip, expected, expected == rest, file_format=shard_format))
    if split in info.splits:
        of_split = info.splits[split]
        paths = list(of_split.filepaths) if of_split.shard_lengths else []
        for path, count in zip(paths, of_split.shard_lengths, strict=True):
            # TFDS does not open a shard that is listed with 0 episodes.
            if not count and os.path.isfile(path):
                slices.append(ShardSlice(os.fspath(path), 0, 0, True, file_format=shard_format))
        listed = {os.path.basename(path) for path in paths}
        for path, episodes in recorded_shards.unlisted(folder, info.name, split, len(of_split.shard_lengths)).items():
            _log.info("%s: %d episodes of a recording that is still running or was interrupted", path, episodes)
            slices.append(ShardSlice(os.fspath(path), 0, episodes, False, may_grow=True))
            listed.add(path.name)
        for path in _unlisted_shards(folder, f"{info.name}-{split}.{shard_format}", listed):
            why = "dataset_info.json does not list this shard"
            if not skip_bad:
                raise DamagedDataError(
                    f"{why}; move it to another folder, or convert with {argument('skip_bad_episodes', True)}, "
                    "which leaves it out",
                    file=path,
                )
            skipped.append(Skipped(os.fspath(path), 0, Scan(path).records, why))
    return slices, skipped


def _remedy_for_missing(info: Any, split: str) -> str:
    """Returns the remedy for a missing shard: copy the dataset, or read slices of the split without that shard."""
    remedy = "copy the whole dataset, then run again"
    if split not in info.splits:
        # For slices and sums of splits, no simple slice of the remaining shards can be suggested.
        return remedy
    of_split = info.splits[split]
    # A shard without episodes may be missing.
    present = [not n or os.path.isfile(f) for f, n in zip(of_split.filepaths, of_split.shard_lengths, strict=True)]
    edges = [i for i in range(len(present) + 1) if (i > 0 and present[i - 1]) != (i < len(present) and present[i])]
    slices = list(zip(edges[::2], edges[1::2], strict=True))
    if not slices or len(slices) > _MAX_SLICES:
        return remedy
    bounds = [(f"{a}shard" if a else "", f"{b}shard" if b < len(present) else "") for a, b in slices]
    parts = [f"{split}[{start}:{stop}]" for start, stop in bounds]
    return f"{remedy}, or read only the other shards: {argument('split', '+'.join(parts))}"


def splits_in(info: Any, split: str) -> set[str]:
    """Returns the names of the splits that `split`, in TFDS's syntax, refers to."""
    return {part.splitname for part in _absolute(info, split)}


def _absolute(info: Any, split: str) -> list[Any]:
    """Returns the slices of splits that `split` refers to, with absolute episode numbers."""
    import tensorflow_datasets as tfds

    parts: list[Any] = tfds.core.ReadInstruction.from_spec(split).to_absolute(info.splits)
    return parts


def check_inside(path: str, folder: pathlib.Path) -> None:
    """Checks that a shard is inside the folder of its dataset.

    Raises:
      KabukiError: the path leads out of the folder.
    """
    inside = os.path.relpath(os.path.abspath(path), os.path.abspath(folder))
    if inside.split(os.sep)[0] == os.pardir or os.pardir in pathlib.Path(path).parts[len(folder.parts) :]:
        raise DamagedDataError(
            f"names the shard {path!r}, which is outside of the dataset's folder; dataset rejected",
            file=folder / _INFO,
        )


def _unlisted_shards(folder: pathlib.Path, stem: str, listed: set[str]) -> list[pathlib.Path]:
    """Returns the files in `folder` that are named like shards of `stem` but are not in `listed`."""
    shard = re.compile(re.escape(stem) + r"-\d{5,}(-of-\d{5,})?")
    return [folder / name for name in sorted(os.listdir(folder)) if shard.fullmatch(name) and name not in listed]


def description(info: Any) -> Info:
    """Returns name, version, description, citation, homepage and environment of a dataset."""
    text = {key: str(getattr(info, key, None) or "") for key in ("description", "citation", "homepage")}
    metadata = {name: value for name, value in (info.metadata or {}).items() if name != KEY}
    environment = ""
    if metadata:
        try:
            environment = json.dumps(metadata, sort_keys=True)
        except (TypeError, ValueError):
            environment = ""
    return Info(name=str(info.full_name.rsplit("/", 1)[0]), version=str(info.version), environment=environment, **text)
