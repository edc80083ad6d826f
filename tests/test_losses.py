"""Loss terms by hand, against loops, and as sums that add up over parts of a batch."""

import math

import numpy as np
import pytest
import tensorflow as tf

from kseg import losses
from kseg.config import Loss

LOG2, LOG3 = math.log(2), math.log(3)

# Probabilities of the true class: 1/2, 1/4, (ignored), 3/4.
LOGITS = np.array([[[[0, 0], [LOG3, 0]], [[50, -50], [0, LOG3]]]], np.float32)
LABELS = np.array([[[0, 1], [255, 1]]], np.uint8)
TOTAL = math.log(2) + math.log(4) + math.log(4 / 3)


@pytest.mark.parametrize("average, count", [("all", 4), ("valid", 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_cross_entropy_by_hand(average, count, dtype):
    total, counted = losses.cross_entropy(LOGITS, LABELS.astype(dtype), average)
    assert float(total) == pytest.approx(TOTAL, rel=1e-6)
    assert float(counted) == count


@pytest.mark.parametrize("average", ["all", "valid"])
def test_ignored_pixels_have_no_gradient(average):
    logits = tf.Variable(LOGITS)
    with tf.GradientTape() as tape:
        total, count = losses.cross_entropy(logits, LABELS, average)
        loss = total / count
    gradient = tape.gradient(loss, logits).numpy()
    assert (gradient[0, 1, 0] == 0).all()
    # The probability less one, over the divisor.
    assert gradient[0, 0, 0] == pytest.approx([-0.5 / float(count), 0.5 / float(count)])


@pytest.mark.parametrize("average", ["all", "valid"])
def test_all_ignored_is_zero_and_finite(average):
    outputs = {name: tf.Variable(np.random.default_rng(0).normal(size=(2, 3, 3, 4)), dtype=tf.float32)
               for name in ("main", "aux")} | {"se": tf.Variable(tf.ones((2, 4)))}
    labels = np.full((2, 6, 6), 255, np.uint8)
    with tf.GradientTape() as tape:
        terms = losses.terms(outputs, labels, Loss(average=average))
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
