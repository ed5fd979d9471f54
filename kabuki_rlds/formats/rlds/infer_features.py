"""The TFDS features of a schema: those it came from, or else ones derived from its fields.

This is the inverse of `features.read`. Where the schema names TFDS features (it came
from an RLDS dataset), those are taken, so that RLDS -> HDF5 -> RLDS gives equal
features. All else is derived from what the arrays are, such that TFDS stores every
value to the bit and can read it back.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kabuki_rlds.data.schema import BFLOAT16, BYTES, Field, Schema
from kabuki_rlds.errors import DamagedDataError, KabukiError, SchemaMismatchError
from kabuki_rlds.formats.rlds import feature_layout as rlds_features
from kabuki_rlds.formats.rlds import parse_features
from kabuki_rlds.formats.rlds.feature_layout import STEPS, FeatureLeaf

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

#: How images that are stored as arrays are encoded in the records.
ImageFormat = Literal["png", "jpeg"]

#: What to do if the attribute `features` cannot be used.
_REMEDY = "Delete the attribute to derive the features from the arrays"

#: What the lists of a `tf.train.Example`, of int64 and float32, hold to the bit.
_EXACT = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "float32")
#: What they do not, and TFDS reads back from bytes. It does not read uint32 from bytes.
_AS_BYTES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint64"),
    *("float16", "bfloat16", "float32", "float64"),
)


def features_of(schema: Schema, images: ImageFormat | None = None) -> tfds.features.FeaturesDict:
    """The TFDS features of a dataset with this schema: `{"steps": Dataset({…}), **episode fields}`.

    With `schema.features`, they are those, and

    * a step field that they do not list is added, unless it is `derived` in all
      episodes: then a converter added it, and it is left out;
    * `images` changes the format of an image that is stored as an array.

    Without, each field gets a feature by its dtype, shape and kind: labels with names
    are ClassLabels (int64), and what TFDS would not store to the bit, or not read
    back, has the encoding "bytes" ("zlib" makes numbers larger, and slower to read).
    A uint8 array (height, width, 1, 3 or 4) of 32 pixels or more a side is an image.

    Args:
      schema: what the steps and the episodes carry.
      images: the format of images that are stored as arrays. "jpeg" is lossy, and is
        used for uint8 of 1 or 3 channels whose feature does not say PNG. None is the
        format that their feature or `file_format` states, else PNG.

    Raises:
      KabukiError: the schema names features that are no RLDS features, or that do not
        fit its fields; or no feature can hold a field.
    """
    import tensorflow_datasets as tfds

    if not schema.features:
        steps = {path: _feature(field, path, images) for path, field in schema.steps.items()}
        metadata = {path: _feature(field, path, images) for path, field in schema.metadata.items()}
        _check_free(metadata)
        return tfds.features.FeaturesDict({**_nested(metadata), STEPS: tfds.features.Dataset(_nested(steps))})
    listed = parse_features.parse(schema.features, "attribute 'features'", _REMEDY)
    leaves = _leaves(listed)
    _check_fit(schema, leaves)
    formats = {
        (leaf.in_steps, leaf.path): images
        for leaf in leaves
        if images is not None and leaf.field.kind == "image" and not _field_of(schema, leaf).encoded
    }
    proto = listed.to_json_content()
    if _change_formats(proto.features, formats):
        listed = parse_features.from_proto(proto)
        leaves = _leaves(listed)
    for leaf in leaves:
        names = _field_of(schema, leaf).known_names
        if names:
            _name_classes(leaf, names)
    return _with_unlisted(listed, leaves, schema, images)


def images_encoded_again(schema: Schema, features: tfds.features.FeaturesDict) -> list[str]:
    """The paths of the images that are stored as arrays, and that the features of a dataset state as JPEG."""
    return [
        leaf.path
        for leaf in rlds_features.read(features)
        if leaf.field.file_format == "jpeg" and not _field_of(schema, leaf).encoded
    ]


def _leaves(features: tfds.features.FeaturesDict) -> list[FeatureLeaf]:
    try:
        return rlds_features.read(features)
    except KabukiError as e:
        raise DamagedDataError(f"the attribute 'features': {e}; without it they are derived from the arrays") from e


def _field_of(schema: Schema, leaf: FeatureLeaf) -> Field:
    return (schema.steps if leaf.in_steps else schema.metadata)[leaf.path]


def _check_fit(schema: Schema, leaves: list[FeatureLeaf]) -> None:
    remedy = "correct one of them, or delete the attribute 'features': they are then derived from the arrays"
    for leaf in leaves:
        what = "step field" if leaf.in_steps else "episode field"
        stored = (schema.steps if leaf.in_steps else schema.metadata).get(leaf.path)
        if stored is None:
            raise DamagedDataError(
                f"{what} {leaf.path!r} is listed in the attribute 'features' but not stored; {remedy}"
            )
        fits = (
            stored.dtype == leaf.field.dtype
            and len(stored.shape) == len(leaf.field.shape)
            and all(b is None or a == b for a, b in zip(stored.shape, leaf.field.shape, strict=True))
            and stored.nested == leaf.field.nested
            and (leaf.field.kind == "image" or not stored.encoded)
        )
        if not fits:
            raise DamagedDataError(
                f"{what} {leaf.path!r} is stored as {stored.describe()}, "
                f"but the attribute 'features' says {leaf.field.describe()}; {remedy}"
            )


def _change_formats(
    protos: Mapping[str, Any], formats: Mapping[tuple[bool, str], ImageFormat], at: tuple[bool, str] | None = None
) -> bool:
    """Sets the formats of images in TFDS's protos of features, and says whether any changed.

    Args:
      protos: name to proto.
      formats: (in the steps, path) of an image to its format.
      at: where `protos` stand; None at the top.
    """
    changed = False
    for name, proto in protos.items():
        in_steps, prefix = at or (name == STEPS, "")
        path = "" if at is None and in_steps else f"{prefix}/{name}" if prefix else name
        while proto.WhichOneof("content") == "sequence":
            # The Dataset of the steps is one too.
            proto = proto.sequence.feature
        kind = proto.WhichOneof("content")
        if kind == "features_dict":
            changed |= _change_formats(proto.features_dict.features, formats, (in_steps, path))
        elif kind in ("image", "video") and (in_steps, path) in formats:
            image = getattr(proto, kind)
            wanted = formats[in_steps, path]
            stated = image.encoding_format
            lossy_anyway = wanted == "jpeg" and stated != "png" and _can_be_jpeg(image) and not image.HasField("label")
            if lossy_anyway or stated == "jpeg":
                image.encoding_format = wanted
                changed |= image.encoding_format != stated
    return changed


def _can_be_jpeg(image: Any) -> bool:
    return image.dtype == "uint8" and image.shape.dimensions[-1] in (1, 3)


def _with_unlisted(
    features: tfds.features.FeaturesDict, leaves: list[FeatureLeaf], schema: Schema, images: ImageFormat | None
) -> tfds.features.FeaturesDict:
    """Adds the fields that the features do not list and no converter made."""
    import tensorflow_datasets as tfds

    listed = {(leaf.in_steps, leaf.path) for leaf in leaves}
    steps, metadata = (
        {
            path: _feature(field, path, images)
            for path, field in fields.items()
            if (in_steps, path) not in listed and not field.is_derived
        }
        for in_steps, fields in ((True, schema.steps), (False, schema.metadata))
    )
    if not steps and not metadata:
        return features
    _check_free(metadata)
    known = dict(features.items())
    known_steps = _tree(known.pop(STEPS).feature)
    tree = {name: _tree(feature) for name, feature in known.items()}
    return tfds.features.FeaturesDict(
        {**_nested(metadata, tree), STEPS: tfds.features.Dataset(_nested(steps, known_steps))}
    )


def _tree(feature: Any) -> Any:
    """A dict of features as a plain dict, which can be added to."""
    import tensorflow_datasets as tfds

    if type(feature) is not tfds.features.FeaturesDict:
        return feature
    return {name: _tree(inner) for name, inner in feature.items()}


def _nested(flat: Mapping[str, Any], into: dict[str, Any] | None = None) -> dict[str, Any]:
    """Puts what stands at paths into a dict of dicts."""
    tree: dict[str, Any] = {} if into is None else into
    for path, feature in flat.items():
        *groups, name = path.split("/")
        at = tree
        for group in groups:
            at = at.setdefault(group, {})
            if not isinstance(at, dict):
                raise SchemaMismatchError(
                    f"field {path!r}: TFDS cannot hold it within the field {group!r}; rename it by a recipe",
                    fields=(path,),
                )
        if name in at:
            raise SchemaMismatchError(
                f"field {path!r}: there is another of this name in RLDS; rename it by a recipe", fields=(path,)
            )
        at[name] = feature
    return tree


def _check_free(metadata: Mapping[str, Any]) -> None:
    for path in metadata:
        if path.partition("/")[0] == STEPS:
            raise SchemaMismatchError(
                f"episode field {path!r}: RLDS keeps the steps under this name; rename it by a recipe", fields=(path,)
            )


def _feature(field: Field, path: str, images: ImageFormat | None) -> Any:
    """The feature that holds a field's rows to the bit."""
    import tensorflow_datasets as tfds

    if field.kind == "label" and field.names:
        return _in_lists(_label(field.names, path), len(field.shape))
    if field.nested:
        return _in_lists(_tensor(field.dtype, field.shape[field.nested :], path), field.nested)
    if field.holds_images:
        *lists, height, width, channels = field.shape if len(field.shape) > 2 else (None, None, 3)
        file_format = _format_of(field)
        if not field.encoded:
            can_be_jpeg = field.dtype == np.uint8 and channels in (1, 3)
            file_format = (images or file_format or "png") if can_be_jpeg else "png"
        image = tfds.features.Image(shape=(height, width, channels), dtype=field.dtype, encoding_format=file_format)
        return _in_lists(image, len(lists))
    return _tensor(field.dtype, field.shape, path)


def _format_of(field: Field) -> str | None:
    """The format of its image files, where TFDS has such a one; else it tells each by itself."""
    return field.file_format if field.file_format in ("png", "jpeg") else None


def _tensor(dtype: np.dtype, shape: tuple[int | None, ...], path: str) -> Any:
    import tensorflow as tf
    import tensorflow_datasets as tfds

    # TFDS cannot read back unknown dimensions, or none to count, without an encoding.
    countable = None not in shape and 0 not in shape
    if dtype == BYTES and not shape:
        return tfds.features.Text()
    if countable and (dtype == BYTES or dtype.name in _EXACT):
        return tfds.features.Tensor(shape=shape, dtype=np.str_ if dtype == BYTES else dtype)
    if dtype.name in _AS_BYTES:
        # TFDS knows bfloat16 by TensorFlow's name alone.
        known = tf.bfloat16 if dtype == BFLOAT16 else dtype
        return tfds.features.Tensor(shape=shape, dtype=known, encoding="bytes")
    if (dtype == BYTES or dtype.name in _EXACT) and None not in shape[1:] and 0 not in shape[1:]:
        return tfds.features.Sequence(_tensor(dtype, shape[1:], path))
    raise SchemaMismatchError(
        f"field {path!r}: TFDS has no feature that it can read back for {Field(dtype, shape).describe()}; "
        "store it with another type or shape",
        fields=(path,),
    )


def _label(names: tuple[str, ...], path: str) -> Any:
    import tensorflow_datasets as tfds

    # TFDS keeps the names as the lines of a file, and strips them.
    bad = next((name for name in names if name != name.strip() or not name or "\n" in name), None)
    if bad is not None:
        raise SchemaMismatchError(
            f"field {path!r}: TFDS cannot keep {bad!r} as the name of a class; rename it in its class_names",
            fields=(path,),
        )
    if len(set(names)) < len(names):
        raise SchemaMismatchError(
            f"field {path!r}: two classes have the same name, which TFDS refuses; rename one in its class_names",
            fields=(path,),
        )
    return tfds.features.ClassLabel(names=list(names))


def _in_lists(feature: Any, depth: int) -> Any:
    """The feature in Sequences of any length; TFDS cannot read all of those whose length is fixed."""
    import tensorflow_datasets as tfds

    for _ in range(depth):
        feature = tfds.features.Sequence(feature)
    return feature


def _name_classes(leaf: FeatureLeaf, names: tuple[str, ...]) -> None:
    """Gives a feature the names of its classes, which TFDS's JSON lacks, from a file as TFDS has them."""
    import tensorflow_datasets as tfds

    with tempfile.TemporaryDirectory() as folder:
        file = tfds.features.ClassLabel.get_names_filepath(folder, "classes")
        file.write_text("\n".join(names))
        try:
            leaf.feature.load_metadata(folder, "classes")
        except ValueError as e:
            raise DamagedDataError(
                f"field {leaf.path!r}: its class names do not fit the feature that the attribute 'features' says ({e})",
                field=leaf.path,
            ) from e
