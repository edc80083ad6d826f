"""Decode single examples outside of a graph and describe their faults."""

import functools
import io
import re
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from PIL import Image

from kseg.datasets import raw_labels, statistics
from kseg.datasets.registry import UNMAPPED, Dataset, Split
from kseg.errors import DataError
from kseg.images import decoder_choice, picture_reader
from kseg.images.decoding import DEPTH, GRAY, KIND, ONLY_HERE, PALETTE, PNG_HEADER, PNG_SIGNATURE, decode_image
from kseg.images.picture_reader import Picture

# Prefixes of TensorFlow's messages that locate the error in a graph or in a chain of datasets.
GRAPH_LOCATION = re.compile(
    r"(\{\{\w+ [^}]*\}\} )?"
    r"(Error in user-defined function passed to \S+ transformation with iterator: \S+: )?"
)


def decode_example(split: Split, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Decode one example of a split.

    Returns:
        The image, uint8 (H, W, 3), and the label's raw values, uint8 (H, W).

    Raises:
        DataError: The image or the label cannot be used; the message names the file, the value and the choices.
    """
    picture, label = decode_pair(
        split.dataset, split.names[index], split.label_names[index], *read_pair(split, index), split.value_range
    )
    return picture.pixels, label


def decode_pair(
    dataset: Dataset,
    name: str,
    label_name: str,
    image_data: tf.Tensor,
    label_data: tf.Tensor,
    value_range: tuple[float, ...] = (),
) -> tuple[Picture, np.ndarray]:
    """Decode an encoded image (string scalar) and its label.

    Args:
        dataset: The dataset, which defines the label values.
        name, label_name: The names in error messages.
        image_data, label_data: The encoded bytes, string scalars.
        value_range: (low, high): the values of images with more than 8 bits that become 0 and 255; may be empty.

    Returns:
        The image with its uint8 RGB pixels (H, W, 3), and the label's raw values, uint8 (H, W).

    Raises:
        DataError: The image or the label cannot be used; the message names the file, the value and the choices.
    """
    picture, label = read_picture(name, image_data, value_range), read_label(dataset, label_name, label_data)
    require_same_size(name, picture.pixels.shape[:2], label_name, label.shape)
    fault = undefined_pixels(dataset, label, statistics.value_counts(label), label_data)
    if fault:
        raise DataError(f"{label_name}: {fault}")
    return picture, label


def read_pair(split: Split, index: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Return one example's encoded image and label; raises DataError if a file cannot be read."""
    try:
        return split.read(tf.constant(index, tf.int64))
    except tf.errors.OpError as error:
        raise DataError(
            f"{split.names[index]} or its label {split.label_names[index]} cannot be read: {error_summary(error)}"
        ) from None


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


def read_label(dataset: Dataset, name: str, data: tf.Tensor) -> np.ndarray:
    """Return the raw uint8 values (H, W) of an encoded label.

    Raises DataError with `name` if the label is damaged or of another kind than the dataset's labels.
    """
    try:
        return _label_decoder(dataset.label_colors, dataset.other_colors)(data).numpy()
    except tf.errors.OpError as error:
        fault = _label_fault(dataset, tf.strings.substr(data, 0, PNG_HEADER).numpy(), error)
        raise DataError(f"{name}: {fault}") from None


@functools.cache
def _label_decoder(colors: tuple, other_colors: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return the compiled decoder of labels that store values, or colors of a table.

    Outside of a graph, each of the dozens of operations would cost as much as a small label.
    """
    return tf.function(
        lambda data: raw_labels.decode_values(colors, other_colors, data, in_python=True),
        input_signature=[tf.TensorSpec((), tf.string)],
        autograph=False,
    )


def _label_fault(dataset: Dataset, header: bytes, error: Exception) -> str:
    """Return why a label with these first bytes could not be decoded."""
    if len(header) < PNG_HEADER or not header.startswith(PNG_SIGNATURE):
        return "not a PNG file"
    kinds = {GRAY: "gray", 2: "RGB", PALETTE: "palette", 4: "gray with alpha", 6: "RGBA"}
    kind = f"{header[DEPTH]}-bit {kinds.get(header[KIND], header[KIND])} PNG"
    if dataset.label_colors:
        if header[DEPTH] > 8:
            return f"{kind}; a label with colors must have 8 bits per channel"
    elif header[KIND] != PALETTE and (header[KIND], header[DEPTH]) != (GRAY, 8):
        hint = ". If its colors stand for classes, list them in classes.txt, as in `#804080 road`"
        return f"{kind}; a label must be 8-bit gray or palette, one class id per pixel" + hint * (
            dataset.name == "folder" and header[DEPTH] == 8
        )
    if "two headers" in str(error):
        return "a PNG with two headers (IHDR chunks), which programs read differently; save it again"
    return f"damaged PNG ({error_summary(error)})"


def require_same_size(name: str, size: tuple[int, int], label_name: str, label_size: tuple[int, int]) -> None:
    """Raise DataError if the (height, width) of an image and its label differ."""
    if tuple(size) != tuple(label_size):
        turned = (
            "; an image with an EXIF orientation is read upright, so turn the label as well"
            if tuple(size) == tuple(label_size)[::-1]
            else ""
        )
        raise DataError(
            f"{label_name} is {label_size[1]}x{label_size[0]}, its image {name} {size[1]}x{size[0]}{turned}"
        )


def has_exif_orientation(data: tf.Tensor) -> bool:
    """Return whether an encoded image has an EXIF orientation other than upright."""
    try:
        # Only an image that needs care can have one.
        return bool(needs_care(data)) and picture_reader.read_orientation(data.numpy()) != 1
    # A damaged image is reported by its decoder.
    except tf.errors.OpError:
        return False


def stored_image(data: bytes, pixels: np.ndarray, value_range: tuple[float, ...] = ()) -> bytes:
    """Return an image as a record stores it, so that any process decodes it to its pixels (H, W, 3).

    Without a `value_range`, by which `pixels` were reduced, 16 bits are kept, so that a later one still applies.
    """
    if not decoder_choice.needs_care(tf.constant(data), in_python=False):
        return data
    values = None if value_range else picture_reader.read_picture(data, "image").values
    if values is None:
        return _png(pixels)
    if data[:8] == PNG_SIGNATURE and picture_reader.read_orientation(data) == 1:
        return data
    return tf.io.encode_png(values.astype(np.uint16).reshape(*values.shape[:2], -1)).numpy()


def stored_label(dataset: Dataset, data: bytes, label: np.ndarray) -> bytes:
    """Return a label as a record stores it, a gray PNG of its upright values (H, W)."""
    # Every reader takes a gray PNG as ids, but many turn a palette into colors.
    is_plain = not dataset.label_colors and data[KIND] != PALETTE
    return data if is_plain and not decoder_choice.may_be_turned(tf.constant(data)) else _png(label)


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def require_plain(split: Split, index: int) -> None:
    """Raise DataError if another process cannot decode an example."""
    image_data, label_data = read_pair(split, index)
    for name, data in ((split.names[index], image_data), (split.label_names[index], label_data)):
        is_label = data is label_data
        if decoder_choice.may_be_turned(data) or not is_label and decoder_choice.needs_care(data, in_python=False):
            way = (
                f"convert the set: python -m kseg.data prepare {split.dataset.name} --source {split.location} "
                "--directory OUT, then set data.directory=OUT"
            )
            if not is_label and read_picture(name, data, split.value_range).values is not None:
                way = "save it with 8 bits per channel"
            raise DataError(
                f"{name}: {ONLY_HERE}, not by a tf.data service (data.service): it has an orientation, more than 8 "
                f"bits, or a format that only Pillow reads; {way}"
            )


def error_summary(error: Exception) -> str:
    """Return the first informative line of an error's message, or its type's name."""
    lines = str(getattr(error, "message", error)).splitlines()
    # TensorFlow's messages begin with the location in the graph.
    informative = [
        line for line in lines if line and not line.startswith((" ", "\t", "Graph execution error", "Detected at"))
    ]
    return GRAPH_LOCATION.sub("", informative[0] if informative else type(error).__name__, count=1)[:200]


def _unreadable(name: str, reason: str) -> DataError:
    return DataError(f"{name}: not a readable JPEG, PNG, BMP, TIFF, WebP, GIF, AVIF or JPEG 2000 ({reason})")


def undefined_pixels(dataset: Dataset, label: np.ndarray, counts: np.ndarray, label_data: tf.Tensor) -> str:
    """Return a message on a label's undefined colors or raw values, or "".

    Args:
        dataset: The dataset.
        label: The raw values, uint8 (H, W).
        counts: Number of pixels of each raw value, (256,).
        label_data: The encoded label.
    """
    if dataset.label_colors:
        return raw_labels.unknown_colors(dataset, label, label_data.numpy())
    return unmapped_values(dataset, counts)


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
