"""Integer convolutions give the results of slow integer arithmetic in NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from kseg.errors import ConfigError
from kseg.exporting import quantized_layers
from kseg.exporting.quantized_layers import (
    LARGEST_INTEGER,
    Codes,
    Geometry,
    IntegerConvolution,
    dequantize,
    integer_kernel,
    quantize,
    require_kernels,
)
from tests.helpers.integers import NEEDS_INTEGER_KERNELS

pytestmark = NEEDS_INTEGER_KERNELS


def slow_sums(codes, integers, geometry, is_depthwise):
    """Return int64 sums (N, h, w, D) of products, one output position at a time."""
    (rows, columns), padding, dilations = geometry
    sides = []
    for axis, stride in enumerate((rows, columns)):
        length, extent = codes.shape[axis + 1], dilations[axis] * (integers.shape[axis] - 1) + 1
        count = -(-length // stride) if padding == "same" else (length - extent) // stride + 1
        total = max((count - 1) * stride + extent - length, 0) if padding == "same" else 0
        sides.append((count, total // 2, total - total // 2))
    codes = np.pad(codes.astype(np.int64), [(0, 0), *(side[1:] for side in sides), (0, 0)])
    result = np.zeros((len(codes), sides[0][0], sides[1][0], integers.shape[2 if is_depthwise else 3]), np.int64)
    for y, x in np.ndindex(result.shape[1:3]):
        for i, j in np.ndindex(integers.shape[:2]):
            position = codes[:, y * rows + i * dilations[0], x * columns + j * dilations[1]]
            tap = integers[i, j].astype(np.int64)
            result[:, y, x] += position * tap[:, 0] if is_depthwise else position @ tap
    return result


@pytest.mark.parametrize(
    "side, channels, geometry, is_depthwise",
    [
        (1, (5, 7), Geometry(), False),
        (3, (6, 8), Geometry(), False),
        (3, (16, 3), Geometry(dilations=(4, 4)), False),
        (3, (4, 6), Geometry((2, 2), "valid"), False),
        (3, (4, 6), Geometry((2, 2)), False),
        (3, (8, 8), Geometry(), True),
        (3, (5, 5), Geometry(dilations=(3, 3)), True),
    ],
)
def test_convolutions_equal_integer_arithmetic(side, channels, geometry, is_depthwise):
    generator = np.random.default_rng(0)
    inputs, outputs = channels
    codes = generator.integers(0, 256, (2, 9, 13, inputs)).astype(np.uint8)
    kernel = generator.normal(0, 1, (side, side, inputs, 1 if is_depthwise else outputs))
    input_scale, bias = (generator.uniform(0.5, 2, inputs) / 100).astype(np.float32), generator.normal(0, 1, outputs)
    largest = np.abs(slow_sums(codes * input_scale, kernel, geometry, is_depthwise)).max((0, 1, 2)) + 1
    output_scale = (largest / 200).astype(np.float32)
    convolution = IntegerConvolution(kernel, bias, is_depthwise, geometry, input_scale, np.zeros(inputs), output_scale)
    result = tf.function(lambda: convolution.rectified(Codes(tf.constant(codes), input_scale)))()
    steps = integer_kernel(kernel * input_scale.astype(np.float64)[:, None], is_depthwise).steps
    sums = (slow_sums(codes, convolution.integers, geometry, is_depthwise) + np.rint(bias / steps)) * steps
    expected = np.clip(np.rint(sums / output_scale), 0, 255)
    difference = np.abs(result.values.numpy() - expected)
    # Float32 may round a value halfway between two codes to the other side.
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01
    assert 20 < len(np.unique(expected)) and (expected == 0).any()
    # The codes represent the float convolution.
    exact = np.maximum(bias + slow_floats(codes * input_scale.astype(np.float64), kernel, geometry, is_depthwise), 0)
    error = np.abs(result.values.numpy() * output_scale - exact)
    inside = exact < 254 * output_scale
    assert np.mean((error / largest)[inside]) < 0.01


def slow_floats(values, kernel, geometry, is_depthwise):
    """Return the float convolution by TensorFlow's own operations in float64."""
    padding = geometry.padding.upper()
    if is_depthwise:
        return tf.nn.depthwise_conv2d(values, kernel, [1, 1, 1, 1], padding, dilations=geometry.dilations).numpy()
    return tf.nn.convolution(values, kernel, geometry.strides, padding, dilations=geometry.dilations).numpy()


def test_largest_products_do_not_saturate():
    """Processors without VNNI add pairs of products in int16."""
    inputs, one = 64, np.ones(64, np.float32)
    kernel = np.full((3, 3, inputs, 1), float(LARGEST_INTEGER))
    total = 9 * inputs * 255 * LARGEST_INTEGER
    convolution = IntegerConvolution(
        kernel,
        np.zeros(1),
        False,
        Geometry(padding="valid"),
        one,
        np.zeros(inputs),
        np.array([total / 200], np.float32),
    )
    result = tf.function(
        lambda: convolution.rectified(Codes(tf.fill((1, 3, 3, inputs), tf.constant(255, tf.uint8)), one))
    )()
    assert result.values.numpy().item() == 200


def test_residual_sums():
    """ReLU(2 x + summand), by hand: codes 10 and 20 of scale 0.5 give 10 and 20, in codes of scale 0.25."""
    half, quarter = np.array([0.5], np.float32), np.array([0.25], np.float32)
    kernel = np.full((1, 1, 1, 1), 2.0)
    convolution = IntegerConvolution(kernel, np.array([-4.0]), False, Geometry(), half, np.zeros(1), quarter)
    codes = tf.constant(np.array([10, 20, 10, 0, 20], np.uint8).reshape(1, 1, 5, 1))

    @tf.function(input_signature=[tf.TensorSpec((1, 1, 5, 1), tf.uint8)])
    def total(values):
        # The operation overwrites the summand, which must not be the caller's.
        summand = Codes(tf.concat([values[:, :, :2], values[:, :, 2:]], 2), half)
        return convolution.rectified_sum(Codes(codes, half), summand).values

    result = total(np.array([4, 60, 0, 7, 255], np.uint8).reshape(1, 1, 5, 1)).numpy().ravel().tolist()
    assert result == [(10 - 4 + 2) * 4, (20 - 4 + 30) * 4, (10 - 4) * 4, 0, 255]


def test_the_bias_corrects_the_rounding_of_the_kernel():
    """By hand: 0.3 of 64 steps of 1 rounds to 0, which the mean 10 of its channel turns into a shift of 3."""
    one = np.ones(2, np.float32)
    kernel = np.array([64.0, 0.3]).reshape(1, 1, 2, 1)
    convolution = IntegerConvolution(kernel, np.array([5.0]), False, Geometry(), one, np.array([1.0, 10.0]), one[:1])
    assert convolution.integers.ravel().tolist() == [64, 0] and convolution.bias.tolist() == [8]
    depthwise = IntegerConvolution(
        np.array([[64.0, 0.3], [0.3, 64.0]]).reshape(2, 1, 2, 1),
        np.array([5.0, 5.0]),
        True,
        Geometry(),
        one,
        np.array([1.0, 10.0]),
        one,
    )
    assert depthwise.integers.ravel().tolist() == [64, 0, 0, 64] and depthwise.bias.tolist() == [5, 8]


def test_a_channel_of_zeros_is_zero():
    kernel = integer_kernel(np.zeros((3, 3, 4, 2)), False)
    assert not kernel.integers.any() and (kernel.steps == 1).all()


def test_codes_and_back():
    values = np.array([-3, 0, 0.26, 1, 127.4, 127.5, 500], np.float32).reshape(1, 1, 7, 1)
    codes = quantize(tf.constant(values), np.array([0.5], np.float32))
    assert codes.values.numpy().ravel().tolist() == [0, 0, 1, 2, 255, 255, 255]
    assert dequantize(codes).numpy().ravel().tolist() == [0, 0, 0.5, 1, 127.5, 127.5, 127.5]
    channels = Codes(tf.constant([[[[1, 2, 3]]]], tf.uint8), np.array([0.5, 1, 2], np.float32))
    assert dequantize(channels).numpy().ravel().tolist() == [0.5, 2, 6]


def test_missing_kernels_are_refused(monkeypatch):
    require_kernels()

    def fail(self, codes):
        raise tf.errors.InternalError(None, None, "Missing 0-th output")

    monkeypatch.setattr(quantized_layers.IntegerConvolution, "rectified", fail)
    with pytest.raises(ConfigError, match="TF_ENABLE_ONEDNN_OPTS=1"):
        require_kernels()
