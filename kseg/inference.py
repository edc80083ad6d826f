"""From a picture to class ids at its own size: the one path that evaluation and prediction share."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from kseg.config import Config
from kseg.models.layers import resize


def normalise(images: tf.Tensor, config: Config) -> tf.Tensor:
    """Return RGB images on the 0..255 scale as float32 with the config's mean and deviation taken out."""
    mean, std = (tf.constant(values, tf.float32) for values in (config.data.mean, config.data.std))
    # Row by row: TensorFlow takes five times as long over three numbers at a time.
    shape = tf.shape(images)
    rows = tf.reshape(tf.cast(images, tf.float32), (-1, 3 * shape[-2]))
    rows = (rows - tf.tile(mean, shape[-2:-1])) / tf.tile(std, shape[-2:-1])
    return tf.ensure_shape(tf.reshape(rows, shape), images.shape)


def fitted_size(height, width, box):
    """Return the (height, width) that fits a picture into a box of two sides, keeping its ratio (mmcv's rescale_size).

    The picture's longer side may reach the box's longer one and its shorter the shorter, whichever comes first.
    """
    height, width = tf.cast(height, tf.float64), tf.cast(width, tf.float64)
    box = tf.cast(box, tf.float64)
    factor = tf.minimum(tf.reduce_max(box) / tf.maximum(height, width), tf.reduce_min(box) / tf.minimum(height, width))
    # A very long picture keeps at least one pixel across.
    return tuple(tf.maximum(tf.cast(side * factor + 0.5, tf.int32), 1) for side in (height, width))


def prepare(images: tf.Tensor, config: Config) -> tf.Tensor:
    """Return the network's input, normalised float32, for RGB images 0..255 (N, H, W, 3).

    Where evaluate.resize says so they are fitted into its box first, as bytes.
    """
    if config.evaluate.resize:
        shape = tf.shape(images)
        images = resize_bytes(images, fitted_size(shape[1], shape[2], config.evaluate.resize))
    return normalise(images, config)


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


def predict_logits(model: keras.Model, inputs: tf.Tensor, size: tuple, config: Config) -> tf.Tensor:
    """Return float32 logits (N, height, width, C) at `size` for normalised images (N, H, W, 3) of any size.

    The protocol is config.evaluate's: the whole picture or sliding windows, logits resized by way of the input's size
    or straight (MMSegmentation's and SSSegmentation's slide and whole inference). Windows give logits at the input's
    size anyhow.
    """
    return _resized(_own_scores(model, inputs, config, tf.identity), size, config)


def _own_scores(model: keras.Model, inputs: tf.Tensor, config: Config,
                activation: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """Return the scores (N, h, w, C), activated logits, at the size that config.evaluate's protocol itself gives."""
    if config.evaluate.window:
        return slide(model, inputs, config, activation)
    scores = activation(model(inputs, training=False)["main"])
    if config.evaluate.resize_logits == "once":
        return scores
    own = tf.shape(inputs)
    return resize(scores, (own[1], own[2]), config.model.align_corners)


def _resized(logits: tf.Tensor, size: tuple, config: Config) -> tf.Tensor:
    """Return maps (N, h, w, C) resized bilinearly to `size`."""
    # Most often the sizes agree, and a copy of the largest tensor of all is saved.
    same = tf.reduce_all(tf.equal(tf.shape(logits)[1:3], tf.stack(size)))
    resized = tf.cond(same, lambda: logits, lambda: resize(logits, size, config.model.align_corners))
    return tf.ensure_shape(resized, (None, None, None, logits.shape[-1]))


def predict_scores(model: keras.Model, images: tf.Tensor, size: tuple, config: Config) -> tf.Tensor:
    """Return the float32 scores (N, height, width, C) at `size` whose largest is the class, for RGB images 0..255.

    Logits, or where config.evaluate has scales or mirrors, the mean over all of them of what it averages (the
    multi-scale tests with flip of MMSegmentation, which averages probabilities, and of SSSegmentation). One pass is in
    memory at a time, besides the sum of all.
    """
    settings = config.evaluate
    if not settings.scales and not settings.flip:
        return predict_logits(model, prepare(images, config), size, config)
    scales = tf.constant(settings.scales or (1.0,), tf.float64)
    ways = 2 if settings.flip else 1
    activation = tf.nn.softmax if settings.average == "before resizing" else tf.identity

    def add(number: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        mirrored = tf.equal(number % ways, 1)

        def turned(maps: tf.Tensor) -> tf.Tensor:
            return tf.cond(mirrored, lambda: tf.reverse(maps, [2]), lambda: maps)

        inputs = turned(scaled_input(images, tf.gather(scales, number // ways), config))
        # Mirrored back where both systems do it, before the last resize.
        scores = turned(_own_scores(model, tf.ensure_shape(inputs, (None, None, None, 3)), config, activation))
        scores = _resized(scores, size, config)
        return number + 1, total + (tf.nn.softmax(scores) if settings.average == "probabilities" else scores)

    classes = model.output["main"].shape[-1]
    passes = ways * len(scales)
    total = tf.zeros([tf.shape(images)[0], size[0], size[1], classes])
    _, total = tf.while_loop(
        lambda number, total: number < passes, add, (tf.constant(0), total), parallel_iterations=1,
        shape_invariants=(tf.TensorShape([]), tf.TensorShape([None, None, None, classes])))
    return total / passes


def scaled_input(images: tf.Tensor, factor: tf.Tensor, config: Config) -> tf.Tensor:
    """Return the network's normalised input for RGB images 0..255 (N, H, W, 3) at a float64 factor of their size.

    config.evaluate.scale_of says of which: the pictures' own, which are resized as bytes, or the input's, whose numbers
    are.
    """
    if not config.evaluate.scales:
        return prepare(images, config)
    shape = tf.shape(images)
    if config.evaluate.scale_of == "picture":
        box = tf.cast(tf.cast(shape[1:3], tf.float64) * factor + 0.5, tf.int32)
        return normalise(resize_bytes(images, fitted_size(shape[1], shape[2], box)), config)
    inputs = prepare(images, config)
    for axis in (1, 2):
        length = tf.shape(inputs)[axis]
        target = tf.maximum(tf.cast(tf.cast(length, tf.float64) * factor, tf.int32), 1)
        if config.model.align_corners:
            # A side of one position takes the first.
            step = tf.cast(length - 1, tf.float64) / tf.cast(tf.maximum(target - 1, 1), tf.float64)
            positions = tf.cast(tf.range(target), tf.float64) * step
        else:
            # By the factor itself, whatever size it is rounded to, as PyTorch does where it is given a factor.
            positions = tf.maximum((tf.cast(tf.range(target), tf.float64) + 0.5) / factor - 0.5, 0)
        below = tf.minimum(tf.cast(positions, tf.int32), length - 1)
        share = tf.cast(positions - tf.cast(below, tf.float64), tf.float32)
        share = share[:, None, None] if axis == 1 else share[:, None]
        inputs = (tf.gather(inputs, below, axis=axis) * (1 - share)
                  + tf.gather(inputs, tf.minimum(below + 1, length - 1), axis=axis) * share)
    return inputs


def slide(model: keras.Model, inputs: tf.Tensor, config: Config,
          activation: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """Return float32 scores (N, H, W, C) for images (N, H, W, 3): each pixel's mean over the windows that cover it.

    They are the model's logits, activated once they are resized to their window.

    Windows lie evaluate.stride apart; the last ones are shifted back into the picture, and where the picture is smaller
    than a window, the window is as small. One window is in memory at a time, besides the sum of all.
    """
    length = tf.shape(inputs)[1:3]
    window = tf.minimum(tf.constant(config.evaluate.window), length)
    step = tf.constant(config.evaluate.stride)
    grid = (length - window + step - 1) // step + 1
    rows, columns = (tf.minimum(tf.range(grid[axis]) * step[axis], length[axis] - window[axis]) for axis in (0, 1))

    def add(index: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        top, left = rows[index // grid[1]], columns[index % grid[1]]
        bottom, right = top + window[0], left + window[1]
        logits = model(inputs[:, top:bottom, left:right], training=False)["main"]
        scores = activation(resize(logits, (window[0], window[1]), config.model.align_corners))
        # In place, where adding a padded window would cost a pass over the whole picture.
        total = tf.raw_ops.TensorStridedSliceUpdate(
            input=total, begin=[0, top, left], end=[0, bottom, right], strides=[1, 1, 1], begin_mask=1, end_mask=1,
            value=total[:, top:bottom, left:right] + scores)
        return index + 1, total

    classes = model.output["main"].shape[-1]
    total = tf.zeros([tf.shape(inputs)[0], length[0], length[1], classes])
    _, total = tf.while_loop(
        lambda index, total: index < grid[0] * grid[1], add, (tf.constant(0), total), parallel_iterations=1,
        shape_invariants=(tf.TensorShape([]), tf.TensorShape([None, None, None, classes])))
    covered = [tf.reduce_sum(tf.cast(_covers(firsts, window[axis], length[axis]), tf.float32), axis=0)
               for axis, firsts in enumerate((rows, columns))]
    return total / (covered[0][:, None, None] * covered[1][:, None])


def _covers(firsts: tf.Tensor, window: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """Return bool (windows, length): which positions the windows cover that begin at `firsts`."""
    positions = tf.range(length)
    return (positions >= firsts[:, None]) & (positions < firsts[:, None] + window)


def predict_ids(model: keras.Model, images: tf.Tensor, size: tuple, config: Config) -> tf.Tensor:
    """Return int32 class ids (N, height, width) at `size` for uint8 RGB images (N, H, W, 3), by config.evaluate."""
    return tf.argmax(predict_scores(model, images, size, config), axis=-1, output_type=tf.int32)


def predictor(model: keras.Model, config: Config) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from a uint8 RGB picture (H, W, 3) to its uint8 class ids (H, W), for any size."""

    @tf.function(input_signature=[tf.TensorSpec((1, None, None, 3), tf.uint8)])
    def predict(images: tf.Tensor) -> tf.Tensor:
        size = tf.shape(images)
        return tf.cast(predict_ids(model, images, (size[1], size[2]), config), tf.uint8)

    return lambda image: predict(image[None])[0].numpy()
