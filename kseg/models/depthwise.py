"""Dilated depthwise 3x3 convolutions in TensorFlow that need little memory on CPUs.

TensorFlow's depthwise kernel has no dilation. A dilated convolution is computed on the d * d interleaved parts of a
map, as on d * d small maps. `tf.nn.depthwise_conv2d` first pads the whole map by d on all sides, which at dilation 36
multiplies a 32x32 map by eleven, and keeps the padded maps for the gradient. Here the kernel itself pads the parts,
and only the inputs are kept.
"""

import itertools
from collections.abc import Callable

import tensorflow as tf

# On parts with a smaller side, TensorFlow's kernel for the gradient of the filter falls back to a slow form.
SMALLEST_SIDE = 3
SAME_PADDING = {"strides": (1, 1, 1, 1), "padding": "SAME"}


def dilated_depthwise_convolution(inputs: tf.Tensor, kernel: tf.Tensor, dilation: int) -> tf.Tensor:
    """Convolve every channel with its own dilated 3x3 kernel, at the same size.

    Args:
        inputs: Float32 (N, H, W, C). H and W may be unknown until run time; C must be known.
        kernel: Float32 (3, 3, C, 1).
        dilation: Distance between the kernel's taps in pixels.

    Returns:
        Float32 (N, H, W, C), differentiable with respect to `inputs` and `kernel`.
    """
    # Variables are read here because a function with a custom gradient must not capture one.
    inputs, kernel = tf.convert_to_tensor(inputs), tf.convert_to_tensor(kernel)
    return tf.custom_gradient(lambda inputs, kernel: _convolution(inputs, kernel, dilation))(inputs, kernel)


def _convolution(inputs: tf.Tensor, kernel: tf.Tensor, dilation: int) -> tuple[tf.Tensor, Callable]:
    """Return the outputs and the function from their gradient to those of inputs and kernel."""
    dynamic = tf.shape(inputs)
    sizes = [dynamic[axis] if inputs.shape[axis] is None else inputs.shape[axis] for axis in (1, 2)]
    # All parts must have the same size.
    paddings = [[0, -size % dilation] for size in sizes]

    def split(values):
        return tf.space_to_batch(values, [dilation, dilation], paddings)

    def join(parts):
        values = tf.batch_to_space(parts, [dilation, dilation], paddings)
        values.set_shape(inputs.shape)
        return values

    def differentiate(upstream):
        upstream_parts = split(upstream)
        input_gradient = join(
            tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
                input_sizes=tf.shape(upstream_parts), filter=kernel, out_backprop=upstream_parts, **SAME_PADDING
            )
        )
        if None in inputs.shape[1:3] or min(sizes) > (SMALLEST_SIDE - 1) * dilation:
            # The dependency keeps the graph optimizer from reusing the parts of the forward pass, which would then
            # have to stay in memory.
            with tf.control_dependencies([upstream]):
                parts = split(inputs)
            kernel_gradient = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
                input=parts, filter_sizes=kernel.shape, out_backprop=upstream_parts, **SAME_PADDING
            )
        else:
            kernel_gradient = tf.reshape(_kernel_gradient(inputs, upstream, sizes, dilation), kernel.shape)
        return input_gradient, kernel_gradient

    scope = tf.get_current_name_scope()

    def gradients(upstream):
        # TensorFlow names its own gradients this way, and a profile finds the layer by that name.
        with tf.name_scope(f"gradient_tape/{scope}/"):
            return differentiate(upstream)

    outputs = join(tf.raw_ops.DepthwiseConv2dNative(input=split(inputs), filter=kernel, **SAME_PADDING))
    return outputs, gradients


def _kernel_gradient(inputs: tf.Tensor, upstream: tf.Tensor, sizes: list[int], dilation: int) -> tf.Tensor:
    """Return the kernel's gradient (9, C) on a map of known size, tap by tap.

    Every tap is a sum of products over the outputs whose tap lies inside the map. This is cheap where few do.
    """
    channels, taps = inputs.shape[-1], []
    for shifts in itertools.product((-dilation, 0, dilation), repeat=2):
        # `read` are the inputs under the tap; `written` are the outputs they contribute to.
        read, written = [], []
        for shift, size in zip(shifts, sizes):
            length = max(size - abs(shift), 0)
            read.append(slice(max(shift, 0), max(shift, 0) + length))
            written.append(slice(max(-shift, 0), max(-shift, 0) + length))
        # The taps run one at a time because every one needs as much memory as the inputs.
        with tf.control_dependencies([upstream, *taps[-1:]]):
            products = tf.reshape(inputs[:, *read] * upstream[:, *written], (-1, channels))
        # A matrix product sums columns several times faster than tf.reduce_sum.
        taps.append(tf.matmul(tf.ones_like(products[:, :1]), products, transpose_a=True))
    return tf.concat(taps, 0)
