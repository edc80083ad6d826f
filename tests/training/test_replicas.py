"""Training on several devices: equal losses, an evenly divided batch, and steps that all replicas skip."""

import json

import numpy as np
import pytest

from tests.helpers.replica_runs import norm_case
from tests.helpers.running import run, tiny
from tests.helpers.small_training import SMALL


@pytest.fixture(scope="module")
def results(shapes_directory, tmp_path_factory):
    """Return the output of tests.helpers.replica_runs, a process with two virtual devices."""
    arguments = tiny(
        shapes_directory, *SMALL, "train.steps=2", "--workdir", str(tmp_path_factory.mktemp("two devices"))
    )
    output = run("tests.helpers.replica_runs", *arguments)
    return json.loads(next(line for line in reversed(output.splitlines()) if line.startswith("{")))


def test_command_divides_the_batch(results):
    assert results["status"] == 0
    assert "2 replicas x 1" in results["printed"] and "finished 2 steps" in results["printed"]


def test_indivisible_batch_is_an_error(results):
    assert "train.global_batch=3" in results["uneven"] and "2 replicas" in results["uneven"]


# All ways of averaging, and EncNet with normalization over the whole batch.
@pytest.mark.parametrize("case", ["encnet", "valid", "all, mined below a threshold", "kept, weighted and mined"])
def test_two_devices_have_the_losses_of_one(case, results):
    series = results["losses"][case]
    assert len(series["one"]) == 20
    np.testing.assert_allclose(series["two"], series["one"], rtol=1e-5)
    assert series["one"][-1] < series["one"][0]


@pytest.mark.parametrize("form", ["fused_training", "normalize_training", "exact_training"])
def test_norms_use_the_whole_batch_with_one_message_in_each_direction(form, results):
    inputs, upstream, gamma, beta = (value.astype(np.float64) for value in norm_case())
    axes = (0, 1, 2)
    mean, count = inputs.mean(axes), inputs.size // 8
    inverse = 1 / np.sqrt(inputs.var(axes) + 1e-5)
    normalized = (inputs - mean) * inverse
    gamma_gradient, beta_gradient = (upstream * normalized).sum(axes), upstream.sum(axes)
    input_gradient = gamma * inverse * (upstream - beta_gradient / count - normalized * gamma_gradient / count)
    outputs, means, variances, *gradients = results["norms"][form]["results"]
    np.testing.assert_allclose(np.concatenate(outputs), normalized * gamma + beta, atol=2e-5)
    for replica in range(2):
        np.testing.assert_allclose(means[replica], mean, rtol=1e-6)
        np.testing.assert_allclose(variances[replica], inputs.var(axes, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(np.concatenate(gradients[0]), input_gradient, atol=2e-5)
    # Each replica returns its own summand; the training step adds them up.
    np.testing.assert_allclose(np.sum(gradients[1], 0), gamma_gradient, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(np.sum(gradients[2], 0), beta_gradient, rtol=1e-5, atol=1e-4)
    assert results["norms"][form]["messages"] == 2


def test_nonfinite_gradient_of_one_replica_skips_the_step_on_all(results):
    steps = results["skips"]
    start = {
        "first": [[1.0, 1.0]] * 2,
        "second": [2.0] * 2,
        "first velocity": [[0.0, 0.0]] * 2,
        "second velocity": [0.0] * 2,
        "skipped": 1.0,
    }
    assert steps["infinite"] == steps["nan"] == start
    # The gradients of both replicas are 1, and the learning rate is 0.1.
    assert steps["finite"] == {
        "first": [pytest.approx([0.8, 0.8])] * 2,
        "second": [pytest.approx(1.8)] * 2,
        "first velocity": [[2.0, 2.0]] * 2,
        "second velocity": [2.0] * 2,
        "skipped": 0.0,
    }


def test_gradients_are_exchanged_in_packs(results):
    # Beginning with the last one, a pack is full once it exceeds the size.
    assert {size: found["messages"] for size, found in results["packs"].items()} == {"0": 1, "500": 2, "2000": 1}
    for found in results["packs"].values():
        assert found["sums"] == [[3.0, 3.0, count] for count in (100, 100, 200, 200, 100, 100)]


def test_the_step_of_two_replicas_stays_on_the_gpus(results):
    assert results["walk"]["missing"] == [] and results["walk"]["crossings"] == []
    assert results["walk"]["messages"] > 1
