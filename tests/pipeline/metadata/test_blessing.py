"""The rule of blessing, on cases worked out by hand."""

import math

import pytest

from kseg.errors import ConfigError
from pipeline.metadata import blessing
from pipeline.metadata.blessing import Rule, judge


def found(mean, **classes):
    return {"mIoU": mean, "classes": {name: {"iou": value} for name, value in classes.items()}}


OLD = found(0.5, sky=0.9, road=0.6, pole=0.0)


@pytest.mark.parametrize(("rule", "new", "old", "blessed"), [
    # The first model has only the floor to reach, and reaches it by being on it.
    (Rule(floor=0.5), found(0.5, sky=0.5), None, True),
    (Rule(floor=0.51), found(0.5, sky=0.5), None, False),
    (Rule(), found(0.0, sky=0.0), None, True),
    # No figure at all is no reason to bless.
    (Rule(), found(math.nan, sky=math.nan), None, False),
    (Rule(), found(None, sky=None), None, False),
    # 0.5 - 0.02 is allowed exactly; in floating point 0.48 + 0.02 is not 0.5.
    (Rule(epsilon=0.02), found(0.48, sky=0.9, road=0.54, pole=0.0), OLD, True),
    (Rule(epsilon=0.02), found(0.4799, sky=0.9, road=0.5397, pole=0.0), OLD, False),
    # A better mean does not make up for a class that fell too far.
    (Rule(delta=0.3), found(0.7, sky=0.9, road=0.3, pole=0.9), OLD, True),
    (Rule(delta=0.3), found(0.7, sky=0.9, road=0.29, pole=0.91), OLD, False),
    # The floor holds beside a worse model before it.
    (Rule(floor=0.6), found(0.55, sky=0.9, road=0.6, pole=0.15), OLD, False),
    # What neither label nor prediction has cannot have fallen; a new class has nothing to fall from.
    (Rule(), found(0.75, sky=0.9, road=0.6, pole=math.nan), OLD, True),
    (Rule(), found(0.5, sky=0.9, road=0.6, pole=0.0, car=0.5), OLD, True),
    # A class that was given up is a loss.
    (Rule(), found(0.75, sky=0.9, road=0.6), OLD, False),
])
def test_rule(rule, new, old, blessed):
    assert judge(rule, new, old).blessed is blessed


def test_reasons_name_each_class_old_and_new():
    verdict = judge(Rule(floor=0.45, epsilon=0.01, delta=0.1), found(0.4, sky=0.7, road=0.5, pole=0.0), OLD)
    assert verdict.reasons == (
        "mIoU 40.00 is below the floor 45.00",
        "mIoU 40.00 is more than 1.00 below the blessed model's 50.00",
        "IoU of 'sky' fell by 20.00 from 90.00 to 70.00, more than 10.00")
    assert verdict.rows == (("sky", 0.9, 0.7), ("road", 0.6, 0.5), ("pole", 0.0, 0.0))
    text = blessing.text(verdict)
    assert text.startswith("not blessed:\n")
    assert [line.split() for line in text.splitlines()[-3:]] == [
        ["sky", "90.00", "70.00", "-20.00"], ["road", "60.00", "50.00", "-10.00"], ["pole", "0.00", "0.00", "+0.00"]]


def test_a_blessing_has_its_reasons_too():
    first = judge(Rule(floor=0.3), found(0.5, sky=0.5), None)
    assert first.reasons == ("mIoU 50.00 is not below the floor 30.00", "and there is no blessed model before it")
    later = judge(Rule(), found(0.6, sky=0.9, road=0.7, pole=0.2), OLD)
    assert "the blessed model's 50.00" in later.reasons[1] and "no class fell by more than 10.00" in later.reasons[1]


@pytest.mark.parametrize("values", [{"floor": 50}, {"epsilon": -0.1}, {"delta": math.nan}])
def test_values_are_fractions(values):
    with pytest.raises(ConfigError, match="fraction from 0 to 1"):
        Rule(**values)
