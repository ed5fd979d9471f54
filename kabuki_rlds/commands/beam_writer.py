"""Writes splits with an Apache Beam pipeline. Each worker reads a range of episodes.

A worker opens the file and encodes the records of its range. TFDS's `BeamWriter` then sorts the records into shards.
The sort keys are the episode numbers, so the order of the episodes is kept.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kabuki_rlds.data.common_schema import fit_block
from kabuki_rlds.data.schema import Schema
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.formats.hdf5.source import KabukiSource
from kabuki_rlds.formats.rlds.example_encoder import ExampleEncoder
from kabuki_rlds.formats.rlds.feature_proto import read_parts
from kabuki_rlds.formats.rlds.infer_features import ImageFormat, features_of

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

#: Approximate size of a range: bytes of decoded steps. A range with one long episode may be larger.
_RANGE_BYTES = 16 << 20
#: Minimum number of ranges per file, so that several workers share a small file.
_LEAST_RANGES = 8


@dataclasses.dataclass(frozen=True)
class EpisodeRange:
    """A range of consecutive episodes of one file: the work item of a Beam worker.

    Attributes:
      path: the Kabuki file.
      first: number of the first episode in the file.
      stop: number of the last episode in the file, plus 1.
      key: number of the first episode in its split.
      images: image format for images that are stored as arrays.
      schema: common schema of all files of the dataset.
    """

    path: str
    first: int
    stop: int
    key: int
    images: ImageFormat
    schema: Schema

    def records(self) -> Iterator[tuple[int, bytes]]:
        """Yields (number of the episode in its split, serialized `tf.train.Example`)."""
        with KabukiSource(self.path, quiet=True) as source:
            encoder = ExampleEncoder(features_of(self.schema, self.images))
            blocks = (fit_block(block, self.schema) for block in source.piece(self.first, self.stop).blocks())
            records = itertools.chain.from_iterable(map(encoder.encode, blocks))
            for key, parts in enumerate(itertools.chain(records, encoder.finish()), self.key):
                yield key, b"".join(read_parts(parts))


def ranges(
    sources: Sequence[KabukiSource], limit: int | None, images: ImageFormat, schema: Schema
) -> list[EpisodeRange]:
    """Splits the first `limit` episodes of some files into ranges of about the same number of steps. None means all."""
    found: list[EpisodeRange] = []
    key = 0
    for source in sources:
        episodes = source.num_episodes if limit is None else min(source.num_episodes, limit - key)
        steps = source.row_of(episodes)
        sample = source.size().sample
        row_bytes = 0 if sample is None else sample.nbytes // max(sample.num_steps, 1)
        count = min(max(_LEAST_RANGES, steps * row_bytes // _RANGE_BYTES), max(episodes, 1))
        # Ranges begin at the episodes nearest to equal shares of the steps. A long episode may span several shares.
        cuts = np.searchsorted(source.starts[:episodes], np.arange(1, count) * steps // count)
        for first, stop in itertools.pairwise([0, *np.unique(cuts).tolist(), episodes]):
            if stop > first:
                found.append(EpisodeRange(source.path, first, stop, key + first, images, schema))
        key += episodes
    return found


def write_splits(
    pipeline: Any,
    splits: Mapping[str, Sequence[EpisodeRange]],
    templates: Mapping[str, tfds.core.ShardedFileTemplate],
    features: tfds.features.FeaturesDict,
    file_format: tfds.core.FileFormat,
    shard_config: Any = None,
) -> list[tfds.core.SplitInfo]:
    """Runs a pipeline that writes the shards of splits.

    Args:
      pipeline: a `beam.Pipeline` that has not run yet.
      splits: maps each split to its ranges of episodes.
      templates: maps each split to the template of its shard names.
      features: the features of the dataset.
      file_format: the format of the shards.
      shard_config: TFDS's `ShardConfig`. None means the TFDS defaults.

    Returns:
      The `SplitInfo` of each split.

    Raises:
      KabukiError: the pipeline wrote a different number of episodes than expected.
    """
    import apache_beam as beam
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import writer as tfds_writer

    writers = {}
    with pipeline:
        for split, of_split in splits.items():
            if not of_split:
                continue
            writers[split] = tfds_writer.BeamWriter(
                serializer=_Serialized(features.get_serialized_info()),
                filename_template=templates[split],
                hash_salt=split,
                disable_shuffling=True,
                example_writer=tfds.core.ExampleWriter(file_format),
                shard_config=shard_config,
            )
            records = (
                pipeline
                | f"Ranges of {split}" >> beam.Create(of_split)
                # Without Reshuffle, Beam runs all elements of one Create on one worker.
                | f"Share out {split}" >> beam.Reshuffle()
                | f"Read {split}" >> beam.FlatMap(EpisodeRange.records)
            )
            _ = records | f"Write {split}" >> beam.ptransform_fn(_write)(writers[split])
    infos = []
    for split, of_split in splits.items():
        lengths, num_bytes = writers[split].finalize() if of_split else ([], 0)
        expected = sum(r.stop - r.first for r in of_split)
        if sum(lengths) != expected:
            raise KabukiError(f"split {split!r}: {sum(lengths)} episodes were written, expected {expected}")
        infos.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=lengths, num_bytes=num_bytes, filename_template=templates[split]
            )
        )
    return infos


def _write(records: Any, writer: Any) -> Any:
    return writer.write_from_pcollection(records)


@dataclasses.dataclass(frozen=True)
class _Serialized:
    """A serializer for TFDS's writer that returns serialized records unchanged.

    Attributes:
      example_specs: TFDS uses them in the error message about two records with the same key.
    """

    example_specs: Any

    def serialize_example(self, example: bytes) -> bytes:
        return example
