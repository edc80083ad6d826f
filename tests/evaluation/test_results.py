"""The files of an evaluation: order and names of the images, provenance, reading back, and damaged files."""

import hashlib
import json
import re

import numpy as np
import pytest

from kseg import config as configs
from kseg.config import zoo
from kseg.errors import DataError
from kseg.evaluation import metrics, results
from kseg.evaluation.counter import Counts
from tests.helpers.small_evaluations import CLASSES, evaluation, random_matrices, write


@pytest.mark.parametrize(
    "name, split, expected",
    [
        ("encnet_cityscapes", "val", ("encnet_cityscapes:r50-d8-512x1024-40k", 0.7567, 0.7708)),
        ("encnet_cityscapes:r50-d8-512x1024-80k", "val", ("encnet_cityscapes:r50-d8-512x1024-80k", 0.7794, 0.7913)),
        ("encnet_cityscapes", "train", None),
        ("encnet_camvid", "val", None),
    ],
)
def test_published_scores_are_those_of_the_variant(name, split, expected):
    published = zoo.published(configs.load(name), split)
    assert (
        published is None
        if expected is None
        else (
            (published["config"], round(published["mIoU"], 6), round(published["mIoU_tta"], 6)) == expected
            and published["source"] == "MMSegmentation"
        )
    )


def test_a_user_config_has_no_published_scores(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from kseg.config import Config\n\ndef config():\n    return Config()\n")
    assert zoo.published(configs.load(str(path)), "val") is None


# The images have two classes; the last one has no labeled pixels.
COUNTS = Counts(
    np.zeros((6, 2, 2), np.int64),
    ("good", 'a, "b"', "void"),
    np.array([[9, 0], [1, 2], [0, 0]]),
    np.array([[10, 0], [4, 4], [0, 0]]),
    np.array([[9, 1], [3, 5], [0, 0]]),
)


def test_miou_of_each_image_by_hand():
    np.testing.assert_allclose(results.image_mious(COUNTS), [(0.9 + 0) / 2, (1 / 6 + 2 / 7) / 2, np.nan])
    assert results.worst_first(COUNTS) == [1, 0, 2]


def test_per_image_csv_is_worst_first():
    assert results.per_image_csv(COUNTS, ("sky", "sea")).splitlines() == [
        "image,miou,accuracy,pixels,sky,sea",
        '"a, ""b""",0.226190,0.375000,8,0.166667,0.285714',
        "good,0.450000,0.900000,10,0.900000,0.000000",
        "void,,,0,,",
    ]


@pytest.mark.parametrize(
    "names, shown",
    [
        (("/a b/val/x.png", "/a b/val/y.png"), ["x.png", "y.png"]),
        (("/a/u/x.png", "/a/v/x.png"), ["u/x.png", "v/x.png"]),
        (("e1", "e2"), ["e1", "e2"]),
        (("/a/x.png",), ["x.png"]),
        (("x/1.png", "y/2.png"), ["x/1.png", "y/2.png"]),
    ],
)
def test_image_names_are_relative_to_their_common_directory(names, shown):
    assert results.image_names(COUNTS._replace(names=names)) == shown


def test_provenance_contains_the_digest_of_the_weights(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"weights")
    provenance = results.provenance("folder", "data/set", tmp_path / "w.pth")
    assert provenance["weights_sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert provenance["dataset"] == "folder" and provenance["directory"] == "data/set"
    assert provenance["date"].endswith("+00:00")
    assert results.provenance("folder", "data/set", None)["weights"] is None


def test_provenance_contains_the_versions_in_use():
    import keras
    import tensorflow as tf

    provenance = results.provenance("folder", "data/set", None)
    assert (provenance["tensorflow"], provenance["keras"]) == (tf.__version__, keras.__version__)


def test_written_files_are_read_back(tmp_path):
    matrices = random_matrices(np.random.default_rng(7), 8)
    matrices[:, 3], matrices[:, :, 3] = 0, 0
    expected = evaluation(matrices)
    bands = np.zeros((len(metrics.BOUNDARY_WIDTHS) + 1, 4, 4), np.int64)
    bands[0] = matrices.sum(0)
    scores = {
        "split": "val",
        "images": 8,
        **metrics.summarize(matrices.sum(0), CLASSES),
        "provenance": {"dataset": "camvid"},
    }
    counts = Counts(bands, expected.names, expected.hits, expected.truth, expected.predicted)
    results.write_results(tmp_path, scores, counts, CLASSES)
    assert json.loads((tmp_path / "metrics.json").read_text())["classes"]["car"]["iou"] is None
    stored = results.read_evaluation(tmp_path)
    assert (stored.dataset, stored.split, stored.names, stored.classes) == ("camvid", "val", expected.names, CLASSES)
    for key in ("hits", "truth", "predicted"):
        np.testing.assert_array_equal(getattr(stored, key), getattr(expected, key))


def require_refused(path, message):
    with pytest.raises(DataError) as error:
        results.read_evaluation(path)
    assert re.search(message, str(error.value)), str(error.value)


def test_missing_files(tmp_path):
    path = write(tmp_path / "a", random_matrices(np.random.default_rng(1), 8))
    require_refused(tmp_path / "no" / "metrics.json", "no/metrics.json .*python -m kseg.evaluate --out DIR")
    require_refused(tmp_path, f"{tmp_path}/metrics.json ")
    (tmp_path / "a" / "per_image.npz").unlink()
    require_refused(path, "a/per_image.npz .*python -m kseg.evaluate --out DIR")


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "metrics.json is damaged: Expecting"),
        ("[]", "metrics.json is damaged"),
        ("\udcff", "metrics.json is damaged"),
        ("{}", "metrics.json .*'provenance'"),
    ],
)
def test_damaged_metrics(tmp_path, text, message):
    path = write(tmp_path, random_matrices(np.random.default_rng(1), 8))
    path.write_bytes(text.encode(errors="surrogateescape"))
    require_refused(path, message)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mIoU": 0.5}, r"per_image.npz .*mIoU 0\.\d+, .*metrics.json .* 0.5: .*different evaluations"),
        ({"mIoU": None}, r"mIoU 0\.\d+, .*metrics.json .* nan: .*different evaluations"),
        ({"aAcc": 0.25}, "aAcc .* 0.25: .*different evaluations"),
        ({"mAcc": "high"}, "damaged: could not convert"),
        ({"images": 9}, "8 images of 4 classes, .*metrics.json has 9 of 4: .*different evaluations"),
        ({"classes": {"a": 0, "b": 0, "c": 0, "d": 0}}, "8 of 4 with other names: .*different evaluations"),
    ],
)
def test_metrics_of_another_evaluation(tmp_path, changes, message):
    require_refused(write(tmp_path, random_matrices(np.random.default_rng(1), 8), changes=changes), message)


def test_metrics_may_differ_by_rounding(tmp_path):
    matrices = random_matrices(np.random.default_rng(1), 8)
    mean = metrics.summarize(matrices.sum(0), CLASSES)["mIoU"]
    assert results.read_evaluation(write(tmp_path, matrices, changes={"mIoU": mean + 1e-12})).split == "val"
    require_refused(write(tmp_path, matrices, changes={"mIoU": mean + 1e-7}), "mIoU")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"text",
        lambda data: data[: len(data) // 2],
        lambda data: data[:60] + bytes(byte ^ 85 for byte in data[60:90]) + data[90:],
    ],
)
def test_damaged_counts(tmp_path, damage):
    path = write(tmp_path, random_matrices(np.random.default_rng(1), 8))
    counts = tmp_path / "per_image.npz"
    counts.write_bytes(damage(counts.read_bytes()))
    require_refused(path, "per_image.npz is damaged")


@pytest.mark.parametrize(
    "key, change, message",
    [
        ("hits", None, "hits is not a file in the archive"),
        ("hits", lambda array: array[:-1], r"hits has dtype int64 and shape \(7, 4\)"),
        ("truth", lambda array: array.astype(float), r"truth has dtype float64 and shape \(8, 4\)"),
        ("names", lambda array: np.array("one"), r"names has dtype <U3 and shape \(\)"),
        ("names", lambda array: np.array(array, object), "Object arrays"),
        ("classes", lambda array: np.arange(4), r"classes has dtype int64 and shape \(4,\)"),
        ("hits", lambda array: array - 10**6, r"inconsistent in 8 images \(/data/val/0.png, .*\)"),
        (
            "predicted",
            lambda array: array + [[0, 1, 0, 0]] * (np.arange(8) == 3)[:, None],
            r"inconsistent in 1 image \(/data/val/3.png\)",
        ),
    ],
)
def test_invalid_arrays_in_counts(tmp_path, key, change, message):
    path = write(tmp_path, random_matrices(np.random.default_rng(1), 8))
    arrays = dict(np.load(tmp_path / "per_image.npz"))
    arrays[key] = change and change(arrays[key])
    np.savez(tmp_path / "per_image.npz", **{name: array for name, array in arrays.items() if array is not None})
    require_refused(path, f"per_image.npz is damaged.*{message}")
