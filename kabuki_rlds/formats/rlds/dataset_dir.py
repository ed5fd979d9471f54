"""The folder of an RLDS dataset: what it says of itself, and which files hold a split.

Anyone may have made it. What it says is held against what is there: nothing is
imported that it names, no file is read outside of it, and no count is believed that
its files cannot hold.
"""

from __future__ import annotations

import json
import logging
import os
import pathlib
import re
from typing import TYPE_CHECKING, Any

from kabuki_rlds.data import limits
from kabuki_rlds.data.schema import Info
from kabuki_rlds.data.source import Skipped
from kabuki_rlds.errors import DamagedDataError, InvalidArgumentError, KabukiError, one_line
from kabuki_rlds.files.placeholders import INSTEAD, check_is_data, placeholder
from kabuki_rlds.files.records import FRAME, Scan
from kabuki_rlds.formats.rlds import parse_features, recorded_shards
from kabuki_rlds.formats.rlds.bad_records import MISSING
from kabuki_rlds.formats.rlds.shards import ShardSlice
from kabuki_rlds.formats.rlds.stored_last_rows import KEY

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_log = logging.getLogger("kabuki_rlds")

#: A folder with this is a TFDS dataset.
FEATURES = "features.json"
_INFO = "dataset_info.json"
#: If the shards that are there are in more runs than this, no split is suggested that takes them.
_RUNS_NAMED = 3
_METADATA = "metadata.json"
#: What to do with a dataset whose features or metadata are rejected.
_REMEDY = "Write the dataset again with features of `tfds.features`, or leave out the field"


def open_info(folder: pathlib.Path) -> tfds.core.DatasetInfo:
    """Reads the metadata of a dataset, without TFDS's own builder: see `feature_classes`.

    Raises:
      KabukiError: the folder holds no TFDS dataset, or one that names a class that is not TFDS's own or exceeds a
        limit.
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
            where, text = folder / FEATURES, (folder / FEATURES).read_text("utf-8")
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
    """Rejects metadata that would take far more memory than any dataset needs, and files in place of metadata.

    Raises:
      KabukiError: a file is too large, names too many classes, or is a placeholder.
    """
    for path in (folder / FEATURES, folder / _INFO, folder / _METADATA, *sorted(folder.glob("*.labels.txt"))):
        size = path.stat().st_size if path.is_file() else 0
        if size > limits.MAX_JSON_BYTES:
            raise KabukiError(
                f"{path}: has {size:,} bytes, more than the limit of {limits.MAX_JSON_BYTES:,}. {_REMEDY}"
            )
        check_is_data(path, may_be_text=True)
        if size and path.suffix == ".txt":
            lines = path.read_bytes().count(b"\n")
            if lines > limits.MAX_CLASSES:
                raise KabukiError(
                    f"{path}: names {lines:,} classes, more than the limit of {limits.MAX_CLASSES:,}. {_REMEDY}"
                )


def file_format(info: tfds.core.DatasetInfo, folder: pathlib.Path) -> str:
    """The format of the shards: "tfrecord" or "array_record".

    Raises:
      KabukiError: it is another one.
    """
    found = str(info.file_format.value) if info.file_format else "tfrecord"
    if found not in ("tfrecord", "array_record"):
        raise KabukiError(f"{folder}: shards in the format {found!r} cannot be read")
    return found


def shards(
    info: Any, split: str, folder: pathlib.Path, shard_format: str, *, skip_bad: bool
) -> tuple[list[ShardSlice], list[Skipped]]:
    """What to read for a split, by TFDS's own account.

    Args:
      info: what TFDS knows of the dataset.
      split: the split.
      folder: of the dataset.
      shard_format: of the shards.
      skip_bad: leave out shards that are missing, or not accounted for.

    Returns:
      The slices, and the episodes that are left out.

    Raises:
      KabukiError: there is no such split, or its files are not those that there should be.
    """
    if not info.splits:
        raise DamagedDataError("the dataset says of no split, so it is not whole or was never finished", file=folder)
    for name, each in info.splits.items():
        if min(each.shard_lengths, default=0) < 0:
            raise DamagedDataError(f"a shard of {name!r} has less than no episodes", file=folder / _INFO)
    try:
        found = info.splits[split]
        # An empty split has no files, and TFDS then fails to say so.
        instructions = found.file_instructions if found.num_examples else []
    except Exception as e:
        names = ", ".join(f"{name} ({s.num_examples} episodes)" for name, s in info.splits.items())
        raise InvalidArgumentError(f"{folder}: no split {split!r}; it has {names}") from e
    for part in _absolute(info, split):
        # TFDS takes fewer than no episodes of it, or those up to the end of a shard.
        if None not in (part.from_, part.to) and part.from_ > part.to:
            raise InvalidArgumentError(
                f"{folder}: split {split!r} ends before it begins: of {part.splitname!r}, "
                f"at episode {part.to}, where it begins at {part.from_}"
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
                f"fewer episodes than dataset_info.json says: its {size:,} bytes cannot hold "
                f"{part.skip + expected:,}; this shard is cut short, or dataset_info.json is wrong",
                file=path,
            )
        slices.append(ShardSlice(path, part.skip, expected, expected == rest, file_format=shard_format))
    if split in info.splits:
        of_split = info.splits[split]
        paths = list(of_split.filepaths) if of_split.shard_lengths else []
        for path, count in zip(paths, of_split.shard_lengths, strict=True):
            # TFDS passes over a shard of which it is said that it holds nothing.
            if not count and os.path.isfile(path):
                slices.append(ShardSlice(os.fspath(path), 0, 0, True, file_format=shard_format))
        listed = {os.path.basename(path) for path in paths}
        for path, episodes in recorded_shards.unlisted(folder, info.name, split, len(of_split.shard_lengths)).items():
            _log.info("%s: %d episodes of a recording that was not ended, or still goes on", path, episodes)
            slices.append(ShardSlice(os.fspath(path), 0, episodes, False, may_grow=True))
            listed.add(path.name)
        for path in _others(folder, f"{info.name}-{split}.{shard_format}", listed):
            why = "this shard is none of those that dataset_info.json lists"
            if not skip_bad:
                raise DamagedDataError(
                    f"{why}; move it to another folder, or convert with --skip-bad-episodes, which leaves it out",
                    file=path,
                )
            skipped.append(Skipped(os.fspath(path), 0, Scan(path).records, why))
    return slices, skipped


def _remedy_for_missing(info: Any, split: str) -> str:
    """What to do if a shard of a split is missing."""
    remedy = "copy the whole dataset, then run again"
    if split not in info.splits:
        # A part of a split, or several: which shards to take of it is not as easily said.
        return remedy
    of_split = info.splits[split]
    # A shard without episodes need not be there.
    there = [not n or os.path.isfile(f) for f, n in zip(of_split.filepaths, of_split.shard_lengths, strict=True)]
    edges = [i for i in range(len(there) + 1) if (i > 0 and there[i - 1]) != (i < len(there) and there[i])]
    runs = list(zip(edges[::2], edges[1::2], strict=True))
    if not runs or len(runs) > _RUNS_NAMED:
        return remedy
    bounds = [(f"{a}shard" if a else "", f"{b}shard" if b < len(there) else "") for a, b in runs]
    parts = [f"{split}[{start}:{stop}]" for start, stop in bounds]
    return f"{remedy}, or read the shards that are there: --split '{'+'.join(parts)}'"


def splits_in(info: Any, split: str) -> set[str]:
    """The names of the splits that `split`, in TFDS's syntax, takes episodes from."""
    return {part.splitname for part in _absolute(info, split)}


def _absolute(info: Any, split: str) -> list[Any]:
    """The parts of splits that a split is made of, by the numbers of their episodes."""
    import tensorflow_datasets as tfds

    parts: list[Any] = tfds.core.ReadInstruction.from_spec(split).to_absolute(info.splits)
    return parts


def check_inside(path: str, folder: pathlib.Path) -> None:
    """Refuses the name of a shard that leads out of the dataset's folder."""
    inside = os.path.relpath(os.path.abspath(path), os.path.abspath(folder))
    if inside.split(os.sep)[0] == os.pardir or os.pardir in pathlib.Path(path).parts[len(folder.parts) :]:
        raise DamagedDataError(
            f"names the shard {path!r}, which is outside of the dataset's folder; it is not read", file=folder / _INFO
        )


def _others(folder: pathlib.Path, stem: str, names: set[str]) -> list[pathlib.Path]:
    """The shards of a split that are not among `names`."""
    shard = re.compile(re.escape(stem) + r"-\d{5,}(-of-\d{5,})?")
    return [folder / name for name in sorted(os.listdir(folder)) if shard.fullmatch(name) and name not in names]


def description(info: Any) -> Info:
    """What a dataset says of itself."""
    text = {key: str(getattr(info, key, None) or "") for key in ("description", "citation", "homepage")}
    metadata = {name: value for name, value in (info.metadata or {}).items() if name != KEY}
    environment = ""
    if metadata:
        try:
            environment = json.dumps(metadata, sort_keys=True)
        except (TypeError, ValueError):
            environment = ""
    return Info(name=str(info.full_name.rsplit("/", 1)[0]), version=str(info.version), environment=environment, **text)
