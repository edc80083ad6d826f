"""The ways of writing a convolution, with the initial weights of the original systems.

`initial` is the config's model.initial_weights: "kaiming" as MMSegmentation's ConvModule, "uniform" as PyTorch's own
layers, which SSSegmentation leaves as they are.
"""

import keras
from keras.initializers import RandomNormal, RandomUniform

from kseg.models.layers import ChannelDropout, Convolution, DepthwiseConvolution
from kseg.models.norms import BatchNormalization


def kernel_initializer(initial: str, kernel: int, inputs: int, outputs: int) -> keras.initializers.Initializer:
    """Return the initializer of a kernel x kernel convolution from `inputs` to `outputs` channels.

    "kaiming" is normal over the fan-out (He et al. 2015, arXiv:1502.01852, equation 14), "uniform" lies within
    1 / sqrt(fan-in). A depthwise kernel has one input and, as both systems count it, all channels as outputs.
    """
    if initial == "kaiming":
        return RandomNormal(stddev=(2 / (kernel * kernel * outputs)) ** 0.5)
    return uniform_initializer(kernel * kernel * inputs)


def uniform_initializer(fan_in: int) -> keras.initializers.Initializer:
    """Return PyTorch's default for kernels and biases: uniform within 1 / sqrt(fan-in)."""
    return RandomUniform(-(fan_in**-0.5), fan_in**-0.5)


def last_gamma(initial: str) -> str:
    """Return the first gamma of a residual block's last norm: with 0 a block starts as the identity.

    Source: Goyal et al. 2017, arXiv:1706.02677, section 5.1.
    """
    return "zeros" if initial == "kaiming" else "ones"


def convolution(inputs, channels, kernel, name, initial, stride=1, dilation=1):
    """Return a convolution without bias, padded symmetrically by dilation * (kernel // 2), as PyTorch pads.

    Keras' padding="same" puts the odd row and column of a strided convolution at the other end, hence the explicit
    padding there; at stride 1 both are equal and "same" saves a copy.
    """
    if stride > 1 and kernel > 1:
        inputs = keras.layers.ZeroPadding2D(dilation * (kernel // 2), name=f"{name}.pad")(inputs)
    if stride > 1 and kernel == 1:
        # The same numbers; TensorFlow 2.21's CPU kernel for the gradient of a strided 1x1 convolution writes outside
        # its memory at batch 1.
        inputs = keras.layers.MaxPooling2D(1, strides=stride, name=f"{name}.subsample")(inputs)
        stride = 1
    return Convolution(
        channels, kernel, strides=stride, dilation_rate=dilation, padding="same" if stride == 1 else "valid",
        use_bias=False, kernel_initializer=kernel_initializer(initial, kernel, inputs.shape[-1], channels),
        name=name)(inputs)


def norm_relu(inputs, name, activation):
    """Return batch normalisation and ReLU; the layers are `name` and `activation`."""
    outputs = BatchNormalization(name=name)(inputs)
    return keras.layers.Activation("relu", name=activation)(outputs)


def conv_bn_relu(inputs, channels, kernel, name, initial, dilation=1):
    """Return convolution without bias, batch normalisation, ReLU; the layers are `name`.conv and `name`.bn."""
    outputs = convolution(inputs, channels, kernel, f"{name}.conv", initial, dilation=dilation)
    return norm_relu(outputs, f"{name}.bn", f"{name}.relu")


def separable_bn_relu(inputs, channels, name, initial, dilation=1):
    """Return a 3x3 depthwise and a 1x1 convolution, each with batch normalisation and ReLU.

    The layers are `name`.depthwise_conv.{conv,bn} and `name`.pointwise_conv.{conv,bn}.
    """
    depthwise = f"{name}.depthwise_conv"
    outputs = DepthwiseConvolution(
        3, dilation_rate=dilation, padding="same", use_bias=False,
        depthwise_initializer=kernel_initializer(initial, 3, 1, inputs.shape[-1]), name=f"{depthwise}.conv")(inputs)
    outputs = norm_relu(outputs, f"{depthwise}.bn", f"{depthwise}.relu")
    return conv_bn_relu(outputs, channels, 1, f"{name}.pointwise_conv", initial)


def classifier(inputs, classes, dropout, name, initial):
    """Return float32 class logits: channel dropout, then a 1x1 convolution with bias; the layer is `name`.conv_seg."""
    outputs = ChannelDropout(dropout, name=f"{name}.dropout")(inputs)
    kaiming = initial == "kaiming"
    first = uniform_initializer(inputs.shape[-1])
    return keras.layers.Conv2D(classes, 1, kernel_initializer=RandomNormal(stddev=0.01) if kaiming else first,
                               bias_initializer="zeros" if kaiming else first.clone(),
                               dtype="float32", name=f"{name}.conv_seg")(outputs)


def plain_convolution(inputs, channels, name):
    """Return a 1x1 convolution with bias, which both systems leave at PyTorch's initial weights."""
    first = uniform_initializer(inputs.shape[-1])
    return keras.layers.Conv2D(channels, 1, kernel_initializer=first, bias_initializer=first.clone(), name=name)(inputs)


def dense(inputs, units, name, dtype=None):
    """Return a dense layer, which both systems leave at PyTorch's initial weights."""
    first = uniform_initializer(inputs.shape[-1])
    return keras.layers.Dense(units, kernel_initializer=first, bias_initializer=first.clone(), dtype=dtype,
                              name=name)(inputs)
