"""The `tf.data` pipeline that reads shards and parses batches of episodes.

One call of `tf.io.parse_example` parses many episodes, and nothing runs once per step.
Threads decode images in windows of steps, so memory use does not grow with the length of
an episode.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kabuki_rlds.data.block import Column
from kabuki_rlds.data.schema import Field
from kabuki_rlds.errors import DamagedDataError
from kabuki_rlds.formats.rlds.example_decoder import ExampleField, FeatureLists, ListType
from kabuki_rlds.formats.rlds.shards import ShardSlice, read_records
from kabuki_rlds.images.damage import DamagedImageError
from kabuki_rlds.images.decode import decode_column

if TYPE_CHECKING:
    import tensorflow as tf

_THREADS = os.cpu_count() or 1
#: One thread more than there are cores, because decoders sometimes wait for the GIL.
_DECODERS = _THREADS + 1
#: The size limits of a window: bytes of decoded images, and steps.
_WINDOW_BYTES = 8 << 20
_WINDOW_MAX = 4096
#: The number of steps of a window if the size of the images is unknown.
_WINDOW_OF_UNKNOWN = 32


@dataclasses.dataclass(frozen=True)
class Element:
    """One element of the pipeline: a batch of episodes with its first window of images, or a later window.

    Attributes:
      shard: index of the shard slice of the batch.
      is_batch_start: whether this is the first window of its batch. In later windows, `records` and `lists` are empty.
      num_bytes: bytes of the batch's records.
      records: the serialized examples as `bytes` objects. Empty unless the pipeline has `keep_records`.
      lists: key to the lists of the examples.
      images: path to the decoded images of the window.
    """

    shard: int
    is_batch_start: bool
    num_bytes: int
    records: np.ndarray
    lists: dict[str, FeatureLists]
    images: dict[str, Column]


def window_rows(images: Sequence[Field]) -> int:
    """Returns the number of steps in a window of images."""
    sizes = [field.row_nbytes for field in images]
    if None in sizes:
        return _WINDOW_OF_UNKNOWN
    rows = max(1, min(_WINDOW_MAX, _WINDOW_BYTES // max(sum(size or 0 for size in sizes), 1)))
    # A power of two, like the rows of a chunk, so that most chunks come from a single window.
    return 1 << (rows.bit_length() - 1)


class Pipeline:
    """Reads shards of one dataset. The graph functions are traced once, in the constructor.

    Args:
      file_format: "tfrecord" or "array_record".
      keys: keys of the examples to parse, with their list types.
      images: path to the image fields to decode, with one image per step.
      window: number of steps whose images are decoded at once.
      keep_records: include the serialized examples in the elements.
    """

    def __init__(
        self,
        *,
        file_format: str,
        keys: Mapping[str, ListType],
        images: Mapping[str, ExampleField],
        window: int,
        keep_records: bool,
    ):
        import tensorflow as tf

        self._file_format = file_format
        self._images = images
        self._window = window
        types = {"int64": tf.int64, "float32": tf.float32, "string": tf.string}
        spec = {key: tf.io.RaggedFeature(types[kind], row_splits_dtype=tf.int64) for key, kind in keys.items()}
        image_keys = {image.key for image in images.values()}

        # Without AutoGraph, which would search for Python loops. With many fields, that takes seconds.
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
        def parse(records: tf.Tensor) -> Any:
            parsed = tf.io.parse_example(records, spec) if spec else {}
            lists, files = {}, {}
            for key, ragged in parsed.items():
                values = ragged.flat_values
                if key in image_keys:
                    # `decode` handles the image files. `lists` only needs their counts.
                    files[key] = values
                    values = tf.zeros([0], tf.string)
                lists[key] = (values, ragged.row_splits)
            num_bytes = tf.reduce_sum(tf.cast(tf.strings.length(records), tf.int64))
            return num_bytes, records if keep_records else records[:0], lists, files

        self._parse = parse.get_concrete_function()

    def read(self, shards: Sequence[ShardSlice], batch: int) -> Iterator[Element]:
        """Yields the elements of shards, in order, with up to `batch` episodes each."""
        import tensorflow as tf

        def parse(shard: tf.Tensor, records: tf.Tensor) -> Any:
            return shard, *self._parse(records)

        # No batch spans two shards, so that the records of each shard can be counted.
        parse = tf.autograph.experimental.do_not_convert(parse)
        data = read_records(shards, self._file_format, batch).map(parse, num_parallel_calls=_THREADS).prefetch(1)
        options = tf.data.Options()
        # The search for a faster pipeline takes longer than it saves.
        options.experimental_optimization.apply_default_optimizations = False
        options.autotune.enabled = False
        batches = iter(data.with_options(options))
        if self._images:
            yield from self._with_images(batches)
            return
        for shard, num_bytes, records, lists, _ in batches:
            yield _element(shard, True, num_bytes, records, lists, {})

    def _with_images(self, batches: Iterator[Any]) -> Iterator[Element]:
        """Decodes the image files of each batch in threads, several windows ahead.

        `tf.data` is slower here: it would have to copy the lists of the batch for each window.
        """
        ahead: collections.deque[tuple[tuple[Any, ...], concurrent.futures.Future[Any]]] = collections.deque()
        pool = concurrent.futures.ThreadPoolExecutor(_DECODERS, "kabuki-images")
        try:
            for shard, num_bytes, kept, lists, tensors in batches:
                files = _numpy(tensors)
                steps = len(next(iter(files.values())))
                for row in range(0, max(steps, 1), self._window):
                    head = (shard, not row, num_bytes, () if row else kept, {} if row else lists)
                    ahead.append((head, pool.submit(self._decode_window, files, row)))
                    if len(ahead) > _DECODERS:
                        yield _finished(*ahead.popleft())
            while ahead:
                yield _finished(*ahead.popleft())
        finally:
            # Do not wait for the threads: the garbage collector may close this generator anywhere.
            pool.shutdown(wait=False, cancel_futures=True)

    def _decode_window(self, files: dict[str, np.ndarray], row: int) -> dict[str, Column]:
        """Decodes one window of images.

        Args:
          files: key to the image files of a batch.
          row: first row of the window.

        Raises:
          DamagedDataError: an image file is damaged or too large.
        """
        images = {}
        for path, image in self._images.items():
            try:
                images[path] = decode_column(files[image.key][row : row + self._window], image.field)
            except DamagedImageError as e:
                raise DamagedDataError(f"field {path!r}: row {row + e.number} {e.problem}", field=path) from e
        return images

    def decode(self, examples: Sequence[bytes]) -> Iterator[Element]:
        """Yields the elements of serialized examples, like `read` does for shards."""
        import tensorflow as tf

        num_bytes, kept, lists, files = self._parse(tf.constant(examples, tf.string))
        if self._images:
            yield from self._with_images(iter([(0, num_bytes, kept, lists, files)]))
        else:
            yield _element(0, True, num_bytes, kept, lists, {})

    def sample(self, examples: Sequence[bytes], *, decode: bool = True) -> Element:
        """Parses serialized examples, and decodes the first window of images if `decode` is set."""
        import tensorflow as tf

        num_bytes, kept, lists, files = self._parse(tf.constant(examples, tf.string))
        images = self._decode_window(_numpy(files), 0) if files and decode else {}
        return _element(0, True, num_bytes, kept, lists, images)


def _numpy(tensors: Mapping[str, tf.Tensor]) -> dict[str, np.ndarray]:
    return {key: tensor.numpy() for key, tensor in tensors.items()}


def _finished(head: tuple[Any, ...], images: concurrent.futures.Future[Any]) -> Element:
    """Returns an element, after waiting for its images."""
    shard, first, num_bytes, records, lists = head
    return _element(shard, first, num_bytes, records, lists, images.result())


def _element(shard: Any, first: bool, num_bytes: Any, records: Any, lists: Any, images: Any) -> Element:
    """Returns an element with NumPy arrays. Numeric arrays share memory with the tensors."""
    # `np.asarray` does not copy, unlike `Tensor.numpy()`.
    arrays = {key: FeatureLists(np.asarray(values), np.asarray(splits)) for key, (values, splits) in lists.items()}
    return Element(int(shard), first, int(num_bytes), np.asarray(records), arrays, images)
