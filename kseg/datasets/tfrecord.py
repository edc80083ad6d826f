"""Read single records of TFRecord files in any order, in a graph.

Files may be at any path that tf.io.gfile supports.

A record is an 8-byte length, a checksum of the length, the data, and a checksum of the data.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import tensorflow as tf

HEADER, FOOTER = 12, 4
# Read-ahead buffer in bytes; most records are larger.
BUFFER = 1 << 18


@dataclass(frozen=True)
class Records:
    """The locations of a split's examples, in order.

    Example i begins at byte `offsets[i]` of `files[shards[i]]` and is named `names[i]`.
    """

    files: tuple[str, ...]
    shards: tuple[int, ...]
    offsets: tuple[int, ...]
    names: tuple[str, ...]


def read_record(path: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """Return the bytes of the record at an offset of a file.

    Args:
        path: String scalar.
        offset: int64 scalar, where the record's length field begins.

    Returns:
        String scalar. Evaluating it fails with an OpError if the file is missing or a checksum is wrong.
    """
    variant = tf.raw_ops.TFRecordDatasetV2(
        filenames=tf.reshape(path, [1]),
        compression_type=tf.constant(""),
        buffer_size=tf.constant(BUFFER, tf.int64),
        byte_offsets=tf.reshape(offset, [1]),
    )
    kind = {"output_types": [tf.string], "output_shapes": [[]]}
    variant = tf.raw_ops.TakeDataset(input_dataset=variant, count=tf.constant(1, tf.int64), **kind)
    return tf.raw_ops.DatasetToSingleElement(dataset=variant, **kind)[0]


def record_offsets(path: str) -> Iterator[int]:
    """Yield the byte offset of each complete record of a file."""
    size, offset = tf.io.gfile.stat(path).length, 0
    with tf.io.gfile.GFile(path, "rb") as file:
        while offset < size:
            file.seek(offset)
            length = int.from_bytes(file.read(8), "little")
            end = offset + HEADER + length + FOOTER
            if end <= size:
                yield offset
            offset = end
