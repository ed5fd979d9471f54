"""An RLDS dataset on disk, as TFDS wrote it, read as blocks of steps."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from kabuki_rlds import interruption
from kabuki_rlds.block import Block, Column, Ragged, splits_of
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.formats.rlds import fallback, pictures, pipeline
from kabuki_rlds.formats.rlds import features as rlds_features
from kabuki_rlds.formats.rlds.wire import Wire
from kabuki_rlds.formats.source import Origin, Size
from kabuki_rlds.schema import Field, Info, Schema

#: Decoded images of one window take about this many bytes.
_WINDOW_BYTES = 4 << 20
_WINDOW_MAX = 4096
#: Records that are parsed at once take about this many bytes, and are no more than:
_BATCH_BYTES = 4 << 20
_BATCH_EPISODES = 512
#: A window of images whose size is not known before they are decoded.
_WINDOW_OF_UNKNOWN = 32
#: What the TFRecord format adds to each record: its length and two checksums.
_RECORD_FRAME = 16


class RldsSource:
    """One split of an RLDS dataset.

    Args:
      folder: the folder of a version of the dataset, with its `features.json`.
      split: a split in TFDS's syntax: `train`, `train[:10%]`, `train+test`.
      images: "arrays" decodes images; "encoded" keeps the bytes of the image files.

    Raises:
      KabukiError: the folder holds no RLDS dataset, or no such split.
    """

    def __init__(self, folder: str | os.PathLike[str], split: str, images: Literal["arrays", "encoded"] = "arrays"):
        import tensorflow_datasets as tfds

        self.folder = pathlib.Path(folder)
        self.label = f"{self.folder} ({split})"
        features_json = self.folder / "features.json"
        try:
            rlds_features.check_class_names(features_json.read_text(), str(features_json))
            builder = tfds.builder_from_directory(self.folder)
        except KabukiError:
            raise
        except Exception as e:
            raise KabukiError(f"{self.folder}: TFDS cannot open this dataset: {_one_line(e)}") from e
        info = builder.info
        self._shards = _shards(info, split, self.folder)
        self._file_format = info.file_format.value if info.file_format else "tfrecord"
        if self._file_format not in ("tfrecord", "array_record"):
            raise KabukiError(f"{self.folder}: shards in the format {self._file_format!r} cannot be read")
        self.num_episodes = sum(s.expected for s in self._shards)
        self.origins = [Origin(str(self.folder.resolve()), info.full_name, split, "rlds")]
        try:
            self._leaves = rlds_features.read(info.features)
        except KabukiError as e:
            raise KabukiError(f"{self.folder}: {e}") from e
        self._wires = {leaf.path: leaf.wire for leaf in self._leaves if leaf.in_steps and leaf.wire}
        self._metadata_wires = {leaf.path: leaf.wire for leaf in self._leaves if not leaf.in_steps and leaf.wire}
        self._fallback = fallback.Reader([leaf for leaf in self._leaves if leaf.wire is None], info.features)
        # One image a step is decoded in the pipeline; lists of images and images of episodes are few.
        self._images: dict[str, pipeline.Images] = {}
        self._decoders: dict[tuple[bool, str], pictures.Decode] = {}
        steps: dict[str, Field] = {}
        metadata: dict[str, Field] = {}
        for leaf in self._leaves:
            field = leaf.field
            if field.kind == "image" and leaf.wire is not None:
                decode = leaf.feature.decode_example
                if images == "encoded":
                    field = dataclasses.replace(field, encoded=True)
                elif leaf.in_steps and not field.is_list_of_images:
                    self._images[leaf.path] = pipeline.Images(leaf.wire.key, field.shape, field.dtype, decode)
                else:
                    self._decoders[leaf.in_steps, leaf.path] = decode
            (steps if leaf.in_steps else metadata)[leaf.path] = field
        self.origin_of = np.zeros(self.num_episodes, np.int64)
        self.schema = Schema(steps, metadata, json.dumps(info.features.to_json(), sort_keys=True), _info(info))
        wires: list[Wire] = [*self._wires.values(), *self._metadata_wires.values()]
        self._pipeline = pipeline.Pipeline(
            file_format=self._file_format,
            keys={key: kind for wire in wires for key, kind in wire.keys.items()},
            compressed=frozenset(wire.value_key for wire in wires if wire.encoding == "zlib"),
            images=self._images,
            window=_window_rows([steps[path] for path in self._images]),
            keep_records=bool(self._fallback),
        )

    def size(self) -> Size:
        """Parses the first few records, and extrapolates by the bytes of the shards."""
        total = sum(_taken_bytes(s) for s in self._shards)
        on_disk = int(total)
        if not self.num_episodes:
            return Size(0, True, on_disk, None)
        mean = max(total / self.num_episodes, 1.0)
        few = max(1, min(32, int(_BATCH_BYTES / mean)))
        first = next(s for s in self._shards if s.expected)
        head = dataclasses.replace(first, expected=min(few, first.expected), to_end=False)
        try:
            element = self._pipeline.sample(head, few)
            batch = self._batch(element)
            sample = self._window(element, batch, 0)
        except Exception as e:
            raise self._readable(e, [head]) from e
        record_bytes = element.num_bytes / batch.num_episodes + _RECORD_FRAME
        steps = batch.num_steps / batch.num_episodes * total / record_bytes
        return Size(round(steps), False, on_disk, sample, tuple(self._images))

    def blocks(self) -> Iterator[Block]:
        seen = [0] * len(self._shards)
        batch = _Batch({}, {}, np.zeros(1, np.int64))
        row = 0
        shard = 0
        try:
            for element in self._pipeline.read(self._shards, self._batch_size()):
                interruption.check()
                if element.is_batch_start:
                    _check_images(row, batch)
                    shard, row = element.shard, 0
                    batch = self._batch(element)
                    seen[shard] += batch.num_episodes
                    if seen[shard] > self._shards[shard].expected:
                        break
                block = self._window(element, batch, row)
                row += block.num_steps
                yield block
            else:
                _check_images(row, batch)
        except Exception as e:
            raise self._readable(e, self._shards[shard:]) from e
        self._check_counts(seen)

    def _readable(self, error: Exception, shards: list[pipeline.ShardSlice]) -> Exception:
        """An error in reading, with the shard: the first of `shards`, or a later one, since TensorFlow reads ahead."""
        import tensorflow as tf

        if isinstance(error, KabukiError):
            return KabukiError(f"{shards[0].path}: {error}")
        if isinstance(error, tf.errors.OpError):
            damaged = pipeline.first_unreadable(shards, self._file_format)
            if damaged is not None:
                return KabukiError(f"{damaged}: {_one_line(error)}; this shard is damaged, copy it again")
            return KabukiError(f"{self.label}: {_one_line(error)}")
        return error

    def close(self) -> None:
        """Nothing is held open between blocks."""

    def _batch_size(self) -> int:
        total = sum(_taken_bytes(s) for s in self._shards)
        return max(1, min(_BATCH_EPISODES, int(_BATCH_BYTES * max(self.num_episodes, 1) / max(total, 1))))

    def _batch(self, element: pipeline.Element) -> _Batch:
        """All of a batch but for its decoded images."""
        slow = self._fallback.read(element.records) if self._fallback else None
        lengths: np.ndarray | None = None if slow is None else slow.lengths
        by = "" if slow is None else next(iter(slow.steps), "")
        for path, wire in self._wires.items():
            counts = wire.steps_per_episode(element.lists)
            if lengths is None:
                lengths, by = counts, path
            elif counts is not None and (counts != lengths).any():
                episode = int(np.flatnonzero(counts != lengths)[0])
                raise KabukiError(
                    f"an episode has {lengths[episode]} steps by field {by!r} and {counts[episode]} by field {path!r}"
                )
        if lengths is None:
            raise KabukiError("no field says how many steps an episode has")
        starts = splits_of(lengths)
        steps = {
            path: self._column(wire, element, int(starts[-1]))
            for path, wire in self._wires.items()
            if path not in self._images
        }
        metadata = {path: self._column(wire, element, len(lengths)) for path, wire in self._metadata_wires.items()}
        if slow is not None:
            steps |= slow.steps
            metadata |= slow.metadata
        return _Batch(steps, {path: metadata[path] for path in self.schema.metadata}, starts)

    def _column(self, wire: Wire, element: pipeline.Element, rows: int) -> Column:
        column = wire.column(element.lists, rows)
        decode = self._decoders.get((wire.in_steps, wire.path))
        return column if decode is None else pictures.decode_files(column, wire.field, wire.path, decode)

    def _window(self, element: pipeline.Element, batch: _Batch, row: int) -> Block:
        """The rows from `row` on whose images the element holds, or all where none are decoded."""
        images = {path: _pixels(element.images[path]) for path in self._images}
        stop = row + len(next(iter(images.values()))) if images else batch.num_steps
        steps: dict[str, Column] = {}
        for path in self.schema.steps:
            column = images[path] if path in images else batch.steps[path]
            if path not in images and (row or stop != batch.num_steps):
                column = column[row:stop]
            if len(column) != stop - row:
                raise KabukiError(f"field {path!r} has not as many images as its episodes have steps")
            steps[path] = column
        # An episode without a step begins where the next one does, or at the end of the batch.
        begins, end = batch.starts[:-1], batch.num_episodes
        first = int(np.searchsorted(begins, row)) if row else 0
        last = end if stop == batch.num_steps else int(np.searchsorted(begins, stop))
        metadata = {path: column[first:last] for path, column in batch.metadata.items()}
        return Block(steps, stop - row, begins[first:last] - row, metadata)

    def _check_counts(self, seen: list[int]) -> None:
        for shard, count in zip(self._shards, seen, strict=True):
            if count != shard.expected:
                more = "more" if count > shard.expected else "fewer"
                raise KabukiError(
                    f"{shard.path}: {more} episodes than dataset_info.json says: {shard.expected} expected, "
                    f"{'at least ' if more == 'more' else ''}{count} found; the dataset is damaged or was changed"
                )


@dataclasses.dataclass(frozen=True)
class _Batch:
    """The columns of some whole episodes, decoded images left out.

    Attributes:
      steps: path to column, one row a step.
      metadata: path to column, one row an episode.
      starts: where each episode begins, and the end: int64, (episodes + 1,).
    """

    steps: dict[str, Column]
    metadata: dict[str, Column]
    starts: np.ndarray

    @property
    def num_steps(self) -> int:
        return int(self.starts[-1])

    @property
    def num_episodes(self) -> int:
        return len(self.starts) - 1


def _check_images(row: int, batch: _Batch) -> None:
    if row != batch.num_steps:
        raise KabukiError(f"{row} images where the episodes have {batch.num_steps} steps")


def _window_rows(images: list[Field]) -> int:
    """How many steps' images to decode at once."""
    sizes = [field.row_nbytes for field in images]
    if None in sizes:
        return _WINDOW_OF_UNKNOWN
    rows = max(1, min(_WINDOW_MAX, _WINDOW_BYTES // max(sum(size or 0 for size in sizes), 1)))
    # A power of two, as chunks are, so that a chunk is mostly cut from one window.
    return 1 << (rows.bit_length() - 1)


def _pixels(images: np.ndarray | tuple[np.ndarray, np.ndarray]) -> np.ndarray | Ragged:
    return images if isinstance(images, np.ndarray) else Ragged(*images)


def _shards(info: Any, split: str, folder: pathlib.Path) -> list[pipeline.ShardSlice]:
    """What to read for a split, by TFDS's own account."""
    if not info.splits:
        raise KabukiError(f"{folder}: the dataset says of no split, so it is not whole or was never finished")
    try:
        found = info.splits[split]
        # An empty split has no files, and TFDS then fails to say so.
        instructions = found.file_instructions if found.num_examples else []
    except Exception as e:
        names = ", ".join(f"{name} ({s.num_examples} episodes)" for name, s in info.splits.items())
        raise KabukiError(f"{folder}: no split {split!r}; it has {names}") from e
    shards = []
    for part in instructions:
        rest = part.examples_in_shard - part.skip
        expected = rest if part.take == -1 else part.take
        if not os.path.exists(part.filename):
            raise KabukiError(f"{part.filename}: this shard is missing; copy the whole dataset, then run again")
        shards.append(pipeline.ShardSlice(os.fspath(part.filename), part.skip, expected, expected == rest))
    return shards


def _taken_bytes(shard: pipeline.ShardSlice) -> float:
    size = os.path.getsize(shard.path)
    if shard.to_end and not shard.skip:
        return size
    # A part of a shard: what fraction it is, is known only where it goes to the end.
    return size * shard.expected / max(shard.skip + shard.expected, 1)


def _info(info: Any) -> Info:
    text = {key: str(getattr(info, key, None) or "") for key in ("description", "citation", "homepage")}
    metadata = info.metadata
    environment = ""
    if metadata:
        try:
            environment = json.dumps(dict(metadata), sort_keys=True)
        except (TypeError, ValueError):
            environment = ""
    return Info(name=str(info.full_name.rsplit("/", 1)[0]), version=str(info.version), environment=environment, **text)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # TensorFlow adds where in its graph it was.
    line = re.sub(r"\{\{.*?\}\} ?| ?\[Op:.*", "", lines[0]) if lines else ""
    return (line or type(error).__name__)[:400]
