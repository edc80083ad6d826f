"""Whether a model may take the place of the last blessed one, and why."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from kseg.errors import ConfigError
from kseg.evaluation.metrics import percent_points
from kseg.evaluation.results import TOLERANCE


@dataclass(frozen=True)
class Rule:
    """What a model is held against: fractions of 1.

    Its mIoU may not be below `floor`, nor more than `epsilon` below the last blessed model's; no class's IoU may have
    fallen by more than `delta`.
    """

    floor: float = 0.0
    epsilon: float = 0.01
    delta: float = 0.1

    def __post_init__(self):
        for name in ("floor", "epsilon", "delta"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} is a fraction from 0 to 1, not {value}")


class Verdict(NamedTuple):
    """`reasons` say why, the first of them in short; `rows` are (class, old IoU, new IoU), nan where there is none."""

    blessed: bool
    reasons: tuple[str, ...]
    rows: tuple[tuple[str, float, float], ...]


def judge(rule: Rule, new: dict, old: dict | None) -> Verdict:
    """Judge a model by what kseg.evaluation.metrics.summarize says of it and, where there is one, of the last blessed model.

    A class that one of them has no IoU for is not compared; a class that the old one knows and the new one does not is
    a reason to refuse.
    """
    mean, before = _number(new["mIoU"]), _number(old["mIoU"]) if old else math.nan
    against = []
    if not mean >= rule.floor - TOLERANCE:
        against.append(f"mIoU {percent_points(mean)} is below the floor {percent_points(rule.floor)}")
    if old and not mean >= before - rule.epsilon - TOLERANCE:
        against.append(f"mIoU {percent_points(mean)} is more than {percent_points(rule.epsilon)} below the blessed model's "
                       f"{percent_points(before)}")
    now, then = _ious(new), _ious(old) if old else {}
    for name, value in then.items():
        if name not in now:
            against.append(f"class {name!r}, which the blessed model knows, is no class of this one")
        elif now[name] < value - rule.delta - TOLERANCE:
            against.append(f"IoU of {name!r} fell by {percent_points(value - now[name])} from {percent_points(value)} to "
                           f"{percent_points(now[name])}, more than {percent_points(rule.delta)}")
    rows = tuple((name, then.get(name, math.nan), now.get(name, math.nan)) for name in dict.fromkeys([*now, *then]))
    if against:
        return Verdict(False, tuple(against), rows)
    reasons = [f"mIoU {percent_points(mean)} is not below the floor {percent_points(rule.floor)}"]
    reasons.append(f"nor more than {percent_points(rule.epsilon)} below the blessed model's {percent_points(before)}, and no class "
                   f"fell by more than {percent_points(rule.delta)}" if old else "and there is no blessed model before it")
    return Verdict(True, tuple(reasons), rows)


def _ious(summary: dict) -> dict[str, float]:
    return {name: _number(row["iou"]) for name, row in summary["classes"].items()}


def _number(value: float | None) -> float:
    """Return a figure of metrics.json, in which null stands for nan."""
    return math.nan if value is None else value


def verdict_text(verdict: Verdict) -> str:
    """Return a verdict as lines: blessed or not, why, and each class, old, new and change, in points of 100."""
    width = max(len(name) for name in ("class", *(row[0] for row in verdict.rows)))
    lines = ["blessed:" if verdict.blessed else "not blessed:", *(f"  {reason}" for reason in verdict.reasons),
             f"  {'class':<{width}} {'old':>7} {'new':>7} {'change':>7}"]
    lines += [f"  {name:<{width}} {percent_points(old):>7} {percent_points(new):>7} {percent_points(new - old, '+'):>7}"
              for name, old, new in verdict.rows]
    return "\n".join(lines)
