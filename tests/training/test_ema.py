"""The moving average of weights: its numbers, its exchange with the model's, its place in a checkpoint."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.training.ema import Average
from tests.helpers.small_models import small_model, values

DECAY = 0.75


def steps(model, average, strategy, count):
    """Move all floating variables by their own random numbers and the average after them; return the values."""
    random, history = np.random.default_rng(0), []

    @tf.function
    def update():
        strategy.run(average.update)

    for _ in range(count):
        for variable in model.variables:
            if "float" in variable.dtype:
                variable.assign(random.normal(size=variable.shape).astype(np.float32))
        history.append(values_by_path(model))
        update()
    return history


def values_by_path(model):
    return {variable.path: variable.numpy() for variable in model.variables}


@pytest.fixture(params=["one device", "mirrored"])
def strategy(request):
    return tf.distribute.get_strategy() if request.param == "one device" else tf.distribute.MirroredStrategy(["CPU:0"])


def test_average_is_the_weighted_sum_of_all_values(strategy):
    with strategy.scope():
        model = small_model()
        start = values_by_path(model)
        average = Average(model, DECAY)
    history = steps(model, average, strategy, 4)
    expected = {path for path, value in start.items() if value.dtype == np.float32}
    # Dropout's seed is the only other one; running statistics are among the averaged.
    assert set(average.variables) == expected and len(start) == len(expected) + 1
    assert any("moving_variance" in path for path in expected)
    for path, variable in average.variables.items():
        total = DECAY**4 * start[path].astype(np.float64)
        for age, state in enumerate(reversed(history)):
            total += (1 - DECAY) * DECAY**age * state[path]
        np.testing.assert_allclose(variable.numpy(), total, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("failing", [False, True])
def test_exchange_is_exact_both_ways(failing, strategy):
    with strategy.scope():
        model = small_model()
        average = Average(model, DECAY)
    steps(model, average, strategy, 2)
    before = values(model)
    averaged = {path: variable.numpy() for path, variable in average.variables.items()}

    def inside():
        with average.swapped():
            state = values_by_path(model)
            assert all(np.array_equal(state[path], value) for path, value in averaged.items())
            assert not any(np.array_equal(variable.numpy(), averaged[path])
                           for path, variable in average.variables.items())
            if failing:
                raise OSError("the disk is full")

    if failing:
        with pytest.raises(OSError):
            inside()
    else:
        inside()
    assert all(np.array_equal(old, new) for old, new in zip(before, values(model), strict=True))
    assert all(np.array_equal(value, average.variables[path].numpy()) for path, value in averaged.items())


def test_a_checkpoint_brings_it_back(tmp_path):
    model = small_model()
    average = Average(model, DECAY)
    steps(model, average, tf.distribute.get_strategy(), 2)
    tf.train.Checkpoint(**average.variables).write(str(tmp_path / "state"))
    keras.utils.set_random_seed(5)
    again = Average(small_model(), DECAY)
    tf.train.Checkpoint(**again.variables).read(str(tmp_path / "state")).assert_consumed()
    assert set(again.variables) == set(average.variables)
    assert all(np.array_equal(variable.numpy(), again.variables[path].numpy())
               for path, variable in average.variables.items())
