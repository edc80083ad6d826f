"""Convert exports of other tools, and compare every pixel with what was annotated."""

import numpy as np
import pytest
from PIL import Image

from kseg import data
from kseg.errors import UserError
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
INCLUSIVE = {"supervision_coco", "supervision_yolo"}
CASES = {
    "datumaro_coco": ("coco", "annotations/instances_train.json", ["--crowd", "draw"]),
    "supervision_coco": ("coco", "annotations.json", []),
    "supervision_yolo": ("yolo", "data.yaml", []),
    "datumaro_cvat": ("cvat", "train.xml", []),
    "label_studio": ("label-studio", "project.json", ["--classes", "CLASSES"]),
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


@pytest.mark.parametrize("name", ["hf_disk", "hf_parquet"])
def test_pixels_of_hugging_face(tmp_path, name):
    (tmp_path / "CLASSES").write_text("background\nroad\ncar\n")
    out, _ = convert(tmp_path, "hugging-face", EXPORTS / name, "--classes", str(tmp_path / "CLASSES"))
    expected = expected_labels()
    expected["b"][:3, :3] = 255
    for split, key in (("train", "a"), ("val", "b")):
        (label,) = (out / split / "labels").iterdir()
        np.testing.assert_array_equal(np.asarray(Image.open(label)), expected[key])
        (image,) = (out / split / "images").iterdir()
        assert image.name == "000000.png" and Image.open(image).size == (32, 24)


@pytest.mark.parametrize("with_table", [True, False])
def test_pixels_of_color_masks(tmp_path, images, with_table):
    colors = np.array([(0, 0, 0), (128, 64, 128), (0, 0, 142)], np.uint8)
    (tmp_path / "masks").mkdir()
    for name, label in expected_labels().items():
        Image.fromarray(colors[label]).save(tmp_path / "masks" / f"{name}.png")
    (tmp_path / "colors.txt").write_text("#000000 background\n#804080 road\n#00008e car\n")
    table = ["--colors", str(tmp_path / "colors.txt")] if with_table else []
    out, labels = convert(tmp_path, "rgb", tmp_path / "masks", *table)
    # Without a table the order is that of the colors: black, #00008e, #804080.
    order = np.array([0, 1, 2] if with_table else [0, 2, 1])
    for name, label in expected_labels().items():
        np.testing.assert_array_equal(labels[name], order[label])
    names = ["background", "road", "car"] if with_table else ["color-000000", "color-00008e", "color-804080"]
    assert class_names(out) == names


def test_check_accepts_the_dataset(tmp_path, images, capsys):
    out, _ = convert(tmp_path, "labelme", EXPORTS / "labelme")
    printed = capsys.readouterr().out.strip().splitlines()[-1].split()
    assert printed[:3] == ["kseg", "data", "check"]
    assert data.main(printed[2:]) == 0
    output = capsys.readouterr().out
    # The car of a.png covers 60 pixels, the one of b.png 70.
    assert "no faults in 2 images" in output and {"60", "70"} <= set(output.split())


def test_splits_by_files(tmp_path, images):
    file = EXPORTS / "supervision_coco" / "annotations.json"
    out, _ = convert(tmp_path, "coco", file, "--split", f"val={file}")
    assert [len(list((out / split / "images").iterdir())) for split in ("train", "val")] == [2, 2]


@pytest.mark.parametrize(
    "arguments, fragment",
    [
        (["coc", "x"], "Did you mean coco"),
        (["coco"], "needs the PATH"),
        (["coco", "x", "--split", "val"], "--split takes NAME=PATH"),
        (["coco", "x", "--split", "../val=y"], "--split takes NAME=PATH"),
        (["coco", "x", "--split", "train=y"], "are both the split train"),
        (["coco", "x", "--val-fraction", "1"], "less than 1"),
        (["coco", "x", "--colors", "y"], "--colors has no effect on coco"),
        (["rgb", "x", "--background", "sky"], "--background has no effect on rgb"),
        (["coco", "no/such/file"], "no/such/file does not exist"),
    ],
)
def test_refused_arguments(tmp_path, arguments, fragment):
    with pytest.raises(UserError, match=fragment):
        data.main(["convert", *arguments, "--out", str(tmp_path / "out")])
    assert not list(tmp_path.iterdir())
