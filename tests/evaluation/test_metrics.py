"""The confusion matrices against loops over pixels, and the metrics against MMSegmentation's own."""

import functools
import importlib.util
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from kseg.evaluation import confusion, metrics
from tests.helpers import slow_metrics
from tests.helpers.running import ON_JAX, ROOT
from tests.helpers.shared_files import FIXTURES, needs_fixtures

# (N, H, W), one-pixel maps and maps narrower than the widest band among them.
SHAPES = [(1, 1, 1), (3, 1, 20), (2, 20, 1), (2, 33, 47), (1, 60, 80), (5, 12, 13), (1, 2, 500)]
CLASSES = 5


def random_maps(seed, shape):
    """Return uint8 labels of blocks, void among them, and int32 predictions that agree with some of it."""
    random = np.random.default_rng(seed)
    count, height, width = shape
    blocks = random.choice([*range(CLASSES), 255], (count, -(-height // 7), -(-width // 11))).astype(np.uint8)
    labels = blocks.repeat(7, 1).repeat(11, 2)[:, :height, :width]
    guesses = random.integers(0, CLASSES, shape)
    return labels, np.where((random.random(shape) < 0.6) & (labels != 255), labels, guesses).astype(np.int32)


@functools.cache
def compiled_counts():
    return tf.function(lambda labels, predictions: confusion.banded_confusion(labels, predictions, CLASSES), input_signature=[
        tf.TensorSpec((None, None, None), tf.uint8), tf.TensorSpec((None, None, None), tf.int32)])


@pytest.mark.parametrize("label_type, prediction_type", [
    (np.uint8, np.uint8), (np.int32, np.int64), (np.uint8, np.int32)])
def test_confusion_against_a_loop(label_type, prediction_type):
    generator = np.random.default_rng(0)
    labels = generator.choice([0, 1, 2, 5, 255], (2, 13, 17)).astype(label_type)
    predictions = generator.integers(0, 6, (2, 13, 17)).astype(prediction_type)
    matrix = np.asarray(confusion.confusion(labels, predictions, 6))
    assert matrix.dtype == np.int64
    assert (matrix == slow_metrics.confusion(labels, predictions, 6)).all()


def test_many_classes_do_not_overflow_the_label_type():
    labels = np.array([199, 255, 0], np.uint8)
    matrix = np.asarray(confusion.confusion(labels, np.array([198, 3, 199], np.uint8), 200))
    assert matrix[199, 198] == matrix[0, 199] == 1 and matrix.sum() == 2


def test_all_ignored():
    matrix = np.asarray(confusion.confusion(np.full((4, 4), 255, np.uint8), np.zeros((4, 4), np.uint8), 3))
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
    matrix = sum(np.asarray(confusion.confusion(maps[f"{case}_label_{index}"], maps[f"{case}_pred_{index}"], len(names)))
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
    matrix = np.asarray(confusion.confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 2)) * 2**31
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


@pytest.mark.parametrize("shape", SHAPES)
def test_counts_in_a_graph_of_any_size_against_loops(shape):
    labels, predictions = random_maps(sum(shape), shape)
    found = compiled_counts()(labels, predictions).numpy()
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, slow_metrics.counts(labels, predictions, CLASSES))
    np.testing.assert_array_equal(found.sum(0), confusion.confusion(labels, predictions, CLASSES))


def test_counts_are_the_same_eager_and_in_a_graph_of_one_size():
    labels, predictions = random_maps(7, (2, 40, 30))
    expected = slow_metrics.counts(labels, predictions, CLASSES)
    count = functools.partial(confusion.banded_confusion, classes=CLASSES)
    np.testing.assert_array_equal(count(labels, predictions), expected)
    np.testing.assert_array_equal(count(labels.astype(np.int32), predictions.astype(np.uint8)), expected)
    for height in (40, None):
        fixed = tf.function(count, input_signature=[
            tf.TensorSpec((2, height, 30), tf.uint8), tf.TensorSpec((2, height, 30), tf.int32)])
        np.testing.assert_array_equal(fixed(labels, predictions), expected)


def test_counts_on_jax(tmp_path):
    if importlib.util.find_spec("jax") is None:
        pytest.skip("JAX is not installed")
    labels, predictions = random_maps(3, (2, 33, 47))
    np.savez(tmp_path / "maps.npz", labels=labels, predictions=predictions)
    program = ("import sys, numpy as np, keras; from kseg import metrics; maps = np.load(sys.argv[1]); "
               f"found = metrics.counts(maps['labels'], maps['predictions'], {CLASSES}); "
               "print(keras.backend.backend()); np.save(sys.argv[2], np.asarray(found))")
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "maps.npz", tmp_path / "found.npy"], text=True,
                          capture_output=True, env=os.environ | ON_JAX, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.split() == ["jax"], done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), slow_metrics.counts(labels, predictions, CLASSES))


@pytest.mark.parametrize("height, width, radii", [
    # Diagonals of 500, 600 and 1000: 2.5 pixels are 2, and 1.5 are 2 as well.
    (300, 400, [1, 1, 2, 5, 10]), (360, 480, [1, 2, 3, 6, 12]), (600, 800, [1, 2, 5, 10, 20]),
    # 2.86, 5.72, 11.45, 22.90 and 45.79.
    (1024, 2048, [3, 6, 11, 23, 46])])
def test_bands_beside_a_straight_edge(height, width, radii):
    labels = np.zeros((1, height, width), np.uint8)
    labels[:, :, width // 2:] = 255
    # Columns beside the edge have distance 1.
    distances = np.concatenate([np.arange(width // 2, 0, -1), np.arange(1, width // 2 + 1)])
    expected = sum(distances > radius for radius in radii)
    bands = np.asarray(tf.function(confusion.boundary_bands, input_signature=[
        tf.TensorSpec((None, None, None), tf.uint8)])(labels))
    assert bands.dtype == np.int32 and (bands == expected).all()
    assert (np.asarray(confusion.boundary_bands(labels.transpose(0, 2, 1))) == expected[:, None]).all()


def test_bands_are_squares_around_a_corner_and_stop_at_the_frame():
    # Widths of 1, 1, 2, 5 and 10 pixels around one pixel of another class, 4 pixels from the frame.
    labels = np.zeros((1, 300, 400), np.int32)
    labels[0, 4, 200] = 3
    bands = np.asarray(confusion.boundary_bands(labels))[0]
    rows, columns = np.mgrid[:300, :400]
    # Its four neighbours lie beside its edges too, and the others around it are one pixel from them.
    down, right = abs(rows - 4), abs(columns - 200)
    distance = 1 + np.minimum(np.maximum(np.maximum(down - 1, 0), right), np.maximum(down, np.maximum(right - 1, 0)))
    assert (bands == sum(distance > radius for radius in (1, 1, 2, 5, 10))).all()
    assert (bands == 0).sum() == 5 and (bands[-1] == 5).all() and (bands[:, 0] == 5).all()


@pytest.mark.parametrize("label, prediction", [(5, 0), (-1, 0), (254, 4), (256, 1), (2 ** 31 - 1, 1), (-2 ** 31, 1),
                                               (0, 5), (4, 5), (1, -1), (0, -1), (2, 2 ** 31 - 1), (3, -2 ** 31)])
def test_what_is_no_class_counts_as_no_other(label, prediction):
    labels, predictions = np.full((1, 6, 8), 2, np.int32), np.full((1, 6, 8), 3, np.int32)
    labels[0, 2, 3], predictions[0, 2, 3] = label, prediction
    for matrix in (confusion.confusion(labels, predictions, 5), np.sum(confusion.banded_confusion(labels, predictions, 5), 0)):
        matrix = np.asarray(matrix)
        assert matrix[2, 3] == 47 and matrix.sum() == 47


def test_what_is_no_class_counts_as_no_other_in_64_bits():
    labels, predictions = np.array([[[0, 1, 2 ** 32]]]), np.array([[[0, 2 ** 32 + 1, 0]]])
    matrix = np.asarray(confusion.banded_confusion(labels, predictions, 2)).sum(0)
    assert matrix.tolist() == [[1, 0], [0, 0]]


@pytest.mark.parametrize("label, prediction", [((1, 4, 6), (1, 4, 1)), ((1, 4, 6), (1, 6, 4)), ((1, 4, 6), (4, 6))])
def test_maps_of_different_size_are_refused(label, prediction):
    for count in (confusion.confusion, confusion.banded_confusion):
        with pytest.raises(ValueError, match=r"differ in size: \(1, 4, 6\) and"):
            count(np.zeros(label, np.uint8), np.zeros(prediction, np.uint8), 3)


def test_a_class_cannot_have_the_ignored_value():
    labels = np.array([[[254, 255, 0]]], np.uint8)
    assert np.asarray(confusion.banded_confusion(labels, labels, 255)).sum((0, 1)).nonzero()[0].tolist() == [0, 254]
    with pytest.raises(ValueError, match="256 classes: label 255 is none"):
        confusion.confusion(labels, labels, 256)


def test_any_partition_of_the_images_sums_to_the_same():
    labels, predictions = random_maps(11, (6, 24, 31))
    whole = np.asarray(compiled_counts()(labels, predictions))
    for sizes in ([1] * 6, [2, 4], [5, 1], [3, 2, 1]):
        ends = np.cumsum(sizes)
        parts = [np.asarray(compiled_counts()(labels[end - size:end], predictions[end - size:end]))
                 for size, end in zip(sizes, ends)]
        np.testing.assert_array_equal(np.sum(parts, 0), whole)


def test_boundary_summary_by_hand():
    names = ("a", "b")
    bands = np.zeros((6, 2, 2), np.int64)
    bands[0] = [[1, 1], [2, 0]]
    bands[2] = [[3, 0], [0, 1]]
    bands[3] = [[10, 0], [0, 0]]
    bands[5] = [[1000, 0], [0, 1000]]
    found = metrics.boundary_summary(bands, names)
    assert found["width"] == 0.005 and found["widths"] == list(confusion.BOUNDARY_WIDTHS)
    assert found["pixels"] == [4, 4, 8, 18, 18]
    assert found["classes"] == pytest.approx({"a": 4 / 7, "b": 1 / 4}, abs=1e-12)
    assert found["mIoU"] == pytest.approx([1 / 8, 1 / 8, (4 / 7 + 1 / 4) / 2, (14 / 17 + 1 / 4) / 2,
                                           (14 / 17 + 1 / 4) / 2], abs=1e-12)


def test_one_class_has_no_boundary():
    labels = np.full((2, 9, 9), 1, np.uint8)
    bands = np.asarray(confusion.banded_confusion(labels, labels, 2))
    assert bands[:-1].sum() == 0 and bands[-1].tolist() == [[0, 0], [0, 162]]
    found = metrics.boundary_summary(bands, ("a", "b"))
    assert found["pixels"] == [0] * 5 and all(map(math.isnan, found["mIoU"] + list(found["classes"].values())))
