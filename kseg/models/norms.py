"""Batch normalisation with PyTorch's statistics, over all replicas that train together.

Defined in Keras operations; TensorFlow's kernels for the same numbers are chosen in the layer.
"""

import math

import keras
from keras import ops

from kseg.models.layers import is_small, on_tensorflow, replica_context


@keras.saving.register_keras_serializable("kseg")
class BatchNormalization(keras.layers.Layer):
    """Batch normalisation over all axes but the last, with PyTorch's statistics, synchronised over replicas.

    Training normalises with the biased variance of the global batch and moves the running variance towards the
    *unbiased* one (factor n / (n - 1)); Keras' own layer uses the biased one for both. Momentum is Keras' sense of it:
    0.9 here is PyTorch's 0.1. One that is not trainable normalises with its moving statistics, and keeps them.
    """

    def __init__(self, momentum=0.9, epsilon=1e-5, gamma_initializer="ones", **kwargs):
        super().__init__(**kwargs)
        self.momentum = momentum
        self.epsilon = epsilon
        self.gamma_initializer = gamma_initializer

    def build(self, input_shape):
        shape = (input_shape[-1],)
        # None of them is rounded to half precision, where a gamma near 1 moves in steps of 0.8 per cent.
        self.gamma = self.add_weight(
            name="gamma", shape=shape, initializer=self.gamma_initializer, autocast=False)
        self.beta = self.add_weight(name="beta", shape=shape, initializer="zeros", autocast=False)
        self.moving_mean = self.add_weight(
            name="moving_mean", shape=shape, initializer="zeros", trainable=False, autocast=False)
        self.moving_variance = self.add_weight(
            name="moving_variance", shape=shape, initializer="ones", trainable=False, autocast=False)

    def call(self, inputs, training=False):
        fused = on_tensorflow() and len(inputs.shape) == 4
        if not (training and self.trainable):
            normalise = fused_inference if fused else normalize_with
            return normalise(inputs, self.moving_mean, self.moving_variance, self.gamma, self.beta, self.epsilon)
        train = fused_training if fused else normalize_training
        if on_tensorflow() and is_small(inputs):
            train = exact_training
        outputs, mean, unbiased_variance = train(inputs, self.gamma, self.beta, self.epsilon, replica_context())
        self.moving_mean.assign(self.momentum * self.moving_mean + (1 - self.momentum) * mean)
        self.moving_variance.assign(
            self.momentum * self.moving_variance + (1 - self.momentum) * unbiased_variance)
        return outputs

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return super().get_config() | {"momentum": self.momentum, "epsilon": self.epsilon,
                                       "gamma_initializer": self.gamma_initializer}


def normalize_with(inputs, mean, variance, gamma, beta, epsilon):
    """Return (inputs - mean) / sqrt(variance + epsilon) * gamma + beta over the last axis, in float32 inside."""
    inverse = ops.rsqrt(variance + epsilon)
    mean, inverse, gamma, beta = (ops.cast(value, "float32") for value in (mean, inverse, gamma, beta))
    # The difference first: a large mean cancels before it is scaled.
    outputs = (ops.cast(inputs, "float32") - mean) * (inverse * gamma) + beta
    return ops.cast(outputs, inputs.dtype)


def normalize_training(inputs, gamma, beta, epsilon, context=None, dtype="float32"):
    """Return the inputs normalised by their own statistics, those means and the unbiased variances, in float32.

    `context` is the replica context whose replicas hold equal shares of the global batch, or None. The statistics are
    summed in `dtype`.
    """
    values = ops.cast(inputs, dtype)
    axes = tuple(range(len(inputs.shape) - 1))
    mean = ops.mean(values, axis=axes)
    variance = ops.mean(ops.square(values - mean), axis=axes)
    count = math.prod(ops.shape(inputs)[:-1])
    if context is not None:
        mean, variance = moments_over_replicas(mean, variance, context)
        count = count * context.num_replicas_in_sync
    mean, variance = ops.cast(mean, dtype), ops.cast(variance, dtype)
    outputs = normalize_with(inputs, mean, variance, gamma, beta, epsilon)
    unbiased = variance * unbiasing(ops.cast(count, dtype))
    return outputs, ops.cast(mean, "float32"), ops.cast(unbiased, "float32")


def unbiasing(count):
    """Return what makes the variance of `count` values unbiased; one value alone has none."""
    return count / ops.maximum(count - 1, 1)


def moments_over_replicas(mean, variance, context):
    """Return the global batch's mean and variance, float64, from those of each replica's equal share, in one message.

    The same as by Chan et al. 1979, "Updating Formulae and a Pairwise Algorithm", but one sum of two moments is enough;
    the squares of the means cancel, hence float64.
    """
    mean, variance = ops.cast(mean, "float64"), ops.cast(variance, "float64")
    moments = context.all_reduce("sum", ops.stack([mean, variance + ops.square(mean)])) / context.num_replicas_in_sync
    return moments[0], ops.maximum(moments[1] - ops.square(moments[0]), 0)


def exact_training(inputs, gamma, beta, epsilon, context=None):
    """Return what `normalise_training` returns, with statistics summed in float64 as PyTorch sums them on a CPU.

    The float32 sums of TensorFlow's kernels grow into differences of some percent in the gradients of a network of a
    hundred layers over a small batch.
    """
    return normalize_training(inputs, gamma, beta, epsilon, context, "float64")


def fused_training(inputs, gamma, beta, epsilon, context=None):
    """Return what `normalise_training` returns, from TensorFlow's kernels (NHWC).

    Gradients come by way of the first result alone: the statistics are only kept.
    """
    import tensorflow as tf

    gamma, beta = tf.cast(gamma, tf.float32), tf.cast(beta, tf.float32)
    if context is not None:
        return tf.custom_gradient(
            lambda *values: _synchronised(*values, epsilon, context))(inputs, gamma, beta)
    outputs, mean, variance, *_ = _own_statistics(inputs, gamma, beta, epsilon)
    return outputs, mean, variance


def _own_statistics(inputs, gamma, beta, epsilon):
    """Return the inputs normalised by one replica's statistics, these means and the unbiased variances, and more."""
    import tensorflow as tf

    return tf.raw_ops.FusedBatchNormV3(
        x=inputs, scale=gamma, offset=beta, mean=[], variance=[], epsilon=epsilon, exponential_avg_factor=1.0,
        is_training=True)


def _synchronised(inputs, gamma, beta, epsilon, context):
    """Return what `fused_training` returns for a replica's share, and the gradient: one message each way.

    The gradient of the inputs is that for fixed statistics, and what goes by way of the statistics. The latter is
    linear in the normalised inputs, with the sums behind the gradients of gamma and beta as factors: the kernel that
    normalises gives it (Ioffe & Szegedy 2015, arXiv:1502.03167, section 3, rearranged).
    """
    import tensorflow as tf

    count = tf.cast(tf.size(inputs, tf.int64) // inputs.shape[-1], tf.float64)
    _, mean, unbiased, *_ = _own_statistics(inputs, tf.ones_like(gamma), tf.zeros_like(beta), epsilon)
    mean, variance = moments_over_replicas(mean, tf.cast(unbiased, tf.float64) / unbiasing(count), context)
    count *= context.num_replicas_in_sync
    unbiased = tf.cast(variance * unbiasing(count), tf.float32)
    mean, variance = tf.cast(mean, tf.float32), tf.cast(variance, tf.float32)

    def differentiate(upstream):
        fixed, of_gamma, of_beta, *_ = tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=upstream, x=inputs, scale=gamma, reserve_space_1=mean, reserve_space_2=variance,
            reserve_space_3=[], epsilon=epsilon, is_training=False)
        # The backward pass may be in a graph of its own, with a context of its own.
        sums = tf.distribute.get_replica_context().all_reduce("sum", tf.stack([of_gamma, of_beta]))
        factors = -gamma * tf.math.rsqrt(variance + epsilon) * sums / tf.cast(count, tf.float32)
        return fixed + fused_inference(inputs, mean, variance, factors[0], factors[1], epsilon), of_gamma, of_beta

    scope = tf.get_current_name_scope()

    def gradients(upstream, *_):
        # As TensorFlow's own gradients are named, by which a profile knows the layer.
        with tf.name_scope(f"gradient_tape/{scope}/"):
            return differentiate(upstream)

    return (fused_inference(inputs, mean, variance, gamma, beta, epsilon), mean, unbiased), gradients


def fused_inference(inputs, mean, variance, gamma, beta, epsilon):
    """Return what `normalise_with` returns, from TensorFlow's kernel, which its graph optimiser can fold (NHWC)."""
    import tensorflow as tf

    return tf.raw_ops.FusedBatchNormV3(
        x=inputs, scale=tf.cast(gamma, tf.float32), offset=tf.cast(beta, tf.float32),
        mean=tf.convert_to_tensor(mean), variance=tf.convert_to_tensor(variance), epsilon=epsilon,
        is_training=False)[0]
