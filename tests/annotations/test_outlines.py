"""Boxes, ellipses, rotations and drawing orders of CVAT, Label Studio and LabelMe, after their documentation."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from kseg.annotations import conversion
from kseg.annotations.annotated_images import Options
from kseg.annotations.conversion import Conversion
from kseg.errors import DataError
from tests.helpers.annotation_files import write_images

SIZE = (40, 60)


def convert(tmp_path, kind, path):
    """Return the label of a.png, and the findings; the classes are background, car, road."""
    write_images(tmp_path / "images", "a", SIZE)
    what = Conversion(kind, {"": path}, Options(tmp_path / "images", ("car", "road")), val_fraction=0.0)
    conversion.convert(what, tmp_path / "out", report=lambda line: None)
    findings = json.loads((tmp_path / "out" / "conversion.json").read_text())["findings"]
    return np.asarray(Image.open(tmp_path / "out" / "train" / "labels" / "a.png")), findings


def cvat(tmp_path, elements):
    path = tmp_path / "annotations.xml"
    path.write_text(
        "<annotations><meta><job><labels><label><name>car</name></label><label><name>road</name></label></labels>"
        f'</job></meta><image id="0" name="a.png" width="60" height="40">{elements}</image></annotations>'
    )
    return path


def test_cvat_draws_by_z_order(tmp_path):
    elements = (
        '<box label="car" xtl="5" ytl="5" xbr="15" ybr="15" z_order="1"/>'
        '<box label="road" xtl="0" ytl="0" xbr="60" ybr="40" z_order="0"/>'
        '<polyline label="car" points="0,0;5,5" z_order="2"/><tag label="car"/>'
    )
    label, findings = convert(tmp_path, "cvat", cvat(tmp_path, elements))
    expected = np.full(SIZE, 2)
    expected[5:15, 5:15] = 1
    np.testing.assert_array_equal(label, expected)
    assert findings["no area"][0].endswith("image 'a.png': polyline 3")


def test_cvat_turns_a_box_around_its_center(tmp_path):
    box = '<box label="car" xtl="20" ytl="18" xbr="40" ybr="22" rotation="90"/>'
    label, _ = convert(tmp_path, "cvat", cvat(tmp_path, box))
    assert np.count_nonzero(label) == 80 and label[10:30, 28:32].all()


def test_cvat_ellipse(tmp_path):
    label, _ = convert(tmp_path, "cvat", cvat(tmp_path, '<ellipse label="car" cx="30" cy="20" rx="25" ry="10"/>'))
    rows, columns = np.indices(SIZE) + 0.5
    inside = ((columns - 30) / 25) ** 2 + ((rows - 20) / 10) ** 2 < 1
    assert np.count_nonzero(inside != label.astype(bool)) < 0.04 * inside.sum()


@pytest.mark.parametrize(
    "element, fragment",
    [
        (
            '<mask label="car" rle="3, 4" left="0" top="0" width="2" height="2"/>',
            "mask 1: the run lengths count 7 pixels",
        ),
        ('<mask label="car" rle="0, 4" left="59" top="0" width="2" height="2"/>', "exceeds the image of 60x40"),
        ('<box label="car" xtl="a" ytl="0" xbr="1" ybr="1"/>', "box 1: xtl='a' is not a number"),
        ('<polygon label="car" points="1,2;3"/>', "polygon 1: points are pairs"),
        (
            '<box label="bus" xtl="0" ytl="0" xbr="9" ybr="9"/>',
            "box 1: unknown class 'bus'; known: background, car, road",
        ),
    ],
)
def test_cvat_faults(tmp_path, element, fragment):
    with pytest.raises(DataError) as error:
        convert(tmp_path, "cvat", cvat(tmp_path, element))
    assert fragment in str(error.value) and "image 'a.png'" in str(error.value)


def test_label_studio_turns_a_rectangle_around_its_corner(tmp_path):
    value = {"x": 50, "y": 25, "width": 100 / 3, "height": 10, "rotation": 90, "rectanglelabels": ["road"]}
    result = {"id": "r", "type": "rectanglelabels", "original_width": 60, "original_height": 40, "value": value}
    unfinished = {"was_cancelled": True, "result": []}
    tasks = [
        {"id": 1, "data": {"photo": "/data/local-files/?d=a.png"}, "annotations": [unfinished, {"result": [result]}]},
        {"id": 2, "data": {"photo": "b.png"}, "annotations": [unfinished]},
    ]
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps(tasks))
    label, findings = convert(tmp_path, "label-studio", path)
    # 20 to the right and 4 down become 20 down and 4 to the left of (30, 10).
    assert np.count_nonzero(label) == 80 and (label[10:30, 26:30] == 2).all()
    assert findings["skipped"] == [f"{path}: task 2"]


def test_label_studio_fault(tmp_path):
    result = {"id": "r", "type": "brushlabels", "original_width": 60, "original_height": 40}
    result["value"] = {"format": "rle", "rle": [0, 0, 0, 1, 2], "brushlabels": ["car"]}
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps([{"id": 1, "data": {"image": "a.png"}, "annotations": [{"result": [result]}]}]))
    with pytest.raises(DataError, match="task 1: result r: its rle is damaged"):
        convert(tmp_path, "label-studio", path)


def test_labelme_circle_and_ignored_class(tmp_path):
    (tmp_path / "json").mkdir()
    shapes = [
        {"label": "car", "shape_type": "circle", "points": [[30, 20], [42, 20]]},
        {"label": "car", "shape_type": "linestrip", "points": [[0, 0], [5, 5], [9, 9]]},
    ]
    content = {"shapes": shapes, "imagePath": "..\\images\\a.png", "imageHeight": 40, "imageWidth": 60}
    (tmp_path / "json" / "a.json").write_text(json.dumps(content | {"imagePath": "a.png"}))
    label, findings = convert(tmp_path, "labelme", tmp_path / "json")
    assert abs(np.count_nonzero(label) - math.pi * 12**2) < 0.03 * math.pi * 12**2
    assert len(findings["no area"]) == 1
    # Without --images, and as LabelMe on Windows writes the path; void is not a class.
    shapes[0]["label"] = "void"
    shapes.append({"label": "car", "shape_type": "rectangle", "points": [[5, 5], [0, 0]]})
    (tmp_path / "json" / "a.json").write_text(json.dumps(content))
    what = Conversion("labelme", {"": tmp_path / "json"}, val_fraction=0.0)
    conversion.convert(what, tmp_path / "second", report=lambda line: None)
    label = np.asarray(Image.open(tmp_path / "second" / "train" / "labels" / "a.png"))
    assert np.count_nonzero(label == 1) == 25 and set(np.unique(label)) == {0, 1, 255}
