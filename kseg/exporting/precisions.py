"""The networks that are exported: a built model's main head in one of PRECISIONS, with its variables."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from kseg import models
from kseg.config.sections import Model
from kseg.errors import ConfigError, unknown
from kseg.models import folding

# The largest of the whole numbers that weights are stored as.
LARGEST = 127


class Output(NamedTuple):
    """What is known of a network's logits before it is called."""

    shape: tuple


class Network(tf.Module):
    """Normalised images in, {"main": logits} out, as kseg.inference.prediction calls a model; it holds what is saved."""

    def __init__(self, call: Callable[[tf.Tensor], tf.Tensor], variables: list[tf.Variable], classes: int):
        super().__init__()
        self.held, self.output, self._call = variables, {"main": Output((None, None, None, classes))}, call

    def __call__(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        return {"main": self._call(images)}


def folded_model(model: keras.Model, device: str) -> keras.Model:
    """Return a copy of a built model's main head for the devices that export.device names."""
    return folding.fold_batch_norms(models.main_only(model), device == "cpu")


def float32(model: keras.Model, settings: Model, device: str) -> Network:
    """The model's own weights."""
    main = folded_model(model, device)
    return Network(lambda images: main(images, training=False), [each.value for each in main.variables],
                   main.output.shape[-1])


def bfloat16(model: keras.Model, settings: Model, device: str) -> Network:
    """The same weights, layers computing in bfloat16."""
    main = folded_model(model, device)
    bare = models.build(settings, main.output.shape[-1], precision="mixed_bfloat16")
    low = folded_model(bare, device)
    low.set_weights(main.get_weights())
    return Network(lambda images: low(images, training=False), [each.value for each in low.variables],
                   main.output.shape[-1])


def dynamic_range(model: keras.Model, settings: Model, device: str) -> Network:
    """Kernels stored as int8 with one scale for each output channel, a quarter of the size; computed in float32."""
    main = folded_model(model, device)
    held, readers = [], []
    for variable in main.variables:
        value = variable.numpy()
        if value.ndim < 2:
            own = tf.Variable(value, trainable=False)
            held.append(own)
            readers.append(own.read_value)
            continue
        whole, scale = quantized(value)
        pair = tf.Variable(whole, trainable=False), tf.Variable(scale, trainable=False)
        held += pair
        readers.append(lambda pair=pair: tf.cast(pair[0], tf.float32) * pair[1])
    trainable = {id(variable) for variable in main.trainable_variables}
    kept = [id(variable) in trainable for variable in main.variables]

    def call(images: tf.Tensor) -> tf.Tensor:
        values = [read() for read in readers]
        outputs, _ = main.stateless_call([value for value, own in zip(values, kept) if own],
                                         [value for value, own in zip(values, kept) if not own], images, training=False)
        return outputs

    return Network(call, held, main.output.shape[-1])


def quantized(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return int8 whole numbers and float32 scales whose product is the kernel to half a step.

    One scale for each index of the last axis, or where that has one alone (a depthwise kernel) of the one before it.
    """
    axis = kernel.ndim - 1 if kernel.shape[-1] > 1 else kernel.ndim - 2
    others = tuple(index for index in range(kernel.ndim) if index != axis)
    scale = np.abs(kernel).max(others, keepdims=True) / LARGEST
    # A channel of zeros stays one.
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    return np.rint(kernel / scale).astype(np.int8), scale


PRECISIONS = {"float32": float32, "bfloat16": bfloat16, "dynamic-range": dynamic_range}


def export_network(model: keras.Model, settings: Model, precision: str, device: str) -> Network:
    """Return the network that is exported of a built model; raises ConfigError for an unknown precision."""
    if precision not in PRECISIONS:
        raise ConfigError(unknown("precision", precision, PRECISIONS))
    return PRECISIONS[precision](model, settings, device)
