"""Finds out which records of a shard cannot be read, and why.

The pipeline reads many records at once, and what it says when one of them is damaged
tells neither which nor where. Here a shard is read again, in runs of records that
are halved until the one is found.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

from kabuki_rlds.data.source import Skipped
from kabuki_rlds.errors import KabukiError, one_line
from kabuki_rlds.files import signals
from kabuki_rlds.files.placeholders import INSTEAD, placeholder
from kabuki_rlds.formats.rlds.example_decoder import ExampleField
from kabuki_rlds.formats.rlds.pipeline import ImageForm
from kabuki_rlds.formats.rlds.shards import Damage, ShardSlice, survey

_log = logging.getLogger("kabuki_rlds")

#: If one record cannot be read, so many others are tried, to tell a damaged one from features that do not fit.
_TRIED = 8

#: What is wrong with a shard that is not there.
MISSING = "this shard is missing"

#: The lists of a `tf.train.Feature`, by their names in ours.
_LISTS = {"int64": "int64_list", "float32": "float_list", "string": "bytes_list"}


class BadRecords:
    """Reads the records of shards to see whether they can be.

    Args:
      file_format: "tfrecord" or "array_record".
      read: reads serialized examples as they would be converted, and raises where one cannot be.
      wires: all fields that are read in columns.
      images: path to images that the pipeline decodes.
    """

    def __init__(
        self,
        file_format: str,
        read: Callable[[Sequence[bytes]], None],
        wires: Sequence[ExampleField],
        images: Mapping[str, ImageForm],
    ):
        self._file_format = file_format
        self._read = read
        self._wires = wires
        self._images = images

    def first_loss(self, shards: Sequence[ShardSlice]) -> Skipped | None:
        """The first records of some shards that cannot be read."""
        found = (each for shard in shards for each in self._look(shard))
        return next((each for each in found if isinstance(each, Skipped)), None)

    def explain(self, loss: Skipped, shards: Sequence[ShardSlice]) -> str:
        """What is wrong and what to do, for a loss that `first_loss` found in some shards."""
        if loss.why.startswith(INSTEAD):
            return f"{loss.path}: {loss.why}"
        instead = placeholder(loss.path)
        if instead:
            return f"{loss}; the shard is {INSTEAD}{instead}"
        if loss.count == 1:
            others = self._others_that_fail(loss, shards)
            if others:
                return (
                    f"{loss}; all {others} other records that were tried fail too, so features.json does not describe "
                    "these shards: get the one that was written with them, or write the dataset again"
                )
        return f"{loss}; copy this shard again, or convert with --skip-bad-episodes, which leaves it out"

    def _others_that_fail(self, loss: Skipped, shards: Sequence[ShardSlice]) -> int:
        """How many other records were tried, if none of them can be read; 0 if one can, or if a checksum is wrong."""
        tried = 0
        for shard in shards:
            for found in survey(shard.path, self._file_format) if os.path.exists(shard.path) else ():
                if isinstance(found, Damage):
                    return 0
                for number, data in found:
                    if (shard.path, number) == (loss.path, loss.record):
                        continue
                    if not list(self._bad([(number, data)])):
                        return 0
                    tried += 1
                    if tried == _TRIED:
                        return tried
        return tried

    def sift(self, shard: ShardSlice) -> tuple[ShardSlice, list[Skipped]]:
        """What can be read of a slice of a shard, and what cannot."""
        good = 0
        skipped: list[Skipped] = []
        lost: list[int] = []
        for found in self._look(shard):
            if isinstance(found, int):
                good += found
                continue
            if found.count == 1:
                lost.append(found.record)
            before = skipped[-1] if skipped else None
            if before is not None and (before.record + before.count, before.why) == (found.record, found.why):
                skipped[-1] = dataclasses.replace(before, count=before.count + found.count)
            else:
                skipped.append(found)
        said = shard.expected - sum(each.count for each in skipped)
        if good > said:
            _log.warning(
                "%s: %d episodes more than dataset_info.json says; they are converted too", shard.path, good - said
            )
        return dataclasses.replace(shard, expected=good, to_end=False, lost=frozenset(lost)), skipped

    def _look(self, shard: ShardSlice) -> Iterator[int | Skipped]:
        """Numbers of records that can be read, and what cannot, in order."""
        instead = placeholder(shard.path, may_be_text=True)
        if instead or not os.path.exists(shard.path):
            yield Skipped(shard.path, shard.skip, shard.expected, INSTEAD + instead if instead else MISSING)
            return
        stop = shard.skip + shard.expected
        seen = 0
        for found in survey(shard.path, self._file_format):
            signals.check()
            if isinstance(found, Damage):
                seen = found.record + 1
                if found.is_end and (found.record < stop or shard.to_end):
                    # One is lost at the least, whatever dataset_info.json says of how many there are.
                    first = max(found.record, shard.skip)
                    yield Skipped(shard.path, first, max(stop - first, 1), found.why)
                    return
                if shard.skip <= found.record and (found.record < stop or shard.to_end):
                    yield Skipped(shard.path, found.record, 1, found.why)
            else:
                seen = found[-1][0] + 1
                wanted = [(n, data) for n, data in found if n >= shard.skip and (n < stop or shard.to_end)]
                bad = list(self._bad(wanted))
                yield len(wanted) - len(bad)
                yield from (Skipped(shard.path, number, 1, why) for number, why in bad)
            if seen >= stop and not shard.to_end:
                return
        first = max(seen, shard.skip)
        if first < stop:
            yield Skipped(shard.path, first, stop - first, f"dataset_info.json says more episodes than the {seen} here")

    def _bad(self, run: Sequence[tuple[int, bytes]]) -> Iterator[tuple[int, str]]:
        """The number of each record of a run that cannot be read, and why."""
        if not run:
            return
        try:
            self._read([data for _, data in run])
        except Exception as e:
            if len(run) == 1:
                yield run[0][0], self._why(run[0][1], e)
                return
            half = len(run) // 2
            yield from self._bad(run[:half])
            yield from self._bad(run[half:])

    def _why(self, record: bytes, error: Exception) -> str:
        """What is wrong with a record, with the field where one is at fault."""
        import tensorflow as tf

        if isinstance(error, KabukiError):
            return str(error)
        try:
            example = tf.train.Example.FromString(record)
        except Exception:
            return "it is no tf.train.Example"
        features = example.features.feature
        for wire in self._wires:
            for key, kind in wire.keys.items():
                found = features[key].WhichOneof("kind") if key in features else None
                if found not in (None, _LISTS[kind]):
                    return f"field {wire.path!r}: it holds a list of another type than {kind}, which its feature says"
        for path, image in self._images.items():
            for number, file in enumerate(features[image.key].bytes_list.value):
                try:
                    tf.ensure_shape(image.decode(tf.constant(file)), image.shape)
                except Exception as e:
                    return f"field {path!r}: row {number} cannot be decoded: {one_line(e)}"
        return one_line(error)
