"""TFDS features as a schema, and how each stands in the records.

`read` sorts the leaves of a dataset's features in two: those whose wire format is
known here and can be read in whole columns, and the rest, which is left to TFDS's
own decoding.
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
    """One field as TFDS has it.

    Attributes:
      path: path of the field among the steps or among the episode's fields.
      in_steps: whether it is a field of the steps.
      field: what its rows are once decoded.
      wire: how to read it in columns; None leaves it to TFDS.
      feature: the TFDS feature, without the Sequences around it where there is a wire.
    """

    path: str
    in_steps: bool
    field: Field
    wire: ExampleField | None
    feature: tfds.features.FeatureConnector


def read(features: tfds.features.FeaturesDict) -> list[FeatureLeaf]:
    """The leaves of an RLDS dataset's features, by name.

    TFDS keeps those it reads from `features.json` in no order that holds from one run to the next.

    Raises:
      KabukiError: the features are not those of RLDS, or one cannot be read by anyone.
    """
    import tensorflow_datasets as tfds

    steps = dict(features.items()).get(STEPS)
    if not isinstance(steps, tfds.features.Dataset) or not isinstance(steps.feature, tfds.features.FeaturesDict):
        raise KabukiError(
            "this is no RLDS dataset: its features have no 'steps' that is a Dataset of dicts"
            f" (they have {', '.join(sorted(features))})"
        )
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
    lengths, item = _unwrap(feature)
    if isinstance(item, tfds.features.FeaturesDict):
        # A list of dicts is a dict of lists, in TFDS's records and in ours.
        for name, inner in sorted(item.items()):
            for length in reversed(lengths):
                inner = tfds.features.Sequence(inner, length)
            yield from _leaves(inner, f"{path}/{name}", in_steps)
        return
    if isinstance(item, tfds.features.Dataset):
        raise KabukiError(f"field {path!r}: a Dataset in a Sequence or in another Dataset is not known to this tool")
    info = feature.get_tensor_info()
    dtype = np.dtype(info.np_dtype)
    nested = info.sequence_rank if info.sequence_rank > 1 and None in info.shape[: info.sequence_rank] else 0
    if nested and None in info.shape[nested:]:
        raise KabukiError(
            f"field {path!r}: lists in lists of arrays of unknown shape {tuple(info.shape[nested:])} cannot be read"
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
    wire = _wire(path, in_steps, field, item, lengths)
    yield FeatureLeaf(path, in_steps, field, wire, feature if wire is None else item)


def without_dataset(feature: Any) -> Any:
    """A Sequence in the place of a dataset within a step, or beside the steps: it is written as one is."""
    import tensorflow_datasets as tfds

    return tfds.features.Sequence(feature.feature) if isinstance(feature, tfds.features.Dataset) else feature


def is_list(feature: Any) -> bool:
    """Whether a feature is a Sequence, and adds nothing to it that changes how it is stored."""
    import tensorflow_datasets as tfds

    plain = (tfds.features.Sequence, tfds.features.TranslationVariableLanguages, tfds.features.Video)
    return type(feature) in plain


def sequence_length(sequence: Any) -> int | None:
    """The fixed length of a Sequence, or None: TFDS tells it only as the first dimension."""
    info = sequence.get_tensor_info()
    while isinstance(info, dict):
        info = next(iter(info.values()), None)
    length: int | None = info.shape[0] if info is not None else None
    return length


def _unwrap(feature: Any) -> tuple[tuple[int | None, ...], Any]:
    """Takes the Sequences off a feature: the length of each, outermost first, and what is inside."""
    lengths = []
    while is_list(feature):
        lengths.append(sequence_length(feature))
        feature = feature.feature
    return tuple(lengths), feature


def _classes(item: Any) -> tuple[tuple[str, ...] | None, int | None]:
    """The names of the classes of a label or of the pixels of an image, and how many they are."""
    import tensorflow_datasets as tfds

    label = item._class_label if isinstance(item, tfds.features.LabeledImage) else item
    if not isinstance(label, tfds.features.ClassLabel):
        return None, None
    # Of a label without names, `ClassLabel.names` would make names, however many there are.
    return (tuple(label._int2str) if label._int2str else None), label.num_classes or None


def _kind(item: Any, dtype: np.dtype) -> Kind:
    import tensorflow_datasets as tfds

    if isinstance(item, tfds.features.Image):
        return "image"
    if isinstance(item, tfds.features.ClassLabel):
        return "label"
    return "text" if dtype.kind in "OSU" else "array"


def _wire(path: str, in_steps: bool, field: Field, item: Any, lengths: tuple[int | None, ...]) -> ExampleField | None:
    """How to read a field in columns, or None where TFDS must."""
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
            f"field {path!r}: TFDS cannot read back a tensor of unknown shape {shape} that has no encoding; "
            "write the dataset again with encoding='zlib'"
        )
    if None in shape and lengths:
        return None
    if field.dtype.kind not in "biufOV" or (field.dtype.kind == "V" and field.dtype.name != "bfloat16"):
        return None
    return ExampleField(path, key, field, in_steps, shape, lengths, encoding)
