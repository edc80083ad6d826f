"""Make the network that is exported: the main head of a model, in one of several precisions."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from kseg import models
from kseg.config.sections import Model
from kseg.errors import ConfigError, unknown
from kseg.models import folding

# Weights are stored as integers from -127 to 127, so that the range is symmetric.
LARGEST = 127


class Output(NamedTuple):
    """Hold the static shape of a network's logits, (None, None, None, classes)."""

    shape: tuple


class Network(tf.Module):
    """Call a function like a model of `kseg.models.build`, and track the variables that are saved with it.

    It takes normalized images, float32 (N, H, W, 3), and returns {"main": logits}, float32 (N, h, w, classes).
    """

    def __init__(self, call: Callable[[tf.Tensor], tf.Tensor], variables: list[tf.Variable], classes: int):
        super().__init__()
        self.saved_variables, self.output, self._call = variables, {"main": Output((None, None, None, classes))}, call

    def __call__(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        return {"main": self._call(images)}


def folded_model(model: keras.Model, device: str) -> keras.Model:
    """Return a copy of the main head with folded batch norms, for a device of `export.device`."""
    return folding.fold_batch_norms(models.main_only(model), {} if device == "cpu" else folding.PORTABLE_CLASSES)


def float32(model: keras.Model, settings: Model, device: str) -> Network:
    """Return a network with the model's weights, computed in float32."""
    main = folded_model(model, device)
    return Network(
        lambda images: main(images, training=False),
        [variable.value for variable in main.variables],
        main.output.shape[-1],
    )


def bfloat16(model: keras.Model, settings: Model, device: str) -> Network:
    """Return a network with the model's weights, whose layers compute in bfloat16."""
    main = folded_model(model, device)
    unfolded = models.build(settings, main.output.shape[-1], precision="mixed_bfloat16")
    mixed = folded_model(unfolded, device)
    mixed.set_weights(main.get_weights())
    return Network(
        lambda images: mixed(images, training=False),
        [variable.value for variable in mixed.variables],
        main.output.shape[-1],
    )


def dynamic_range(model: keras.Model, settings: Model, device: str) -> Network:
    """Return a network that stores kernels as int8, with one scale per output channel, and computes in float32."""
    main = folded_model(model, device)
    saved, readers = [], []
    for variable in main.variables:
        value = variable.numpy()
        if value.ndim < 2:
            copy = tf.Variable(value, trainable=False)
            saved.append(copy)
            readers.append(copy.read_value)
            continue
        integers, scale = quantized(value)
        pair = tf.Variable(integers, trainable=False), tf.Variable(scale, trainable=False)
        saved += pair
        readers.append(lambda pair=pair: tf.cast(pair[0], tf.float32) * pair[1])
    trainable = {id(variable) for variable in main.trainable_variables}
    is_trainable = [id(variable) in trainable for variable in main.variables]

    def call(images: tf.Tensor) -> tf.Tensor:
        values = [read() for read in readers]
        outputs, _ = main.stateless_call(
            [value for value, flag in zip(values, is_trainable) if flag],
            [value for value, flag in zip(values, is_trainable) if not flag],
            images,
            training=False,
        )
        return outputs

    return Network(call, saved, main.output.shape[-1])


def quantized(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantize a kernel and return (int8 integers, float32 scales), whose product differs by at most half a scale.

    There is one scale per output channel: per index of the last axis, or for a depthwise kernel, whose last axis has
    length 1, of the axis before it.
    """
    axis = kernel.ndim - 1 if kernel.shape[-1] > 1 else kernel.ndim - 2
    others = tuple(index for index in range(kernel.ndim) if index != axis)
    scale = np.abs(kernel).max(others, keepdims=True) / LARGEST
    # A channel of zeros would otherwise divide by zero.
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    return np.rint(kernel / scale).astype(np.int8), scale


PRECISIONS = {"float32": float32, "bfloat16": bfloat16, "dynamic-range": dynamic_range}


def export_network(model: keras.Model, settings: Model, precision: str, device: str) -> Network:
    """Return the network to export for a model.

    Args:
        model: A model of `kseg.models.build` with its trained weights.
        settings: The config section that the model was built from.
        precision: A key of PRECISIONS.
        device: "any" or "cpu", as in `export.device`.

    Raises:
        ConfigError: The precision is unknown, or is int8, which needs images.
    """
    if precision == "int8":
        raise ConfigError("export.precision=int8 has to be calibrated on images, which python -m kseg.export does")
    if precision not in PRECISIONS:
        raise ConfigError(unknown("precision", precision, PRECISIONS))
    return PRECISIONS[precision](model, settings, device)
