"""Models, losses and metrics use only Keras operations: on JAX they match the reference systems, too."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers.running import ON_JAX, ROOT
from tests.helpers.shared_files import FIXTURES, needs_fixtures

pytest.importorskip("jax", reason="JAX is not installed")


@needs_fixtures
@pytest.mark.parametrize("name", ["mmseg/encnet_r18_d16_lateral"])
def test_jax_matches_the_reference(name):
    result = subprocess.run([sys.executable, "-m", "tests.helpers.other_backend", name], text=True, capture_output=True,
                            env=os.environ | ON_JAX, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    actual = json.loads(result.stdout.splitlines()[-1])
    assert actual["backend"] == "jax"
    expected = {key: json.loads((FIXTURES / name / f"{key}.json").read_text())
                for key in ("losses", "grads", "bn_after_step")}
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
