"""The confusion matrix against a loop, and the metrics against MMSegmentation's own."""

import json
import math

import numpy as np
import pytest
from shared_files import FIXTURES, needs_fixtures

from kseg import metrics


def counted(labels, predictions, classes):
    matrix = np.zeros((classes, classes), np.int64)
    for truth, guess in zip(labels.ravel().tolist(), predictions.ravel().tolist()):
        if truth != 255:
            matrix[truth, guess] += 1
    return matrix


@pytest.mark.parametrize("label_type, prediction_type", [
    (np.uint8, np.uint8), (np.int32, np.int64), (np.uint8, np.int32)])
def test_confusion_against_a_loop(label_type, prediction_type):
    generator = np.random.default_rng(0)
    labels = generator.choice([0, 1, 2, 5, 255], (2, 13, 17)).astype(label_type)
    predictions = generator.integers(0, 6, (2, 13, 17)).astype(prediction_type)
    matrix = np.asarray(metrics.confusion(labels, predictions, 6))
    assert matrix.dtype == np.int64
    assert (matrix == counted(labels, predictions, 6)).all()


def test_many_classes_do_not_overflow_the_label_type():
    labels = np.array([199, 255, 0], np.uint8)
    matrix = np.asarray(metrics.confusion(labels, np.array([198, 3, 199], np.uint8), 200))
    assert matrix[199, 198] == matrix[0, 199] == 1 and matrix.sum() == 2


def test_all_ignored():
    matrix = np.asarray(metrics.confusion(np.full((4, 4), 255, np.uint8), np.zeros((4, 4), np.uint8), 3))
    results = metrics.summary(matrix, ("a", "b", "c"))
    assert not matrix.any() and results["pixels"] == 0
    assert all(math.isnan(results[name]) for name in ("mIoU", "mAcc", "aAcc"))


def test_summary_by_hand():
    # Truth: 4 of "a", 2 of "b", none of "only guessed" and none of "absent".
    matrix = np.array([[3, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    results = metrics.summary(matrix, ("a", "b", "only guessed", "absent"))
    classes = results["classes"]
    assert classes["a"] == {"iou": 3 / 5, "accuracy": 3 / 4, "dice": 6 / 8, "fscore": 3 / 4, "precision": 3 / 4,
                            "recall": 3 / 4, "pixels": 4}
    assert classes["b"] == pytest.approx({"iou": 1 / 2, "accuracy": 1 / 2, "dice": 2 / 3, "fscore": 2 / 3,
                                          "precision": 1, "recall": 1 / 2, "pixels": 2}, abs=1e-12)
    assert classes["only guessed"]["iou"] == 0 and math.isnan(classes["only guessed"]["accuracy"])
    assert math.isnan(classes["absent"]["iou"]) and math.isnan(classes["absent"]["accuracy"])
    assert results["mIoU"] == pytest.approx((0.6 + 0.5 + 0) / 3, abs=1e-12)
    assert results["mAcc"] == pytest.approx((0.75 + 0.5) / 2, abs=1e-12)
    assert results["aAcc"] == pytest.approx(4 / 6, abs=1e-12)
    # One class has no truth, so no recall and no F-score; precision and Dice of what is only guessed are 0.
    assert results["mRecall"] == results["mAcc"] and math.isnan(classes["only guessed"]["fscore"])
    assert results["mPrecision"] == pytest.approx((0.75 + 1 + 0) / 3, abs=1e-12)
    assert results["mDice"] == pytest.approx((0.75 + 2 / 3 + 0) / 3, abs=1e-12)
    assert results["mFscore"] == pytest.approx((0.75 + 2 / 3) / 2, abs=1e-12)
    assert results["fwIoU"] == pytest.approx((4 * 0.6 + 2 * 0.5) / 6, abs=1e-12)


@needs_fixtures
@pytest.mark.parametrize("case", ["A", "B", "C", "D"])
def test_equal_to_mmsegmentation(case):
    directory = FIXTURES / "mmseg" / "metric"
    expected = json.loads((directory / "miou_results.json").read_text())[case]
    maps = np.load(directory / "miou_maps.npz")
    names = tuple(f"class {index}" for index in range(expected["classes"]))
    matrix = sum(np.asarray(metrics.confusion(maps[f"{case}_label_{index}"], maps[f"{case}_pred_{index}"], len(names)))
                 for index in range(expected["images"]))
    results = metrics.summary(matrix, names)
    area = {name: np.array(values) for name, values in expected["total_area"].items()}
    assert (np.diag(matrix) == area["intersect"]).all() and (matrix.sum(1) == area["label"]).all()
    with np.errstate(invalid="ignore"):
        ratios = {"iou": area["intersect"] / area["union"], "accuracy": area["intersect"] / area["label"],
                  "dice": 2 * area["intersect"] / (area["label"] + area["pred"]),
                  "precision": area["intersect"] / area["pred"]}
        ratios["recall"] = ratios["accuracy"]
        ratios["fscore"] = 2 * ratios["precision"] * ratios["recall"] / (ratios["precision"] + ratios["recall"])
    for kind, mean, raw in (("iou", "mIoU", "IoU"), ("accuracy", "mAcc", "Acc"), ("dice", "mDice", "Dice"),
                            ("fscore", "mFscore", "Fscore"), ("precision", "mPrecision", "Precision"),
                            ("recall", "mRecall", "Recall")):
        found = [results["classes"][name][kind] for name in names]
        assert found == pytest.approx(list(ratios[kind]), abs=1e-9, nan_ok=True)
        assert results[mean] == pytest.approx(np.nanmean(ratios[kind]), abs=1e-9)
        # Its own ratios are float32.
        published = [math.nan if value is None else value for value in expected["raw"][raw]]
        assert found == pytest.approx(published, abs=1e-6, nan_ok=True)
        assert mean not in expected["raw_mean"] or results[mean] == pytest.approx(expected["raw_mean"][mean], abs=1e-6)
    assert results["aAcc"] == pytest.approx(area["intersect"].sum() / area["label"].sum(), abs=1e-9)


def test_counts_beyond_int32():
    matrix = np.asarray(metrics.confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 2)) * 2**31
    results = metrics.summary(matrix, ("a", "b"))
    assert results["pixels"] == 3 * 2**31 and results["classes"]["a"]["pixels"] == 2**32
    assert results["mIoU"] == pytest.approx(0.5) and results["aAcc"] == pytest.approx(2 / 3)


def test_table_shows_a_dash_for_nan():
    results = metrics.summary(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]), ("road", "sky", "cat"))
    lines = metrics.table(results).split("\n")
    assert lines[1].split() == ["road", "75.00", "75.00", "4"]
    assert lines[3].split() == ["cat", "-", "-", "0"]
    assert lines[4].split() == ["mIoU", "77.50", "aAcc", "87.50", "mAcc", "87.50"]
    assert "nan" not in "\n".join(lines)
