"""Turns columns into the elements that TFDS yields: one nested dict of tensors per step or episode.

A column enters the graph as one or more arrays, called its parts. In the graph, rows of
one shape are sliced from a `tf.Tensor`, rows of varying shape from a `tf.RaggedTensor`.
Reshaping a row and decoding its image happen when the row is requested.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from kabuki_rlds.data.block import Column, Nested, Ragged, as_nested, row_splits
from kabuki_rlds.data.schema import BYTES, Field
from kabuki_rlds.formats.rlds import feature_layout as rlds_features
from kabuki_rlds.formats.rlds.feature_layout import STEPS, FeatureLeaf

if TYPE_CHECKING:
    import tensorflow as tf
    import tensorflow_datasets as tfds


class Elements:
    """Converts step fields or episode fields to elements of a `tf.data.Dataset`.

    Args:
      features: the TFDS features of the dataset.
      stored: path to field, for all fields of the file.
      in_steps: True for step fields, False for episode fields.
      chosen: paths of the fields to read. None reads all fields with a feature.

    Attributes:
      signature: path to the specs of the column's parts.
      is_plain: whether a row needs no reshaping and no decoding.
      decodes: whether image files are decoded.
    """

    def __init__(
        self,
        features: tfds.features.FeaturesDict,
        stored: Mapping[str, Field],
        *,
        in_steps: bool,
        chosen: Collection[str] | None = None,
    ):
        leaves = {leaf.path: leaf for leaf in rlds_features.read(features) if leaf.in_steps == in_steps}
        paths = leaves if chosen is None else chosen
        self._fields = {path: _ElementField(path, stored[path], leaves.get(path)) for path in paths}
        listed = dict(features.items())
        steps = listed.pop(STEPS).feature
        self._tree = self._subtree(steps if in_steps else listed, "") or {}
        # Derived fields have no feature.
        self._tree |= {path: field for path, field in self._fields.items() if path not in leaves}
        self.signature = {path: field.signature for path, field in self._fields.items()}
        self.decodes = any(stored[path].encoded for path in paths)
        self.is_plain = all(field.is_plain for field in self._fields.values()) and not _has_inner(self._tree)

    def _subtree(self, feature: Any, path: str) -> Any:
        """Returns the tree of the feature at `path`, or None if none of its fields is read."""
        import tensorflow_datasets as tfds

        if isinstance(feature, tfds.features.Dataset):
            inner = self._subtree(feature.feature, path)
            return inner and _InnerDataset(inner)
        if isinstance(feature, tfds.features.FeatureConnector) and not isinstance(feature, tfds.features.FeaturesDict):
            feature = feature.get_tensor_info()  # A list of dicts becomes a dict of lists.
        if not isinstance(feature, (dict, tfds.features.FeaturesDict)):
            return self._fields.get(path)
        inners = {name: self._subtree(feature[name], f"{path}/{name}" if path else name) for name in sorted(feature)}
        return {name: inner for name, inner in inners.items() if inner is not None} or None

    def parts(self, columns: Mapping[str, Column]) -> dict[str, tuple[np.ndarray, ...]]:
        """Returns the parts of each column, as arrays that match `signature`."""
        return {path: field.parts(columns[path]) for path, field in self._fields.items()}

    def rows(self, parts: Mapping[str, tuple[tf.Tensor, ...]]) -> dict[str, Any]:
        """Builds path to tensors whose first axis is the rows. Runs in the graph."""
        return {path: field.rows(*parts[path]) for path, field in self._fields.items()}

    def element(self, row: Mapping[str, Any]) -> Any:
        """Builds the nested dict that TFDS yields from one row of `rows`. Runs in the graph.

        If `is_plain`, `row` may also be several rows.
        """
        return _element(self._tree, row)


@dataclasses.dataclass(frozen=True)
class _InnerDataset:
    """A dataset within a step, with the tree of its elements."""

    tree: Any


#: The structure of an element: nested dicts and inner datasets, with a `_ElementField` at each leaf.
_Tree: TypeAlias = "dict[str, Any] | _InnerDataset | _ElementField"


def _has_inner(tree: _Tree) -> bool:
    return isinstance(tree, _InnerDataset) or (isinstance(tree, dict) and any(map(_has_inner, tree.values())))


def _element(tree: _Tree, row: Mapping[str, Any]) -> Any:
    import tensorflow as tf

    if isinstance(tree, dict):
        return {name: _element(inner, row) for name, inner in tree.items()}
    if isinstance(tree, _InnerDataset):
        # As in TFDS. The map turns ragged rows that are not nested into plain tensors.
        return tf.data.Dataset.from_tensor_slices(_element(tree.tree, row)).map(lambda inner: inner)
    return tree.value(row[tree.path])


class _ElementField:
    """Converts the column of one field to parts, and its rows to values of elements.

    Args:
      path: path of the field.
      stored: the field in the file.
      leaf: the TFDS feature, or None for a field without one. The stored field may have fixed dimensions that the
        feature leaves unknown, and a label may have another dtype.
    """

    def __init__(self, path: str, stored: Field, leaf: FeatureLeaf | None):
        import tensorflow as tf

        self.path = path
        self._field = stored if leaf is None else leaf.field
        self._image = leaf.feature if leaf is not None and stored.encoded else None
        self._is_ragged = not stored.is_fixed and not self._field.nested
        if stored.encoded and not stored.is_list_of_images:
            self._is_ragged = False
        self.is_plain = not self._is_ragged and self._image is None
        is_bytes = self._field.dtype == BYTES or stored.encoded
        self._dtype = BYTES if is_bytes else self._field.dtype
        dtype = tf.string if is_bytes else tf.as_dtype(self._field.dtype)
        int64 = tf.TensorSpec([None], tf.int64)
        self.signature: tuple[tf.TensorSpec, ...]
        if self._is_ragged:
            rank = 1 if stored.encoded else len(self._field.shape)
            self.signature = (tf.TensorSpec([None], dtype), int64, tf.TensorSpec([None, rank], tf.int64))
        elif self._field.nested:
            item = self._field.shape[self._field.nested :]
            self.signature = (tf.TensorSpec([None, *item], dtype), *[int64] * self._field.nested)
        else:
            shape = () if stored.encoded else self._field.shape
            self.signature = (tf.TensorSpec([None, *shape], dtype),)

    def parts(self, column: Column) -> tuple[np.ndarray, ...]:
        if self._field.nested:
            lists = column if isinstance(column, Nested) else as_nested(column)
            return (lists.values.astype(self._dtype, copy=False), *map(row_splits, lists.lengths))
        if isinstance(column, Ragged):
            return column.values.astype(self._dtype, copy=False), column.splits, column.shapes
        assert isinstance(column, np.ndarray)
        return (column.astype(self._dtype, copy=False),)

    def rows(self, values: tf.Tensor, *rest: tf.Tensor) -> Any:
        import tensorflow as tf

        if self._is_ragged:
            splits, shapes = rest
            return tf.RaggedTensor.from_row_splits(values, splits, validate=False), shapes
        if self._field.nested:
            return tf.RaggedTensor.from_nested_row_splits(values, rest, validate=False)
        return values

    def value(self, row: Any) -> Any:
        import tensorflow as tf

        if self._image is None:
            if not self._is_ragged:
                return row
            values, shape = row
            return tf.ensure_shape(tf.reshape(values, shape), self._field.shape)
        # TFDS does not check the shape of a decoded image.
        if not self._is_ragged:
            return tf.ensure_shape(self._image.decode_example(row), self._field.shape)
        files, _ = row
        # For an empty list of images of unknown size, TFDS returns images of size 0.
        return tf.ensure_shape(self._image.decode_batch_example(files), self._field.shape)
