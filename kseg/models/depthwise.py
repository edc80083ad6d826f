"""Dilated depthwise 3x3 convolutions, in TensorFlow.

TensorFlow's kernel knows no dilation: it is given the d * d interleaved parts of a map, as so many small maps.
`tf.nn.depthwise_conv2d` first pads the map by d on each side, which for dilation 36 makes eleven maps of one of 32x32,
and keeps those for the gradient. Here the parts are padded, one by one, by the kernel itself, and nothing but the
inputs is kept.
"""

import itertools

import tensorflow as tf

# Where a side of the parts is smaller, TensorFlow's kernel of the kernel's gradient falls back to a slow form.
SMALLEST = 3
PADDED = {"strides": (1, 1, 1, 1), "padding": "SAME"}


def dilated_depthwise_convolution(inputs: tf.Tensor, kernel: tf.Tensor, dilation: int) -> tf.Tensor:
    """Return the depthwise convolution of NHWC inputs with a (3, 3, C, 1) kernel, padded to the same size.

    Height and width may be unknown until run time, channels not.
    """
    # Read here, since a function with a gradient of its own may not know a variable.
    inputs, kernel = tf.convert_to_tensor(inputs), tf.convert_to_tensor(kernel)
    return tf.custom_gradient(lambda inputs, kernel: _convolution(inputs, kernel, dilation))(inputs, kernel)


def _convolution(inputs, kernel, dilation):
    """Return the outputs and the function from their gradient to those of inputs and kernel."""
    dynamic = tf.shape(inputs)
    sizes = [dynamic[axis] if inputs.shape[axis] is None else inputs.shape[axis] for axis in (1, 2)]
    # Up to parts of the same size.
    paddings = [[0, -size % dilation] for size in sizes]

    def split(values):
        return tf.space_to_batch(values, [dilation, dilation], paddings)

    def join(parts):
        values = tf.batch_to_space(parts, [dilation, dilation], paddings)
        values.set_shape(inputs.shape)
        return values

    def differentiate(upstream):
        above = split(upstream)
        of_inputs = join(tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
            input_sizes=tf.shape(above), filter=kernel, out_backprop=above, **PADDED))
        if None in inputs.shape[1:3] or min(sizes) > (SMALLEST - 1) * dilation:
            # Which also keeps the graph optimiser from taking these parts for the ones before, and keeping them.
            with tf.control_dependencies([upstream]):
                parts = split(inputs)
            of_kernel = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
                input=parts, filter_sizes=kernel.shape, out_backprop=above, **PADDED)
        else:
            of_kernel = tf.reshape(_of_kernel(inputs, upstream, sizes, dilation), kernel.shape)
        return of_inputs, of_kernel

    scope = tf.get_current_name_scope()

    def gradients(upstream):
        # As TensorFlow's own gradients are named, by which a profile knows the layer.
        with tf.name_scope(f"gradient_tape/{scope}/"):
            return differentiate(upstream)

    outputs = join(tf.raw_ops.DepthwiseConv2dNative(input=split(inputs), filter=kernel, **PADDED))
    return outputs, gradients


def _of_kernel(inputs, upstream, sizes, dilation):
    """Return the gradient of the kernel, (9, C), on a map of known size: a sum of products for each of its taps.

    It costs little where most taps of most outputs lie beside the map.
    """
    channels, taps = inputs.shape[-1], []
    for shifts in itertools.product((-dilation, 0, dilation), repeat=2):
        # What a tap sees of the map, and the outputs that see it.
        seen, seeing = [], []
        for shift, size in zip(shifts, sizes):
            length = max(size - abs(shift), 0)
            seen.append(slice(max(shift, 0), max(shift, 0) + length))
            seeing.append(slice(max(-shift, 0), max(-shift, 0) + length))
        # One tap after the other, since each takes as much memory as the inputs.
        with tf.control_dependencies([upstream, *taps[-1:]]):
            products = tf.reshape(inputs[:, *seen] * upstream[:, *seeing], (-1, channels))
        # A matrix product adds up columns several times faster than a sum does.
        taps.append(tf.matmul(tf.ones_like(products[:, :1]), products, transpose_a=True))
    return tf.concat(taps, 0)
