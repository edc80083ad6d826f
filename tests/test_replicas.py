"""Training on several devices: the numbers of one, a batch that is shared out, and steps that all leave out."""

import json
import subprocess
import sys

import numpy as np
import pytest
from running import ROOT, tiny


@pytest.fixture(scope="module")
def found(shapes_directory, tmp_path_factory):
    """What a process with two virtual devices found; see replica_runs.py."""
    arguments = tiny(shapes_directory, "train.steps=2", "--workdir", str(tmp_path_factory.mktemp("two devices")))
    result = subprocess.run([sys.executable, "tests/replica_runs.py", *arguments], cwd=ROOT, text=True,
                            capture_output=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_they_share_the_batch_on_the_command_line(found):
    assert found["status"] == 0
    assert "global batch 2 = 2 replicas x 1" in found["printed"] and "finished 2 steps" in found["printed"]


def test_a_batch_that_cannot_be_shared_evenly_is_an_error(found):
    assert "train.global_batch=3 cannot be shared evenly by 2 replicas" in found["uneven"]


# Each way of averaging, and the default one with normalisation over the whole batch.
@pytest.mark.parametrize("case", ["encnet", "valid", "all, mined below a threshold", "kept, weighted and mined"])
def test_two_give_the_losses_of_one_device(case, found):
    series = found["losses"][case]
    assert len(series["one"]) == 20
    np.testing.assert_allclose(series["two"], series["one"], rtol=1e-5)
    assert series["one"][-1] < series["one"][0]


def test_one_with_an_infinite_gradient_stops_all(found):
    steps = found["skips"]
    start = {"first": [[1.0, 1.0]] * 2, "second": [2.0] * 2, "first velocity": [[0.0, 0.0]] * 2,
             "second velocity": [0.0] * 2, "skipped": 1.0}
    assert steps["infinite"] == steps["nan"] == start
    # The gradients of both replicas are 1, the rate is 0.1.
    assert steps["finite"] == {"first": [pytest.approx([0.8, 0.8])] * 2, "second": [pytest.approx(1.8)] * 2,
                               "first velocity": [[2.0, 2.0]] * 2, "second velocity": [2.0] * 2, "skipped": 0.0}
