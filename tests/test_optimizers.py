"""Momentum SGD against PyTorch's formula written out in numpy."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from shared_files import FIXTURES, needs_fixtures

from kseg.config import Train
from kseg.optimizers import MomentumSGD
from kseg.schedules import schedule


def halving(step):
    return 0.1 * 0.5 ** (step / 10)


def test_fifty_steps_against_the_formula():
    generator = np.random.default_rng(0)
    start = [generator.normal(size=(3, 4)), generator.normal(size=5)]
    targets = [generator.normal(size=(3, 4)), generator.normal(size=5)]
    momentum, decay = 0.9, 0.02

    weights = [value.copy() for value in start]
    velocities = [np.zeros_like(value) for value in start]
    for step in range(50):
        for index in (0, 1):
            gradient = np.sin(weights[index] - targets[index]) + decay * weights[index]
            velocities[index] = momentum * velocities[index] + gradient
            weights[index] = weights[index] - halving(step) * velocities[index]

    variables = [keras.Variable(value, dtype="float32") for value in start]
    optimizer = MomentumSGD(keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5), momentum, decay)
    optimizer.build(variables)

    @tf.function
    def update():
        optimizer.apply([tf.sin(variable - target.astype(np.float32))
                         for variable, target in zip(variables, targets)], variables)

    for _ in range(50):
        update()
    for index in (0, 1):
        np.testing.assert_allclose(variables[index].numpy(), weights[index], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(optimizer.velocities[index].numpy(), velocities[index], rtol=1e-4, atol=1e-5)


@needs_fixtures
def test_pytorchs_own_trajectory():
    case = json.loads((FIXTURES / "mmseg" / "schedule.json").read_text())["sgd_trajectory"]
    weight, target, factor = (keras.Variable(case[name], dtype="float32") for name in ("w0", "target", "k"))
    steps = len(case["w_after_each_step"])
    optimizer = MomentumSGD(schedule(Train(steps=steps, learning_rate=case["lr"])), case["momentum"],
                            case["weight_decay"])
    for expected in case["w_after_each_step"]:
        optimizer.apply([2 * factor * (weight - target)], [weight])
        np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make, expected", [
    # Velocities 1 and 1.9; the second step is 0.1 * 1.9.
    (MomentumSGD, [-1, -1.19]),
    # Keras' velocity holds the first step's rate for ever: 0.9 * 1 + 0.1 * 1.
    (keras.optimizers.SGD, [-1, -2]),
])
def test_a_falling_rate_reaches_old_gradients_too(make, expected):
    weight = keras.Variable(0.0)
    optimizer = make(keras.optimizers.schedules.PiecewiseConstantDecay([0], [1.0, 0.1]), momentum=0.9)
    found = []
    for _ in range(2):
        optimizer.apply([tf.constant(1.0)], [weight])
        found.append(float(weight.numpy()))
    assert found == pytest.approx(expected)


def test_weight_decay_goes_through_the_velocity():
    weight = keras.Variable(2.0)
    optimizer = MomentumSGD(0.5, momentum=0.0, weight_decay=0.1)
    optimizer.apply([tf.constant(0.0)], [weight])
    assert float(weight.numpy()) == pytest.approx(2 - 0.5 * 0.1 * 2)
    assert float(optimizer.velocities[0].numpy()) == pytest.approx(0.2)


def test_state_is_named_after_its_variables_and_counts():
    variables = [keras.Variable(np.zeros(2), name="first"), keras.Variable(np.zeros(3), name="second")]
    optimizer = MomentumSGD(0.1)
    optimizer.build(variables)
    names = [variable.path for variable in optimizer.variables]
    assert len(set(names)) == len(names)
    assert [any(name in path and "velocity" in path for path in names) for name in ("first", "second")] == [True, True]
    assert int(optimizer.iterations.numpy()) == 0
    for _ in range(3):
        optimizer.apply([tf.ones(2), tf.ones(3)], variables)
    assert int(optimizer.iterations.numpy()) == 3


def test_survives_its_config():
    optimizer = MomentumSGD(keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5), 0.8, 0.3)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    results = []
    for each in (optimizer, again):
        weight = keras.Variable(1.0)
        for _ in range(3):
            each.apply([tf.constant(0.5)], [weight])
        results.append(float(weight.numpy()))
    assert results[0] == results[1] != 1.0
