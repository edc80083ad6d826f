"""Sliding windows over a picture of any size: in memory are a row of windows and the rows that it has not finished."""

from collections.abc import Callable

import keras
import tensorflow as tf

from kseg.inference.tiling import Rows
from kseg.models.layers import resize

# Pixels of the windows that the model looks at in one call: as many as a picture of Cityscapes has, which the protocol
# of whole pictures has to hold, too.
PIXELS_PER_CALL = 2**21


def sliding_window_scores(model: keras.Model, inputs: tf.Tensor, normalise: Callable[[tf.Tensor], tf.Tensor],
                          window_size: tuple[int, ...], stride: tuple[int, ...], align_corners: bool,
                          activation: Callable[[tf.Tensor], tf.Tensor], finish: Callable[..., tuple],
                          state: tuple) -> tuple:
    """Return the state after `state = finish(rows, known, state)` of each row of windows, from top to bottom.

    `inputs` (N, H, W, 3) are normalised a row of windows at a time. `rows` are the scores (N, H, W, C), each pixel's
    mean over the windows that cover it of the model's logits, activated once they are resized to their window. Those
    before the row `known` are settled by then. From the last that was known before, they can be taken; others not.

    Windows of `window_size` (height, width) lie `stride` apart; the last ones are shifted back into the picture, and where the picture is smaller
    than a window, the window is as small (MMSegmentation's slide_inference). The sum over windows is as high as they
    are and as wide as the picture.
    """
    shape = tf.shape(inputs)
    length, classes = shape[1:3], model.output["main"].shape[-1]
    window = tf.minimum(tf.constant(window_size), length)
    tops, lefts = (_firsts(length[axis], window[axis], stride[axis]) for axis in (0, 1))
    ends = tf.concat([tops[1:], length[:1]], 0)
    down, across = (_covered(firsts, window[axis], length[axis]) for axis, firsts in enumerate((tops, lefts)))

    def row_of_windows(number: tf.Tensor, total: tf.Tensor, *state: tf.Tensor) -> tuple:
        top, known = tops[number], ends[number]
        # One row more than the windows, above them: what is resized may need it beside their first.
        total = tf.pad(total, [[0, 0], [0, window[0] + 1 - tf.shape(total)[1]], [0, 0], [0, 0]])
        band = normalise(inputs[:, top:top + window[0]])
        total = _add_row(model, band, lefts, window, align_corners, activation, total)

        def take(first: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
            return total[:, first - top + 1:last - top + 1] / (down[first:last, None, None] * across[:, None])

        state = finish(Rows(length[0], length[1], shape[0] * length[1] * classes, take), known, state)
        return number + 1, total[:, known - top:], *state

    total = tf.zeros([shape[0], 1, length[1], classes])
    shapes = [tf.TensorShape([]), tf.TensorShape([None, None, None, classes]), *(part.shape for part in state)]
    _, _, *state = tf.while_loop(lambda number, *_: number < tf.size(tops), row_of_windows,
                                 (tf.constant(0), total, *state), shape_invariants=tuple(shapes), parallel_iterations=1)
    return tuple(state)


def _add_row(model: keras.Model, band: tf.Tensor, lefts: tf.Tensor, window: tf.Tensor, align_corners: bool,
             activation: Callable[[tf.Tensor], tf.Tensor], total: tf.Tensor) -> tf.Tensor:
    """Return `total` (N, 1 + height, W, C) with the scores of a row of windows added, whose pixels `band` has."""
    number, classes = tf.shape(band)[0], total.shape[-1]
    windows = tf.size(lefts)
    most = tf.maximum(PIXELS_PER_CALL // (number * window[0] * window[1]), 1)
    # As many in each call, as far as that goes: each batch size is a shape of its own to the kernels.
    calls = (windows + most - 1) // most
    share = (windows + calls - 1) // calls

    def call(first: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        own = lefts[first:first + share]
        crops = tf.gather(band, own[:, None] + tf.range(window[1]), axis=2)
        crops = tf.reshape(tf.transpose(crops, (2, 0, 1, 3, 4)), (-1, window[0], window[1], 3))
        logits = model(crops, training=False)["main"]
        scores = activation(resize(logits, (window[0], window[1]), align_corners))
        scores = tf.reshape(scores, (-1, number, window[0], window[1], classes))

        def add(index: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            left, right = own[index], own[index] + window[1]
            # In place, where adding a padded window would cost a pass over all of them.
            return index + 1, tf.raw_ops.TensorStridedSliceUpdate(
                input=total, begin=tf.stack([0, 1, left]), end=tf.stack([0, 0, right]), strides=[1, 1, 1],
                begin_mask=1, end_mask=3, value=total[:, 1:, left:right] + scores[index])

        _, total = tf.while_loop(lambda index, _: index < tf.size(own), add, (tf.constant(0), total),
                                 parallel_iterations=1)
        return first + share, total

    _, total = tf.while_loop(lambda first, _: first < windows, call, (tf.constant(0), total), parallel_iterations=1)
    return total


def _firsts(length: tf.Tensor, window: tf.Tensor, stride: int) -> tf.Tensor:
    """Return int32 (windows,): the first positions of the windows along a side."""
    windows = (length - window + stride - 1) // stride + 1
    return tf.minimum(tf.range(windows) * stride, length - window)


def _covered(firsts: tf.Tensor, window: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """Return float32 (length,): how many of the windows that begin at `firsts` cover each position of a side."""
    positions = tf.range(length)
    covers = (positions >= firsts[:, None]) & (positions < firsts[:, None] + window)
    return tf.reduce_sum(tf.cast(covers, tf.float32), axis=0)
