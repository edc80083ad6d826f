"""Convolutions tap by tap agree with their definition in float64; the layer chooses them where they are faster."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.models import cropped_taps
from kseg.models.layers import Convolution
from tests.models.test_winograd import differentiated, exact, random

# In this order: all taps inside the map; parts of the map; no row or column that all three taps share; only the middle
# tap along one axis, and along both axes.
SIZES = [((8, 12), 2), ((9, 7), 3), ((8, 7), 5), ((20, 3), 4), ((4, 5), 5), ((1, 1), 2)]


@pytest.mark.parametrize("known, batch", [("all", 1), ("all", 2), ("map", 2), ("width", 2), ("none", 2)])
@pytest.mark.parametrize("size, dilation", SIZES)
def test_outputs_and_gradients_match_the_definition(size, dilation, known, batch):
    inputs = random(batch, *size, 5)
    kernel, upstream = random(3, 3, 5, 4, seed=1), random(batch, *size, 4, seed=2)
    shape = {
        "all": inputs.shape,
        "map": (None, *size, 5),
        "width": (batch, None, size[1], 5),
        "none": (None, None, None, 5),
    }[known]
    specs = [tf.TensorSpec(shape), tf.TensorSpec(kernel.shape)]
    convolve = tf.function(lambda inputs, kernel: cropped_taps.cropped_convolution(inputs, kernel, dilation), specs)
    for actual, expected in zip(
        differentiated(convolve, inputs, kernel, upstream), exact(inputs, kernel, upstream, dilation)
    ):
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5)


def test_taps_outside_the_map_have_no_gradient():
    gradient = differentiated(
        lambda inputs, kernel: cropped_taps.cropped_convolution(inputs, kernel, 6),
        random(2, 6, 8, 3),
        random(3, 3, 3, 4),
        random(2, 6, 8, 4),
    )[2].numpy()
    assert (gradient[[0, 2]] == 0).all() and (gradient[1] != 0).all()


def test_rounding_errors_are_close_to_those_of_the_direct_kernel():
    inputs, kernel, upstream = random(1, 12, 12, 256), random(3, 3, 256, 128, seed=1), random(1, 12, 12, 128, seed=2)
    cropped = differentiated(
        lambda inputs, kernel: cropped_taps.cropped_convolution(inputs, kernel, 5), inputs, kernel, upstream
    )
    for actual, expected in zip(cropped, exact(inputs, kernel, upstream, 5)):
        assert np.abs(actual - expected).max() < 3e-6 * np.abs(expected).max()


def test_bfloat16_rounds_little_more_than_its_results():
    values = [
        tf.cast(value, tf.bfloat16)
        for value in (random(1, 12, 12, 32), random(3, 3, 32, 16, seed=1), random(1, 12, 12, 16, seed=2))
    ]
    cropped = differentiated(lambda inputs, kernel: cropped_taps.cropped_convolution(inputs, kernel, 5), *values)
    for actual, expected in zip(cropped, exact(*[tf.cast(value, tf.float32) for value in values], 5)):
        assert actual.dtype == tf.bfloat16
        # A product of a tap and the sum of nine are rounded to eight bits, each to one half of the last one.
        assert np.abs(tf.cast(actual, tf.float32) - expected).max() < 2**-7 * np.abs(expected).max()


def products(convolve, height, width):
    """Return the numbers of multiplications in the traced products of a convolution."""
    inputs, kernel = tf.ones((2, height, width, 3)), tf.ones((3, 3, 3, 5))
    graph = tf.function(lambda: convolve(inputs, kernel)).get_concrete_function().graph
    (convolution,) = graph._functions.values()
    return [
        math.prod(operation.inputs[0].shape) * 5
        for operation in convolution.graph.get_operations()
        if operation.type == "MatMul"
    ]


def test_only_touched_outputs_are_computed():
    def convolve(inputs, kernel):
        return cropped_taps.cropped_convolution(inputs, kernel, 6)

    # Along 10 rows the outer taps touch 4 each; along 6 columns they touch none.
    assert sum(products(convolve, 10, 6)) == (10 + 4 + 4) * 6 * 2 * 3 * 5
    assert len(products(convolve, 10, 6)) == 3
    assert cropped_taps.cost(10, 6, 6) == pytest.approx(cropped_taps.TAP_COST * 18 * 6)


@pytest.mark.parametrize(
    "kernel, dilations, dtype, faster",
    [
        ((3, 3, 2048, 512), (36, 36), "float32", True),
        ((3, 3, 2048, 512), (6, 6), "bfloat16", True),
        ((3, 3, 512, 512), (4, 4), "float32", True),
        ((3, 3, 512, 512), (4, 4), "bfloat16", False),
        ((3, 3, 2048, 512), (1, 1), "float32", False),
        ((3, 3, 2048, 512), (6, 12), "float32", False),
        ((3, 3, 2048, 512), (6, 6), "float16", False),
        ((3, 3, 16, 512), (6, 6), "float32", False),
    ],
)
def test_they_are_chosen_where_they_save_products(kernel, dilations, dtype, faster):
    assert cropped_taps.is_faster(kernel, dilations, dtype) == faster


@pytest.mark.parametrize(
    "dtype, shape",
    [("float32", (1, 12, 16, 64)), ("mixed_bfloat16", (1, 12, 16, 64)), ("float32", (None, None, None, 64))],
)
def test_the_layer_agrees_with_keras_layer(dtype, shape, monkeypatch):
    values = {
        "filters": 64,
        "kernel_size": 3,
        "padding": "same",
        "dilation_rate": 9,
        "dtype": dtype,
        "bias_initializer": "random_normal",
        "activation": "relu",
    }
    layer, plain = Convolution(**values), keras.layers.Conv2D(**values)
    inputs, calls, convolve = random(1, 12, 16, 64), [], cropped_taps.cropped_convolution
    plain(inputs)
    layer(inputs)
    layer.set_weights(plain.get_weights())
    monkeypatch.setattr(cropped_taps, "cropped_convolution", lambda *values: calls.append(1) or convolve(*values))
    tolerance = 1e-5 if dtype == "float32" else 0.05
    np.testing.assert_allclose(
        tf.cast(tf.function(layer, [tf.TensorSpec(shape)])(inputs), tf.float32),
        tf.cast(plain(inputs), tf.float32),
        rtol=tolerance,
        atol=tolerance,
    )
    assert calls


def test_a_gpu_dilates_the_kernel_itself(monkeypatch):
    values = {"filters": 64, "kernel_size": 3, "padding": "same", "dilation_rate": 9}
    layer, plain = Convolution(**values), keras.layers.Conv2D(**values)
    inputs = random(1, 12, 16, 64)
    plain(inputs)
    layer(inputs)
    layer.set_weights(plain.get_weights())
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [f"{kind}:0"])
    traced = tf.function(layer, [tf.TensorSpec(inputs.shape)])
    types = [operation.type for operation in traced.get_concrete_function().graph.get_operations()]
    assert "Conv2D" in types and "SpaceToBatchND" not in types and "PartitionedCall" not in types
    np.testing.assert_allclose(traced(inputs), plain(inputs), rtol=1e-5, atol=1e-5)
