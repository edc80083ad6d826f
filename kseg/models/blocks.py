"""Convolution blocks with the initial weights of the original systems.

The argument `initial` is `model.initial_weights` of a config: "kaiming" initializes like MMSegmentation's ConvModule,
"uniform" like PyTorch's layers, which is what SSSegmentation uses.
"""

import keras
from keras.initializers import RandomNormal, RandomUniform

from kseg.models.layers import ChannelDropout, Convolution, DepthwiseConvolution
from kseg.models.norms import BatchNormalization


def kernel_initializer(initial: str, kernel: int, inputs: int, outputs: int) -> keras.initializers.Initializer:
    """Return the initializer of a kernel x kernel convolution.

    "kaiming" is normal over the fan-out (He et al. 2015, arXiv:1502.01852, equation 14). "uniform" is bounded by
    1 / sqrt(fan-in).

    Args:
        initial: "kaiming" or "uniform".
        kernel: Side of the kernel.
        inputs: Number of input channels; 1 for a depthwise convolution.
        outputs: Number of output channels. Both original systems count all channels of a depthwise convolution.
    """
    if initial == "kaiming":
        return RandomNormal(stddev=(2 / (kernel * kernel * outputs)) ** 0.5)
    return uniform_initializer(kernel * kernel * inputs)


def uniform_initializer(fan_in: int) -> keras.initializers.Initializer:
    """Return PyTorch's default for kernels and biases: uniform within 1 / sqrt(fan-in)."""
    return RandomUniform(-(fan_in**-0.5), fan_in**-0.5)


def last_gamma(initial: str) -> str:
    """Return the initializer of gamma in the last norm of a residual block.

    With "zeros" a block starts as the identity (Goyal et al. 2017, arXiv:1706.02677, section 5.1).
    """
    return "zeros" if initial == "kaiming" else "ones"


def convolution(
    inputs: keras.KerasTensor, channels: int, kernel: int, name: str, initial: str, stride: int = 1, dilation: int = 1
) -> keras.KerasTensor:
    """Apply a convolution without bias to (N, H, W, C) inputs.

    Both sides are padded by dilation * (kernel // 2), as in PyTorch. The layer is called `name`.
    """
    if stride > 1 and kernel > 1:
        # padding="same" would put the odd row and column of a strided convolution at the other end. At stride 1 both
        # paddings are equal, and "same" saves a copy.
        inputs = keras.layers.ZeroPadding2D(dilation * (kernel // 2), name=f"{name}.pad")(inputs)
    if stride > 1 and kernel == 1:
        # Subsampling first gives the same result. TensorFlow 2.21's CPU kernel for the gradient of a strided 1x1
        # convolution writes out of bounds at batch 1.
        inputs = keras.layers.MaxPooling2D(1, strides=stride, name=f"{name}.subsample")(inputs)
        stride = 1
    return Convolution(
        channels,
        kernel,
        strides=stride,
        dilation_rate=dilation,
        padding="same" if stride == 1 else "valid",
        use_bias=False,
        kernel_initializer=kernel_initializer(initial, kernel, inputs.shape[-1], channels),
        name=name,
    )(inputs)


def norm_relu(inputs: keras.KerasTensor, name: str, activation: str) -> keras.KerasTensor:
    """Apply batch normalization (layer `name`) and ReLU (layer `activation`)."""
    outputs = BatchNormalization(name=name)(inputs)
    return keras.layers.Activation("relu", name=activation)(outputs)


def conv_bn_relu(
    inputs: keras.KerasTensor, channels: int, kernel: int, name: str, initial: str, dilation: int = 1
) -> keras.KerasTensor:
    """Apply a convolution without bias, batch normalization and ReLU to (N, H, W, C) inputs.

    The layers are called `name`.conv, `name`.bn and `name`.relu.
    """
    outputs = convolution(inputs, channels, kernel, f"{name}.conv", initial, dilation=dilation)
    return norm_relu(outputs, f"{name}.bn", f"{name}.relu")


def separable_bn_relu(
    inputs: keras.KerasTensor, channels: int, name: str, initial: str, dilation: int = 1
) -> keras.KerasTensor:
    """Apply a 3x3 depthwise and a 1x1 convolution to (N, H, W, C) inputs.

    Batch normalization and ReLU follow both convolutions. The layers are called `name`.depthwise_conv.{conv,bn,relu}
    and `name`.pointwise_conv.{conv,bn,relu}.
    """
    depthwise = f"{name}.depthwise_conv"
    outputs = DepthwiseConvolution(
        3,
        dilation_rate=dilation,
        padding="same",
        use_bias=False,
        depthwise_initializer=kernel_initializer(initial, 3, 1, inputs.shape[-1]),
        name=f"{depthwise}.conv",
    )(inputs)
    outputs = norm_relu(outputs, f"{depthwise}.bn", f"{depthwise}.relu")
    return conv_bn_relu(outputs, channels, 1, f"{name}.pointwise_conv", initial)


def classifier(inputs: keras.KerasTensor, classes: int, dropout: float, name: str, initial: str) -> keras.KerasTensor:
    """Return float32 class logits (N, H, W, classes) of (N, H, W, C) features.

    Channel dropout precedes a 1x1 convolution with bias. The layers are called `name`.dropout and `name`.conv_seg.
    """
    outputs = ChannelDropout(dropout, name=f"{name}.dropout")(inputs)
    kaiming = initial == "kaiming"
    uniform = uniform_initializer(inputs.shape[-1])
    return keras.layers.Conv2D(
        classes,
        1,
        kernel_initializer=RandomNormal(stddev=0.01) if kaiming else uniform,
        bias_initializer="zeros" if kaiming else uniform.clone(),
        dtype="float32",
        name=f"{name}.conv_seg",
    )(outputs)


def plain_convolution(inputs: keras.KerasTensor, channels: int, name: str) -> keras.KerasTensor:
    """Apply a 1x1 convolution with bias, which both systems initialize with PyTorch's default."""
    uniform = uniform_initializer(inputs.shape[-1])
    return keras.layers.Conv2D(channels, 1, kernel_initializer=uniform, bias_initializer=uniform.clone(), name=name)(
        inputs
    )


def dense(inputs: keras.KerasTensor, units: int, name: str, dtype: str | None = None) -> keras.KerasTensor:
    """Apply a dense layer, which both systems initialize with PyTorch's default."""
    uniform = uniform_initializer(inputs.shape[-1])
    return keras.layers.Dense(
        units, kernel_initializer=uniform, bias_initializer=uniform.clone(), dtype=dtype, name=name
    )(inputs)
