"""Decode single examples outside of a graph and describe their faults."""

import io
import re

import numpy as np
import tensorflow as tf
from PIL import Image

from kseg.datasets import statistics
from kseg.datasets.registry import UNMAPPED, Dataset, Split
from kseg.errors import DataError
from kseg.images import decoder_choice, picture_reader
from kseg.images.decoding import DEPTH, GRAY, KIND, PALETTE, PNG_HEADER, PNG_SIGNATURE, decode_image, decode_label
from kseg.images.picture_reader import Picture

# Prefixes of TensorFlow's messages that locate the error in a graph or in a chain of datasets.
GRAPH_LOCATION = re.compile(r"(\{\{\w+ [^}]*\}\} )?"
                            r"(Error in user-defined function passed to \S+ transformation with iterator: \S+: )?")


def decode_example(split: Split, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Decode one example of a split.

    Returns:
        The image, uint8 (H, W, 3), and the label's raw values, uint8 (H, W).

    Raises:
        DataError: The image or the label cannot be used; the message names the file, the value and the choices.
    """
    return decode_pair(split.dataset, split.names[index], split.label_names[index], *read_pair(split, index))


def decode_pair(dataset: Dataset, name: str, label_name: str, image_data: tf.Tensor,
                label_data: tf.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Decode an encoded image (string scalar) and its label.

    Returns:
        The image, uint8 (H, W, 3), and the label's raw values, uint8 (H, W).

    Raises:
        DataError: The image or the label cannot be used; the message names the file, the value and the choices.
    """
    image, label = read_image(name, image_data), read_label(label_name, label_data)
    require_same_size(name, image.shape[:2], label_name, label.shape)
    fault = unmapped_values(dataset, statistics.value_counts(label))
    if fault:
        raise DataError(f"{label_name}: {fault}")
    return image, label


def read_pair(split: Split, index: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Return one example's encoded image and label; raises DataError if a file cannot be read."""
    try:
        return split.read(tf.constant(index, tf.int64))
    except tf.errors.OpError as error:
        raise DataError(f"{split.names[index]} or its label {split.label_names[index]} cannot be read: "
                        f"{error_summary(error)}") from None


def read_picture(name: str, data: tf.Tensor, value_range: tuple[float, ...] = ()) -> Picture:
    """Return the decoded image with its uint8 RGB pixels (H, W, 3), as training reads it.

    Args:
        name: The name in error messages.
        data: The encoded bytes, string scalar.
        value_range: (low, high): the values of images with more than 8 bits that become 0 and 255; may be empty.

    Raises:
        DataError: The image is damaged or of an unknown format.
    """
    try:
        if not needs_care(data):
            return Picture(decode_image(data).numpy(), pages=1, orientation=1, values=None)
        return picture_reader.read_picture(data.numpy(), name, value_range)
    except tf.errors.OpError as error:
        raise _unreadable(name, error_summary(error)) from None
    except DataError as error:
        raise _unreadable(name, str(error).removeprefix(f"{name}: ")) from None


@tf.function(input_signature=[tf.TensorSpec((), tf.string)], autograph=False)
def needs_care(data: tf.Tensor) -> tf.Tensor:
    """Return whether an encoded image (string scalar) must be decoded by Pillow."""
    return decoder_choice.needs_care(data, in_python=True)


def read_image(name: str, data: tf.Tensor, value_range: tuple[float, ...] = ()) -> np.ndarray:
    """Return the pixels of `read_picture`."""
    return read_picture(name, data, value_range).pixels


def image_size(name: str, data: tf.Tensor) -> tuple[int, int]:
    """Return (height, width) of an encoded image, upright.

    Only the header of most images is decoded.

    Raises DataError with `name` if the image is damaged or of an unknown format.
    """
    try:
        if needs_care(data):
            return picture_reader.read_size(data.numpy(), name)
        header = tf.strings.substr(data, 0, PNG_HEADER).numpy()
        if header.startswith(PNG_SIGNATURE) and len(header) == PNG_HEADER:
            return int.from_bytes(header[20:24]), int.from_bytes(header[16:20])
        if tf.io.is_jpeg(data):
            return tuple(tf.io.extract_jpeg_shape(data)[:2].numpy().tolist())
    except tf.errors.OpError as error:
        raise _unreadable(name, error_summary(error)) from None
    except DataError as error:
        raise _unreadable(name, str(error).removeprefix(f"{name}: ")) from None
    return read_image(name, data).shape[:2]


def read_label(name: str, data: tf.Tensor) -> np.ndarray:
    """Return the raw uint8 values (H, W) of an encoded label.

    Raises DataError with `name` if the label is damaged or not an 8-bit gray or palette PNG.
    """
    try:
        return decode_label(data).numpy()
    except tf.errors.OpError as error:
        raise DataError(f"{name}: {_label_fault(tf.strings.substr(data, 0, PNG_HEADER).numpy(), error)}") from None


def _label_fault(header: bytes, error: Exception) -> str:
    """Return why a label with these first bytes could not be decoded."""
    if len(header) < PNG_HEADER or not header.startswith(PNG_SIGNATURE):
        return "not a PNG file"
    if header[KIND] != PALETTE and (header[KIND], header[DEPTH]) != (GRAY, 8):
        kinds = {0: "gray", 2: "RGB", 4: "gray with alpha", 6: "RGBA"}
        return (f"{header[DEPTH]}-bit {kinds.get(header[KIND], header[KIND])} PNG; "
                "a label must be 8-bit gray or palette, one class id per pixel")
    return f"damaged PNG ({error_summary(error)})"


def require_same_size(name: str, size: tuple[int, int], label_name: str, label_size: tuple[int, int]) -> None:
    """Raise DataError if the (height, width) of an image and its label differ."""
    if tuple(size) != tuple(label_size):
        raise DataError(f"{label_name} is {label_size[1]}x{label_size[0]}, its image {name} {size[1]}x{size[0]}")


def has_exif_orientation(data: tf.Tensor) -> bool:
    """Return whether an encoded image is a JPEG with an EXIF orientation other than upright."""
    if not tf.io.is_jpeg(data):
        return False
    try:
        with Image.open(io.BytesIO(data.numpy())) as opened:
            return opened.getexif().get(image_files.EXIF_ORIENTATION, 1) != 1
    # Damaged EXIF data counts as none. A damaged image is reported by its decoder.
    except Exception:
        return False


def error_summary(error: Exception) -> str:
    """Return the first informative line of an error's message, or its type's name."""
    lines = str(getattr(error, "message", error)).splitlines()
    # TensorFlow's messages begin with the location in the graph.
    informative = [line for line in lines
                   if line and not line.startswith((" ", "\t", "Graph execution error", "Detected at"))]
    return GRAPH_LOCATION.sub("", informative[0] if informative else type(error).__name__, count=1)[:200]


def _unreadable(name: str, reason: str) -> DataError:
    return DataError(f"{name}: not a readable JPEG, PNG, BMP, TIFF, WebP, GIF, AVIF or JPEG 2000 ({reason})")


def unmapped_values(dataset: Dataset, counts: np.ndarray) -> str:
    """Return a message on a label's undefined raw values, or "".

    `counts`, (256,), is the number of pixels of each raw value.
    """
    values = [value for value, count in enumerate(counts) if count and dataset.label_table[value] == UNMAPPED]
    if not values:
        return ""
    listed = ", ".join(f"{value} ({counts[value]} pixel{'s' if counts[value] > 1 else ''})" for value in values[:5])
    more = f" and {len(values) - 5} more" if len(values) > 5 else ""
    defined = _ranges([raw for raw, train_id in enumerate(dataset.label_table) if train_id != UNMAPPED])
    subject = "values {} are not label values" if len(values) > 1 else "value {} is not a label value"
    return f"{subject.format(listed + more)} of {dataset.name}; defined are {defined}"


def _ranges(values: list[int]) -> str:
    """Return sorted numbers as text, with runs written as first-last."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
