"""Training on several devices: the numbers of one, a batch that is shared out, and steps that all leave out."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers.replica_runs import norm_case
from tests.helpers.running import ROOT, tiny


@pytest.fixture(scope="module")
def found(shapes_directory, tmp_path_factory):
    """What a process with two virtual devices found; see replica_runs.py."""
    arguments = tiny(shapes_directory, "train.steps=2", "--workdir", str(tmp_path_factory.mktemp("two devices")))
    result = subprocess.run([sys.executable, "-m", "tests.helpers.replica_runs", *arguments], cwd=ROOT, text=True,
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


@pytest.mark.parametrize("form", ["fused_training", "normalize_training", "exact_training"])
def test_norms_are_those_of_the_whole_batch_with_one_message_each_way(form, found):
    inputs, upstream, gamma, beta = (value.astype(np.float64) for value in norm_case())
    axes = (0, 1, 2)
    mean, count = inputs.mean(axes), inputs.size // 8
    inverse = 1 / np.sqrt(inputs.var(axes) + 1e-5)
    centred = (inputs - mean) * inverse
    of_gamma, of_beta = (upstream * centred).sum(axes), upstream.sum(axes)
    of_inputs = gamma * inverse * (upstream - of_beta / count - centred * of_gamma / count)
    outputs, means, variances, *gradients = found["norms"][form]["results"]
    np.testing.assert_allclose(np.concatenate(outputs), centred * gamma + beta, atol=2e-5)
    for replica in range(2):
        np.testing.assert_allclose(means[replica], mean, rtol=1e-6)
        np.testing.assert_allclose(variances[replica], inputs.var(axes, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(np.concatenate(gradients[0]), of_inputs, atol=2e-5)
    # Each replica's own part; the step adds them up.
    np.testing.assert_allclose(np.sum(gradients[1], 0), of_gamma, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(np.sum(gradients[2], 0), of_beta, rtol=1e-5, atol=1e-4)
    assert found["norms"][form]["messages"] == 2


def test_one_with_an_infinite_gradient_stops_all(found):
    steps = found["skips"]
    start = {"first": [[1.0, 1.0]] * 2, "second": [2.0] * 2, "first velocity": [[0.0, 0.0]] * 2,
             "second velocity": [0.0] * 2, "skipped": 1.0}
    assert steps["infinite"] == steps["nan"] == start
    # The gradients of both replicas are 1, the rate is 0.1.
    assert steps["finite"] == {"first": [pytest.approx([0.8, 0.8])] * 2, "second": [pytest.approx(1.8)] * 2,
                               "first velocity": [[2.0, 2.0]] * 2, "second velocity": [2.0] * 2, "skipped": 0.0}
