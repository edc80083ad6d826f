"""The metrics: by hand, and against the results of MMSegmentation."""

import json
import math

import numpy as np
import pytest

from kseg.evaluation import confusion, metrics
from tests.helpers.shared_files import FIXTURES, needs_fixtures


def test_all_pixels_ignored():
    matrix = np.asarray(confusion.confusion(np.full((4, 4), 255, np.uint8), np.zeros((4, 4), np.uint8), 3))
    results = metrics.summarize(matrix, ("a", "b", "c"))
    assert not matrix.any() and results["pixels"] == 0
    assert all(math.isnan(results[name]) for name in ("mIoU", "mAcc", "aAcc", "fwIoU"))


def test_summary_by_hand():
    # The labels have 4 pixels of "a" and 2 of "b"; one pixel is predicted as "predicted only".
    matrix = np.array([[3, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    results = metrics.summarize(matrix, ("a", "b", "predicted only", "absent"))
    classes = results["classes"]
    assert classes["a"] == {
        "iou": 3 / 5,
        "accuracy": 3 / 4,
        "dice": 6 / 8,
        "fscore": 3 / 4,
        "precision": 3 / 4,
        "recall": 3 / 4,
        "pixels": 4,
    }
    assert classes["b"] == pytest.approx(
        {"iou": 1 / 2, "accuracy": 1 / 2, "dice": 2 / 3, "fscore": 2 / 3, "precision": 1, "recall": 1 / 2, "pixels": 2},
        abs=1e-12,
    )
    assert classes["predicted only"]["iou"] == 0 and math.isnan(classes["predicted only"]["accuracy"])
    assert math.isnan(classes["absent"]["iou"]) and math.isnan(classes["absent"]["accuracy"])
    assert results["mIoU"] == pytest.approx((0.6 + 0.5 + 0) / 3, abs=1e-12)
    assert results["mAcc"] == pytest.approx((0.75 + 0.5) / 2, abs=1e-12)
    assert results["aAcc"] == pytest.approx(4 / 6, abs=1e-12)
    # Without labels a class has neither recall nor F-score; its precision and Dice are 0 if it is predicted.
    assert results["mRecall"] == results["mAcc"] and math.isnan(classes["predicted only"]["fscore"])
    assert results["mPrecision"] == pytest.approx((0.75 + 1 + 0) / 3, abs=1e-12)
    assert results["mDice"] == pytest.approx((0.75 + 2 / 3 + 0) / 3, abs=1e-12)
    assert results["mFscore"] == pytest.approx((0.75 + 2 / 3) / 2, abs=1e-12)
    assert results["fwIoU"] == pytest.approx((4 * 0.6 + 2 * 0.5) / 6, abs=1e-12)


@pytest.mark.parametrize("absent", [(), (1,), (0, 2, 3), (0, 1, 2, 3)])
def test_scores_of_many_images_equal_the_summary_of_each(absent):
    matrices = np.random.default_rng(5).integers(1, 10**12, (3, 4, 4))
    matrices[:, list(absent)] = 0
    matrices[:, :, list(absent)] = 0
    matrices[1, 3] = 0
    scores = metrics.ious_and_means(np.diagonal(matrices, axis1=1, axis2=2), matrices.sum(2), matrices.sum(1))
    for row, matrix in zip(scores, matrices):
        summary = metrics.summarize(matrix, tuple("abcd"))
        expected = [summary["classes"][name]["iou"] for name in "abcd"] + [summary[name] for name in metrics.MEANS]
        np.testing.assert_array_equal(row, expected)


@needs_fixtures
@pytest.mark.parametrize("case", ["A", "B", "C", "D"])
def test_equal_to_mmsegmentation(case):
    directory = FIXTURES / "mmseg" / "metric"
    expected = json.loads((directory / "miou_results.json").read_text())[case]
    maps = np.load(directory / "miou_maps.npz")
    names = tuple(f"class {index}" for index in range(expected["classes"]))
    matrix = sum(
        np.asarray(confusion.confusion(maps[f"{case}_label_{index}"], maps[f"{case}_pred_{index}"], len(names)))
        for index in range(expected["images"])
    )
    results = metrics.summarize(matrix, names)
    area = {name: np.array(values) for name, values in expected["total_area"].items()}
    assert (np.diag(matrix) == area["intersect"]).all() and (matrix.sum(1) == area["label"]).all()
    with np.errstate(invalid="ignore"):
        ratios = {
            "iou": area["intersect"] / area["union"],
            "accuracy": area["intersect"] / area["label"],
            "dice": 2 * area["intersect"] / (area["label"] + area["pred"]),
            "precision": area["intersect"] / area["pred"],
        }
        ratios["recall"] = ratios["accuracy"]
        ratios["fscore"] = 2 * ratios["precision"] * ratios["recall"] / (ratios["precision"] + ratios["recall"])
    for kind, mean, raw in (
        ("iou", "mIoU", "IoU"),
        ("accuracy", "mAcc", "Acc"),
        ("dice", "mDice", "Dice"),
        ("fscore", "mFscore", "Fscore"),
        ("precision", "mPrecision", "Precision"),
        ("recall", "mRecall", "Recall"),
    ):
        scores = [results["classes"][name][kind] for name in names]
        assert scores == pytest.approx(list(ratios[kind]), abs=1e-9, nan_ok=True)
        assert results[mean] == pytest.approx(np.nanmean(ratios[kind]), abs=1e-9)
        # MMSegmentation divides in float32.
        published = [math.nan if value is None else value for value in expected["raw"][raw]]
        assert scores == pytest.approx(published, abs=1e-6, nan_ok=True)
        assert mean not in expected["raw_mean"] or results[mean] == pytest.approx(expected["raw_mean"][mean], abs=1e-6)
    assert results["aAcc"] == pytest.approx(area["intersect"].sum() / area["label"].sum(), abs=1e-9)


def test_counts_beyond_int32():
    results = metrics.summarize(np.array([[2**31, 2**31], [0, 2**31]]), ("a", "b"))
    assert results["pixels"] == 3 * 2**31 and results["classes"]["a"]["pixels"] == 2**32
    assert results["mIoU"] == pytest.approx(0.5) and results["aAcc"] == pytest.approx(2 / 3)


def test_table_shows_a_dash_for_nan():
    results = metrics.summarize(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]), ("road", "sky", "cat"))
    lines = metrics.class_table(results).split("\n")
    assert lines[1].split() == ["road", "75.00", "75.00", "4"]
    assert lines[3].split() == ["cat", "-", "-", "0"]
    assert lines[4].split() == ["mIoU", "77.50", "aAcc", "87.50", "mAcc", "87.50"]
    assert "nan" not in "\n".join(lines)


def test_boundary_summary_by_hand():
    bands = np.zeros((6, 2, 2), np.int64)
    bands[0] = [[1, 1], [2, 0]]
    bands[2] = [[3, 0], [0, 1]]
    bands[3] = [[10, 0], [0, 0]]
    bands[5] = [[1000, 0], [0, 1000]]
    summary = metrics.boundary_summary(bands, ("a", "b"))
    assert summary["width"] == 0.005 and summary["widths"] == list(metrics.BOUNDARY_WIDTHS)
    assert summary["pixels"] == [4, 4, 8, 18, 18]
    assert summary["classes"] == pytest.approx({"a": 4 / 7, "b": 1 / 4}, abs=1e-12)
    assert summary["mIoU"] == pytest.approx(
        [1 / 8, 1 / 8, (4 / 7 + 1 / 4) / 2, (14 / 17 + 1 / 4) / 2, (14 / 17 + 1 / 4) / 2], abs=1e-12
    )


def test_an_image_of_one_class_has_no_boundary():
    labels = np.full((2, 9, 9), 1, np.uint8)
    bands = np.asarray(confusion.banded_confusion(labels, labels, 2))
    assert bands[:-1].sum() == 0 and bands[-1].tolist() == [[0, 0], [0, 162]]
    summary = metrics.boundary_summary(bands, ("a", "b"))
    assert summary["pixels"] == [0] * 5
    assert all(map(math.isnan, summary["mIoU"] + list(summary["classes"].values())))
