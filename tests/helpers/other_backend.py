"""Print the losses, gradients and confusion matrix of a fixture as JSON, computed on the backend KERAS_BACKEND.

    KERAS_BACKEND=jax python -m tests.helpers.other_backend mmseg/encnet_r50_d8
"""

import json
import sys

import keras
import numpy as np

from kseg.conversion import gradients
from kseg.evaluation import confusion
from tests.helpers.fixture_cases import Case


def norms(arrays):
    return {name: float(np.linalg.norm(array)) for name, array in arrays.items()}


def main(name):
    case = Case(name)
    images, labels = case.array("input"), case.array("label").astype(np.int32)
    step = gradients.train_step(case.model, images, labels, case.loss, case.config.align_corners)
    ids = keras.ops.argmax(case.model(images)["main"], axis=-1)
    small = labels[:, :: labels.shape[1] // ids.shape[1], :: labels.shape[2] // ids.shape[2]]
    matrix = confusion.confusion(small, ids, case.classes)
    print(json.dumps({
        "backend": keras.backend.backend(), "loss": step.terms["total"],
        "gradients": norms(step.gradients), "statistics": norms(step.statistics),
        "confusion": np.asarray(matrix).tolist(), "ids": np.asarray(ids).tolist(), "labels": small.tolist()}))


if __name__ == "__main__":
    main(sys.argv[1])
