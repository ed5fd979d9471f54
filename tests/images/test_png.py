"""PNG files written by this package, decoded by TensorFlow."""

import hypothesis
import hypothesis.extra.numpy as arrays
import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from kabuki_rlds.images import png


@hypothesis.given(st.data())
@hypothesis.settings(deadline=None)
def test_tensorflow_decodes_written_png_files(data):
    dtype = data.draw(st.sampled_from([np.uint8, np.uint16]))
    shape = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3, 4])))
    pixels = data.draw(arrays.arrays(dtype, shape))
    if data.draw(st.booleans()):
        pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    decoded = tf.io.decode_png(png.file(pixels), channels=shape[2], dtype=tf.as_dtype(dtype))
    np.testing.assert_array_equal(decoded.numpy(), pixels)


def test_a_view_of_a_larger_array_is_written_correctly():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)[::-1, 5:40]
    np.testing.assert_array_equal(tf.io.decode_png(png.file(pixels)).numpy(), pixels)
