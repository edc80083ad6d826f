"""Write a dataset's examples to record files with Beam, one image at a time.

This module does not import TFX, so that workers start quickly.
"""

import json
import posixpath
import uuid
from collections.abc import Iterator

import apache_beam as beam
import numpy as np
import tensorflow as tf

from kseg.config.sections import IGNORED, Data
from kseg.datasets import diagnosis, prepared, registry, statistics
from kseg.datasets.registry import Dataset, Split
from kseg.errors import DataError
from pipeline import artifacts

# Number of unreadable examples that an error names.
MAX_NAMED = 20
# Directory below the artifact for the lists of written examples, removed when the index is written.
ROWS = ".rows"


class WriteShard(beam.DoFn):
    """Beam function that writes a record file, and a list of its examples below ROWS.

    An element is (split, index of the shard, number of shards). The list has one JSON line for each example: {"split",
    "index", "name", "path", "offset", scalars}, or {"split", "index", "name", "fault"} for an unreadable example. Only
    one image is in memory at a time. Both files are renamed when they are complete, so that a bundle can be repeated.
    Yields the number of examples.
    """

    def __init__(self, data: dict, uri: str):
        self.data, self.uri = data, uri

    def process(self, shard: tuple[str, int, int]) -> Iterator[int]:
        split_name, number, shards = shard
        data = Data(**self.data)
        split = registry.open_split(data, split_name)
        count = len(split.names)
        path = artifacts.shard_name(split_name, number, shards)
        temporary, rows = (posixpath.join(self.uri, f".{uuid.uuid4().hex}") for _ in range(2))
        offset = 0
        with tf.io.TFRecordWriter(temporary) as writer, tf.io.gfile.GFile(rows, "w") as lines:
            for index in range(number * count // shards, (number + 1) * count // shards):
                row = {"split": split_name, "index": index, "name": relative_name(split.location, split.names[index])}
                try:
                    record, scalars = encode_split_example(split, index, row["name"])
                except DataError as error:
                    lines.write(json.dumps(row | {"fault": str(error)}) + "\n")
                    continue
                writer.write(record)
                lines.write(json.dumps(row | {"path": path, "offset": offset} | scalars) + "\n")
                offset += artifacts.record_size(record)
                # Without this the record would stay in memory while the next one is encoded.
                del record
        for written, final in ((temporary, path), (rows, f"{ROWS}/{split_name}-{number:05d}")):
            final = posixpath.join(self.uri, final)
            tf.io.gfile.makedirs(posixpath.dirname(final))
            tf.io.gfile.rename(written, final, overwrite=True)
        yield (number + 1) * count // shards - number * count // shards


def relative_name(location: str, name: str) -> str:
    """Return an example's name relative to the location of its dataset."""
    return name.removeprefix(location.rstrip("/") + "/")


def encode_split_example(split: Split, index: int, name: str) -> tuple[bytes, dict]:
    """Return an example as a serialized tf.Example, and its scalars; raises DataError if it is unreadable."""
    image, label = diagnosis.decode_example(split, index)
    height, width = image.shape[:2]
    image_data, label_data = (part.numpy() for part in diagnosis.read_pair(split, index))
    dataset = split.dataset
    image_data, label_data = (
        diagnosis.stored_image(image_data, image, split.value_range),
        diagnosis.stored_label(dataset, label_data, label),
    )
    # The decoded image is freed, since several encoded copies of the image follow.
    del image
    counts, table = statistics.value_counts(label), np.array(dataset.label_table)
    scalars = {
        "height": height,
        "width": width,
        "class_pixels": statistics.counts_by_class(table, counts, len(dataset.classes)).tolist(),
        "void_share": float(counts[table == IGNORED].sum() / label.size),
    }
    form = prepared.FORMATS[artifacts.stored_name(dataset.name)]
    return artifacts.encode_example(name, image_data, label_data, scalars, form), scalars


def finish_ingest(uri: str, dataset: Dataset, rows: dict[str, list[dict]], max_unreadable_fraction: float) -> None:
    """Write the index, the scalars and the list of unreadable examples.

    `rows` are the lines of WriteShard by split. Raises DataError if more than a fraction of a split is unreadable.
    """
    faults = [
        {"split": split, "name": row["name"], "fault": row["fault"]}
        for split, split_rows in rows.items()
        for row in split_rows
        if "fault" in row
    ]
    artifacts.write_unreadable(uri, faults)
    for split, split_rows in rows.items():
        unreadable = [row for row in split_rows if "fault" in row]
        if len(unreadable) > max_unreadable_fraction * len(split_rows) or len(unreadable) == len(split_rows):
            lines = [f"  {row['fault']}" for row in unreadable[:MAX_NAMED]]
            more = [f"  and {len(unreadable) - MAX_NAMED} more"] if len(unreadable) > MAX_NAMED else []
            raise DataError(
                "\n".join(
                    [
                        f"{len(unreadable)} of {len(split_rows)} examples of {dataset.name} {split} are unusable, more "
                        f"than {max_unreadable_fraction:.2%} (--largest-unreadable):",
                        *lines,
                        *more,
                    ]
                )
            )
    readable = {split: [row for row in split_rows if "fault" not in row] for split, split_rows in rows.items()}
    artifacts.write_artifact_index(
        uri,
        dataset,
        {
            split: [(row["offset"], row["path"], row["name"]) for row in split_rows]
            for split, split_rows in readable.items()
        },
    )
    for split, split_rows in readable.items():
        artifacts.write_scalars(
            uri,
            split,
            (
                {key: row[key] for key in ("name", "height", "width", "class_pixels", "void_share")}
                for row in split_rows
            ),
        )
