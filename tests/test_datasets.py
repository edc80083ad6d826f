"""kseg.datasets: label tables entry by entry, classes.txt with its faults, and how splits are found and paired."""

import numpy as np
import pytest
import tensorflow as tf
from shared_files import CAMVID, needs_camvid
from small_sets import example, folder, write

from kseg import datasets
from kseg.config import Data
from kseg.datasets import DATASETS, IGNORED, UNMAPPED, read_classes
from kseg.errors import DataError

# Cityscapes' own id -> trainId of the 19 evaluated classes, from its labels.py.
CITYSCAPES = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13,
              27: 14, 28: 15, 31: 16, 32: 17, 33: 18}
GREY = np.full((2, 3), 1, np.uint8)


def classes_file(directory, text):
    (directory / "classes.txt").write_text(text, encoding="utf-8")
    return read_classes(directory)


def mapped(record):
    return {value: train_id for value, train_id in enumerate(record.label_table) if train_id != UNMAPPED}


def test_cityscapes_table_entry_by_entry():
    record = DATASETS["cityscapes"]
    void = {value: IGNORED for value in (*range(7), 9, 10, 14, 15, 16, 18, 29, 30, 255)}
    assert mapped(record) == CITYSCAPES | void
    assert len(record.label_table) == 256 and set(record.label_table[34:255]) == {UNMAPPED}
    assert record.classes[0] == "road" and record.classes[18] == "bicycle" and record.classes[13] == "car"
    assert record.palette[0] == (128, 64, 128) and record.palette[13] == (0, 0, 142)


def test_camvid_table_entry_by_entry():
    record = DATASETS["camvid"]
    assert mapped(record) == {**{value: value for value in range(11)}, 11: IGNORED, 255: IGNORED}
    assert record.classes == ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car",
                              "pedestrian", "bicyclist")
    assert record.palette[8] == (64, 0, 128)


def test_shapes_table_entry_by_entry():
    assert mapped(DATASETS["shapes"]) == {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 255: IGNORED}


@pytest.mark.parametrize("name", ["shapes", "camvid", "cityscapes"])
def test_records_hang_together(name):
    record = DATASETS[name]
    assert record.name == name
    assert len(set(record.classes)) == len(set(record.palette)) == len(record.classes)
    assert set(record.label_table) - {IGNORED, UNMAPPED} == set(range(len(record.classes)))


def test_plain_classes(tmp_path):
    record = classes_file(tmp_path, "sky\n\ntraffic light\ncar\n")
    assert record.classes == ("sky", "traffic light", "car")
    assert mapped(record) == {0: 0, 1: 1, 2: 2, 255: IGNORED}
    assert len(set(record.palette)) == 3 and record.palette[0] == (128, 0, 0)


def test_explicit_values_and_colours(tmp_path):
    record = classes_file(tmp_path, "0 background #000000\n255 object #40A0ff\n7 ignore\n")
    assert record.classes == ("background", "object") and record.palette == ((0, 0, 0), (64, 160, 255))
    # 255 is claimed by a class and ignores nothing any more.
    assert mapped(record) == {0: 0, 255: 1, 7: IGNORED}


def test_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbf3 sky\r\n4 ground\r\n")
    assert mapped(read_classes(tmp_path)) == {3: 0, 4: 1, 255: IGNORED}


@pytest.mark.parametrize("text, message", [
    ("sky\nground\nsky\n", "line 3: class 'sky' is given twice"),
    ("1 sky\n\n1 ground\n", "line 3: value 1 is given twice"),
    ("1 sky\nground\n", "line 2: value 1 is given twice"),
    ("sky\n256 ground\n", "line 2: value 256 is above 255"),
    ("sky #12345\nground\n", "line 1: '#12345' is not a colour like #40a0ff"),
    ("sky\nground #12gg45\n", "line 2: '#12gg45' is not a colour like #40a0ff"),
    ("sky\nground #\n", "line 2: '#' is not a colour like #40a0ff"),
    ("# my classes\nsky\nground\n", "line 1: '# my classes' names no class"),
    ("sky\nground\nignore\n", "line 3: which value is to be ignored"),
    ("sky\n", "names 1 class; 2 to 254 are needed"),
    ("", "names 0 classes; 2 to 254 are needed"),
    ("7 ignore\nsky\n", "names 1 class;"),
    ("".join(f"class {index}\n" for index in range(255)), "names 255 classes; 2 to 254 are needed"),
])
def test_malformed_classes(tmp_path, text, message):
    with pytest.raises(DataError) as error:
        classes_file(tmp_path, text)
    assert str(tmp_path / "classes.txt") in str(error.value) and message in str(error.value)


def test_254_classes_are_the_most(tmp_path):
    record = classes_file(tmp_path, "".join(f"class {index}\n" for index in range(254)))
    assert mapped(record) == {**{value: value for value in range(254)}, 255: IGNORED}
    assert len(set(record.palette)) == 254


def test_classes_file_missing_or_no_text(tmp_path):
    with pytest.raises(DataError, match="no file .*classes.txt"):
        datasets.find(Data(name="folder", directory=str(tmp_path)))
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfes\x00")
    with pytest.raises(DataError, match="classes.txt is not UTF-8 text: .* at byte 0"):
        read_classes(tmp_path)


def test_unknown_data_set_names_the_nearest():
    with pytest.raises(DataError, match="unknown data set 'camvit'. Did you mean camvid.*cityscapes, folder, shapes"):
        datasets.find(Data(name="camvit"))


@pytest.mark.parametrize("name, words", [
    ("camvid", "Get CamVid"), ("cityscapes", "Register at cityscapes-dataset.com"),
    ("folder", "Lay your pictures out")])
def test_missing_directory_says_how_to_get_it(tmp_path, monkeypatch, name, words):
    monkeypatch.setenv("KSEG_DATA", str(tmp_path))
    with pytest.raises(DataError) as error:
        datasets.open_split(Data(name=name), "train")
    message = str(error.value)
    assert message.startswith(f"{name}: no directory {tmp_path / name}. ") and words in message
    assert "--set data.directory=DIR" in message and "{" not in message.replace("{train,val,test}", "")


def test_directory_comes_from_the_config_then_the_environment(tmp_path, monkeypatch):
    assert datasets.directory_of(Data(name="camvid", directory="~/x")).is_absolute()
    monkeypatch.setenv("KSEG_DATA", str(tmp_path))
    assert datasets.directory_of(Data(name="camvid")) == tmp_path / "camvid"
    monkeypatch.delenv("KSEG_DATA")
    assert datasets.directory_of(Data(name="camvid")).as_posix() == "data/camvid"


def test_files_without_partner_are_all_named(tmp_path):
    data = folder(tmp_path, {"train": [GREY] * 6})
    for index in range(4):
        (tmp_path / f"train/labels/e0{index}.png").unlink()
    (tmp_path / "train/images/e05.png").unlink()
    with pytest.raises(DataError) as error:
        datasets.open_split(data, "train")
    message = str(error.value)
    assert "image without label: " in message and "images/e02.png and 1 more" in message
    assert "e03" not in message and f"label without image: {tmp_path}/train/labels/e05.png" in message


def test_empty_and_unknown_splits(tmp_path):
    data = folder(tmp_path, {"train": [GREY]})
    for part in ("images", "labels"):
        (tmp_path / "val" / part).mkdir(parents=True)
    with pytest.raises(DataError, match=f"{tmp_path}/val: split 'val' is empty"):
        datasets.open_split(data, "val")
    with pytest.raises(DataError, match="no directory .*/test/images; splits found: train, val"):
        datasets.open_split(data, "test")
    assert datasets.split_names(data) == ("train", "val")
    with pytest.raises(DataError, match="unknown split of camvid 'tset'. Did you mean test"):
        datasets.open_split(Data(name="camvid", directory=str(tmp_path)), "tset")


def test_folder_without_any_split(tmp_path):
    with pytest.raises(DataError, match="no split in .*\nLay your pictures out"):
        datasets.split_names(folder(tmp_path, {}))


def test_folder_pairs_by_stem_in_order(tmp_path):
    data = folder(tmp_path, {"train": []})
    for name in ("b.jpg", "a.PNG", "c.bmp", ".hidden.png", "notes.txt"):
        write(tmp_path / "train/images" / name, np.zeros((2, 3, 3), np.uint8), format="PNG")
    for name in ("c.png", "a.png", "b.png"):
        write(tmp_path / "train/labels" / name, GREY)
    split = datasets.open_split(data, "train")
    assert [name.rsplit("/", 1)[1] for name in split.names] == ["a.PNG", "b.jpg", "c.bmp"]
    assert [name.rsplit("/", 1)[1] for name in split.label_names] == ["a.png", "b.png", "c.png"]
    write(tmp_path / "train/images/a.jpg", np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(DataError, match="two files of one name: .*a.PNG and .*a.jpg"):
        datasets.open_split(data, "train")


def test_cityscapes_tree(tmp_path):
    frames = [("ulm", "ulm_000001_000019"), ("aachen", "aachen_000000_000019"), ("aachen", "aachen_000001_000019")]
    for number, (city, frame) in enumerate(frames):
        write(tmp_path / f"leftImg8bit/train/{city}/{frame}_leftImg8bit.png", np.full((2, 4, 3), number, np.uint8))
        write(tmp_path / f"gtFine/train/{city}/{frame}_gtFine_labelIds.png", np.full((2, 4), 7 + number, np.uint8))
        # What else the archive holds.
        for other in ("color", "instanceIds", "labelTrainIds"):
            write(tmp_path / f"gtFine/train/{city}/{frame}_gtFine_{other}.png", GREY)
        (tmp_path / f"gtFine/train/{city}/{frame}_gtFine_polygons.json").write_text("{}")
    data = Data(name="cityscapes", directory=str(tmp_path))
    split = datasets.open_split(data, "train")
    assert [name.rsplit("/", 1)[1] for name in split.names] == [
        "aachen_000000_000019_leftImg8bit.png", "aachen_000001_000019_leftImg8bit.png",
        "ulm_000001_000019_leftImg8bit.png"]
    assert split.label_names[2].endswith("gtFine/train/ulm/ulm_000001_000019_gtFine_labelIds.png")
    image, label = split.read(tf.constant(2, tf.int64))
    assert tf.io.decode_png(image)[0, 0, 0] == 0 and tf.io.decode_png(label)[0, 0, 0] == 7
    with pytest.raises(DataError, match="split 'val' is empty"):
        datasets.open_split(data, "val")
    (tmp_path / "gtFine/train/ulm/ulm_000001_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(DataError, match="image without label: .*ulm_000001_000019_leftImg8bit.png"):
        datasets.open_split(data, "train")


def test_names_beyond_ascii(tmp_path):
    data = folder(tmp_path / "Straße", {})
    example(tmp_path / "Straße", "train", "über 07", GREY)
    image, _ = datasets.open_split(data, "train").read(tf.constant(0, tf.int64))
    assert tf.io.decode_png(image)[0, 0, 0] == 7


@needs_camvid
def test_camvid_counts():
    data = Data(name="camvid", directory=str(CAMVID))
    assert [len(datasets.open_split(data, split).names) for split in ("train", "val", "test")] == [367, 101, 233]
