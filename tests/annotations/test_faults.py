"""Faults of annotations: each is refused or counted with its file and object, and nothing half-written remains."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks

from kseg.annotations import conversion, label_studio
from kseg.annotations.annotated_images import Options
from kseg.annotations.conversion import Conversion
from kseg.errors import DataError
from tests.helpers.annotation_files import EXPORTS, write_images

SQUARE = [[2, 2, 8, 2, 8, 6, 2, 6]]


def coco(tmp_path, annotations, names="a", size=(24, 32), categories=("road", "car"), **more):
    """Write a COCO file with an image for each letter; an annotation is (category id, segmentation, more)."""
    content = {
        "categories": [{"id": index, "name": name} for index, name in enumerate(categories, 1)],
        "images": [
            {"id": index, "file_name": f"{name}.png", "height": size[0], "width": size[1]}
            for index, name in enumerate(names)
        ],
        "annotations": [
            {"id": 100 + index, "image_id": 0, "category_id": category, "segmentation": shape, "iscrowd": 0} | extra
            for index, (category, shape, extra) in enumerate(annotations)
        ],
    }
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(content | more))
    return path


def convert(tmp_path, path, kind="coco", **settings):
    """Convert, and return {image: label} and the findings of conversion.json."""
    images = settings.pop("images", tmp_path / "images")
    settings = {"val_fraction": 0.0} | settings
    what = Conversion(kind, {"": path}, Options(images), **settings)
    conversion.convert(what, tmp_path / "out", report=lambda line: None)
    labels = {file.stem: np.asarray(Image.open(file)) for file in (tmp_path / "out").glob("*/labels/*.png")}
    return labels, json.loads((tmp_path / "out" / "conversion.json").read_text())["findings"]


@pytest.fixture
def images(tmp_path):
    write_images(tmp_path / "images")


@pytest.mark.parametrize(
    "annotation, fragment",
    [
        ((3, SQUARE, {}), "annotations[0] (id 100): unknown category_id 3; known: 1 road, 2 car"),
        ((1, [[1, 2, 3]], {}), "annotations[0] (id 100): a polygon lists x and y in turn; found 3 numbers"),
        ((1, [[1, 2, 3, 4, float("nan"), 6]], {}), "a coordinate is not a finite number"),
        ((1, {"size": [24, 32], "counts": [5, 5]}, {}), "the run lengths count 10 pixels, its image has 768"),
        ((1, {"size": [32, 24], "counts": [768]}, {}), "its mask has the size [32, 24], its image [24, 32]"),
        ((1, {"size": [24, 32], "counts": "~~"}, {}), "'~' cannot occur"),
        ((1, {"size": [24, 32], "counts": [None, 5]}, {}), "run lengths are whole numbers"),
        ((1, SQUARE, {"image_id": 9}), "annotations[0]: no image has the id 9"),
    ],
)
def test_refused_annotation(tmp_path, images, annotation, fragment):
    path = coco(tmp_path, [annotation])
    with pytest.raises(DataError) as error:
        convert(tmp_path, path)
    assert fragment in str(error.value) and str(path) in str(error.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["coco.json", "images"]


def test_all_faults_are_listed(tmp_path, images):
    path = coco(tmp_path, [(5, SQUARE, {}), (1, SQUARE, {}), (6, SQUARE, {})])
    with pytest.raises(DataError, match="2 faults(?s:.*)id 100(?s:.*)id 102"):
        convert(tmp_path, path)


def test_counted_objects(tmp_path, images):
    path = coco(
        tmp_path,
        [
            (1, [[-5, -5, 10, -5, 10, 10, -5, 10]], {}),
            (2, [[40, 2, 50, 2, 50, 9]], {}),
            (2, [[1, 1, 2, 2]], {}),
            (2, [], {"keypoints": [1, 1, 2]}),
            # In the list after the object that lies in it.
            (2, [[20, 10, 28, 10, 28, 20, 20, 20]], {}),
            (2, [[16, 8, 32, 8, 32, 24, 16, 24]], {"iscrowd": 1}),
        ],
        names="ab",
    )
    labels, findings = convert(tmp_path, path)
    expected = np.zeros((24, 32), np.uint8)
    expected[:10, :10] = 1
    expected[8:24, 16:32] = 255
    expected[10:20, 20:28] = 2
    np.testing.assert_array_equal(labels["a"], expected)
    assert not labels["b"].any()
    counted = {kind: [place.split("(id ")[-1][:3] for place in places] for kind, places in findings.items()}
    # Image b has no object.
    assert "b.png" in findings["empty"][0] and len(counted.pop("empty")) == 1
    assert counted == {
        "clipped": ["100"],
        "outside": ["101"],
        "degenerate": ["102"],
        "no area": ["103"],
        "crowd": ["105"],
    }


def test_overlap_is_drawn_in_order(tmp_path, images):
    path = coco(tmp_path, [(2, [[0, 0, 8, 0, 8, 8, 0, 8]], {}), (1, [[4, 4, 12, 4, 12, 12, 4, 12]], {})])
    labels, findings = convert(tmp_path, path)
    assert labels["a"][6, 6] == 1 and labels["a"][2, 2] == 2
    assert findings["overlap"][0].endswith("a.png: 16 pixels")


@pytest.mark.parametrize("compressed", [True, False])
def test_run_lengths_of_pycocotools(tmp_path, images, compressed):
    mask = np.random.default_rng(0).random((24, 32)) < 0.3
    encoded = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = encoded["counts"].decode()
    if not compressed:
        columns = mask.T.ravel()
        edges = np.flatnonzero(np.diff(np.concatenate([[0], columns, [1 - columns[-1]]])))
        counts = np.diff(np.concatenate([[0], edges])).tolist()
    labels, _ = convert(tmp_path, coco(tmp_path, [(2, {"size": [24, 32], "counts": counts}, {})]))
    np.testing.assert_array_equal(labels["a"], 2 * mask)


def test_background(tmp_path, images):
    path = coco(tmp_path, [(2, SQUARE, {})])
    labels, _ = convert(tmp_path, path, background="ignore")
    assert sorted(np.unique(labels["a"])) == [1, 255]
    assert (tmp_path / "out" / "classes.txt").read_text().split()[:2] == ["0", "road"]
    os.rename(tmp_path / "out", tmp_path / "first")
    labels, _ = convert(tmp_path, path, background="road")
    assert sorted(np.unique(labels["a"])) == [0, 1]


def test_missing_image(tmp_path, images):
    path = coco(tmp_path, [], names="az")
    with pytest.raises(DataError, match=r"z\.png is missing; .*--missing skip"):
        convert(tmp_path, path)
    labels, findings = convert(tmp_path, path, skip_missing=True)
    assert list(labels) == ["a"] and "z.png" in findings["missing"][0]


def test_wrong_size(tmp_path, images):
    with pytest.raises(DataError, match="a.png has 31x24 pixels in the annotations, and 32x24"):
        convert(tmp_path, coco(tmp_path, [], size=(24, 31)))


def test_two_images_of_one_name(tmp_path, images):
    (tmp_path / "images" / "a.jpg").write_bytes((tmp_path / "images" / "a.png").read_bytes())
    listed = [
        {"id": index, "file_name": name, "height": 24, "width": 32} for index, name in enumerate(("a.png", "a.jpg"))
    ]
    with pytest.raises(DataError, match="a.png and a.jpg both get the name a in train"):
        convert(tmp_path, coco(tmp_path, [], images=listed))
    same = [listed[0], listed[0] | {"id": 1}]
    with pytest.raises(DataError, match="a.png and a.png both get the name a"):
        convert(tmp_path, coco(tmp_path, [], images=same))


def test_too_many_classes(tmp_path, images):
    path = coco(tmp_path, [], categories=[f"c{index}x" for index in range(254)])
    with pytest.raises(DataError, match="255 classes; an 8-bit label holds at most 254"):
        convert(tmp_path, path)


@pytest.mark.parametrize("stated, turned", [((32, 24), False), ((24, 32), True)])
def test_turned_image(tmp_path, stated, turned):
    """The stored image has 32x24 pixels, and is shown as 24x32."""
    (tmp_path / "images").mkdir()
    pixels = np.zeros((24, 32, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png", exif=exif)
    path = coco(tmp_path, [(2, SQUARE, {})], size=stated)
    labels, findings = convert(tmp_path, path)
    drawn = np.zeros(stated, np.uint8)
    drawn[2:6, 2:8] = 2
    # Orientation 6 is shown after a quarter turn clockwise.
    np.testing.assert_array_equal(labels["a"], np.rot90(drawn, -1) if turned else drawn)
    assert len(findings["turned"]) == 1


@pytest.mark.parametrize(
    "kind, name, text, fragment",
    [
        ("coco", "x.json", '{\n"images": [,]}', "x.json, line 2, column 12: not JSON"),
        ("coco", "x.json", "[]", "x.json: expected an object, found list"),
        ("coco", "x.json", "{}", "'categories' is missing"),
        ("cvat", "x.xml", "<annotations>\n<image></annotations>", "x.xml, line 2, column 9: not XML"),
        ("cvat", "x.xml", "<annotations><track/></annotations>", "not for video"),
        ("coco", "x.json", '{"categories": [], "images": [{}], "annotations": []}', "images[0]: 'id' is missing"),
        ("label-studio", "x.json", '[{"annotations": [{"result": [0]}]}]', "task 0: result 0: 'type' is missing"),
        ("label-studio", "x.json", '[{"id": 7, "image": "a.png"}]', "task 7: no list `annotations`"),
        ("yolo", "x.yaml", "names: [a\nb: 1", "x.yaml, line 2: not YAML"),
        ("yolo", "x.yaml", "train: images", "`names` lists no class"),
        ("hugging-face", "x.parquet", "PAR1", "cannot read"),
        ("rgb", "x.png", "", "x.png"),
    ],
)
def test_damaged_file(tmp_path, images, kind, name, text, fragment):
    (tmp_path / "annotated").mkdir()
    (tmp_path / "annotated" / name).write_text(text)
    path = tmp_path / "annotated" if kind == "rgb" else tmp_path / "annotated" / name
    with pytest.raises(DataError) as error:
        convert(tmp_path, path, kind)
    assert fragment in str(error.value) and not (tmp_path / "out").exists()


def test_lines_of_yolo(tmp_path, images):
    (tmp_path / "data.yaml").write_text("names: {0: road, 1: car}\n")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 .5 .5 .2 .2\n1 0 0 0.5 0 0.5 0.5 0 0.5\n")
    labels, findings = convert(tmp_path, tmp_path / "data.yaml", "yolo")
    expected = np.zeros((24, 32), np.uint8)
    expected[:12, :16] = 2
    np.testing.assert_array_equal(labels["a"], expected)
    assert findings["no area"][0].endswith("a.txt, line 1") and not labels["b"].any()
    (tmp_path / "labels" / "b.txt").write_text("2 0 0 1 0 1 1\n1 0 0 1\n1 x\n")
    os.rename(tmp_path / "out", tmp_path / "first")
    with pytest.raises(DataError, match=r"3 faults(?s:.*)line 1: unknown class 2(?s:.*)line 2: a polygon(?s:.*)line 3"):
        convert(tmp_path, tmp_path / "data.yaml", "yolo")


def test_damaged_brush():
    (_, brush), _ = [
        task["annotations"][0]["result"] for task in json.loads((EXPORTS / "label_studio/project.json").read_text())
    ]
    stream = bytes(brush["value"]["rle"])
    assert len(label_studio.decode_rle_pack(stream)) == 24 * 32 * 4
    for end in range(len(stream) - 1):
        with pytest.raises(ValueError):
            label_studio.decode_rle_pack(stream[:end])


def test_existing_directory(tmp_path, images):
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="out exists; remove it"):
        convert(tmp_path, coco(tmp_path, []))


def test_images_are_linked_unchanged(tmp_path, images):
    convert(tmp_path, coco(tmp_path, []))
    assert (tmp_path / "out/train/images/a.png").samefile(tmp_path / "images/a.png")


def test_splits(tmp_path):
    names = [f"n{index}" for index in range(60)]
    write_images(tmp_path / "images", names)
    convert(tmp_path, coco(tmp_path, [], names), val_fraction=0.25)
    chosen = {file.stem for file in (tmp_path / "out/val/images").iterdir()}
    assert 5 <= len(chosen) <= 27
    # Other images do not change the split of one.
    os.rename(tmp_path / "out", tmp_path / "first")
    convert(tmp_path, coco(tmp_path, [], names[:30]), val_fraction=0.25)
    assert {file.stem for file in (tmp_path / "out/val/images").iterdir()} == chosen & set(names[:30])


KILLED = """
import os, sys
from pathlib import Path
from kseg.annotations import conversion, folder_writer
from kseg.annotations.annotated_images import Options
# The process dies when everything but the list of classes is written.
folder_writer.FolderWriter.finish = lambda self, names: os._exit(9)
root = Path(sys.argv[1])
conversion.convert(conversion.Conversion("coco", {"": root / "coco.json"}, Options(root / "images")), root / "out")
"""


def test_killed_conversion(tmp_path, images):
    path = coco(tmp_path, [])
    assert subprocess.run([sys.executable, "-c", KILLED, tmp_path], cwd=Path(__file__).parents[2]).returncode == 9
    assert not (tmp_path / "out").exists() and not list(tmp_path.rglob("classes.txt"))
    convert(tmp_path, path)
