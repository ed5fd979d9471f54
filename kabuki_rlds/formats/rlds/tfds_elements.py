"""Columns as TFDS gives them: nested dicts of tensors, one a step or an episode.

A column goes into the graph as one or more arrays, its parts. There its rows are cut
from a `tf.Tensor` where all have one shape, and from a `tf.RaggedTensor` where they do
not. What is left to do for a single row, to shape it or to decode its image, is done
when the row is asked for.
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
    """Fields of the steps, or of the episodes, as elements of a `tf.data.Dataset`.

    Args:
      features: the TFDS features of the dataset.
      stored: path to field, of all that the file has.
      in_steps: whether these are fields of the steps.
      chosen: the paths of those to read; None for all that have a feature.

    Attributes:
      signature: path to the specs of the parts of its column.
      is_plain: whether a row is an element as it is cut, with nothing left to do.
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
        self._cells = {path: _Cell(path, stored[path], leaves.get(path)) for path in paths}
        listed = dict(features.items())
        steps = listed.pop(STEPS).feature
        self._tree = self._subtree(steps if in_steps else listed, "") or {}
        # What a converter derived has no feature.
        self._tree |= {path: cell for path, cell in self._cells.items() if path not in leaves}
        self.signature = {path: cell.signature for path, cell in self._cells.items()}
        self.decodes = any(stored[path].encoded for path in paths)
        self.is_plain = all(cell.is_plain for cell in self._cells.values()) and not _has_inner(self._tree)

    def _subtree(self, feature: Any, path: str) -> Any:
        """The part of the tree that a feature makes; None where none of its fields is read."""
        import tensorflow_datasets as tfds

        if isinstance(feature, tfds.features.Dataset):
            inner = self._subtree(feature.feature, path)
            return inner and _Inner(inner)
        if isinstance(feature, tfds.features.FeatureConnector) and not isinstance(feature, tfds.features.FeaturesDict):
            feature = feature.get_tensor_info()  # A list of dicts is a dict of lists.
        if not isinstance(feature, (dict, tfds.features.FeaturesDict)):
            return self._cells.get(path)
        inners = {name: self._subtree(feature[name], f"{path}/{name}" if path else name) for name in sorted(feature)}
        return {name: inner for name, inner in inners.items() if inner is not None} or None

    def parts(self, columns: Mapping[str, Column]) -> dict[str, tuple[np.ndarray, ...]]:
        """The columns as arrays that fit `signature`."""
        return {path: cell.parts(columns[path]) for path, cell in self._cells.items()}

    def rows(self, parts: Mapping[str, tuple[tf.Tensor, ...]]) -> dict[str, Any]:
        """In the graph: path to tensors whose first axis is that of the rows."""
        return {path: cell.rows(*parts[path]) for path, cell in self._cells.items()}

    def element(self, row: Mapping[str, Any]) -> Any:
        """In the graph: one row, cut from `rows`, as the nested dict that TFDS gives. Many rows where `is_plain`."""
        return _element(self._tree, row)


@dataclasses.dataclass(frozen=True)
class _Inner:
    """A dataset within a step, and the tree of its elements."""

    tree: Any


#: Names to what is in them, as TFDS nests them: dicts, datasets within a step, and at the end a `_Cell`.
_Tree: TypeAlias = "dict[str, Any] | _Inner | _Cell"


def _has_inner(tree: _Tree) -> bool:
    return isinstance(tree, _Inner) or (isinstance(tree, dict) and any(map(_has_inner, tree.values())))


def _element(tree: _Tree, row: Mapping[str, Any]) -> Any:
    import tensorflow as tf

    if isinstance(tree, dict):
        return {name: _element(inner, row) for name, inner in tree.items()}
    if isinstance(tree, _Inner):
        # As TFDS does it; the map makes plain tensors of ragged ones where these are rows of rows.
        return tf.data.Dataset.from_tensor_slices(_element(tree.tree, row)).map(lambda inner: inner)
    return tree.value(row[tree.path])


class _Cell:
    """One field: the parts that its column has, and what a row of it is.

    Args:
      path: of the field.
      stored: what the file holds.
      leaf: what TFDS has in its place; None for what TFDS does not have. A dimension
        can be known in the file and not to TFDS, and a label can be of another type.
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
        # TFDS states the shape of an image but does not check it.
        if not self._is_ragged:
            return tf.ensure_shape(self._image.decode_example(row), self._field.shape)
        files, _ = row
        # Of an empty list of images of unknown size, TFDS makes images of size 0.
        return tf.ensure_shape(self._image.decode_batch_example(files), self._field.shape)
