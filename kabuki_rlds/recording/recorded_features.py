"""The TFDS features of a new recording: of what was learned, or of a `DatasetConfig`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kabuki_rlds.data.schema import Schema
from kabuki_rlds.errors import InvalidArgumentError
from kabuki_rlds.formats.rlds import feature_layout as rlds_features
from kabuki_rlds.formats.rlds import infer_features
from kabuki_rlds.formats.rlds.feature_layout import STEPS
from kabuki_rlds.formats.rlds.infer_features import ImageFormat

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

#: The format of all images, or path of a field to that of its images.
ImageFormats = ImageFormat | Mapping[str, ImageFormat]

#: What a list of a `tf.train.Example` does not hold to the bit.
_INEXACT = ("float64", "uint64")


def learned_features(schema: Schema, images: ImageFormats) -> tfds.features.FeaturesDict:
    """The features of learned fields.

    Args:
      schema: the fields.
      images: the format of images. A field that is named is an image, whatever its size.

    Raises:
      KabukiError: TFDS cannot hold a field, or a field that is named is no image.
    """
    if not isinstance(images, Mapping):
        return infer_features.features_of(schema, images)
    steps = dict(schema.steps)
    for path in images:
        if path not in steps:
            raise InvalidArgumentError(f"images: there is no step field {path!r}, but {', '.join(sorted(steps))}")
        steps[path] = dataclasses.replace(steps[path], kind="image")
    schema = dataclasses.replace(schema, steps=steps)
    made = {name: infer_features.features_of(schema, name) for name in ("png", "jpeg")}
    _check_are_images(made["png"][STEPS].feature, images)
    return _chosen(made, images)


def features_of_config(config: tfds.rlds.rlds_base.DatasetConfig) -> tfds.features.FeaturesDict:
    """The features that a `DatasetConfig` asks for, such that each value is kept to the bit.

    TFDS stores a float64 as a float32, unless its feature has an encoding: one without
    is given it, which changes nothing for who reads the dataset.
    """
    import tensorflow_datasets as tfds

    identity = tfds.core.DatasetIdentity(
        name=config.name, version=tfds.core.Version("1.0.0"), data_dir="", module_name="kabuki_rlds"
    )
    return _exact(tfds.rlds.rlds_base.build_info(config, identity).features)


def image_formats(features: tfds.features.FeaturesDict) -> dict[str, str]:
    """Path to the format of the files of the step fields that are images, one a step."""
    import tensorflow_datasets as tfds

    return {
        leaf.path: leaf.feature.encoding_format or "png"
        for leaf in rlds_features.read(features)
        if leaf.in_steps and type(leaf.feature) is tfds.features.Image and len(leaf.field.shape) == 3
    }


def _chosen(made: Mapping[str, tfds.features.FeaturesDict], images: Mapping[str, ImageFormat]) -> Any:
    """Each step field in its format."""
    import tensorflow_datasets as tfds

    def chosen(png: Any, jpeg: Any, path: str) -> Any:
        if isinstance(png, tfds.features.FeaturesDict):
            return {name: chosen(png[name], jpeg[name], f"{path}/{name}" if path else name) for name in png}
        return jpeg if images.get(path) == "jpeg" else png

    png, jpeg = made["png"], made["jpeg"]
    steps = tfds.features.Dataset(chosen(png[STEPS].feature, jpeg[STEPS].feature, ""))
    return tfds.features.FeaturesDict({**{name: png[name] for name in png if name != STEPS}, STEPS: steps})


def _check_are_images(steps: Any, images: Mapping[str, ImageFormat]) -> None:
    import tensorflow_datasets as tfds

    for path in images:
        feature = steps
        for name in path.split("/"):
            feature = feature[name]
        while isinstance(feature, tfds.features.Sequence):
            feature = feature.feature
        if not isinstance(feature, tfds.features.Image):
            raise InvalidArgumentError(
                f"images: {path!r} is {feature}, which is no image: those are (height, width, channels) of uint8"
            )


def _exact(feature: Any) -> Any:
    """The feature with an encoding where it would lose bits without."""
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
