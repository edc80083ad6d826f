"""Compute on JAX what tests compare with TensorFlow and with the reference systems, all in one process.

KERAS_BACKEND=jax python -m tests.helpers.other_backend DIRECTORY [FIXTURE [VERIFIED]]

DIRECTORY/HEAD.npz      outputs for DIRECTORY/images.npy of each head's tiny model, with DIRECTORY/HEAD.weights.h5
DIRECTORY/fixture.json  losses, gradients and confusion matrix of a fixture
DIRECTORY/verified.txt  what `kseg.convert --verify` prints for another fixture
"""

import contextlib
import json
import sys
from pathlib import Path

import jax
import keras
import numpy as np

from kseg import convert, models
from kseg.conversion import gradients
from kseg.evaluation import confusion
from kseg.weights.loading import load_keras
from tests.helpers.fixture_cases import Case
from tests.helpers.shared_files import FIXTURES
from tests.helpers.small_models import tiny, without_values


def build_without_values(*settings):
    """Build a model whose weights a file will supply; JAX would compile random values for each shape anew."""
    with without_values():
        return models.build(*settings)


def write_logits(directory):
    images = np.load(directory / "images.npy")
    for path in sorted(directory.glob("*.weights.h5")):
        head = path.name.removesuffix(".weights.h5")
        model = build_without_values(tiny(head=head), 5)
        load_keras(model, path)
        outputs = jax.jit(lambda images: model(images, training=False))(images)
        np.savez(directory / f"{head}.npz", **{name: np.asarray(output) for name, output in outputs.items()})


def norms(arrays):
    return {name: float(np.linalg.norm(array)) for name, array in arrays.items()}


def fixture_results(name):
    case = Case(name, build_without_values)
    images, labels = case.array("input"), case.array("label").astype(np.int32)
    ids = keras.ops.argmax(case.model(images)["main"], axis=-1)
    small = labels[:, :: labels.shape[1] // ids.shape[1], :: labels.shape[2] // ids.shape[2]]
    matrix = confusion.confusion(small, ids, case.classes)
    step = gradients.train_step(case.model, images, labels, case.loss, case.config.align_corners)
    return {
        "loss": step.terms["total"],
        "gradients": norms(step.gradients),
        "statistics": norms(step.statistics),
        "confusion": np.asarray(matrix).tolist(),
        "ids": np.asarray(ids).tolist(),
        "labels": small.tolist(),
    }


def main(directory, fixture=None, verified=None):
    directory = Path(directory)
    write_logits(directory)
    if fixture:
        (directory / "fixture.json").write_text(json.dumps(fixture_results(fixture)))
    if verified:
        with (directory / "verified.txt").open("w") as file, contextlib.redirect_stdout(file):
            print("status", convert.main(["--verify", str(FIXTURES / verified)]))
    print(keras.backend.backend())


if __name__ == "__main__":
    main(*sys.argv[1:])
