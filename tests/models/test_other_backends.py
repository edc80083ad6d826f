"""Models, losses, metrics and verification use only Keras operations: on JAX they give the same results, too."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from kseg import models
from tests.helpers.exhaustive import ALL, exhaustive
from tests.helpers.running import ON_JAX, ROOT
from tests.helpers.shared_files import FIXTURES, assert_agreement, needs_fixtures
from tests.helpers.small_models import randomize_statistics, tiny

pytest.importorskip("jax", reason="JAX is not installed")

FIXTURE, VERIFIED = "mmseg/encnet_r18_d16_lateral", "sss/deeplabv3plus_r18_d16"


@pytest.fixture(scope="module")
def on_jax(tmp_path_factory):
    """Return (directory of the results of a process on JAX, {head: outputs on TensorFlow})."""
    directory, expected = tmp_path_factory.mktemp("on jax"), {}
    images = np.random.default_rng(0).normal(size=(2, 33, 47, 3)).astype(np.float32)
    np.save(directory / "images.npy", images)
    for seed, head in enumerate(models.HEADS if ALL else ("encnet",)):
        keras.utils.set_random_seed(seed)
        model = models.build(tiny(head=head), 5)
        randomize_statistics(model)
        model.save_weights(directory / f"{head}.weights.h5")
        expected[head] = model(images, training=False)
    fixtures = [FIXTURE, *([VERIFIED] if ALL else [])] if FIXTURES.is_dir() else []
    result = subprocess.run(
        [sys.executable, "-m", "tests.helpers.other_backend", directory, *fixtures],
        text=True,
        capture_output=True,
        env=os.environ | ON_JAX,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == "jax"
    return directory, expected


def test_jax_loads_the_same_weights_and_gives_the_same_logits(on_jax):
    directory, expected = on_jax
    for head, outputs in expected.items():
        actual = np.load(directory / f"{head}.npz")
        assert set(actual) == set(outputs)
        for name, output in outputs.items():
            assert np.abs(actual[name] - output).max() <= 1e-4 * max(1, np.abs(output).max()), (head, name)


@needs_fixtures
def test_jax_matches_the_reference(on_jax):
    actual = json.loads((on_jax[0] / "fixture.json").read_text())
    expected = {
        key: json.loads((FIXTURES / FIXTURE / f"{key}.json").read_text())
        for key in ("losses", "grads", "bn_after_step")
    }
    assert actual["loss"] == pytest.approx(expected["losses"]["total"], rel=1e-5)
    # The relative error of a gradient that is zero up to rounding is meaningless.
    floor = 1e-6 * max(pair[0] for key, pair in expected["grads"].items() if key != "_note")
    for key, value in actual["gradients"].items():
        assert value == pytest.approx(expected["grads"][key][0], rel=1e-3, abs=floor), key
    for key, value in actual["statistics"].items():
        assert value == pytest.approx(expected["bn_after_step"][key][0], rel=1e-3), key
    labels, ids = np.array(actual["labels"]).ravel(), np.array(actual["ids"]).ravel()
    classes = len(actual["confusion"])
    matrix = np.zeros((classes, classes), int)
    np.add.at(matrix, (labels[labels < 255], ids[labels < 255]), 1)
    np.testing.assert_array_equal(matrix, actual["confusion"])


@exhaustive
@needs_fixtures
def test_jax_verifies_another_reference(on_jax):
    output = (on_jax[0] / "verified.txt").read_text()
    assert output.splitlines()[-1] == "status 0", output
    assert_agreement(output)
