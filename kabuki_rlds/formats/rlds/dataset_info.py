"""Writes the metadata files of a TFDS dataset: description, features, splits and metadata."""

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
    """Returns the arguments of TFDS's `DatasetInfo` that describe a dataset.

    Args:
      info: description, citation, homepage and environment of the dataset.
      last_rows: split to flags: whether the last row of each episode is a step: bool, (episodes,).
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
        # TFDS generates a catalog URL for a dataset without a homepage.
        "homepage": None if info.homepage.startswith(_CATALOG) else info.homepage or None,
        "metadata": metadata,
        "disable_shuffling": True,
    }


def valid_version(version: str) -> str:
    """Returns `version` if it is valid in TFDS (three numbers), otherwise "1.0.0"."""
    import tensorflow_datasets as tfds

    return version if tfds.core.Version.is_valid(version) else "1.0.0"


def shard_template(folder: pathlib.Path, dataset: str, split: str, file_format: str) -> tfds.core.ShardedFileTemplate:
    """Returns the template of the shard paths of a split, with TFDS's default names."""
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
    """Writes the metadata files of a dataset with TFDS: features, splits, description and so on.

    Args:
      folder: folder of the shards.
      dataset: name of the dataset.
      config: name of its config, or "".
      version: three numbers, for example "1.0.0".
      features: the features of the dataset.
      info: description, citation, homepage and environment of the dataset.
      splits: `SplitSink.info` of each split.
      file_format: "tfrecord" or "array_record".
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
    dataset_info = tfds.core.DatasetInfo(builder=identity, features=features, **info_arguments(info, last_rows))
    dataset_info.set_file_format(file_format)
    dataset_info.set_splits(tfds.core.SplitDict(splits))
    dataset_info.write_to_directory(folder)
