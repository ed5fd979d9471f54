"""Reads the fields of a recording from the TFDS features of a `DatasetConfig` or of a dataset."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from kabuki_rlds.data.schema import Schema
from kabuki_rlds.formats.rlds import feature_layout

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

#: The dtypes that a `tf.train.Example` cannot store exactly without an encoding.
_INEXACT = ("float64", "uint64")


def features_of_config(config: tfds.rlds.rlds_base.DatasetConfig) -> tfds.features.FeaturesDict:
    """The features of a `DatasetConfig`, with encodings that store each value bit for bit.

    TFDS stores a float64 as a float32 unless its feature has an encoding. This function
    adds the encoding "bytes" where it is missing. Readers of the dataset see no difference.
    """
    import tensorflow_datasets as tfds

    identity = tfds.core.DatasetIdentity(
        name=config.name, version=tfds.core.Version("1.0.0"), data_dir="", module_name="kabuki_rlds"
    )
    return _exact(tfds.rlds.rlds_base.build_info(config, identity).features)


def schema_of(features: tfds.features.FeaturesDict) -> Schema:
    """The schema of the features of an RLDS dataset.

    Raises:
      KabukiError: the features are not those of an RLDS dataset.
    """
    found = feature_layout.read(features)
    return Schema(
        {leaf.path: leaf.field for leaf in found if leaf.in_steps},
        {leaf.path: leaf.field for leaf in found if not leaf.in_steps},
        json.dumps(features.to_json(), sort_keys=True),
    )


def image_formats(features: tfds.features.FeaturesDict) -> dict[str, str]:
    """Path to "png" or "jpeg", for each step field with one image per step."""
    import tensorflow_datasets as tfds

    return {
        leaf.path: leaf.feature.encoding_format or "png"
        for leaf in feature_layout.read(features)
        if leaf.in_steps and type(leaf.feature) is tfds.features.Image and len(leaf.field.shape) == 3
    }


def _exact(feature: Any) -> Any:
    """The feature, with the encoding "bytes" if TFDS would otherwise lose precision."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.FeaturesDict):
        return tfds.features.FeaturesDict({name: _exact(inner) for name, inner in feature.items()})
    if isinstance(feature, tfds.features.Dataset):
        return tfds.features.Dataset(_exact(feature.feature))
    if type(feature) in (tfds.features.Tensor, tfds.features.Scalar):
        encoding = str(getattr(feature.to_json_content(), "encoding", "") or "none")
        if encoding == "none" and np.dtype(feature.np_dtype).name in _INEXACT:
            return tfds.features.Tensor(shape=feature.shape, dtype=feature.np_dtype, encoding="bytes")
    return feature
