"""Wraps `Batches` in a `tf.data.Dataset`."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kabuki_rlds.data.block import Column, Nested, as_nested
from kabuki_rlds.data.nested_arrays import unflatten
from kabuki_rlds.data.schema import BYTES, Field
from kabuki_rlds.loading.batches import Batches

if TYPE_CHECKING:
    import tensorflow as tf


def dataset(batches: Batches) -> tf.data.Dataset:
    """A dataset of the same batches as nested dicts of tensors. Rows of different shapes are a `tf.RaggedTensor`.

    Many batches are passed from Python to TensorFlow together, and TensorFlow splits them:
    passing each batch alone would take longer than reading it.
    """
    import tensorflow as tf

    from kabuki_rlds.loading.eager_dataset import EagerDataset

    at_once = batches.per_block > 1
    parts = {path: _TensorParts(field, batches.leads[path], at_once) for path, field in batches.fields.items()}

    def blocks() -> Iterator[dict[str, Any]]:
        for block in batches.blocks():
            count = batches.num_samples_of(block)
            whole = count - count % batches.batch_size
            for start, stop, size in ((0, whole, batches.batch_size), (whole, count, count - whole)):
                if start < stop:
                    yield {
                        path: parts[path].arrays(column, size)
                        for path, column in batches.part(block, start, stop).items()
                    }

    signature = unflatten({path: part.signature for path, part in parts.items()})
    data = tf.data.Dataset.from_generator(lambda: map(unflatten, blocks()), output_signature=signature)
    if at_once:
        data = data.unbatch()
    if any(part.is_ragged for part in parts.values()):
        # There are no Python loops to convert, and AutoGraph takes seconds to find that out if there are many fields.
        tensors = tf.autograph.experimental.do_not_convert(functools.partial(_tensors, parts))
        data = data.map(tensors)
    count = tf.data.INFINITE_CARDINALITY if batches.num_batches is None else batches.num_batches
    data = data.apply(tf.data.experimental.assert_cardinality(count))
    options = tf.data.Options()
    # A prefetch thread would cost more time than the remaining work per batch.
    options.experimental_optimization.inject_prefetch = False
    data = data.with_options(options)
    return EagerDataset(data, blocks) if at_once else data


def _tensors(parts: Mapping[str, _TensorParts], arrays: Any) -> Any:
    """Runs in the graph: makes a batch of tensors from the arrays of `_TensorParts.arrays`."""
    flat = {path: functools.reduce(operator.getitem, path.split("/"), arrays) for path in parts}
    return unflatten({path: part.tensor(flat[path]) for path, part in parts.items()})


class _TensorParts:
    """Passes the column of a field to TensorFlow: as one array, or as values and row splits if rows differ in shape.

    Args:
      field: the type of a row.
      lead: shape of a sample in rows, as in `Samples.leads`.
      at_once: whether several batches are passed together.
    """

    def __init__(self, field: Field, lead: tuple[int, ...], at_once: bool):
        import tensorflow as tf

        self._lead = lead
        dtype = tf.string if field.dtype == BYTES else tf.as_dtype(field.dtype)
        #: The number of ragged dimensions: all up to the last one that varies.
        self._levels = field.nested or max((i + 1 for i, d in enumerate(field.shape) if d is None), default=0)
        self._inner = tuple(d for d in field.shape[self._levels :] if d is not None)
        splits = [tf.TensorSpec([None], tf.int64)] * self._levels
        self.is_ragged = self._levels > 0
        if self.is_ragged:
            self.signature: Any = (tf.TensorSpec([None, *self._inner], dtype), *splits)
        else:
            self.signature = tf.TensorSpec([*[None] * (1 + at_once), *lead, *field.shape], dtype)
        self._at_once = at_once

    def arrays(self, column: Column, size: int) -> Any:
        """The arrays to pass to TensorFlow. Each batch has `size` samples."""
        if isinstance(column, np.ndarray):
            samples = len(column) // math.prod(self._lead)
            batch = (samples // size, size) if self._at_once else (samples,)
            return column.reshape(*batch, *self._lead, *column.shape[1:])
        lists = column if isinstance(column, Nested) else as_nested(column, self._inner)
        return (lists.values, *lists.splits)

    def tensor(self, arrays: Any) -> Any:
        """Runs in the graph: makes the tensor of a batch from the result of `arrays`."""
        import tensorflow as tf

        if not self.is_ragged:
            return arrays
        values, *splits = arrays
        ragged = tf.RaggedTensor.from_nested_row_splits(values, splits, validate=False)
        for length in reversed(self._lead):
            ragged = tf.RaggedTensor.from_uniform_row_length(ragged, length)
        return ragged
