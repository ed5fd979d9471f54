"""Writes blocks of steps as the shards of one split of a TFDS dataset.

TFDS chooses the names and the number of the shards. This module encodes the records
(`example_encoder`) and writes them to their shard immediately and in order. TFDS's own
writer would shuffle them by a hash, in temporary files. Therefore the dataset has
`disable_shuffling`, and TFDS reads it in the order of the source.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from kabuki_rlds.data.block import Block
from kabuki_rlds.data.last_row import LastRows
from kabuki_rlds.data.rules import Violation
from kabuki_rlds.data.source import Size
from kabuki_rlds.errors import InvalidArgumentError, KabukiError
from kabuki_rlds.files import disk, records
from kabuki_rlds.formats.rlds.example_encoder import ExampleEncoder
from kabuki_rlds.formats.rlds.feature_proto import Part, read_parts
from kabuki_rlds.formats.rlds.recorded_shards import SHARD_TEMPLATE

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

#: The shard formats that can be written.
FILE_FORMATS = ("tfrecord", "array_record")

#: `estimated_bytes` encodes about so many bytes of decoded steps.
_SAMPLE_BYTES = 1 << 20


class _Shard(Protocol):
    def write(self, parts: Sequence[Part], /) -> None: ...
    def close(self) -> None: ...


class SplitSink:
    """Writes the shards of one split from blocks. Without `commit`, the shards are removed.

    Args:
      template: template of the shard paths: folder, dataset, split and format.
      features: the features of the dataset.
      lengths: number of episodes of each shard. The last shard also gets all further episodes.

    Attributes:
      info: the `SplitInfo` of the split, or None before `commit`.

    Raises:
      InvalidArgumentError: the format is not one of `FILE_FORMATS`.
    """

    def __init__(
        self, template: tfds.core.ShardedFileTemplate, features: tfds.features.FeaturesDict, lengths: Sequence[int]
    ):
        if template.filetype_suffix not in FILE_FORMATS:
            raise InvalidArgumentError(
                f"shards in the format {template.filetype_suffix!r} cannot be written; "
                f"choose {' or '.join(FILE_FORMATS)}"
            )
        self._template = template
        self._encoder = ExampleEncoder(features, template.data_dir)
        self._lengths = lengths
        self._written: list[int] = []
        self._shard: _Shard | None = None
        self._num_bytes = 0
        self.info: tfds.core.SplitInfo | None = None

    def write(self, block: Block) -> None:
        """Appends the steps of a block.

        Raises:
          KabukiError: a value cannot be stored with its feature, or a shard cannot be written.
        """
        with disk.writing(pathlib.Path(self._template.data_dir)):
            for parts in self._encoder.encode(block):
                self._write_record(parts)

    def commit(self, last_rows: LastRows, violations: Sequence[Violation] = ()) -> None:
        """Writes the last episode, and renames the shards to their final names.

        `last_rows` is not stored here: `write_info` stores it in the metadata of the dataset.

        Raises:
          KabukiError: a shard cannot be written.
        """
        import tensorflow_datasets as tfds

        for parts in self._encoder.finish():
            self._write_record(parts)
        self._close_shard()
        for i in range(len(self._written)):
            final = self._template.sharded_filepath(shard_index=i, num_shards=len(self._written))
            pathlib.Path(self._path(i)).rename(final)
        self.info = tfds.core.SplitInfo(
            name=self._template.split,
            shard_lengths=self._written,
            num_bytes=self._num_bytes,
            filename_template=self._template,
        )

    def _write_record(self, parts: Sequence[Part]) -> None:
        try:
            begun = len(self._written)
            if self._shard is None or self._written[-1] == self._lengths[begun - 1]:
                self._close_shard()
                self._shard = _open_shard(self._path(begun), str(self._template.filetype_suffix))
                self._written.append(0)
            self._shard.write(parts)
        except Exception as e:
            raise self._failed(e) from e
        self._written[-1] += 1
        self._num_bytes += sum(map(len, parts))

    def _close_shard(self) -> None:
        shard, self._shard = self._shard, None
        try:
            if shard is not None:
                shard.close()
        except Exception as e:
            raise self._failed(e) from e

    def _failed(self, error: Exception) -> KabukiError:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return KabukiError(f"{self._path(max(len(self._written) - 1, 0))}: cannot be written ({lines[0]})")

    def _path(self, shard: int) -> str:
        """Returns the path of a shard while the number of shards is unknown."""
        unnumbered = self._template.replace(template=SHARD_TEMPLATE)
        return str(unnumbered.sharded_filepath(shard_index=shard, num_shards=None))

    def __enter__(self) -> SplitSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shard, self._shard = self._shard, None
        if shard is not None:
            # On a full disk, closing fails too.
            with contextlib.suppress(OSError):
                shard.close()
        for i in range(len(self._written) if self.info is None else 0):
            pathlib.Path(self._path(i)).unlink(missing_ok=True)


def _open_shard(path: str, file_format: str) -> _Shard:
    return _TfRecordShard(path) if file_format == "tfrecord" else _ArrayRecordShard(path)


class _TfRecordShard:
    """A shard in the TFRecord format. TensorFlow's writer needs the whole record in memory, twice."""

    def __init__(self, path: str):
        self._file = open(path, "wb")  # noqa: SIM115

    def write(self, parts: Sequence[Part], /) -> None:
        self._file.writelines(records.frame_stream(sum(map(len, parts)), read_parts(parts)))

    def close(self) -> None:
        self._file.close()


class _ArrayRecordShard:
    """A shard in the ArrayRecord format, with the same options as TFDS's file adapter."""

    def __init__(self, path: str):
        from array_record.python import array_record_module

        self._writer = array_record_module.ArrayRecordWriter(path, "group_size:1")

    def write(self, parts: Sequence[Part], /) -> None:
        self._writer.write(b"".join(read_parts(parts)))

    def close(self) -> None:
        self._writer.close()


def estimated_bytes(sizes: Sequence[Size], features: tfds.features.FeaturesDict) -> int:
    """Returns an estimate of the bytes that the records of sources will take, from a sample of each source."""
    total = 0.0
    for size in sizes:
        if size.sample is not None and size.sample.num_steps:
            sample = _head(size.sample)
            encoder = ExampleEncoder(features)
            encoded = sum(len(part) for parts in (*encoder.encode(sample), *encoder.finish()) for part in parts)
            total += encoded * size.steps / sample.num_steps
    return int(total)


def _head(block: Block) -> Block:
    """Returns the first rows of a block, about `_SAMPLE_BYTES`."""
    rows = max(1, min(block.num_steps, _SAMPLE_BYTES * block.num_steps // max(block.nbytes, 1)))
    episodes = int(np.searchsorted(block.starts, rows))
    return Block(
        {path: column[:rows] for path, column in block.steps.items()},
        rows,
        block.starts[:episodes],
        {path: column[:episodes] for path, column in block.metadata.items()},
    )


def shard_lengths(num_episodes: int, num_bytes: int, shard_config: Any = None) -> list[int]:
    """Returns the number of episodes of each shard of a split, by TFDS's rule.

    Args:
      num_episodes: number of episodes of the split.
      num_bytes: estimated bytes of their records.
      shard_config: TFDS's `ShardConfig`. None uses its defaults.

    Raises:
      InvalidArgumentError: there are fewer episodes than shards.
    """
    from tensorflow_datasets.core.utils import shard_utils

    if not num_episodes:
        return []
    count = (shard_config or shard_utils.ShardConfig()).get_number_shards(num_bytes, num_episodes)
    if count > num_episodes:
        raise InvalidArgumentError(f"{num_episodes} episodes cannot fill {count} shards; request fewer shards")
    ends = shard_utils.get_shard_boundaries(num_episodes, count)
    lengths: list[int] = np.diff([0, *ends]).tolist()
    return lengths
