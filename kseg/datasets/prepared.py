"""Locate and index prepared datasets, locally or at any address that tf.io.gfile supports.

A prepared set of records consists of TFRecord files written by a tensorflow-datasets builder, with encoded images. A
prepared set of pixels stores each decoded image and label in a file of its own; it is faster to read and several times
as large.
"""

import json
import posixpath
from dataclasses import dataclass, field

import tensorflow as tf

from kseg.datasets.tfrecord import Records, record_offsets
from kseg.errors import DataError, unknown

# A change of the stored contents requires a new version, so that older prepared sets are not found.
VERSION = "1.1.0"
# Index of a split, written last and read first. For records, each line holds the byte offset of an example, its file
# and its image's name, separated by tabs; for pixels, only the image's name.
INDEX = "index-{split}.txt"
DESCRIPTION = "dataset_info.json"
# Key of DESCRIPTION, true for a set of pixels.
PIXELS = "pixels"
# Suffixes of the image and label files SPLIT/NUMBER.ppm and SPLIT/NUMBER.pgm, and the digits of NUMBER.
KINDS, DIGITS = ("ppm", "pgm"), 8
# Exceptions raised by missing, damaged or malformed files.
READ_ERRORS = (tf.errors.OpError, OSError, ValueError, KeyError, TypeError, IndexError)


@dataclass(frozen=True)
class Format:
    """Where a prepared set lies below its directory, and the names its builder uses.

    Attributes:
        records_directory: Subdirectory of record files.
        pixels_directory: Subdirectory of pixel files.
        image: Feature of a record that holds the encoded image.
        label: Feature that holds the encoded label.
        name: Feature that holds the image's name.
        splits: The builder's names of those kseg splits that it names differently.
    """

    records_directory: str
    pixels_directory: str
    image: str = "image"
    label: str = "segmentation_mask"
    name: str = "name"
    splits: dict[str, str] = field(default_factory=dict)

    def stored_split(self, split: str) -> str:
        """Return the builder's name of a split."""
        return self.splits.get(split, split)


FORMATS = {
    name: Format(records_directory=f"{name}/{VERSION}", pixels_directory=f"{name}_pixels/{VERSION}")
    for name in ("ade20k", "voc2012", "camvid", "folder")
} | {
    # The format of the tensorflow-datasets builder cityscapes/semantic_segmentation.
    "cityscapes": Format(
        records_directory="cityscapes/semantic_segmentation/1.0.0",
        pixels_directory=f"cityscapes_pixels/{VERSION}",
        image="image_left",
        label="segmentation_label",
        name="image_id",
        splits={"val": "validation"},
    )
}


def find_prepared(directory: str, name: str) -> str:
    """Return the location of a prepared dataset below a directory, or "".

    Pixels take precedence over records.
    """
    layout = FORMATS.get(name)
    subdirectories = (layout.pixels_directory, layout.records_directory) if layout else ()
    locations = (posixpath.join(directory, subdirectory) for subdirectory in subdirectories)
    return next((location for location in locations if tf.io.gfile.isdir(location)), "")


def is_pixels(location: str) -> bool:
    """Return whether a prepared set holds pixels."""
    return _read_description(location)[PIXELS]


def prepared_split_names(location: str, name: str) -> tuple[str, ...]:
    """Return the split names of a prepared set in order of preparation."""
    kseg_names = {stored: split for split, stored in FORMATS[name].splits.items()}
    return tuple(kseg_names.get(split["name"], split["name"]) for split in _read_description(location)["splits"])


def open_records(location: str, name: str, split: str) -> Records:
    """Return the locations of a split's examples.

    Raises DataError for an unknown split or a damaged set.
    """
    lines = [line.split("\t", 2) for line in _read_index(location, name, split)]
    try:
        files = sorted({file for _, file, _ in lines})
        shard_of = {file: shard for shard, file in enumerate(files)}
        paths = tuple(posixpath.join(location, file) for file in files)
        records = Records(
            paths,
            tuple(shard_of[file] for _, file, _ in lines),
            tuple(int(offset) for offset, _, _ in lines),
            tuple(name for _, _, name in lines),
        )
        # Record files are opened on demand; a missing file must be reported now, not in the middle of training.
        for path in paths:
            tf.io.gfile.stat(path)
    except READ_ERRORS as error:
        raise _damaged(location, error) from error
    return records


def pixels_file(number: int, kind: str) -> str:
    """Return the file name of an example's pixels of one of KINDS."""
    return f"{number:0{DIGITS}d}.{kind}"


def open_pixels(location: str, name: str, split: str) -> tuple[str, ...]:
    """Return the names of a split's examples.

    Raises DataError for an unknown split or a damaged set.
    """
    names = tuple(_read_index(location, name, split))
    for kind in KINDS:
        last = posixpath.join(location, split, pixels_file(len(names) - 1, kind))
        if not tf.io.gfile.exists(last):
            raise _damaged(location, f"no file {last}")
    return names


def write_prepared_index(location: str, name: str, split: str) -> None:
    """Write the index of a split's record files.

    Raises DataError if a record cannot be read.
    """
    layout = FORMATS[name]
    features = {key: tf.io.FixedLenFeature([], tf.string) for key in (layout.image, layout.label, layout.name)}
    stored_split = layout.stored_split(split)
    lines = []
    try:
        for path in sorted(tf.io.gfile.glob(posixpath.join(location, f"*-{stored_split}.tfrecord-*"))):
            examples = tf.data.TFRecordDataset(path).map(lambda record: tf.io.parse_single_example(record, features))
            for offset, example in zip(record_offsets(path), examples, strict=True):
                lines.append(f"{offset}\t{posixpath.basename(path)}\t{example[layout.name].numpy().decode()}\n")
        with tf.io.gfile.GFile(posixpath.join(location, INDEX.format(split=stored_split)), "w") as file:
            file.write("".join(lines))
    except READ_ERRORS as error:
        raise _damaged(location, error) from error


def _read_index(location: str, name: str, split: str) -> list[str]:
    """Return the lines of a split's index.

    Raises DataError unless their number matches the set's description.
    """
    if split not in prepared_split_names(location, name):
        raise DataError(unknown(f"split of the prepared set {location}", split, prepared_split_names(location, name)))
    stored_split = FORMATS[name].stored_split(split)
    try:
        with tf.io.gfile.GFile(posixpath.join(location, INDEX.format(split=stored_split)), "r") as file:
            lines = file.read().splitlines()
        entry = next(entry for entry in _read_description(location)["splits"] if entry["name"] == stored_split)
        count = sum(map(int, entry["shardLengths"]))
    except READ_ERRORS as error:
        raise _damaged(location, error) from error
    if len(lines) != count:
        raise _damaged(location, f"{count} examples of {split}, but {len(lines)} lines in its index")
    return lines


def _read_description(location: str) -> dict:
    """Return the entries of DESCRIPTION that kseg uses."""
    try:
        with tf.io.gfile.GFile(posixpath.join(location, DESCRIPTION), "r") as file:
            description = json.load(file)
        return {
            PIXELS: description.get(PIXELS, False),
            "splits": [
                {"name": split["name"], "shardLengths": split["shardLengths"]} for split in description["splits"]
            ],
        }
    except READ_ERRORS as error:
        raise _damaged(location, error) from error


def _damaged(location: str, reason: Exception | str) -> DataError:
    reason = getattr(reason, "message", reason)
    return DataError(
        f"the prepared set in {location} is damaged; delete that directory and prepare the set again: {reason}"
    )
