"""The best validation: a score of nan is never the best, and best.json stays JSON."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from kseg.config import Train
from kseg.errors import WorkdirError
from kseg.training.recorder import Recorder, StepLog, read_best


def validate(best, matrix):
    """Validate with given counts, without files; return (best, lines)."""
    lines = []
    recorder = SimpleNamespace(
        ema=None,
        is_chief=False,
        hosts=1,
        replicas=1,
        best=best,
        report=lines.append,
        split=SimpleNamespace(names=("a", "b"), dataset=SimpleNamespace(classes=("sky", "ground"), palette=())),
        counter=SimpleNamespace(
            count=lambda split, examine: SimpleNamespace(matrix=np.array(matrix), names=split.names)
        ),
    )
    Recorder.validate(recorder, 7)
    return recorder.best, lines


@pytest.mark.parametrize("before", [{"step": 0, "mIoU": -1.0}, {"step": 3, "mIoU": 0.5}])
def test_a_validation_without_a_score_is_not_the_best(before):
    best, [line] = validate(before, [[0, 0], [0, 0]])
    assert best == before and "best" not in line and "nan" not in line


def test_a_better_score_is_the_best():
    best, [line] = validate({"step": 3, "mIoU": 0.5}, [[4, 0], [0, 4]])
    assert best == {"step": 7, "mIoU": 1.0} and "best so far" in line
    best, [line] = validate({"step": 3, "mIoU": 1.0}, [[4, 0], [0, 4]])
    assert best == {"step": 3, "mIoU": 1.0} and "best so far" not in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, {"step": 0, "mIoU": -1.0}),
        ('{"step": 4, "mIoU": NaN}', {"step": 0, "mIoU": -1.0}),
        ('{"step": 4, "mIoU": 0.25}', {"step": 4, "mIoU": 0.25}),
    ],
)
def test_a_stored_nan_is_no_best_validation(tmp_path, text, expected):
    if text:
        (tmp_path / "best.json").write_text(text)
    assert read_best(tmp_path) == expected


@pytest.mark.parametrize("text", ["", "{", "{}", "3", '{"mIoU": null}'])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "best.json").write_text(text)
    with pytest.raises(WorkdirError, match="best.json"):
        read_best(tmp_path)


def test_the_log_has_no_nan(tmp_path):
    recorder = SimpleNamespace(is_chief=True, workdir=tmp_path, report=print, draw=lambda scalars, step: None)
    Recorder.write(recorder, 3, {"val/mIoU": math.nan, "loss": 0.5})
    assert json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail) == {
        "step": 3,
        "val/mIoU": None,
        "loss": 0.5,
    }


def test_the_speed_leaves_out_the_call_that_compiled(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("kseg.training.recorder.time.monotonic", lambda: now[0])
    log = StepLog(Train(global_batch=4, steps=20))
    now[0] += 31.0
    log.exclude(1, 31.0)
    log.add({"loss": 3.0})
    first = log.flush(1)
    assert first["loss"] == 3.0 and math.isnan(first["eta_seconds"]) and math.isnan(first["images_per_second"])
    now[0] += 31.0
    log.exclude(1, 31.0)
    log.add({"loss": 3.0})
    for _ in range(2):
        now[0] += 0.5
        log.add({"loss": 0.0})
    assert log.flush(4) == {"loss": 1.0, "images_per_second": 8.0, "input_share": 0.0, "eta_seconds": 8.0}
