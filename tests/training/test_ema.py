"""The moving average of weights: its values, its exchange with the weights, and its checkpoint."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.training.ema import ExponentialMovingAverage
from tests.helpers.small_models import small_model, values

DECAY = 0.75


def update_repeatedly(model, ema, strategy, count):
    """Assign random values to the variables and update the averages, `count` times; return the values."""
    random, history = np.random.default_rng(0), []

    @tf.function
    def update():
        strategy.run(ema.update)

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
        ema = ExponentialMovingAverage(model, DECAY)
    history = update_repeatedly(model, ema, strategy, 4)
    expected = {path for path, value in start.items() if value.dtype == np.float32}
    # The seed of dropout is the only variable that is not averaged; running statistics are.
    assert set(ema.variables) == expected and len(start) == len(expected) + 1
    assert any("moving_variance" in path for path in expected)
    for path, variable in ema.variables.items():
        total = DECAY**4 * start[path].astype(np.float64)
        for age, state in enumerate(reversed(history)):
            total += (1 - DECAY) * DECAY**age * state[path]
        np.testing.assert_allclose(variable.numpy(), total, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("failing", [False, True])
def test_exchange_is_exact_in_both_directions(failing, strategy):
    with strategy.scope():
        model = small_model()
        ema = ExponentialMovingAverage(model, DECAY)
    update_repeatedly(model, ema, strategy, 2)
    before = values(model)
    averaged = {path: variable.numpy() for path, variable in ema.variables.items()}

    def swap():
        with ema.swapped():
            state = values_by_path(model)
            assert all(np.array_equal(state[path], value) for path, value in averaged.items())
            assert not any(np.array_equal(variable.numpy(), averaged[path]) for path, variable in ema.variables.items())
            if failing:
                raise OSError("the disk is full")

    if failing:
        with pytest.raises(OSError):
            swap()
    else:
        swap()
    assert all(np.array_equal(old, new) for old, new in zip(before, values(model), strict=True))
    assert all(np.array_equal(value, ema.variables[path].numpy()) for path, value in averaged.items())


def test_checkpoint_restores_the_averages(tmp_path):
    model = small_model()
    ema = ExponentialMovingAverage(model, DECAY)
    update_repeatedly(model, ema, tf.distribute.get_strategy(), 2)
    tf.train.Checkpoint(**ema.variables).write(str(tmp_path / "state"))
    keras.utils.set_random_seed(5)
    restored = ExponentialMovingAverage(small_model(), DECAY)
    tf.train.Checkpoint(**restored.variables).read(str(tmp_path / "state")).assert_consumed()
    assert set(restored.variables) == set(ema.variables)
    assert all(
        np.array_equal(variable.numpy(), restored.variables[path].numpy()) for path, variable in ema.variables.items()
    )
