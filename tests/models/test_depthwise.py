"""Dilated depthwise convolutions agree with their definition in float64; the layer chooses them where they fit."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.models import depthwise
from kseg.models.layers import DepthwiseConvolution
from tests.models import test_winograd
from tests.models.test_winograd import differentiated, random


def exact(inputs, kernel, upstream, dilation):
    """Return float64 outputs and gradients, computed with a full kernel that is diagonal in the channels."""
    channels = np.arange(kernel.shape[2])
    full = np.zeros((3, 3, len(channels), len(channels)))
    full[:, :, channels, channels] = kernel[..., 0]
    outputs, input_gradient, full_gradient = test_winograd.exact(inputs, full, upstream, dilation)
    return outputs, input_gradient, full_gradient[:, :, channels, channels][..., None]


# In this order: at least three parts per side, whole and padded; fewer parts; only the middle tap inside the map along
# one axis, and along both axes.
SIZES = [((12, 8), 2), ((13, 9), 3), ((8, 12), 5), ((20, 3), 4), ((4, 5), 6), ((1, 1), 2)]


@pytest.mark.parametrize("known", ["all", "height", "none"])
@pytest.mark.parametrize("size, dilation", SIZES)
def test_outputs_and_gradients_match_the_definition(size, dilation, known):
    inputs, kernel, upstream = random(2, *size, 5), random(3, 3, 5, 1, seed=1), random(2, *size, 5, seed=2)
    shape = {"all": inputs.shape, "height": (2, size[0], None, 5), "none": (None, None, None, 5)}[known]
    shapes = [tf.TensorSpec(shape), tf.TensorSpec(kernel.shape)]
    convolve = tf.function(
        lambda inputs, kernel: depthwise.dilated_depthwise_convolution(inputs, kernel, dilation), shapes
    )
    for actual, expected in zip(
        differentiated(convolve, inputs, kernel, upstream), exact(inputs, kernel, upstream, dilation)
    ):
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def largest_tensor(function):
    """Return the size of the largest tensor in a traced function."""
    graph = function.get_concrete_function().graph
    return max(output.shape.num_elements() or 0 for operation in graph.get_operations() for output in operation.outputs)


WIDE = {"kernel_size": 3, "padding": "same", "dilation_rate": 9}


@pytest.mark.parametrize(
    "settings, fast",
    [
        ({}, True),
        ({"kernel_size": 5}, False),
        ({"padding": "valid", "dilation_rate": 2}, False),
        ({"depth_multiplier": 2}, False),
        ({"dtype": "mixed_bfloat16"}, False),
        ({"dilation_rate": (9, 4)}, False),
    ],
)
def test_the_layer_agrees_with_keras_layer(settings, fast):
    values = WIDE | {"use_bias": True, "bias_initializer": "random_normal", "activation": "relu"} | settings
    layer, plain = DepthwiseConvolution(**values), keras.layers.DepthwiseConv2D(**values)
    inputs = random(1, 10, 10, 4)
    plain(inputs)
    layer(inputs)
    layer.set_weights(plain.get_weights())
    np.testing.assert_allclose(tf.cast(layer(inputs), tf.float32), tf.cast(plain(inputs), tf.float32), rtol=1e-6)
    compiled = [tf.function(call, [tf.TensorSpec((1, 10, 10, 4))]) for call in (layer, plain)]
    assert (largest_tensor(compiled[0]) < largest_tensor(compiled[1])) == fast


def test_only_the_inputs_are_kept_for_the_gradient():
    layer = DepthwiseConvolution(**WIDE, use_bias=False)

    @tf.function(input_signature=[tf.TensorSpec((1, 10, 10, 4))])
    def step(inputs):
        with tf.GradientTape() as tape:
            outputs = layer(inputs)
        return tape.gradient(outputs, [weight.value for weight in layer.weights])

    layer(random(1, 10, 10, 4))
    operations = step.get_concrete_function().graph.get_operations()
    backward = [operation for operation in operations if "gradient_tape" in operation.name]
    assert backward and not any(
        value.op.type.startswith(("SpaceToBatch", "DepthwiseConv")) and "gradient_tape" not in value.op.name
        for operation in backward
        for value in operation.inputs
    )


def test_the_layer_survives_its_config():
    layer = DepthwiseConvolution(**WIDE, use_bias=False, name="c")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is DepthwiseConvolution and again.get_config() == layer.get_config()
