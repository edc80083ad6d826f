"""Loss terms computed by hand, by slow loops, and as sums that add up over the parts of a batch."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from kseg.config import Config
from kseg.config.sections import Loss
from kseg.errors import ConfigError
from kseg.training import losses, trainer
from tests.helpers.running import ROOT
from tests.helpers.slow_losses import CASES, example, reference

LOG2, LOG3 = math.log(2), math.log(3)

# The true classes have the probabilities 1/2, 1/4, (ignored) and 3/4.
LOGITS = np.array([[[[0, 0], [LOG3, 0]], [[50, -50], [0, LOG3]]]], np.float32)
LABELS = np.array([[[0, 1], [255, 1]]], np.uint8)
TOTAL = math.log(2) + math.log(4) + math.log(4 / 3)


@pytest.mark.parametrize("average, count", [("all", 4), ("valid", 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_cross_entropy_by_hand(average, count, dtype):
    total, counted = losses.cross_entropy(LOGITS, LABELS.astype(dtype), Loss(average=average))
    assert float(total) == pytest.approx(TOTAL, rel=1e-6)
    assert float(counted) == count


@pytest.mark.parametrize("average", ["all", "valid"])
def test_ignored_pixels_have_no_gradient(average):
    logits = tf.Variable(LOGITS)
    with tf.GradientTape() as tape:
        total, count = losses.cross_entropy(logits, LABELS, Loss(average=average))
        loss = total / count
    gradient = tape.gradient(loss, logits).numpy()
    assert (gradient[0, 1, 0] == 0).all()
    # The gradient is (probability - 1) / divisor.
    assert gradient[0, 0, 0] == pytest.approx([-0.5 / float(count), 0.5 / float(count)])


@pytest.mark.parametrize(
    "settings", [{}, {"class_weights": (1.0, 2.0, 0.5, 0.0)}, {"ohem_kept": 3}, {"ohem_kept": 3, "ohem_threshold": 0.7}]
)
@pytest.mark.parametrize("average", ["all", "valid", "kept"])
def test_loss_of_only_ignored_pixels_is_zero_with_finite_gradients(average, settings):
    outputs = {
        name: tf.Variable(np.random.default_rng(0).normal(size=(2, 3, 3, 4)), dtype=tf.float32)
        for name in ("main", "aux")
    } | {"se": tf.Variable(tf.ones((2, 4)))}
    labels = np.full((2, 6, 6), 255, np.uint8)
    with tf.GradientTape() as tape:
        terms = losses.loss_terms(outputs, labels, Loss(average=average, **settings))
        parts = {name: weight * losses.mean_loss(total, count) for name, (weight, total, count) in terms.items()}
        loss = sum(parts.values())
    assert float(parts["main"]) == float(parts["aux"]) == 0
    for name, gradient in zip(outputs, tape.gradient(loss, list(outputs.values()))):
        assert np.isfinite(gradient).all()
        assert name == "se" or not np.any(gradient)


@pytest.mark.parametrize("align_corners, rows", [(False, [0, 1, 3, 4]), (True, [0, 4 / 3, 8 / 3, 4])])
def test_logits_are_resized_to_the_size_of_the_labels(align_corners, rows):
    logits = np.array([[[[0, 0]], [[4, 0]]]], np.float32)
    labels = np.zeros((1, 4, 1), np.uint8)
    _, total, count = losses.loss_terms({"main": logits}, labels, Loss(), align_corners)["main"]
    assert float(total) == pytest.approx(sum(math.log1p(math.exp(-row)) for row in rows), rel=1e-6)
    assert float(count) == 4


def test_losses_of_half_precision_logits_are_computed_in_float32():
    exact = losses.loss_terms({"main": LOGITS}, LABELS, Loss())["main"][1]
    rounded = losses.loss_terms({"main": tf.cast(tf.cast(LOGITS, tf.bfloat16), tf.float32)}, LABELS, Loss())["main"][1]
    half = losses.loss_terms({"main": tf.cast(LOGITS, tf.bfloat16)}, LABELS, Loss())["main"][1]
    assert half.dtype == tf.float32 and float(half) == float(rounded) != float(exact)


def test_terms_have_the_configured_weights():
    outputs = {"main": LOGITS, "aux": LOGITS, "se": np.zeros((1, 2), np.float32)}
    terms = losses.loss_terms(outputs, LABELS, Loss(main=3.0, auxiliary=0.5, se=0.25))
    assert {name: weight for name, (weight, _, _) in terms.items()} == {"main": 3.0, "aux": 0.5, "se": 0.25}
    _, total, count = terms["se"]
    assert (float(total), float(count)) == pytest.approx((2 * LOG2, 2))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_class_presence_against_a_loop(dtype):
    generator = np.random.default_rng(1)
    labels = generator.choice([0, 2, 4, 255], size=(4, 5, 6)).astype(dtype)
    labels[1] = 255
    labels[2] = 3
    # Labels beyond the classes count as ignored.
    labels[3, 0] = 7
    logits = generator.normal(0, 3, size=(4, 5)).astype(np.float32)
    logits[0, :2] = 80, -80
    total = 0.0
    for image in range(4):
        for index in range(5):
            score = float(logits[image, index])
            total += math.log1p(math.exp(-score if (labels[image] == index).any() else score))
    summed, count = losses.class_presence(logits, labels)
    assert float(summed) == pytest.approx(total, rel=1e-5)
    assert float(count) == 20


@pytest.mark.parametrize("average", ["all", "valid"])
def test_sums_of_unequal_halves_add_up_to_the_whole_batch(average):
    generator = np.random.default_rng(2)
    outputs = {
        "main": generator.normal(size=(4, 3, 3, 5)),
        "aux": generator.normal(size=(4, 2, 2, 5)),
        "se": generator.normal(size=(4, 5)),
    }
    outputs = {name: value.astype(np.float32) for name, value in outputs.items()}
    labels = generator.integers(0, 5, (4, 9, 9)).astype(np.uint8)
    labels[2:, 1:] = 255
    loss = Loss(average=average)
    whole = losses.loss_terms(outputs, labels, loss)
    halves = [
        losses.loss_terms({name: value[part] for name, value in outputs.items()}, labels[part], loss)
        for part in (slice(0, 2), slice(2, 4))
    ]
    for name, (_, total, count) in whole.items():
        assert float(halves[0][name][1] + halves[1][name][1]) == pytest.approx(float(total), rel=1e-5)
        assert float(halves[0][name][2] + halves[1][name][2]) == float(count)
    means = [float(half["main"][1] / half["main"][2]) for half in halves]
    # The mean of the means would differ.
    assert abs(sum(means) / 2 - float(whole["main"][1] / whole["main"][2])) > 0.01 or average == "all"


@pytest.mark.parametrize("average", ["all", "valid", "kept"])
@pytest.mark.parametrize("name", CASES)
def test_class_weights_and_mining_against_a_loop(name, average):
    logits, labels, settings = example(name)
    loss = Loss(average=average, **settings)
    variable = tf.Variable(logits)
    with tf.GradientTape() as tape:
        total, count = losses.cross_entropy(variable, labels, loss)
        value = losses.mean_loss(total, count)
    expected = reference(logits, labels, loss)
    assert float(total) == pytest.approx(expected["total"], rel=1e-5, abs=1e-6)
    assert float(count) == pytest.approx(expected["count"], rel=1e-6)
    np.testing.assert_allclose(tape.gradient(value, variable), expected["gradient"], rtol=1e-4, atol=1e-7)


def test_cases_of_the_loop_differ():
    """Mining must drop pixels in some cases, and in others keep more than the minimum."""
    kept = {}
    for name in CASES:
        logits, labels, settings = example(name)
        kept[name] = reference(logits, labels, Loss(average="kept", **settings))["kept"].sum()
    minimum = 2 * 5
    assert kept["kept"] == kept["ties"] == kept["weighted and kept"] == minimum
    assert kept["low threshold"] == minimum < kept["threshold"] < kept["more than all"]
    assert kept["all equal, threshold"] == kept["all ignored"] == 0


def test_mining_keeps_the_first_of_equal_losses():
    logits, labels = np.zeros((2, 2, 3, 2), np.float32), np.zeros((2, 2, 3), np.uint8)
    labels[0, 0, 0] = 255
    variable = tf.Variable(logits)
    with tf.GradientTape() as tape:
        total, _ = losses.cross_entropy(variable, labels, Loss(ohem_kept=2))
    assert float(total) == pytest.approx(4 * LOG2)
    kept = np.any(tape.gradient(total, variable).numpy(), axis=-1)
    np.testing.assert_array_equal(kept.reshape(-1).nonzero()[0], [1, 2, 3, 4])


def test_class_weights_of_one_have_no_effect():
    for average in ("all", "valid", "kept"):
        plain = losses.cross_entropy(LOGITS, LABELS, Loss(average=average))
        weighted = losses.cross_entropy(LOGITS, LABELS, Loss(average=average, class_weights=(1.0, 1.0)))
        assert [float(value) for value in plain] == [float(value) for value in weighted]


def test_class_weights_by_hand():
    for average, count in (("all", 0.5 + 0.25 + 1 + 0.25), ("valid", 1.0), ("kept", 1.0)):
        total, counted = losses.cross_entropy(LOGITS, LABELS, Loss(average=average, class_weights=(0.5, 0.25)))
        assert float(total) == pytest.approx(0.5 * LOG2 + 0.25 * math.log(4) + 0.25 * math.log(4 / 3), rel=1e-6)
        assert float(counted) == count


def test_mean_loss_with_a_count_below_one_or_zero():
    assert float(losses.mean_loss(tf.constant(0.03), tf.constant(0.1))) == pytest.approx(0.3)
    assert float(losses.mean_loss(tf.constant(0.0), tf.constant(0.0))) == 0


def test_wrong_number_of_class_weights_is_an_error():
    with pytest.raises(ConfigError, match="loss.class_weights .* 2 classes, got 3"):
        losses.loss_terms({"main": LOGITS}, LABELS, Loss(class_weights=(1.0, 2.0, 3.0)))
    # A run fails before its first step.
    with pytest.raises(ConfigError, match="loss.class_weights .* 4 classes, got 2"):
        trainer.build_training(Config(loss=Loss(class_weights=(1.0, 2.0))), 4, print)


def test_mining_does_not_apply_to_the_auxiliary_head():
    mined = losses.loss_terms({"main": LOGITS, "aux": LOGITS}, LABELS, Loss(average="kept", ohem_kept=1))
    # Mining keeps the pixel whose true class has the probability 1/4.
    assert [float(value) for value in mined["main"][1:]] == pytest.approx([math.log(4), 1])
    assert [float(value) for value in mined["aux"][1:]] == pytest.approx([TOTAL, 3])


@pytest.mark.parametrize("threshold", [0.0, 0.7])
def test_mining_does_not_hide_a_diverged_model(threshold):
    logits = LOGITS.copy()
    logits[0, 1, 1] = np.nan
    total, _ = losses.cross_entropy(logits, LABELS, Loss(ohem_kept=1, ohem_threshold=threshold))
    assert np.isnan(total)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("name", ["weighted and kept", "threshold"])
def test_mining_compiles_for_any_batch_size(name, jit_compile):
    logits, labels, settings = example(name)
    loss = Loss(**settings)
    compiled = tf.function(
        lambda logits, labels: losses.cross_entropy(logits, labels, loss),
        jit_compile=jit_compile,
        input_signature=[tf.TensorSpec((None, None, None, 4)), tf.TensorSpec((None, None, None), tf.uint8)],
    )
    for size in (1, 2):
        expected = losses.cross_entropy(logits[:size], labels[:size], loss)
        np.testing.assert_allclose(compiled(logits[:size], labels[:size]), expected, rtol=1e-6)


def test_jax_gives_the_same_losses_and_gradients():
    pytest.importorskip("jax", reason="JAX is not installed")
    result = subprocess.run(
        [sys.executable, "-m", "tests.helpers.slow_losses"],
        cwd=ROOT,
        text=True,
        capture_output=True,
        env=os.environ | {"KERAS_BACKEND": "jax", "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr
    output = json.loads(result.stdout.splitlines()[-1])
    assert output["backend"] == "jax"
    for name in CASES:
        logits, labels, settings = example(name)
        expected = reference(logits, labels, Loss(average="kept", **settings))
        loss = expected["total"] / (expected["count"] or 1)
        assert output[name]["loss"] == pytest.approx(loss, rel=1e-5, abs=1e-6), name
        np.testing.assert_allclose(output[name]["gradient"], expected["gradient"], rtol=1e-4, atol=1e-7, err_msg=name)
