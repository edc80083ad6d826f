"""Label tables, classes.txt and its faults, and how datasets and splits are found."""

import numpy as np
import pytest

from kseg.config.sections import IGNORED, Data
from kseg.datasets import names, registry, sources
from kseg.datasets.registry import DATASETS, UNMAPPED, read_classes
from kseg.errors import DataError
from tests.helpers.small_sets import folder

# id -> trainId of the 19 evaluated classes, from Cityscapes' labels.py.
CITYSCAPES = {
    7: 0,
    8: 1,
    11: 2,
    12: 3,
    13: 4,
    17: 5,
    19: 6,
    20: 7,
    21: 8,
    22: 9,
    23: 10,
    24: 11,
    25: 12,
    26: 13,
    27: 14,
    28: 15,
    31: 16,
    32: 17,
    33: 18,
}
GRAY = np.full((2, 3), 1, np.uint8)


def classes_file(directory, text):
    (directory / "classes.txt").write_text(text, encoding="utf-8")
    return read_classes(directory)


def mapped(record):
    return {value: train_id for value, train_id in enumerate(record.label_table) if train_id != UNMAPPED}


def test_cityscapes_table_entry_by_entry():
    record = DATASETS["cityscapes"]
    void = dict.fromkeys((*range(7), 9, 10, 14, 15, 16, 18, 29, 30, 255), IGNORED)
    assert mapped(record) == CITYSCAPES | void
    assert len(record.label_table) == 256 and set(record.label_table[34:255]) == {UNMAPPED}
    assert record.classes[0] == "road" and record.classes[18] == "bicycle" and record.classes[13] == "car"
    assert record.palette[0] == (128, 64, 128) and record.palette[13] == (0, 0, 142)


def test_camvid_table_entry_by_entry():
    record = DATASETS["camvid"]
    assert mapped(record) == {**{value: value for value in range(11)}, 11: IGNORED, 255: IGNORED}
    assert record.classes == (
        "sky",
        "building",
        "pole",
        "road",
        "pavement",
        "tree",
        "sign",
        "fence",
        "car",
        "pedestrian",
        "bicyclist",
    )
    assert record.palette[8] == (64, 0, 128)


def test_shapes_table_entry_by_entry():
    assert mapped(DATASETS["shapes"]) == {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 255: IGNORED}


def test_ade20k_table_entry_by_entry():
    record = DATASETS["ade20k"]
    assert mapped(record) == {0: IGNORED, 255: IGNORED} | {value: value - 1 for value in range(1, 151)}
    assert (record.classes[0], record.classes[12], record.classes[149]) == ("wall", "person", "flag")
    assert record.palette[:3] == ((120, 120, 120), (180, 120, 120), (6, 230, 230))
    assert record.palette[149] == (92, 0, 255)


def test_voc2012_table_entry_by_entry():
    record = DATASETS["voc2012"]
    assert mapped(record) == {value: value for value in range(21)} | {255: IGNORED}
    assert (record.classes[0], record.classes[15], record.classes[20]) == ("background", "person", "tvmonitor")
    assert record.palette[:2] == ((0, 0, 0), (128, 0, 0)) and record.palette[15] == (192, 128, 128)


@pytest.mark.parametrize("name", sorted(DATASETS.keys() - {"folder"}))
def test_definitions_are_consistent(name):
    record = DATASETS[name]
    assert record.name == name
    assert len(set(record.classes)) == len(record.palette) == len(record.classes)
    # Road and skyscraper of ADE20K share one color, as published.
    assert len(set(record.palette)) == len(record.classes) - (name == "ade20k")
    assert set(record.published) <= set(record.splits)
    assert set(record.label_table) - {IGNORED, UNMAPPED} == set(range(len(record.classes)))


def test_classes_without_values(tmp_path):
    record = classes_file(tmp_path, "sky\n\ntraffic light\ncar\n")
    assert record.classes == ("sky", "traffic light", "car")
    assert mapped(record) == {0: 0, 1: 1, 2: 2, 255: IGNORED}
    assert len(set(record.palette)) == 3 and record.palette[0] == (128, 0, 0)


def test_explicit_values_and_colors(tmp_path):
    record = classes_file(tmp_path, "0 background #000000\n255 object #40A0ff\n7 ignore\n")
    assert record.classes == ("background", "object") and record.palette == ((0, 0, 0), (64, 160, 255))
    # A class claims 255, so it is no longer ignored.
    assert mapped(record) == {0: 0, 255: 1, 7: IGNORED}


def test_byte_order_mark_is_not_part_of_the_first_name(tmp_path):
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbf3 sky\r\n4 ground\r\n")
    assert mapped(read_classes(tmp_path)) == {3: 0, 4: 1, 255: IGNORED}


@pytest.mark.parametrize(
    "text, message",
    [
        ("sky\nground\nsky\n", "line 3: class 'sky' "),
        ("1 sky\n\n1 ground\n", "line 3: value 1 "),
        ("1 sky\nground\n", "line 2: value 1 "),
        ("sky\n256 ground\n", "line 2: value 256 is above 255"),
        ("sky #12345\nground\n", "line 1: '#12345' "),
        ("sky\nground #12gg45\n", "line 2: '#12gg45' "),
        ("sky\nground #\n", "line 2: '#' "),
        ("# my classes\nsky\nground\n", "line 1: '# my classes' "),
        ("sky\nground\nignore\n", "line 3: `ignore` "),
        ("sky\n", " 1 class; 2 to 254 "),
        ("", " 0 classes; 2 to 254 "),
        ("7 ignore\nsky\n", " 1 class;"),
        ("".join(f"class {index}\n" for index in range(255)), " 255 classes; 2 to 254 "),
    ],
)
def test_malformed_classes(tmp_path, text, message):
    with pytest.raises(DataError) as error:
        classes_file(tmp_path, text)
    assert str(tmp_path / "classes.txt") in str(error.value) and message in str(error.value)


def test_up_to_254_classes_are_allowed(tmp_path):
    record = classes_file(tmp_path, "".join(f"class {index}\n" for index in range(254)))
    assert mapped(record) == {**{value: value for value in range(254)}, 255: IGNORED}
    assert len(set(record.palette)) == 254


def test_classes_file_missing_or_not_text(tmp_path):
    with pytest.raises(DataError, match="no file .*classes.txt"):
        registry.find_dataset(Data(name="folder", directory=str(tmp_path)))
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfes\x00")
    with pytest.raises(DataError, match="classes.txt is not UTF-8 text: .* at byte 0"):
        read_classes(tmp_path)


def test_unknown_data_set_suggests_the_nearest():
    with pytest.raises(DataError, match="unknown dataset 'camvit'. Did you mean camvid.* folder, shapes, voc2012"):
        registry.find_dataset(Data(name="camvit"))


@pytest.mark.parametrize(
    "name, words",
    [
        ("camvid", "Get CamVid"),
        ("cityscapes", "Register at cityscapes-dataset.com"),
        ("ade20k", "ADEChallengeData2016.zip"),
        ("voc2012", "SegmentationClassAug/NAME.png"),
        ("folder", "one class per line"),
    ],
)
def test_missing_directory_says_how_to_get_the_data(tmp_path, monkeypatch, name, words):
    monkeypatch.setenv("KSEG_DATA", str(tmp_path))
    with pytest.raises(DataError) as error:
        registry.open_split(Data(name=name), "train")
    message = str(error.value)
    assert message.startswith(f"{name}: no directory {tmp_path / name}. ") and words in message
    assert f"python -m kseg.data prepare {name} --source DIR" in message
    assert "--set data.directory=DIR" in message and "{" not in message.replace("{train,val,test}", "")


def test_directory_comes_from_the_config_then_the_environment(tmp_path, monkeypatch):
    assert registry.directory_of(Data(name="camvid", directory="~/x")).is_absolute()
    monkeypatch.setenv("KSEG_DATA", str(tmp_path))
    assert registry.directory_of(Data(name="camvid")) == tmp_path / "camvid"
    monkeypatch.delenv("KSEG_DATA")
    assert registry.directory_of(Data(name="camvid")).as_posix() == "data/camvid"


def test_empty_and_unknown_splits(tmp_path):
    data = folder(tmp_path, {"train": [GRAY]})
    for part in ("images", "labels"):
        (tmp_path / "val" / part).mkdir(parents=True)
    with pytest.raises(DataError, match=f"{tmp_path}/val: split 'val' is empty"):
        registry.open_split(data, "val")
    with pytest.raises(DataError, match="no directory .*/test/images; splits found: train, val"):
        registry.open_split(data, "test")
    assert registry.split_names(data) == ("train", "val")
    with pytest.raises(DataError, match="unknown split of camvid 'tset'. Did you mean test"):
        registry.open_split(Data(name="camvid", directory=str(tmp_path)), "tset")


def test_folder_without_any_split(tmp_path):
    with pytest.raises(DataError, match=f"no split in {tmp_path}\n"):
        registry.split_names(folder(tmp_path, {}))


def test_the_light_list_of_names_is_complete():
    assert names.DATASETS == tuple(sorted(DATASETS)) and names.PREPARABLE == tuple(sorted(sources.SOURCES))
