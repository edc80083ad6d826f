"""How data sets lie on disk: for each layout one function from (directory, split name) to the split's examples."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf

from kseg.datasets import prepared, shapes
from kseg.datasets.tfrecord import Records, read_record
from kseg.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")


@dataclass(frozen=True)
class Examples:
    """Encoded examples in order: `read` takes an int64 index and returns the image and the label as string tensors.

    `records` tells where the examples of a prepared set lie in its record files. `is_pixels` marks a prepared set of
    decoded pixels.
    """

    names: tuple[str, ...]
    label_names: tuple[str, ...]
    read: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    records: Records | None = None
    is_pixels: bool = False


def file_examples(pairs: list[tuple[Path, Path]]) -> Examples:
    """Return the examples of (image file, label file) pairs."""
    images = [str(image) for image, _ in pairs]
    labels = [str(label) for _, label in pairs]
    image_paths, label_paths = tf.constant(images), tf.constant(labels)

    def read(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.io.read_file(tf.gather(image_paths, index)), tf.io.read_file(tf.gather(label_paths, index))

    return Examples(tuple(images), tuple(labels), read)


def pair_up(split: str, images: dict[str, Path], labels: dict[str, Path]) -> list[tuple[Path, Path]]:
    """Return (image, label) for each key in order; raises DataError naming what has no partner."""
    alone = []
    for kind, other, names in (("image", "label", images.keys() - labels.keys()),
                               ("label", "image", labels.keys() - images.keys())):
        if names:
            alone.append(f"{kind} without {other}: {first_three([str((images | labels)[name]) for name in names])}")
    if alone:
        raise DataError(f"split {split!r}: {'; '.join(alone)}")
    if not images:
        raise DataError(f"split {split!r} is empty")
    return [(images[name], labels[name]) for name in sorted(images)]


def first_three(names: Iterable[str]) -> str:
    """Return the first three of some names, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


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


def open_folder_split(directory: Path, split: str) -> Examples:
    """Open `SPLIT/images/NAME.{jpg,png,bmp}` beside `SPLIT/labels/NAME.png`."""
    for part in ("images", "labels"):
        if not (directory / split / part).is_dir():
            found = ", ".join(folder_splits(directory)) or "none"
            raise DataError(f"no directory {directory / split / part}; splits found: {found}")
    images = _by_stem(directory / split / "images", IMAGE_SUFFIXES)
    labels = _by_stem(directory / split / "labels", (".png",))
    try:
        return file_examples(pair_up(split, images, labels))
    except DataError as error:
        raise DataError(f"{directory / split}: {error}") from None


def open_cityscapes_split(directory: Path, split: str) -> Examples:
    """Open an extracted Cityscapes tree: leftImg8bit/SPLIT/CITY beside gtFine/SPLIT/CITY (labelIds)."""
    def by_frame(part: str, suffix: str) -> dict[str, Path]:
        paths = (directory / part / split).glob(f"*/*{suffix}")
        return {path.name.removesuffix(suffix): path for path in paths}

    images = by_frame("leftImg8bit", "_leftImg8bit.png")
    labels = by_frame("gtFine", "_gtFine_labelIds.png")
    try:
        return file_examples(pair_up(split, images, labels))
    except DataError as error:
        raise DataError(f"{directory}: {error}") from None


def _root(directory: Path, names: tuple[str, ...], holds: str) -> Path:
    """Return the first of a directory and the names below it in which `holds` is a directory; else raise DataError."""
    places = (directory, *(directory / name for name in names))
    for place in places:
        if (place / holds).is_dir():
            return place
    raise DataError(f"no directory {holds} in any of {', '.join(map(str, places))}")


def open_ade20k_split(directory: Path, split: str) -> Examples:
    """Open an extracted ADEChallengeData2016 tree, or the directory around it: images and annotations.

    Their directories training and validation are the splits train and val.
    """
    root = _root(directory, ("ADEChallengeData2016",), "images")
    part = {"train": "training", "val": "validation"}[split]
    for kind in ("images", "annotations"):
        if not (root / kind / part).is_dir():
            raise DataError(f"no directory {root / kind / part}")
    images, labels = _by_stem(root / "images" / part, (".jpg",)), _by_stem(root / "annotations" / part, (".png",))
    try:
        return file_examples(pair_up(split, images, labels))
    except DataError as error:
        raise DataError(f"{root}: {error}") from None


def open_voc2012_split(directory: Path, split: str) -> Examples:
    """Open a VOC2012 tree, or the directories around it, by its lists ImageSets/Segmentation/SPLIT.txt.

    Labels are SegmentationClass, whose palette PNGs hold ids. The split trainaug adds SegmentationClassAug for the
    names that have no official label; where neither has one, that is an error.
    """
    root = _root(directory, ("VOC2012", "VOCdevkit/VOC2012"), "ImageSets/Segmentation")
    path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    parts = ("SegmentationClass", "SegmentationClassAug") if split == "trainaug" else ("SegmentationClass",)
    for part in ("JPEGImages", *parts):
        if not (root / part).is_dir():
            raise DataError(f"no directory {root / part}")
    try:
        names = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        found = ", ".join(sorted(other.stem for other in path.parent.glob("*.txt"))) or "none"
        raise DataError(f"{path} cannot be read: {error}; lists found: {found}") from None
    if not names or len(set(names)) < len(names):
        repeated = sorted(name for name, count in Counter(names).items() if count > 1)
        raise DataError(f"{path} names {first_three(repeated)} twice" if names else f"{path} is empty")
    images = _by_stem(root / "JPEGImages", (".jpg",))
    labels: dict[str, Path] = {}
    for part in reversed(parts):
        labels |= _by_stem(root / part, (".png",))
    missing = [f"without {kind} {place}/NAME{suffix}: {first_three(absent)}" for kind, place, suffix, absent in (
        ("image", "JPEGImages", ".jpg", set(names) - images.keys()),
        ("label", " or ".join(parts), ".png", set(names) - labels.keys())) if absent]
    if missing:
        raise DataError(f"{path} names examples {'; '.join(missing)}")
    return file_examples([(images[name], labels[name]) for name in sorted(names)])


def open_shapes_split(directory: Path, split: str) -> Examples:
    """Open the synthetic set, drawing it into `directory` at first use."""
    records = shapes.prepare_shapes(directory, split)
    return Examples(records.names, records.names, record_reader(records, "image", "segmentation_mask"))


def open_prepared_split(place: str, name: str, split: str) -> Examples:
    """Open a split of the prepared data set `name` in `place`."""
    if prepared.is_pixels(place):
        return pixels_examples(place, split, prepared.open_pixels(place, name, split))
    records, form = prepared.open_records(place, name, split), prepared.FORMATS[name]
    names = tuple(f"{place}/{split}/{image_name}" for image_name in records.names)
    return Examples(names, tuple(f"label of {image_name}" for image_name in names),
                    record_reader(records, form.image, form.label), records)


def record_reader(records: Records, image_key: str,
                  label_key: str) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """Return a function from an int64 index to two features of a record: the encoded image and label."""
    files, shards, offsets = tf.constant(records.files), tf.constant(records.shards), tf.constant(
        records.offsets, tf.int64)
    features = {key: tf.io.FixedLenFeature([], tf.string) for key in (image_key, label_key)}

    # For those who read outside of a graph.
    @tf.function(input_signature=[tf.TensorSpec((), tf.int64)])
    def read(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        record = read_record(tf.gather(files, tf.gather(shards, index)), tf.gather(offsets, index))
        example = tf.io.parse_single_example(record, features)
        return example[image_key], example[label_key]

    return read


def pixels_examples(place: str, split: str, image_names: tuple[str, ...]) -> Examples:
    """Return the examples in files of decoded pixels, which are found by their numbers."""
    names = tuple(f"{place}/{split}/{image_name}" for image_name in image_names)

    def read(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        number = tf.strings.as_string(index, width=prepared.DIGITS, fill="0")
        return tuple(tf.io.read_file(tf.strings.join([f"{place}/{split}/", number, f".{kind}"]))
                     for kind in prepared.KINDS)

    return Examples(names, tuple(f"label of {image_name}" for image_name in names), read, is_pixels=True)
