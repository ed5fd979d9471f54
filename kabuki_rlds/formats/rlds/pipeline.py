"""The `tf.data` pipeline: shards in, parsed batches of episodes out.

Many episodes are parsed by one `tf.io.parse_example`, which is where the speed is:
nothing is done for one step at a time. Images are decoded in parallel by TensorFlow,
a window of steps at a time, so that a long episode of large images takes no more
memory than a short one.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kabuki_rlds.data.schema import Field
from kabuki_rlds.errors import DamagedDataError
from kabuki_rlds.formats.rlds.example_decoder import FeatureLists, ListType
from kabuki_rlds.formats.rlds.shards import ShardSlice, read_records
from kabuki_rlds.images.damage import DamagedImageError, check_files

if TYPE_CHECKING:
    import tensorflow as tf

_THREADS = os.cpu_count() or 1
#: One more than there are cores, since each now and then waits for its turn in Python.
_DECODERS = _THREADS + 1
#: Decoded images of one window take about this many bytes, and are of no more steps than:
_WINDOW_BYTES = 8 << 20
_WINDOW_MAX = 4096
#: A window of images whose size is not known before they are decoded.
_WINDOW_OF_UNKNOWN = 32


@dataclasses.dataclass(frozen=True)
class Element:
    """What the pipeline yields: a batch of episodes, or one window of its images.

    Attributes:
      shard: index of the shard slice that the batch was read from.
      is_batch_start: whether this is the first window of its batch. Later windows
        carry images alone; the rest is empty.
      num_bytes: bytes of the batch's records.
      records: the serialized examples, where they were asked for: `bytes` objects.
      lists: the keys of the examples.
      images: path to the decoded images of the window: an array (steps, height,
        width, channels), or (flat pixels, shapes) where sizes differ.
    """

    shard: int
    is_batch_start: bool
    num_bytes: int
    records: np.ndarray
    lists: dict[str, FeatureLists]
    images: dict[str, np.ndarray | tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class ImageForm:
    """One field of images to decode.

    Attributes:
      key: its key in the example.
      shape: (height, width, channels), None where it varies.
      decode: a graph function from a scalar string to the image: TFDS's own.
    """

    key: str
    shape: tuple[int | None, ...]
    dtype: np.dtype
    decode: Callable[[tf.Tensor], tf.Tensor]


def window_rows(images: Sequence[Field]) -> int:
    """How many steps' images to decode at once."""
    sizes = [field.row_nbytes for field in images]
    if None in sizes:
        return _WINDOW_OF_UNKNOWN
    rows = max(1, min(_WINDOW_MAX, _WINDOW_BYTES // max(sum(size or 0 for size in sizes), 1)))
    # A power of two, as chunks are, so that a chunk is mostly cut from one window.
    return 1 << (rows.bit_length() - 1)


class Pipeline:
    """Reads shards of one dataset.

    Its graph functions are traced once, however often it is read.

    Args:
      file_format: "tfrecord" or "array_record".
      keys: keys of the examples to parse, with the type of their lists.
      images: path to images to decode.
      window: steps whose images are decoded at once.
      keep_records: pass the serialized examples on.
    """

    def __init__(
        self,
        *,
        file_format: str,
        keys: Mapping[str, ListType],
        images: Mapping[str, ImageForm],
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

        # AutoGraph would only look for Python loops to convert, for seconds where there are many fields.
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
        def parse(records: tf.Tensor) -> Any:
            parsed = tf.io.parse_example(records, spec) if spec else {}
            lists, files = {}, {}
            for key, ragged in parsed.items():
                values = ragged.flat_values
                if key in image_keys:
                    # The images go through the windows; here only their counts are kept.
                    files[key] = values
                    values = tf.zeros([0], tf.string)
                lists[key] = (values, ragged.row_splits)
            num_bytes = tf.reduce_sum(tf.cast(tf.strings.length(records), tf.int64))
            return num_bytes, records if keep_records else records[:0], lists, files

        files_spec = {key: tf.TensorSpec([None], tf.string) for key in image_keys}

        @tf.function(input_signature=[files_spec, tf.TensorSpec([], tf.int64)], autograph=False)
        def decode(files: dict[str, tf.Tensor], row: tf.Tensor) -> Any:
            part = {key: values[row : row + window] for key, values in files.items()}
            return {path: decode_all(image, part[image.key]) for path, image in images.items()}

        self._parse, self._decode = parse.get_concrete_function(), decode.get_concrete_function()

    def read(self, shards: Sequence[ShardSlice], batch: int) -> Iterator[Element]:
        """Reads shards in order, up to `batch` episodes at a time."""
        import tensorflow as tf

        def parse(shard: tf.Tensor, records: tf.Tensor) -> Any:
            return shard, *self._parse(records)

        # A shard's records are never batched with the next one's, so that each can be counted.
        parse = tf.autograph.experimental.do_not_convert(parse)
        data = read_records(shards, self._file_format, batch).map(parse, num_parallel_calls=_THREADS).prefetch(1)
        options = tf.data.Options()
        # They search for a faster pipeline than this one, which costs more than it gains.
        options.experimental_optimization.apply_default_optimizations = False
        options.autotune.enabled = False
        batches = iter(data.with_options(options))
        if self._images:
            yield from self._with_images(batches)
            return
        for shard, num_bytes, records, lists, _ in batches:
            yield _element(shard, True, num_bytes, records, lists, {})

    def _with_images(self, batches: Iterator[Any]) -> Iterator[Element]:
        """Decodes the image files of each batch, some windows ahead.

        The windows are given to threads here: within tf.data, each would have to
        carry the lists of its batch, which takes longer than to decode it.
        """
        ahead: collections.deque[tuple[tuple[Any, ...], concurrent.futures.Future[Any]]] = collections.deque()
        with concurrent.futures.ThreadPoolExecutor(_DECODERS, "kabuki-images") as pool:
            try:
                for shard, num_bytes, kept, lists, tensors in batches:
                    files = _numpy(tensors)
                    steps = len(next(iter(files.values())))
                    for row in range(0, max(steps, 1), self._window):
                        head = (shard, not row, num_bytes, () if row else kept, {} if row else lists)
                        ahead.append((head, pool.submit(self._decode_window, tensors, files, row)))
                        if len(ahead) > _DECODERS:
                            yield _taken(*ahead.popleft())
                while ahead:
                    yield _taken(*ahead.popleft())
            finally:
                pool.shutdown(cancel_futures=True)

    def _decode_window(self, tensors: dict[str, tf.Tensor], files: dict[str, np.ndarray], row: int) -> Any:
        """Decodes the images from `row` on, once their files were checked.

        Args:
          tensors: key to the image files of a batch.
          files: the same as NumPy has them, who cuts a window out of them sooner than TensorFlow.
          row: the first of the window.
        """
        import tensorflow as tf

        for path, image in self._images.items():
            try:
                check_files(files[image.key][row : row + self._window].tolist(), image.shape, decodes=True)
            except DamagedImageError as e:
                raise DamagedDataError(f"field {path!r}: row {row + e.number} {e.problem}", field=path) from e
        return self._decode(tensors, tf.constant(row, tf.int64))

    def decode(self, examples: Sequence[bytes]) -> Iterator[Element]:
        """Decodes some serialized examples at hand, as `read` does those of a shard."""
        import tensorflow as tf

        num_bytes, kept, lists, files = self._parse(tf.constant(examples, tf.string))
        if self._images:
            yield from self._with_images(iter([(0, num_bytes, kept, lists, files)]))
        else:
            yield _element(0, True, num_bytes, kept, lists, {})

    def sample(self, examples: Sequence[bytes], *, decode: bool = True) -> Element:
        """Some serialized examples, with the images of the first window if `decode`."""
        import tensorflow as tf

        num_bytes, kept, lists, files = self._parse(tf.constant(examples, tf.string))
        images = self._decode_window(files, _numpy(files), 0) if files and decode else {}
        return _element(0, True, num_bytes, kept, lists, images)


def _numpy(tensors: Mapping[str, tf.Tensor]) -> dict[str, np.ndarray]:
    return {key: tensor.numpy() for key, tensor in tensors.items()}


def _taken(head: tuple[Any, ...], images: concurrent.futures.Future[Any]) -> Element:
    shard, first, num_bytes, records, lists = head
    return _element(shard, first, num_bytes, records, lists, images.result())


def _element(shard: Any, first: bool, num_bytes: Any, records: Any, lists: Any, images: Any) -> Element:
    """An element as NumPy arrays, which share the memory of the tensors where they hold numbers."""
    # Unlike a tensor's `numpy()`, `np.asarray` makes no copy.
    pixels = {
        path: (np.asarray(image[0]), np.asarray(image[1])) if isinstance(image, (tuple, list)) else np.asarray(image)
        for path, image in images.items()
    }
    arrays = {key: FeatureLists(np.asarray(values), np.asarray(splits)) for key, (values, splits) in lists.items()}
    return Element(int(shard), first, int(num_bytes), np.asarray(records), arrays, pixels)


def decode_all(image: ImageForm, files: tf.Tensor) -> Any:
    """Decodes a vector of image files to an array, or to (flat pixels, shapes) where sizes are not known."""
    import tensorflow as tf

    def decode(file: tf.Tensor) -> tf.Tensor:
        # TFDS states the shape but does not check it.
        return tf.ensure_shape(image.decode(file), image.shape)

    def decode_flat(file: tf.Tensor) -> Any:
        pixels = decode(file)
        return tf.reshape(pixels, [-1]), tf.shape(pixels, out_type=tf.int64)

    each = functools.partial(tf.map_fn, elems=files)
    dtype = tf.as_dtype(image.dtype)
    if None not in image.shape:
        return each(decode, fn_output_signature=tf.TensorSpec(image.shape, dtype))
    flat = tf.RaggedTensorSpec([None], dtype, ragged_rank=0)
    pixels, shapes = each(decode_flat, fn_output_signature=(flat, tf.TensorSpec([len(image.shape)], tf.int64)))
    return pixels.flat_values, shapes
