"""Layers that Keras lacks or defines differently from PyTorch.

All layers are written in Keras operations. Only this module and `kseg.models.norms` choose TensorFlow's faster kernels
for the same results, or exchange values between replicas.
"""

import math
from typing import TYPE_CHECKING

import keras
from keras import ops

if TYPE_CHECKING:
    import tensorflow as tf


def on_tensorflow() -> bool:
    """Return whether Keras runs on TensorFlow."""
    return keras.backend.backend() == "tensorflow"


def replica_context() -> "tf.distribute.ReplicaContext | None":
    """Return tf.distribute's replica context if several replicas train together, otherwise None."""
    if not on_tensorflow():
        return None
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return context if context is not None and context.num_replicas_in_sync > 1 else None


def on_cpu() -> bool:
    """Return whether TensorFlow computes on a CPU because it sees no GPU.

    Layers evaluate it when they are called or traced.
    """
    if not on_tensorflow():
        return False
    import tensorflow as tf

    return not tf.config.get_visible_devices("GPU")


def index_dtype() -> str:
    """Return the integer dtype in which maps of class ids are compared, counted and looked up."""
    # TensorFlow's GPU kernels for int32 work in the memory of the host, and the maps would travel there and back. On a
    # CPU, int64 would need twice the memory for nothing.
    return "int64" if on_tensorflow() and not on_cpu() else "int32"


@keras.saving.register_keras_serializable("kseg")
class Convolution(keras.layers.Conv2D):
    """Keras' Conv2D of (N, H, W, C) inputs, with faster forms in TensorFlow of wide or dilated kernels.

    On a CPU, Winograd's algorithm serves wide 3x3 kernels in float32, and other dilated ones are applied tap by tap. On
    a GPU, the kernel itself is dilated. Keras calls `tf.nn.convolution`, which cuts the map into interleaved parts.
    """

    def convolution_op(self, inputs, kernel):
        plain = super().convolution_op
        if not on_tensorflow() or self.groups > 1:
            return plain(inputs, kernel)
        if not on_cpu():
            return plain(inputs, kernel) if max(self.dilation_rate) == 1 else self._natively_dilated(inputs, kernel)
        if (self.kernel_size, self.strides, self.padding) != ((3, 3), (1, 1), "same"):
            return plain(inputs, kernel)
        from kseg.models import cropped_taps, winograd

        dilation, dtype = self.dilation_rate, keras.backend.standardize_dtype(inputs.dtype)
        if dtype == "float32" and winograd.is_faster(inputs.shape, kernel.shape, dilation):
            return winograd.winograd_convolution(inputs, kernel, dilation[0])
        if cropped_taps.is_faster(kernel.shape, dilation, dtype):
            return cropped_taps.cropped_convolution(inputs, kernel, dilation[0])
        return plain(inputs, kernel)

    def _natively_dilated(self, inputs, kernel):
        """Convolve by TensorFlow's operation, whose gradients have no CPU kernel without oneDNN."""
        import tensorflow as tf

        return tf.nn.conv2d(inputs, kernel, self.strides, self.padding.upper(), dilations=self.dilation_rate)


@keras.saving.register_keras_serializable("kseg")
class DepthwiseConvolution(keras.layers.DepthwiseConv2D):
    """Keras' DepthwiseConv2D, with less padding on CPUs for dilated 3x3 kernels in float32."""

    def call(self, inputs):
        settings = self.kernel_size, self.strides, self.padding, self.depth_multiplier, len({*self.dilation_rate})
        if (
            not on_cpu()
            or settings != ((3, 3), (1, 1), "same", 1, 1)
            or self.dilation_rate == (1, 1)
            or inputs.dtype != "float32"
        ):
            return super().call(inputs)
        from kseg.models import depthwise

        outputs = depthwise.dilated_depthwise_convolution(inputs, self.kernel, self.dilation_rate[0])
        return self.activation(ops.add(outputs, self.bias) if self.use_bias else outputs)


# Up to this size, statistics in float64 cost one CPU core at most a millisecond more than TensorFlow's kernel.
SMALL_SIZE = 2**17


def is_small(inputs: keras.KerasTensor) -> bool:
    """Return whether a tensor has a known size at which float64 statistics cost next to nothing."""
    return None not in inputs.shape and math.prod(inputs.shape) <= SMALL_SIZE


@keras.saving.register_keras_serializable("kseg")
class ChannelDropout(keras.layers.Layer):
    """Dropout of whole channels of (N, H, W, C) inputs, like PyTorch's Dropout2d.

    The dropped channels do not depend on the number of replicas: every replica draws the mask of the whole global
    batch from the same seed state and uses its slice. The seed state counts calls and is part of every checkpoint.

    Args:
        rate: Probability that a channel is dropped.
    """

    def __init__(self, rate, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate
        # Checkpoints identify the generator by its name. Keras' default name counts the generators of the process.
        self.seed_generator = keras.random.SeedGenerator(name=f"{self.name}.seed")

    def call(self, inputs, training=False):
        if not training or self.rate == 0:
            return inputs
        context = replica_context()
        batch, channels = ops.shape(inputs)[0], inputs.shape[-1]
        replicas = 1 if context is None else context.num_replicas_in_sync
        draws = keras.random.uniform((batch * replicas, 1, 1, channels), seed=self.seed_generator)
        if context is not None:
            start = ops.cast(context.replica_id_in_sync_group, "int32") * batch
            draws = ops.slice(draws, (start, 0, 0, 0), (batch, 1, 1, channels))
        return inputs * ops.cast(draws >= self.rate, inputs.dtype) / (1 - self.rate)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return super().get_config() | {"rate": self.rate}


@keras.saving.register_keras_serializable("kseg")
class ResizeLike(keras.layers.Layer):
    """Bilinear resize of the first (N, H, W, C) input to the height and width of the second.

    Args:
        align_corners: Whether the centers of the corner pixels coincide, as in PyTorch's `interpolate`.
    """

    def __init__(self, align_corners=False, **kwargs):
        super().__init__(**kwargs)
        self.align_corners = align_corners

    def call(self, inputs):
        source, target = inputs
        return ops.cast(resize(source, ops.shape(target)[1:3], self.align_corners), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        source, target = input_shape
        return (source[0], target[1], target[2], source[3])

    def get_config(self):
        return super().get_config() | {"align_corners": self.align_corners}


@keras.saving.register_keras_serializable("kseg")
class AdaptiveAveragePooling(keras.layers.Layer):
    """Averages of (N, H, W, C) inputs over bins x bins rectangles, like PyTorch's AdaptiveAvgPool2d.

    The output is (N, bins, bins, C). Bin i of a side of length L covers [floor(i L / bins), ceil((i + 1) L / bins)).
    Bins may overlap, and there may be more bins than positions. One matrix product computes them all, which also works
    for sizes known only at run time.

    Args:
        bins: Number of bins per side.
    """

    def __init__(self, bins, **kwargs):
        super().__init__(**kwargs)
        self.bins = bins

    def call(self, inputs):
        samples, height, width = ops.shape(inputs)[:3]
        channels = inputs.shape[-1]
        # The sum over a whole image overflows half precision. Float64 helps small inputs because the norm that follows
        # a few pooled values amplifies the rounding errors of their differences.
        dtype = "float64" if on_tensorflow() and is_small(inputs) else "float32"
        rows, columns = (ops.cast(bin_members(side, self.bins), dtype) for side in (height, width))
        members = ops.reshape(rows[:, None, :, None] * columns[None, :, None, :], (self.bins**2, height * width))
        positions = ops.reshape(ops.cast(inputs, dtype), (samples, height * width, channels))
        means = ops.matmul(members, positions) / ops.sum(members, axis=-1)[:, None]
        return ops.cast(ops.reshape(means, (samples, self.bins, self.bins, channels)), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.bins, self.bins, input_shape[-1])

    def get_config(self):
        return super().get_config() | {"bins": self.bins}


def bin_members(length: "int | tf.Tensor", bins: int) -> "tf.Tensor":
    """Return float32 (bins, length): 1 where a bin covers a position of a side, otherwise 0."""
    indices = ops.arange(bins)
    starts, ends = indices * length // bins, ((indices + 1) * length + bins - 1) // bins
    positions = ops.arange(length)
    return ops.cast(ops.logical_and(positions >= starts[:, None], positions < ends[:, None]), "float32")


def resize(images: "tf.Tensor", size: tuple, align_corners: bool = False) -> "tf.Tensor":
    """Resize images bilinearly without antialiasing.

    The results equal those of PyTorch's interpolate(mode="bilinear") for both values of `align_corners`.

    Args:
        images: (N, H, W, C) of any numeric dtype.
        size: (height, width) of the result; both may be integers or scalar tensors.
        align_corners: Whether the centers of the corner pixels coincide.

    Returns:
        Float32 (N, height, width, C).

    Example:
        >>> import numpy as np
        >>> row = np.array([0.0, 4.0]).reshape(1, 1, 2, 1)
        >>> [float(value) for value in np.ravel(resize(row, (1, 4)))]
        [0.0, 1.0, 3.0, 4.0]
    """
    if on_tensorflow():
        import tensorflow as tf

        return tf.raw_ops.ResizeBilinear(
            images=images, size=tf.stack(size), align_corners=align_corners, half_pixel_centers=not align_corners
        )
    return resize_by_gather(images, size, align_corners)


def resize_by_gather(images: "tf.Tensor", size: tuple, align_corners: bool = False) -> "tf.Tensor":
    """Resize images bilinearly with Keras operations only.

    Arguments and results are those of `resize`; this form runs on every backend.
    """
    images = ops.cast(images, "float32")
    for axis in (1, 2):
        positions = ops.cast(ops.arange(size[axis - 1]), "float32")
        last = ops.shape(images)[axis] - 1
        length, target = ops.cast(last + 1, "float32"), ops.cast(size[axis - 1], "float32")
        if align_corners:
            positions = positions * ((length - 1) / ops.maximum(target - 1, 1))
        else:
            positions = ops.maximum((positions + 0.5) * (length / target) - 0.5, 0)
        # Rounding errors may move the last position past the edge.
        lower = ops.minimum(ops.cast(ops.floor(positions), "int32"), last)
        upper = ops.minimum(lower + 1, last)
        weight = ops.reshape(positions - ops.cast(lower, "float32"), (-1, 1, 1) if axis == 1 else (-1, 1))
        below, above = ops.take(images, lower, axis=axis), ops.take(images, upper, axis=axis)
        images = below + (above - below) * weight
    return images
