"""kseg.evaluation.result_reading: scores as kseg.evaluation.metrics has them, files read back, evaluations paired, and every refusal."""

import re

import numpy as np
import pytest

from kseg import compare
from kseg.errors import DataError
from kseg.evaluation import confusion, metrics, paired_bootstrap, result_reading, results
from kseg.evaluation.counter import Counts
from tests.helpers.small_evaluations import CLASSES, evaluation, matrices, slow_scores, write


@pytest.mark.parametrize("missing", [(), (1,), (0, 2, 3), (0, 1, 2, 3)])
def test_scores_are_those_of_metrics(missing):
    matrix = np.random.default_rng(5).integers(1, 10**12, (4, 4))
    # In neither truth nor prediction; the others are never mistaken for them.
    matrix[list(missing)] = 0
    matrix[:, list(missing)] = 0
    only_guessed = matrix.copy()
    only_guessed[3] = 0
    for each in (matrix, only_guessed):
        found = result_reading.scores(np.diag(each), each.sum(1), each.sum(0))
        assert found.tolist() == pytest.approx(slow_scores(each), abs=1e-15, nan_ok=True)


def test_reads_what_evaluation_writes(tmp_path):
    images = matrices(np.random.default_rng(7), 8)
    images[:, 3], images[:, :, 3] = 0, 0
    ours = evaluation(images)
    bands = np.zeros((len(confusion.BOUNDARY_WIDTHS) + 1, 4, 4), np.int64)
    bands[0] = images.sum(0)
    figures = {"split": "val", "images": 8, **metrics.summary(images.sum(0), CLASSES),
               "provenance": {"dataset": "camvid"}}
    results.write(tmp_path, figures, Counts(bands, ours.names, ours.hits, ours.truth, ours.predicted), CLASSES)
    found = result_reading.read(tmp_path)
    assert (found.dataset, found.split, found.names, found.classes) == ("camvid", "val", ours.names, CLASSES)
    for key in ("hits", "truth", "predicted"):
        np.testing.assert_array_equal(getattr(found, key), getattr(ours, key))


def test_images_in_another_order_and_directory(tmp_path):
    generator = np.random.default_rng(6)
    a = matrices(generator, 20)
    b = a + np.eye(4, dtype=np.int64) * (a.sum(2) > 0)[:, :, None]
    b[:, 0] = np.roll(a[:, 0], 1, -1)
    b[:, 1:] = a[:, 1:]
    paths = [f"/data/val/aachen/{index}.v1.PNG" for index in range(19)] + ["/data/val/ulm/1.png"]
    first = write(tmp_path / "a", a, paths)
    places = generator.permutation(20)
    names = [f"gs://bucket/set/aachen/{index}.v1" for index in range(19)] + ["gs://bucket/set/ulm/1"]
    second = write(tmp_path / "b", b[places], [names[place] for place in places])
    third = write(tmp_path / "c", b, paths)
    one, other = (paired_bootstrap.compare(result_reading.read(first), result_reading.read(each), 100) for each in (second, third))
    assert one.classes == other.classes and one.means == other.means and one.means[0].difference < 0


def refused(a, b, message):
    with pytest.raises(DataError) as error:
        compare.main([str(a), str(b)])
    assert re.search(message, str(error.value)), str(error.value)


def test_evaluations_that_cannot_be_paired(tmp_path):
    generator = np.random.default_rng(1)
    images = matrices(generator, 8)
    a = write(tmp_path / "a", images)
    refused(a, write(tmp_path / "split", images, changes={"split": "test"}), "is of split 'val', .* of 'test'")
    refused(a, write(tmp_path / "set", images, changes={"provenance": {"dataset": "voc2012"}}),
            "data set 'camvid', .*'voc2012'")
    refused(a, write(tmp_path / "classes", images, classes=("sky", "road", "tree", "bus")),
            r"4 classes and .* 4, which differ: only the first has 2 classes \(pole, car\); only the second has 2 "
            r"classes \(tree, bus\)$")
    refused(a, write(tmp_path / "order", images, classes=CLASSES[::-1]), "differ: the same ones in another order")
    refused(a, write(tmp_path / "fewer", images[:3]),
            r"8 images and .* 3, which differ: only the first has 5 images \(3, 4, 5, ...\)$")
    names = [*[f"/data/val/{index}.png" for index in range(7)], "/data/val/x.png"]
    refused(a, write(tmp_path / "other", images, names),
            r"which differ: only the first has 1 image \(7\); only the second has 1 image \(x\)")
    other = images.copy()
    other[[2, 5], 0, 0] += 10
    refused(a, write(tmp_path / "labels", other),
            r"counted on other labels of 2 images \(/data/val/2.png, /data/val/5.png\)")


def test_missing_files(tmp_path):
    path = write(tmp_path / "a", matrices(np.random.default_rng(1), 8))
    refused(tmp_path / "no" / "metrics.json", path, "no file .*no/metrics.json: python -m kseg.evaluate --out DIR")
    refused(path, tmp_path, f"no file {tmp_path}/metrics.json: ")
    (tmp_path / "a" / "per_image.npz").unlink()
    refused(path, path, "no file .*a/per_image.npz: python -m kseg.evaluate --out DIR writes it beside metrics.json")


@pytest.mark.parametrize("text, message", [
    ("{", "metrics.json is damaged: Expecting"), ("[]", "metrics.json is damaged"),
    ("\udcff", "metrics.json is damaged"), ("{}", "metrics.json has no 'provenance': this version's")])
def test_damaged_metrics(tmp_path, text, message):
    path = write(tmp_path, matrices(np.random.default_rng(1), 8))
    path.write_bytes(text.encode(errors="surrogateescape"))
    refused(path, path, message)


@pytest.mark.parametrize("changes, message", [
    ({"mIoU": 0.5}, r"add up to mIoU 0\.\d+, and metrics.json beside it says 0.5: not of one evaluation"),
    ({"mIoU": None}, r"add up to mIoU 0\.\d+, and metrics.json beside it says nan: not of one"),
    ({"aAcc": 0.25}, "add up to aAcc .* says 0.25: not of one"), ({"mAcc": "high"}, "damaged: could not convert"),
    ({"images": 9}, "holds 8 images of 4 classes, metrics.json beside it tells of 9 of 4: not of one evaluation"),
    ({"classes": {"a": 0, "b": 0, "c": 0, "d": 0}}, "tells of 8 of 4 by other names: not of one evaluation")])
def test_metrics_of_another_evaluation(tmp_path, changes, message):
    path = write(tmp_path, matrices(np.random.default_rng(1), 8), changes=changes)
    refused(path, path, message)


def test_metrics_that_differ_by_rounding_only(tmp_path):
    images = matrices(np.random.default_rng(1), 8)
    mean = metrics.summary(images.sum(0), CLASSES)["mIoU"]
    assert result_reading.read(write(tmp_path, images, changes={"mIoU": mean + 1e-12})).split == "val"
    with pytest.raises(DataError, match="add up to mIoU"):
        result_reading.read(write(tmp_path, images, changes={"mIoU": mean + 1e-7}))


@pytest.mark.parametrize("damage, message", [
    (lambda data: b"", "damaged or no file of arrays"), (lambda data: b"text", "damaged or no file of arrays"),
    (lambda data: data[:len(data) // 2], "damaged or no file of arrays"),
    (lambda data: data[:60] + bytes(byte ^ 85 for byte in data[60:90]) + data[90:], "damaged or no file of arrays")])
def test_damaged_counts(tmp_path, damage, message):
    path = write(tmp_path, matrices(np.random.default_rng(1), 8))
    counts = tmp_path / "per_image.npz"
    counts.write_bytes(damage(counts.read_bytes()))
    refused(path, path, f"per_image.npz is {message}")


@pytest.mark.parametrize("key, change, message", [
    ("hits", None, "damaged: hits is not a file in the archive"),
    ("hits", lambda array: array[:-1], r"damaged: hits is int64 \(7, 4\)"),
    ("truth", lambda array: array.astype(float), r"damaged: truth is float64 \(8, 4\)"),
    ("names", lambda array: np.array("one"), r"damaged: names is <U3 \(\)"),
    ("names", lambda array: np.array(array, object), "damaged or no file of arrays: Object arrays"),
    ("classes", lambda array: np.arange(4), r"damaged: classes is int64 \(4,\)"),
    ("hits", lambda array: array - 10**6, r"the counts of 8 images \(/data/val/0.png, .*\) contradict themselves"),
    ("predicted", lambda array: array + [[0, 1, 0, 0]] * (np.arange(8) == 3)[:, None],
     r"the counts of 1 image \(/data/val/3.png\) contradict themselves")])
def test_counts_that_are_none(tmp_path, key, change, message):
    path = write(tmp_path, matrices(np.random.default_rng(1), 8))
    arrays = dict(np.load(tmp_path / "per_image.npz"))
    arrays[key] = change and change(arrays[key])
    np.savez(tmp_path / "per_image.npz", **{name: array for name, array in arrays.items() if array is not None})
    refused(path, path, message)
