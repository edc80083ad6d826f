"""Winograd's convolution agrees with its definition in float64; the layer chooses it where it is faster."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.models import layers, winograd
from kseg.models.layers import Convolution


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def differentiated(convolve, inputs, kernel, upstream):
    """Return the outputs and the gradients of inputs and kernel."""
    inputs, kernel = tf.constant(inputs), tf.constant(kernel)
    with tf.GradientTape() as tape:
        tape.watch((inputs, kernel))
        outputs = convolve(inputs, kernel)
    return outputs, *tape.gradient(outputs, (inputs, kernel), tf.constant(upstream))


def exact(inputs, kernel, upstream, dilation):
    """Return float64 outputs and gradients from the definition: a sum of nine shifted products."""
    inputs, kernel, upstream = (np.asarray(values, np.float64) for values in (inputs, kernel, upstream))
    height, width = inputs.shape[1:3]
    padded = np.pad(inputs, ((0, 0), (dilation, dilation), (dilation, dilation), (0, 0)))
    outputs, padded_gradient, kernel_gradient = np.zeros(upstream.shape), np.zeros(padded.shape), np.zeros(kernel.shape)
    for row, column in np.ndindex(3, 3):
        shifted = (
            slice(None),
            slice(row * dilation, row * dilation + height),
            slice(column * dilation, column * dilation + width),
        )
        outputs += padded[shifted] @ kernel[row, column]
        padded_gradient[shifted] += upstream @ kernel[row, column].T
        kernel_gradient[row, column] = np.tensordot(padded[shifted], upstream, ((0, 1, 2), (0, 1, 2)))
    return outputs, padded_gradient[:, dilation : dilation + height, dilation : dilation + width], kernel_gradient


# The sizes cover whole tiles, parts of tiles, and maps smaller than one tile.
SIZES = [((4, 8), 1), ((5, 7), 1), ((1, 1), 1), ((8, 12), 2), ((9, 6), 2), ((3, 10), 4), ((7, 5), 6)]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("size, dilation", SIZES)
def test_outputs_and_gradients_match_the_definition(size, dilation, known):
    inputs, kernel, upstream = random(2, *size, 5), random(3, 3, 5, 4, seed=1), random(2, *size, 4, seed=2)
    shapes = [tf.TensorSpec(inputs.shape if known else (None, None, None, 5)), tf.TensorSpec(kernel.shape)]
    convolve = tf.function(lambda inputs, kernel: winograd.winograd_convolution(inputs, kernel, dilation), shapes)
    for actual, expected in zip(
        differentiated(convolve, inputs, kernel, upstream), exact(inputs, kernel, upstream, dilation)
    ):
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=2e-5)


def test_rounding_errors_are_close_to_those_of_the_direct_kernel():
    inputs, kernel, upstream = random(1, 12, 12, 256), random(3, 3, 256, 128, seed=1), random(1, 12, 12, 128, seed=2)
    exact_values = exact(inputs, kernel, upstream, 1)
    tiled = differentiated(winograd.winograd_convolution, inputs, kernel, upstream)
    direct = differentiated(lambda inputs, kernel: tf.nn.conv2d(inputs, kernel, 1, "SAME"), inputs, kernel, upstream)
    for actual, direct_value, expected in zip(tiled, direct, exact_values):
        assert np.abs(actual - expected).max() < 5 * np.abs(direct_value - expected).max()
        assert np.abs(actual - expected).max() < 3e-6 * np.abs(expected).max()


@pytest.mark.parametrize(
    "inputs, kernel, dilation, faster",
    [
        ((2, 32, 32, 2048), (3, 3, 2048, 512), 1, True),
        ((None, None, None, 512), (3, 3, 512, 512), 4, True),
        ((2, 32, 32, 512), (3, 3, 512, 512), 4, True),
        ((2, 32, 32, 64), (3, 3, 64, 512), 1, False),
        ((2, 32, 32, 512), (3, 3, 512, 64), 1, False),
        ((2, 4, 4, 512), (3, 3, 512, 512), 4, False),
        # Pyramids on a map larger than a tile, and on one smaller than a tile.
        ((1, 64, 128, 2048), (3, 3, 2048, 512), 12, True),
        ((2, 32, 32, 2048), (3, 3, 2048, 512), 24, False),
    ],
)
def test_it_is_chosen_where_it_saves_products(inputs, kernel, dilation, faster):
    assert winograd.is_faster(inputs, kernel, (dilation, dilation)) == faster


def operations(layer, channels=128):
    """Return the types of the operations in a traced layer."""
    compiled = tf.function(layer, [tf.TensorSpec((1, 16, 16, channels))])
    return {operation.type for operation in compiled.get_concrete_function().graph.get_operations()}


WIDE = {"filters": 128, "kernel_size": 3, "padding": "same"}


@pytest.mark.parametrize(
    "settings, fast",
    [
        ({}, True),
        ({"dilation_rate": 2}, True),
        ({"filters": 64}, False),
        ({"kernel_size": 1}, False),
        ({"strides": 2}, False),
        ({"padding": "valid"}, False),
        ({"dtype": "mixed_bfloat16"}, False),
    ],
)
def test_the_layer_agrees_with_keras_layer(settings, fast):
    values = WIDE | {"use_bias": True, "bias_initializer": "random_normal", "activation": "relu"} | settings
    layer, plain = Convolution(**values), keras.layers.Conv2D(**values)
    inputs = random(1, 16, 16, 128)
    plain(inputs)
    layer(inputs)
    # The kernel is stored untransformed, so weight files are the same for both layers.
    assert [weight.shape for weight in layer.weights] == [weight.shape for weight in plain.weights]
    layer.set_weights(plain.get_weights())
    tolerance = 1e-5 if layer.compute_dtype == "float32" else 0.05
    np.testing.assert_allclose(
        tf.cast(layer(inputs), tf.float32), tf.cast(plain(inputs), tf.float32), rtol=tolerance, atol=tolerance
    )
    assert ("PartitionedCall" in operations(layer)) == fast


@pytest.mark.parametrize(
    "size, known, tiled", [((24, 24), True, True), ((6, 6), True, False), ((24, 24), False, False)]
)
def test_a_layer_with_a_large_dilation_needs_a_large_map_of_known_size(size, known, tiled, monkeypatch):
    layer, plain = Convolution(**WIDE, dilation_rate=6), keras.layers.Conv2D(**WIDE, dilation_rate=6)
    inputs = random(1, *size, 128)
    plain(inputs)
    layer(inputs)
    layer.set_weights(plain.get_weights())
    calls, convolve = [], winograd.winograd_convolution
    monkeypatch.setattr(winograd, "winograd_convolution", lambda *values: calls.append(1) or convolve(*values))
    compiled = tf.function(layer, [tf.TensorSpec(inputs.shape if known else (None, None, None, 128))])
    np.testing.assert_allclose(compiled(inputs), plain(inputs), rtol=1e-5, atol=1e-5)
    assert bool(calls) == tiled


def test_a_gpu_uses_the_direct_kernel(monkeypatch):
    layer = Convolution(**WIDE)
    layer(random(1, 16, 16, 128))
    assert layers.on_cpu() and "PartitionedCall" in operations(layer)
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [f"{kind}:0"])
    assert not layers.on_cpu() and "PartitionedCall" not in operations(layer)


def test_the_layer_survives_its_config():
    layer = Convolution(**WIDE, dilation_rate=2, use_bias=False, name="c")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is Convolution and again.get_config() == layer.get_config()
