"""Finds the unreadable records of shards, and the reason for each.

The pipeline decodes many records at once, and its errors do not say which record is
damaged. This module reads a shard again and bisects batches of records until it has
found each bad record.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

from kabuki_rlds.arguments import argument
from kabuki_rlds.data.source import Skipped
from kabuki_rlds.errors import KabukiError, one_line
from kabuki_rlds.files import signals
from kabuki_rlds.files.placeholders import INSTEAD, placeholder
from kabuki_rlds.formats.rlds.example_decoder import ExampleField
from kabuki_rlds.formats.rlds.shards import Damage, ShardSlice, survey
from kabuki_rlds.images.decode_file import decode_file

_log = logging.getLogger("kabuki_rlds")

#: After a record fails, this many other records are tried. If all fail, the features are wrong rather than the record.
_MAX_TRIED = 8

#: The reason that is given for a missing shard.
MISSING = "this shard is missing"

#: List type to its field name in `tf.train.Feature`.
_LISTS = {"int64": "int64_list", "float32": "float_list", "string": "bytes_list"}


class BadRecords:
    """Finds the unreadable records of a dataset's shards.

    Args:
      file_format: "tfrecord" or "array_record".
      decode: decodes serialized examples as a conversion does, and raises an error if one cannot be decoded.
      fields: all fields that are decoded in columns.
      images: field path to the image that the pipeline decodes.
    """

    def __init__(
        self,
        file_format: str,
        decode: Callable[[Sequence[bytes]], None],
        fields: Sequence[ExampleField],
        images: Mapping[str, ExampleField],
    ):
        self._file_format = file_format
        self._decode = decode
        self._fields = fields
        self._images = images

    def first_loss(self, shards: Sequence[ShardSlice]) -> Skipped | None:
        """Returns the first unreadable records of `shards`, or None."""
        found = (each for shard in shards for each in self._check(shard))
        return next((each for each in found if isinstance(each, Skipped)), None)

    def explain(self, loss: Skipped, shards: Sequence[ShardSlice]) -> str:
        """Returns an error message with the reason and a remedy.

        Args:
          loss: the result of `first_loss(shards)`.
          shards: the shards that were searched.
        """
        if loss.why.startswith(INSTEAD):
            return f"{loss.path}: {loss.why}"
        instead = placeholder(loss.path)
        if instead:
            return f"{loss}; the shard is {INSTEAD}{instead}"
        if loss.count == 1:
            others = self._count_if_all_others_fail(loss, shards)
            if others:
                return (
                    f"{loss}; all {others} other records that were tried fail too, so features.json does not match "
                    "these shards: get the features.json that was written with them, or write the dataset again"
                )
        return (
            f"{loss}; copy this shard again, or convert with {argument('skip_bad_episodes', True)}, which leaves it out"
        )

    def _count_if_all_others_fail(self, loss: Skipped, shards: Sequence[ShardSlice]) -> int:
        """Tries up to `_MAX_TRIED` other records.

        Returns:
          the number of records tried if all of them fail; 0 if one can be decoded, or if a checksum is wrong.
        """
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
                    if tried == _MAX_TRIED:
                        return tried
        return tried

    def separate(self, shard: ShardSlice) -> tuple[ShardSlice, list[Skipped]]:
        """Reads all records of a slice.

        Returns:
          the slice without its bad records, and the bad records. Consecutive bad records with one reason are merged.
        """
        good = 0
        skipped: list[Skipped] = []
        lost: list[int] = []
        for found in self._check(shard):
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
        listed = shard.expected - sum(each.count for each in skipped)
        if good > listed:
            _log.warning(
                "%s: has %d more episodes than dataset_info.json lists; they are converted too",
                shard.path,
                good - listed,
            )
        return dataclasses.replace(shard, expected=good, to_end=False, lost=frozenset(lost)), skipped

    def _check(self, shard: ShardSlice) -> Iterator[int | Skipped]:
        """Yields counts of readable records, and the unreadable records between them, in file order."""
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
                    # At least one record is lost, even if dataset_info.json lists none here.
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
            yield Skipped(
                shard.path, first, stop - first, f"dataset_info.json lists more episodes than the {seen} in this shard"
            )

    def _bad(self, batch: Sequence[tuple[int, bytes]]) -> Iterator[tuple[int, str]]:
        """Yields the number of each record in `batch` that cannot be decoded, and the reason. Bisects the batch."""
        if not batch:
            return
        try:
            self._decode([data for _, data in batch])
        except Exception as e:
            if len(batch) == 1:
                yield batch[0][0], self._reason(batch[0][1], e)
                return
            half = len(batch) // 2
            yield from self._bad(batch[:half])
            yield from self._bad(batch[half:])

    def _reason(self, record: bytes, error: Exception) -> str:
        """Returns why a record cannot be decoded. Names the field if one field is at fault."""
        import tensorflow as tf

        if isinstance(error, KabukiError):
            return str(error)
        try:
            example = tf.train.Example.FromString(record)
        except Exception:
            return "not a valid tf.train.Example"
        features = example.features.feature
        for field in self._fields:
            for key, kind in field.keys.items():
                found = features[key].WhichOneof("kind") if key in features else None
                if found not in (None, _LISTS[kind]):
                    return f"field {field.path!r}: stored as {found}, expected {_LISTS[kind]} by its feature"
        for path, image in self._images.items():
            for number, file in enumerate(features[image.key].bytes_list.value):
                try:
                    decode_file(file, image.field.shape, image.field.dtype)
                except Exception as e:
                    return f"field {path!r}: row {number} cannot be decoded: {one_line(e)}"
        return one_line(error)
