"""How the pipeline keeps examples: tf.Examples in TFRecord files, as TFX expects them and as kseg reads them.

    Split-NAME/data-00000-of-00002   tf.Examples: the picture and its label, still encoded, and scalars of them
    NAME/VERSION/                    kseg's index of the same files: the whole is a prepared set to it
    scalars/NAME.jsonl               of each example: name, height, width, pixels of each class, void share
    unreadable.json                  what was left out, and why

Features of an example are those of kseg.datasets.prepared.FORMATS (`image`, `segmentation_mask`, `name`), and `height`,
`width`, `class_pixels` int64 (C,) and `void_share`.
"""

import dataclasses
import json
import posixpath
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

from kseg.config import IGNORED, Config, Data
from kseg.datasets import prepared
from kseg.datasets.registry import Dataset
from kseg.datasets.tfrecord import FOOTER, HEADER
from kseg.errors import DataError

SCALARS, UNREADABLE, CLASSES = "scalars", "unreadable.json", "classes.txt"
# Beside a model: each class's share of the pixels it was trained and evaluated on, {split: {class: share}}.
SHARES = "shares.json"


def mounted(uri: str) -> str:
    """Return the path under which an artifact's place is read as files: a bucket, gs://NAME, is /gcs/NAME.

    Vertex AI mounts buckets so in every container of a pipeline; other places are what they are.
    """
    return f"/gcs/{uri.removeprefix('gs://')}" if uri.startswith("gs://") else uri


def stored_name(name: str) -> str:
    """Return the data set's name under which kseg reads the records: its own, or `folder` where it knows no form."""
    return name if name in prepared.FORMATS else "folder"


def reading(config: Config, uri: str) -> Config:
    """Return a config that reads its examples from an artifact."""
    name = stored_name(config.data.name)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, name=name, directory=str(uri)))


def shard_name(split: str, number: int, shards: int) -> str:
    """Return the path of a file of records below the artifact."""
    return f"Split-{split}/data-{number:05d}-of-{shards:05d}"


def encode(name: str, image: bytes, label: bytes, scalars: dict, form: prepared.Format) -> bytes:
    """Return one example as a serialised tf.Example."""
    example = tf.train.Example()
    features = example.features.feature
    # In place: a message that is given to another's constructor is copied, and with it the picture.
    for key, value in ((form.image, image), (form.label, label), (form.name, name.encode())):
        features[key].bytes_list.value.append(value)
    for key, values in (("height", [scalars["height"]]), ("width", [scalars["width"]]),
                        ("class_pixels", scalars["class_pixels"])):
        features[key].int64_list.value.extend(values)
    features["void_share"].float_list.value.append(scalars["void_share"])
    return example.SerializeToString(deterministic=True)


def record_size(data: bytes) -> int:
    """Return how many bytes a record takes in its file."""
    return HEADER + len(data) + FOOTER


def write_index(uri: str, dataset: Dataset, lines: dict[str, list[tuple[int, str, str]]]) -> None:
    """Write what makes an artifact a prepared data set: for each split its (offset, path below the artifact, name)."""
    name = stored_name(dataset.name)
    form = prepared.FORMATS[name]
    place = posixpath.join(uri, form.place)
    up = "../" * len(Path(form.place).parts)
    tf.io.gfile.makedirs(place)
    described = []
    for split, examples in lines.items():
        text = "".join(f"{offset}\t{up}{path}\t{picture}\n" for offset, path, picture in examples)
        _write(posixpath.join(place, prepared.INDEX.format(split=form.theirs(split))), text)
        described.append({"name": form.theirs(split), "shardLengths": [str(len(examples))]})
    if name == "folder":
        _write(posixpath.join(place, CLASSES), classes_text(dataset))
    _write(posixpath.join(place, prepared.DESCRIPTION), json.dumps({"name": name, "splits": described}) + "\n")


def classes_text(dataset: Dataset) -> str:
    """Return the classes.txt of a data set, as kseg.datasets.registry.read_classes reads it; one raw value for each class."""
    values = {train_id: raw for raw, train_id in enumerate(dataset.label_table)}
    lines = [f"{values[index]} {name} #{bytes(colour).hex()}\n"
             for index, (name, colour) in enumerate(zip(dataset.classes, dataset.palette, strict=True))]
    return "".join(lines + [f"{raw} ignore\n" for raw, train_id in enumerate(dataset.label_table)
                            if train_id == IGNORED and raw != IGNORED])


def part_of(data: Data, split: str, start: int, end: int, directory: Path) -> Data:
    """Return a data config whose `split` is examples [start, end) of a stored one, indexed below a local directory."""
    place = Path(prepared.find(data.directory, data.name))
    form = prepared.FORMATS[data.name]
    part = directory / form.place
    part.mkdir(parents=True)
    index = prepared.INDEX.format(split=form.theirs(split))
    lines = []
    for line in (place / index).read_text(encoding="utf-8").splitlines()[start:end]:
        offset, path, name = line.split("\t", 2)
        lines.append(f"{offset}\t{(place / path).resolve()}\t{name}\n")
    (part / index).write_text("".join(lines), encoding="utf-8")
    described = [{"name": form.theirs(split), "shardLengths": [str(len(lines))]}]
    (part / prepared.DESCRIPTION).write_text(json.dumps({"splits": described}), encoding="utf-8")
    if data.name == "folder":
        (part / CLASSES).write_bytes((place / CLASSES).read_bytes())
    return dataclasses.replace(data, directory=str(directory))


def write_scalars(uri: str, split: str, rows: Iterable[dict]) -> None:
    """Write the scalars of a split's examples, one JSON object a line."""
    tf.io.gfile.makedirs(posixpath.join(uri, SCALARS))
    _write(posixpath.join(uri, SCALARS, f"{split}.jsonl"), "".join(json.dumps(row) + "\n" for row in rows))


def read_scalars(uri: str, split: str) -> Iterator[dict]:
    """Yield {"name", "height", "width", "class_pixels", "void_share"} of a split's examples in order.

    Raises DataError where the artifact holds no such split.
    """
    path = posixpath.join(uri, SCALARS, f"{split}.jsonl")
    if not tf.io.gfile.exists(path):
        raise DataError(f"no file {path}: {uri} holds no split {split!r}")
    with tf.io.gfile.GFile(path, "r") as file:
        for line in file:
            yield json.loads(line)


def class_shares(uri: str, split: str) -> np.ndarray:
    """Return float64 (C,): each class's share of a split's labelled pixels, nan where there are none."""
    pixels = np.sum([row["class_pixels"] for row in read_scalars(uri, split)], axis=0, dtype=np.int64)
    total = pixels.sum()
    return pixels / total if total else np.full(len(pixels), np.nan)


def write_unreadable(uri: str, faults: list[dict]) -> None:
    """Write what was left out: {"split", "name", "fault"} each."""
    _write(posixpath.join(uri, UNREADABLE), json.dumps(faults, indent=1) + "\n")


def _write(path: str, text: str) -> None:
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(text)
