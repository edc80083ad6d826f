"""Examples of a data set as files of records, one picture at a time: the Beam part of ingesting.

Nothing here imports TFX, so that a worker starts quickly.
"""

import json
import posixpath
import uuid
from collections.abc import Iterator

import apache_beam as beam
import numpy as np
import tensorflow as tf
from PIL import Image

from kseg.config.sections import IGNORED, Data
from kseg.datasets import diagnosis, prepared, registry, statistics, tfds_builder
from kseg.datasets.registry import Dataset, Split
from kseg.errors import DataError
from kseg.images.decoding import KIND, PALETTE
from pipeline import artifacts

# Of many, an error names so many.
NAMED = 20
# Below the artifact, until its index is written.
ROWS = ".rows"


class WriteShard(beam.DoFn):
    """Turns (split, shard's number, number of shards) into a file of records, and a file of what it holds, below ROWS:

    for each example a line of {"split", "index", "name", "path", "offset", scalars}, or {"split", "index", "name",
    "fault"} of one that cannot be used. No more than one picture is held. Both files take their names when they are
    whole, so that a bundle may be run again. Yields the number of examples.
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
                row = {"split": split_name, "index": index, "name": picture_name(split.location, split.names[index])}
                try:
                    record, scalars = encode_split_example(split, index, row["name"])
                except DataError as error:
                    lines.write(json.dumps(row | {"fault": str(error)}) + "\n")
                    continue
                writer.write(record)
                lines.write(json.dumps(row | {"path": path, "offset": offset} | scalars) + "\n")
                offset += artifacts.record_size(record)
                # Not beside the next one.
                del record
        for written, final in ((temporary, path), (rows, f"{ROWS}/{split_name}-{number:05d}")):
            final = posixpath.join(self.uri, final)
            tf.io.gfile.makedirs(posixpath.dirname(final))
            tf.io.gfile.rename(written, final, overwrite=True)
        yield (number + 1) * count // shards - number * count // shards


def picture_name(location: str, name: str) -> str:
    """Return an example's name without the directory that the data set lies in."""
    return name.removeprefix(location.rstrip("/") + "/")


def encode_split_example(split: Split, index: int, name: str) -> tuple[bytes, dict]:
    """Return one example as a record, and its scalars; raises DataError where it cannot be used."""
    picture, label = diagnosis.decode_example(split, index)
    height, width = picture.shape[:2]
    # Below, it is in memory several times in its encoded form.
    del picture
    image_data, label_data = (part.numpy() for part in diagnosis.read_pair(split, index))
    # Every reader takes a grey PNG for ids, and many a palette for colours.
    if label_data[KIND] == PALETTE:
        label_data = tfds_builder.png(Image.fromarray(label))
    dataset = split.dataset
    counts, table = statistics.value_counts(label), np.array(dataset.label_table)
    scalars = {"height": height, "width": width,
               "class_pixels": statistics.counts_by_class(table, counts, len(dataset.classes)).tolist(),
               "void_share": float(counts[table == IGNORED].sum() / label.size)}
    form = prepared.FORMATS[artifacts.stored_name(dataset.name)]
    return artifacts.encode_example(name, image_data, label_data, scalars, form), scalars


def finish_ingest(uri: str, dataset: Dataset, rows: dict[str, list[dict]], largest_share: float) -> None:
    """Write the index, the scalars and the list of what was left out; raises DataError where that is too much."""
    faults = [{"split": split, "name": row["name"], "fault": row["fault"]}
              for split, found in rows.items() for row in found if "fault" in row]
    artifacts.write_unreadable(uri, faults)
    for split, found in rows.items():
        broken = [row for row in found if "fault" in row]
        if len(broken) > largest_share * len(found) or len(broken) == len(found):
            lines = [f"  {row['fault']}" for row in broken[:NAMED]]
            more = [f"  and {len(broken) - NAMED} more"] if len(broken) > NAMED else []
            raise DataError("\n".join([f"{len(broken)} of {len(found)} examples of {dataset.name} {split} cannot be "
                                       f"used, more than {largest_share:.2%}:", *lines, *more]))
    good = {split: [row for row in found if "fault" not in row] for split, found in rows.items()}
    artifacts.write_artifact_index(uri, dataset, {split: [(row["offset"], row["path"], row["name"]) for row in found]
                                                  for split, found in good.items()})
    for split, found in good.items():
        artifacts.write_scalars(uri, split, ({key: row[key] for key in (
            "name", "height", "width", "class_pixels", "void_share")} for row in found))
