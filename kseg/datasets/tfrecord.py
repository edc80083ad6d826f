"""TFRecord files whose records are read one at a time and in any order, at any place tf.io.gfile knows, in a graph.

A record is an 8-byte length, the checksum of that, the bytes, and their checksum.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import tensorflow as tf

HEADER, FOOTER = 12, 4
# Bytes read ahead: a record is most often larger.
BUFFER = 1 << 18


@dataclass(frozen=True)
class Records:
    """The examples of a split in order: the number of each one's file in `files`, its place there, and its name."""

    files: tuple[str, ...]
    shards: tuple[int, ...]
    offsets: tuple[int, ...]
    names: tuple[str, ...]


def read_record(path: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """Return the bytes of the record that begins at a place (int64) of a file, both of which may be tensors.

    Fails with an OpError where the file is missing and where the checksums do not agree.
    """
    variant = tf.raw_ops.TFRecordDatasetV2(
        filenames=tf.reshape(path, [1]), compression_type=tf.constant(""), buffer_size=tf.constant(BUFFER, tf.int64),
        byte_offsets=tf.reshape(offset, [1]))
    kind = {"output_types": [tf.string], "output_shapes": [[]]}
    variant = tf.raw_ops.TakeDataset(input_dataset=variant, count=tf.constant(1, tf.int64), **kind)
    return tf.raw_ops.DatasetToSingleElement(dataset=variant, **kind)[0]


def record_offsets(path: str) -> Iterator[int]:
    """Yield where the whole records of a file begin."""
    size, offset = tf.io.gfile.stat(path).length, 0
    with tf.io.gfile.GFile(path, "rb") as file:
        while offset < size:
            file.seek(offset)
            length = int.from_bytes(file.read(8), "little")
            end = offset + HEADER + length + FOOTER
            if end <= size:
                yield offset
            offset = end
