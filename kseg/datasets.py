"""The data sets kseg knows, as plain frozen records: classes, colours, one label table, and where examples lie."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tensorflow as tf

from kseg.builders import shapes
from kseg.config import IGNORED, Data
from kseg.errors import DataError, unknown

# Marks raw values that a data set does not define; meeting one is an error, never a silent class.
UNMAPPED = 254
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")


@dataclass(frozen=True)
class Split:
    """A split's examples: `read` takes an int64 index and gives the encoded image and label as string tensors."""

    names: tuple[str, ...]
    label_names: tuple[str, ...]
    read: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


@dataclass(frozen=True)
class Dataset:
    """What kseg has to know of a data set.

    `label_table` has 256 entries, raw label value -> train id; 255 is ignored, 254 is not a value of this data set.
    `palette` holds one RGB colour for each class. `open_split(directory, split)` lists a split and raises DataError
    where files are missing or do not pair up. `how_to_get` is printed where the directory is missing.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    label_table: tuple[int, ...]
    splits: tuple[str, ...]
    open_split: Callable[[Path, str], Split]
    how_to_get: str


def table(pairs: dict[int, int]) -> tuple[int, ...]:
    """Return the 256-entry table of raw value -> train id in which every other value is unmapped."""
    return tuple(pairs.get(value, UNMAPPED) for value in range(256))


def file_split(pairs: list[tuple[Path, Path]]) -> Split:
    """Return a split over (image file, label file) pairs."""
    images = [str(image) for image, _ in pairs]
    labels = [str(label) for _, label in pairs]
    image_paths, label_paths = tf.constant(images), tf.constant(labels)

    def read(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.io.read_file(tf.gather(image_paths, index)), tf.io.read_file(tf.gather(label_paths, index))

    return Split(tuple(images), tuple(labels), read)


def pair_up(split: str, images: dict[str, Path], labels: dict[str, Path]) -> list[tuple[Path, Path]]:
    """Return (image, label) for each key in order; raises DataError naming what has no partner."""
    alone = []
    for kind, other, names in (("image", "label", images.keys() - labels.keys()),
                               ("label", "image", labels.keys() - images.keys())):
        if names:
            files = [str((images | labels)[name]) for name in sorted(names)]
            more = f" and {len(files) - 3} more" if len(files) > 3 else ""
            alone.append(f"{kind} without {other}: {', '.join(files[:3])}{more}")
    if alone:
        raise DataError(f"split {split!r}: {'; '.join(alone)}")
    if not images:
        raise DataError(f"split {split!r} is empty")
    return [(images[name], labels[name]) for name in sorted(images)]


def _by_stem(directory: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(directory.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in found:
            raise DataError(f"two files of one name: {found[path.stem]} and {path}")
        found[path.stem] = path
    return found


def folder_splits(directory: Path) -> tuple[str, ...]:
    """Return the names of the directories that contain a directory images."""
    return tuple(sorted(path.parent.name for path in directory.glob("*/images") if path.is_dir()))


def open_folder_split(directory: Path, split: str) -> Split:
    """Open `SPLIT/images/NAME.{jpg,png,bmp}` beside `SPLIT/labels/NAME.png`."""
    for part in ("images", "labels"):
        if not (directory / split / part).is_dir():
            found = ", ".join(folder_splits(directory)) or "none"
            raise DataError(f"no directory {directory / split / part}; splits found: {found}")
    images = _by_stem(directory / split / "images", IMAGE_SUFFIXES)
    labels = _by_stem(directory / split / "labels", (".png",))
    try:
        return file_split(pair_up(split, images, labels))
    except DataError as error:
        raise DataError(f"{directory / split}: {error}") from None


def open_cityscapes_split(directory: Path, split: str) -> Split:
    """Open an extracted Cityscapes tree: leftImg8bit/SPLIT/CITY beside gtFine/SPLIT/CITY (labelIds)."""
    def by_frame(part: str, suffix: str) -> dict[str, Path]:
        paths = (directory / part / split).glob(f"*/*{suffix}")
        return {path.name.removesuffix(suffix): path for path in paths}

    images = by_frame("leftImg8bit", "_leftImg8bit.png")
    labels = by_frame("gtFine", "_gtFine_labelIds.png")
    try:
        return file_split(pair_up(split, images, labels))
    except DataError as error:
        raise DataError(f"{directory}: {error}") from None


def open_shapes_split(directory: Path, split: str) -> Split:
    """Open the synthetic set, drawing it into `directory` at first use."""
    source = shapes.prepare(directory, split)

    def read(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        def fetch(position: np.ndarray) -> tuple[bytes, bytes]:
            example = source[int(position)]
            return example["image"], example["segmentation_mask"]

        image, label = tf.numpy_function(fetch, [index], [tf.string, tf.string], stateful=False)
        return tf.ensure_shape(image, []), tf.ensure_shape(label, [])

    names = tuple(f"shapes/{split}/{index:05d}" for index in range(len(source)))
    return Split(names, names, read)


def read_classes(directory: Path) -> Dataset:
    """Return the record of a `folder` data set from its classes.txt.

    One class a line, in order of train ids: `NAME`, or `VALUE NAME` where the raw label value is not the line's number.
    A line `VALUE ignore` leaves that raw value out; 255 is left out anyhow unless a line claims it. A colour may
    follow the name as `#rrggbb`. Raises DataError with file and line.
    """
    path = directory / "classes.txt"
    if not path.is_file():
        raise DataError(f"no file {path}: the folder data set names one class a line there")
    pairs, classes, colours = {}, [], []
    try:
        # Some editors put a byte order mark first, which would become part of the first word.
        lines = path.read_text(encoding="utf-8-sig").splitlines()
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
            colours.append(tuple(bytes.fromhex(colour[1:])) if colour else _colour(len(colours)))
        except ValueError:
            colours.append(())
        if len(colours[-1]) != 3:
            raise DataError(f"{path}, line {number}: {colour!r} is not a colour like #40a0ff")
    # 254 and 255 mark unmapped and ignored pixels and can be no train ids.
    if not 2 <= len(classes) <= UNMAPPED:
        raise DataError(f"{path} names {len(classes)} class{'es' * (len(classes) != 1)}; 2 to {UNMAPPED} are needed")
    return replace(DATASETS["folder"], classes=tuple(classes), palette=tuple(colours),
                   label_table=table({IGNORED: IGNORED} | pairs))


def _colour(index: int) -> tuple[int, int, int]:
    """Return the index-th colour of a set in which neighbours differ: the bits of index + 1 spread as VOC does."""
    colour = [0, 0, 0]
    number = index + 1
    for bit in range(7, 0, -1):
        for channel in range(3):
            colour[channel] |= (number >> channel & 1) << bit
        number >>= 3
    return tuple(colour)


def directory_of(data: Data) -> Path:
    """Return the directory that a data config means."""
    root = Path(os.environ.get("KSEG_DATA", "data"))
    return Path(data.directory).expanduser() if data.directory else root / data.name


def find(data: Data) -> Dataset:
    """Return the record of a data config's data set; reads files only where they name the classes (`folder`).

    Raises DataError for an unknown name and for what `read_classes` refuses.
    """
    if data.name not in DATASETS:
        raise DataError(unknown("data set", data.name, DATASETS))
    if data.name == "folder":
        require_directory(data)
        return read_classes(directory_of(data))
    return DATASETS[data.name]


def require_directory(data: Data) -> Path:
    """Return the data set's directory; raises DataError saying how to get the data where it is missing."""
    directory = directory_of(data)
    if not directory.is_dir() and data.name != "shapes":
        how_to_get = DATASETS[data.name].how_to_get.format(directory=directory)
        raise DataError(f"{data.name}: no directory {directory}. {how_to_get}")
    return directory


def split_names(data: Data) -> tuple[str, ...]:
    """Return the names of a data set's splits; for `folder`, those of its directories that contain images.

    Raises DataError where the data set or every split of it is missing.
    """
    names = find(data).splits or folder_splits(require_directory(data))
    if not names:
        directory = directory_of(data)
        how_to_get = DATASETS[data.name].how_to_get.format(directory=directory)
        raise DataError(f"{data.name}: no split in {directory}\n{how_to_get}")
    return names


def open_split(data: Data, split: str) -> Split:
    """Return the split of that name; raises DataError for unknown splits, missing files and files without a partner."""
    dataset = find(data)
    if dataset.splits and split not in dataset.splits:
        raise DataError(unknown(f"split of {data.name}", split, dataset.splits))
    return dataset.open_split(require_directory(data), split)


CITYSCAPES_CLASSES = {
    "road": (7, (128, 64, 128)), "sidewalk": (8, (244, 35, 232)), "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)), "fence": (13, (190, 153, 153)), "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)), "traffic sign": (20, (220, 220, 0)), "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)), "sky": (23, (70, 130, 180)), "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)), "car": (26, (0, 0, 142)), "truck": (27, (0, 0, 70)), "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)), "motorcycle": (32, (0, 0, 230)), "bicycle": (33, (119, 11, 32)),
}

# SegNet's split and grouping of CamVid (Badrinarayanan, Kendall, Cipolla, PAMI 2017); 11 is void.
CAMVID_CLASSES = {
    "sky": (128, 128, 128), "building": (128, 0, 0), "pole": (192, 192, 128), "road": (128, 64, 128),
    "pavement": (60, 40, 222), "tree": (128, 128, 0), "sign": (192, 128, 128), "fence": (64, 64, 128),
    "car": (64, 0, 128), "pedestrian": (64, 64, 0), "bicyclist": (0, 128, 192),
}

DATASETS = {
    "shapes": Dataset(
        name="shapes", classes=shapes.CLASSES, palette=shapes.PALETTE,
        label_table=table({index: index for index in range(len(shapes.CLASSES))} | {IGNORED: IGNORED}),
        splits=("train", "val"), open_split=open_shapes_split,
        how_to_get="drawn at first use into {directory}"),
    "camvid": Dataset(
        name="camvid", classes=tuple(CAMVID_CLASSES), palette=tuple(CAMVID_CLASSES.values()),
        label_table=table({index: index for index in range(11)} | {11: IGNORED, IGNORED: IGNORED}),
        splits=("train", "val", "test"), open_split=open_folder_split,
        how_to_get="Get CamVid in SegNet's split (480x360, 367/101/233 pairs) from the SegNet tutorial's repository,\n"
                   "and lay it out as {directory}/{{train,val,test}}/images/NAME and .../labels/NAME.png,\n"
                   "or say where it lies: --set data.directory=DIR (kseg.data: --directory DIR)"),
    "cityscapes": Dataset(
        name="cityscapes", classes=tuple(CITYSCAPES_CLASSES),
        palette=tuple(colour for _, colour in CITYSCAPES_CLASSES.values()),
        # labelIds 0..33; whatever is not one of the 19 classes is void.
        label_table=table({value: IGNORED for value in range(34)} | {IGNORED: IGNORED}
                          | {value: index for index, (value, _) in enumerate(CITYSCAPES_CLASSES.values())}),
        splits=("train", "val", "test"), open_split=open_cityscapes_split,
        how_to_get="Register at cityscapes-dataset.com\n"
                   "and download leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip; extract both so that\n"
                   "{directory}/leftImg8bit and {directory}/gtFine exist, or say where they lie: "
                   "--set data.directory=DIR (kseg.data: --directory DIR)"),
    "folder": Dataset(
        name="folder", classes=(), palette=(), label_table=(), splits=(), open_split=open_folder_split,
        how_to_get="Lay your pictures out as {directory}/SPLIT/images/NAME.jpg and {directory}/SPLIT/labels/NAME.png,\n"
                   "with one class a line in {directory}/classes.txt,\n"
                   "or say where they lie: --set data.directory=DIR (kseg.data: --directory DIR)"),
}
