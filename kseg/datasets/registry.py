"""The data sets kseg knows, as plain frozen records: classes, colours, one label table, and where examples lie."""

import os
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import tensorflow as tf

from kseg.config.sections import IGNORED, Data
from kseg.datasets import class_names, layouts, prepared, shapes
from kseg.datasets.layouts import Examples
from kseg.datasets.tfrecord import Records
from kseg.errors import DataError, unknown

# Marks raw values that a data set does not define; meeting one is an error, never a silent class.
UNMAPPED = 254


@dataclass(frozen=True)
class Dataset:
    """What kseg has to know of a data set.

    `label_table` has 256 entries, raw label value -> train id; 255 is ignored, 254 is not a value of this data set.
    `palette` holds one RGB colour for each class. `open_split(directory, split)` lists a split and raises DataError
    where files are missing or do not pair up. `how_to_get` is printed where the directory is missing. `published` holds
    how many examples each split has as published, which a directory may hold a part of.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    label_table: tuple[int, ...]
    splits: tuple[str, ...]
    open_split: Callable[[Path, str], Examples]
    how_to_get: str
    published: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """An opened split: what its data set is, where that lies, and how its examples are read.

    `names` and `label_names` name the files of each example, or for stored sets the example itself. `read` takes an
    int64 index and returns the encoded image and label as string tensors. `records` tells where the examples of a
    prepared set lie in its record files; `is_pixels` marks a prepared set of decoded pixels.
    """

    name: str
    dataset: Dataset
    location: str
    names: tuple[str, ...]
    label_names: tuple[str, ...]
    read: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    records: Records | None = None
    is_pixels: bool = False


def label_table(pairs: dict[int, int]) -> tuple[int, ...]:
    """Return the 256-entry table of raw value -> train id in which every other value is unmapped."""
    return tuple(pairs.get(value, UNMAPPED) for value in range(256))


def read_classes(directory: str | Path) -> Dataset:
    """Return the record of a `folder` data set from its classes.txt.

    One class a line, in order of train ids: `NAME`, or `VALUE NAME` where the raw label value is not the line's number.
    A line `VALUE ignore` leaves that raw value out; 255 is left out anyhow unless a line claims it. A colour may
    follow the name as `#rrggbb`. Raises DataError with file and line.
    """
    path = posixpath.join(str(directory), "classes.txt")
    if not tf.io.gfile.exists(path) or tf.io.gfile.isdir(path):
        raise DataError(f"no file {path}: the folder data set names one class a line there")
    pairs, classes, colours = {}, [], []
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            # Some editors put a byte order mark first, which would become part of the first word.
            lines = file.read().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        colour = words.pop() if len(words) > 1 and words[-1].startswith("#") else ""
        explicit = len(words) > 1 and words[0].isdecimal()
        value = int(words.pop(0)) if explicit else len(classes)
        name = " ".join(words)
        if name == "ignore" and not explicit:
            raise DataError(f"{path}, line {number}: which value is to be ignored? Write VALUE ignore")
        if name.startswith("#") or not explicit and re.match(r"[+-]?\d+\s*[:,;=.)]|[+-]\d", name):
            raise DataError(f"{path}, line {number}: {line.strip()!r} names no class; a line is NAME or VALUE NAME, "
                            "and a colour like #40a0ff may follow")
        if value > 255 or value in pairs:
            raise DataError(f"{path}, line {number}: value {value} is {'above 255' if value > 255 else 'given twice'}")
        if name == "ignore":
            pairs[value] = IGNORED
            continue
        if name in classes:
            raise DataError(f"{path}, line {number}: class {name!r} is given twice")
        pairs[value] = len(classes)
        classes.append(name)
        try:
            colours.append(tuple(bytes.fromhex(colour[1:])) if colour else class_names.class_palette(len(colours) + 1))
        except ValueError:
            colours.append(())
        if len(colours[-1]) != 3:
            raise DataError(f"{path}, line {number}: {colour!r} is not a colour like #40a0ff")
    # 254 and 255 mark unmapped and ignored pixels and can be no train ids.
    if not 2 <= len(classes) <= UNMAPPED:
        raise DataError(f"{path} names {len(classes)} class{'es' * (len(classes) != 1)}; 2 to {UNMAPPED} are needed")
    return replace(DATASETS["folder"], classes=tuple(classes), palette=tuple(colours),
                   label_table=label_table({IGNORED: IGNORED} | pairs))


def location_of(data: Data) -> str:
    """Return where a data config's data set lies: a local path, or an address that tf.io.gfile knows (gs://...)."""
    location = data.directory or posixpath.join(os.environ.get("KSEG_DATA", "data"), data.name)
    return location.rstrip("/") if is_address(location) else str(Path(location).expanduser())


def is_address(location: str) -> bool:
    """Return whether a location is no local path."""
    return "://" in location


def directory_of(data: Data) -> Path:
    """Return the local directory that a data config means; raises DataError where it is an address."""
    location = location_of(data)
    if is_address(location):
        raise DataError(f"{location} is not on this machine: only prepared data sets are read from there, and they are "
                        "prepared in a local directory and then copied")
    return Path(location)


def find_dataset(data: Data) -> Dataset:
    """Return the record of a data config's data set; reads files only where they name the classes (`folder`).

    Raises DataError for an unknown name and for what `read_classes` refuses.
    """
    _require_known(data)
    if data.name == "folder":
        location, place = _locate(data)
        return read_classes(place or location)
    return DATASETS[data.name]


def _require_known(data: Data) -> None:
    if data.name not in DATASETS:
        raise DataError(unknown("data set", data.name, DATASETS))


def _locate(data: Data) -> tuple[str, str]:
    """Return where a data set lies and where its prepared form lies below it, or ""; raises DataError for neither."""
    location = location_of(data)
    if not tf.io.gfile.isdir(location) and data.name != "shapes":
        raise DataError(f"{data.name}: no directory {location}. {_how_to_get(data)}")
    place = prepared.find_prepared(location, data.name)
    if is_address(location) and not place:
        raise DataError(f"{location} holds no prepared {data.name}, and only such are read from there. "
                        f"{_how_to_get(data)}")
    return location, place


def split_names(data: Data) -> tuple[str, ...]:
    """Return the names of a data set's splits; for `folder`, those of its directories that contain images.

    Of a prepared set, those that were prepared. Raises DataError where the data set or every split of it is missing.
    """
    _require_known(data)
    location, place = _locate(data)
    if place:
        return prepared.prepared_split_names(place, data.name)
    names = DATASETS[data.name].splits or layouts.folder_splits(Path(location))
    if not names:
        raise DataError(f"{data.name}: no split in {location_of(data)}\n{_how_to_get(data)}")
    return names


def _how_to_get(data: Data) -> str:
    return DATASETS[data.name].how_to_get.format(directory=location_of(data), name=data.name)


def open_split(data: Data, name: str) -> Split:
    """Open the split of that name, of a prepared set where the directory holds one.

    Raises DataError for unknown splits, missing files and files without a partner.
    """
    _require_known(data)
    dataset = DATASETS[data.name]
    if dataset.splits and name not in dataset.splits:
        raise DataError(unknown(f"split of {data.name}", name, dataset.splits))
    location, place = _locate(data)
    if data.name == "folder":
        dataset = read_classes(place or location)
    examples = layouts.open_prepared_split(place, data.name, name) if place else \
        dataset.open_split(Path(location), name)
    return Split(name=name, dataset=dataset, location=location, names=examples.names,
                 label_names=examples.label_names, read=examples.read, records=examples.records,
                 is_pixels=examples.is_pixels)


# Ends each hint on how to get a data set.
ELSEWHERE = ("or write archives or a tree into record files: python -m kseg.data prepare {name} --source DIR,\n"
             "or say where they lie: --set data.directory=DIR (kseg.data: --directory DIR)")

DATASETS = {
    "shapes": Dataset(
        name="shapes", classes=shapes.CLASSES, palette=shapes.PALETTE,
        label_table=label_table({index: index for index in range(len(shapes.CLASSES))} | {IGNORED: IGNORED}),
        splits=("train", "val"), open_split=layouts.open_shapes_split,
        how_to_get="drawn at first use into {directory}"),
    "camvid": Dataset(
        name="camvid", classes=tuple(class_names.CAMVID), palette=tuple(class_names.CAMVID.values()),
        # 11 is void.
        label_table=label_table({index: index for index in range(11)} | {11: IGNORED, IGNORED: IGNORED}),
        splits=("train", "val", "test"), open_split=layouts.open_folder_split,
        how_to_get="Get CamVid in SegNet's split (480x360, 367/101/233 pairs) from the SegNet tutorial's repository,\n"
                   "and lay it out as {directory}/{{train,val,test}}/images/NAME and .../labels/NAME.png,\n"
                   + ELSEWHERE,
        published={"train": 367, "val": 101, "test": 233}),
    "cityscapes": Dataset(
        name="cityscapes", classes=tuple(class_names.CITYSCAPES), palette=tuple(class_names.CITYSCAPES.values()),
        # labelIds 0..33; whatever is not one of the 19 classes is void.
        label_table=label_table({value: IGNORED for value in range(34)} | {IGNORED: IGNORED}
                                | {value: index for index, value in enumerate(class_names.CITYSCAPES_LABEL_IDS)}),
        splits=("train", "val", "test"), open_split=layouts.open_cityscapes_split,
        how_to_get="Register at cityscapes-dataset.com\n"
                   "and download leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip; extract both so that\n"
                   "{directory}/leftImg8bit and {directory}/gtFine exist,\n" + ELSEWHERE,
        published={"train": 2975, "val": 500, "test": 1525}),
    "ade20k": Dataset(
        name="ade20k", classes=tuple(class_names.ADE20K), palette=tuple(class_names.ADE20K.values()),
        # 0 is what has none of the 150 classes.
        label_table=label_table({0: IGNORED, IGNORED: IGNORED} | {index + 1: index for index in range(150)}),
        splits=("train", "val"), open_split=layouts.open_ade20k_split,
        how_to_get="Get data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip and extract it so that\n"
                   "{directory}/ADEChallengeData2016 exists, with images and annotations,\n" + ELSEWHERE,
        published={"train": 20210, "val": 2000}),
    "voc2012": Dataset(
        name="voc2012", classes=tuple(class_names.VOC2012), palette=tuple(class_names.VOC2012.values()),
        label_table=label_table({index: index for index in range(21)} | {IGNORED: IGNORED}),
        splits=("train", "trainaug", "val"), open_split=layouts.open_voc2012_split,
        how_to_get="Get VOCtrainval_11-May-2012.tar from host.robots.ox.ac.uk/pascal/VOC/voc2012 and extract it so\n"
                   "that {directory}/VOCdevkit/VOC2012 exists. For trainaug add SegmentationClassAug/NAME.png, the\n"
                   "masks of Hariharan et al. 2011 (SBD) as ids, and ImageSets/Segmentation/trainaug.txt, its names,\n"
                   + ELSEWHERE,
        published={"train": 1464, "trainaug": 10582, "val": 1449}),
    "folder": Dataset(
        name="folder", classes=(), palette=(), label_table=(), splits=(), open_split=layouts.open_folder_split,
        how_to_get="Lay your pictures out as {directory}/SPLIT/images/NAME.jpg and {directory}/SPLIT/labels/NAME.png,\n"
                   "with one class a line in {directory}/classes.txt,\n" + ELSEWHERE),
}
