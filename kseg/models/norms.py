"""Batch normalization with PyTorch's statistics, synchronized over all replicas that train together.

It is written in Keras operations; the layer chooses TensorFlow's kernels where they give the same results faster.
"""

import math
from typing import TYPE_CHECKING

import keras
from keras import ops

from kseg.models.layers import is_small, on_cpu, on_tensorflow, replica_context

if TYPE_CHECKING:
    import tensorflow as tf


@keras.saving.register_keras_serializable("kseg")
class BatchNormalization(keras.layers.Layer):
    """Batch normalization over all axes but the last, with PyTorch's statistics (arXiv:1502.03167).

    Training normalizes with the biased variance of the global batch and updates the moving variance with the
    *unbiased* one, which is larger by n / (n - 1). Keras' layer uses the biased variance for both. A layer that is not
    trainable normalizes with its moving statistics and does not update them.

    Args:
        momentum: Weight of the old moving statistics in an update; 0.9 here is PyTorch's 0.1.
        epsilon: Added to the variance.
        gamma_initializer: Keras initializer of gamma.
    """

    def __init__(self, momentum=0.9, epsilon=1e-5, gamma_initializer="ones", **kwargs):
        super().__init__(**kwargs)
        self.momentum = momentum
        self.epsilon = epsilon
        self.gamma_initializer = gamma_initializer

    def build(self, input_shape):
        shape = (input_shape[-1],)
        # autocast=False keeps them in float32: in bfloat16 a gamma near 1 changes in steps of 0.8%.
        self.gamma = self.add_weight(name="gamma", shape=shape, initializer=self.gamma_initializer, autocast=False)
        self.beta = self.add_weight(name="beta", shape=shape, initializer="zeros", autocast=False)
        self.moving_mean = self.add_weight(
            name="moving_mean", shape=shape, initializer="zeros", trainable=False, autocast=False
        )
        self.moving_variance = self.add_weight(
            name="moving_variance", shape=shape, initializer="ones", trainable=False, autocast=False
        )

    def call(self, inputs, training=False):
        fused = on_tensorflow() and len(inputs.shape) == 4
        if not (training and self.trainable):
            # On a GPU, TensorFlow's gradient of its kernel for given statistics transposes its operands and is refused
            # in deterministic training.
            normalize = fused_inference if fused and (on_cpu() or not training) else normalize_with
            return normalize(inputs, self.moving_mean, self.moving_variance, self.gamma, self.beta, self.epsilon)
        train = fused_training if fused else normalize_training
        if on_tensorflow() and is_small(inputs):
            train = exact_training
        outputs, mean, unbiased_variance = train(inputs, self.gamma, self.beta, self.epsilon, replica_context())
        self.moving_mean.assign(self.momentum * self.moving_mean + (1 - self.momentum) * mean)
        self.moving_variance.assign(self.momentum * self.moving_variance + (1 - self.momentum) * unbiased_variance)
        return outputs

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return super().get_config() | {
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "gamma_initializer": self.gamma_initializer,
        }


def normalize_with(
    inputs: "tf.Tensor", mean: "tf.Tensor", variance: "tf.Tensor", gamma: "tf.Tensor", beta: "tf.Tensor", epsilon: float
) -> "tf.Tensor":
    """Return (inputs - mean) / sqrt(variance + epsilon) * gamma + beta, computed in float32.

    `inputs` are (..., C); the statistics, gamma and beta are (C,). The result has the shape and dtype of `inputs`.
    """
    inverse = ops.rsqrt(variance + epsilon)
    mean, inverse, gamma, beta = (ops.cast(value, "float32") for value in (mean, inverse, gamma, beta))
    # Subtracting first cancels a large mean before it is scaled.
    outputs = (ops.cast(inputs, "float32") - mean) * (inverse * gamma) + beta
    return ops.cast(outputs, inputs.dtype)


def normalize_training(
    inputs: "tf.Tensor",
    gamma: "tf.Tensor",
    beta: "tf.Tensor",
    epsilon: float,
    context: "tf.distribute.ReplicaContext | None" = None,
    dtype: str = "float32",
) -> "tuple[tf.Tensor, tf.Tensor, tf.Tensor]":
    """Normalize a batch with its statistics.

    Args:
        inputs: (..., C) of a floating dtype.
        gamma: (C,) scale.
        beta: (C,) offset.
        epsilon: Added to the variance.
        context: Replica context if the replicas hold equal parts of the global batch.
        dtype: Dtype in which the statistics are summed.

    Returns:
        The outputs in the dtype of `inputs`, and the float32 mean and unbiased variance (C,) of the global batch.
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
    unbiased = variance * unbiasing_factor(ops.cast(count, dtype))
    return outputs, ops.cast(mean, "float32"), ops.cast(unbiased, "float32")


def unbiasing_factor(count: "tf.Tensor") -> "tf.Tensor":
    """Return count / (count - 1), which makes a biased variance unbiased; 1 for a single value."""
    return count / ops.maximum(count - 1, 1)


def moments_over_replicas(
    mean: "tf.Tensor", variance: "tf.Tensor", context: "tf.distribute.ReplicaContext"
) -> "tuple[tf.Tensor, tf.Tensor]":
    """Return the float64 mean and biased variance of the global batch.

    `mean` and `variance` (C,) are those of this replica's equal part. Chan et al. 1979, "Updating Formulae and a
    Pairwise Algorithm", combine the same moments pairwise. Here one all-reduce sums both moments; the squares of the
    means cancel, which is why they are float64.
    """
    mean, variance = ops.cast(mean, "float64"), ops.cast(variance, "float64")
    moments = context.all_reduce("sum", ops.stack([mean, variance + ops.square(mean)])) / context.num_replicas_in_sync
    return moments[0], ops.maximum(moments[1] - ops.square(moments[0]), 0)


def exact_training(
    inputs: "tf.Tensor",
    gamma: "tf.Tensor",
    beta: "tf.Tensor",
    epsilon: float,
    context: "tf.distribute.ReplicaContext | None" = None,
) -> "tuple[tf.Tensor, tf.Tensor, tf.Tensor]":
    """Normalize a batch with statistics summed in float64, as PyTorch does on a CPU.

    Arguments and results are those of `normalize_training`. The float32 sums of TensorFlow's kernels grow into
    differences of some percent in the gradients of a network of a hundred layers over a small batch.
    """
    return normalize_training(inputs, gamma, beta, epsilon, context, "float64")


def fused_training(
    inputs: "tf.Tensor",
    gamma: "tf.Tensor",
    beta: "tf.Tensor",
    epsilon: float,
    context: "tf.distribute.ReplicaContext | None" = None,
) -> "tuple[tf.Tensor, tf.Tensor, tf.Tensor]":
    """Normalize a batch (N, H, W, C) with TensorFlow's kernels.

    Arguments and results are those of `normalize_training`. Only the outputs have gradients, not the statistics.
    """
    import tensorflow as tf

    gamma, beta = tf.cast(gamma, tf.float32), tf.cast(beta, tf.float32)
    if context is not None:
        return tf.custom_gradient(lambda *values: _synchronized_training(*values, epsilon, context))(
            inputs, gamma, beta
        )
    outputs, mean, variance, *_ = _local_training(inputs, gamma, beta, epsilon)
    return outputs, mean, variance


def _local_training(inputs, gamma, beta, epsilon):
    """Return FusedBatchNormV3's results for one replica: outputs, mean, unbiased variance and reserved values."""
    import tensorflow as tf

    return tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=gamma,
        offset=beta,
        mean=[],
        variance=[],
        epsilon=epsilon,
        exponential_avg_factor=1.0,
        is_training=True,
    )


def _synchronized_training(inputs, gamma, beta, epsilon, context):
    """Return the results of `fused_training` over all replicas, and their gradient function.

    Forward and backward pass exchange one message each. The gradient of the inputs has two parts: the gradient for
    fixed statistics, and the one through the statistics. The second is linear in the normalized inputs, and its factors
    come from the sums that are the gradients of gamma and beta, so the kernel that normalizes computes it (Ioffe &
    Szegedy 2015, arXiv:1502.03167, section 3, rearranged).
    """
    import tensorflow as tf

    count = tf.cast(tf.size(inputs, tf.int64) // inputs.shape[-1], tf.float64)
    _, mean, unbiased, *_ = _local_training(inputs, tf.ones_like(gamma), tf.zeros_like(beta), epsilon)
    mean, variance = moments_over_replicas(mean, tf.cast(unbiased, tf.float64) / unbiasing_factor(count), context)
    count *= context.num_replicas_in_sync
    unbiased = tf.cast(variance * unbiasing_factor(count), tf.float32)
    mean, variance = tf.cast(mean, tf.float32), tf.cast(variance, tf.float32)

    def differentiate(upstream):
        fixed_gradient, gamma_gradient, beta_gradient = _gradients_for_statistics(
            upstream, inputs, mean, variance, gamma, epsilon
        )
        # The backward pass may be traced in another graph, which has another replica context.
        sums = tf.distribute.get_replica_context().all_reduce("sum", tf.stack([gamma_gradient, beta_gradient]))
        factors = -gamma * tf.math.rsqrt(variance + epsilon) * sums / tf.cast(count, tf.float32)
        through_statistics = fused_inference(inputs, mean, variance, factors[0], factors[1], epsilon)
        return fixed_gradient + through_statistics, gamma_gradient, beta_gradient

    scope = tf.get_current_name_scope()

    def gradients(upstream, *_):
        # TensorFlow names its own gradients this way, and a profile finds the layer by that name.
        with tf.name_scope(f"gradient_tape/{scope}/"):
            return differentiate(upstream)

    return (fused_inference(inputs, mean, variance, gamma, beta, epsilon), mean, unbiased), gradients


def _gradients_for_statistics(upstream, inputs, mean, variance, gamma, epsilon):
    """Return the gradients of inputs (N, H, W, C), gamma and beta of a normalization with given statistics."""
    import tensorflow as tf

    if on_cpu():
        return tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=upstream,
            x=inputs,
            scale=gamma,
            reserve_space_1=mean,
            reserve_space_2=variance,
            reserve_space_3=[],
            epsilon=epsilon,
            is_training=False,
        )[:3]
    # On a GPU, this kernel transposes its operands and is refused in deterministic training.
    upstream, inverse = tf.cast(upstream, tf.float32), tf.math.rsqrt(variance + epsilon)
    normalized = (tf.cast(inputs, tf.float32) - mean) * inverse
    return (
        tf.cast(upstream * (gamma * inverse), inputs.dtype),
        tf.reduce_sum(upstream * normalized, (0, 1, 2)),
        tf.reduce_sum(upstream, (0, 1, 2)),
    )


def fused_inference(
    inputs: "tf.Tensor", mean: "tf.Tensor", variance: "tf.Tensor", gamma: "tf.Tensor", beta: "tf.Tensor", epsilon: float
) -> "tf.Tensor":
    """Normalize (N, H, W, C) inputs with given statistics by TensorFlow's kernel.

    The statistics, gamma and beta are (C,). TensorFlow's graph optimizer can fold this kernel into a convolution.
    """
    import tensorflow as tf

    return tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=tf.cast(gamma, tf.float32),
        offset=tf.cast(beta, tf.float32),
        mean=tf.convert_to_tensor(mean),
        variance=tf.convert_to_tensor(variance),
        epsilon=epsilon,
        is_training=False,
    )[0]
