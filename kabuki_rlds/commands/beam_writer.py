"""Writes splits by an Apache Beam pipeline, whose workers read ranges of episodes.

A worker opens the file itself, and makes the records of its range. TFDS's own
`BeamWriter` then sorts them into shards; the keys are the numbers of the episodes, so
that their order is kept.
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
from kabuki_rlds.formats.rlds.infer_features import ImageFormat, features_of

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

#: A range holds about so many bytes of decoded steps, unless one episode has more.
_RANGE_BYTES = 16 << 20
#: A file is cut in as many ranges at the least, so that several workers share a small one too.
_LEAST_RANGES = 8


@dataclasses.dataclass(frozen=True)
class EpisodeRange:
    """What one worker reads at a time.

    Attributes:
      path: the Kabuki file.
      first: the first episode.
      stop: the one after the last.
      key: the number of the first episode in its split.
      images: how images that are stored as arrays are encoded.
      schema: of all files of the dataset.
    """

    path: str
    first: int
    stop: int
    key: int
    images: ImageFormat
    schema: Schema

    def records(self) -> Iterator[tuple[int, bytes]]:
        """(number of the episode in its split, its record)."""
        with KabukiSource(self.path, quiet=True) as source:
            encoder = ExampleEncoder(features_of(self.schema, self.images))
            blocks = (fit_block(block, self.schema) for block in source.piece(self.first, self.stop).blocks())
            records = itertools.chain.from_iterable(map(encoder.encode, blocks))
            yield from enumerate(itertools.chain(records, encoder.finish()), self.key)


def ranges(
    sources: Sequence[KabukiSource], limit: int | None, images: ImageFormat, schema: Schema
) -> list[EpisodeRange]:
    """Cuts the files of a split, up to `limit` episodes, into ranges of about the same number of steps."""
    found: list[EpisodeRange] = []
    key = 0
    for source in sources:
        episodes = source.num_episodes if limit is None else min(source.num_episodes, limit - key)
        steps = source.row_of(episodes)
        sample = source.size().sample
        row_bytes = 0 if sample is None else sample.nbytes // max(sample.num_steps, 1)
        count = min(max(_LEAST_RANGES, steps * row_bytes // _RANGE_BYTES), max(episodes, 1))
        # The episodes that begin nearest to equal parts of the steps; a long one may take several parts.
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
    """Writes the shards of splits, and waits for the pipeline to end.

    Args:
      pipeline: a `beam.Pipeline` that has not run.
      splits: split to what its workers are to read.
      templates: split to the names of its shards.
      features: the features of the dataset.
      file_format: the format of the shards.
      shard_config: TFDS's `ShardConfig`, None for its defaults.

    Returns:
      what TFDS keeps of each split.
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
                # Beam would have one worker do all that follows from one Create.
                | f"Share out {split}" >> beam.Reshuffle()
                | f"Read {split}" >> beam.FlatMap(EpisodeRange.records)
            )
            _ = records | f"Write {split}" >> beam.ptransform_fn(_write)(writers[split])
    infos = []
    for split, of_split in splits.items():
        lengths, num_bytes = writers[split].finalize() if of_split else ([], 0)
        expected = sum(r.stop - r.first for r in of_split)
        if sum(lengths) != expected:
            raise KabukiError(f"split {split!r}: {expected} episodes to write, but {sum(lengths)} were written")
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
    """Hands on to TFDS's writer what is serialized already.

    Attributes:
      example_specs: TFDS uses them to show two records that have the same key.
    """

    example_specs: Any

    def serialize_example(self, example: bytes) -> bytes:
        return example
