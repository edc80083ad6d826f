"""Test the blessing rule on cases worked out by hand."""

import math

import pytest

from kseg.errors import ConfigError
from pipeline.metadata import blessing
from pipeline.metadata.blessing import Rule, judge


def metrics(mean, **classes):
    return {"mIoU": mean, "classes": {name: {"iou": value} for name, value in classes.items()}}


OLD = metrics(0.5, sky=0.9, road=0.6, pole=0.0)


@pytest.mark.parametrize(
    ("rule", "new", "old", "blessed"),
    [
        # The first model only has to reach the floor.
        (Rule(floor=0.5), metrics(0.5, sky=0.5), None, True),
        (Rule(floor=0.51), metrics(0.5, sky=0.5), None, False),
        (Rule(), metrics(0.0, sky=0.0), None, True),
        # A model without an mIoU is refused.
        (Rule(), metrics(math.nan, sky=math.nan), None, False),
        (Rule(), metrics(None, sky=None), None, False),
        # A drop of exactly epsilon is allowed, although 0.48 + 0.02 is not 0.5 in floating point.
        (Rule(epsilon=0.02), metrics(0.48, sky=0.9, road=0.54, pole=0.0), OLD, True),
        (Rule(epsilon=0.02), metrics(0.4799, sky=0.9, road=0.5397, pole=0.0), OLD, False),
        # A better mean does not compensate for a class that fell too far.
        (Rule(delta=0.3), metrics(0.7, sky=0.9, road=0.3, pole=0.9), OLD, True),
        (Rule(delta=0.3), metrics(0.7, sky=0.9, road=0.29, pole=0.91), OLD, False),
        # The floor applies even if the previous model was worse.
        (Rule(floor=0.6), metrics(0.55, sky=0.9, road=0.6, pole=0.15), OLD, False),
        # A class without pixels in label and prediction cannot have fallen, and a new class has no old IoU.
        (Rule(), metrics(0.75, sky=0.9, road=0.6, pole=math.nan), OLD, True),
        (Rule(), metrics(0.5, sky=0.9, road=0.6, pole=0.0, car=0.5), OLD, True),
        # A missing class is a reason to refuse.
        (Rule(), metrics(0.75, sky=0.9, road=0.6), OLD, False),
    ],
)
def test_rule(rule, new, old, blessed):
    assert judge(rule, new, old).blessed is blessed


def test_reasons_name_each_class_old_and_new():
    verdict = judge(Rule(floor=0.45, epsilon=0.01, delta=0.1), metrics(0.4, sky=0.7, road=0.5, pole=0.0), OLD)
    floor, epsilon, delta = verdict.reasons
    assert "40.00" in floor and "45.00" in floor
    assert all(value in epsilon for value in ("40.00", "1.00", "50.00"))
    assert all(value in delta for value in ("'sky'", "20.00", "90.00", "70.00", "10.00"))
    assert verdict.rows == (("sky", 0.9, 0.7), ("road", 0.6, 0.5), ("pole", 0.0, 0.0))
    text = blessing.verdict_text(verdict)
    assert text.startswith("not blessed:\n")
    assert [line.split() for line in text.splitlines()[-3:]] == [
        ["sky", "90.00", "70.00", "-20.00"],
        ["road", "60.00", "50.00", "-10.00"],
        ["pole", "0.00", "0.00", "+0.00"],
    ]


def test_a_blessing_has_reasons():
    first = judge(Rule(floor=0.3), metrics(0.5, sky=0.5), None)
    assert "50.00" in first.reasons[0] and "30.00" in first.reasons[0] and "no previous" in first.reasons[1]
    later = judge(Rule(), metrics(0.6, sky=0.9, road=0.7, pole=0.2), OLD)
    assert "blessed model's 50.00" in later.reasons[1] and "10.00" in later.reasons[1]


@pytest.mark.parametrize("values", [{"floor": 50}, {"epsilon": -0.1}, {"delta": math.nan}])
def test_values_are_fractions(values):
    with pytest.raises(ConfigError, match=f"{next(iter(values))} must be a fraction"):
        Rule(**values)
