"""3x3 convolutions by Winograd's minimal filtering F(2x2, 3x3), in TensorFlow (Lavin & Gray 2015, arXiv:1509.09308).

Four outputs of a 2x2 tile cost 16 products of channels and not 36, and all of them are plain matrix products, for
which a CPU reaches its highest rate. What it adds are sums over slices; they pay as soon as there are many channels.

Pictures stay NHWC. Along each of the two axes a tile of four inputs, d apart at dilation d, gives two outputs; tiles
are slices of the axis seen as (pairs, 2, d), so that a dilated convolution costs what any other costs.
"""

import numpy as np
import tensorflow as tf

# Equation 6 of the paper: a kernel of three taps as the four factors of one axis; both axes at once.
FACTORS = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
BOTH_AXES = np.kron(FACTORS, FACTORS)
# With fewer channels on either side the sums take the time that the products save.
WIDE = 128
# Products for each output, four against nine, and what the sums beside them take at 256 channels; in halves of one.
COST, DIRECT_COST = 11, 18
# Maps are seldom small beside it; beside the dilations of a pyramid they may be.
LARGEST_OF_BACKBONES = 4


def is_faster(inputs: tuple, kernel: tuple, dilations: tuple) -> bool | tf.Tensor:
    """Return whether this way saves time for inputs and a kernel of these shapes, in which a size may be a tensor.

    It fills the map up to whole tiles of twice the dilation, which is much where the map is small beside it. The result
    is a tensor where a size is one, unless the dilation is one of a backbone.
    """
    if min(kernel[2:]) < WIDE or dilations[0] != dilations[1]:
        return False
    sizes = inputs[1:3]
    if dilations[0] <= LARGEST_OF_BACKBONES and not all(isinstance(size, int) for size in sizes):
        return True
    outputs = computed = 1
    for length in sizes:
        outputs *= length
        computed *= 2 * dilations[0] * tiles(length, dilations[0])
    return COST * computed < DIRECT_COST * outputs


def winograd_convolution(inputs: tf.Tensor, kernel: tf.Tensor, dilation: int = 1) -> tf.Tensor:
    """Return the convolution of float32 NHWC inputs with a (3, 3, C, D) kernel at stride 1, padded to the same size.

    Its gradients come the same way. Sizes may be unknown until run time, channels not.
    """
    # Read here, since a function with a gradient of its own may not know a variable.
    inputs, kernel = tf.convert_to_tensor(inputs), tf.convert_to_tensor(kernel)
    return tf.custom_gradient(lambda inputs, kernel: _convolution(inputs, kernel, dilation))(inputs, kernel)


def tiles(length, dilation: int):
    """Return how many tiles cover an axis: each gives 2 * dilation outputs."""
    return -(-length // (2 * dilation))


def _convolution(inputs, kernel, dilation):
    """Return the outputs and the function from their gradient to those of inputs and kernel.

    One factor of the rows after the other, each when the one before is done, so that a quarter of what the tiles take
    is in memory; and the gradients compute the tiles again, since they are four times as large as the inputs.
    """
    sizes = _shape(inputs)[1:3]
    counts = [tiles(length, dilation) for length in sizes]
    # Beyond the padding proper, up to whole tiles.
    extra = [2 * dilation * count - length for count, length in zip(counts, sizes)]
    channels, filters = kernel.shape[2:]

    def split_rows():
        padded = tf.pad(inputs, [[0, 0], *([dilation, dilation + more] for more in extra), [0, 0]])
        return _split(padded, 1, dilation, counts[0])

    def split_columns(rows):
        return [tf.reshape(part, (-1, channels)) for part in _split(rows, 2, dilation, counts[1])]

    def factors_of(index):
        found = BOTH_AXES[4 * index:4 * index + 4] @ tf.reshape(kernel, (9, channels * filters))
        return tf.unstack(tf.reshape(found, (4, channels, filters)))

    def as_maps(parts, depth):
        shape = (_shape(inputs)[0], counts[0] * dilation, counts[1] * dilation, depth)
        return [tf.reshape(part, shape) for part in parts]

    joined = []
    for index, rows in enumerate(split_rows()):
        with tf.control_dependencies(joined[-1:]):
            products = [part @ factor for part, factor in zip(split_columns(rows), factors_of(index))]
        joined.append(_join(as_maps(products, filters), 2, dilation, counts[1]))
    outputs = _join(joined, 1, dilation, counts[0])[:, :sizes[0], :sizes[1]]

    def differentiate(upstream):
        padded = tf.pad(upstream, [[0, 0], *([0, more] for more in extra), [0, 0]])
        above = [[tf.reshape(part, (-1, filters)) for part in _join_adjoint(rows, 2, dilation, counts[1])]
                 for rows in _join_adjoint(padded, 1, dilation, counts[0])]
        # Which also keeps the graph optimiser from taking these for the ones computed before.
        with tf.control_dependencies([upstream]):
            again = split_rows()
        of_kernel = tf.zeros((9, channels * filters))
        for index, rows in enumerate(again):
            with tf.control_dependencies([upstream, of_kernel]):
                products = tf.stack([tf.matmul(part, each, transpose_a=True)
                                     for part, each in zip(split_columns(rows), above[index])])
            products = tf.reshape(products, (4, channels * filters))
            of_kernel += tf.matmul(BOTH_AXES[4 * index:4 * index + 4], products, transpose_a=True)
        joined = []
        for index in range(4):
            with tf.control_dependencies([of_kernel, *joined[-1:]]):
                products = [tf.matmul(each, factor, transpose_b=True)
                            for each, factor in zip(above[index], factors_of(index))]
            joined.append(_split_adjoint(as_maps(products, channels), 2, dilation, counts[1]))
        of_inputs = _split_adjoint(joined, 1, dilation, counts[0])
        of_inputs = of_inputs[:, dilation:dilation + sizes[0], dilation:dilation + sizes[1]]
        return of_inputs, tf.reshape(of_kernel, kernel.shape)

    scope = tf.get_current_name_scope()

    def gradients(upstream):
        # As TensorFlow's own gradients are named, by which a profile knows the layer.
        with tf.name_scope(f"gradient_tape/{scope}/"):
            return differentiate(upstream)

    return outputs, gradients


def _shape(values) -> list:
    """Return a tensor's shape, numbers where they are known."""
    return [size if known is None else known for known, size in zip(values.shape, tf.unstack(tf.shape(values)))]


def _split(values, axis, dilation, count):
    """Return the four combinations of each tile's four inputs along an axis of (count + 1) pairs."""
    shape = _shape(values)
    pairs = tf.reshape(values, [*shape[:axis], count + 1, 2, dilation, *shape[axis + 1:]])
    before = (slice(None),) * axis
    first, second, third, fourth = (
        pairs[(*before, places, half)] for places in (slice(None, -1), slice(1, None)) for half in (0, 1))
    whole = [*shape[:axis], count * dilation, *shape[axis + 1:]]
    return [tf.reshape(part, whole) for part in (first - third, second + third, third - second, second - fourth)]


def _split_adjoint(parts, axis, dilation, count):
    """Return the sums over what each input gave to the tiles that hold it."""
    shape = _shape(parts[0])
    zero, one, two, three = (
        tf.reshape(part, [*shape[:axis], count, dilation, *shape[axis + 1:]]) for part in parts)

    def padded(part, ahead, behind):
        return tf.pad(part, [[ahead, behind] if place == axis else [0, 0] for place in range(len(shape) + 1)])

    pairs = tf.stack([padded(zero, 0, 1) + padded(one + two - zero, 1, 0),
                      padded(one - two + three, 0, 1) - padded(three, 1, 0)], axis + 1)
    return tf.reshape(pairs, [*shape[:axis], 2 * (count + 1) * dilation, *shape[axis + 1:]])


def _join(products, axis, dilation, count):
    """Return the two outputs of each tile along an axis, in their places."""
    shape = _shape(products[0])
    zero, one, two, three = (
        tf.reshape(product, [*shape[:axis], count, dilation, *shape[axis + 1:]]) for product in products)
    pairs = tf.stack([zero + (one + two), (one - two) - three], axis + 1)
    return tf.reshape(pairs, [*shape[:axis], 2 * count * dilation, *shape[axis + 1:]])


def _join_adjoint(values, axis, dilation, count):
    """Return what the gradients of the outputs are to each of the four products."""
    shape = _shape(values)
    pairs = tf.reshape(values, [*shape[:axis], count, 2, dilation, *shape[axis + 1:]])
    before = (slice(None),) * (axis + 1)
    first, second = pairs[(*before, 0)], pairs[(*before, 1)]
    whole = [*shape[:axis], count * dilation, *shape[axis + 1:]]
    return [tf.reshape(part, whole) for part in (first, first + second, first - second, -second)]
