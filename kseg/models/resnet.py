"""Dilated residual networks (He et al. 2016, arXiv:1512.03385; dilation as in Yu et al. 2017, arXiv:1705.09914).

Layer names are the module paths of MMSegmentation and torchvision, under `backbone.`, so that a weight's name says
where it stands in either.
"""

import keras

from kseg.config import Model
from kseg.models.layers import BatchNormalization, convolution

# Blocks of the four stages, and whether a block is the bottleneck of three convolutions.
BACKBONES = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
}

# Output stride -> strides and dilations of the four stages.
STAGES = {
    8: ((1, 2, 1, 1), (1, 1, 2, 4)),
    16: ((1, 2, 2, 1), (1, 1, 1, 2)),
}


def resnet(images, model: Model) -> list:
    """Return the outputs of the four stages for normalised NHWC images.

    Strides are 4, 8, 8, 8 at output stride 8 and 4, 8, 16, 16 at 16; channels are width * (1, 2, 4, 8), times 4 for
    the bottleneck networks.
    """
    blocks, bottleneck = BACKBONES[model.backbone]
    strides, dilations = STAGES[model.output_stride]
    outputs = _deep_stem(images, model.width) if model.stem == "deep" else _plain_stem(images, model.width)
    # Its input is never negative, so padding with zeros is padding with minus infinity.
    outputs = keras.layers.ZeroPadding2D(1, name="backbone.maxpool.pad")(outputs)
    outputs = keras.layers.MaxPooling2D(3, strides=2, name="backbone.maxpool")(outputs)
    stages = []
    for stage in range(4):
        for block in range(blocks[stage]):
            dilation = dilations[stage]
            if block == 0 and dilation > 1 and model.contract_dilation:
                dilation //= 2
            residual = _bottleneck_block if bottleneck else _basic_block
            outputs = residual(outputs, model.width * 2**stage, strides[stage] if block == 0 else 1, dilation,
                               f"backbone.layer{stage + 1}.{block}")
        stages.append(outputs)
    return stages


def _norm_relu(inputs, name):
    outputs = BatchNormalization(name=name)(inputs)
    return keras.layers.Activation("relu", name=f"{name}.relu")(outputs)


def _plain_stem(images, width):
    """One 7x7 convolution with stride 2 (v1b, torchvision)."""
    return _norm_relu(convolution(images, width, 7, "backbone.conv1", stride=2), "backbone.bn1")


def _deep_stem(images, width):
    """Three 3x3 convolutions, the first with stride 2 (v1c, He et al. 2019, arXiv:1812.01187, figure 2)."""
    outputs = images
    for index, (channels, stride) in enumerate(((width // 2, 2), (width // 2, 1), (width, 1))):
        # A PyTorch sequence of convolution, norm, ReLU counts three places for each.
        outputs = convolution(outputs, channels, 3, f"backbone.stem.{3 * index}", stride=stride)
        outputs = _norm_relu(outputs, f"backbone.stem.{3 * index + 1}")
    return outputs


def _shortcut(inputs, channels, stride, name):
    """The identity, or a 1x1 convolution where stride or channels change."""
    if stride == 1 and inputs.shape[-1] == channels:
        return inputs
    outputs = convolution(inputs, channels, 1, f"{name}.downsample.0", stride=stride)
    return BatchNormalization(name=f"{name}.downsample.1")(outputs)


def _add_relu(branch, shortcut, name):
    outputs = keras.layers.Add(name=f"{name}.add")([branch, shortcut])
    return keras.layers.Activation("relu", name=f"{name}.relu")(outputs)


def _basic_block(inputs, planes, stride, dilation, name):
    """Two 3x3 convolutions; only the first strides and is dilated."""
    outputs = convolution(inputs, planes, 3, f"{name}.conv1", stride=stride, dilation=dilation)
    outputs = _norm_relu(outputs, f"{name}.bn1")
    outputs = convolution(outputs, planes, 3, f"{name}.conv2")
    # A block starts as the identity (Goyal et al. 2017, arXiv:1706.02677, section 5.1).
    outputs = BatchNormalization(gamma_initializer="zeros", name=f"{name}.bn2")(outputs)
    return _add_relu(outputs, _shortcut(inputs, planes, stride, name), name)


def _bottleneck_block(inputs, planes, stride, dilation, name):
    """1x1, 3x3 and 1x1 convolutions; the 3x3 strides and is dilated."""
    outputs = _norm_relu(convolution(inputs, planes, 1, f"{name}.conv1"), f"{name}.bn1")
    outputs = convolution(outputs, planes, 3, f"{name}.conv2", stride=stride, dilation=dilation)
    outputs = _norm_relu(outputs, f"{name}.bn2")
    outputs = convolution(outputs, 4 * planes, 1, f"{name}.conv3")
    outputs = BatchNormalization(gamma_initializer="zeros", name=f"{name}.bn3")(outputs)
    return _add_relu(outputs, _shortcut(inputs, 4 * planes, stride, name), name)
