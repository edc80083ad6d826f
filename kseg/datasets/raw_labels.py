"""Decode the labels of a dataset to raw values, whether they store values or colors."""

import io

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

from kseg.datasets.registry import UNMAPPED, Dataset
from kseg.images.decoding import decode_label
from kseg.images.label_colors import decode_color_label

COLORS_LISTED = 3
# Labels with more unknown colors than this were probably resized with interpolation or compressed with loss.
MANY_COLORS = 50


def decode_raw_label(dataset: Dataset, data: tf.Tensor, in_python: bool) -> tf.Tensor:
    """Decode a label to the raw values that the dataset's label table maps, in a graph or outside of one.

    Args:
        dataset: The dataset; its `label_colors` decide whether labels store values or colors.
        data: The encoded label, string of shape ().
        in_python: Whether the graph runs in this process.

    Returns:
        The raw values, uint8 of shape (H, W). A color that the dataset does not list is UNMAPPED.
    """
    return decode_values(dataset.label_colors, dataset.other_colors, data, in_python)


def decode_values(colors: tuple, other_colors: int, data: tf.Tensor, in_python: bool) -> tf.Tensor:
    """Decode a label as `decode_raw_label` does, by a dataset's `label_colors` and `other_colors`."""
    if colors:
        return decode_color_label(data, colors, other_colors, in_python)
    return decode_label(data, in_python)


def unknown_colors(dataset: Dataset, label: np.ndarray, data: bytes) -> str:
    """Return a message on the colors of a label that the dataset does not list, or "".

    Args:
        dataset: A dataset whose labels store colors.
        label: The raw values, uint8 (H, W).
        data: The encoded label.
    """
    rows, columns = np.nonzero(label == UNMAPPED)
    if not rows.size:
        return ""
    with Image.open(io.BytesIO(data)) as opened:
        is_gray = opened.mode in ("1", "L")
        colors = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))[rows, columns]
    found, first, counts = np.unique(colors, axis=0, return_index=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:COLORS_LISTED]
    listed = ", ".join(
        f"#{found[index].tobytes().hex()} ({counts[index]} pixel{'s' * int(counts[index] > 1)}, first at column "
        f"{columns[first[index]]}, row {rows[first[index]]})"
        for index in order
    )
    more = f" and {len(found) - len(order)} more" if len(found) > len(order) else ""
    example = f"#{found[order[0]].tobytes().hex()}"
    text = (
        f"color{'s' * (len(found) > 1)} {listed}{more} not in classes.txt; add a line such as `{example} NAME` or "
        f"`{example} ignore`, or ignore all other colors with `* ignore`"
    )
    if is_gray:
        text += ". If the gray values are class ids, write the colors in classes.txt behind the names"
    elif len(found) > MANY_COLORS:
        text += ". So many colors come from resizing with interpolation or from a lossy format"
    return text
