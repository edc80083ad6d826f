"""Convolutions of 8-bit integers by TensorFlow's operations for oneDNN, which stock servers contain.

A tensor x >= 0 of (N, H, W, C) is represented by codes, uint8 of the same shape, with one scale per channel:
x is about code * scale. Kernels are integers with one step per output channel. The products are summed in int32.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from kseg.errors import ConfigError

# Processors without VNNI add two products of a code and an integer in int16, where 2 * 255 * 127 saturates. Up to this
# integer the sums are exact on every processor.
LARGEST_INTEGER = 64
LARGEST_CODE = 255


class Codes(NamedTuple):
    """Hold the codes of a tensor, uint8 (N, H, W, C), and the float32 scale of each channel (C,)."""

    values: tf.Tensor
    scale: np.ndarray


class Geometry(NamedTuple):
    """Hold the strides, padding ("same" or "valid") and dilations of a convolution as Keras' layers name them."""

    strides: tuple[int, int] = (1, 1)
    padding: str = "same"
    dilations: tuple[int, int] = (1, 1)


def quantize(tensor: tf.Tensor, scale: np.ndarray) -> Codes:
    """Return the codes of a float32 tensor (N, H, W, C).

    Negative values become 0, and values above 255 * scale become 255. `scale` (C,) is the same in all channels.
    """
    values = tf.raw_ops.QuantizeV2(
        input=tensor,
        min_range=0.0,
        max_range=LARGEST_CODE * float(scale[0]),
        T=tf.quint8,
        mode="SCALED",
        round_mode="HALF_TO_EVEN",
    ).output
    return Codes(tf.bitcast(values, tf.uint8), scale)


def dequantize(codes: Codes) -> tf.Tensor:
    """Return the float32 tensor (N, H, W, C) that codes represent."""
    if np.ptp(codes.scale) == 0:
        return tf.raw_ops.Dequantize(
            input=tf.bitcast(codes.values, tf.quint8),
            min_range=0.0,
            max_range=LARGEST_CODE * float(codes.scale[0]),
            mode="SCALED",
        )
    return tf.cast(codes.values, tf.float32) * codes.scale


class IntegerKernel(NamedTuple):
    """Hold a kernel as int8 integers of its shape, and the float64 step of each output channel."""

    integers: np.ndarray
    steps: np.ndarray


def integer_kernel(kernel: np.ndarray, is_depthwise: bool) -> IntegerKernel:
    """Round a kernel to integers of at most LARGEST_INTEGER, with one step per output channel.

    Args:
        kernel: (height, width, inputs, outputs), or (height, width, channels, 1) for a depthwise convolution.
        is_depthwise: Whether the steps belong to the axis of `channels`.
    """
    channel_axis = 2 if is_depthwise else 3
    steps = np.abs(kernel).max(tuple({0, 1, 2, 3} - {channel_axis}), keepdims=True) / LARGEST_INTEGER
    # A channel of zeros would otherwise divide by zero.
    steps = np.where(steps > 0, steps, 1)
    return IntegerKernel(np.rint(kernel / steps).astype(np.int8), steps.ravel())


class IntegerConvolution:
    """A convolution of codes that ends in codes.

    Rounding the kernel shifts the mean of each output channel. The bias is corrected by the shift that the mean of the
    inputs causes (Nagel et al. 2019, arXiv:1906.04721, section 4.2).

    Args:
        kernel: (height, width, inputs, outputs), or (height, width, channels, 1) for a depthwise convolution.
        bias: Bias of each output channel.
        is_depthwise: Whether the kernel is depthwise.
        geometry: Strides, padding and dilations.
        input_scale: Scale of each input channel.
        input_mean: Mean of each input channel.
        output_scale: Scale of each output channel.

    Example:
        >>> import numpy as np
        >>> import tensorflow as tf
        >>> kernel, one = np.full((1, 1, 1, 1), 2.0), np.ones(1, np.float32)
        >>> double = IntegerConvolution(kernel, np.zeros(1), False, Geometry(), one, one, one)
        >>> codes = tf.function(lambda: double.rectified(Codes(tf.constant([[[[3], [100], [200]]]], tf.uint8), one)))()
        >>> codes.values.numpy().ravel().tolist()
        [6, 200, 255]
    """

    def __init__(
        self,
        kernel: np.ndarray,
        bias: np.ndarray,
        is_depthwise: bool,
        geometry: Geometry,
        input_scale: np.ndarray,
        input_mean: np.ndarray,
        output_scale: np.ndarray,
    ):
        input_scale = input_scale.astype(np.float64)
        scaled = kernel.astype(np.float64) * input_scale[:, None]
        self.integers, steps = integer_kernel(scaled, is_depthwise)
        rounding = (self.integers * (steps[:, None] if is_depthwise else steps) - scaled).sum((0, 1))
        shift = rounding * (input_mean / input_scale)[:, None]
        corrected = bias - (shift[:, 0] if is_depthwise else shift.sum(0))
        # The kernels of TensorFlow cache a float bias without a lock, but use an integer one as it is.
        self.bias = np.clip(np.rint(corrected / steps), -(2.0**31), 2.0**31 - 1).astype(np.int32)
        # The operations derive a channel's step from the range of its kernel.
        self.ranges = (127 * steps / output_scale).astype(np.float32)
        self.is_depthwise, self.geometry, self.output_scale = is_depthwise, geometry, output_scale

    def rectified(self, codes: Codes) -> Codes:
        """Return the codes of ReLU(convolution(x) + bias)."""
        operation = (
            tf.raw_ops.QuantizedDepthwiseConv2DWithBiasAndReluAndRequantize
            if self.is_depthwise
            else tf.raw_ops.QuantizedConv2DWithBiasAndReluAndRequantize
        )
        return Codes(tf.bitcast(operation(**self._arguments(codes)).output, tf.uint8), self.output_scale)

    def rectified_sum(self, codes: Codes, summand: Codes) -> Codes:
        """Return the codes of ReLU(convolution(x) + bias + summand), which is not depthwise.

        The operation writes its result over the summand and ends the process if anything else still uses that tensor.
        The scales of the summand and of the output must have the same ratio in all channels. The sibling operation for
        summands of both signs is no use, because some processors saturate its result at 127.
        """
        ratio = float(summand.scale[0]) / float(self.output_scale[0])
        result = tf.raw_ops.QuantizedConv2DWithBiasSumAndReluAndRequantize(
            **self._arguments(codes),
            summand=tf.bitcast(summand.values, tf.quint8),
            min_summand=0.0,
            max_summand=LARGEST_CODE * ratio,
        )
        return Codes(tf.bitcast(result.output, tf.uint8), self.output_scale)

    def _arguments(self, codes: Codes) -> dict:
        strides, padding, dilations = self.geometry
        return {
            "input": tf.bitcast(codes.values, tf.quint8),
            "filter": _constant(self.integers, "qint8", tf.qint8),
            "bias": _constant(self.bias, "qint32", tf.qint32),
            "min_input": 0.0,
            "max_input": float(LARGEST_CODE),
            "min_filter": tf.constant(-self.ranges),
            "max_filter": tf.constant(self.ranges),
            "min_freezed_output": 0.0,
            "max_freezed_output": float(LARGEST_CODE),
            "out_type": tf.quint8,
            "strides": [1, *strides, 1],
            "padding": padding.upper(),
            "dilations": [1, *dilations, 1],
        }


def _constant(values: np.ndarray, name: str, dtype: tf.DType) -> tf.Tensor:
    """Return integers as a constant of the graph that is being traced; the operations accept no other kernel."""
    return tf.constant(values.view(np.dtype([(name, values.dtype)])), dtype=dtype)


def require_kernels() -> None:
    """Raise ConfigError if TensorFlow cannot compute integer convolutions in this process."""
    one = np.ones(1, np.float32)
    convolution = IntegerConvolution(np.full((1, 1, 1, 1), 2.0), np.zeros(1), False, Geometry(), one, one, one)

    def double() -> tf.Tensor:
        return convolution.rectified(Codes(tf.fill((1, 1, 1, 1), tf.constant(3, tf.uint8)), one)).values

    try:
        doubled = tf.function(double, autograph=False)().numpy().item()
    except (tf.errors.OpError, NotImplementedError):
        raise ConfigError(
            "export.precision=int8 needs TensorFlow with oneDNN on an x86-64 processor, which TensorFlow enables by "
            "itself only on processors with AVX-512 VNNI: set TF_ENABLE_ONEDNN_OPTS=1 in the environment, here and "
            "where the export is served"
        ) from None
    if doubled != 6:
        raise ConfigError("export.precision=int8: TensorFlow's integer convolutions give wrong results here")
