"""Process float maps of an image's size in stripes of rows, so that the whole map never has to be in memory."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

# Maximum number of floats in a stripe, unless a single row has more: 16 MiB, which fit into a processor's cache.
STRIPE = 2**22


class Rows(NamedTuple):
    """Float32 maps of shape (N, height, width, C) whose rows are computed on request.

    Attributes:
        height: Number of rows, int32 scalar.
        width: Number of columns, int32 scalar.
        cost: Number of floats that must be in memory to compute one row, int32 scalar.
        take: Maps (first, last) to the rows first..last-1, float32 of shape (N, last - first, width, C).
    """

    height: tf.Tensor
    width: tf.Tensor
    cost: tf.Tensor
    take: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def rows_in_memory(maps: tf.Tensor) -> Rows:
    """Return the rows of maps in memory, float32 of shape (N, height, width, C)."""
    shape = tf.shape(maps)
    return Rows(shape[1], shape[2], shape[0] * shape[2] * shape[3], lambda first, last: maps[:, first:last])


def resized_rows(source: Rows, size: tuple, align_corners: bool) -> Rows:
    """Return the rows of bilinearly resized maps.

    On a CPU the rows equal those of kseg.models.layers.resize bit for bit: positions and weights are those of the whole
    map, and every operation rounds as TensorFlow's kernel does. On a GPU the last bit may differ, because its kernel
    may fuse a multiplication and an addition.

    Args:
        source: The maps to resize.
        size: (height, width) of the result.
        align_corners: Whether the centers of the corner pixels coincide before and after the resize.
    """
    height, width = size
    lower, upper, fraction = source_positions(source.height, height, align_corners)
    is_same_size = (source.height == height) & (source.width == width)

    def interpolate(first: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
        start = lower[first]
        maps = source.take(start, upper[last - 1] + 1)
        # TensorFlow's kernel resizes the width. It cannot resize a part of the height, because it has no argument for
        # the first row.
        maps = tf.raw_ops.ResizeBilinear(
            images=maps,
            size=tf.stack([tf.shape(maps)[1], width]),
            align_corners=align_corners,
            half_pixel_centers=not align_corners,
        )
        above, below = (tf.gather(maps, rows[first:last] - start, axis=1) for rows in (lower, upper))
        return above + (below - above) * fraction[first:last, None, None]

    # One row of the result may need several rows of the source.
    cost = tf.maximum(source.cost * ((source.height + height - 1) // height), source.cost // source.width * width)
    return Rows(
        height,
        width,
        cost,
        lambda first, last: tf.cond(is_same_size, lambda: source.take(first, last), lambda: interpolate(first, last)),
    )


def source_positions(
    length: tf.Tensor, target: tf.Tensor, align_corners: bool
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return the neighboring source positions of each target position, rounded as TensorFlow's ResizeBilinear does.

    Args:
        length: Length of the source side.
        target: Length of the resized side.
        align_corners: Whether the centers of the corner pixels coincide before and after the resize.

    Returns:
        The lower position, int32; the upper position, int32; and the weight of the upper one, float32. All have the
        shape (target,).
    """
    numbers = tf.cast(tf.range(target), tf.float32)
    if align_corners:
        exact = numbers * (tf.cast(length - 1, tf.float32) / tf.cast(tf.maximum(target - 1, 1), tf.float32))
    else:
        exact = (numbers + 0.5) * (tf.cast(length, tf.float32) / tf.cast(target, tf.float32)) - 0.5
    below = tf.floor(exact)
    upper = tf.minimum(tf.cast(tf.math.ceil(exact), tf.int32), length - 1)
    return tf.clip_by_value(tf.cast(below, tf.int32), 0, upper), upper, exact - below


def complete_rows(source: Rows, height: tf.Tensor, align_corners: bool, complete: tf.Tensor) -> tf.Tensor:
    """Return the number of rows of maps resized to `height` that need only the first `complete` source rows."""
    _, upper, _ = source_positions(source.height, height, align_corners)
    return tf.reduce_sum(tf.cast(upper < complete, tf.int32))


def fold_stripes(rows: Rows, first: tf.Tensor, last: tf.Tensor, update: Callable[..., tuple], state: tuple) -> tuple:
    """Fold the rows first..last-1 from top to bottom in stripes, and return the final state.

    Args:
        rows: The maps.
        first: First row.
        last: Row after the last one.
        update: Maps (state, begin, end, maps) to the new state, where maps are the rows begin..end-1, float32 of shape
            (N, end - begin, width, C).
        state: The initial state, a tuple of tensors.
    """
    step = tf.maximum(STRIPE // rows.cost, 1)

    def update_with_stripe(begin: tf.Tensor, *state: tf.Tensor) -> tuple:
        end = tf.minimum(begin + step, last)
        return end, *update(state, begin, end, rows.take(begin, end))

    _, *state = tf.while_loop(
        lambda begin, *_: begin < last, update_with_stripe, (first, *state), parallel_iterations=1
    )
    return tuple(state)


def update_rows(maps: tf.Tensor, first: tf.Tensor, last: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Return maps (N, height, ...) with the rows first..last-1 replaced, in place if possible.

    `rows` has the shape (N, last - first, ...).
    """
    return tf.raw_ops.TensorStridedSliceUpdate(
        input=maps,
        begin=tf.stack([0, first]),
        end=tf.stack([0, last]),
        strides=[1, 1],
        begin_mask=1,
        end_mask=1,
        value=rows,
    )
