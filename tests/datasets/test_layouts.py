"""How each layout finds and pairs examples, and which missing files it names."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kseg.config.sections import Data
from kseg.datasets import checks, registry
from kseg.errors import DataError
from kseg.input_pipeline import batching
from tests.helpers.prepared_sets import run
from tests.helpers.shared_files import ADE20K, CAMVID, VOC2012, needs_ade20k, needs_camvid, needs_voc2012
from tests.helpers.small_sets import example, folder, write

GRAY = np.full((2, 3), 1, np.uint8)


def silent(line):
    pass


def test_unpaired_files_are_named(tmp_path):
    data = folder(tmp_path, {"train": [GRAY] * 6})
    for index in range(4):
        (tmp_path / f"train/labels/e0{index}.png").unlink()
    (tmp_path / "train/images/e05.png").unlink()
    with pytest.raises(DataError) as error:
        registry.open_split(data, "train")
    message = str(error.value)
    assert "image without label: " in message and "images/e02.png and 1 more" in message
    assert "e03" not in message and f"label without image: {tmp_path}/train/labels/e05.png" in message


def test_folder_pairs_by_stem_in_order(tmp_path):
    data = folder(tmp_path, {"train": []})
    for name in ("b.jpg", "a.PNG", "c.bmp", ".hidden.png", "notes.txt"):
        write(tmp_path / "train/images" / name, np.zeros((2, 3, 3), np.uint8), format="PNG")
    for name in ("c.png", "a.png", "b.png"):
        write(tmp_path / "train/labels" / name, GRAY)
    split = registry.open_split(data, "train")
    assert [name.rsplit("/", 1)[1] for name in split.names] == ["a.PNG", "b.jpg", "c.bmp"]
    assert [name.rsplit("/", 1)[1] for name in split.label_names] == ["a.png", "b.png", "c.png"]
    write(tmp_path / "train/images/a.jpg", np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(DataError, match=".*a.PNG and .*a.jpg"):
        registry.open_split(data, "train")


def test_cityscapes_tree(tmp_path):
    frames = [("ulm", "ulm_000001_000019"), ("aachen", "aachen_000000_000019"), ("aachen", "aachen_000001_000019")]
    for number, (city, frame) in enumerate(frames):
        write(tmp_path / f"leftImg8bit/train/{city}/{frame}_leftImg8bit.png", np.full((2, 4, 3), number, np.uint8))
        write(tmp_path / f"gtFine/train/{city}/{frame}_gtFine_labelIds.png", np.full((2, 4), 7 + number, np.uint8))
        # Other files of the archive, which must be ignored.
        for other in ("color", "instanceIds", "labelTrainIds"):
            write(tmp_path / f"gtFine/train/{city}/{frame}_gtFine_{other}.png", GRAY)
        (tmp_path / f"gtFine/train/{city}/{frame}_gtFine_polygons.json").write_text("{}")
    data = Data(name="cityscapes", directory=str(tmp_path))
    split = registry.open_split(data, "train")
    assert [name.rsplit("/", 1)[1] for name in split.names] == [
        "aachen_000000_000019_leftImg8bit.png",
        "aachen_000001_000019_leftImg8bit.png",
        "ulm_000001_000019_leftImg8bit.png",
    ]
    assert split.label_names[2].endswith("gtFine/train/ulm/ulm_000001_000019_gtFine_labelIds.png")
    image, label = split.read(tf.constant(2, tf.int64))
    assert tf.io.decode_png(image)[0, 0, 0] == 0 and tf.io.decode_png(label)[0, 0, 0] == 7
    with pytest.raises(DataError, match="no directory .*leftImg8bit/val"):
        registry.open_split(data, "val")
    (tmp_path / "gtFine/train/ulm/ulm_000001_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(DataError, match="image without label: .*ulm_000001_000019_leftImg8bit.png"):
        registry.open_split(data, "train")


def last(names):
    return [name.rsplit("/", 1)[1] for name in names]


@pytest.mark.parametrize("around", ["", "ADEChallengeData2016"])
def test_ade20k_tree(tmp_path, around):
    root = tmp_path / around
    for part, name in (
        ("training", "ADE_train_00000002"),
        ("training", "ADE_train_00000001"),
        ("validation", "ADE_val_00000001"),
    ):
        write(root / "images" / part / f"{name}.jpg", np.zeros((2, 3, 3), np.uint8))
        write(root / "annotations" / part / f"{name}.png", np.array([[0, 1, 150]] * 2, np.uint8))
    data = Data(name="ade20k", directory=str(tmp_path))
    split = registry.open_split(data, "train")
    assert last(split.names) == ["ADE_train_00000001.jpg", "ADE_train_00000002.jpg"]
    assert last(split.label_names) == ["ADE_train_00000001.png", "ADE_train_00000002.png"]
    _, label = batching.read_example(split, tf.constant(1, tf.int64))
    assert label.numpy().tolist() == [[255, 0, 149]] * 2
    assert last(registry.open_split(data, "val").names) == ["ADE_val_00000001.jpg"]
    (root / "annotations/validation/ADE_val_00000001.png").unlink()
    with pytest.raises(DataError, match="image without label: .*ADE_val_00000001.jpg"):
        registry.open_split(data, "val")
    (root / "annotations/validation").rmdir()
    with pytest.raises(DataError, match="no directory .*annotations/validation"):
        registry.open_split(data, "val")


def test_missing_ade20k_tree_is_reported(tmp_path):
    with pytest.raises(DataError, match="no directory images in any of .*ADEChallengeData2016"):
        registry.open_split(Data(name="ade20k", directory=str(tmp_path)), "train")


def voc_tree(root, lists, official, augmented):
    """Write a VOC2012 tree with official labels of class 3 (palette files) and augmented ones of class 4 (gray)."""
    for split, names in lists.items():
        path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(names) + "\n")
    for name in {name for names in lists.values() for name in names} | {"another"}:
        write(root / "JPEGImages" / f"{name}.jpg", np.zeros((2, 2, 3), np.uint8))
    (root / "SegmentationClass").mkdir()
    for name in official:
        label = Image.new("P", (2, 2), 3)
        label.putpalette([200, 10, 90] * 256)
        label.save(root / "SegmentationClass" / f"{name}.png")
    for name in augmented:
        write(root / "SegmentationClassAug" / f"{name}.png", np.full((2, 2), 4, np.uint8))


@pytest.mark.parametrize("around", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_voc2012_tree(tmp_path, around):
    voc_tree(
        tmp_path / around,
        {"train": ["2007_2", "2007_1"], "val": ["2007_3"], "trainaug": ["2007_1", "2008_1", "2007_2"]},
        official=("2007_1", "2007_2", "2007_3"),
        augmented=("2007_2", "2008_1", "2008_2"),
    )
    data = Data(name="voc2012", directory=str(tmp_path))

    def ids(split):
        found = registry.open_split(data, split)
        labels = [
            batching.read_example(found, tf.constant(index, tf.int64))[1].numpy() for index in range(len(found.names))
        ]
        return {name[:-4]: int(label[0, 0]) for name, label in zip(last(found.names), labels, strict=True)}

    assert ids("train") == {"2007_1": 3, "2007_2": 3} and ids("val") == {"2007_3": 3}
    # An official label takes precedence, as in MMSegmentation.
    assert ids("trainaug") == {"2007_1": 3, "2007_2": 3, "2008_1": 4}


def test_voc2012_faults(tmp_path):
    voc_tree(
        tmp_path,
        {"train": ["a", "b", "c", "d", "e"], "trainaug": ["a", "g"], "val": ["a", "b", "a"]},
        official="a",
        augmented=(),
    )
    (tmp_path / "JPEGImages/e.jpg").unlink()
    data = Data(name="voc2012", directory=str(tmp_path))
    with pytest.raises(DataError) as error:
        registry.open_split(data, "train")
    assert f"{tmp_path}/ImageSets/Segmentation/train.txt lists examples " in str(error.value)
    assert "without image JPEGImages/NAME.jpg: e;" in str(error.value)
    assert "without label SegmentationClass/NAME.png: b, c, d and 1 more" in str(error.value)
    with pytest.raises(DataError, match="val.txt repeats a"):
        registry.open_split(data, "val")
    with pytest.raises(DataError, match="no directory .*/SegmentationClassAug"):
        registry.open_split(data, "trainaug")
    (tmp_path / "SegmentationClassAug").mkdir()
    with pytest.raises(DataError, match="without label SegmentationClass or SegmentationClassAug/NAME.png: g"):
        registry.open_split(data, "trainaug")
    (tmp_path / "ImageSets/Segmentation/trainaug.txt").unlink()
    with pytest.raises(DataError, match="no file .*trainaug.txt; lists found: train, val"):
        registry.open_split(data, "trainaug")
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("\n")
    with pytest.raises(DataError, match="val.txt is empty"):
        registry.open_split(data, "val")


def test_check_of_voc2012_does_not_need_trainaug(tmp_path):
    voc_tree(tmp_path, {"train": ["a"], "val": ["b"]}, official="ab", augmented=())
    listed = tmp_path / "ImageSets/Segmentation/train.txt"
    # Editors on Windows begin a file with a byte order mark.
    listed.write_bytes(b"\xef\xbb\xbfa\r\n")
    data, lines = Data(name="voc2012", directory=str(tmp_path)), []
    assert list(checks.check_dataset(data, report=lines.append)) == ["train", "val"]
    assert sum("warning" in line and "'trainaug'" in line for line in lines) == 1
    with pytest.raises(DataError, match="1 fault.*\n.*SegmentationClassAug"):
        checks.check_dataset(data, ["trainaug"], silent)
    # Only the lists of the wanted splits are read.
    listed.unlink()
    run("voc2012", tmp_path, tmp_path / "out", ["val"])
    with pytest.raises(DataError, match="no file .*train.txt; lists found: val"):
        checks.check_dataset(data, report=silent)


def test_check_of_cityscapes_does_not_need_the_test_split(tmp_path):
    for split in ("train", "val"):
        write(tmp_path / "leftImg8bit" / split / "ulm/ulm_0_leftImg8bit.png", np.zeros((2, 3, 3), np.uint8))
        write(tmp_path / "gtFine" / split / "ulm/ulm_0_gtFine_labelIds.png", np.full((2, 3), 7, np.uint8))
    data = Data(name="cityscapes", directory=str(tmp_path))
    assert list(checks.check_dataset(data, report=silent)) == ["train", "val"]
    # A split with images only is not taken for a missing one.
    write(tmp_path / "leftImg8bit/test/bonn/bonn_0_leftImg8bit.png", np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(DataError, match="1 fault.*\n.*image without label"):
        checks.check_dataset(data, report=silent)


def test_names_with_non_ascii_characters(tmp_path):
    data = folder(tmp_path / "Straße", {})
    example(tmp_path / "Straße", "train", "über 07", GRAY)
    image, _ = registry.open_split(data, "train").read(tf.constant(0, tf.int64))
    assert tf.io.decode_png(image)[0, 0, 0] == 7


@needs_camvid
def test_camvid_counts():
    data = Data(name="camvid", directory=str(CAMVID))
    assert [len(registry.open_split(data, split).names) for split in ("train", "val", "test")] == [367, 101, 233]


@needs_ade20k
def test_ade20k_samples():
    lines = (ADE20K / "ADEChallengeData2016/objectInfo150.txt").read_text().splitlines()[1:]
    names = [line.split("\t")[4].split(",")[0].strip() for line in lines]
    data = Data(name="ade20k", directory=str(ADE20K))
    assert registry.find_dataset(data).classes == tuple(names)
    for name in ("train", "val"):
        split = registry.open_split(data, name)
        assert len(split.names) == 3
        for index in range(3):
            _, label = batching.read_example(split, tf.constant(index, tf.int64))
            raw = np.array(Image.open(split.label_names[index])).astype(int)
            assert np.array_equal(label, np.where(raw == 0, 255, raw - 1))


@needs_voc2012
def test_voc2012_samples():
    data = Data(name="voc2012", directory=str(VOC2012))
    record, sizes = registry.find_dataset(data), {"train": 120, "trainaug": 250, "val": 130}
    assert {name: len(registry.open_split(data, name).names) for name in sizes} == sizes
    split = registry.open_split(data, "val")
    for index in (0, 65, 129):
        label = Image.open(split.label_names[index])
        assert label.mode == "P" and np.array(label.getpalette()[:63]).reshape(21, 3).tolist() == [
            list(color) for color in record.palette
        ]
        _, found = batching.read_example(split, tf.constant(index, tf.int64))
        assert np.array_equal(found, np.array(label))
        # SegmentationClassAug stores the same label without a palette.
        assert np.array_equal(found, Image.open(split.label_names[index].replace("Class/", "ClassAug/")))
