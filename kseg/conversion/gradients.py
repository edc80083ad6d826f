"""Compute loss terms, gradients and running statistics of one training step on any Keras backend."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from kseg.config.sections import Loss
from kseg.training import losses
from kseg.weights import loading


class TrainStep(NamedTuple):
    """Results of one training step by MMSegmentation's names.

    `gradients` is None on a backend without support for them.
    """

    terms: dict[str, float]
    gradients: dict[str, np.ndarray] | None
    statistics: dict[str, np.ndarray]


def train_step(
    model: keras.Model, images: np.ndarray, labels: np.ndarray, loss: Loss, align_corners: bool
) -> TrainStep:
    """Compute one training step without changing the model.

    Args:
        model: A model of `kseg.models.build`.
        images: Normalized float32 images (N, H, W, 3).
        labels: Int32 class ids (N, H, W); 255 is ignored.
        loss: The `loss` section of a config.
        align_corners: Whether logits are resized with aligned corners.

    Returns:
        The weighted loss terms with their "total", the gradients and the updated running statistics.
    """
    images, labels = ops.convert_to_tensor(images), ops.convert_to_tensor(labels)
    fixed = [variable.value for variable in model.non_trainable_variables]

    def total(values: list) -> tuple[Any, tuple]:
        outputs, updated = model.stateless_call(values, fixed, images, training=True)
        terms = losses.loss_terms(outputs, labels, loss, align_corners)
        terms = {name: weight * losses.mean_loss(summed, count) for name, (weight, summed, count) in terms.items()}
        return sum(terms.values()), (terms, updated)

    values = [variable.value for variable in model.trainable_variables]
    differentiate = DIFFERENTIATE.get(keras.backend.backend(), lambda function, values: (function(values), None))
    (value, (terms, updated)), gradients = differentiate(total, values)
    names = {id(variable): name for name, variable in loading.mmseg_names(model).items()}
    return TrainStep(
        {name: float(term) for name, term in (terms | {"total": value}).items()},
        None if gradients is None else _named(names, model.trainable_variables, gradients),
        _named(names, model.non_trainable_variables, updated),
    )


def _differentiate_on_tensorflow(function: Callable, values: list) -> tuple[Any, list]:
    import tensorflow as tf

    values = [tf.convert_to_tensor(value) for value in values]
    with tf.GradientTape() as tape:
        tape.watch(values)
        result = function(values)
    return result, tape.gradient(result[0], values, unconnected_gradients="zero")


def _differentiate_on_jax(function: Callable, values: list) -> tuple[Any, list]:
    import jax

    return jax.jit(jax.value_and_grad(function, has_aux=True))(values)


# Backend -> function that maps a function of values and the values to its result and the gradients of its first output.
DIFFERENTIATE = {"tensorflow": _differentiate_on_tensorflow, "jax": _differentiate_on_jax}


def _named(names: Mapping[int, str], variables: list, values: list) -> dict[str, np.ndarray]:
    """Return float64 values by name. States of random generators have no name and are skipped."""
    return {
        names[id(variable)]: ops.convert_to_numpy(value).astype(np.float64)
        for variable, value in zip(variables, values)
        if id(variable) in names
    }
