"""One example's files outside of a graph: decoded one by one, and what is said of those that cannot be used."""

import io
import re

import numpy as np
import tensorflow as tf
from PIL import Image

from kseg.datasets import statistics
from kseg.datasets.registry import UNMAPPED, Dataset, Split
from kseg.errors import DataError
from kseg.images import image_files
from kseg.images.decoding import DEPTH, GRAY, KIND, PALETTE, PNG_HEADER, PNG_SIGNATURE, decode_image, decode_label

# What TensorFlow's errors may begin with: where in a graph or in a chain of data sets they were met.
GRAPH_PLACE = re.compile(r"(\{\{\w+ [^}]*\}\} )?"
                         r"(Error in user-defined function passed to \S+ transformation with iterator: \S+: )?")


def decode_example(split: Split, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return one example's uint8 image (H, W, 3) and *raw* uint8 label (H, W).

    Raises DataError naming the file, the value and the choices where either cannot be used.
    """
    return decode_pair(split.dataset, split.names[index], split.label_names[index], *read_pair(split, index))


def decode_pair(dataset: Dataset, name: str, label_name: str, image_data: tf.Tensor,
                label_data: tf.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the uint8 image (H, W, 3) and *raw* uint8 label (H, W) of encoded bytes.

    Raises DataError naming the file, the value and the choices where either cannot be used.
    """
    picture, ids = read_image_header(name, image_data), read_label(label_name, label_data)
    require_same_size(name, picture.shape[:2], label_name, ids.shape)
    fault = unmapped(dataset, statistics.value_counts(ids))
    if fault:
        raise DataError(f"{label_name}: {fault}")
    return picture, ids


def read_pair(split: Split, index: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Return one example's encoded image and label; raises DataError where a file cannot be read."""
    try:
        return split.read(tf.constant(index, tf.int64))
    except tf.errors.OpError as error:
        raise DataError(f"{split.names[index]} or its label {split.label_names[index]} cannot be read: "
                        f"{fault_text(error)}") from None


def read_image_header(name: str, data: tf.Tensor) -> np.ndarray:
    """Return the uint8 RGB picture (H, W, 3) of encoded bytes; raises DataError with `name` where it is damaged."""
    try:
        return decode_image(data).numpy()
    except tf.errors.OpError as error:
        raise _unreadable(name, error) from None


def header_size(name: str, data: tf.Tensor) -> tuple[int, int]:
    """Return (height, width) of an encoded picture; of a JPEG or PNG only the header is looked at.

    Raises DataError with `name` where that is damaged, or the picture is of no known kind.
    """
    header = tf.strings.substr(data, 0, PNG_HEADER).numpy()
    if header.startswith(PNG_SIGNATURE) and len(header) == PNG_HEADER:
        return int.from_bytes(header[20:24]), int.from_bytes(header[16:20])
    try:
        if tf.io.is_jpeg(data):
            return tuple(tf.io.extract_jpeg_shape(data)[:2].numpy().tolist())
    except tf.errors.OpError as error:
        raise _unreadable(name, error) from None
    return read_image_header(name, data).shape[:2]


def read_label(name: str, data: tf.Tensor) -> np.ndarray:
    """Return the raw uint8 ids (H, W) of an encoded label, whatever their values.

    Raises DataError with `name` where it is damaged or no 8-bit grey or palette PNG.
    """
    try:
        return decode_label(data).numpy()
    except tf.errors.OpError as error:
        raise DataError(f"{name}: {_label_fault(tf.strings.substr(data, 0, PNG_HEADER).numpy(), error)}") from None


def _label_fault(header: bytes, error: Exception) -> str:
    """Return why a label that begins with some bytes could not be decoded."""
    if len(header) < PNG_HEADER or not header.startswith(PNG_SIGNATURE):
        return "not a PNG file"
    if header[KIND] != PALETTE and (header[KIND], header[DEPTH]) != (GRAY, 8):
        kinds = {0: "grey", 2: "RGB", 4: "grey with alpha", 6: "RGBA"}
        return (f"{header[DEPTH]}-bit {kinds.get(header[KIND], header[KIND])} PNG; "
                "a label must be 8-bit grey or palette, one class id a pixel")
    return f"damaged PNG ({fault_text(error)})"


def require_same_size(name: str, size: tuple[int, int], label_name: str, label_size: tuple[int, int]) -> None:
    """Raise DataError where the (height, width) of a picture and its label differ."""
    if tuple(size) != tuple(label_size):
        raise DataError(f"{label_name} is {label_size[1]}x{label_size[0]}, its image {name} {size[1]}x{size[0]}")


def is_turned(data: tf.Tensor) -> bool:
    """Return whether an encoded picture is a JPEG that says that it is to be shown turned or mirrored."""
    if not tf.io.is_jpeg(data):
        return False
    try:
        with Image.open(io.BytesIO(data.numpy())) as opened:
            return opened.getexif().get(image_files.EXIF_ORIENTATION, 1) != 1
    # A damaged note says nothing; a damaged picture is told as a fault.
    except Exception:
        return False


def fault_text(error: Exception) -> str:
    """Return the first line of what an error says, or its kind where it says nothing."""
    lines = str(getattr(error, "message", error)).splitlines()
    # TensorFlow tells first where in a graph it was.
    said = [line for line in lines if line and not line.startswith((" ", "\t", "Graph execution error", "Detected at"))]
    return GRAPH_PLACE.sub("", said[0] if said else type(error).__name__, count=1)[:200]


def _unreadable(name: str, error: Exception) -> DataError:
    return DataError(f"{name}: not a readable JPEG, PNG or BMP ({fault_text(error)})")


def unmapped(dataset: Dataset, counts: np.ndarray) -> str:
    """Return what is wrong with a label of which `counts` (256,) pixels have each raw value; nothing: empty text."""
    values = [value for value, count in enumerate(counts) if count and dataset.label_table[value] == UNMAPPED]
    if not values:
        return ""
    named = ", ".join(f"{value} ({counts[value]} pixel{'s' if counts[value] > 1 else ''})" for value in values[:5])
    more = f" and {len(values) - 5} more" if len(values) > 5 else ""
    known = _ranges([raw for raw, train_id in enumerate(dataset.label_table) if train_id != UNMAPPED])
    verb = "values {} are no label values" if len(values) > 1 else "value {} is no label value"
    return f"{verb.format(named + more)} of {dataset.name}; those are {known}"


def _ranges(values: list[int]) -> str:
    """Return sorted numbers as text, runs as first-last."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
