"""Writes blocks of steps as the shards of a TFDS dataset, and what TFDS keeps beside them.

The names of the shards, their number and the files of metadata are TFDS's own doing.
Only the records are made here (`examples`), and go to their shard at once and in
order, where TFDS's writer first sorts them all by a hash in files of its own. So the
dataset is one with `disable_shuffling`, which TFDS reads back in this order.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from kabuki_rlds.data.block import Block
from kabuki_rlds.data.schema import Info
from kabuki_rlds.data.source import Size
from kabuki_rlds.errors import InvalidArgumentError, KabukiError
from kabuki_rlds.formats.rlds.example_encoder import ExampleEncoder
from kabuki_rlds.formats.rlds.recorded_shards import SHARD_TEMPLATE
from kabuki_rlds.formats.rlds.stored_last_rows import to_metadata

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

#: The formats of shards that can be written.
FILE_FORMATS = ("tfrecord", "array_record")

_CATALOG = "https://www.tensorflow.org/datasets/catalog/"

#: The records of so many bytes of decoded steps tell how large the others will be.
_SAMPLE_BYTES = 1 << 20


class _Shard(Protocol):
    def write(self, record: bytes, /) -> None: ...
    def close(self) -> None: ...


class SplitWriter:
    """One split in the making: takes blocks, and writes the records of their episodes.

    Args:
      template: names the shards: the folder, the dataset, the split and the format.
      features: the features of the dataset.
      lengths: how many episodes each shard takes. What comes after the last is left out.

    Raises:
      KabukiError: the format is not one of `FILE_FORMATS`.
    """

    def __init__(
        self, template: tfds.core.ShardedFileTemplate, features: tfds.features.FeaturesDict, lengths: Sequence[int]
    ):
        if template.filetype_suffix not in FILE_FORMATS:
            raise InvalidArgumentError(
                f"shards in the format {template.filetype_suffix!r} cannot be written; {' and '.join(FILE_FORMATS)} can"
            )
        self._template = template
        self._encoder = ExampleEncoder(features)
        self._lengths = lengths
        self._written: list[int] = []
        self._shard: _Shard | None = None
        self.num_bytes = 0

    @property
    def num_episodes(self) -> int:
        """How many episodes were written, without the one that is still open."""
        return sum(self._written)

    @property
    def is_full(self) -> bool:
        """Whether every shard has all its episodes."""
        return len(self._written) == len(self._lengths) and self._written[-1:] == list(self._lengths[-1:])

    def write(self, block: Block) -> None:
        """Appends the steps of a block.

        Raises:
          KabukiError: a value cannot be stored as its feature says, or a shard not be written.
        """
        for record in self._encoder.encode(block):
            if self.is_full:
                return
            self._put(record)

    def close(self) -> tfds.core.SplitInfo:
        """Ends the last episode, and gives the shards their names.

        Returns:
          what TFDS keeps of the split.
        """
        import tensorflow_datasets as tfds

        for record in self._encoder.finish():
            if not self.is_full:
                self._put(record)
        self._close_shard()
        for i in range(len(self._written)):
            whole = self._template.sharded_filepath(shard_index=i, num_shards=len(self._written))
            pathlib.Path(self._path(i)).rename(whole)
        return tfds.core.SplitInfo(
            name=self._template.split,
            shard_lengths=self._written,
            num_bytes=self.num_bytes,
            filename_template=self._template,
        )

    def _put(self, record: bytes) -> None:
        try:
            if self._shard is None or self._written[-1] == self._lengths[len(self._written) - 1]:
                self._close_shard()
                self._shard = _open_shard(self._path(len(self._written)), str(self._template.filetype_suffix))
                self._written.append(0)
            self._shard.write(record)
        except Exception as e:
            raise self._failed(e) from e
        self._written[-1] += 1
        self.num_bytes += len(record)

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
        unnumbered = self._template.replace(template=SHARD_TEMPLATE)
        return str(unnumbered.sharded_filepath(shard_index=shard, num_shards=None))

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shard, self._shard = self._shard, None
        if shard is not None:
            shard.close()


def _open_shard(path: str, file_format: str) -> _Shard:
    """A new file of records, as TFDS's adapters of file formats make it."""
    shard: _Shard
    if file_format == "tfrecord":
        import tensorflow as tf

        shard = tf.io.TFRecordWriter(path)
    else:
        from array_record.python import array_record_module

        shard = array_record_module.ArrayRecordWriter(path, "group_size:1")
    return shard


def estimated_bytes(sizes: Sequence[Size], features: tfds.features.FeaturesDict) -> int:
    """About how many bytes the records of sources will take, by a sample of each."""
    total = 0.0
    for size in sizes:
        if size.sample is not None and size.sample.num_steps:
            sample = _head(size.sample)
            encoder = ExampleEncoder(features)
            encoded = sum(map(len, [*encoder.encode(sample), *encoder.finish()]))
            total += encoded * size.steps / sample.num_steps
    return int(total)


def _head(block: Block) -> Block:
    rows = max(1, min(block.num_steps, _SAMPLE_BYTES * block.num_steps // max(block.nbytes, 1)))
    episodes = int(np.searchsorted(block.starts, rows))
    return Block(
        {path: column[:rows] for path, column in block.steps.items()},
        rows,
        block.starts[:episodes],
        {path: column[:episodes] for path, column in block.metadata.items()},
    )


def shard_lengths(num_episodes: int, num_bytes: int, shard_config: Any = None) -> list[int]:
    """How many episodes each shard of a split gets, by TFDS's own rule.

    Args:
      num_episodes: how many the split has.
      num_bytes: bytes of their records, about.
      shard_config: TFDS's `ShardConfig`, None for its defaults.
    """
    from tensorflow_datasets.core.utils import shard_utils

    if not num_episodes:
        return []
    count = (shard_config or shard_utils.ShardConfig()).get_number_shards(num_bytes, num_episodes)
    if count > num_episodes:
        raise InvalidArgumentError(
            f"{count} shards cannot be filled with {num_episodes} episodes; ask for fewer shards"
        )
    ends = shard_utils.get_shard_boundaries(num_episodes, count)
    lengths: list[int] = np.diff([0, *ends]).tolist()
    return lengths


def info_arguments(info: Info, last_rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What a dataset says of itself, as TFDS's `DatasetInfo` takes it.

    Args:
      info: what it says.
      last_rows: split to whether the last row of each of its episodes is a step: bool, (episodes,).
    """
    import tensorflow_datasets as tfds

    metadata = tfds.core.MetadataDict()
    if info.environment:
        try:
            stated = json.loads(info.environment)
        except ValueError:
            stated = info.environment
        metadata.update(stated if isinstance(stated, dict) else {"environment": stated})
    metadata.update(to_metadata(last_rows))
    return {
        "description": info.description,
        "citation": info.citation,
        # What TFDS says of a dataset without one, by its name.
        "homepage": None if info.homepage.startswith(_CATALOG) else info.homepage or None,
        "metadata": metadata,
        "disable_shuffling": True,
    }


def valid_version(version: str) -> str:
    """The version as TFDS takes it: three numbers, else 1.0.0."""
    import tensorflow_datasets as tfds

    return version if tfds.core.Version.is_valid(version) else "1.0.0"


def shard_template(folder: pathlib.Path, dataset: str, split: str, file_format: str) -> tfds.core.ShardedFileTemplate:
    """Names the shards of a split as TFDS does."""
    import tensorflow_datasets as tfds

    return tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=dataset, split=split, filetype_suffix=file_format
    )


def write_info(
    folder: pathlib.Path,
    dataset: str,
    config: str,
    version: str,
    features: tfds.features.FeaturesDict,
    info: Info,
    splits: Sequence[tfds.core.SplitInfo],
    file_format: str,
    last_rows: Mapping[str, np.ndarray],
) -> None:
    """Lets TFDS write what it keeps beside the shards: features, splits, description and so on.

    Args:
      folder: where the shards are.
      dataset: name of the dataset.
      config: name of its config, or "".
      version: three numbers.
      features: the features of the dataset.
      info: what it says of itself.
      splits: what `SplitWriter.close` returned.
      file_format: the format of the shards.
      last_rows: as for `info_arguments`.
    """
    import tensorflow_datasets as tfds

    identity = tfds.core.DatasetIdentity(
        name=dataset,
        config_name=config or None,
        version=tfds.core.Version(version),
        data_dir=str(folder),
        module_name="kabuki_rlds",
    )
    made = tfds.core.DatasetInfo(builder=identity, features=features, **info_arguments(info, last_rows))
    made.set_file_format(file_format)
    made.set_splits(tfds.core.SplitDict(splits))
    made.write_to_directory(folder)
