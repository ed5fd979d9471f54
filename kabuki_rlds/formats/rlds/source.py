"""An RLDS dataset on disk, as TFDS wrote it, read as blocks of steps."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pathlib
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from kabuki_rlds.data.block import Block, Column, Ragged, row_splits
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
from kabuki_rlds.formats.rlds.stored_last_rows import StatedLastRows
from kabuki_rlds.images.damage import DamagedImageError, check_files
from kabuki_rlds.images.decode import Decode, decode_files

if TYPE_CHECKING:
    pass


#: Records that are parsed at once take about this many bytes, and are no more than:
_BATCH_BYTES = 4 << 20
_BATCH_EPISODES = 512
#: Bytes of records whose steps are counted beforehand, and the most shards that they are taken from.
_SAMPLE_BYTES = 64 << 20
_SAMPLE_SHARDS = 16


class RldsSource:
    """One split of an RLDS dataset.

    Args:
      folder: the folder of a version of the dataset, with its `features.json`.
      split: a split in TFDS's syntax: `train`, `train[:10%]`, `train+test`.
      images: "arrays" decodes images; "encoded" keeps the bytes of the image files.
      skip_bad: leave out the episodes that cannot be read. All are read once, to find these.

    Raises:
      KabukiError: the folder holds no RLDS dataset, or no such split.
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
        self._how_images = images
        self._file_format = dataset_dir.file_format(info, self.folder)
        self._shards, self.skipped = dataset_dir.shards(info, split, self.folder, self._file_format, skip_bad=skip_bad)
        self.origins = [Origin(str(self.folder.resolve()), info.full_name, split, "rlds")]
        self._splits = dataset_dir.splits_in(info, split)
        self._stated_last_rows = StatedLastRows(info, os.fspath(self.folder))
        try:
            self._open_fields()
        except KabukiError as e:
            raise e.within(self.folder) from e
        except Exception as e:
            # Neither TFDS nor TensorFlow says beforehand what they cannot make a graph of.
            what = f"{type(e).__name__}: {one_line(e)}"
            raise KabukiError(f"{self.folder / dataset_dir.FEATURES}: fields that cannot be read ({what})") from e
        self._triage = BadRecords(self._file_format, self._read_all, self._all_wires, self._images)
        if skip_bad:
            self._leave_out_bad()
        self._take(self._shards)

    def _open_fields(self, only: Collection[str] | None = None) -> None:
        """Finds out what the fields are, and how each is read. `only` names the step fields to read, and no others."""
        info = self._dataset_info
        self._leaves = rlds_features.read(info.features)
        if only is not None:
            self._leaves = [leaf for leaf in self._leaves if leaf.in_steps and leaf.path in only]
        self._wires = {leaf.path: leaf.wire for leaf in self._leaves if leaf.in_steps and leaf.wire}
        self._metadata_wires = {leaf.path: leaf.wire for leaf in self._leaves if not leaf.in_steps and leaf.wire}
        self._all_wires: list[ExampleField] = [*self._wires.values(), *self._metadata_wires.values()]
        if not any(leaf.in_steps and (leaf.wire is None or leaf.wire.tells_steps) for leaf in self._leaves):
            raise KabukiError("no field says how many steps an episode has")
        self._fallback = tfds_fallback.TfdsReader([leaf for leaf in self._leaves if leaf.wire is None], info.features)
        # One image a step is decoded in the pipeline; lists of images and images of episodes are few.
        self._images: dict[str, pipeline.ImageForm] = {}
        self._decoders: dict[tuple[bool, str], Decode] = {}
        steps: dict[str, Field] = {}
        metadata: dict[str, Field] = {}
        for leaf in self._leaves:
            field = leaf.field
            if field.kind == "image" and leaf.wire is not None:
                decode = leaf.feature.decode_example
                if self._how_images == "encoded":
                    field = dataclasses.replace(field, encoded=True)
                elif leaf.in_steps and not field.is_list_of_images:
                    self._images[leaf.path] = pipeline.ImageForm(leaf.wire.key, field.shape, field.dtype, decode)
                else:
                    self._decoders[leaf.in_steps, leaf.path] = decode
            (steps if leaf.in_steps else metadata)[leaf.path] = field
        self.schema = Schema(
            steps, metadata, json.dumps(info.features.to_json(), sort_keys=True), dataset_dir.description(info)
        )
        self._pipeline = pipeline.Pipeline(
            file_format=self._file_format,
            keys={key: kind for wire in self._all_wires for key, kind in wire.keys.items()},
            images=self._images,
            window=pipeline.window_rows([steps[path] for path in self._images]),
            keep_records=bool(self._fallback),
        )

    def _take(self, shards: list[ShardSlice]) -> None:
        self._shards = shards
        self.num_episodes = sum(s.expected for s in shards)
        self.last_rows = self._stated_last_rows.of(shards, self._splits)
        # A recording may go on; what is read of it stays as it is.
        listed = [shard.path for shard in shards if not shard.may_grow]
        self.files = [os.fspath(self.folder / dataset_dir.FEATURES), *dict.fromkeys(listed)]

    def _leave_out_bad(self) -> None:
        """Looks for the episodes that cannot be read."""
        sifted = [self._triage.sift(shard) for shard in self._shards]
        self._shards = [shard for shard, _ in sifted if shard.expected]
        self.skipped += [loss for _, losses in sifted for loss in losses]
        if self.skipped and not any(shard.expected for shard in self._shards):
            raise NothingLeftError(self.label, self.skipped)
        report(self.label, self.skipped)

    def _read_all(self, examples: Sequence[bytes]) -> None:
        """Reads serialized examples as `blocks` does, and drops what comes of it."""
        for _ in self._windows(self._pipeline.decode(examples)):
            pass

    def size(self) -> Size:
        """Counts the steps of records spread over the shards, and extrapolates from them if they are not all."""
        total = sum(s.num_bytes for s in self._shards)
        on_disk = int(total)
        if not self.num_episodes:
            return Size(0, True, on_disk, None)
        sample: Block | None = None
        episodes = steps = num_bytes = 0
        chosen, of_each = self._spread(total)
        try:
            for examples in first_records(chosen, of_each, self._batch_size()):
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
                raise DamagedDataError("holds no episodes where dataset_info.json says it does; the dataset is damaged")
        except Exception as e:
            raise self._readable(e, chosen) from e
        is_exact = episodes == self.num_episodes
        if not is_exact:
            # Records in ArrayRecord are compressed, so that their bytes in the file are not known.
            by_bytes = self._file_format == "tfrecord"
            steps = round(steps * (total / num_bytes if by_bytes else self.num_episodes / episodes))
        return Size(steps, is_exact, on_disk, sample, tuple(self._images))

    def _spread(self, total: float) -> tuple[list[ShardSlice], int]:
        """The shards to take records from to learn how large all are, and how many bytes to take from each."""
        held = [shard for shard in self._shards if shard.expected]
        if total <= _SAMPLE_BYTES:
            return held, _SAMPLE_BYTES
        count = min(len(held), _SAMPLE_SHARDS)
        return [held[len(held) * i // count] for i in range(count)], _SAMPLE_BYTES // count

    def _count_steps(self, examples: Sequence[bytes]) -> int:
        """How many steps some serialized examples have. Nothing is decoded that is not needed for it."""
        element = self._pipeline.sample(examples, decode=False)
        for wire in self._wires.values():
            counts = wire.steps_per_episode(element.lists)
            if counts is not None:
                return int(counts.sum())
        lengths = self._fallback.read(element.records).lengths
        assert lengths is not None, "the fields were looked at when they were opened"
        return int(lengths.sum())

    def blocks(self, only: Collection[str] | None = None) -> Iterator[Block]:
        wanted = [leaf for leaf in self._leaves if leaf.in_steps and leaf.path in (only or ())]
        if len(wanted) < len(self._leaves) and any(leaf.wire is None or leaf.wire.tells_steps for leaf in wanted):
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
            raise self._readable(e, self._shards[shard:]) from e
        self._check_counts(seen)

    def _windows(self, elements: Iterator[pipeline.Element]) -> Iterator[tuple[pipeline.Element, _Batch, Block]]:
        """The steps that each element adds, and the batch of episodes that they are of."""
        batch = _Batch({}, {}, np.zeros(1, np.int64))
        row = 0
        for element in elements:
            if element.is_batch_start:
                assert row == batch.num_steps
                batch, row = self._batch(element), 0
            block = self._window(element, batch, row)
            row += block.num_steps
            yield element, batch, block
        # `_batch` saw to it that there is an image for each step; one that the pipeline drops would be lost.
        assert row == batch.num_steps

    def _readable(self, error: Exception, shards: list[ShardSlice]) -> Exception:
        """An error in reading, with the shard, the record and the field.

        They are those of the first record that cannot be read of `shards`, since TensorFlow reads ahead.
        """
        import tensorflow as tf

        # What TensorFlow says may hold the bytes of the record, and then be no text: a ValueError, as are its shapes.
        if not isinstance(error, (KabukiError, tf.errors.OpError, ValueError)):
            return error
        loss = self._triage.first_loss(shards)
        if loss is None:
            return DamagedDataError(f"{one_line(error)}", file=self.label)
        field = error.field if isinstance(error, DamagedDataError) and repr(error.field) in loss.why else ""
        problem = self._triage.explain(loss, shards).removeprefix(f"{loss.path}: ")
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
        piece._take(slices)
        return piece

    def pieces(self, num_bytes: int) -> list[RldsSource]:
        runs: list[list[ShardSlice]] = [[]]
        held = 0.0
        for shard in self._shards:
            for part in shard.cut(num_bytes):
                if held >= num_bytes:
                    runs.append([])
                    held = 0.0
                runs[-1].append(part)
                held += part.num_bytes
        pieces = []
        for run in runs:
            piece = copy.copy(self)
            piece._take(run)
            pieces.append(piece)
        return pieces

    def name_of(self, episode: int) -> str:
        return f"{self.label}: episode {episode}"

    def close(self) -> None:
        """Nothing is held open between blocks."""

    def _batch_size(self) -> int:
        total = sum(s.num_bytes for s in self._shards)
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
                raise DamagedDataError(
                    f"an episode has {lengths[episode]} steps by field {by!r} and {counts[episode]} by field {path!r}",
                    field=by,
                )
        assert lengths is not None, "the fields were looked at when they were opened"
        starts = row_splits(lengths)
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

    def _column(self, wire: ExampleField, element: pipeline.Element, rows: int) -> Column:
        column = wire.column(element.lists, rows)
        if wire.field.kind != "image":
            return column
        decode = self._decoders.get((wire.in_steps, wire.path))
        try:
            if decode is not None:
                return decode_files(column, wire.field, decode)
            files = column if isinstance(column, np.ndarray) else column.values
            check_files(files.tolist(), wire.field.shape)
        except DamagedImageError as e:
            is_row = wire.in_steps and isinstance(column, np.ndarray)
            raise DamagedDataError(
                f"field {wire.path!r}: {'row' if is_row else 'image'} {e.number} {e.problem}", field=wire.path
            ) from e
        except KabukiError as e:
            raise KabukiError(f"field {wire.path!r}: {e}") from e
        return column

    def _window(self, element: pipeline.Element, batch: _Batch, row: int) -> Block:
        """The rows from `row` on whose images the element holds, or all where none are decoded."""
        images = {path: _pixels(element.images[path]) for path in self._images}
        stop = row + len(next(iter(images.values()))) if images else batch.num_steps
        steps: dict[str, Column] = {}
        for path in self.schema.steps:
            column = images[path] if path in images else batch.steps[path]
            if path not in images and (row or stop != batch.num_steps):
                column = column[row:stop]
            assert len(column) == stop - row, path
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
                raise DamagedDataError(
                    f"{more} episodes than dataset_info.json says: {shard.expected} expected, "
                    f"{'at least ' if more == 'more' else ''}{count} found; the dataset is damaged or was changed",
                    file=shard.path,
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


def _pixels(images: np.ndarray | tuple[np.ndarray, np.ndarray]) -> np.ndarray | Ragged:
    return images if isinstance(images, np.ndarray) else Ragged(*images)
