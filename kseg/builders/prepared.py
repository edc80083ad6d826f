"""Prepared data sets: how they lie on the disk as tensorflow-datasets builders wrote them, and reading them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tensorflow_datasets as tfds

from kseg.errors import DataError, unknown

# Whatever changes what is stored needs a new version: sets that were prepared before are found by theirs.
VERSION = "1.0.0"
# In it: the names of the pictures of a split, one a line, for messages to name what a record holds.
NAMES_FILE = "names-{split}.txt"


@dataclass(frozen=True)
class Format:
    """Where a prepared set lies below its directory, and what its builder calls things.

    `image`, `label` and `name` are features of an example; `splits` holds those of kseg's split names that the builder
    calls otherwise.
    """

    place: str
    image: str = "image"
    label: str = "segmentation_mask"
    name: str = "name"
    splits: dict[str, str] = field(default_factory=dict)

    def theirs(self, split: str) -> str:
        """Return the builder's name of a split."""
        return self.splits.get(split, split)


FORMATS = {name: Format(place=f"{name}/{VERSION}") for name in ("ade20k", "voc2012", "camvid", "folder")} | {
    # What the builder of tensorflow-datasets itself writes, and reads.
    "cityscapes": Format(place="cityscapes/semantic_segmentation/1.0.0", image="image_left",
                         label="segmentation_label", name="image_id", splits={"val": "validation"})}


def find(directory: Path, name: str) -> Path | None:
    """Return where the prepared data set `name` lies below `directory`; None where there is none."""
    place = directory / FORMATS[name].place if name in FORMATS else None
    return place if place and place.is_dir() else None


def open_builder(place: Path) -> tfds.core.DatasetBuilder:
    """Return the builder that reads the prepared set in `place`; raises DataError where it is damaged."""
    try:
        return tfds.builder_from_directory(place)
    # Whatever a damaged or missing description makes the library stumble over.
    except Exception as error:
        raise _damaged(place, error) from error


def split_names(place: Path, name: str) -> tuple[str, ...]:
    """Return the names of the splits of the prepared set `name` in `place`, in the order they were prepared."""
    ours = {theirs: split for split, theirs in FORMATS[name].splits.items()}
    return tuple(ours.get(split, split) for split in open_builder(place).info.splits)


def open_split(place: Path, name: str, split: str) -> tuple[Sequence[dict], tuple[str, ...]]:
    """Return the examples of a split, encoded pictures, and their names.

    An example holds the features of `FORMATS[name]`, all bytes. Raises DataError for a split that is not there and
    where the set is damaged.
    """
    form = FORMATS[name]
    if split not in split_names(place, name):
        raise DataError(unknown(f"split of the prepared set {place}", split, split_names(place, name)))
    try:
        source = data_source(open_builder(place), name, split)
        names = (place / NAMES_FILE.format(split=form.theirs(split))).read_text(encoding="utf-8").splitlines()
        # Files are opened at the first read; a missing one should show here and not in the middle of training.
        source[0]
    except (OSError, RuntimeError, ValueError) as error:
        raise _damaged(place, error) from error
    if len(names) != len(source):
        raise _damaged(place, f"{len(source)} examples of {split} and {len(names)} names")
    return source, tuple(names)


def data_source(builder: tfds.core.DatasetBuilder, name: str, split: str) -> Sequence[dict]:
    """Return the examples of a split of the data set `name`, their pictures still encoded."""
    form, skip = FORMATS[name], tfds.decode.SkipDecoding()
    return builder.as_data_source(split=form.theirs(split), decoders={form.image: skip, form.label: skip})


def _damaged(place: Path, reason: Exception | str) -> DataError:
    return DataError(f"the prepared set in {place} is damaged; delete that directory and prepare it again: {reason}")
