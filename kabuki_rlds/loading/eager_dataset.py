"""A `tf.data.Dataset` of batches with a fast iterator for Python loops.

TensorFlow's iterator spends about 75 µs in Python on a batch of seven tensors, which is
longer than reading the batch takes. The iterator here makes the tensors of many batches
with one op, and returns them one by one to a Python loop. TensorFlow's iterator is still
used for everything else: transformations of the dataset (`map`, `take`, …), loops in a
`tf.function`, and Keras, which passes the iterator to a `tf.function`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from kabuki_rlds.data.nested_arrays import unflatten
from kabuki_rlds.errors import KabukiError


class EagerDataset(tf.data.Dataset):  # type: ignore[misc]  # TensorFlow ships no types.
    """A dataset with the elements of `data`, and a fast iterator for Python loops.

    Args:
      data: the dataset that TensorFlow's own iterator uses.
      blocks: starts an iteration over the same elements, several at a time: path to an array whose additional first
        axis counts the elements.
    """

    def __init__(self, data: tf.data.Dataset, blocks: Callable[[], Iterator[dict[str, Any]]]):
        self._data, self._blocks = data, blocks
        super().__init__(tf.data.experimental.to_variant(data))

    def _inputs(self) -> list[tf.data.Dataset]:
        return [self._data]

    @property
    def element_spec(self) -> Any:
        return self._data.element_spec

    def __iter__(self) -> tf.data.Iterator:
        return _Iterator(self._data, self._blocks) if tf.executing_eagerly() else iter(self._data)


class _Iterator(tf.data.Iterator):  # type: ignore[misc]
    """Iterates in Python until TensorFlow needs its own iterator, which then continues at the same element."""

    def __init__(self, data: tf.data.Dataset, blocks: Callable[[], Iterator[dict[str, Any]]]):
        self._data, self._blocks = data, blocks
        self._by_python: Iterator[Any] | None = None
        self._by_tensorflow: tf.data.Iterator | None = None

    def __next__(self) -> Any:
        if self._by_tensorflow is not None or not tf.executing_eagerly():
            return next(self._graph_iterator())
        if self._by_python is None:
            self._by_python = self._elements()
        try:
            return next(self._by_python)
        except KabukiError as e:
            # Raise the same error as TensorFlow's iterator does.
            raise tf.errors.UnknownError(None, None, f"KabukiError: {e}") from e

    def _elements(self) -> Iterator[Any]:
        for block in self._blocks():
            # tf.data also returns tensors on the CPU.
            with tf.device("/CPU:0"):
                columns = [tf.unstack(column) for column in block.values()]
            for element in zip(*columns, strict=True):
                yield unflatten(dict(zip(block, element, strict=True)))

    def get_next(self) -> Any:
        if not tf.executing_eagerly():
            return self._graph_iterator().get_next()
        try:
            return next(self)
        except StopIteration:
            raise tf.errors.OutOfRangeError(None, None, "End of sequence") from None

    def get_next_as_optional(self) -> Any:
        return self._graph_iterator().get_next_as_optional()

    @property
    def element_spec(self) -> Any:
        return self._data.element_spec

    def _graph_iterator(self) -> Any:
        """TensorFlow's own iterator, for a `tf.function`. It continues after the last element that Python took."""
        if self._by_tensorflow is None:
            # Create it outside of the function that is traced, which would create one at each call.
            with tf.init_scope():
                self._by_tensorflow = iter(self._data if self._by_python is None else self._remaining(self._by_python))
        return self._by_tensorflow

    def _remaining(self, elements: Iterator[Any]) -> tf.data.Dataset:
        """A dataset of the remaining elements. Reading the file again could give another order."""
        return tf.data.Dataset.from_generator(lambda: elements, output_signature=self.element_spec)

    # TensorFlow uses these members when an iterator is passed to a `tf.function`.

    @property
    def _type_spec(self) -> Any:
        return self._graph_iterator()._type_spec

    @property
    def _iterator_resource(self) -> Any:
        return self._graph_iterator()._iterator_resource

    def __tf_tracing_type__(self, context: Any) -> Any:
        return self._graph_iterator().__tf_tracing_type__(context)

    def _serialize_to_tensors(self) -> Any:
        return self._graph_iterator()._serialize_to_tensors()
