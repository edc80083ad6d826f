"""From a picture to class ids at its own size: the one path that evaluation and prediction share."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from kseg.config import Config
from kseg.config.sections import Evaluate
from kseg.errors import DataError
from kseg.images import resizing
from kseg.inference import sliding_window, tiling
from kseg.inference.tiling import Rows

# Pixels up to which the network looks at a picture as a whole. The features of a picture of this size still fit into
# the memory of a large accelerator.
LARGEST = 2**26


class Protocol(NamedTuple):
    """The config values that decide what a model predicts for an image."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    evaluate: Evaluate
    align_corners: bool

    def normalize(self, images: tf.Tensor) -> tf.Tensor:
        """Return the network's float32 input for RGB images on the 0..255 scale."""
        return resizing.normalize(images, self.mean, self.std)


def protocol_of(config: Config) -> Protocol:
    """Return the config's prediction protocol."""
    return Protocol(config.data.mean, config.data.std, config.evaluate, config.model.align_corners)


def preprocess(images: tf.Tensor, protocol: Protocol) -> tf.Tensor:
    """Return the network's input, normalised float32, for RGB images 0..255 (N, H, W, 3).

    Where evaluate.resize says so they are fitted into its box first, as bytes.
    """
    return protocol.normalize(fit_images(images, protocol.evaluate.resize))


def fit_images(images: tf.Tensor, box: tuple[int, ...]) -> tf.Tensor:
    """Return RGB images 0..255 (N, H, W, 3) fitted into a (height, width) box, int32; an empty box changes nothing."""
    if not box:
        return images
    shape = tf.shape(images)
    return resizing.resize_bytes(images, resizing.fit_size(shape[1], shape[2], box))


class ScalePass(NamedTuple):
    """One look of the network at a picture: what activates its logits, and what mirrors scores back."""

    activation: Callable[[tf.Tensor], tf.Tensor] = tf.identity
    turned: Callable[[tf.Tensor], tf.Tensor] = tf.identity


def _each_stripe(model: keras.Model, inputs: tf.Tensor, normalise_part: Callable[[tf.Tensor], tf.Tensor], size: tuple,
                 protocol: Protocol, look: ScalePass, use: Callable[..., tuple], state: tuple) -> tuple:
    """Return the state after `state = use(state, first, last, scores)` of each stripe of rows at `size`, top to bottom.

    `normalise_part` makes the network's input of any part of `inputs` (N, H, W, 3). Scores are activated logits by
    `protocol`, float32 (N, last - first, width, C).
    """
    align_corners, evaluate = protocol.align_corners, protocol.evaluate

    def finish(scores: Rows, known: tf.Tensor, state: tuple) -> tuple:
        first, *state = state
        last = tiling.settled_rows(scores, size[0], align_corners, known)
        # Mirrored back where both systems do it, before the last resize.
        turned = scores._replace(take=lambda first, last: look.turned(scores.take(first, last)))
        final = tiling.resized_rows(turned, size, align_corners)
        return last, *tiling.fold_stripes(final, first, last, use, tuple(state))

    state = (tf.constant(0), *state)
    if evaluate.window:
        return sliding_window.sliding_window_scores(model, inputs, normalise_part, evaluate.window, evaluate.stride,
                                                    align_corners, look.activation, finish, state)[1:]
    scores = tiling.rows_in_memory(look.activation(model(normalise_part(inputs), training=False)["main"]))
    if evaluate.resize_logits == "twice":
        own = tf.shape(inputs)
        scores = tiling.resized_rows(scores, (own[1], own[2]), align_corners)
    return finish(scores, scores.height, state)[1:]


def _empty(model: keras.Model, images: tf.Tensor, size: tuple) -> tf.Tensor:
    """Return zeros for scores at `size`."""
    return tf.zeros([tf.shape(images)[0], size[0], size[1], model.output["main"].shape[-1]])


def _add(state: tuple, first: tf.Tensor, last: tf.Tensor, scores: tf.Tensor) -> tuple:
    """Add a stripe to the sum of scores."""
    total, = state
    return tiling.update_rows(total, first, last, total[:, first:last] + scores),


def _choose(state: tuple, first: tf.Tensor, last: tf.Tensor, scores: tf.Tensor) -> tuple:
    """Write a stripe's best classes, and count the pixels for which there is none because scores are not finite."""
    ids, unsure = state
    best = tf.cast(tf.argmax(scores, axis=-1, output_type=tf.int32), tf.uint8)
    finite = tf.reduce_all(tf.math.is_finite(scores), axis=-1)
    # GPUs sum up int64, but leave int32 to the CPU.
    unsure += tf.ensure_shape(tf.reduce_sum(tf.cast(~finite, tf.int64), axis=(1, 2)), unsure.shape)
    return tiling.update_rows(ids, first, last, best), unsure


def predict_scores(model: keras.Model, images: tf.Tensor, size: tuple, protocol: Protocol) -> tf.Tensor:
    """Return the float32 scores (N, height, width, C) at `size` whose largest is the class, for RGB images 0..255.

    Logits, or where the protocol has scales or mirrors, the mean over all of them of what it averages (the
    multi-scale tests with flip of MMSegmentation, which averages probabilities, and of SSSegmentation). One pass is in
    memory at a time, besides the sum of all.
    """
    settings = protocol.evaluate
    if not settings.scales and not settings.flip:
        state = (_empty(model, images, size),)
        return _each_stripe(model, fit_images(images, settings.resize), protocol.normalize, size, protocol,
                            ScalePass(), _add, state)[0]
    total, passes = _sum(model, images, size, protocol)
    return total / passes


def probabilities(scores: tf.Tensor, evaluate: Evaluate) -> tf.Tensor:
    """Return the classes' probabilities for `predict_scores`' (..., C): where those are a mean of them, they stay."""
    averaged = (evaluate.scales or evaluate.flip) and evaluate.average != "logits"
    return scores if averaged else tf.nn.softmax(scores)


def _sum(model: keras.Model, images: tf.Tensor, size: tuple, protocol: Protocol) -> tuple[tf.Tensor, int]:
    """Return the sum of the scores (N, height, width, C) over all scales and mirrors, and how many they are."""
    settings = protocol.evaluate
    scales = tf.constant(settings.scales or (1.0,), tf.float64)
    ways = 2 if settings.flip else 1
    activation = tf.nn.softmax if settings.average == "before resizing" else tf.identity

    def add(state: tuple, first: tf.Tensor, last: tf.Tensor, scores: tf.Tensor) -> tuple:
        return _add(state, first, last, tf.nn.softmax(scores) if settings.average == "probabilities" else scores)

    def look(number: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        mirrored = tf.equal(number % ways, 1)

        def turned(maps: tf.Tensor) -> tf.Tensor:
            return tf.cond(mirrored, lambda: tf.reverse(maps, [2]), lambda: maps)

        inputs = turned(scaled_input(images, tf.gather(scales, number // ways), protocol))
        inputs = tf.ensure_shape(inputs, (None, None, None, 3))
        total, = _each_stripe(model, inputs, tf.identity, size, protocol, ScalePass(activation, turned), add, (total,))
        return number + 1, total

    passes = ways * len(scales)
    _, total = tf.while_loop(lambda number, _: number < passes, look, (tf.constant(0), _empty(model, images, size)),
                             parallel_iterations=1)
    return total, passes


def scaled_input(images: tf.Tensor, factor: tf.Tensor, protocol: Protocol) -> tf.Tensor:
    """Return the network's normalised input for RGB images 0..255 (N, H, W, 3) at a float64 factor of their size.

    evaluate.scale_of says of which: the pictures' own, which are resized as bytes, or the input's, whose numbers
    are.
    """
    if not protocol.evaluate.scales:
        return preprocess(images, protocol)
    shape = tf.shape(images)
    if protocol.evaluate.scale_of == "picture":
        box = tf.cast(tf.cast(shape[1:3], tf.float64) * factor + 0.5, tf.int32)
        return protocol.normalize(resizing.resize_bytes(images, resizing.fit_size(shape[1], shape[2], box)))
    inputs = preprocess(images, protocol)
    for axis in (1, 2):
        length = tf.shape(inputs)[axis]
        target = tf.maximum(tf.cast(tf.cast(length, tf.float64) * factor, tf.int32), 1)
        if protocol.align_corners:
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


def predict_checked(model: keras.Model, images: tf.Tensor, size: tuple,
                    protocol: Protocol) -> tuple[tf.Tensor, tf.Tensor]:
    """Return int32 class ids (N, height, width) at `size` and, int32 (N,), how many of their pixels have no class.

    They have none where one of the scores is not finite, and their id means nothing. For uint8 RGB images (N, H, W, 3),
    by `protocol`. Of float maps only a stripe of rows is in memory, and of sliding windows a row of them; but the
    network's output for whole pictures, and the sum over scales and mirrors (N, height, width, C), are in memory as a
    whole.
    """
    settings = protocol.evaluate
    number, (height, width) = tf.shape(images)[0], size
    # Bytes, since labels are bytes; and GPUs write them in place, but leave int32 to the CPU.
    state = (tf.zeros([number, height, width], tf.uint8), tf.zeros([number], tf.int64))
    if settings.scales or settings.flip:
        total, passes = _sum(model, images, size, protocol)
        maps = tiling.rows_in_memory(total)
        maps = maps._replace(take=lambda first, last: total[:, first:last] / passes)
        ids, unsure = tiling.fold_stripes(maps, tf.constant(0), maps.height, _choose, state)
    else:
        ids, unsure = _each_stripe(model, fit_images(images, settings.resize), protocol.normalize, size, protocol,
                                   ScalePass(), _choose, state)
    return tf.cast(ids, tf.int32), tf.cast(unsure, tf.int32)


def predict_ids(model: keras.Model, images: tf.Tensor, size: tuple, protocol: Protocol) -> tf.Tensor:
    """Return int32 class ids (N, height, width) at `size` for uint8 RGB images (N, H, W, 3), by `protocol`."""
    return predict_checked(model, images, size, protocol)[0]


def require_size(height: int, width: int, evaluate: Evaluate) -> None:
    """Raise DataError where a picture would be larger than the network can look at as a whole, unless windows slide."""
    if evaluate.window:
        return
    factor = max(evaluate.scales, default=1.0)
    if evaluate.scales and evaluate.scale_of == "picture":
        own_height, own_width = height * factor, width * factor
    else:
        own_height, own_width = height, width
        if evaluate.resize:
            own_height, own_width = (int(side) for side in resizing.fit_size(height, width, evaluate.resize))
        own_height, own_width = own_height * factor, own_width * factor
    if own_height * own_width > LARGEST:
        raise DataError(
            f"a picture of {width} x {height} pixels gives the network {own_width:.0f} x {own_height:.0f} at once, "
            f"more than {LARGEST} pixels; let windows slide over it: "
            "--set evaluate.window=769,769 evaluate.stride=513,513")


def require_finite(unsure: int, pixels: int) -> None:
    """Raise DataError where so many of a picture's pixels have no class, because scores are nan or infinite."""
    if unsure:
        raise DataError(f"the scores of {unsure:,} of {pixels:,} pixels are nan or infinite; look at the weights")


def predictor(model: keras.Model, protocol: Protocol) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from a uint8 RGB picture (H, W, 3) to its uint8 class ids (H, W), for any size.

    It raises DataError where the picture is larger than the network can look at as a whole, and where scores are not
    finite.
    """

    @tf.function(input_signature=[tf.TensorSpec((1, None, None, 3), tf.uint8)])
    def predict(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        size = tf.shape(images)
        ids, bad = predict_checked(model, images, (size[1], size[2]), protocol)
        return tf.cast(ids[0], tf.uint8), bad[0]

    def predict_picture(image: np.ndarray) -> np.ndarray:
        require_size(*image.shape[:2], protocol.evaluate)
        ids, bad = (result.numpy() for result in predict(image[None]))
        require_finite(int(bad), ids.size)
        return ids

    return predict_picture
