"""Convert exports of other tools, and compare every pixel with what was annotated."""

import numpy as np
import pytest
from PIL import Image

from kseg import data
from tests.helpers.annotation_files import EXPORTS, expected_labels, write_images


def convert(tmp_path, kind, source, *arguments):
    out = tmp_path / "out"
    images = [] if "--images" in arguments else ["--images", str(tmp_path / "images")]
    assert data.main(["convert", kind, str(source), "--out", str(out), *images, *arguments]) == 0
    labels = {path.stem: np.asarray(Image.open(path)) for path in out.glob("*/labels/*.png")}
    return out, labels


def class_names(out):
    return [line.split()[1] for line in (out / "classes.txt").read_text().splitlines()]


@pytest.fixture
def images(tmp_path):
    write_images(tmp_path / "images")


# Supervision's polygons have their corners at the centers of the outermost pixels, so the last row and column of each
# object are outside.
INCLUSIVE = {"supervision_coco"}
CASES = {
    "datumaro_coco": ("coco", "annotations/instances_train.json", ["--crowd", "draw"]),
    "supervision_coco": ("coco", "annotations.json", []),
    "labelme": ("labelme", "", ["--classes", "CLASSES"]),
}


@pytest.mark.parametrize("name", CASES)
def test_pixels_of_an_export(tmp_path, images, name):
    kind, file, arguments = CASES[name]
    (tmp_path / "CLASSES").write_text("road\ncar\n")
    arguments = [str(tmp_path / word) if word == "CLASSES" else word for word in arguments]
    out, labels = convert(tmp_path, kind, EXPORTS / name / file, *arguments)
    assert class_names(out) == ["background", "road", "car"]
    expected = expected_labels()
    if name in INCLUSIVE:
        expected["a"][:], expected["b"][:] = 0, 0
        expected["a"][10:23, :31] = 1
        expected["a"][12:17, 5:14] = 2
        expected["b"][2:8, 20:29] = 2
    assert sorted(labels) == ["a", "b"]
    for key, label in labels.items():
        assert label.dtype == np.uint8
        np.testing.assert_array_equal(label, expected[key], err_msg=key)
