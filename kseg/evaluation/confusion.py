"""Count the confusion matrices of a batch, over all pixels and over bands around the label edges."""

import math

from keras import KerasTensor, ops
from keras.backend import standardize_dtype

from kseg.config.sections import IGNORED
from kseg.evaluation.metrics import BOUNDARY_WIDTHS
from kseg.models.layers import index_dtype, on_tensorflow


def confusion(labels: KerasTensor, predictions: KerasTensor, classes: int) -> KerasTensor:
    """Count the confusion matrix of label and prediction maps.

    Pixels whose label is 255 are ignored. A pixel whose label or prediction is any other id outside the classes is not
    counted either, so the sum of the matrix is then less than the number of labeled pixels.

    Args:
        labels: Class ids, integer tensor of any shape.
        predictions: Class ids, integer tensor of the same shape.
        classes: Number of classes C, at most 255.

    Returns:
        int64 (C, C); rows are labels, columns are predictions. (On JAX int32 unless jax_enable_x64 is set.)

    Raises:
        ValueError: The shapes differ, or there are more than 255 classes.

    Example:
        >>> import numpy as np
        >>> from kseg.evaluation.confusion import confusion
        >>> print(np.asarray(confusion(np.array([0, 0, 1, 255]), np.array([0, 1, 1, 0]), classes=2)))
        [[1 1]
         [0 1]]
    """
    return _matrices(labels, predictions, classes, 1, None)[0]


def banded_confusion(labels: KerasTensor, predictions: KerasTensor, classes: int) -> KerasTensor:
    """Count a confusion matrix for each boundary band.

    The bands are disjoint, and the sum of their matrices is that of `confusion`, which also defines the pixels that
    are not counted. `boundary_bands` defines the bands.

    Args:
        labels: Class ids, integer (N, H, W).
        predictions: Class ids, integer (N, H, W).
        classes: Number of classes C, at most 255.

    Returns:
        int64 (len(BOUNDARY_WIDTHS) + 1, C, C), narrowest band first; the last matrix is of the pixels outside all
        bands.

    Raises:
        ValueError: The shapes differ, or there are more than 255 classes.

    Example:
        >>> import numpy as np
        >>> from kseg.evaluation.confusion import banded_confusion
        >>> labels = np.array([[[0, 0, 0, 1, 1, 1]]])
        >>> matrices = np.asarray(banded_confusion(labels, labels, classes=2))
        >>> matrices.shape, matrices[0].tolist(), matrices[-1].tolist()
        ((6, 2, 2), [[1, 0], [0, 1]], [[2, 0], [0, 2]])
    """
    return _matrices(labels, predictions, classes, len(BOUNDARY_WIDTHS) + 1, boundary_bands(labels))


def _matrices(
    labels: KerasTensor, predictions: KerasTensor, classes: int, count: int, bands: KerasTensor | None
) -> KerasTensor:
    if classes > IGNORED:
        raise ValueError(
            f"label {IGNORED} marks ignored pixels, so there can be at most {IGNORED} classes, got {classes}"
        )
    shapes = tuple(labels.shape), tuple(predictions.shape)
    # Otherwise a single row could be broadcast. A graph for any size has None for unknown dimensions.
    if len(shapes[0]) != len(shapes[1]) or any(a != b for a, b in zip(*shapes) if None not in (a, b)):
        raise ValueError(f"labels and predictions differ in shape: {shapes[0]} and {shapes[1]}")
    # Ids outside the classes are counted in a margin around each matrix, which is then cut off. That is faster than
    # gathering or masking the other pixels.
    side = classes + 2
    cells = _clipped(labels, classes) * side + _clipped(predictions, classes) + (side + 1)
    if bands is not None:
        cells = cells + bands * side**2
    histogram = ops.cast(_histogram(ops.reshape(cells, (-1,)), count * side**2), "int64")
    return ops.reshape(histogram, (count, side, side))[:, 1:-1, 1:-1]


def _histogram(values: KerasTensor, size: int) -> KerasTensor:
    """Count each number below `size` in integers (N,), all of which lie in that range, as int32."""
    if not on_tensorflow():
        return ops.bincount(values, minlength=size)
    import tensorflow as tf

    # tf.math.bincount would first read all values twice, for their minimum and maximum.
    return tf.raw_ops.DenseBincount(input=values, size=size, weights=tf.constant([], tf.int32), binary_output=False)


def _clipped(ids: KerasTensor, classes: int) -> KerasTensor:
    """Return ids in the `index_dtype`, with -1 or `classes` for ids outside the classes."""
    dtype, counted = standardize_dtype(ids.dtype), index_dtype()
    if dtype == "uint8":
        return ops.minimum(ops.cast(ids, counted), classes)
    # 64-bit ids are clipped before the cast: otherwise 2**32 would become class 0.
    return ops.cast(ops.clip(ops.cast(ids, "int64" if dtype.endswith("64") else counted), -1, classes), counted)


def boundary_bands(labels: KerasTensor) -> KerasTensor:
    """Assign each pixel to the narrowest boundary band that contains it.

    An edge lies between two 4-neighbors with different labels, and never at the image border. 255 counts as a label of
    its own; in VOC it surrounds every object. The band of width w contains the pixels whose chessboard distance to an
    edge is at most max(1, round(w * diagonal)) pixels; the pixels at the edge have distance 1.

    Args:
        labels: Class ids, integer (N, H, W).

    Returns:
        `index_dtype` (N, H, W): index into BOUNDARY_WIDTHS, or its length for pixels outside all bands.

    Example:
        >>> import numpy as np
        >>> labels = np.zeros((1, 1, 100), "int32")
        >>> labels[..., 50:] = 1
        >>> [int(band) for band in boundary_bands(labels)[0, 0, 49:54]]
        [0, 0, 4, 5, 5]
    """
    height, width = ops.shape(labels)[1:3]
    radii = _radii(height, width)
    # `_widen` rolls the map. Padding by the widest radius keeps pixels from wrapping around to the opposite border.
    near = ops.pad(_at_edges(labels), ((0, 0), (0, radii[-1]), (0, radii[-1])))
    reach, level = 1, 0
    for radius in radii:
        near, reach = _widen(near, reach, radius)
        level = level + ops.cast(ops.logical_not(near), "uint8")
    return ops.cast(level[:, :height, :width], index_dtype())


def _radii(height: int | KerasTensor, width: int | KerasTensor) -> list:
    """Return the radius of each band in pixels, for sizes known now or only when the graph runs."""
    if isinstance(height, int) and isinstance(width, int):
        diagonal = math.sqrt(height**2 + width**2)
        return [max(1, round(fraction * diagonal)) for fraction in BOUNDARY_WIDTHS]
    # float64 and rounding half to even match Python: in 3:4 images many of the products are halves.
    diagonal = ops.sqrt(ops.cast(height, "float64") ** 2 + ops.cast(width, "float64") ** 2)
    return [ops.maximum(1, ops.cast(ops.round(fraction * diagonal), "int32")) for fraction in BOUNDARY_WIDTHS]


def _at_edges(labels: KerasTensor) -> KerasTensor:
    """Return bool (N, H, W): whether a pixel has a 4-neighbor with another label."""
    rows, columns = ops.not_equal(labels[:, 1:], labels[:, :-1]), ops.not_equal(labels[:, :, 1:], labels[:, :, :-1])
    no_row, no_column = ops.zeros_like(labels[:, :1], "bool"), ops.zeros_like(labels[:, :, :1], "bool")
    return (
        ops.concatenate([rows, no_row], 1)
        | ops.concatenate([no_row, rows], 1)
        | ops.concatenate([columns, no_column], 2)
        | ops.concatenate([no_column, columns], 2)
    )


def _widen(near: KerasTensor, reach: int, radius: int) -> tuple[KerasTensor, int]:
    """Extend the pixels within `reach` of an edge to those within `radius`; return them and `radius`."""

    def step(near, reach):
        # Copies of a square with side 2 * reach - 1 leave no gap up to this shift, so each step about triples it.
        shift = ops.minimum(2 * reach - 1, radius - reach)
        for axis in (1, 2):
            near = near | _rolled(near, shift, axis) | _rolled(near, -shift, axis)
        return near, reach + shift

    return ops.while_loop(lambda near, reach: reach < radius, step, (near, reach))


def _rolled(mask: KerasTensor, shift: KerasTensor, axis: int) -> KerasTensor:
    """Return a mask (N, H, W) rolled along an axis."""
    if not on_tensorflow():
        return ops.roll(mask, shift, axis)
    # tf.roll has no GPU kernel for masks.
    begin = (slice(None),) * axis
    return ops.concatenate([mask[(*begin, slice(-shift, None))], mask[(*begin, slice(None, -shift))]], axis)
