"""Slide windows over an image of any size, keeping only one row of windows and the unfinished rows in memory."""

from collections.abc import Callable

import keras
import tensorflow as tf

from kseg.inference.tiling import Rows
from kseg.models.layers import resize

# Maximum number of window pixels in one call of the model: as many as a Cityscapes image has, which the protocol for
# whole images needs as well.
PIXELS_PER_CALL = 2**21


def sliding_window_scores(
    model: keras.Model,
    inputs: tf.Tensor,
    normalize: Callable[[tf.Tensor], tf.Tensor],
    window_size: tuple[int, ...],
    stride: tuple[int, ...],
    align_corners: bool,
    activation: Callable[[tf.Tensor], tf.Tensor],
    consume_rows: Callable[..., tuple],
    state: tuple,
) -> tuple:
    """Average the scores of overlapping windows, and pass the rows to a callback.

    Windows are placed as in MMSegmentation's slide_inference: the last windows of a side are shifted back into
    the image, and a window is never larger than the image. The sum over windows has the height of one window and the
    width of the image.

    Args:
        model: Maps normalized images to {"main": logits}.
        inputs: Images of shape (N, H, W, 3).
        normalize: Normalizes a band of `inputs`; called for one row of windows at a time.
        window_size: (height, width) of a window.
        stride: (height, width) of the step between windows.
        align_corners: Passed to the resize of the logits to their window.
        activation: Applied to the resized logits of a window.
        consume_rows: Maps (rows, complete, state) to the new state after each row of windows. `rows` are the scores of
            shape (N, H, W, C), averaged over the windows that cover each pixel. Rows above `complete` are final; only
            those from the previous call's `complete` - 1 on can still be taken.
        state: The initial state, a tuple of tensors.

    Returns:
        The final state.
    """
    shape = tf.shape(inputs)
    length, classes = shape[1:3], model.output["main"].shape[-1]
    window = tf.minimum(tf.constant(window_size), length)
    tops, lefts = (_window_starts(length[axis], window[axis], stride[axis]) for axis in (0, 1))
    ends = tf.concat([tops[1:], length[:1]], 0)
    down, across = (_coverage(starts, window[axis], length[axis]) for axis, starts in enumerate((tops, lefts)))

    def process_window_row(number: tf.Tensor, total: tf.Tensor, *state: tf.Tensor) -> tuple:
        top, complete = tops[number], ends[number]
        # The sum includes one row above the windows, because a resize may interpolate between it and their first row.
        total = tf.pad(total, [[0, 0], [0, window[0] + 1 - tf.shape(total)[1]], [0, 0], [0, 0]])
        band = normalize(inputs[:, top : top + window[0]])
        total = _add_window_row(model, band, lefts, window, align_corners, activation, total)

        def take(first: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
            return total[:, first - top + 1 : last - top + 1] / (down[first:last, None, None] * across[:, None])

        state = consume_rows(Rows(length[0], length[1], shape[0] * length[1] * classes, take), complete, state)
        return number + 1, total[:, complete - top :], *state

    total = tf.zeros([shape[0], 1, length[1], classes])
    shapes = [tf.TensorShape([]), tf.TensorShape([None, None, None, classes]), *(part.shape for part in state)]
    _, _, *state = tf.while_loop(
        lambda number, *_: number < tf.size(tops),
        process_window_row,
        (tf.constant(0), total, *state),
        shape_invariants=tuple(shapes),
        parallel_iterations=1,
    )
    return tuple(state)


def _add_window_row(
    model: keras.Model,
    band: tf.Tensor,
    lefts: tf.Tensor,
    window: tf.Tensor,
    align_corners: bool,
    activation: Callable[[tf.Tensor], tf.Tensor],
    total: tf.Tensor,
) -> tf.Tensor:
    """Add the scores of one row of windows to their sum.

    Args:
        band: Normalized pixels of the row of windows, float32 of shape (N, height, W, 3).
        lefts: First column of each window, int32 of shape (windows,).
        window: (height, width) of a window, int32 of shape (2,).
        total: The sum, float32 of shape (N, 1 + height, W, C).
    """
    number, classes = tf.shape(band)[0], total.shape[-1]
    windows = tf.size(lefts)
    max_per_call = tf.maximum(PIXELS_PER_CALL // (number * window[0] * window[1]), 1)
    # Windows are spread evenly over the calls, because kernels are tuned anew for every batch size.
    calls = (windows + max_per_call - 1) // max_per_call
    per_call = (windows + calls - 1) // calls

    def add_call(first: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        call_lefts = lefts[first : first + per_call]
        crops = tf.gather(band, call_lefts[:, None] + tf.range(window[1]), axis=2)
        crops = tf.reshape(tf.transpose(crops, (2, 0, 1, 3, 4)), (-1, window[0], window[1], 3))
        logits = model(crops, training=False)["main"]
        scores = activation(resize(logits, (window[0], window[1]), align_corners))
        scores = tf.reshape(scores, (-1, number, window[0], window[1], classes))

        def add_window(index: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            left, right = call_lefts[index], call_lefts[index] + window[1]
            # The update is in place; adding a padded window would read and write the whole sum.
            return index + 1, tf.raw_ops.TensorStridedSliceUpdate(
                input=total,
                begin=tf.stack([0, 1, left]),
                end=tf.stack([0, 0, right]),
                strides=[1, 1, 1],
                begin_mask=1,
                end_mask=3,
                value=total[:, 1:, left:right] + scores[index],
            )

        _, total = tf.while_loop(
            lambda index, _: index < tf.size(call_lefts), add_window, (tf.constant(0), total), parallel_iterations=1
        )
        return first + per_call, total

    _, total = tf.while_loop(lambda first, _: first < windows, add_call, (tf.constant(0), total), parallel_iterations=1)
    return total


def _window_starts(length: tf.Tensor, window: tf.Tensor, stride: int) -> tf.Tensor:
    """Return the first position of each window along a side, int32 of shape (windows,)."""
    windows = (length - window + stride - 1) // stride + 1
    return tf.minimum(tf.range(windows) * stride, length - window)


def _coverage(starts: tf.Tensor, window: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """Return the number of windows that cover each position of a side, float32 of shape (length,)."""
    positions = tf.range(length)
    covers = (positions >= starts[:, None]) & (positions < starts[:, None] + window)
    return tf.reduce_sum(tf.cast(covers, tf.float32), axis=0)
