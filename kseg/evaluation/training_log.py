"""Read the curves of a training from the log in its working directory."""

import json
from pathlib import Path
from typing import NamedTuple

# Beside the weights in the working directory.
FILE = "metrics.jsonl"
# A curve of more points looks the same.
MOST_POINTS = 300


class Curve(NamedTuple):
    """A value over the steps of a training: `steps` are counted from 1."""

    steps: list[int]
    values: list[float]


def read_curves(path: Path) -> dict[str, Curve]:
    """Read the loss, the learning rate and the validation mIoU of a training.

    Args:
        path: The file metrics.jsonl.

    Returns:
        {"loss", "learning_rate", "val/mIoU": their curves}, without those that have no value. Of more than MOST_POINTS
        values, the means of equal parts remain. Empty if there is no file.
    """
    if not path.is_file():
        return {}
    found: dict[str, Curve] = {name: Curve([], []) for name in ("loss", "learning_rate", "val/mIoU")}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            step = int(entry["step"])
        except (ValueError, LookupError, TypeError):
            # A training that runs may be writing its last line.
            continue
        for name, curve in found.items():
            if isinstance(value := entry.get(name), int | float):
                curve.steps.append(step)
                curve.values.append(float(value))
    return {name: _reduced(curve) for name, curve in found.items() if curve.steps}


def _reduced(curve: Curve) -> Curve:
    count = len(curve.steps)
    size = -(-count // MOST_POINTS)
    if size == 1:
        return curve
    parts = [slice(start, start + size) for start in range(0, count, size)]
    # The mean is drawn at the last step that it covers.
    return Curve(
        [curve.steps[part][-1] for part in parts], [sum(curve.values[part]) / len(curve.values[part]) for part in parts]
    )
