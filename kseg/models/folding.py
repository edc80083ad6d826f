"""Copies of models for inference, with batch normalization folded into the preceding convolutions."""

from collections.abc import Mapping

import keras
import numpy as np

from kseg.models.layers import Convolution, DepthwiseConvolution
from kseg.models.norms import BatchNormalization

# Layers with a fast form for CPUs -> the Keras layers that define their results.
PORTABLE_CLASSES = {Convolution: keras.layers.Conv2D, DepthwiseConvolution: keras.layers.DepthwiseConv2D}
CONVOLUTIONS = (*PORTABLE_CLASSES, *PORTABLE_CLASSES.values())


def fold_batch_norms(model: keras.Model, classes: Mapping[type, type] = PORTABLE_CLASSES) -> keras.Model:
    """Return a copy of a functional model with its norms folded into convolutions.

    A norm that directly follows a convolution becomes part of it, computed in float64:

        kernel' = kernel * gamma / sqrt(variance + epsilon)
        bias' = beta + (bias - mean) * gamma / sqrt(variance + epsilon)

    Other norms stay. The copy is for inference only, because the folded norms no longer see the statistics of a batch.

    Args:
        model: A functional model.
        classes: Class of a layer -> class of its copy with the same config and variables; other layers keep theirs. By
            default convolutions become Keras' plain ones, the same on every device.

    Returns:
        A model with variables of its own. Its outputs agree with those of `model` up to rounding.

    Example:
        >>> import numpy as np
        >>> from kseg import models
        >>> from kseg.config.sections import Model
        >>> tiny = Model(backbone="resnet18", width=4, head="fcn", channels=8, auxiliary_channels=0)
        >>> model, images = models.build(tiny, classes=2), np.ones((1, 64, 64, 3), "float32")
        >>> folded = fold_batch_norms(model)
        >>> np.allclose(folded(images)["main"], model(images)["main"], atol=1e-4)
        True
        >>> folded.count_params() < model.count_params()
        True
    """
    convolution_names = {norm.name: convolution.name for norm, convolution in _foldable(model)}
    norms = {convolution: model.get_layer(norm) for norm, convolution in convolution_names.items()}

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        if layer.name in convolution_names:
            return keras.layers.Identity(name=layer.name, dtype=layer.dtype_policy)
        settings = layer.get_config()
        if layer.name in norms:
            settings["use_bias"] = True
        return classes.get(type(layer), type(layer)).from_config(settings)

    copy = keras.models.clone_model(model, clone_function=clone)
    for layer in copy.layers:
        if layer.name in convolution_names or not layer.weights:
            continue
        original = model.get_layer(layer.name)
        weights = original.get_weights()
        layer.set_weights(_folded_weights(original, weights, norms[layer.name]) if layer.name in norms else weights)
    return copy


def portable_class(layer: keras.layers.Layer) -> type[keras.layers.Layer]:
    """Return the class that computes a layer's result the same way on every device."""
    return PORTABLE_CLASSES.get(type(layer), type(layer))


def _foldable(model: keras.Model) -> list[tuple[BatchNormalization, keras.layers.Layer]]:
    """Return the (norm, convolution) pairs in which only the norm uses the convolution's output."""
    # Tensors are compared by identity: both ends of an edge of a functional model hold the same object.
    consumers: dict[int, list[keras.layers.Layer]] = {}
    for layer in model.layers:
        if not isinstance(layer, keras.layers.InputLayer):
            for tensor in keras.tree.flatten(layer.input):
                consumers.setdefault(id(tensor), []).append(layer)
    model_outputs = {id(tensor) for tensor in keras.tree.flatten(model.output)}
    pairs = []
    for layer in model.layers:
        users = consumers.get(id(layer.output), []) if type(layer) in CONVOLUTIONS else []
        if (
            len(users) == 1
            and isinstance(users[0], BatchNormalization)
            and id(layer.output) not in model_outputs
            and layer.activation is keras.activations.linear
        ):
            pairs.append((users[0], layer))
    return pairs


def _folded_weights(
    convolution: keras.layers.Layer, weights: list[np.ndarray], norm: BatchNormalization
) -> list[np.ndarray]:
    """Return the float32 kernel and bias of a convolution that includes its norm."""
    gamma, beta, mean, variance = (np.asarray(value, np.float64) for value in norm.get_weights())
    factor = gamma / np.sqrt(variance + norm.epsilon)
    kernel = weights[0].astype(np.float64)
    bias = weights[1].astype(np.float64) if len(weights) > 1 else 0.0
    # Keras stores a depthwise kernel as (height, width, channels, 1).
    scaled = kernel * (
        factor.reshape(kernel.shape[2:]) if isinstance(convolution, keras.layers.DepthwiseConv2D) else factor
    )
    return [scaled.astype(np.float32), (beta + (bias - mean) * factor).astype(np.float32)]
