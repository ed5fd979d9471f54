"""A `tf.data.Dataset` of batches of which a Python loop takes many at a time.

TensorFlow's own iterator spends some 75 µs in Python on a batch of seven tensors, which is
longer than it takes to read it. Here one op makes the tensors of many batches, and a
Python loop is handed one after the other. All else goes TensorFlow's own way: what is
put behind the dataset (`map`, `take`, …), loops in a `tf.function`, and Keras, which
hands the iterator to one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from kabuki_rlds.data.nested_arrays import unflatten
from kabuki_rlds.errors import KabukiError


class EagerDataset(tf.data.Dataset):  # type: ignore[misc]  # TensorFlow ships no types.
    """The elements of `data`, of which a Python loop takes many at a time.

    Args:
      data: the dataset for all else.
      blocks: gives the same elements anew, several at once: path to an array of one
        more dimension, which is that of the elements.
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
    """Taken by Python until TensorFlow asks, and from there on by TensorFlow."""

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
            # The error that TensorFlow makes of it.
            raise tf.errors.UnknownError(None, None, f"KabukiError: {e}") from e

    def _elements(self) -> Iterator[Any]:
        for block in self._blocks():
            # As those that come out of tf.data, they are not put on a GPU.
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
        """TensorFlow's own iterator, for a `tf.function`; it goes on where Python left off."""
        if self._by_tensorflow is None:
            # Not within the function that is being traced, which would make one at each call.
            with tf.init_scope():
                self._by_tensorflow = iter(self._data if self._by_python is None else self._left(self._by_python))
        return self._by_tensorflow

    def _left(self, elements: Iterator[Any]) -> tf.data.Dataset:
        """What Python has not taken yet. A second reading of the file could be in another order."""
        return tf.data.Dataset.from_generator(lambda: elements, output_signature=self.element_spec)

    # How TensorFlow takes an iterator apart that is handed to a `tf.function`.

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
