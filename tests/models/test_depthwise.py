"""Dilated depthwise convolutions against the definition in float64, and the layer that chooses them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.models import depthwise
from kseg.models.layers import DepthwiseConvolution
from tests.models import test_winograd
from tests.models.test_winograd import differentiated, random


def exact(inputs, kernel, upstream, dilation):
    """Return outputs and the gradients of inputs and kernel in float64: a full kernel that mixes no channels."""
    channels = np.arange(kernel.shape[2])
    full = np.zeros((3, 3, len(channels), len(channels)))
    full[:, :, channels, channels] = kernel[..., 0]
    outputs, of_inputs, of_full = test_winograd.exact(inputs, full, upstream, dilation)
    return outputs, of_inputs, of_full[:, :, channels, channels][..., None]


# Three parts and more a side, whole and not; fewer; none but the middle tap along one axis, and along both.
SIZES = [((12, 8), 2), ((13, 9), 3), ((8, 12), 5), ((20, 3), 4), ((4, 5), 6), ((1, 1), 2)]


@pytest.mark.parametrize("known", ["all", "height", "none"])
@pytest.mark.parametrize("size, dilation", SIZES)
def test_outputs_and_gradients_against_the_definition(size, dilation, known):
    inputs, kernel, upstream = random(2, *size, 5), random(3, 3, 5, 1, seed=1), random(2, *size, 5, seed=2)
    shape = {"all": inputs.shape, "height": (2, size[0], None, 5), "none": (None, None, None, 5)}[known]
    shapes = [tf.TensorSpec(shape), tf.TensorSpec(kernel.shape)]
    convolve = tf.function(lambda inputs, kernel: depthwise.convolution(inputs, kernel, dilation), shapes)
    for found, expected in zip(differentiated(convolve, inputs, kernel, upstream),
                               exact(inputs, kernel, upstream, dilation)):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def largest(function):
    """Return the most numbers in one tensor of a traced function."""
    graph = function.get_concrete_function().graph
    return max(each.shape.num_elements() or 0 for operation in graph.get_operations() for each in operation.outputs)


WIDE = {"kernel_size": 3, "padding": "same", "dilation_rate": 9}


@pytest.mark.parametrize("settings, fast", [
    ({}, True), ({"kernel_size": 5}, False), ({"padding": "valid", "dilation_rate": 2}, False),
    ({"depth_multiplier": 2}, False), ({"dtype": "mixed_bfloat16"}, False), ({"dilation_rate": (9, 4)}, False)])
def test_the_layer_agrees_with_keras_own_whichever_way_it_takes(settings, fast):
    values = WIDE | {"use_bias": True, "bias_initializer": "random_normal", "activation": "relu"} | settings
    own, plain = DepthwiseConvolution(**values), keras.layers.DepthwiseConv2D(**values)
    inputs = random(1, 10, 10, 4)
    plain(inputs)
    own(inputs)
    own.set_weights(plain.get_weights())
    np.testing.assert_allclose(tf.cast(own(inputs), tf.float32), tf.cast(plain(inputs), tf.float32), rtol=1e-6)
    compiled = [tf.function(layer, [tf.TensorSpec((1, 10, 10, 4))]) for layer in (own, plain)]
    assert (largest(compiled[0]) < largest(compiled[1])) == fast


def test_nothing_but_the_inputs_is_kept_for_the_gradient():
    layer = DepthwiseConvolution(**WIDE, use_bias=False)

    @tf.function(input_signature=[tf.TensorSpec((1, 10, 10, 4))])
    def step(inputs):
        with tf.GradientTape() as tape:
            outputs = layer(inputs)
        return tape.gradient(outputs, [weight.value for weight in layer.weights])

    layer(random(1, 10, 10, 4))
    operations = step.get_concrete_function().graph.get_operations()
    backward = [each for each in operations if "gradient_tape" in each.name]
    assert backward and not any(
        each.op.type.startswith(("SpaceToBatch", "DepthwiseConv")) and "gradient_tape" not in each.op.name
        for operation in backward for each in operation.inputs)


def test_it_survives_its_config():
    layer = DepthwiseConvolution(**WIDE, use_bias=False, name="c")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is DepthwiseConvolution and again.get_config() == layer.get_config()
