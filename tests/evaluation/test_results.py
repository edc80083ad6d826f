"""What an evaluation writes beside its figures: published targets, the images' order, provenance."""

import hashlib

import numpy as np
import pytest

from kseg import config as configs
from kseg.config import zoo
from kseg.datasets import registry
from kseg.evaluation import results
from kseg.evaluation.counter import Counts
from tests.helpers import small_sets


@pytest.mark.parametrize("name, split, expected", [
    ("encnet_cityscapes", "val", ("encnet_cityscapes:r50-d8-512x1024-40k", 0.7567, 0.7708)),
    ("encnet_cityscapes:r50-d8-512x1024-80k", "val", ("encnet_cityscapes:r50-d8-512x1024-80k", 0.7794, 0.7913)),
    ("encnet_cityscapes", "train", None), ("encnet_camvid", "val", None)])
def test_published_figures_are_those_of_the_variant(name, split, expected):
    found = zoo.published(configs.load(name), split)
    assert found is None if expected is None else (
        (found["config"], round(found["mIoU"], 6), round(found["mIoU_tta"], 6)) == expected
        and found["source"] == "MMSegmentation")


def test_a_config_of_the_users_own_has_no_published_figure(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from kseg.config import Config\n\ndef config():\n    return Config()\n")
    assert zoo.published(configs.load(str(path)), "val") is None


# Two classes; the last image is void.
COUNTS = Counts(
    np.zeros((6, 2, 2), np.int64), ("good", "a, \"b\"", "void"), np.array([[9, 0], [1, 2], [0, 0]]),
    np.array([[10, 0], [4, 4], [0, 0]]), np.array([[9, 1], [3, 5], [0, 0]]))


def test_each_images_iou_by_hand():
    ious = results.image_ious(COUNTS)
    np.testing.assert_allclose(ious[:2], [[0.9, 0.0], [1 / 6, 2 / 7]])
    assert np.isnan(ious[2]).all()
    np.testing.assert_allclose(results.image_mious(COUNTS), [0.45, (1 / 6 + 2 / 7) / 2, np.nan])
    assert results.worst_first(COUNTS) == [1, 0, 2]


def test_the_table_of_images_is_worst_first():
    assert results.per_image(COUNTS, ("sky", "sea")).splitlines() == [
        "image,miou,accuracy,pixels,sky,sea", '"a, ""b""",0.226190,0.375000,8,0.166667,0.285714',
        "good,0.450000,0.900000,10,0.900000,0.000000", "void,,,0,,"]


@pytest.mark.parametrize("names, shown", [
    (("/a b/val/x.png", "/a b/val/y.png"), ["x.png", "y.png"]), (("/a/u/x.png", "/a/v/x.png"), ["u/x.png", "v/x.png"]),
    (("e1", "e2"), ["e1", "e2"]), (("/a/x.png",), ["x.png"]), (("x/1.png", "y/2.png"), ["x/1.png", "y/2.png"])])
def test_images_are_named_within_their_directory(names, shown):
    assert results.image_names(COUNTS._replace(names=names)) == shown


def test_provenance_names_the_weights_by_digest(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"weights")
    data = small_sets.folder(tmp_path / "set", {"val": [np.zeros((2, 2))]})
    found = results.provenance(small_sets.config(data), registry.find(data), tmp_path / "w.pth")
    assert found["weights_sha256"] == hashlib.sha256(b"weights").hexdigest() and found["dataset"] == "folder"
    assert found["directory"] == data.directory and found["date"].endswith("+00:00")
    assert results.provenance(small_sets.config(data), registry.find(data), None)["weights"] is None
