"""Loss terms by hand, against loops, and as sums that add up over parts of a batch."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from kseg.config import Config, Loss
from kseg.errors import ConfigError
from kseg.training import losses, trainer
from tests.helpers.running import ROOT
from tests.helpers.slow_losses import CASES, example, reference

LOG2, LOG3 = math.log(2), math.log(3)

# Probabilities of the true class: 1/2, 1/4, (ignored), 3/4.
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
    # The probability less one, over the divisor.
    assert gradient[0, 0, 0] == pytest.approx([-0.5 / float(count), 0.5 / float(count)])


@pytest.mark.parametrize("how", [{}, {"class_weights": (1.0, 2.0, 0.5, 0.0)}, {"ohem_kept": 3},
                                 {"ohem_kept": 3, "ohem_threshold": 0.7}])
@pytest.mark.parametrize("average", ["all", "valid", "kept"])
def test_all_ignored_is_zero_and_finite(average, how):
    outputs = {name: tf.Variable(np.random.default_rng(0).normal(size=(2, 3, 3, 4)), dtype=tf.float32)
               for name in ("main", "aux")} | {"se": tf.Variable(tf.ones((2, 4)))}
    labels = np.full((2, 6, 6), 255, np.uint8)
    with tf.GradientTape() as tape:
        terms = losses.terms(outputs, labels, Loss(average=average, **how))
        parts = {name: weight * losses.mean(total, count) for name, (weight, total, count) in terms.items()}
        loss = sum(parts.values())
    assert float(parts["main"]) == float(parts["aux"]) == 0
    for name, gradient in zip(outputs, tape.gradient(loss, list(outputs.values()))):
        assert np.isfinite(gradient).all()
        assert name == "se" or not np.any(gradient)


@pytest.mark.parametrize("align_corners, rows", [(False, [0, 1, 3, 4]), (True, [0, 4 / 3, 8 / 3, 4])])
def test_logits_are_brought_to_the_labels_size(align_corners, rows):
    logits = np.array([[[[0, 0]], [[4, 0]]]], np.float32)
    labels = np.zeros((1, 4, 1), np.uint8)
    _, total, count = losses.terms({"main": logits}, labels, Loss(), align_corners)["main"]
    assert float(total) == pytest.approx(sum(math.log1p(math.exp(-row)) for row in rows), rel=1e-6)
    assert float(count) == 4


def test_half_precision_logits_are_computed_in_single():
    exact = losses.terms({"main": LOGITS}, LABELS, Loss())["main"][1]
    rounded = losses.terms({"main": tf.cast(tf.cast(LOGITS, tf.bfloat16), tf.float32)}, LABELS, Loss())["main"][1]
    half = losses.terms({"main": tf.cast(LOGITS, tf.bfloat16)}, LABELS, Loss())["main"][1]
    assert half.dtype == tf.float32 and float(half) == float(rounded) != float(exact)


def test_terms_carry_their_weights():
    outputs = {"main": LOGITS, "aux": LOGITS, "se": np.zeros((1, 2), np.float32)}
    terms = losses.terms(outputs, LABELS, Loss(main=3.0, auxiliary=0.5, se=0.25))
    assert {name: weight for name, (weight, _, _) in terms.items()} == {"main": 3.0, "aux": 0.5, "se": 0.25}
    _, total, count = terms["se"]
    assert (float(total), float(count)) == pytest.approx((2 * LOG2, 2))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_presence_against_a_loop(dtype):
    generator = np.random.default_rng(1)
    labels = generator.choice([0, 2, 4, 255], size=(4, 5, 6)).astype(dtype)
    labels[1] = 255
    labels[2] = 3
    # A label beyond the classes counts as ignored.
    labels[3, 0] = 7
    logits = generator.normal(0, 3, size=(4, 5)).astype(np.float32)
    logits[0, :2] = 80, -80
    total = 0.0
    for sample in range(4):
        for index in range(5):
            score = float(logits[sample, index])
            total += math.log1p(math.exp(-score if (labels[sample] == index).any() else score))
    found, count = losses.presence(logits, labels)
    assert float(found) == pytest.approx(total, rel=1e-5)
    assert float(count) == 20


@pytest.mark.parametrize("average", ["all", "valid"])
def test_sums_over_unequal_halves_give_the_whole(average):
    generator = np.random.default_rng(2)
    outputs = {"main": generator.normal(size=(4, 3, 3, 5)), "aux": generator.normal(size=(4, 2, 2, 5)),
               "se": generator.normal(size=(4, 5))}
    outputs = {name: value.astype(np.float32) for name, value in outputs.items()}
    labels = generator.integers(0, 5, (4, 9, 9)).astype(np.uint8)
    labels[2:, 1:] = 255
    loss = Loss(average=average)
    whole = losses.terms(outputs, labels, loss)
    halves = [losses.terms({name: value[part] for name, value in outputs.items()}, labels[part], loss)
              for part in (slice(0, 2), slice(2, 4))]
    for name, (_, total, count) in whole.items():
        assert float(halves[0][name][1] + halves[1][name][1]) == pytest.approx(float(total), rel=1e-5)
        assert float(halves[0][name][2] + halves[1][name][2]) == float(count)
    means = [float(half["main"][1] / half["main"][2]) for half in halves]
    # What a mean of means would have given.
    assert abs(sum(means) / 2 - float(whole["main"][1] / whole["main"][2])) > 0.01 or average == "all"


@pytest.mark.parametrize("average", ["all", "valid", "kept"])
@pytest.mark.parametrize("name", CASES)
def test_weights_and_mining_against_a_loop(name, average):
    logits, labels, how = example(name)
    loss = Loss(average=average, **how)
    variable = tf.Variable(logits)
    with tf.GradientTape() as tape:
        total, count = losses.cross_entropy(variable, labels, loss)
        value = losses.mean(total, count)
    expected = reference(logits, labels, loss)
    assert float(total) == pytest.approx(expected["total"], rel=1e-5, abs=1e-6)
    assert float(count) == pytest.approx(expected["count"], rel=1e-6)
    np.testing.assert_allclose(tape.gradient(value, variable), expected["gradient"], rtol=1e-4, atol=1e-7)


def test_loops_cases_differ():
    """The cases are worth their names only if mining drops pixels, and keeps more than the fewest where it may."""
    kept = {}
    for name in CASES:
        logits, labels, how = example(name)
        kept[name] = reference(logits, labels, Loss(average="kept", **how))["kept"].sum()
    fewest = 2 * 5
    assert kept["kept"] == kept["ties"] == kept["weighted and kept"] == fewest
    assert kept["low threshold"] == fewest < kept["threshold"] < kept["more than there are"]
    assert kept["all alike, threshold"] == kept["all ignored"] == 0


def test_of_equal_losses_the_first_are_kept():
    logits, labels = np.zeros((2, 2, 3, 2), np.float32), np.zeros((2, 2, 3), np.uint8)
    labels[0, 0, 0] = 255
    variable = tf.Variable(logits)
    with tf.GradientTape() as tape:
        total, _ = losses.cross_entropy(variable, labels, Loss(ohem_kept=2))
    assert float(total) == pytest.approx(4 * LOG2)
    kept = np.any(tape.gradient(total, variable).numpy(), axis=-1)
    np.testing.assert_array_equal(kept.reshape(-1).nonzero()[0], [1, 2, 3, 4])


def test_weights_of_one_change_nothing():
    for average in ("all", "valid", "kept"):
        plain = losses.cross_entropy(LOGITS, LABELS, Loss(average=average))
        weighted = losses.cross_entropy(LOGITS, LABELS, Loss(average=average, class_weights=(1.0, 1.0)))
        assert [float(value) for value in plain] == [float(value) for value in weighted]


def test_weights_by_hand():
    for average, count in (("all", 0.5 + 0.25 + 1 + 0.25), ("valid", 1.0), ("kept", 1.0)):
        total, counted = losses.cross_entropy(LOGITS, LABELS, Loss(average=average, class_weights=(0.5, 0.25)))
        assert float(total) == pytest.approx(0.5 * LOG2 + 0.25 * math.log(4) + 0.25 * math.log(4 / 3), rel=1e-6)
        assert float(counted) == count


def test_a_divisor_below_one_divides():
    assert float(losses.mean(tf.constant(0.03), tf.constant(0.1))) == pytest.approx(0.3)
    assert float(losses.mean(tf.constant(0.0), tf.constant(0.0))) == 0


def test_weights_that_do_not_fit_the_classes():
    with pytest.raises(ConfigError, match="each of the 2 classes, got 3"):
        losses.terms({"main": LOGITS}, LABELS, Loss(class_weights=(1.0, 2.0, 3.0)))
    # A run learns it before its first step.
    with pytest.raises(ConfigError, match="each of the 4 classes, got 2"):
        trainer.build(Config(loss=Loss(class_weights=(1.0, 2.0))), 4, print)


def test_mining_leaves_the_auxiliary_head_alone():
    mined = losses.terms({"main": LOGITS, "aux": LOGITS}, LABELS, Loss(average="kept", ohem_kept=1))
    # The pixel whose true class has probability 1/4.
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
def test_mining_compiles_for_a_batch_of_any_size(name, jit_compile):
    logits, labels, how = example(name)
    loss = Loss(**how)
    compiled = tf.function(lambda logits, labels: losses.cross_entropy(logits, labels, loss), jit_compile=jit_compile,
                           input_signature=[tf.TensorSpec((None, None, None, 4)),
                                            tf.TensorSpec((None, None, None), tf.uint8)])
    for size in (1, 2):
        expected = losses.cross_entropy(logits[:size], labels[:size], loss)
        np.testing.assert_allclose(compiled(logits[:size], labels[:size]), expected, rtol=1e-6)


def test_jax_gives_the_same_numbers():
    pytest.importorskip("jax", reason="JAX is not installed")
    result = subprocess.run([sys.executable, "-m", "tests.helpers.slow_losses"], cwd=ROOT, text=True, capture_output=True,
                            env=os.environ | {"KERAS_BACKEND": "jax", "PYTHONPATH": str(ROOT)})
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["backend"] == "jax"
    for name in CASES:
        logits, labels, how = example(name)
        expected = reference(logits, labels, Loss(average="kept", **how))
        loss = expected["total"] / (expected["count"] or 1)
        assert found[name]["loss"] == pytest.approx(loss, rel=1e-5, abs=1e-6), name
        np.testing.assert_allclose(found[name]["gradient"], expected["gradient"], rtol=1e-4, atol=1e-7, err_msg=name)
