"""Dilated 3x3 convolutions in TensorFlow that cost no more than their true work on CPUs.

Every tap of the kernel is a matrix product over the part of the map that it touches. A tap that lies outside the map
for all outputs costs nothing: at dilation 36 on 32 rows, only the middle row of the kernel is left.

On a CPU, `tf.nn.convolution` computes a dilated convolution on d * d interleaved parts of the padded map instead, as on
d * d small maps. That multiplies the padding too, and most of the work at dilation 36 is padding.

Maps are (H, N, W, C) here, because a slice of the leading axis is no copy.
"""

import math
from typing import NamedTuple

import tensorflow as tf

from kseg.models.shared_functions import call_shared_with_gradients

# Cost of a tap's product for one output and its sum, in half products, measured at 512 to 2048 channels.
TAP_COST = 2.1
# Smallest product of the dilation and the number of channels. TensorFlow's own form loses with growing dilations, and
# it has fewer operations.
MIN_DILATED_CHANNELS = 512
# In bfloat16 the sums weigh more beside the products, and the small dilations of backbones waste little.
SMALLEST_BFLOAT16_DILATION = 5
# Axes of the maps.
ROWS, COLUMNS = 0, 2


class Tap(NamedTuple):
    """A tap of a kernel along one axis, and the part of the map that it touches.

    Attributes:
        index: Index of the tap in the kernel.
        read: Start of the inputs under the tap.
        written: Start of the outputs that they contribute to.
        length: Number of these inputs; an integer or a scalar tensor, as the starts.
    """

    index: int
    read: int | tf.Tensor
    written: int | tf.Tensor
    length: int | tf.Tensor


def cropped_convolution(inputs: tf.Tensor, kernel: tf.Tensor, dilation: int) -> tf.Tensor:
    """Convolve with a dilated 3x3 kernel at stride 1 and the same size, tap by tap.

    Products of lower precision are added in float32.

    Args:
        inputs: Floating-point (N, H, W, C). N, H and W may be unknown until run time; C must be known.
        kernel: (3, 3, C, D) of the same dtype.
        dilation: Distance between the kernel's taps in pixels.

    Returns:
        (N, H, W, D) of the same dtype, differentiable with respect to `inputs` and `kernel`.
    """
    return call_shared_with_gradients(_outputs, _gradients, (inputs, kernel), dilation)


def is_faster(kernel: tuple, dilations: tuple[int, int], dtype: str) -> bool:
    """Return whether products tap by tap are faster than TensorFlow's own dilated convolution.

    Args:
        kernel: Shape (3, 3, C, D) of the kernel.
        dilations: Dilation of both axes.
        dtype: Name of the dtype of inputs and kernel.
    """
    dilation = dilations[0]
    smallest = {"float32": 2, "bfloat16": SMALLEST_BFLOAT16_DILATION}
    return (
        dilation == dilations[1]
        and dtype in smallest
        and dilation >= smallest[dtype]
        and dilation * min(kernel[2:]) >= MIN_DILATED_CHANNELS
    )


def cost(height: int, width: int, dilation: int) -> float:
    """Return the cost of a map, in half products of channels."""
    return TAP_COST * math.prod(length + 2 * _shared_length(length, dilation) for length in (height, width))


def taps_of_axis(length: int | tf.Tensor, dilation: int) -> list[Tap]:
    """Return the taps that touch an axis, the middle one first.

    If the length is known only at run time, all three are returned, and some may have the length 0.
    """
    shared = _shared_length(length, dilation)
    taps = [Tap(1, 0, 0, length)]
    if isinstance(length, int) and shared == 0:
        return taps
    return [*taps, Tap(0, 0, length - shared, shared), Tap(2, length - shared, 0, shared)]


def _shared_length(length: int | tf.Tensor, dilation: int) -> int | tf.Tensor:
    """Return how many positions of an axis still lie on it after a shift by the dilation."""
    return max(length - dilation, 0) if isinstance(length, int) else tf.maximum(length - dilation, 0)


def _outputs(inputs: tf.Tensor, kernel: tf.Tensor, dilation: int) -> tf.Tensor:
    """Return the outputs of a convolution."""
    rows, columns = _taps_of_map(inputs, dilation)
    return _samples_first(_sum_of_taps(_rows_first(inputs), kernel, rows, columns, transpose_kernel=False))


def _gradients(inputs: tf.Tensor, kernel: tf.Tensor, upstream: tf.Tensor, dilation: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the gradients of inputs and kernel by that of the outputs."""
    rows, columns = _taps_of_map(inputs, dilation)
    upstream_map = _rows_first(upstream)
    kernel_gradient = _kernel_gradient(_rows_first(inputs), upstream_map, rows, columns)
    # The sums for both gradients would otherwise be in memory at the same time.
    with tf.control_dependencies([kernel_gradient]):
        input_gradient = _sum_of_taps(
            upstream_map,
            kernel,
            [_reversed(tap) for tap in rows],
            [_reversed(tap) for tap in columns],
            transpose_kernel=True,
        )
    return _samples_first(input_gradient), kernel_gradient


def _taps_of_map(inputs: tf.Tensor, dilation: int) -> list[list[Tap]]:
    """Return the taps that touch the rows and those that touch the columns of (N, H, W, C) inputs."""
    sizes = (tf.shape(inputs)[axis] if inputs.shape[axis] is None else inputs.shape[axis] for axis in (1, 2))
    return [taps_of_axis(size, dilation) for size in sizes]


def _reversed(tap: Tap) -> Tap:
    """Return the tap that carries a gradient from the outputs back to the inputs."""
    return tap._replace(read=tap.written, written=tap.read)


def _sum_of_taps(
    values: tf.Tensor, kernel: tf.Tensor, rows: list[Tap], columns: list[Tap], transpose_kernel: bool
) -> tf.Tensor:
    """Return the sum of all taps' products with a map, each where it is written.

    Only the sums and one product are in memory at a time.

    Args:
        values: Map (H, N, W, C), or (H, N, W, D) if `transpose_kernel`.
        kernel: (3, 3, C, D).
        rows: Taps of the kernel's first axis that touch the map.
        columns: Taps of the kernel's second axis that touch the map.
        transpose_kernel: Whether the products are those with the transposed matrices (D, C).

    Returns:
        Map (H, N, W, D), or (H, N, W, C) if `transpose_kernel`.
    """
    matrices = _matrices(kernel)
    depth = kernel.shape[2 if transpose_kernel else 3]
    total = None
    for column in columns:
        with tf.control_dependencies([] if total is None else [total]):
            part = _crop(values, COLUMNS, column.read, column.length)
        sums = None
        for row in rows:
            with tf.control_dependencies([part] if sums is None else [sums]):
                touched = _crop(part, ROWS, row.read, row.length)
                products = tf.matmul(
                    _flat(touched), matrices[3 * row.index + column.index], transpose_b=transpose_kernel
                )
            products = tf.cast(tf.reshape(products, [*_shape(touched)[:3], depth]), tf.float32)
            sums = _added(sums, products, ROWS, row)
        total = _added(total, sums, COLUMNS, column)
    return tf.cast(total, values.dtype)


def _kernel_gradient(inputs: tf.Tensor, upstream: tf.Tensor, rows: list[Tap], columns: list[Tap]) -> tf.Tensor:
    """Return the kernel's gradient (3, 3, C, D); taps outside the map have none.

    Args:
        inputs: Map (H, N, W, C).
        upstream: Map (H, N, W, D).
        rows: Taps of the kernel's first axis that touch the map.
        columns: Taps of the kernel's second axis that touch the map.
    """
    channels, filters = inputs.shape[-1], upstream.shape[-1]
    gradients = {}
    for column in columns:
        with tf.control_dependencies(list(gradients.values())[-1:]):
            read = _crop(inputs, COLUMNS, column.read, column.length)
            written = _crop(upstream, COLUMNS, column.written, column.length)
        for row in rows:
            gradients[row.index, column.index] = tf.matmul(
                _flat(_crop(read, ROWS, row.read, row.length)),
                _flat(_crop(written, ROWS, row.written, row.length)),
                transpose_a=True,
            )
    untouched = tf.zeros((channels, filters), inputs.dtype)
    gradient = tf.concat([gradients.get((row, column), untouched) for row in range(3) for column in range(3)], 0)
    return tf.reshape(gradient, (3, 3, channels, filters))


def _added(total: tf.Tensor | None, values: tf.Tensor, axis: int, tap: Tap) -> tf.Tensor:
    """Add values to a total where a tap writes them along an axis; the middle tap starts the total."""
    if total is None:
        return values
    # Shifted by a tap, the outputs lack as many positions at one end as the inputs at the other.
    return total + tf.pad(values, [[tap.written, tap.read] if index == axis else [0, 0] for index in range(4)])


def _crop(values: tf.Tensor, axis: int, start: int | tf.Tensor, length: int | tf.Tensor) -> tf.Tensor:
    """Return a range of one axis of a map."""
    if isinstance(length, int) and length == values.shape[axis]:
        return values
    begin = [start if index == axis else 0 for index in range(4)]
    cropped = tf.slice(values, begin, [length if index == axis else -1 for index in range(4)])
    # TensorFlow does not infer sizes that do not depend on a start or length known only at run time.
    known = length if isinstance(length, int) else None
    cropped.set_shape([known if index == axis else size for index, size in enumerate(values.shape)])
    return cropped


def _flat(values: tf.Tensor) -> tf.Tensor:
    """Return the positions of a map as rows of a matrix."""
    return tf.reshape(values, (-1, values.shape[-1]))


def _matrices(kernel: tf.Tensor) -> list[tf.Tensor]:
    """Return the nine matrices (C, D) of a kernel, row by row."""
    return tf.unstack(tf.reshape(kernel, (9, *kernel.shape[2:])))


def _rows_first(values: tf.Tensor) -> tf.Tensor:
    """Turn (N, H, W, C) into (H, N, W, C)."""
    return _swapped(values, values.shape[0])


def _samples_first(values: tf.Tensor) -> tf.Tensor:
    """Turn (H, N, W, C) into (N, H, W, C)."""
    return _swapped(values, values.shape[1])


def _swapped(values: tf.Tensor, samples: int | None) -> tf.Tensor:
    """Swap the first two axes; a single sample needs no copy."""
    if samples == 1:
        first, second, *rest = _shape(values)
        return tf.reshape(values, [second, first, *rest])
    return tf.transpose(values, (1, 0, 2, 3))


def _shape(values: tf.Tensor) -> list[int | tf.Tensor]:
    """Return a tensor's shape for tf.reshape, as integers where they are known and as -1 if only one is not."""
    if values.shape.as_list().count(None) <= 1:
        return [-1 if size is None else size for size in values.shape]
    return [size if known is None else known for known, size in zip(values.shape, tf.unstack(tf.shape(values)))]
