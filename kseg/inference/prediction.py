"""Predict scores and class ids of images at any size, the same way for evaluation, prediction and export."""

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

# Maximum number of pixels of an image that the network processes as a whole. The features of an image of this size
# still fit into the memory of a large accelerator.
MAX_WHOLE_PIXELS = 2**26


class Protocol(NamedTuple):
    """The config values that determine the prediction for an image."""

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
    """Fit images into the box evaluate.resize, if it is set, and normalize them.

    Args:
        images: RGB images on the 0..255 scale, of shape (N, H, W, 3).
        protocol: The prediction protocol.

    Returns:
        The network's input, float32 of shape (N, h, w, 3).
    """
    return protocol.normalize(fit_images(images, protocol.evaluate.resize))


def fit_images(images: tf.Tensor, box: tuple[int, ...]) -> tf.Tensor:
    """Resize images to fit into a (height, width) box, as bytes.

    Args:
        images: RGB images on the 0..255 scale, of shape (N, H, W, 3).
        box: (height, width) in pixels; empty to return the images unchanged.

    Returns:
        The resized images, int32 of shape (N, h, w, 3).
    """
    if not box:
        return images
    shape = tf.shape(images)
    return resizing.resize_bytes(images, resizing.fit_size(shape[1], shape[2], box))


class ScalePass(NamedTuple):
    """One forward pass of test-time augmentation: the activation of its logits, and the reversal of its flip."""

    activation: Callable[[tf.Tensor], tf.Tensor] = tf.identity
    unflip: Callable[[tf.Tensor], tf.Tensor] = tf.identity


def _fold_scores(
    model: keras.Model,
    inputs: tf.Tensor,
    normalize_part: Callable[[tf.Tensor], tf.Tensor],
    size: tuple,
    protocol: Protocol,
    scale_pass: ScalePass,
    update: Callable[..., tuple],
    state: tuple,
) -> tuple:
    """Fold the scores at `size` from top to bottom in stripes of rows, and return the final state.

    Args:
        model: Maps normalized images to {"main": logits}.
        inputs: Images of shape (N, H, W, 3).
        normalize_part: Normalizes any part of `inputs`.
        size: (height, width) of the scores.
        protocol: The prediction protocol.
        scale_pass: The activation and the reversal of a flip.
        update: Maps (state, first, last, scores) to the new state, where scores are float32 of shape
            (N, last - first, width, C).
        state: The initial state, a tuple of tensors.
    """
    align_corners, evaluate = protocol.align_corners, protocol.evaluate

    def consume_rows(scores: Rows, complete: tf.Tensor, state: tuple) -> tuple:
        first, *state = state
        last = tiling.complete_rows(scores, size[0], align_corners, complete)
        # MMSegmentation and SSSegmentation both reverse the flip before the last resize.
        unflipped = scores._replace(take=lambda first, last: scale_pass.unflip(scores.take(first, last)))
        resized = tiling.resized_rows(unflipped, size, align_corners)
        return last, *tiling.fold_stripes(resized, first, last, update, tuple(state))

    state = (tf.constant(0), *state)
    if evaluate.window:
        return sliding_window.sliding_window_scores(
            model,
            inputs,
            normalize_part,
            evaluate.window,
            evaluate.stride,
            align_corners,
            scale_pass.activation,
            consume_rows,
            state,
        )[1:]
    scores = tiling.rows_in_memory(scale_pass.activation(model(normalize_part(inputs), training=False)["main"]))
    if evaluate.resize_logits == "twice":
        input_shape = tf.shape(inputs)
        scores = tiling.resized_rows(scores, (input_shape[1], input_shape[2]), align_corners)
    return consume_rows(scores, scores.height, state)[1:]


def _zero_scores(model: keras.Model, images: tf.Tensor, size: tuple) -> tf.Tensor:
    return tf.zeros([tf.shape(images)[0], size[0], size[1], model.output["main"].shape[-1]])


def _add_stripe(state: tuple, first: tf.Tensor, last: tf.Tensor, scores: tf.Tensor) -> tuple:
    (total,) = state
    return (tiling.update_rows(total, first, last, total[:, first:last] + scores),)


def _argmax_stripe(state: tuple, first: tf.Tensor, last: tf.Tensor, scores: tf.Tensor) -> tuple:
    """Write a stripe's class ids, and count its pixels with non-finite scores."""
    ids, non_finite = state
    best = tf.cast(tf.argmax(scores, axis=-1, output_type=tf.int32), tf.uint8)
    finite = tf.reduce_all(tf.math.is_finite(scores), axis=-1)
    # GPUs have a kernel for sums of int64, but not of int32.
    counts = tf.reduce_sum(tf.cast(~finite, tf.int64), axis=(1, 2))
    non_finite += tf.ensure_shape(counts, non_finite.shape)
    return tiling.update_rows(ids, first, last, best), non_finite


def predict_scores(model: keras.Model, images: tf.Tensor, size: tuple, protocol: Protocol) -> tf.Tensor:
    """Predict the scores of each class.

    Scores are logits. With scales or a flip they are the mean over all passes of the quantity in evaluate.average, as
    in the multi-scale tests with flip of MMSegmentation (probabilities) and of SSSegmentation. Only the sum and one
    pass are in memory at a time.

    Args:
        model: Maps normalized images to {"main": logits}.
        images: RGB images on the 0..255 scale, of shape (N, H, W, 3).
        size: (height, width) of the scores.
        protocol: The prediction protocol.

    Returns:
        Scores, float32 of shape (N, height, width, C). The predicted class of a pixel has the largest score.
    """
    evaluate = protocol.evaluate
    if not evaluate.scales and not evaluate.flip:
        state = (_zero_scores(model, images, size),)
        return _fold_scores(
            model,
            fit_images(images, evaluate.resize),
            protocol.normalize,
            size,
            protocol,
            ScalePass(),
            _add_stripe,
            state,
        )[0]
    total, passes = _sum_over_passes(model, images, size, protocol)
    return total / passes


def probabilities(scores: tf.Tensor, evaluate: Evaluate) -> tf.Tensor:
    """Return class probabilities for scores of `predict_scores`.

    Args:
        scores: Scores, float32 of shape (..., C).
        evaluate: The settings that the scores were predicted with.

    Returns:
        Probabilities of the same shape. Scores that are a mean of probabilities are returned unchanged.
    """
    are_probabilities = (evaluate.scales or evaluate.flip) and evaluate.average != "logits"
    return scores if are_probabilities else tf.nn.softmax(scores)


def _sum_over_passes(model: keras.Model, images: tf.Tensor, size: tuple, protocol: Protocol) -> tuple[tf.Tensor, int]:
    """Return the sum of the scores over all scales and flips, (N, height, width, C), and the number of passes."""
    evaluate = protocol.evaluate
    factors = evaluate.scales or (1.0,)
    scales = tf.constant(factors, tf.float64)
    passes_per_scale = 2 if evaluate.flip else 1
    activation = tf.nn.softmax if evaluate.average == "before resizing" else tf.identity

    def update(state: tuple, first: tf.Tensor, last: tf.Tensor, scores: tf.Tensor) -> tuple:
        return _add_stripe(state, first, last, tf.nn.softmax(scores) if evaluate.average == "probabilities" else scores)

    def add_pass(number: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        is_flipped = tf.equal(number % passes_per_scale, 1)

        def flip_if_needed(maps: tf.Tensor) -> tf.Tensor:
            return tf.cond(is_flipped, lambda: tf.reverse(maps, [2]), lambda: maps)

        inputs = flip_if_needed(scaled_input(images, tf.gather(scales, number // passes_per_scale), protocol))
        inputs = tf.ensure_shape(inputs, (None, None, None, 3))
        (total,) = _fold_scores(
            model, inputs, tf.identity, size, protocol, ScalePass(activation, flip_if_needed), update, (total,)
        )
        return number + 1, total

    passes = passes_per_scale * len(factors)
    _, total = tf.while_loop(
        lambda number, _: number < passes,
        add_pass,
        (tf.constant(0), _zero_scores(model, images, size)),
        parallel_iterations=1,
    )
    return total, passes


def scaled_input(images: tf.Tensor, factor: tf.Tensor, protocol: Protocol) -> tf.Tensor:
    """Scale and normalize images for one pass of a multi-scale test.

    With evaluate.scale_of "picture" the factor applies to the size of the images, which are resized as bytes. With
    "input" it applies to the normalized input, which is resized as floats.

    Args:
        images: RGB images on the 0..255 scale, of shape (N, H, W, 3).
        factor: Scale factor, float64 scalar.
        protocol: The prediction protocol.

    Returns:
        The network's input, float32 of shape (N, h, w, 3).
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
            # The maximum avoids a division by zero: a side of one position takes the first one.
            step = tf.cast(length - 1, tf.float64) / tf.cast(tf.maximum(target - 1, 1), tf.float64)
            positions = tf.cast(tf.range(target), tf.float64) * step
        else:
            # PyTorch's interpolate(scale_factor=) uses the factor itself, not the ratio of the rounded sizes.
            positions = tf.maximum((tf.cast(tf.range(target), tf.float64) + 0.5) / factor - 0.5, 0)
        lower = tf.minimum(tf.cast(positions, tf.int32), length - 1)
        fraction = tf.cast(positions - tf.cast(lower, tf.float64), tf.float32)
        fraction = fraction[:, None, None] if axis == 1 else fraction[:, None]
        inputs = (
            tf.gather(inputs, lower, axis=axis) * (1 - fraction)
            + tf.gather(inputs, tf.minimum(lower + 1, length - 1), axis=axis) * fraction
        )
    return inputs


def predict_checked(
    model: keras.Model, images: tf.Tensor, size: tuple, protocol: Protocol
) -> tuple[tf.Tensor, tf.Tensor]:
    """Predict class ids, and count the pixels with non-finite scores.

    Full-size scores are computed in stripes of rows, and sliding windows in rows of windows. The network's output for
    whole images, and the sum over scales and flips of shape (N, height, width, C), are in memory as a whole.

    Args:
        model: Maps normalized images to {"main": logits}.
        images: RGB images, uint8 of shape (N, H, W, 3).
        size: (height, width) of the class ids.
        protocol: The prediction protocol.

    Returns:
        Class ids, int32 of shape (N, height, width), and for each image the number of pixels with a non-finite score,
        int32 of shape (N,). The id of such a pixel is meaningless.
    """
    evaluate = protocol.evaluate
    number, (height, width) = tf.shape(images)[0], size
    # Ids are kept as uint8, because labels are uint8 and GPUs cannot update int32 rows in place.
    state = (tf.zeros([number, height, width], tf.uint8), tf.zeros([number], tf.int64))
    if evaluate.scales or evaluate.flip:
        total, passes = _sum_over_passes(model, images, size, protocol)
        maps = tiling.rows_in_memory(total)
        maps = maps._replace(take=lambda first, last: total[:, first:last] / passes)
        ids, non_finite = tiling.fold_stripes(maps, tf.constant(0), maps.height, _argmax_stripe, state)
    else:
        ids, non_finite = _fold_scores(
            model,
            fit_images(images, evaluate.resize),
            protocol.normalize,
            size,
            protocol,
            ScalePass(),
            _argmax_stripe,
            state,
        )
    return tf.cast(ids, tf.int32), tf.cast(non_finite, tf.int32)


def predict_ids(model: keras.Model, images: tf.Tensor, size: tuple, protocol: Protocol) -> tf.Tensor:
    """Predict class ids.

    Args:
        model: Maps normalized images to {"main": logits}.
        images: RGB images, uint8 of shape (N, H, W, 3).
        size: (height, width) of the class ids.
        protocol: The prediction protocol.

    Returns:
        Class ids, int32 of shape (N, height, width).
    """
    return predict_checked(model, images, size, protocol)[0]


def require_size(height: int, width: int, evaluate: Evaluate) -> None:
    """Raise DataError if an image is too large for the network without sliding windows.

    Args:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        evaluate: The prediction settings.
    """
    if evaluate.window:
        return
    factor = max(evaluate.scales, default=1.0)
    if evaluate.scales and evaluate.scale_of == "picture":
        input_height, input_width = height * factor, width * factor
    else:
        input_height, input_width = height, width
        if evaluate.resize:
            input_height, input_width = (int(side) for side in resizing.fit_size(height, width, evaluate.resize))
        input_height, input_width = input_height * factor, input_width * factor
    if input_height * input_width > MAX_WHOLE_PIXELS:
        raise DataError(
            f"an image of {width} x {height} pixels gives the network {input_width:.0f} x {input_height:.0f} at once, "
            f"more than {MAX_WHOLE_PIXELS} pixels; use sliding windows: "
            "--set evaluate.window=769,769 evaluate.stride=513,513"
        )


def require_finite(non_finite: int, pixels: int) -> None:
    """Raise DataError if any of an image's pixels have non-finite scores.

    Args:
        non_finite: Number of pixels with non-finite scores.
        pixels: Number of pixels of the image.
    """
    if non_finite:
        raise DataError(f"the scores of {non_finite:,} of {pixels:,} pixels are nan or infinite; check the weights")


def predictor(model: keras.Model, protocol: Protocol) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that predicts the class ids of one image of any size.

    Args:
        model: Maps normalized images to {"main": logits}.
        protocol: The prediction protocol.

    Returns:
        A function from an RGB image, uint8 of shape (H, W, 3), to its class ids, uint8 of shape (H, W). It raises
        DataError if the image is too large for the network, or if scores are not finite.

    Example:
        >>> import numpy as np
        >>> from kseg.inference import trained_model
        >>> model, config, _ = trained_model.load_trained(workdir)
        >>> predict = predictor(model, protocol_of(config))
        >>> predict(np.zeros((48, 64, 3), np.uint8)).shape
        (48, 64)
    """

    @tf.function(input_signature=[tf.TensorSpec((1, None, None, 3), tf.uint8)], autograph=False)
    def predict(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        size = tf.shape(images)
        ids, non_finite = predict_checked(model, images, (size[1], size[2]), protocol)
        return tf.cast(ids[0], tf.uint8), non_finite[0]

    def predict_image(image: np.ndarray) -> np.ndarray:
        require_size(*image.shape[:2], protocol.evaluate)
        ids, non_finite = (result.numpy() for result in predict(image[None]))
        require_finite(int(non_finite), ids.size)
        return ids

    return predict_image
