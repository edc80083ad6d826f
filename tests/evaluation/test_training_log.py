"""The curves of a training, from its log to the report."""

import json

import pytest

from kseg.evaluation import training_log


def test_curves_are_read_of_a_log_that_is_being_written(tmp_path):
    path = tmp_path / training_log.FILE
    lines = [
        {"step": 5, "loss": 2.0, "learning_rate": 0.1, "images_per_second": None},
        {"step": 5, "val/mIoU": None},
        {"step": 10, "loss": 1.0, "learning_rate": 0.2},
        {"step": 10, "val/mIoU": 0.5},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 15, "lo')
    assert training_log.read_curves(path) == {
        "loss": ([5, 10], [2.0, 1.0]),
        "learning_rate": ([5, 10], [0.1, 0.2]),
        "val/mIoU": ([10], [0.5]),
    }
    assert training_log.read_curves(tmp_path / "none") == {}


def test_long_curves_are_means(tmp_path):
    path = tmp_path / training_log.FILE
    path.write_text("".join(json.dumps({"step": step, "loss": step}) + "\n" for step in range(1, 1001)))
    curve = training_log.read_curves(path)["loss"]
    assert len(curve.steps) == 250 and curve.steps[:2] == [4, 8] and curve.values[:2] == pytest.approx([2.5, 6.5])
