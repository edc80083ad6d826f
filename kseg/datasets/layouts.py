"""List the examples of each dataset layout on disk.

One function per layout takes (directory, split name).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf

from kseg.datasets import file_lists, prepared, shapes
from kseg.datasets.file_lists import DirectoryFiles, files_by_stem, first_three
from kseg.datasets.tfrecord import Records, read_record
from kseg.errors import DataError, MissingSplit
from kseg.images import image_files

# Training reads the same kinds of files as prediction.
IMAGE_SUFFIXES = image_files.SUFFIXES
# Names, in lower case, that users give to a split's directory of images instead of `images`.
SIMILAR_TO_IMAGES = ("images", "image", "imgs", "img", "jpegimages")


@dataclass(frozen=True)
class Examples:
    """The encoded examples of a split, in order.

    Attributes:
        names: One name per example: the image's path, or an identifier for examples in record or pixel files.
        label_names: The same for labels.
        read: Returns the encoded image and label (string scalars) of an int64 index, in a graph.
        records: Locations of the examples of a prepared set of record files, otherwise None.
        is_pixels: Whether this is a prepared set of decoded pixels.
        notes: Sentences on files and directories that are skipped.
    """

    names: tuple[str, ...]
    label_names: tuple[str, ...]
    read: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    records: Records | None = None
    is_pixels: bool = False
    notes: tuple[str, ...] = ()


def file_examples(pairs: list[tuple[Path, Path]], notes: tuple[str, ...] = ()) -> Examples:
    """Return the examples of (image file, label file) pairs; `notes` tell what is skipped."""
    images = [str(file_lists.require_utf8(image)) for image, _ in pairs]
    labels = [str(file_lists.require_utf8(label)) for _, label in pairs]
    image_paths, label_paths = tf.constant(images), tf.constant(labels)

    def read(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.io.read_file(tf.gather(image_paths, index)), tf.io.read_file(tf.gather(label_paths, index))

    return Examples(tuple(images), tuple(labels), read, notes=notes)


def pair_up(
    split: str, images: dict[str, Path], labels: dict[str, Path], others: Sequence[DirectoryFiles] = ()
) -> list[tuple[Path, Path]]:
    """Return (image, label) of each key, sorted by the image's key.

    Args:
        split: Name of the split for messages.
        images: The images by key.
        labels: The labels by key.
        others: The directories in which files of other suffixes may explain what is missing.

    Raises:
        DataError: Files have no counterpart, or there are none.
    """
    label_of, unpaired = file_lists.match_keys(images, labels), []
    for kind, counterpart, files in (
        ("image", "label", {key: file for key, file in images.items() if key not in label_of}),
        ("label", "image", {key: labels[key] for key in labels.keys() - set(label_of.values())}),
    ):
        if files:
            unpaired.append(
                f"{kind} without {counterpart}: {first_three(map(str, files.values()))}"
                + file_lists.suffix_hint(files, others)
            )
    if unpaired:
        raise DataError(f"split {split!r}: {'; '.join(unpaired)}")
    if not images:
        raise DataError(f"split {split!r} is empty")
    return [(images[key], labels[label_of[key]]) for key in sorted(images)]


def folder_splits(directory: Path) -> tuple[str, ...]:
    """Return the names of the subdirectories that contain a directory `images`."""
    return tuple(sorted(path.parent.name for path in directory.glob("*/images") if path.is_dir()))


def folder_notes(directory: Path) -> tuple[str, ...]:
    """Return a sentence on each subdirectory that looks like a split but is none."""
    notes = []
    for path in sorted(directory.iterdir()):
        try:
            # Only the next level is listed: results and other material beside the splits may be large.
            children = sorted(child.name for child in path.iterdir()) if path.is_dir() else []
        # A directory such as lost+found may be closed to the user.
        except PermissionError:
            continue
        similar = [name for name in children if name.lower() in SIMILAR_TO_IMAGES]
        if similar and "images" not in similar:
            notes.append(
                f"{path} is no split and is not read, because its images are in {similar[0]}; rename that "
                f"directory to {path.name}/images and the one with the labels to {path.name}/labels"
            )
    return tuple(notes)


def folder_examples(directory: Path, split: str) -> Examples:
    """Return the examples `SPLIT/images/NAME.SUFFIX`, one of IMAGE_SUFFIXES, with labels in `SPLIT/labels/NAME.png`."""
    for part in ("images", "labels"):
        if not (directory / split / part).is_dir():
            available = ", ".join(folder_splits(directory)) or "none"
            raise MissingSplit(f"no directory {directory / split / part}; splits found: {available}")
    images = files_by_stem(directory / split / "images", IMAGE_SUFFIXES)
    labels = files_by_stem(directory / split / "labels", (".png",))
    try:
        pairs = pair_up(split, images.paths, labels.paths, (images, labels))
        return file_examples(pairs, images.notes + labels.notes)
    except DataError as error:
        raise DataError(f"{directory / split}: {error}") from None


def cityscapes_examples(directory: Path, split: str) -> Examples:
    """Return the examples of an extracted Cityscapes tree: leftImg8bit/SPLIT/CITY and gtFine/SPLIT/CITY (labelIds)."""

    def by_frame(part: str, suffix: str) -> dict[str, Path]:
        paths = (directory / part / split).glob(f"*/*{suffix}")
        # macOS leaves hidden files beside others, whose names begin with ._ and end like theirs.
        return {path.name.removesuffix(suffix): path for path in paths if not path.name.startswith(".")}

    if not any((directory / part / split).is_dir() for part in ("leftImg8bit", "gtFine")):
        raise MissingSplit(f"no directory {directory / 'leftImg8bit' / split}")
    images = by_frame("leftImg8bit", "_leftImg8bit.png")
    labels = by_frame("gtFine", "_gtFine_labelIds.png")
    try:
        return file_examples(pair_up(split, images, labels))
    except DataError as error:
        raise DataError(f"{directory}: {error}") from None


def _root(directory: Path, names: tuple[str, ...], subdirectory: str) -> Path:
    """Return the first of `directory` and `directory/NAME` that contains a subdirectory; raises DataError for none."""
    candidates = (directory, *(directory / name for name in names))
    for candidate in candidates:
        if (candidate / subdirectory).is_dir():
            return candidate
    raise DataError(f"no directory {subdirectory} in any of {', '.join(map(str, candidates))}")


def ade20k_examples(directory: Path, split: str) -> Examples:
    """Return the examples of an extracted ADEChallengeData2016 tree or of its parent directory.

    The tree's directories `training` and `validation` are the splits train and val.
    """
    root = _root(directory, ("ADEChallengeData2016",), "images")
    part = {"train": "training", "val": "validation"}[split]
    for kind in ("images", "annotations"):
        if not (root / kind / part).is_dir():
            raise MissingSplit(f"no directory {root / kind / part}")
    images = files_by_stem(root / "images" / part, (".jpg",))
    labels = files_by_stem(root / "annotations" / part, (".png",))
    try:
        return file_examples(pair_up(split, images.paths, labels.paths, (images, labels)), images.notes + labels.notes)
    except DataError as error:
        raise DataError(f"{root}: {error}") from None


def voc2012_examples(directory: Path, split: str) -> Examples:
    """Return the examples of a VOC2012 tree, or of its parent directories, named in ImageSets/Segmentation/SPLIT.txt.

    Labels are the palette PNGs in SegmentationClass. The split trainaug takes labels from SegmentationClassAug for
    names without an official label; a name without either is an error.
    """
    root = _root(directory, ("VOC2012", "VOCdevkit/VOC2012"), "ImageSets/Segmentation")
    path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    parts = ("SegmentationClass", "SegmentationClassAug") if split == "trainaug" else ("SegmentationClass",)
    for part in ("JPEGImages", *parts):
        if not (root / part).is_dir():
            raise MissingSplit(f"no directory {root / part}")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        available = ", ".join(sorted(other.stem for other in path.parent.glob("*.txt"))) or "none"
        raise MissingSplit(f"no file {path}; lists found: {available}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    names = file_lists.listed_names(str(path), content)
    images = files_by_stem(root / "JPEGImages", (".jpg",)).paths
    labels: dict[str, Path] = {}
    for part in reversed(parts):
        labels |= files_by_stem(root / part, (".png",)).paths
    # A list may write a name in another Unicode form than the files.
    image_of, label_of = (file_lists.match_keys(dict.fromkeys(names), files) for files in (images, labels))
    missing = [
        f"without {kind} {directories}/NAME{suffix}: {first_three(absent)}"
        for kind, directories, suffix, absent in (
            ("image", "JPEGImages", ".jpg", set(names) - image_of.keys()),
            ("label", " or ".join(parts), ".png", set(names) - label_of.keys()),
        )
        if absent
    ]
    if missing:
        raise DataError(f"{path} lists examples {'; '.join(missing)}")
    return file_examples([(images[image_of[name]], labels[label_of[name]]) for name in sorted(names)])


def shapes_examples(directory: Path, split: str) -> Examples:
    """Return the examples of the synthetic dataset.

    They are drawn into `directory` on first use.
    """
    records = shapes.prepare_shapes(directory, split)
    return Examples(records.names, records.names, record_reader(records, "image", "segmentation_mask"))


def prepared_examples(location: str, name: str, split: str) -> Examples:
    """Return the examples of the prepared dataset `name` stored at `location`."""
    if prepared.is_pixels(location):
        return pixels_examples(location, split, prepared.open_pixels(location, name, split))
    records, layout = prepared.open_records(location, name, split), prepared.FORMATS[name]
    names = tuple(f"{location}/{split}/{image_name}" for image_name in records.names)
    return Examples(
        names,
        tuple(f"label of {image_name}" for image_name in names),
        record_reader(records, layout.image, layout.label),
        records,
    )


def record_reader(
    records: Records, image_key: str, label_key: str
) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """Return a function that reads an example's encoded image and label.

    It takes an int64 index and returns two features of the record.
    """
    files, shards, offsets = (
        tf.constant(records.files),
        tf.constant(records.shards),
        tf.constant(records.offsets, tf.int64),
    )
    features = {key: tf.io.FixedLenFeature([], tf.string) for key in (image_key, label_key)}

    # Callers outside of a graph need a compiled function.
    @tf.function(input_signature=[tf.TensorSpec((), tf.int64)], autograph=False)
    def read(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        record = read_record(tf.gather(files, tf.gather(shards, index)), tf.gather(offsets, index))
        example = tf.io.parse_single_example(record, features)
        return example[image_key], example[label_key]

    return read


def pixels_examples(location: str, split: str, image_names: tuple[str, ...]) -> Examples:
    """Return the examples of a prepared set of decoded pixels, whose files are numbered."""
    names = tuple(f"{location}/{split}/{image_name}" for image_name in image_names)

    def read(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        number = tf.strings.as_string(index, width=prepared.DIGITS, fill="0")
        return tuple(
            tf.io.read_file(tf.strings.join([f"{location}/{split}/", number, f".{kind}"])) for kind in prepared.KINDS
        )

    return Examples(names, tuple(f"label of {image_name}" for image_name in names), read, is_pixels=True)
