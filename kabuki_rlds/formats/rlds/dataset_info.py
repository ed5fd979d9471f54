"""What TFDS keeps beside the shards of a dataset: its description, features, splits and metadata."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kabuki_rlds.data.schema import Info
from kabuki_rlds.formats.rlds.stored_last_rows import to_metadata

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_CATALOG = "https://www.tensorflow.org/datasets/catalog/"


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
      splits: as `SplitSink.info` has them.
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
