"""Reads an RLDS dataset, as written by TFDS, in blocks of steps."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pathlib
from collections.abc import Collection, Iterator, Sequence
from typing import Literal

import numpy as np

from kabuki_rlds.data.block import Block, Column, row_splits
from kabuki_rlds.data.schema import Field, Schema
from kabuki_rlds.data.skipped_episodes import NothingLeftError, report
from kabuki_rlds.data.source import Origin, Size
from kabuki_rlds.errors import DamagedDataError, KabukiError, one_line
from kabuki_rlds.files import signals
from kabuki_rlds.files.records import FRAME
from kabuki_rlds.formats.rlds import dataset_dir, pipeline, tfds_fallback
from kabuki_rlds.formats.rlds import feature_layout as rlds_features
from kabuki_rlds.formats.rlds.bad_records import BadRecords
from kabuki_rlds.formats.rlds.example_decoder import ExampleField
from kabuki_rlds.formats.rlds.shards import ShardSlice, first_records
from kabuki_rlds.formats.rlds.stored_last_rows import StoredLastRows
from kabuki_rlds.images.damage import DamagedImageError, check_files
from kabuki_rlds.images.decode import decode_column

#: The size limits of a batch of records: about so many bytes, and at most so many episodes.
_BATCH_BYTES = 4 << 20
_BATCH_EPISODES = 512
#: `size` counts the steps of at most so many bytes of records, from at most so many shards.
_SAMPLE_BYTES = 64 << 20
_SAMPLE_SHARDS = 16


class RldsSource:
    """One split of an RLDS dataset.

    Args:
      folder: the version folder of the dataset, which contains `features.json`.
      split: a split in TFDS's syntax: `train`, `train[:10%]`, `train+test`.
      images: "arrays" decodes images, "encoded" keeps the bytes of the image files.
      skip_bad: leave out episodes that cannot be read. The constructor then reads the whole split to find them.

    Raises:
      KabukiError: the folder has no RLDS dataset, the split does not exist, or a field is not supported.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        split: str,
        images: Literal["arrays", "encoded"] = "arrays",
        *,
        skip_bad: bool = False,
    ):
        self.folder = pathlib.Path(folder)
        self.label = f"{self.folder} ({split})"
        info = self._dataset_info = dataset_dir.open_info(self.folder)
        self._image_mode = images
        self._file_format = dataset_dir.file_format(info, self.folder)
        self._shards, self.skipped = dataset_dir.shards(info, split, self.folder, self._file_format, skip_bad=skip_bad)
        self.origins = [Origin(str(self.folder.resolve()), info.full_name, split, "rlds")]
        self._splits = dataset_dir.splits_in(info, split)
        self._stored_last_rows = StoredLastRows(info, os.fspath(self.folder))
        try:
            self._open_fields()
        except KabukiError as e:
            raise e.within(self.folder) from e
        except Exception as e:
            # TFDS and TensorFlow raise errors of various types for features that they cannot build a graph for.
            what = f"{type(e).__name__}: {one_line(e)}"
            raise KabukiError(f"{self.folder / dataset_dir.FEATURES}: unsupported features ({what})") from e
        self._bad_records = BadRecords(self._file_format, self._check_readable, self._example_fields, self._images)
        if skip_bad:
            self._skip_bad_records()
        self._set_shards(self._shards)

    def _open_fields(self, only: Collection[str] | None = None) -> None:
        """Sets up the schema and the decoding of the fields. With `only`, reads just the step fields of these paths."""
        info = self._dataset_info
        self._leaves = rlds_features.read(info.features)
        if only is not None:
            self._leaves = [leaf for leaf in self._leaves if leaf.in_steps and leaf.path in only]
        decoded = [leaf.example_field for leaf in self._leaves if leaf.example_field]
        self._step_fields = {field.path: field for field in decoded if field.in_steps}
        self._episode_fields = {field.path: field for field in decoded if not field.in_steps}
        self._example_fields: list[ExampleField] = [*self._step_fields.values(), *self._episode_fields.values()]
        if not any(
            leaf.in_steps and (leaf.example_field is None or leaf.example_field.determines_steps)
            for leaf in self._leaves
        ):
            raise KabukiError("the number of steps is unknown, because no step field has any elements")
        self._fallback = tfds_fallback.TfdsReader(
            [leaf for leaf in self._leaves if leaf.example_field is None], info.features
        )
        # The pipeline decodes step fields with one image per step. The other image fields have few images.
        self._images: dict[str, ExampleField] = {}
        self._images_in_lists: set[tuple[bool, str]] = set()
        steps: dict[str, Field] = {}
        metadata: dict[str, Field] = {}
        for leaf in self._leaves:
            field = leaf.field
            if field.kind == "image" and leaf.example_field is not None:
                if self._image_mode == "encoded":
                    field = dataclasses.replace(field, encoded=True)
                elif leaf.in_steps and not field.is_list_of_images:
                    self._images[leaf.path] = leaf.example_field
                else:
                    self._images_in_lists.add((leaf.in_steps, leaf.path))
            (steps if leaf.in_steps else metadata)[leaf.path] = field
        self.schema = Schema(
            steps, metadata, json.dumps(info.features.to_json(), sort_keys=True), dataset_dir.description(info)
        )
        self._pipeline = pipeline.Pipeline(
            file_format=self._file_format,
            keys={key: kind for field in self._example_fields for key, kind in field.keys.items()},
            images=self._images,
            window=pipeline.window_rows([steps[path] for path in self._images]),
            keep_records=bool(self._fallback),
        )

    def _set_shards(self, shards: list[ShardSlice]) -> None:
        self._shards = shards
        self.num_episodes = sum(s.expected for s in shards)
        self.last_rows = self._stored_last_rows.of(shards, self._splits)
        # Without files that a recording may append to: the appended records are not read.
        listed = [shard.path for shard in shards if not shard.may_grow]
        self.files = [os.fspath(self.folder / dataset_dir.FEATURES), *dict.fromkeys(listed)]

    def _skip_bad_records(self) -> None:
        """Reads all shards and removes the unreadable records from the slices."""
        separated = [self._bad_records.separate(shard) for shard in self._shards]
        self._shards = [shard for shard, _ in separated if shard.expected]
        self.skipped += [loss for _, losses in separated for loss in losses]
        if self.skipped and not any(shard.expected for shard in self._shards):
            raise NothingLeftError(self.label, self.skipped)
        report(self.label, self.skipped)

    def _check_readable(self, examples: Sequence[bytes]) -> None:
        """Decodes serialized examples like `blocks` does. Raises an error if one cannot be decoded."""
        for _ in self._windows(self._pipeline.decode(examples)):
            pass

    def size(self) -> Size:
        """Returns the size of the source. Counts the steps of a sample of records, and extrapolates to all records."""
        total = sum(s.num_bytes for s in self._shards)
        on_disk = int(total)
        if not self.num_episodes:
            return Size(0, True, on_disk, None)
        sample: Block | None = None
        episodes = steps = num_bytes = 0
        chosen, bytes_per_shard = self._sample_shards(total)
        try:
            for examples in first_records(chosen, bytes_per_shard, self._batch_size()):
                if sample is None:
                    element = self._pipeline.sample(examples)
                    batch = self._batch(element)
                    sample = self._window(element, batch, 0)
                    steps += batch.num_steps
                else:
                    steps += self._count_steps(examples)
                episodes += len(examples)
                num_bytes += sum(map(len, examples)) + len(examples) * FRAME
            if sample is None:
                raise DamagedDataError(
                    "dataset_info.json lists episodes, but the shards have none; copy the dataset again"
                )
        except Exception as e:
            raise self._located_error(e, chosen) from e
        is_exact = episodes == self.num_episodes
        if not is_exact:
            # ArrayRecord compresses records, so `num_bytes` and `total` are not comparable.
            by_bytes = self._file_format == "tfrecord"
            steps = round(steps * (total / num_bytes if by_bytes else self.num_episodes / episodes))
        return Size(steps, is_exact, on_disk, sample, tuple(self._images))

    def _sample_shards(self, total: float) -> tuple[list[ShardSlice], int]:
        """Returns the shards that `size` samples, and the number of bytes to read from each."""
        nonempty = [shard for shard in self._shards if shard.expected]
        if total <= _SAMPLE_BYTES:
            return nonempty, _SAMPLE_BYTES
        count = min(len(nonempty), _SAMPLE_SHARDS)
        return [nonempty[len(nonempty) * i // count] for i in range(count)], _SAMPLE_BYTES // count

    def _count_steps(self, examples: Sequence[bytes]) -> int:
        """Returns the number of steps of serialized examples. Decodes as little as possible."""
        element = self._pipeline.sample(examples, decode=False)
        for field in self._step_fields.values():
            counts = field.steps_per_episode(element.lists)
            if counts is not None:
                return int(counts.sum())
        lengths = self._fallback.read(element.records).lengths
        assert lengths is not None, "`_open_fields` checked that a field determines the number of steps"
        return int(lengths.sum())

    def blocks(self, only: Collection[str] | None = None) -> Iterator[Block]:
        wanted = [leaf for leaf in self._leaves if leaf.in_steps and leaf.path in (only or ())]
        if len(wanted) < len(self._leaves) and any(
            leaf.example_field is None or leaf.example_field.determines_steps for leaf in wanted
        ):
            assert only is not None
            narrowed = copy.copy(self)
            narrowed._open_fields(only)
            yield from narrowed.blocks()
            return
        seen = [0] * len(self._shards)
        shard = 0
        try:
            for element, batch, block in self._windows(self._pipeline.read(self._shards, self._batch_size())):
                signals.check()
                if element.is_batch_start:
                    shard = element.shard
                    seen[shard] += batch.num_episodes
                    if seen[shard] > self._shards[shard].expected:
                        break
                yield block
        except Exception as e:
            raise self._located_error(e, self._shards[shard:]) from e
        self._check_counts(seen)

    def _windows(self, elements: Iterator[pipeline.Element]) -> Iterator[tuple[pipeline.Element, _Batch, Block]]:
        """Yields each element with its batch of episodes and the block of steps that it adds."""
        batch = _Batch({}, {}, np.zeros(1, np.int64))
        row = 0
        for element in elements:
            if element.is_batch_start:
                assert row == batch.num_steps
                batch, row = self._batch(element), 0
            block = self._window(element, batch, row)
            row += block.num_steps
            yield element, batch, block
        # `_batch` checked that there is one image per step, so this detects images that the pipeline lost.
        assert row == batch.num_steps

    def _located_error(self, error: Exception, shards: list[ShardSlice]) -> Exception:
        """Returns an error that names the shard, the record and the field.

        TensorFlow reads ahead, so the error does not say where it occurred. The first unreadable record of `shards` is
        searched instead.
        """
        import tensorflow as tf

        # TensorFlow raises ValueError for wrong shapes, and if its message would contain bytes that are not UTF-8.
        if not isinstance(error, (KabukiError, tf.errors.OpError, ValueError)):
            return error
        loss = self._bad_records.first_loss(shards)
        if loss is None:
            return DamagedDataError(one_line(error), file=self.label)
        field = error.field if isinstance(error, DamagedDataError) and repr(error.field) in loss.why else ""
        problem = self._bad_records.explain(loss, shards).removeprefix(f"{loss.path}: ")
        return DamagedDataError(problem, file=loss.path, field=field)

    def piece(self, first: int, stop: int) -> RldsSource:
        slices = []
        begin = 0
        for shard in self._shards:
            a, b = max(first - begin, 0), min(stop - begin, shard.expected)
            begin += shard.expected
            if a < b:
                slices.append(shard.part(a, b))
        piece = copy.copy(self)
        piece._set_shards(slices)
        return piece

    def pieces(self, num_bytes: int) -> list[RldsSource]:
        groups: list[list[ShardSlice]] = [[]]
        group_bytes = 0.0
        for shard in self._shards:
            for part in shard.cut(num_bytes):
                if group_bytes >= num_bytes:
                    groups.append([])
                    group_bytes = 0.0
                groups[-1].append(part)
                group_bytes += part.num_bytes
        pieces = []
        for group in groups:
            piece = copy.copy(self)
            piece._set_shards(group)
            pieces.append(piece)
        return pieces

    def name_of(self, episode: int) -> str:
        return f"{self.label}: episode {episode}"

    def close(self) -> None:
        """Does nothing: no file stays open between blocks."""

    def _batch_size(self) -> int:
        total = sum(s.num_bytes for s in self._shards)
        return max(1, min(_BATCH_EPISODES, int(_BATCH_BYTES * max(self.num_episodes, 1) / max(total, 1))))

    def _batch(self, element: pipeline.Element) -> _Batch:
        """Decodes a batch of episodes, without the images that the pipeline decodes.

        Raises:
          KabukiError: two fields have different numbers of steps, or a value does not match its feature.
        """
        by_tfds = self._fallback.read(element.records) if self._fallback else None
        lengths: np.ndarray | None = None if by_tfds is None else by_tfds.lengths
        first = "" if by_tfds is None else next(iter(by_tfds.steps), "")
        for path, field in self._step_fields.items():
            counts = field.steps_per_episode(element.lists)
            if lengths is None:
                lengths, first = counts, path
            elif counts is not None and (counts != lengths).any():
                episode = int(np.flatnonzero(counts != lengths)[0])
                raise DamagedDataError(
                    f"fields of one episode have different lengths: {first!r} has {lengths[episode]} steps, "
                    f"{path!r} has {counts[episode]}",
                    field=first,
                )
        assert lengths is not None, "`_open_fields` checked that a field determines the number of steps"
        starts = row_splits(lengths)
        steps = {
            path: self._column(field, element, int(starts[-1]))
            for path, field in self._step_fields.items()
            if path not in self._images
        }
        metadata = {path: self._column(field, element, len(lengths)) for path, field in self._episode_fields.items()}
        if by_tfds is not None:
            steps |= by_tfds.steps
            metadata |= by_tfds.metadata
        return _Batch(steps, {path: metadata[path] for path in self.schema.metadata}, starts)

    def _column(self, field: ExampleField, element: pipeline.Element, rows: int) -> Column:
        """Decodes one field of a batch, with its images unless the pipeline decodes them."""
        column = field.column(element.lists, rows)
        if field.field.kind != "image":
            return column
        try:
            if (field.in_steps, field.path) in self._images_in_lists:
                return decode_column(column, field.field)
            files = column if isinstance(column, np.ndarray) else column.values
            check_files(files.tolist(), field.field.shape)
        except DamagedImageError as e:
            is_row = field.in_steps and isinstance(column, np.ndarray)
            raise DamagedDataError(
                f"field {field.path!r}: {'row' if is_row else 'image'} {e.number} {e.problem}", field=field.path
            ) from e
        except KabukiError as e:
            raise KabukiError(f"field {field.path!r}: {e}") from e
        return column

    def _window(self, element: pipeline.Element, batch: _Batch, row: int) -> Block:
        """Returns the block of the steps from `row` on whose images the element has. Without images, all steps."""
        images = {path: element.images[path] for path in self._images}
        stop = row + len(next(iter(images.values()))) if images else batch.num_steps
        steps: dict[str, Column] = {}
        for path in self.schema.steps:
            column = images[path] if path in images else batch.steps[path]
            if path not in images and (row or stop != batch.num_steps):
                column = column[row:stop]
            assert len(column) == stop - row, path
            steps[path] = column
        # An empty episode begins at the same row as the next one, or at the end of the batch.
        begins, end = batch.starts[:-1], batch.num_episodes
        first = int(np.searchsorted(begins, row)) if row else 0
        last = end if stop == batch.num_steps else int(np.searchsorted(begins, stop))
        metadata = {path: column[first:last] for path, column in batch.metadata.items()}
        return Block(steps, stop - row, begins[first:last] - row, metadata)

    def _check_counts(self, seen: list[int]) -> None:
        for shard, count in zip(self._shards, seen, strict=True):
            if count != shard.expected:
                at_least = "at least " if count > shard.expected else ""
                raise DamagedDataError(
                    f"has {at_least}{count} episodes, expected {shard.expected} by dataset_info.json; "
                    "the dataset is damaged or was changed. Copy it again",
                    file=shard.path,
                )


@dataclasses.dataclass(frozen=True)
class _Batch:
    """The columns of a batch of episodes, without the images that the pipeline decodes.

    Attributes:
      steps: path to column, one row per step.
      metadata: path to column, one row per episode.
      starts: the steps of episode i are `starts[i]` to `starts[i + 1]`: int64, (episodes + 1,).
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
