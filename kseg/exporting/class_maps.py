"""Define the graph of the formats other than the SavedModel: from uint8 images to class maps, without control flow.

    image uint8 [N, H, W, 3], RGB -> class_map uint8 [N, H, W]

It has the operations that converters know. The SavedModel's signatures compute the same in stripes of rows.
"""

import keras
import numpy as np
import tensorflow as tf

from kseg import models
from kseg.exporting.plain_layers import PLAIN_CLASSES
from kseg.images import resizing
from kseg.inference.prediction import Protocol
from kseg.models import folding
from kseg.models.layers import resize


def plain_network(model: keras.Model) -> keras.Model:
    """Return a copy of a model's main head whose operations every converter knows, with folded batch norms."""
    return folding.fold_batch_norms(models.main_only(model), PLAIN_CLASSES)


class ClassMaps(tf.Module):
    """Hold the function from images to class maps, to be converted.

    Args:
        network: A network of `plain_network`.
        protocol: The test protocol, of whole images at one scale. It may resize images if `size` is given.
        size: (height, width) of the images in pixels; None if they may have any size.

    Attributes:
        function: A function of `image`; it is converted and not called, because TensorFlow lacks CPU kernels for it.
    """

    def __init__(self, network: keras.Model, protocol: Protocol, size: tuple[int, int] | None):
        super().__init__()
        self.network, self.protocol, self.size = network, protocol, size
        self.values = [
            [variable.numpy() for variable in variables]
            for variables in (network.trainable_variables, network.non_trainable_variables)
        ]
        self.input_size = size
        if size and protocol.evaluate.resize:
            self.input_size = tuple(int(side) for side in resizing.fit_size(*size, protocol.evaluate.resize))
        image = tf.TensorSpec((None, *(size or (None, None)), 3), tf.uint8, name="image")
        self.function = tf.function(self._class_map, input_signature=[image], autograph=False)

    def _class_map(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        fitted = image if self.input_size == self.size else resize_bytes(image, self.size, self.input_size)
        mean, std = (tf.constant(values, tf.float32) for values in (self.protocol.mean, self.protocol.std))
        # LiteRT would read the variables of a Keras model before they are set.
        constants = ([tf.constant(value) for value in values] for values in self.values)
        scores, _ = self.network.stateless_call(*constants, (tf.cast(fitted, tf.float32) - mean) / std, training=False)
        if self.protocol.evaluate.resize_logits == "twice" and self.input_size != self.size:
            scores = resize(scores, self.input_size, self.protocol.align_corners)
        target = self.size or tuple(tf.unstack(tf.shape(image)[1:3]))
        scores = resize(scores, target, self.protocol.align_corners)
        return {"class_map": tf.cast(tf.argmax(scores, axis=-1, output_type=tf.int32), tf.uint8)}


def resize_bytes(images: tf.Tensor, size: tuple[int, int], target: tuple[int, int]) -> tf.Tensor:
    """Resize images of a known size like `kseg.images.resizing.resize_bytes`, with constants and divisions.

    Some formats have no shifts of signed integers.

    Args:
        images: Integers 0..255 of any number type, of shape (N, H, W, C).
        size: (height, width) of the images.
        target: (height, width) of the result.

    Returns:
        The resized images, int32 of shape (N, *target, C).
    """
    with tf.init_scope():
        (above, below, row_weights), (left, right, column_weights) = (
            (lower.numpy(), upper.numpy(), np.stack([weight.numpy() for weight in weights]))
            for lower, upper, weights in map(resizing.linear_positions, size, target)
        )
    images = tf.cast(images, tf.int32)
    images = (
        tf.gather(images, left, axis=2) * column_weights[0][:, None]
        + tf.gather(images, right, axis=2) * column_weights[1][:, None]
    ) // 16
    parts = (
        tf.gather(images, rows, axis=1) * weights[:, None, None] // 65536
        for rows, weights in ((above, row_weights[0]), (below, row_weights[1]))
    )
    return (sum(parts) + 2) // 4
