"""Prepared data sets: how they lie on the disk, or at any place tf.io.gfile knows, and listing what is in them.

Records are TFRecord files as tensorflow-datasets builders wrote them, pictures still encoded. Pixels are decoded
already, a file each, which is faster to read and several times as large.
"""

import json
import posixpath
from dataclasses import dataclass, field

import tensorflow as tf

from kseg.datasets.tfrecord import Records, record_offsets
from kseg.errors import DataError, unknown

# Whatever changes what is stored needs a new version: sets that were prepared before are found by theirs.
VERSION = "1.1.0"
# In a prepared set, of records: for each example of a split a line of its place in its file, the file, and the name of
# its picture, with a tab between; of pixels: the names alone. Written last, and read first.
INDEX = "index-{split}.txt"
DESCRIPTION = "dataset_info.json"
# A key in it: true where the set holds pixels.
PIXELS = "pixels"
# A prepared set of pixels holds SPLIT/NUMBER.ppm, the picture of the example of that number, and its label beside it.
KINDS, DIGITS = ("ppm", "pgm"), 8
# What comes of a file that is missing, is damaged or says something else.
FAULTS = (tf.errors.OpError, OSError, ValueError, KeyError, TypeError, IndexError)


@dataclass(frozen=True)
class Format:
    """Where a prepared set lies below its directory, and what its builder calls things.

    `place` is that of records, `pixels` that of pixels. `image`, `label` and `name` are features of an example;
    `splits` holds those of kseg's split names that the builder calls otherwise.
    """

    place: str
    pixels: str
    image: str = "image"
    label: str = "segmentation_mask"
    name: str = "name"
    splits: dict[str, str] = field(default_factory=dict)

    def theirs(self, split: str) -> str:
        """Return the builder's name of a split."""
        return self.splits.get(split, split)


FORMATS = {name: Format(place=f"{name}/{VERSION}", pixels=f"{name}_pixels/{VERSION}")
           for name in ("ade20k", "voc2012", "camvid", "folder")} | {
    # What the builder of tensorflow-datasets itself writes, and reads.
    "cityscapes": Format(place="cityscapes/semantic_segmentation/1.0.0", pixels=f"cityscapes_pixels/{VERSION}",
                         image="image_left", label="segmentation_label", name="image_id",
                         splits={"val": "validation"})}


def find(directory: str, name: str) -> str:
    """Return where the prepared data set `name` lies below `directory`, pixels before records; empty: nowhere."""
    places = (FORMATS[name].pixels, FORMATS[name].place) if name in FORMATS else ()
    found = (posixpath.join(directory, place) for place in places)
    return next((place for place in found if tf.io.gfile.isdir(place)), "")


def is_pixels(place: str) -> bool:
    """Return whether a prepared set holds pixels, and not records."""
    return _read_description(place)[PIXELS]


def split_names(place: str, name: str) -> tuple[str, ...]:
    """Return the names of the splits of the prepared set `name` in `place`, in the order they were prepared."""
    ours = {theirs: split for split, theirs in FORMATS[name].splits.items()}
    return tuple(ours.get(split["name"], split["name"]) for split in _read_description(place)["splits"])


def open_records(place: str, name: str, split: str) -> Records:
    """Return where the examples of a split are; raises DataError where it is unknown and where the set is damaged."""
    lines = [line.split("\t", 2) for line in _read_index(place, name, split)]
    try:
        files = sorted({file for _, file, _ in lines})
        number = {file: shard for shard, file in enumerate(files)}
        paths = tuple(posixpath.join(place, file) for file in files)
        found = Records(paths, tuple(number[file] for _, file, _ in lines),
                        tuple(int(offset) for offset, _, _ in lines), tuple(name for _, _, name in lines))
        # Files are opened when they are needed; what is missing should show here and not in the middle of training.
        for path in paths:
            tf.io.gfile.stat(path)
    except FAULTS as error:
        raise _damaged(place, error) from error
    return found


def pixels_file(number: int, kind: str) -> str:
    """Return the name of the file of one example's pixels, of one of KINDS."""
    return f"{number:0{DIGITS}d}.{kind}"


def open_pixels(place: str, name: str, split: str) -> tuple[str, ...]:
    """Return the names of the examples of a split of pixels; raises DataError as `open_records` does."""
    names = tuple(_read_index(place, name, split))
    for kind in KINDS:
        last = posixpath.join(place, split, pixels_file(len(names) - 1, kind))
        if not tf.io.gfile.exists(last):
            raise _damaged(place, f"no file {last}")
    return names


def write_index(place: str, name: str, split: str) -> None:
    """Write the index of a split of records; raises DataError where one of them cannot be read."""
    form = FORMATS[name]
    features = {key: tf.io.FixedLenFeature([], tf.string) for key in (form.image, form.label, form.name)}
    theirs = form.theirs(split)
    lines = []
    try:
        for path in sorted(tf.io.gfile.glob(posixpath.join(place, f"*-{theirs}.tfrecord-*"))):
            stored = tf.data.TFRecordDataset(path).map(lambda record: tf.io.parse_single_example(record, features))
            for offset, example in zip(record_offsets(path), stored, strict=True):
                lines.append(f"{offset}\t{posixpath.basename(path)}\t{example[form.name].numpy().decode()}\n")
        with tf.io.gfile.GFile(posixpath.join(place, INDEX.format(split=theirs)), "w") as file:
            file.write("".join(lines))
    except FAULTS as error:
        raise _damaged(place, error) from error


def _read_index(place: str, name: str, split: str) -> list[str]:
    """Return the lines of a split's index, as many as the set's description says."""
    if split not in split_names(place, name):
        raise DataError(unknown(f"split of the prepared set {place}", split, split_names(place, name)))
    theirs = FORMATS[name].theirs(split)
    try:
        with tf.io.gfile.GFile(posixpath.join(place, INDEX.format(split=theirs)), "r") as file:
            lines = file.read().splitlines()
        described = next(entry for entry in _read_description(place)["splits"] if entry["name"] == theirs)
        count = sum(map(int, described["shardLengths"]))
    except FAULTS as error:
        raise _damaged(place, error) from error
    if len(lines) != count:
        raise _damaged(place, f"{count} examples of {split} and {len(lines)} lines in its index")
    return lines


def _read_description(place: str) -> dict:
    try:
        with tf.io.gfile.GFile(posixpath.join(place, DESCRIPTION), "r") as file:
            described = json.load(file)
        # All of it that is read.
        return {PIXELS: described.get(PIXELS, False),
                "splits": [{"name": split["name"], "shardLengths": split["shardLengths"]}
                           for split in described["splits"]]}
    except FAULTS as error:
        raise _damaged(place, error) from error


def _damaged(place: str, reason: Exception | str) -> DataError:
    reason = getattr(reason, "message", reason)
    return DataError(f"the prepared set in {place} is damaged; delete that directory and prepare it again: {reason}")
