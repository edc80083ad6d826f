"""Decide whether a model may replace the last blessed one, with the reasons."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from kseg.errors import ConfigError
from kseg.evaluation.metrics import percent_points
from kseg.evaluation.results import TOLERANCE


@dataclass(frozen=True)
class Rule:
    """Conditions of a blessing, as fractions from 0 to 1.

    Attributes:
        floor: Minimum mIoU.
        epsilon: Maximum drop of mIoU below the last blessed model's.
        delta: Maximum drop of the IoU of any class.
    """

    floor: float = 0.0
    epsilon: float = 0.01
    delta: float = 0.1

    def __post_init__(self):
        for name in ("floor", "epsilon", "delta"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} must be a fraction from 0 to 1, got {value}")


class Verdict(NamedTuple):
    """Decision about a model.

    Attributes:
        blessed: True if the model may replace the last blessed one.
        reasons: Reasons for the decision, the most important one first.
        rows: (class, old IoU, new IoU) for each class; nan where a model has no IoU.
    """

    blessed: bool
    reasons: tuple[str, ...]
    rows: tuple[tuple[str, float, float], ...]


def judge(rule: Rule, new: dict, old: dict | None) -> Verdict:
    """Judge a model by its metrics and those of the last blessed model.

    A class without an IoU in one of the models is not compared. A class of the old model that the new one lacks is a
    reason to refuse.

    Args:
        rule: Conditions of a blessing.
        new: Metrics of the model, from kseg.evaluation.metrics.summarize.
        old: Metrics of the last blessed model, None if there is none.
    """
    new_mean, old_mean = _to_float(new["mIoU"]), _to_float(old["mIoU"]) if old else math.nan
    objections = []
    if not new_mean >= rule.floor - TOLERANCE:
        objections.append(f"mIoU {percent_points(new_mean)} is below the floor {percent_points(rule.floor)}")
    if old and not new_mean >= old_mean - rule.epsilon - TOLERANCE:
        objections.append(
            f"mIoU {percent_points(new_mean)} is more than {percent_points(rule.epsilon)} below the "
            f"blessed model's {percent_points(old_mean)}"
        )
    new_ious, old_ious = _class_ious(new), _class_ious(old) if old else {}
    for name, value in old_ious.items():
        if name not in new_ious:
            objections.append(f"class {name!r} of the blessed model is missing")
        elif new_ious[name] < value - rule.delta - TOLERANCE:
            objections.append(
                f"IoU of {name!r} fell by {percent_points(value - new_ious[name])} from "
                f"{percent_points(value)} to {percent_points(new_ious[name])}, more than "
                f"{percent_points(rule.delta)}"
            )
    rows = tuple(
        (name, old_ious.get(name, math.nan), new_ious.get(name, math.nan))
        for name in dict.fromkeys([*new_ious, *old_ious])
    )
    if objections:
        return Verdict(False, tuple(objections), rows)
    reasons = [f"mIoU {percent_points(new_mean)} is not below the floor {percent_points(rule.floor)}"]
    if old:
        reasons.append(
            f"it is not more than {percent_points(rule.epsilon)} below the blessed model's "
            f"{percent_points(old_mean)}, and no class fell by more than {percent_points(rule.delta)}"
        )
    else:
        reasons.append("there is no previous blessed model")
    return Verdict(True, tuple(reasons), rows)


def _class_ious(summary: dict) -> dict[str, float]:
    return {name: _to_float(row["iou"]) for name, row in summary["classes"].items()}


def _to_float(value: float | None) -> float:
    """Return a value of metrics.json, where null represents nan."""
    return math.nan if value is None else value


def verdict_text(verdict: Verdict) -> str:
    """Return a verdict as text: the decision, its reasons, and a table of the classes in percent points."""
    width = max(len(name) for name in ("class", *(row[0] for row in verdict.rows)))
    lines = [
        "blessed:" if verdict.blessed else "not blessed:",
        *(f"  {reason}" for reason in verdict.reasons),
        f"  {'class':<{width}} {'old':>7} {'new':>7} {'change':>7}",
    ]
    lines += [
        f"  {name:<{width}} {percent_points(old):>7} {percent_points(new):>7} {percent_points(new - old, '+'):>7}"
        for name, old, new in verdict.rows
    ]
    return "\n".join(lines)
