"""Normalize and resize batches of images."""

from collections.abc import Sequence

import tensorflow as tf


def normalize(images: tf.Tensor, mean: Sequence[float], std: Sequence[float]) -> tf.Tensor:
    """Return (images - mean) / std.

    Args:
        images: RGB images on the 0..255 scale, any number type, of shape (..., H, W, 3).
        mean: Mean of each channel on the 0..255 scale.
        std: Standard deviation of each channel on the 0..255 scale.

    Returns:
        The normalized images, float32 of the same shape.
    """
    mean, std = (tf.constant(values, tf.float32) for values in (mean, std))
    # TensorFlow takes five times as long to broadcast over three channels as over whole rows.
    shape = tf.shape(images)
    rows = tf.reshape(tf.cast(images, tf.float32), (-1, 3 * shape[-2]))
    rows = (rows - tf.tile(mean, shape[-2:-1])) / tf.tile(std, shape[-2:-1])
    return tf.ensure_shape(tf.reshape(rows, shape), images.shape)


def fit_size(height: tf.Tensor | int, width: tf.Tensor | int, box: Sequence | tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the largest size within a box that keeps an image's aspect ratio (mmcv's rescale_size).

    The image's longer side is limited by the longer side of the box, its shorter side by the shorter one.

    Args:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        box: Two sides in pixels, in any order.

    Returns:
        (height, width), int32 scalars of at least 1.
    """
    height, width = tf.cast(height, tf.float64), tf.cast(width, tf.float64)
    box = tf.cast(box, tf.float64)
    factor = tf.minimum(tf.reduce_max(box) / tf.maximum(height, width), tf.reduce_min(box) / tf.minimum(height, width))
    # The short side of a very long image would otherwise round to 0.
    return tuple(tf.maximum(tf.cast(side * factor + 0.5, tf.int32), 1) for side in (height, width))


def resize_bytes(images: tf.Tensor, size: tuple) -> tf.Tensor:
    """Resize images bilinearly with the same results as OpenCV's INTER_LINEAR of uint8.

    OpenCV's fixed-point arithmetic is reproduced bit for bit: weights are 11-bit fractions, and the vertical pass drops
    bits before it rounds. Exact arithmetic differs by one in every eighth pixel, which changes the logits.

    Args:
        images: Integers 0..255 of any number type, of shape (N, H, W, C).
        size: (height, width) of the result.

    Returns:
        The resized images, int32 of shape (N, height, width, C).
    """
    # Some of TensorFlow's GPU kernels for int32 work in the memory of the host; images would travel back and forth ten
    # times.
    with tf.device("CPU:0"):
        images = tf.cast(images, tf.int32)
        lower, upper, weights = linear_positions(tf.shape(images)[2], size[1])
        images = (
            tf.gather(images, lower, axis=2) * weights[0][:, None]
            + tf.gather(images, upper, axis=2) * weights[1][:, None]
        )
        lower, upper, weights = linear_positions(tf.shape(images)[1], size[0])
        images = tf.bitwise.right_shift(images, 4)
        parts = (
            tf.bitwise.right_shift(tf.gather(images, rows, axis=1) * weight[:, None, None], 16)
            for rows, weight in ((lower, weights[0]), (upper, weights[1]))
        )
        return tf.bitwise.right_shift(sum(parts) + 2, 2)


def linear_positions(length: tf.Tensor | int, target: tf.Tensor | int) -> tuple:
    """Return the two neighboring source positions of each target position and their weights.

    Args:
        length: Length of the source side in pixels.
        target: Length of the resized side in pixels.

    Returns:
        The lower and the upper position, int32 (target,), and both weights, int32 (target,) in units of 1/2048.
    """
    # OpenCV inverts the scale factor in float64 and computes positions in float32; the rounding must match.
    inverse = 1 / (tf.cast(target, tf.float64) / tf.cast(length, tf.float64))
    positions = tf.cast((tf.cast(tf.range(target), tf.float64) + 0.5) * inverse - 0.5, tf.float32)
    lower = tf.floor(positions)
    fraction = positions - lower
    weights = tuple(tf.cast(tf.round(weight * 2048), tf.int32) for weight in (1 - fraction, fraction))
    lower = tf.cast(lower, tf.int32)
    return tf.clip_by_value(lower, 0, length - 1), tf.clip_by_value(lower + 1, 0, length - 1), weights
