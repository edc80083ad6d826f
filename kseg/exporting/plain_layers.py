"""Layers whose operations every converter knows, for graphs that are converted and not run by TensorFlow.

Other runtimes have kernels of their own for dilated convolutions. TensorFlow's CPU kernels lack some of these forms.
"""

import keras
import numpy as np
import tensorflow as tf

from kseg.models.layers import AdaptiveAveragePooling, Convolution, DepthwiseConvolution


class PlainConvolution(keras.layers.Conv2D):
    """Keras' Conv2D as one operation: Keras itself cuts the map of a dilated one into interleaved parts."""

    def convolution_op(self, inputs, kernel):
        return tf.nn.conv2d(inputs, kernel, self.strides, self.padding.upper(), dilations=self.dilation_rate)


class PlainDepthwiseConvolution(keras.layers.DepthwiseConv2D):
    """Keras' DepthwiseConv2D as one operation."""

    def call(self, inputs):
        outputs = tf.raw_ops.DepthwiseConv2dNative(
            input=inputs,
            filter=self.kernel,
            strides=(1, *self.strides, 1),
            padding=self.padding.upper(),
            dilations=(1, *self.dilation_rate, 1),
        )
        return self.activation(tf.nn.bias_add(outputs, self.bias) if self.use_bias else outputs)


class PlainPooling(AdaptiveAveragePooling):
    """AdaptiveAveragePooling with constant weights where the size of the inputs is known."""

    def call(self, inputs):
        height, width, channels = inputs.shape[1:]
        if height is None or width is None:
            return super().call(inputs)
        rows, columns = (bin_weights(length, self.bins) for length in (height, width))
        weights = np.einsum("ah,bw->abhw", rows, columns).reshape(self.bins**2, height * width)
        means = tf.matmul(weights.astype(np.float32), tf.reshape(inputs, (-1, height * width, channels)))
        return tf.reshape(means, (-1, self.bins, self.bins, channels))


def bin_weights(length: int, bins: int) -> np.ndarray:
    """Return the weights of a side's positions in the mean of each bin, float64 (bins, length)."""
    positions, numbers = np.arange(length), np.arange(bins)[:, None]
    members = (positions >= numbers * length // bins) & (positions < -(-(numbers + 1) * length // bins))
    return members / members.sum(1, keepdims=True)


# Class of a layer -> class whose operations every converter knows.
PLAIN_CLASSES = {
    Convolution: PlainConvolution,
    DepthwiseConvolution: PlainDepthwiseConvolution,
    keras.layers.Conv2D: PlainConvolution,
    keras.layers.DepthwiseConv2D: PlainDepthwiseConvolution,
    AdaptiveAveragePooling: PlainPooling,
}
