"""Chooses the TFDS features for a schema. The inverse of `feature_layout.read`.

If the schema came from an RLDS dataset, it contains the features of that dataset, and
these are used. RLDS -> HDF5 -> RLDS therefore gives equal features. For other fields, the
features are derived from dtype, shape and kind, so that TFDS stores and reads back every
value bit for bit.
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

#: The file formats for encoding images that are stored as arrays.
ImageFormat = Literal["png", "jpeg"]

#: The remedy if the attribute `features` cannot be used.
_REMEDY = "Delete the attribute to derive the features from the arrays"

#: The dtypes that the int64 and float32 lists of a `tf.train.Example` store without loss.
_EXACT = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "float32")
#: The dtypes that TFDS can read back with encoding="bytes". uint32 is missing, because TFDS cannot.
_AS_BYTES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint64"),
    *("float16", "bfloat16", "float32", "float64"),
)


def features_of(schema: Schema, images: ImageFormat | None = None) -> tfds.features.FeaturesDict:
    """Returns the TFDS features for a schema: `{"steps": Dataset({…}), **episode fields}`.

    If `schema.features` is set, the result is these features, with two changes:

    * A field that they do not list is added, unless it is `derived` in all episodes: a
      converter computed such a field, and it was not in the source.
    * `images` replaces the format of images that are stored as arrays.

    Otherwise, the feature of each field follows from its dtype, shape and kind:

    * A label with names becomes a ClassLabel (int64).
    * A uint8 array (height, width, 1, 3 or 4) of at least 32 x 32 pixels becomes an Image.
    * A field that TFDS would not store or read back exactly gets encoding="bytes". ("zlib"
      would make numeric data larger and slower to read.)

    Args:
      schema: the fields of the steps and the episodes.
      images: the format of images that are stored as arrays. "jpeg" is lossy. It applies
        to uint8 images of 1 or 3 channels whose feature does not state PNG. None uses the
        format that the feature or `file_format` states, or else PNG.

    Raises:
      KabukiError: `schema.features` are not RLDS features or do not match the fields, or TFDS has no feature for a
        field.
    """
    import tensorflow_datasets as tfds

    if not schema.features:
        steps = {path: _feature(field, path, images) for path, field in schema.steps.items()}
        metadata = {path: _feature(field, path, images) for path, field in schema.metadata.items()}
        _check_reserved_name(metadata)
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
    """Returns the paths of images that are stored as arrays and have JPEG as the format of their feature."""
    return [
        leaf.path
        for leaf in rlds_features.read(features)
        if leaf.field.file_format == "jpeg" and not _field_of(schema, leaf).encoded
    ]


def _leaves(features: tfds.features.FeaturesDict) -> list[FeatureLeaf]:
    try:
        return rlds_features.read(features)
    except KabukiError as e:
        raise DamagedDataError(f"attribute 'features': {e}. {_REMEDY}") from e


def _field_of(schema: Schema, leaf: FeatureLeaf) -> Field:
    return (schema.steps if leaf.in_steps else schema.metadata)[leaf.path]


def _check_fit(schema: Schema, leaves: list[FeatureLeaf]) -> None:
    remedy = "correct one of them, or delete the attribute 'features' to derive the features from the arrays"
    for leaf in leaves:
        what = "step field" if leaf.in_steps else "episode field"
        stored = (schema.steps if leaf.in_steps else schema.metadata).get(leaf.path)
        if stored is None:
            raise DamagedDataError(f"{what} {leaf.path!r}: in the attribute 'features', but not in the file; {remedy}")
        fits = (
            stored.dtype == leaf.field.dtype
            and len(stored.shape) == len(leaf.field.shape)
            and all(b is None or a == b for a, b in zip(stored.shape, leaf.field.shape, strict=True))
            and stored.nested == leaf.field.nested
            and (leaf.field.kind == "image" or not stored.encoded)
        )
        if not fits:
            raise DamagedDataError(
                f"{what} {leaf.path!r}: stored as {stored.describe()}, "
                f"but the attribute 'features' has {leaf.field.describe()}; {remedy}"
            )


def _change_formats(
    protos: Mapping[str, Any], formats: Mapping[tuple[bool, str], ImageFormat], at: tuple[bool, str] | None = None
) -> bool:
    """Sets the formats of images in TFDS's feature protos.

    Args:
      protos: name to proto.
      formats: (whether it is a step field, path) of an image to its format.
      at: (whether they are step fields, path) of the group that contains `protos`. None at the top level.

    Returns:
      whether a format changed.
    """
    changed = False
    for name, proto in protos.items():
        in_steps, prefix = at or (name == STEPS, "")
        path = "" if at is None and in_steps else f"{prefix}/{name}" if prefix else name
        while proto.WhichOneof("content") == "sequence":
            # The Dataset of the steps is stored as a sequence too.
            proto = proto.sequence.feature
        kind = proto.WhichOneof("content")
        if kind == "features_dict":
            changed |= _change_formats(proto.features_dict.features, formats, (in_steps, path))
        elif kind in ("image", "video") and (in_steps, path) in formats:
            image = getattr(proto, kind)
            wanted = formats[in_steps, path]
            stated = image.encoding_format
            may_become_jpeg = wanted == "jpeg" and stated != "png" and _supports_jpeg(image)
            if (may_become_jpeg and not image.HasField("label")) or stated == "jpeg":
                image.encoding_format = wanted
                changed |= image.encoding_format != stated
    return changed


def _supports_jpeg(image: Any) -> bool:
    return image.dtype == "uint8" and image.shape.dimensions[-1] in (1, 3)


def _with_unlisted(
    features: tfds.features.FeaturesDict, leaves: list[FeatureLeaf], schema: Schema, images: ImageFormat | None
) -> tfds.features.FeaturesDict:
    """Adds features for the fields that the features do not list. Derived fields are not added."""
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
    _check_reserved_name(metadata)
    known = dict(features.items())
    known_steps = _tree(known.pop(STEPS).feature)
    tree = {name: _tree(feature) for name, feature in known.items()}
    return tfds.features.FeaturesDict(
        {**_nested(metadata, tree), STEPS: tfds.features.Dataset(_nested(steps, known_steps))}
    )


def _tree(feature: Any) -> Any:
    """Returns a FeaturesDict as nested plain dicts. Returns other features unchanged."""
    import tensorflow_datasets as tfds

    if type(feature) is not tfds.features.FeaturesDict:
        return feature
    return {name: _tree(inner) for name, inner in feature.items()}


def _nested(flat: Mapping[str, Any], into: dict[str, Any] | None = None) -> dict[str, Any]:
    """Inserts path to feature into nested dicts.

    Raises:
      KabukiError: a path is already used, or leads through a field.
    """
    tree: dict[str, Any] = {} if into is None else into
    for path, feature in flat.items():
        *groups, name = path.split("/")
        at = tree
        for group in groups:
            at = at.setdefault(group, {})
            if not isinstance(at, dict):
                raise SchemaMismatchError(
                    f"field {path!r}: in RLDS, {group!r} cannot be both a field and a group; rename one with a recipe",
                    fields=(path,),
                )
        if name in at:
            raise SchemaMismatchError(
                f"field {path!r}: RLDS allows only one field of this name; rename one with a recipe", fields=(path,)
            )
        at[name] = feature
    return tree


def _check_reserved_name(metadata: Mapping[str, Any]) -> None:
    for path in metadata:
        if path.partition("/")[0] == STEPS:
            raise SchemaMismatchError(
                f"episode field {path!r}: RLDS reserves the name {STEPS!r} for the steps; "
                "rename the field with a recipe",
                fields=(path,),
            )


def _feature(field: Field, path: str, images: ImageFormat | None) -> Any:
    """Returns a feature that stores the rows of a field without loss (apart from JPEG)."""
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
    """Returns the `encoding_format` of an image, or None, with which TFDS detects the format of each file."""
    return field.file_format if field.file_format in ("png", "jpeg") else None


def _tensor(dtype: np.dtype, shape: tuple[int | None, ...], path: str) -> Any:
    import tensorflow as tf
    import tensorflow_datasets as tfds

    # Without an encoding, TFDS cannot read back unknown dimensions or dimensions of size 0.
    countable = None not in shape and 0 not in shape
    if dtype == BYTES and not shape:
        return tfds.features.Text()
    if countable and (dtype == BYTES or dtype.name in _EXACT):
        return tfds.features.Tensor(shape=shape, dtype=np.str_ if dtype == BYTES else dtype)
    if dtype.name in _AS_BYTES:
        # TFDS accepts bfloat16 only as a TensorFlow dtype.
        known = tf.bfloat16 if dtype == BFLOAT16 else dtype
        return tfds.features.Tensor(shape=shape, dtype=known, encoding="bytes")
    if (dtype == BYTES or dtype.name in _EXACT) and None not in shape[1:] and 0 not in shape[1:]:
        return tfds.features.Sequence(_tensor(dtype, shape[1:], path))
    raise SchemaMismatchError(
        f"field {path!r}: TFDS cannot read back any feature for {Field(dtype, shape).describe()}; "
        "store it with another dtype or shape",
        fields=(path,),
    )


def _label(names: tuple[str, ...], path: str) -> Any:
    import tensorflow_datasets as tfds

    # TFDS stores the names as lines of a file, and strips whitespace.
    bad = next((name for name in names if name != name.strip() or not name or "\n" in name), None)
    if bad is not None:
        raise SchemaMismatchError(
            f"field {path!r}: TFDS cannot store the class name {bad!r} (empty, surrounding whitespace or a line "
            "break); rename the class in the attribute class_names",
            fields=(path,),
        )
    if len(set(names)) < len(names):
        raise SchemaMismatchError(
            f"field {path!r}: two classes have the same name, which TFDS rejects; "
            "rename one in the attribute class_names",
            fields=(path,),
        )
    return tfds.features.ClassLabel(names=list(names))


def _in_lists(feature: Any, depth: int) -> Any:
    """Returns the feature inside `depth` Sequences of variable length. TFDS cannot read all fixed-length ones."""
    import tensorflow_datasets as tfds

    for _ in range(depth):
        feature = tfds.features.Sequence(feature)
    return feature


def _name_classes(leaf: FeatureLeaf, names: tuple[str, ...]) -> None:
    """Sets the class names of a feature. TFDS can load them only from a file: its features JSON has no class names."""
    import tensorflow_datasets as tfds

    with tempfile.TemporaryDirectory() as folder:
        file = tfds.features.ClassLabel.get_names_filepath(folder, "classes")
        file.write_text("\n".join(names))
        try:
            leaf.feature.load_metadata(folder, "classes")
        except ValueError as e:
            raise DamagedDataError(
                f"field {leaf.path!r}: the class names do not match the feature in the attribute 'features' ({e}). "
                f"{_REMEDY}",
                field=leaf.path,
            ) from e
