"""Maps as large as a picture, made a stripe of rows at a time, so that none of floats need be in memory as a whole."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

# Floats that one stripe of a map holds, unless a single row has more: 16 MiB, which still lie in a processor's cache.
STRIPE = 2**22


class Rows(NamedTuple):
    """Float32 maps (N, height, width, C) whose rows are made when they are asked for."""

    height: tf.Tensor
    width: tf.Tensor
    # Floats that must be held to make one row.
    cost: tf.Tensor
    # (first, last) -> the rows from the first to before the last, (N, last - first, width, C).
    take: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def of(maps: tf.Tensor) -> Rows:
    """Return the rows of float32 maps (N, height, width, C) that are in memory."""
    shape = tf.shape(maps)
    return Rows(shape[1], shape[2], shape[0] * shape[2] * shape[3], lambda first, last: maps[:, first:last])


def resized(source: Rows, size: tuple, align_corners: bool) -> Rows:
    """Return rows of what kseg.models.layers.resize makes of the whole maps at `size` (height, width).

    On a CPU the same numbers bit for bit: positions and weights are those of the whole map, and each step rounds where
    TensorFlow's kernel rounds. On a GPU, whose kernel may round a product and a sum at once, they may differ in the
    last bit.
    """
    height, width = size
    lower, upper, share = positions(source.height, height, align_corners)
    same = (source.height == height) & (source.width == width)

    def interpolated(first: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
        start = lower[first]
        maps = source.take(start, upper[last - 1] + 1)
        # Along the width by the kernel itself, whose height stays; along the height by hand, as it has no first row.
        maps = tf.raw_ops.ResizeBilinear(
            images=maps, size=tf.stack([tf.shape(maps)[1], width]), align_corners=align_corners,
            half_pixel_centers=not align_corners)
        above, below = (tf.gather(maps, rows[first:last] - start, axis=1) for rows in (lower, upper))
        return above + (below - above) * share[first:last, None, None]

    # Making a row may take several of the source.
    cost = tf.maximum(source.cost * ((source.height + height - 1) // height), source.cost // source.width * width)
    return Rows(height, width, cost,
                lambda first, last: tf.cond(same, lambda: source.take(first, last), lambda: interpolated(first, last)))


def positions(length: tf.Tensor, target: tf.Tensor, align_corners: bool) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return for each of `target` positions of a side the two of `length` it lies between and the second one's weight.

    int32, int32 and float32 (target,), rounded as TensorFlow's ResizeBilinear rounds them.
    """
    numbers = tf.cast(tf.range(target), tf.float32)
    if align_corners:
        exact = numbers * (tf.cast(length - 1, tf.float32) / tf.cast(tf.maximum(target - 1, 1), tf.float32))
    else:
        exact = (numbers + 0.5) * (tf.cast(length, tf.float32) / tf.cast(target, tf.float32)) - 0.5
    below = tf.floor(exact)
    upper = tf.minimum(tf.cast(tf.math.ceil(exact), tf.int32), length - 1)
    return tf.clip_by_value(tf.cast(below, tf.int32), 0, upper), upper, exact - below


def reach(source: Rows, height: tf.Tensor, align_corners: bool, known: tf.Tensor) -> tf.Tensor:
    """Return how many rows of maps resized to `height` are settled by the first `known` rows of their source."""
    _, upper, _ = positions(source.height, height, align_corners)
    return tf.reduce_sum(tf.cast(upper < known, tf.int32))


def fold(rows: Rows, first: tf.Tensor, last: tf.Tensor, use: Callable[..., tuple], state: tuple) -> tuple:
    """Return the state after `state = use(state, begin, end, maps)` of each stripe of the rows first to before last.

    Stripes come from top to bottom; `maps` are the rows from begin to before end, float32 (N, end - begin, width, C).
    """
    step = tf.maximum(STRIPE // rows.cost, 1)

    def stripe(begin: tf.Tensor, *state: tf.Tensor) -> tuple:
        end = tf.minimum(begin + step, last)
        return end, *use(state, begin, end, rows.take(begin, end))

    _, *state = tf.while_loop(lambda begin, *_: begin < last, stripe, (first, *state), parallel_iterations=1)
    return tuple(state)


def update(maps: tf.Tensor, first: tf.Tensor, last: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Return maps (N, height, ...) with rows (N, last - first, ...) instead of theirs; in place where that can be."""
    return tf.raw_ops.TensorStridedSliceUpdate(
        input=maps, begin=tf.stack([0, first]), end=tf.stack([0, last]), strides=[1, 1], begin_mask=1, end_mask=1,
        value=rows)
