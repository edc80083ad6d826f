"""Decode labels that store colors, in a TensorFlow graph."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from kseg.images import decoder_choice, picture_reader
from kseg.images.decoding import DEPTH, PNG_HEADER, PNG_SIGNATURE, refuse_elsewhere

# The lower 24 bits of a pixel: red, green and blue without alpha.
RGB_BITS = 0xFFFFFF


def decode_color_label(
    data: tf.Tensor, label_colors: Sequence[tuple[tuple[int, int, int], int]], other_colors: int, in_python: bool
) -> tf.Tensor:
    """Decode a label to the values of its colors, upright.

    Args:
        data: A PNG of at most 8 bits per channel, string of shape (). Gray values are colors with three equal
            channels, palette indices have the color of the palette, and alpha is not considered.
        label_colors: (RGB color, value 0..255) of each color.
        other_colors: Value of all other colors.
        in_python: Whether the graph runs in this process.

    Returns:
        The values, uint8 of shape (H, W).
    """
    header = tf.strings.substr(tf.strings.join([data, "\0" * PNG_HEADER]), 0, PNG_HEADER)
    depth = tf.io.decode_raw(header, tf.uint8)[DEPTH]
    is_png = tf.equal(tf.strings.substr(header, 0, len(PNG_SIGNATURE)), PNG_SIGNATURE)
    # decode_png also reads JPEGs, whose colors are not exact, and drops the lower byte of 16 bits.
    with tf.control_dependencies(
        [
            tf.debugging.Assert(
                is_png & (depth <= 8), ["a label with colors must be a PNG of at most 8 bits per channel"]
            )
        ]
    ):
        turned = decoder_choice.may_be_turned(data)
    if in_python:
        pixels = tf.cond(turned, lambda: _read_upright(data), lambda: tf.io.decode_png(data, channels=4))
    else:
        with tf.control_dependencies([refuse_elsewhere(turned)]):
            pixels = tf.io.decode_png(data, channels=4)
    pixels = tf.ensure_shape(pixels, (None, None, 4))
    codes = tf.bitwise.bitwise_and(tf.bitcast(pixels, tf.int32), RGB_BITS)
    pairs = sorted((_code(color), value) for color, value in label_colors)
    known, values = (
        tf.constant(np.array(column, dtype)) for column, dtype in zip(zip(*pairs), (np.int32, np.uint8), strict=True)
    )
    flat = tf.reshape(codes, (1, -1))
    positions = tf.minimum(tf.searchsorted(known[None], flat), len(pairs) - 1)
    found = tf.where(
        tf.equal(tf.gather(known, positions), flat), tf.gather(values, positions), tf.constant(other_colors, tf.uint8)
    )
    return tf.reshape(found, tf.shape(codes))


def _read_upright(data: tf.Tensor) -> tf.Tensor:
    """Return the colors of a turned PNG with an alpha of 0, uint8 (H, W, 4)."""
    colors = tf.py_function(
        lambda encoded: picture_reader.read_picture(encoded.numpy(), "label").pixels, [data], tf.uint8
    )
    return tf.pad(tf.ensure_shape(colors, (None, None, 3)), [[0, 0], [0, 0], [0, 1]])


def _code(color: tuple[int, int, int]) -> int:
    """Return the number that `tf.bitcast` makes of a color's bytes."""
    return int.from_bytes(bytes(color), "little")
