"""3x3 convolutions with Winograd's minimal filtering F(2x2, 3x3) in TensorFlow (Lavin & Gray 2015, arXiv:1509.09308).

The four outputs of a 2x2 tile need 16 products of channels instead of 36, and all products are plain matrix products,
which run at a CPU's peak rate. The algorithm adds sums over slices, which pay off as soon as there are many channels.

Images stay NHWC. Along both axes a tile has four inputs, spaced d apart at dilation d, and two outputs. Tiles are
slices of the axis reshaped to (pairs, 2, d), so a dilated convolution costs as much as any other one.
"""

import math

import numpy as np
import tensorflow as tf

from kseg.models import cropped_taps
from kseg.models.shared_functions import call_shared, call_shared_with_gradients

# Matrix G of section 4.1 turns the three taps of a kernel's axis into four factors.
FACTORS = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
# The Kronecker product transforms both axes at once.
COLUMN_FACTORS = np.kron(FACTORS, FACTORS).reshape(4, 4, 9)
# With fewer input or output channels, the sums take the time that the products save.
MIN_CHANNELS = 128
# Cost per output in half products, measured at 256 channels: four products and the sums, against nine products.
TILED_COST, DIRECT_COST = 11, 18
# Backbones use dilations up to this one, and their maps are rarely small compared with the tiles. The larger
# dilations of a pyramid may be large compared with a map.
MAX_BACKBONE_DILATION = 4


def is_faster(inputs: tuple, kernel: tuple, dilations: tuple[int, int]) -> bool:
    """Return whether Winograd's algorithm is faster than a direct convolution and than one tap by tap.

    The algorithm pads the map to whole tiles of twice the dilation, which is expensive if the map is small compared
    with a tile. Where the size of the map is unknown, the answer for a large dilation is no: on a large map, products
    tap by tap take at most a quarter more time.

    Args:
        inputs: Shape (N, H, W, C) of the inputs; H and W may be None.
        kernel: Shape (3, 3, C, D) of the kernel.
        dilations: Dilation of both axes.
    """
    if min(kernel[2:]) < MIN_CHANNELS or dilations[0] != dilations[1]:
        return False
    dilation, sizes = dilations[0], inputs[1:3]
    if None in sizes:
        return dilation <= MAX_BACKBONE_DILATION
    computed = math.prod(2 * dilation * num_tiles(length, dilation) for length in sizes)
    # A dilated convolution with so many channels is otherwise computed tap by tap.
    other = DIRECT_COST * math.prod(sizes) if dilation == 1 else cropped_taps.cost(*sizes, dilation)
    return TILED_COST * computed < other


def winograd_convolution(inputs: tf.Tensor, kernel: tf.Tensor, dilation: int = 1) -> tf.Tensor:
    """Convolve with a 3x3 kernel at stride 1 and the same size, by Winograd's algorithm.

    The gradients use the same algorithm.

    Args:
        inputs: Float32 (N, H, W, C). N, H and W may be unknown until run time; C must be known.
        kernel: Float32 (3, 3, C, D).
        dilation: Distance between the kernel's taps in pixels.

    Returns:
        Float32 (N, H, W, D), differentiable with respect to `inputs` and `kernel`.
    """
    return call_shared_with_gradients(_outputs, _gradients, (inputs, kernel), dilation)


def num_tiles(length: int | tf.Tensor, dilation: int) -> int | tf.Tensor:
    """Return the number of tiles of 2 * dilation outputs that cover an axis."""
    return -(-length // (2 * dilation))


def _outputs(inputs: tf.Tensor, kernel: tf.Tensor, dilation: int) -> tf.Tensor:
    """Return the outputs.

    The four factors of the rows are processed one at a time, so only a quarter of the tiles is in memory.
    """
    joined = []
    for rows, columns in zip(_split_rows(inputs, dilation), COLUMN_FACTORS):
        with tf.control_dependencies(joined[-1:]):
            joined.append(call_shared(_row_outputs, (rows, _kernel_factors(kernel, columns)), dilation))
    height, width = _shape(inputs)[1:3]
    return _join(joined, _shape(joined[0]), 1, dilation)[:, :height, :width]


def _row_outputs(rows: tf.Tensor, factors: tf.Tensor, dilation: int) -> tf.Tensor:
    """Return the outputs (N, H / 2, W, D) of one factor of the rows.

    Args:
        rows: (N, H / 2, W + padding, C), one of the four combinations of the rows of the padded inputs.
        factors: (4, C, D), the kernel's factors along the columns.
        dilation: distance between the taps in pixels.
    """
    products = [tf.matmul(_flat(part), factor) for part, factor in zip(_split(rows, 2, dilation), tf.unstack(factors))]
    return _join(products, _halved_columns(rows, factors.shape[2], dilation), 2, dilation)


def _gradients(inputs: tf.Tensor, kernel: tf.Tensor, upstream: tf.Tensor, dilation: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the gradients of inputs and kernel.

    They recompute the tiles instead of storing them, since tiles are four times as large as the inputs.
    """
    height, width = _shape(inputs)[1:3]
    padded = tf.pad(upstream, [[0, 0], *([0, _missing(length, dilation)] for length in (height, width)), [0, 0]])
    # The dependency keeps the graph optimizer from reusing the tiles of the forward pass, which would then have to
    # stay in memory.
    with tf.control_dependencies([upstream]):
        recomputed = _split_rows(inputs, dilation)
    kernel_gradient, split = tf.zeros((9, math.prod(kernel.shape[2:]))), []
    batch, padded_height, padded_width, filters = _shape(padded)
    row_upstreams = [
        tf.reshape(part, (batch, padded_height // 2, padded_width, filters))
        for part in _join_adjoint(padded, 1, dilation)
    ]
    for rows, row_upstream, columns in zip(recomputed, row_upstreams, COLUMN_FACTORS):
        with tf.control_dependencies([kernel_gradient, *split[-1:]]):
            factors_gradient, input_part = call_shared(
                _row_gradients, (rows, _kernel_factors(kernel, columns), row_upstream), dilation
            )
        kernel_gradient += tf.matmul(columns, factors_gradient, transpose_a=True)
        split.append(input_part)
    input_gradient = _split_adjoint(split, _shape(split[0]), 1, dilation)
    input_gradient = input_gradient[:, dilation : dilation + height, dilation : dilation + width]
    return input_gradient, tf.reshape(kernel_gradient, kernel.shape)


def _row_gradients(
    rows: tf.Tensor, factors: tf.Tensor, row_upstream: tf.Tensor, dilation: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the gradients of the kernel's factors (4, C * D) and of the rows for one factor of the rows.

    Args:
        rows, factors, dilation: as for `_row_outputs`.
        row_upstream: (N, H / 2, W, D), the gradient of the outputs of `_row_outputs`.
    """
    product_gradients = [_flat(part) for part in _join_adjoint(row_upstream, 2, dilation)]
    products = tf.stack(
        [
            tf.matmul(_flat(part), gradient, transpose_a=True)
            for part, gradient in zip(_split(rows, 2, dilation), product_gradients)
        ]
    )
    factors_gradient = tf.reshape(products, (4, -1))
    # The products of both gradients would otherwise be in memory at the same time.
    with tf.control_dependencies([factors_gradient]):
        products = [
            tf.matmul(gradient, factor, transpose_b=True)
            for gradient, factor in zip(product_gradients, tf.unstack(factors))
        ]
    return factors_gradient, _split_adjoint(products, _halved_columns(rows, factors.shape[1], dilation), 2, dilation)


def _split_rows(inputs: tf.Tensor, dilation: int) -> list[tf.Tensor]:
    """Pad inputs to whole tiles along both axes and return the four combinations of their rows."""
    paddings = [[dilation, dilation + _missing(length, dilation)] for length in _shape(inputs)[1:3]]
    padded = tf.pad(inputs, [[0, 0], *paddings, [0, 0]])
    batch, height, width, channels = _shape(padded)
    return [tf.reshape(part, (batch, height // 2 - dilation, width, channels)) for part in _split(padded, 1, dilation)]


def _missing(length: int | tf.Tensor, dilation: int) -> int | tf.Tensor:
    """Return how much an axis lacks to consist of whole tiles."""
    return 2 * dilation * num_tiles(length, dilation) - length


def _kernel_factors(kernel: tf.Tensor, columns: np.ndarray) -> tf.Tensor:
    """Return the factors (4, C, D) of a kernel along the columns by their matrix (4, 9) for one factor of the rows."""
    return tf.reshape(tf.matmul(columns, tf.reshape(kernel, (9, -1))), (4, *kernel.shape[2:]))


def _flat(values: tf.Tensor) -> tf.Tensor:
    """Return (..., C) values as the rows of a matrix."""
    return tf.reshape(values, (-1, values.shape[-1]))


def _shape(values: tf.Tensor) -> list[int | tf.Tensor]:
    """Return a tensor's shape for tf.reshape, as integers where they are known and as -1 if only N is not."""
    if None not in values.shape[1:]:
        return [-1, *values.shape[1:]]
    return [size if known is None else known for known, size in zip(values.shape, tf.unstack(tf.shape(values)))]


def _halved_columns(rows: tf.Tensor, channels: int, dilation: int) -> list[int | tf.Tensor]:
    """Return the shape of the products of padded rows, each tile of which has one product in place of two outputs."""
    batch, height, width, _ = _shape(rows)
    return [batch, height, width // 2 - dilation, channels]


def _split(values: tf.Tensor, axis: int, dilation: int) -> list[tf.Tensor]:
    """Return the four combinations of the tiles' inputs (B^T of section 4.1) along an axis of padded inputs.

    That axis becomes two, (tiles, dilation).
    """
    shape, before = _shape(values), (slice(None),) * axis
    pairs = tf.reshape(values, [*shape[:axis], shape[axis] // (2 * dilation), 2, dilation, *shape[axis + 1 :]])
    first, second, third, fourth = (
        pairs[(*before, indices, half)] for indices in (slice(None, -1), slice(1, None)) for half in (0, 1)
    )
    return [first - third, second + third, third - second, second - fourth]


def _split_adjoint(parts: list[tf.Tensor], shape: list[int | tf.Tensor], axis: int, dilation: int) -> tf.Tensor:
    """Apply the transpose of `_split` to parts of a shape: sum the contributions of all tiles to their inputs."""
    zero, one, two, three = (tf.reshape(part, _tiled(shape, axis, dilation)) for part in parts)

    def padded(part, before, after):
        return tf.pad(part, [[before, after] if index == axis else [0, 0] for index in range(len(shape) + 1)])

    pairs = tf.stack(
        [padded(zero, 0, 1) + padded(one + two - zero, 1, 0), padded(one - two + three, 0, 1) - padded(three, 1, 0)],
        axis + 1,
    )
    return tf.reshape(pairs, [*shape[:axis], 2 * (shape[axis] + dilation), *shape[axis + 1 :]])


def _join(products: list[tf.Tensor], shape: list[int | tf.Tensor], axis: int, dilation: int) -> tf.Tensor:
    """Return the two outputs of every tile (A^T of section 4.1) in their order along an axis of products of a shape."""
    zero, one, two, three = (tf.reshape(product, _tiled(shape, axis, dilation)) for product in products)
    pairs = tf.stack([zero + (one + two), (one - two) - three], axis + 1)
    return tf.reshape(pairs, [*shape[:axis], 2 * shape[axis], *shape[axis + 1 :]])


def _join_adjoint(values: tf.Tensor, axis: int, dilation: int) -> list[tf.Tensor]:
    """Apply the transpose of `_join`: return the gradients of the four products, the axis as (tiles, dilation)."""
    shape, before = _shape(values), (slice(None),) * (axis + 1)
    pairs = tf.reshape(values, [*shape[:axis], shape[axis] // (2 * dilation), 2, dilation, *shape[axis + 1 :]])
    first, second = pairs[(*before, 0)], pairs[(*before, 1)]
    return [first, first + second, first - second, -second]


def _tiled(shape: list[int | tf.Tensor], axis: int, dilation: int) -> list[int | tf.Tensor]:
    """Return a shape with an axis divided into (tiles, dilation)."""
    return [*shape[:axis], shape[axis] // dilation, dilation, *shape[axis + 1 :]]
