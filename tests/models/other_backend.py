"""Losses, gradients and counts of one fixture on the backend that KERAS_BACKEND names, printed as JSON.

    KERAS_BACKEND=jax python tests/models/other_backend.py mmseg/encnet_r50_d8
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import keras
import numpy as np
from fixture_cases import Case

from kseg import losses, metrics, weights


def main(name):
    case = Case(name)
    images, labels = case.array("input"), case.array("label")
    model = case.model
    trainable = [variable.value for variable in model.trainable_variables]
    fixed = [variable.value for variable in model.non_trainable_variables]

    def loss(values):
        outputs, updated = model.stateless_call(values, fixed, images, training=True)
        terms = losses.terms(outputs, labels, case.loss, case.config.align_corners)
        return sum(weight * total / count for weight, total, count in terms.values()), updated

    (value, updated), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(trainable)
    names = {id(variable): key for key, variable in weights.mmseg_names(model).items()}
    ids = keras.ops.argmax(model(images)["main"], axis=-1)
    small = labels[:, :: labels.shape[1] // ids.shape[1], :: labels.shape[2] // ids.shape[2]]
    matrix = metrics.confusion(small, ids, case.description["args"]["classes"])
    print(json.dumps({
        "backend": keras.backend.backend(), "loss": float(value),
        "gradients": {names[id(variable)]: float(np.linalg.norm(np.asarray(gradient, np.float64)))
                      for variable, gradient in zip(model.trainable_variables, gradients)},
        "statistics": {names[id(variable)]: float(np.linalg.norm(np.asarray(array, np.float64)))
                       for variable, array in zip(model.non_trainable_variables, updated) if id(variable) in names},
        "confusion": np.asarray(matrix).tolist(), "ids": np.asarray(ids).tolist(), "labels": small.tolist()}))


if __name__ == "__main__":
    main(sys.argv[1])
