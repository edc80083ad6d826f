"""Multiply-accumulate operations (MACs) of a model, counted in its traced graph."""

import math
import re

import keras
import tensorflow as tf

from kseg.models import folding


def count_layer_macs(function: tf.types.experimental.ConcreteFunction) -> int:
    """Count the MACs of all convolutions and matrix products in a traced function.

    Every operation counts once. Positions that TensorFlow adds only to compute a dilated convolution are excluded;
    zero padding at the image border is included, as in other counters.

    Args:
        function: A traced function in which all shapes are known.

    Raises:
        NotImplementedError: An operation multiplies matrices in another way or contains other operations.
    """
    total = 0
    for operation in function.graph.get_operations():
        if operation.type in COUNTERS:
            total += COUNTERS[operation.type](operation)
        elif re.search("Conv|MatMul|Einsum|Call|While|^If$|^StatelessIf$|Case", operation.type):
            raise NotImplementedError(f"cannot count the MACs of {operation.type} ({operation.name})")
    return total


def count_macs(model: keras.Model, shape: tuple[int, ...]) -> int:
    """Count the MACs of a functional model's forward pass.

    The count follows the definition of the layers, although some need fewer MACs on a CPU.

    Args:
        model: A functional model of images.
        shape: Shape (N, H, W, 3) of the images.
    """
    portable = keras.models.clone_model(
        keras.Model(model.input, model.output),
        clone_function=lambda layer: folding.portable_class(layer).from_config(layer.get_config()),
    )
    forward = tf.function(lambda images: portable(images, training=False), autograph=False)
    return count_layer_macs(forward.get_concrete_function(tf.TensorSpec(shape, tf.float32)))


def _convolution_macs(operation: tf.Operation) -> int:
    # An output sums over the kernel's height and width, and over the input channels unless it is depthwise.
    summed = operation.inputs[1].shape[: 3 if operation.type == "Conv2D" else 2]
    outputs = operation.outputs[0]
    # A dilated convolution runs on interleaved parts of the map. BatchToSpaceND joins them again and crops the
    # padding that made their sizes equal.
    joins = [consumer for consumer in outputs.consumers() if consumer.type == "BatchToSpaceND"]
    return math.prod(summed) * (joins[0].outputs[0] if joins else outputs).shape.num_elements()


def _product_macs(operation: tf.Operation) -> int:
    # An output sums over the dimension that both matrices share.
    transposed = operation.get_attr("transpose_a" if operation.type == "MatMul" else "adj_x")
    return operation.outputs[0].shape.num_elements() * operation.inputs[0].shape[-2 if transposed else -1]


COUNTERS = {
    "Conv2D": _convolution_macs,
    "DepthwiseConv2dNative": _convolution_macs,
    "MatMul": _product_macs,
    "BatchMatMulV2": _product_macs,
}
