"""Multiply-adds of a model, counted in its traced graph."""

import math
import re

import keras
import tensorflow as tf

from kseg.models import folding


def multiply_adds(function: tf.types.experimental.ConcreteFunction) -> int:
    """Return the multiply-adds of all convolutions and matrix products in a traced function, each counted once.

    All shapes must be known. Positions that TensorFlow only pads for a dilated convolution are not counted; those of
    the picture's own zero padding are, as everywhere. Raises NotImplementedError for an operation that multiplies
    matrices in another way, or hides others.
    """
    total = 0
    for operation in function.graph.get_operations():
        if operation.type in COUNTED:
            total += COUNTED[operation.type](operation)
        elif re.search("Conv|MatMul|Einsum|Call|While|^If$|^StatelessIf$|Case", operation.type):
            raise NotImplementedError(f"multiply-adds of {operation.type} ({operation.name}) are not counted")
    return total


def of_forward(model: keras.Model, shape: tuple[int, ...]) -> int:
    """Return the multiply-adds of a functional model's forward pass over images of a shape (N, H, W, 3).

    Of its layers as they are defined: on a CPU some get by with fewer.
    """
    plain = keras.models.clone_model(keras.Model(model.input, model.output), clone_function=lambda layer: (
        folding.defined(layer).from_config(layer.get_config())))
    forward = tf.function(lambda images: plain(images, training=False))
    return multiply_adds(forward.get_concrete_function(tf.TensorSpec(shape, tf.float32)))


def _of_convolution(operation: tf.Operation) -> int:
    """Each output sums over the kernel's height and width, and over its input channels unless it is depthwise."""
    summed = operation.inputs[1].shape[:3 if operation.type == "Conv2D" else 2]
    outputs = operation.outputs[0]
    # A dilated convolution is one over interleaved parts of the map; put together again, what was padded to make them
    # even is cut off.
    together = [each for each in outputs.consumers() if each.type == "BatchToSpaceND"]
    return math.prod(summed) * (together[0].outputs[0] if together else outputs).shape.num_elements()


def _of_product(operation: tf.Operation) -> int:
    """Each output sums over the side that both matrices share."""
    turned = operation.get_attr("transpose_a" if operation.type == "MatMul" else "adj_x")
    return operation.outputs[0].shape.num_elements() * operation.inputs[0].shape[-2 if turned else -1]


COUNTED = {"Conv2D": _of_convolution, "DepthwiseConv2dNative": _of_convolution,
           "MatMul": _of_product, "BatchMatMulV2": _of_product}
