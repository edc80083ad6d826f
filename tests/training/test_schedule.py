"""Learning rates compared with the values of both original systems, and the warm-up by hand."""

import json

import keras
import pytest
import tensorflow as tf

from kseg.config.sections import Train
from kseg.training.schedule import PolynomialWithWarmup, schedule
from tests.helpers.shared_files import FIXTURES, needs_fixtures


@needs_fixtures
@pytest.mark.parametrize("system", ["mmengine", "sss"])
def test_learning_rates_of_the_original_systems(system):
    cases = json.loads((FIXTURES / "mmseg" / "schedule.json").read_text())
    cases = [case for name, case in cases.items() if name.isdigit()]
    assert cases
    for case in cases:
        steps = case["max_iters"]
        learning_rate = schedule(
            Train(
                steps=steps,
                learning_rate=case["base_lr"],
                end_learning_rate=case["eta_min"],
                power=case["power"],
                end_step={"mmengine": 0, "sss": steps}[system],
            )
        )
        assert [float(learning_rate(step)) for step in case["index"]] == pytest.approx(case[system], rel=1e-5, abs=1e-9)


def test_decay_ends_at_the_last_step_or_at_end_step():
    first = schedule(Train(steps=10, learning_rate=1.0, end_learning_rate=0.1, power=1.0))
    second = schedule(Train(steps=10, learning_rate=1.0, end_learning_rate=0.1, power=1.0, end_step=10))
    assert float(first(9)) == pytest.approx(0.1)
    assert float(second(9)) == pytest.approx(0.1 + 0.9 / 10)


def test_warmup_by_hand():
    learning_rate = PolynomialWithWarmup(base=1.0, end=0.0, power=1.0, end_step=10, warmup_steps=4, warmup_start=0.2)
    # The decay 1, 0.9, 0.8, ... is multiplied by 0.2, 0.4, 0.6, 0.8, 1, 1, ...
    expected = [0.2, 0.9 * 0.4, 0.8 * 0.6, 0.7 * 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    assert [float(learning_rate(step)) for step in range(11)] == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("step", [10, 11, 1_000_000])
def test_learning_rate_stays_constant_after_the_end(step):
    assert float(PolynomialWithWarmup(0.01, 1e-4, 0.9, end_step=10)(step)) == pytest.approx(1e-4, rel=1e-6)


def test_single_step_has_the_base_learning_rate():
    assert float(schedule(Train(steps=1, learning_rate=0.03))(0)) == pytest.approx(0.03)


def test_compiled_equals_eager():
    learning_rate = schedule(Train(steps=1000, warmup_steps=100))
    compiled = tf.function(learning_rate)
    for step in (0, 1, 99, 100, 500, 998, 999, 2000):
        assert float(compiled(tf.constant(step))) == pytest.approx(float(learning_rate(step)), rel=1e-6)


def test_serialization_keeps_the_learning_rates():
    learning_rate = PolynomialWithWarmup(0.3, 0.1, 0.9, 50, 7, 0.5)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(learning_rate))
    assert [float(copy(step)) for step in (0, 3, 20, 60)] == [float(learning_rate(step)) for step in (0, 3, 20, 60)]


def mmengine_rates(base, end, power, end_step, steps):
    """Return the rates of mmengine's PolyParamScheduler, which multiplies the distance from eta_min step by step."""
    rates = [base]
    for step in range(1, steps):
        ratio = (1 - 1 / (end_step - step + 1)) ** power if step <= end_step else 1.0
        rates.append((rates[-1] - end) * ratio + end)
    return rates


@pytest.mark.parametrize("factor", [0.1, 0.5, 2.0, 10.0])
@pytest.mark.parametrize("end", [0.0, 1e-4, 2e-3])
def test_the_floor_of_scaled_rates_is_absolute_as_in_mmengine(factor, end):
    learning_rate = PolynomialWithWarmup(0.01, end, 0.9, end_step=30)
    expected = mmengine_rates(0.01 * factor, end, 0.9, 30, 35)
    assert [float(learning_rate.scaled(step, factor)) for step in range(35)] == pytest.approx(
        expected, rel=1e-5, abs=1e-9
    )


def test_a_constant_rate_is_scaled_as_a_whole():
    learning_rate = PolynomialWithWarmup(0.01, 0.01, 0.9, end_step=30)
    assert [float(learning_rate.scaled(step, 0.5)) for step in (0, 15, 40)] == pytest.approx([0.005] * 3)
