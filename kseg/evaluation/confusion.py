"""Count confusion matrices of a batch, over all pixels and over bands around the edges of the labels."""

import math

from keras import ops
from keras.backend import standardize_dtype

from kseg.config import IGNORED
from kseg.models.layers import on_tensorflow

# Bands around the edges of the label, as shares of the picture's diagonal, and the one of the headline figure.
BOUNDARY_WIDTHS = (0.00125, 0.0025, 0.005, 0.01, 0.02)
BOUNDARY_WIDTH = 0.005


def confusion(labels, predictions, classes: int):
    """Return the int64 (classes, classes) confusion matrix, rows truth and columns prediction, in Keras operations.

    Both maps are integer ids of one shape; pixels whose label is 255 are left out. So is a label or a prediction that
    is no class: it never counts as another, and a matrix that holds fewer pixels than are labelled tells of it.
    Raises ValueError where the maps differ in size, or 255 would be a class. (JAX has int64 only where jax_enable_x64
    is set, else int32.)
    """
    return _matrices(labels, predictions, classes, 1, None)[0]


def banded_confusion(labels, predictions, classes: int):
    """Return the int64 (len(BOUNDARY_WIDTHS) + 1, classes, classes) confusion matrices of disjoint boundary bands.

    Narrowest band first, and last what lies outside of all; their sum over the first axis is `confusion`'s matrix.
    Both maps are integer ids (N, H, W), counted as there.
    """
    return _matrices(labels, predictions, classes, len(BOUNDARY_WIDTHS) + 1, boundary_bands(labels))


def _matrices(labels, predictions, classes: int, count: int, bands):
    if classes > IGNORED:
        raise ValueError(f"{classes} classes: label {IGNORED} is none, so there can be {IGNORED} at most")
    # Else one row could stand for all of them. A graph of any size knows no more than the number of axes.
    shapes = tuple(labels.shape), tuple(predictions.shape)
    if len(shapes[0]) != len(shapes[1]) or any(a != b for a, b in zip(*shapes) if None not in (a, b)):
        raise ValueError(f"labels and predictions differ in size: {shapes[0]} and {shapes[1]}")
    # Each matrix has a rim, cut off in the end, for what is no class: cheaper than gathering or masking the others.
    side = classes + 2
    cells = _clipped(labels, classes) * side + _clipped(predictions, classes) + (side + 1)
    if bands is not None:
        cells = cells + bands * side ** 2
    found = _histogram(ops.reshape(cells, (-1,)), count * side ** 2)
    return ops.cast(ops.reshape(found, (count, side, side))[:, 1:-1, 1:-1], "int64")


def _histogram(values, size: int):
    """Return how often each number below `size` stands in int32 values (N,), all of which are below it."""
    if not on_tensorflow():
        return ops.bincount(values, minlength=size)
    import tensorflow as tf

    # The kernel itself: tf.math.bincount looks at all values twice before, for the smallest and the largest.
    return tf.raw_ops.DenseBincount(input=values, size=size, weights=tf.constant([], tf.int32), binary_output=False)


def _clipped(ids, classes: int):
    dtype = standardize_dtype(ids.dtype)
    if dtype == "uint8":
        return ops.minimum(ops.cast(ids, "int32"), classes)
    # Narrowed only when clipped: 2 ** 32 is not class 0.
    return ops.cast(ops.clip(ops.cast(ids, "int64" if dtype.endswith("64") else "int32"), -1, classes), "int32")


def boundary_bands(labels):
    """Return by pixel the int32 index in BOUNDARY_WIDTHS of the narrowest band that holds it, their number outside.

    Labels are integers (N, H, W). An edge lies between two 4-neighbours of different label, where 255 is a label like
    others (in VOC it rings every object), and never at the picture's frame. A band of width w holds the pixels whose
    chessboard distance to an edge is at most max(1, round(w * diagonal)), 1 being that of the pixels beside it.
    """
    height, width = ops.shape(labels)[1:3]
    radii = _radii(height, width)
    # What is near is rolled about, on a torus larger than the picture by the widest band, so that nothing comes in
    # at the other side.
    near = ops.pad(_beside_edges(labels), ((0, 0), (0, radii[-1]), (0, radii[-1])))
    reach, level = 1, 0
    for radius in radii:
        near, reach = _widen(near, reach, radius)
        level = level + ops.cast(ops.logical_not(near), "uint8")
    return ops.cast(level[:, :height, :width], "int32")


def _radii(height, width) -> list:
    """Return each band's reach in pixels, for sizes that are known and for those that a graph only sees later."""
    if isinstance(height, int) and isinstance(width, int):
        diagonal = math.sqrt(height ** 2 + width ** 2)
        return [max(1, round(share * diagonal)) for share in BOUNDARY_WIDTHS]
    # In float64 and rounded to even as Python does: in pictures of 3 to 4 the products are often halves.
    diagonal = ops.sqrt(ops.cast(height, "float64") ** 2 + ops.cast(width, "float64") ** 2)
    return [ops.maximum(1, ops.cast(ops.round(share * diagonal), "int32")) for share in BOUNDARY_WIDTHS]


def _beside_edges(labels):
    rows, columns = ops.not_equal(labels[:, 1:], labels[:, :-1]), ops.not_equal(labels[:, :, 1:], labels[:, :, :-1])
    no_row, no_column = ops.zeros_like(labels[:, :1], "bool"), ops.zeros_like(labels[:, :, :1], "bool")
    return (ops.concatenate([rows, no_row], 1) | ops.concatenate([no_row, rows], 1)
            | ops.concatenate([columns, no_column], 2) | ops.concatenate([no_column, columns], 2))


def _widen(near, reach, radius):
    """Return what is within `radius` of an edge, from what is within `reach` of one, and `radius`."""
    def step(near, reach):
        # So far copies of a square of side 2 * reach - 1 leave no gap: about three times as wide in each step.
        shift = ops.minimum(2 * reach - 1, radius - reach)
        for axis in (1, 2):
            near = near | ops.roll(near, shift, axis) | ops.roll(near, -shift, axis)
        return near, reach + shift

    return ops.while_loop(lambda near, reach: reach < radius, step, (near, reach))
