"""Copies of models: with batch normalisation folded into the convolutions before it, and as they are defined.

A folded model is the same function with fewer operations.
"""

import keras
import numpy as np

from kseg.models.layers import Convolution, DepthwiseConvolution
from kseg.models.norms import BatchNormalization

# Class -> the class that computes the same as it is defined.
DEFINED = {Convolution: keras.layers.Conv2D, DepthwiseConvolution: keras.layers.DepthwiseConv2D}
CONVOLUTIONS = (*DEFINED, *DEFINED.values())


def fold(model: keras.Model, for_cpu: bool = False) -> keras.Model:
    """Return a copy of a functional model in which each norm that directly follows a convolution is part of it.

    kernel' = kernel * gamma / sqrt(variance + epsilon) and bias' = beta + (bias - mean) * gamma / sqrt(variance +
    epsilon), in float64. Other norms stay. The copy shares no variables, and its outputs agree up to rounding; it is
    for inference, since what its norms learned of batches is gone. Its convolutions are plain ones, the same on every
    device; with `for_cpu` they take the way that is faster on a CPU, where there is no GPU.
    """
    pairs = {norm.name: convolution.name for norm, convolution in _foldable(model)}
    folded = set(pairs.values())

    def copied(layer: keras.layers.Layer) -> keras.layers.Layer:
        if layer.name in pairs:
            return keras.layers.Identity(name=layer.name, dtype=layer.dtype_policy)
        settings = layer.get_config()
        if layer.name in folded:
            settings["use_bias"] = True
        return (type(layer) if for_cpu else defined(layer)).from_config(settings)

    copy = keras.models.clone_model(model, clone_function=copied)
    norms = {convolution: model.get_layer(norm) for norm, convolution in pairs.items()}
    for layer in copy.layers:
        if layer.name in pairs or not layer.weights:
            continue
        own = model.get_layer(layer.name)
        values = own.get_weights()
        layer.set_weights(_folded(own, values, norms[layer.name]) if layer.name in folded else values)
    return copy


def defined(layer: keras.layers.Layer) -> type[keras.layers.Layer]:
    """Return the class that computes what a layer does as it is defined, on every device alike."""
    return DEFINED.get(type(layer), type(layer))


def _foldable(model: keras.Model) -> list[tuple[BatchNormalization, keras.layers.Layer]]:
    """Return the (norm, convolution) pairs where nothing else sees what the convolution gives."""
    # By identity: tensors of a functional model are the same object at both ends of an edge.
    consumers: dict[int, list[keras.layers.Layer]] = {}
    for layer in model.layers:
        if not isinstance(layer, keras.layers.InputLayer):
            for tensor in keras.tree.flatten(layer.input):
                consumers.setdefault(id(tensor), []).append(layer)
    seen = {id(tensor) for tensor in keras.tree.flatten(model.output)}
    pairs = []
    for layer in model.layers:
        users = consumers.get(id(layer.output), []) if type(layer) in CONVOLUTIONS else []
        if (len(users) == 1 and isinstance(users[0], BatchNormalization) and id(layer.output) not in seen
                and layer.activation is keras.activations.linear):
            pairs.append((users[0], layer))
    return pairs


def _folded(convolution: keras.layers.Layer, weights: list[np.ndarray], norm: BatchNormalization) -> list[np.ndarray]:
    """Return the kernel and bias of a convolution with its norm in it."""
    gamma, beta, mean, variance = (np.asarray(value, np.float64) for value in norm.get_weights())
    factor = gamma / np.sqrt(variance + norm.epsilon)
    kernel = weights[0].astype(np.float64)
    bias = weights[1].astype(np.float64) if len(weights) > 1 else 0.0
    # Keras keeps a depthwise kernel as (height, width, channels, 1).
    scaled = kernel * (factor.reshape(kernel.shape[2:]) if isinstance(convolution, keras.layers.DepthwiseConv2D)
                       else factor)
    return [scaled.astype(np.float32), (beta + (bias - mean) * factor).astype(np.float32)]
