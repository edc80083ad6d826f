"""Normalize and resize batches of images, with the bytes that OpenCV gives."""

from collections.abc import Sequence

import tensorflow as tf


def normalize(images: tf.Tensor, mean: Sequence[float], std: Sequence[float]) -> tf.Tensor:
    """Return (images - mean) / std as float32 for RGB images (..., H, W, 3) on the 0..255 scale."""
    mean, std = (tf.constant(values, tf.float32) for values in (mean, std))
    # Row by row: TensorFlow takes five times as long over three numbers at a time.
    shape = tf.shape(images)
    rows = tf.reshape(tf.cast(images, tf.float32), (-1, 3 * shape[-2]))
    rows = (rows - tf.tile(mean, shape[-2:-1])) / tf.tile(std, shape[-2:-1])
    return tf.ensure_shape(tf.reshape(rows, shape), images.shape)


def fit_size(height, width, box):
    """Return the (height, width) that fits a picture into a box of two sides, keeping its ratio (mmcv's rescale_size).

    The picture's longer side may reach the box's longer one and its shorter the shorter, whichever comes first.
    """
    height, width = tf.cast(height, tf.float64), tf.cast(width, tf.float64)
    box = tf.cast(box, tf.float64)
    factor = tf.minimum(tf.reduce_max(box) / tf.maximum(height, width), tf.reduce_min(box) / tf.minimum(height, width))
    # A very long picture keeps at least one pixel across.
    return tuple(tf.maximum(tf.cast(side * factor + 0.5, tf.int32), 1) for side in (height, width))


def resize_bytes(images: tf.Tensor, size: tuple) -> tf.Tensor:
    """Return int32 images (N, height, width, C) resized bilinearly from whole numbers 0..255 (N, H, W, C).

    The same numbers as OpenCV's INTER_LINEAR of uint8, bit for bit: weights are 11-bit fractions, and the vertical
    step drops bits before it rounds. Exact arithmetic would differ in every eighth pixel by one, and so would logits.
    """
    images = tf.cast(images, tf.int32)
    below, above, weights = _linear_positions(tf.shape(images)[2], size[1])
    images = (tf.gather(images, below, axis=2) * weights[0][:, None]
              + tf.gather(images, above, axis=2) * weights[1][:, None])
    below, above, weights = _linear_positions(tf.shape(images)[1], size[0])
    images = tf.bitwise.right_shift(images, 4)
    parts = (tf.bitwise.right_shift(tf.gather(images, rows, axis=1) * weight[:, None, None], 16)
             for rows, weight in ((below, weights[0]), (above, weights[1])))
    return tf.bitwise.right_shift(sum(parts) + 2, 2)


def _linear_positions(length: tf.Tensor, target: tf.Tensor) -> tuple:
    """Return for each of `target` positions the two source positions beside it and their weights in 1/2048."""
    # Through the inverse of the factor in float64, and from there in float32, to round where OpenCV rounds.
    inverse = 1 / (tf.cast(target, tf.float64) / tf.cast(length, tf.float64))
    positions = tf.cast((tf.cast(tf.range(target), tf.float64) + 0.5) * inverse - 0.5, tf.float32)
    below = tf.floor(positions)
    share = positions - below
    weights = tuple(tf.cast(tf.round(part * 2048), tf.int32) for part in (1 - share, share))
    below = tf.cast(below, tf.int32)
    return tf.clip_by_value(below, 0, length - 1), tf.clip_by_value(below + 1, 0, length - 1), weights
