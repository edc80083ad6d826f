"""3x3 convolutions with Winograd's minimal filtering F(2x2, 3x3) in TensorFlow (Lavin & Gray 2015, arXiv:1509.09308).

The four outputs of a 2x2 tile need 16 products of channels instead of 36, and all products are plain matrix products,
which run at a CPU's peak rate. The algorithm adds sums over slices, which pay off as soon as there are many channels.

Images stay NHWC. Along both axes a tile has four inputs, spaced d apart at dilation d, and two outputs. Tiles are
slices of the axis reshaped to (pairs, 2, d), so a dilated convolution costs as much as any other one.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

# Matrix G of section 4.1 turns the three taps of a kernel's axis into four factors.
FACTORS = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
# The Kronecker product transforms both axes at once.
FACTORS_2D = np.kron(FACTORS, FACTORS)
# With fewer input or output channels, the sums take the time that the products save.
MIN_CHANNELS = 128
# Cost per output in half products, measured at 256 channels: four products and the sums, against nine products.
TILED_COST, DIRECT_COST = 11, 18
# Backbones use dilations up to this one, and their maps are rarely small compared with the tiles. The larger
# dilations of a pyramid may be large compared with a map.
MAX_BACKBONE_DILATION = 4


def is_faster(inputs: tuple, kernel: tuple, dilations: tuple[int, int]) -> bool | tf.Tensor:
    """Return whether Winograd's algorithm is faster than a direct convolution.

    The algorithm pads the map to whole tiles of twice the dilation, which is expensive if the map is small compared
    with a tile.

    Args:
        inputs: Shape (N, H, W, C) of the inputs; H and W may be scalar tensors.
        kernel: Shape (3, 3, C, D) of the kernel.
        dilations: Dilation of both axes.

    Returns:
        A bool, or a scalar bool tensor if it depends on an H or W that is known only at run time.
    """
    if min(kernel[2:]) < MIN_CHANNELS or dilations[0] != dilations[1]:
        return False
    sizes = inputs[1:3]
    if dilations[0] <= MAX_BACKBONE_DILATION and not all(isinstance(size, int) for size in sizes):
        return True
    outputs = computed = 1
    for length in sizes:
        outputs *= length
        computed *= 2 * dilations[0] * num_tiles(length, dilations[0])
    return TILED_COST * computed < DIRECT_COST * outputs


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
    # Variables are read here because a function with a custom gradient must not capture one.
    inputs, kernel = tf.convert_to_tensor(inputs), tf.convert_to_tensor(kernel)
    return tf.custom_gradient(lambda inputs, kernel: _convolution(inputs, kernel, dilation))(inputs, kernel)


def num_tiles(length: int | tf.Tensor, dilation: int) -> int | tf.Tensor:
    """Return the number of tiles of 2 * dilation outputs that cover an axis."""
    return -(-length // (2 * dilation))


def _convolution(inputs: tf.Tensor, kernel: tf.Tensor, dilation: int) -> tuple[tf.Tensor, Callable]:
    """Return the outputs and the function from their gradient to those of inputs and kernel.

    The four factors of the rows are processed one at a time, so only a quarter of the tiles is in memory. The gradients
    recompute the tiles instead of storing them, since tiles are four times as large as the inputs.
    """
    sizes = _shape(inputs)[1:3]
    counts = [num_tiles(length, dilation) for length in sizes]
    # Padding up to whole tiles, in addition to the convolution's padding.
    extra = [2 * dilation * count - length for count, length in zip(counts, sizes)]
    channels, filters = kernel.shape[2:]

    def split_rows():
        padded = tf.pad(inputs, [[0, 0], *([dilation, dilation + more] for more in extra), [0, 0]])
        return _split(padded, 1, dilation, counts[0])

    def split_columns(rows):
        return [tf.reshape(part, (-1, channels)) for part in _split(rows, 2, dilation, counts[1])]

    def kernel_factors(index):
        factors = FACTORS_2D[4 * index:4 * index + 4] @ tf.reshape(kernel, (9, channels * filters))
        return tf.unstack(tf.reshape(factors, (4, channels, filters)))

    def as_maps(parts, depth):
        shape = (_shape(inputs)[0], counts[0] * dilation, counts[1] * dilation, depth)
        return [tf.reshape(part, shape) for part in parts]

    joined = []
    for index, rows in enumerate(split_rows()):
        with tf.control_dependencies(joined[-1:]):
            products = [part @ factor for part, factor in zip(split_columns(rows), kernel_factors(index))]
        joined.append(_join(as_maps(products, filters), 2, dilation, counts[1]))
    outputs = _join(joined, 1, dilation, counts[0])[:, :sizes[0], :sizes[1]]

    def differentiate(upstream):
        padded = tf.pad(upstream, [[0, 0], *([0, more] for more in extra), [0, 0]])
        product_gradients = [
            [tf.reshape(part, (-1, filters)) for part in _join_adjoint(rows, 2, dilation, counts[1])]
            for rows in _join_adjoint(padded, 1, dilation, counts[0])]
        # The dependency keeps the graph optimizer from reusing the tiles of the forward pass, which would then have to
        # stay in memory.
        with tf.control_dependencies([upstream]):
            recomputed = split_rows()
        kernel_gradient = tf.zeros((9, channels * filters))
        for index, rows in enumerate(recomputed):
            with tf.control_dependencies([upstream, kernel_gradient]):
                products = tf.stack([tf.matmul(part, gradient, transpose_a=True)
                                     for part, gradient in zip(split_columns(rows), product_gradients[index])])
            products = tf.reshape(products, (4, channels * filters))
            kernel_gradient += tf.matmul(FACTORS_2D[4 * index:4 * index + 4], products, transpose_a=True)
        joined = []
        for index in range(4):
            with tf.control_dependencies([kernel_gradient, *joined[-1:]]):
                products = [tf.matmul(gradient, factor, transpose_b=True)
                            for gradient, factor in zip(product_gradients[index], kernel_factors(index))]
            joined.append(_split_adjoint(as_maps(products, channels), 2, dilation, counts[1]))
        input_gradient = _split_adjoint(joined, 1, dilation, counts[0])
        input_gradient = input_gradient[:, dilation:dilation + sizes[0], dilation:dilation + sizes[1]]
        return input_gradient, tf.reshape(kernel_gradient, kernel.shape)

    scope = tf.get_current_name_scope()

    def gradients(upstream):
        # TensorFlow names its own gradients this way, and a profile finds the layer by that name.
        with tf.name_scope(f"gradient_tape/{scope}/"):
            return differentiate(upstream)

    return outputs, gradients


def _shape(values: tf.Tensor) -> list[int | tf.Tensor]:
    """Return a tensor's shape, as integers where they are known."""
    return [size if known is None else known for known, size in zip(values.shape, tf.unstack(tf.shape(values)))]


def _split(values: tf.Tensor, axis: int, dilation: int, count: int | tf.Tensor) -> list[tf.Tensor]:
    """Return the four combinations of the tiles' inputs (B^T of section 4.1) along an axis of (count + 1) pairs."""
    shape = _shape(values)
    pairs = tf.reshape(values, [*shape[:axis], count + 1, 2, dilation, *shape[axis + 1:]])
    before = (slice(None),) * axis
    first, second, third, fourth = (
        pairs[(*before, indices, half)] for indices in (slice(None, -1), slice(1, None)) for half in (0, 1))
    whole = [*shape[:axis], count * dilation, *shape[axis + 1:]]
    return [tf.reshape(part, whole) for part in (first - third, second + third, third - second, second - fourth)]


def _split_adjoint(parts: list[tf.Tensor], axis: int, dilation: int, count: int | tf.Tensor) -> tf.Tensor:
    """Apply the transpose of `_split`: sum the contributions of all tiles to their inputs."""
    shape = _shape(parts[0])
    zero, one, two, three = (
        tf.reshape(part, [*shape[:axis], count, dilation, *shape[axis + 1:]]) for part in parts)

    def padded(part, before, after):
        return tf.pad(part, [[before, after] if index == axis else [0, 0] for index in range(len(shape) + 1)])

    pairs = tf.stack([padded(zero, 0, 1) + padded(one + two - zero, 1, 0),
                      padded(one - two + three, 0, 1) - padded(three, 1, 0)], axis + 1)
    return tf.reshape(pairs, [*shape[:axis], 2 * (count + 1) * dilation, *shape[axis + 1:]])


def _join(products: list[tf.Tensor], axis: int, dilation: int, count: int | tf.Tensor) -> tf.Tensor:
    """Return the two outputs of every tile (A^T of section 4.1) in their order along an axis."""
    shape = _shape(products[0])
    zero, one, two, three = (
        tf.reshape(product, [*shape[:axis], count, dilation, *shape[axis + 1:]]) for product in products)
    pairs = tf.stack([zero + (one + two), (one - two) - three], axis + 1)
    return tf.reshape(pairs, [*shape[:axis], 2 * count * dilation, *shape[axis + 1:]])


def _join_adjoint(values: tf.Tensor, axis: int, dilation: int, count: int | tf.Tensor) -> list[tf.Tensor]:
    """Apply the transpose of `_join`: return the gradients of the four products."""
    shape = _shape(values)
    pairs = tf.reshape(values, [*shape[:axis], count, 2, dilation, *shape[axis + 1:]])
    before = (slice(None),) * (axis + 1)
    first, second = pairs[(*before, 0)], pairs[(*before, 1)]
    whole = [*shape[:axis], count * dilation, *shape[axis + 1:]]
    return [tf.reshape(part, whole) for part in (first, first + second, first - second, -second)]
