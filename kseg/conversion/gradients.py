"""The numbers of one training step, on any Keras backend: loss terms, gradients, new running statistics."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from kseg.config import Loss
from kseg.training import losses
from kseg.weights import loading


class Step(NamedTuple):
    """One training step's numbers in MMSegmentation's names; `gradients` is None where they cannot be taken."""

    terms: dict[str, float]
    gradients: dict[str, np.ndarray] | None
    statistics: dict[str, np.ndarray]


def train_step(model: keras.Model, images: np.ndarray, labels: np.ndarray, loss: Loss, align_corners: bool) -> Step:
    """Return the weighted loss terms and their "total", the gradients and the new statistics of one step.

    `images` float32 NHWC, `labels` int32 (N, H, W) with 255 ignored. The model stays as it is.
    """
    images, labels = ops.convert_to_tensor(images), ops.convert_to_tensor(labels)
    fixed = [variable.value for variable in model.non_trainable_variables]

    def total(values: list) -> tuple[Any, tuple]:
        outputs, updated = model.stateless_call(values, fixed, images, training=True)
        terms = losses.terms(outputs, labels, loss, align_corners)
        terms = {name: weight * losses.mean(summed, count) for name, (weight, summed, count) in terms.items()}
        return sum(terms.values()), (terms, updated)

    values = [variable.value for variable in model.trainable_variables]
    differentiate = DIFFERENTIATE.get(keras.backend.backend(), lambda function, values: (function(values), None))
    (value, (terms, updated)), gradients = differentiate(total, values)
    names = {id(variable): name for name, variable in loading.mmseg_names(model).items()}
    return Step({name: float(term) for name, term in (terms | {"total": value}).items()},
                None if gradients is None else _named(names, model.trainable_variables, gradients),
                _named(names, model.non_trainable_variables, updated))


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


# Backend -> function (values -> (loss, other results)), values -> that function's result, gradients of the loss.
DIFFERENTIATE = {"tensorflow": _differentiate_on_tensorflow, "jax": _differentiate_on_jax}


def _named(names: Mapping[int, str], variables: list, values: list) -> dict[str, np.ndarray]:
    """Return the values by name; states of random generators, which have none, are left out."""
    return {names[id(variable)]: ops.convert_to_numpy(value).astype(np.float64)
            for variable, value in zip(variables, values) if id(variable) in names}
