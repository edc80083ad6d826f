"""Store examples as tf.Examples in TFRecord files, which TFX and kseg both read.

    Split-NAME/data-00000-of-00002   tf.Examples: the encoded image, its encoded label, and scalars
    NAME/VERSION/                    kseg's index of these files, which makes the artifact a prepared dataset
    scalars/NAME.jsonl               for each example: name, height, width, pixels of each class, void fraction
    unreadable.json                  skipped examples and their faults

The features of an example are those of kseg.datasets.prepared.FORMATS (`image`, `segmentation_mask`, `name`), and
`height`, `width`, `class_pixels` int64 (C,) and `void_share`.
"""

import dataclasses
import json
import posixpath
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

from kseg.config import Config
from kseg.config.sections import Data
from kseg.datasets import class_list, prepared
from kseg.datasets.registry import Dataset
from kseg.datasets.tfrecord import FOOTER, HEADER
from kseg.errors import DataError

SCALARS, UNREADABLE, CLASSES = "scalars", "unreadable.json", "classes.txt"
# A file next to each model: the fraction of the labeled pixels of its data by class, {split: {class: fraction}}.
CLASS_FRACTIONS = "shares.json"


def mounted_path(uri: str) -> str:
    """Return the file path of an artifact's URI, /gcs/BUCKET/... for gs://BUCKET/...

    Vertex AI mounts buckets at /gcs in all containers of a pipeline. Other URIs are paths already.
    """
    return f"/gcs/{uri.removeprefix('gs://')}" if uri.startswith("gs://") else uri


def stored_name(name: str) -> str:
    """Return the dataset name under which kseg reads the records: `folder` for names without a prepared format."""
    return name if name in prepared.FORMATS else "folder"


def artifact_config(config: Config, uri: str) -> Config:
    """Return a config that reads its examples from an artifact."""
    name = stored_name(config.data.name)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, name=name, directory=str(uri)))


def shard_name(split: str, number: int, shards: int) -> str:
    """Return the path of a record file, relative to the artifact."""
    return f"Split-{split}/data-{number:05d}-of-{shards:05d}"


def encode_example(name: str, image: bytes, label: bytes, scalars: dict, form: prepared.Format) -> bytes:
    """Return a serialized tf.Example of an encoded image, its encoded label and its scalars."""
    example = tf.train.Example()
    features = example.features.feature
    # The features are filled in place: passing messages to a constructor would copy the image.
    for key, value in ((form.image, image), (form.label, label), (form.name, name.encode())):
        features[key].bytes_list.value.append(value)
    for key, values in (
        ("height", [scalars["height"]]),
        ("width", [scalars["width"]]),
        ("class_pixels", scalars["class_pixels"]),
    ):
        features[key].int64_list.value.extend(values)
    features["void_share"].float_list.value.append(scalars["void_share"])
    return example.SerializeToString(deterministic=True)


def record_size(data: bytes) -> int:
    """Return the size of a record in its file, in bytes."""
    return HEADER + len(data) + FOOTER


def write_artifact_index(uri: str, dataset: Dataset, records: dict[str, list[tuple[int, str, str]]]) -> None:
    """Write the index that makes an artifact a prepared dataset.

    `records` are (offset, path relative to the artifact, example name) for each split.
    """
    name = stored_name(dataset.name)
    form = prepared.FORMATS[name]
    directory = posixpath.join(uri, form.records_directory)
    to_root = "../" * len(Path(form.records_directory).parts)
    tf.io.gfile.makedirs(directory)
    splits = []
    for split, examples in records.items():
        text = "".join(f"{offset}\t{to_root}{path}\t{example}\n" for offset, path, example in examples)
        _write_text(posixpath.join(directory, prepared.INDEX.format(split=form.stored_split(split))), text)
        splits.append({"name": form.stored_split(split), "shardLengths": [str(len(examples))]})
    if name == "folder":
        _write_text(
            posixpath.join(directory, CLASSES),
            class_list.classes_text(dataset.classes, dataset.palette, dataset.label_table),
        )
    _write_text(posixpath.join(directory, prepared.DESCRIPTION), json.dumps({"name": name, "splits": splits}) + "\n")


def part_config(data: Data, split: str, start: int, end: int, directory: Path) -> Data:
    """Return a data config whose `split` is the examples [start, end) of a stored split.

    The index of the part is written below `directory`, which must be local.
    """
    stored = Path(prepared.find_prepared(data.directory, data.name))
    form = prepared.FORMATS[data.name]
    part = directory / form.records_directory
    part.mkdir(parents=True)
    index = prepared.INDEX.format(split=form.stored_split(split))
    lines = []
    for line in (stored / index).read_text(encoding="utf-8").splitlines()[start:end]:
        offset, path, name = line.split("\t", 2)
        lines.append(f"{offset}\t{(stored / path).resolve()}\t{name}\n")
    (part / index).write_text("".join(lines), encoding="utf-8")
    splits = [{"name": form.stored_split(split), "shardLengths": [str(len(lines))]}]
    (part / prepared.DESCRIPTION).write_text(json.dumps({"splits": splits}), encoding="utf-8")
    if data.name == "folder":
        (part / CLASSES).write_bytes((stored / CLASSES).read_bytes())
    return dataclasses.replace(data, directory=str(directory))


def write_scalars(uri: str, split: str, rows: Iterable[dict]) -> None:
    """Write the scalars of a split's examples as JSON lines."""
    tf.io.gfile.makedirs(posixpath.join(uri, SCALARS))
    _write_text(posixpath.join(uri, SCALARS, f"{split}.jsonl"), "".join(json.dumps(row) + "\n" for row in rows))


def read_scalars(uri: str, split: str) -> Iterator[dict]:
    """Yield {"name", "height", "width", "class_pixels", "void_share"} for each example of a split, in order.

    Raises DataError if the artifact has no such split.
    """
    path = posixpath.join(uri, SCALARS, f"{split}.jsonl")
    if not tf.io.gfile.exists(path):
        raise DataError(f"{path} does not exist: {uri} has no split {split!r}")
    with tf.io.gfile.GFile(path, "r") as file:
        for line in file:
            yield json.loads(line)


def class_fractions(uri: str, split: str) -> np.ndarray:
    """Return the fraction of a split's labeled pixels in each class, float64 (C,); nan without labeled pixels."""
    pixels = np.sum([row["class_pixels"] for row in read_scalars(uri, split)], axis=0, dtype=np.int64)
    total = pixels.sum()
    return pixels / total if total else np.full(len(pixels), np.nan)


def write_unreadable(uri: str, faults: list[dict]) -> None:
    """Write the list of skipped examples, {"split", "name", "fault"} each."""
    _write_text(posixpath.join(uri, UNREADABLE), json.dumps(faults, indent=1) + "\n")


def _write_text(path: str, text: str) -> None:
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(text)
