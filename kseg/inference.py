"""From a picture to class ids at its own size: the one path that evaluation and prediction share."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from kseg.config import Config
from kseg.models.layers import resize


def normalise(images: tf.Tensor, config: Config) -> tf.Tensor:
    """Return RGB images on the 0..255 scale as float32 with the config's mean and deviation taken out."""
    mean = tf.constant(config.data.mean, tf.float32)
    return (tf.cast(images, tf.float32) - mean) / tf.constant(config.data.std, tf.float32)


def fitted_size(height, width, box):
    """Return the (height, width) that fits a picture into a box of two sides, keeping its ratio (mmcv's rescale_size).

    The picture's longer side may reach the box's longer one and its shorter the shorter, whichever comes first.
    """
    height, width = tf.cast(height, tf.float64), tf.cast(width, tf.float64)
    box = tf.cast(box, tf.float64)
    factor = tf.minimum(tf.reduce_max(box) / tf.maximum(height, width), tf.reduce_min(box) / tf.minimum(height, width))
    # A very long picture keeps at least one pixel across.
    return tuple(tf.maximum(tf.cast(side * factor + 0.5, tf.int32), 1) for side in (height, width))


def predict_ids(model: keras.Model, images: tf.Tensor, size: tuple, config: Config) -> tf.Tensor:
    """Return int32 ids (N, height, width) at `size` for uint8 RGB images (N, H, W, 3), by the whole-image protocol.

    Logits go to the network's input size and then to `size`, as MMSegmentation does; the second step is nothing where
    both agree.
    """
    inputs = tf.cast(images, tf.float32)
    own = tf.shape(images)[1:3]
    if config.evaluate.resize:
        target = fitted_size(own[0], own[1], config.evaluate.resize)
        inputs = tf.round(resize(inputs, target))
        own = tf.stack(target)
    logits = model(normalise(inputs, config), training=False)["main"]
    align_corners = config.model.align_corners
    logits = resize(logits, (own[0], own[1]), align_corners)
    if config.evaluate.resize:
        logits = resize(logits, size, align_corners)
    return tf.argmax(logits, axis=-1, output_type=tf.int32)


def predictor(model: keras.Model, config: Config) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from a uint8 RGB picture (H, W, 3) to its uint8 class ids (H, W), for any size."""

    @tf.function(input_signature=[tf.TensorSpec((1, None, None, 3), tf.uint8)])
    def predict(images: tf.Tensor) -> tf.Tensor:
        size = tf.shape(images)
        return tf.cast(predict_ids(model, images, (size[1], size[2]), config), tf.uint8)

    return lambda image: predict(image[None])[0].numpy()
