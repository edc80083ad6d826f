"""Define the datasets that kseg knows, and open their splits."""

import os
import posixpath
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import tensorflow as tf

from kseg.config.sections import IGNORED, Data
from kseg.datasets import class_list, class_names, file_lists, layouts, prepared, shapes
from kseg.datasets.class_list import UNMAPPED
from kseg.datasets.layouts import Examples
from kseg.datasets.tfrecord import Records
from kseg.errors import DataError, unknown


@dataclass(frozen=True)
class Dataset:
    """The properties of a dataset that do not depend on where it is stored.

    Attributes:
        classes: Class names in train id order.
        palette: One RGB color per class.
        label_table: 256 train ids, one per raw label value; 255 is ignored, 254 (UNMAPPED) an undefined value.
        splits: Names of the splits; empty if the directory decides.
        open_examples: Lists the examples of (directory, split name); raises DataError for missing or unpaired files.
        how_to_get: Instructions printed if the directory is missing.
        published: Number of examples of each published split. A directory may hold fewer.
        label_colors: (RGB color, raw label value) of each color in labels that store colors; otherwise empty.
        other_colors: Raw label value of all other colors.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    label_table: tuple[int, ...]
    splits: tuple[str, ...]
    open_examples: Callable[[Path, str], Examples]
    how_to_get: str
    published: dict[str, int] = field(default_factory=dict)
    label_colors: tuple[tuple[tuple[int, int, int], int], ...] = ()
    other_colors: int = UNMAPPED


@dataclass(frozen=True)
class Split:
    """An opened split of a dataset.

    Attributes:
        name: Name of the split.
        dataset: The dataset's classes and label table.
        location: Directory or address of the dataset.
        names: One name per example: the image's path, or an identifier for examples in record or pixel files.
        label_names: The same for labels.
        read: Returns the encoded image and label (string scalars) of an int64 index, in a graph.
        records: Locations of the examples of a prepared set of record files, otherwise None.
        is_pixels: Whether this is a prepared set of decoded pixels.
        value_range: (low, high): the values of images with more than 8 bits that become 0 and 255; empty for 0 and
            65535.
        notes: Sentences on what is skipped or looks unusual.
    """

    name: str
    dataset: Dataset
    location: str
    names: tuple[str, ...]
    label_names: tuple[str, ...]
    read: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    records: Records | None = None
    is_pixels: bool = False
    value_range: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()


def label_table(pairs: dict[int, int]) -> tuple[int, ...]:
    """Return the 256-entry table of raw value -> train id.

    Values not in `pairs` are unmapped.
    """
    return tuple(pairs.get(value, UNMAPPED) for value in range(256))


def read_classes(directory: str | Path) -> Dataset:
    """Return the `folder` dataset described by a directory's classes.txt.

    The file has one class per line in train id order: `NAME`, or `VALUE NAME` if the raw label value differs from the
    class's index; several values are `7,8 NAME`, and `*` is all other values. `VALUE ignore` makes a raw value ignored;
    255 is ignored unless a line claims it. A color may follow the name as `#rrggbb`. If the lines begin with colors,
    `#rrggbb NAME` or `r,g,b NAME`, labels store colors.

    Args:
        directory: A local directory or the address of one.

    Returns:
        The dataset; the splits are left to the directory.

    Raises:
        DataError: The file is missing or malformed; the message names the file and the line.

    Example:
        >>> out.mkdir(exist_ok=True)
        >>> _ = (out / "classes.txt").write_text("7 road #804080\\n8 sidewalk\\n0 ignore\\n")
        >>> dataset = read_classes(out)
        >>> dataset.classes, dataset.palette[0], dataset.label_table[7:9], dataset.label_table[0]
        (('road', 'sidewalk'), (128, 64, 128), (0, 1), 255)
    """
    path = posixpath.join(str(directory), "classes.txt")
    if not tf.io.gfile.exists(path) or tf.io.gfile.isdir(path):
        raise DataError(f"no file {path}: a folder dataset lists one class per line there")
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            # utf-8-sig drops the byte order mark that some editors write.
            text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}; save it as UTF-8") from None
    listed = class_list.parse_classes(path, text)
    return replace(
        DATASETS["folder"],
        classes=listed.names,
        palette=listed.palette,
        label_table=listed.label_table,
        label_colors=listed.label_colors,
        other_colors=listed.other_colors,
    )


def location_of(data: Data) -> str:
    """Return the local path or the address (gs://...) of a config's dataset."""
    location = data.directory or posixpath.join(os.environ.get("KSEG_DATA", "data"), data.name)
    return location.rstrip("/") if is_address(location) else str(Path(location).expanduser())


def is_address(location: str) -> bool:
    """Return whether a location is an address such as gs://..., not a local path."""
    return "://" in location


def directory_of(data: Data) -> Path:
    """Return the local directory of a config's dataset; raises DataError for an address."""
    location = location_of(data)
    if is_address(location):
        raise DataError(f"{location} is not a local directory: prepare the dataset locally and copy it there")
    return Path(location)


def find_dataset(data: Data) -> Dataset:
    """Return the definition of a config's dataset.

    Only a `folder` dataset requires files: its classes.txt.

    Args:
        data: The section `data` of a config.

    Returns:
        The classes, the palette, the table of label values and the splits.

    Raises:
        DataError: The name is unknown, or `read_classes` fails.

    Example:
        >>> from kseg import config
        >>> find_dataset(config.load("encnet_cityscapes").data).classes[:2]
        ('road', 'sidewalk')
    """
    _require_known(data)
    if data.name == "folder":
        location, prepared_path = _locate(data)
        return read_classes(prepared_path or location)
    return DATASETS[data.name]


def _require_known(data: Data) -> None:
    if data.name not in DATASETS:
        raise DataError(unknown("dataset", data.name, DATASETS))


def _locate(data: Data) -> tuple[str, str]:
    """Return the locations of a dataset and of its prepared form.

    The latter is "" for an unprepared dataset.

    Raises DataError with instructions for getting the data if there is nothing to read.
    """
    location = location_of(data)
    if not is_address(location):
        file_lists.require_utf8(Path(location))
    if not tf.io.gfile.isdir(location) and data.name != "shapes":
        unset = data.name == "folder" and not data.directory
        hint = "data.directory is not set: set data.directory=DIR to the directory of your images. " if unset else ""
        raise DataError(f"{data.name}: no directory {location}. {hint}{_how_to_get(data)}")
    prepared_path = prepared.find_prepared(location, data.name)
    if is_address(location) and not prepared_path:
        raise DataError(
            f"{location} holds no prepared {data.name}, and an address must hold a prepared set. {_how_to_get(data)}"
        )
    return location, prepared_path


def split_names(data: Data) -> tuple[str, ...]:
    """Return the names of the available splits of a config's dataset.

    For a prepared set these are the prepared splits, for a `folder` dataset the directories that contain images.

    Raises:
        DataError: The dataset is unknown or missing, or has no split.
    """
    _require_known(data)
    location, prepared_path = _locate(data)
    if prepared_path:
        return prepared.prepared_split_names(prepared_path, data.name)
    names = DATASETS[data.name].splits or layouts.folder_splits(Path(location))
    if not names:
        raise DataError(f"{data.name}: no split in {location}\n{_how_to_get(data)}")
    return names


def _how_to_get(data: Data) -> str:
    return DATASETS[data.name].how_to_get.format(directory=location_of(data), name=data.name)


def open_split(data: Data, name: str) -> Split:
    """Return an opened split of a config's dataset, prepared or not.

    Args:
        data: The section `data` of a config.
        name: The split, such as "train".

    Returns:
        The split: its dataset, the names of its examples and a function that reads them.

    Raises:
        DataError: The split is unknown, files are missing, or an image or label has no counterpart.

    Example:
        >>> from kseg.config.sections import Data
        >>> split = open_split(Data(name="shapes", directory=str(data)), "val")
        >>> len(split.names) == len(split.label_names), split.dataset.classes[0]
        (True, 'background')
    """
    _require_known(data)
    dataset = DATASETS[data.name]
    if dataset.splits and name not in dataset.splits:
        raise DataError(unknown(f"split of {data.name}", name, dataset.splits))
    location, prepared_path = _locate(data)
    if data.name == "folder":
        dataset = read_classes(prepared_path or location)
    notes = _class_notes(dataset)
    if prepared_path:
        examples = layouts.prepared_examples(prepared_path, data.name, name)
    else:
        examples = dataset.open_examples(Path(location), name)
        if dataset.open_examples is layouts.folder_examples:
            notes += layouts.folder_notes(Path(location))
    return Split(
        name=name,
        dataset=dataset,
        location=location,
        names=examples.names,
        label_names=examples.label_names,
        read=examples.read,
        records=examples.records,
        is_pixels=examples.is_pixels,
        value_range=data.value_range,
        notes=notes + examples.notes,
    )


def _class_notes(dataset: Dataset) -> tuple[str, ...]:
    """Return a sentence on a class that has the value with which most tools mark ignored pixels."""
    train_id = dataset.label_table[IGNORED] if dataset.label_table else IGNORED
    if dataset.label_colors or train_id >= UNMAPPED:
        return ()
    name = dataset.classes[train_id]
    return (
        f"value {IGNORED} is the class {name!r} in classes.txt, whereas most tools mark ignored pixels with it; if "
        f"labels do so, write `{IGNORED} ignore`",
    )


# Common end of all `how_to_get` instructions.
ELSEWHERE = (
    "or convert archives or a tree to record files: python -m kseg.data prepare {name} --source DIR,\n"
    "or set another directory: --set data.directory=DIR (kseg.data: --directory DIR)"
)

DATASETS = {
    "shapes": Dataset(
        name="shapes",
        classes=shapes.CLASSES,
        palette=shapes.PALETTE,
        label_table=label_table({index: index for index in range(len(shapes.CLASSES))} | {IGNORED: IGNORED}),
        splits=("train", "val"),
        open_examples=layouts.shapes_examples,
        how_to_get="drawn into {directory} on first use",
    ),
    "camvid": Dataset(
        name="camvid",
        classes=tuple(class_names.CAMVID),
        palette=tuple(class_names.CAMVID.values()),
        # Raw value 11 is void.
        label_table=label_table({index: index for index in range(11)} | {11: IGNORED, IGNORED: IGNORED}),
        splits=("train", "val", "test"),
        open_examples=layouts.folder_examples,
        how_to_get="Get CamVid in SegNet's split (480x360, 367/101/233 pairs) from the SegNet tutorial's repository\n"
        "and arrange it as {directory}/{{train,val,test}}/images/NAME and .../labels/NAME.png,\n" + ELSEWHERE,
        published={"train": 367, "val": 101, "test": 233},
    ),
    "cityscapes": Dataset(
        name="cityscapes",
        classes=tuple(class_names.CITYSCAPES),
        palette=tuple(class_names.CITYSCAPES.values()),
        # Raw values are labelIds 0..33; those outside the 19 classes are void.
        label_table=label_table(
            dict.fromkeys(range(34), IGNORED)
            | {IGNORED: IGNORED}
            | {value: index for index, value in enumerate(class_names.CITYSCAPES_LABEL_IDS)}
        ),
        splits=("train", "val", "test"),
        open_examples=layouts.cityscapes_examples,
        how_to_get="Register at cityscapes-dataset.com\n"
        "and download leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip; extract both so that\n"
        "{directory}/leftImg8bit and {directory}/gtFine exist,\n" + ELSEWHERE,
        published={"train": 2975, "val": 500, "test": 1525},
    ),
    "ade20k": Dataset(
        name="ade20k",
        classes=tuple(class_names.ADE20K),
        palette=tuple(class_names.ADE20K.values()),
        # Raw value 0 marks pixels of none of the 150 classes.
        label_table=label_table({0: IGNORED, IGNORED: IGNORED} | {index + 1: index for index in range(150)}),
        splits=("train", "val"),
        open_examples=layouts.ade20k_examples,
        how_to_get="Get data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip and extract it so that\n"
        "{directory}/ADEChallengeData2016 exists, with images and annotations,\n" + ELSEWHERE,
        published={"train": 20210, "val": 2000},
    ),
    "voc2012": Dataset(
        name="voc2012",
        classes=tuple(class_names.VOC2012),
        palette=tuple(class_names.VOC2012.values()),
        label_table=label_table({index: index for index in range(21)} | {IGNORED: IGNORED}),
        splits=("train", "trainaug", "val"),
        open_examples=layouts.voc2012_examples,
        how_to_get="Get VOCtrainval_11-May-2012.tar from host.robots.ox.ac.uk/pascal/VOC/voc2012 and extract it so\n"
        "that {directory}/VOCdevkit/VOC2012 exists. For trainaug add SegmentationClassAug/NAME.png, the\n"
        "masks of Hariharan et al. 2011 (SBD) as ids, and ImageSets/Segmentation/trainaug.txt, its names,\n"
        + ELSEWHERE,
        published={"train": 1464, "trainaug": 10582, "val": 1449},
    ),
    "folder": Dataset(
        name="folder",
        classes=(),
        palette=(),
        label_table=(),
        splits=(),
        open_examples=layouts.folder_examples,
        how_to_get="Arrange your images as {directory}/SPLIT/images/NAME.jpg with labels in\n"
        "{directory}/SPLIT/labels/NAME.png, and list one class per line in {directory}/classes.txt,\n" + ELSEWHERE,
    ),
}
