"""Translates TFDS features to schema fields and their storage layout in the records.

`read` finds for each leaf of the features either a storage layout that
`example_decoder` decodes in whole columns, or none. TFDS itself decodes the leaves
without a layout (`tfds_fallback`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from kabuki_rlds.data.schema import BYTES, Field, Kind
from kabuki_rlds.errors import KabukiError
from kabuki_rlds.formats.rlds.example_decoder import Encoding, ExampleField

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

STEPS = "steps"

_ENCODINGS: dict[str, Encoding] = {"none": "none", "bytes": "bytes", "zlib": "zlib"}


@dataclasses.dataclass(frozen=True)
class FeatureLeaf:
    """One leaf of the features of a dataset.

    Attributes:
      path: path of the field in a step, or in the episode.
      in_steps: True for a step field, False for an episode field.
      field: dtype, shape and kind of the decoded rows.
      example_field: the storage layout, or None if TFDS decodes the field.
      feature: the TFDS feature, without the Sequences around it if there is an `example_field`.
    """

    path: str
    in_steps: bool
    field: Field
    example_field: ExampleField | None
    feature: tfds.features.FeatureConnector


def read(features: tfds.features.FeaturesDict) -> list[FeatureLeaf]:
    """Returns the leaves of an RLDS dataset's features: step fields, then episode fields, each sorted by name.

    Raises:
      KabukiError: the features are not RLDS features, or a feature cannot be read.
    """
    import tensorflow_datasets as tfds

    steps = dict(features.items()).get(STEPS)
    if not isinstance(steps, tfds.features.Dataset) or not isinstance(steps.feature, tfds.features.FeaturesDict):
        raise KabukiError(
            f"not an RLDS dataset: no feature 'steps' that is a Dataset of dicts (found: {', '.join(sorted(features))})"
        )
    # Sorted, because TFDS reads `features.json` in an order that changes from run to run.
    leaves = list(_leaves(steps.feature, "", in_steps=True))
    episode = {name: feature for name, feature in features.items() if name != STEPS}
    for name, feature in sorted(episode.items()):
        leaves += _leaves(feature, name, in_steps=False)
    return leaves


def _leaves(feature: Any, path: str, in_steps: bool) -> Iterator[FeatureLeaf]:
    import tensorflow_datasets as tfds

    feature = without_dataset(feature)
    if isinstance(feature, tfds.features.FeaturesDict):
        for name, inner in sorted(feature.items()):
            yield from _leaves(inner, f"{path}/{name}" if path else name, in_steps)
        return
    lengths, item = _strip_sequences(feature)
    if isinstance(item, tfds.features.FeaturesDict):
        # TFDS stores a list of dicts as a dict of lists.
        for name, inner in sorted(item.items()):
            for length in reversed(lengths):
                inner = tfds.features.Sequence(inner, length)
            yield from _leaves(inner, f"{path}/{name}", in_steps)
        return
    if isinstance(item, tfds.features.Dataset):
        raise KabukiError(f"field {path!r}: a Dataset inside a Sequence or another Dataset is not supported")
    info = feature.get_tensor_info()
    dtype = np.dtype(info.np_dtype)
    nested = info.sequence_rank if info.sequence_rank > 1 and None in info.shape[: info.sequence_rank] else 0
    if nested and None in info.shape[nested:]:
        raise KabukiError(
            f"field {path!r}: nested lists of arrays of unknown shape {tuple(info.shape[nested:])} are not supported"
        )
    names, num_classes = _classes(item)
    field = Field(
        dtype=BYTES if dtype.kind in "OSU" else dtype,
        shape=tuple(info.shape),
        kind=_kind(item, dtype),
        names=names,
        nested=nested,
        file_format=getattr(item, "encoding_format", None) or "",
        num_classes=num_classes,
    )
    field.check_size(f"field {path!r}")
    example_field = _example_field(path, in_steps, field, item, lengths)
    yield FeatureLeaf(path, in_steps, field, example_field, feature if example_field is None else item)


def without_dataset(feature: Any) -> Any:
    """Replaces a Dataset feature by the Sequence feature that is stored in the same way. Returns others unchanged."""
    import tensorflow_datasets as tfds

    return tfds.features.Sequence(feature.feature) if isinstance(feature, tfds.features.Dataset) else feature


def is_list(feature: Any) -> bool:
    """Returns whether a feature is stored as a Sequence."""
    import tensorflow_datasets as tfds

    plain = (tfds.features.Sequence, tfds.features.TranslationVariableLanguages, tfds.features.Video)
    return type(feature) in plain


def sequence_length(sequence: Any) -> int | None:
    """Returns the fixed length of a Sequence, or None if the length varies."""
    # TFDS exposes the length only as the first dimension of its tensor info.
    info = sequence.get_tensor_info()
    while isinstance(info, dict):
        info = next(iter(info.values()), None)
    length: int | None = info.shape[0] if info is not None else None
    return length


def _strip_sequences(feature: Any) -> tuple[tuple[int | None, ...], Any]:
    """Returns the lengths of the Sequences around a feature, outermost first, and the innermost feature."""
    lengths = []
    while is_list(feature):
        lengths.append(sequence_length(feature))
        feature = feature.feature
    return tuple(lengths), feature


def _classes(item: Any) -> tuple[tuple[str, ...] | None, int | None]:
    """Returns the class names and the number of classes of a ClassLabel or LabeledImage. None means not stated."""
    import tensorflow_datasets as tfds

    label = item._class_label if isinstance(item, tfds.features.LabeledImage) else item
    if not isinstance(label, tfds.features.ClassLabel):
        return None, None
    # `ClassLabel.names` would generate names for a label without names.
    return (tuple(label._int2str) if label._int2str else None), label.num_classes or None


def _kind(item: Any, dtype: np.dtype) -> Kind:
    import tensorflow_datasets as tfds

    if isinstance(item, tfds.features.Image):
        return "image"
    if isinstance(item, tfds.features.ClassLabel):
        return "label"
    return "text" if dtype.kind in "OSU" else "array"


def _example_field(
    path: str, in_steps: bool, field: Field, item: Any, lengths: tuple[int | None, ...]
) -> ExampleField | None:
    """Returns the storage layout of a field, or None if only TFDS can decode it."""
    import tensorflow_datasets as tfds

    key = f"{STEPS}/{path}" if in_steps else path
    if type(item) in (tfds.features.Image, tfds.features.LabeledImage):
        return ExampleField(path, key, field, in_steps, (), lengths) if len(lengths) < 2 else None
    known = {
        tfds.features.Tensor,
        tfds.features.Scalar,
        tfds.features.ClassLabel,
        tfds.features.Text,
        tfds.features.BBoxFeature,
    }
    if type(item) not in known:
        return None
    spec = item.to_json_content()
    stated = str(getattr(spec, "encoding", "") or "none")
    encoding = _ENCODINGS.get(stated)
    if encoding is None or getattr(spec, "optional", False):
        return None
    shape = tuple(item.get_tensor_info().shape)
    if None in shape and encoding == "none" and in_steps:
        raise KabukiError(
            f"field {path!r}: TFDS cannot read a tensor of unknown shape {shape} without an encoding; "
            "write the dataset again with encoding='zlib'"
        )
    if None in shape and lengths:
        return None
    if field.dtype.kind not in "biufOV" or (field.dtype.kind == "V" and field.dtype.name != "bfloat16"):
        return None
    return ExampleField(path, key, field, in_steps, shape, lengths, encoding)
