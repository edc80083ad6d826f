"""Dilated residual networks (He et al. 2016, arXiv:1512.03385; dilation as in Yu et al. 2017, arXiv:1705.09914).

Layer names are the module paths of MMSegmentation and torchvision, under `backbone.`, so that a weight's name says
where it stands in either.
"""

import re

import keras

from kseg.config.sections import Model
from kseg.errors import ConfigError
from kseg.models.blocks import convolution, last_gamma, norm_relu
from kseg.models.norms import BatchNormalization

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

# The last layer of each residual block.
BLOCK_END = re.compile(r"backbone\.layer\d\.\d+\.relu")


def resnet(images, model: Model) -> list:
    """Return the outputs of the four stages for normalised NHWC images.

    Strides are 4, 8, 8, 8 at output stride 8 and 4, 8, 16, 16 at 16; channels are width * (1, 2, 4, 8), times 4 for
    the bottleneck networks. Raises ConfigError where model.multi_grid has not one dilation for each block.
    """
    _, bottleneck = BACKBONES[model.backbone]
    strides, _ = STAGES[model.output_stride]
    outputs = _deep_stem(images, model) if model.stem == "deep" else _plain_stem(images, model)
    # Its input is never negative, so padding with zeros is padding with minus infinity.
    outputs = keras.layers.ZeroPadding2D(1, name="backbone.maxpool.pad")(outputs)
    outputs = keras.layers.MaxPooling2D(3, strides=2, name="backbone.maxpool")(outputs)
    stages = []
    for stage in range(4):
        for block, dilation in enumerate(block_dilations(model, stage)):
            residual = _bottleneck_block if bottleneck else _basic_block
            outputs = residual(outputs, model, model.width * 2**stage, strides[stage] if block == 0 else 1, dilation,
                               f"backbone.layer{stage + 1}.{block}")
        stages.append(outputs)
    return stages


def residual_blocks(network: keras.Model) -> list[tuple]:
    """Return the (input, output) tensors of the residual blocks of a built network, first to last."""
    edges = [network.get_layer("backbone.maxpool").output]
    edges += [layer.output for layer in network.layers if BLOCK_END.fullmatch(layer.name)]
    return list(zip(edges, edges[1:]))


def block_dilations(model: Model, stage: int) -> list[int]:
    """Return the dilation of each block of a stage, counted from 0.

    Raises ConfigError where model.multi_grid has another length.
    Source of multi-grid: Chen et al. 2017, arXiv:1706.05587, section 3.2.1; its values are absolute here, as in
    MMSegmentation.
    """
    blocks, dilation = BACKBONES[model.backbone][0][stage], STAGES[model.output_stride][1][stage]
    if stage == 3 and model.multi_grid:
        if len(model.multi_grid) != blocks:
            raise ConfigError(f"model.multi_grid takes one dilation for each of the {blocks} blocks of "
                              f"{model.backbone}'s last stage, got {model.multi_grid}")
        return list(model.multi_grid)
    first = dilation // 2 if dilation > 1 and model.contract_dilation else dilation
    return [first] + [dilation] * (blocks - 1)


def _plain_stem(images, model):
    """One 7x7 convolution with stride 2 (v1, v1b, torchvision)."""
    outputs = convolution(images, model.stem_channels or model.width, 7, "backbone.conv1", model.initial_weights,
                          stride=2)
    return norm_relu(outputs, "backbone.bn1", "backbone.bn1.relu")


def _deep_stem(images, model):
    """Three 3x3 convolutions, the first with stride 2 (v1c, He et al. 2019, arXiv:1812.01187, figure 2)."""
    outputs, width = images, model.stem_channels or model.width
    for index, (channels, stride) in enumerate(((width // 2, 2), (width // 2, 1), (width, 1))):
        # A PyTorch sequence of convolution, norm, ReLU counts three places for each.
        outputs = convolution(outputs, channels, 3, f"backbone.stem.{3 * index}", model.initial_weights, stride=stride)
        norm = f"backbone.stem.{3 * index + 1}"
        outputs = norm_relu(outputs, norm, f"{norm}.relu")
    return outputs


def _shortcut(inputs, model, channels, stride, name):
    """The identity, or a 1x1 convolution where stride or channels change, strided or on averages (v1d)."""
    if stride == 1 and inputs.shape[-1] == channels:
        return inputs
    index = 0
    if model.downsample == "average":
        index = 1
        if stride > 1:
            # Averages of what there is: the last row and column of an odd side stand for themselves.
            inputs = keras.layers.AveragePooling2D(stride, padding="same", name=f"{name}.downsample.0")(inputs)
            stride = 1
    outputs = convolution(inputs, channels, 1, f"{name}.downsample.{index}", model.initial_weights, stride=stride)
    return BatchNormalization(name=f"{name}.downsample.{index + 1}")(outputs)


def _add_relu(branch, shortcut, name):
    outputs = keras.layers.Add(name=f"{name}.add")([branch, shortcut])
    return keras.layers.Activation("relu", name=f"{name}.relu")(outputs)


def _basic_block(inputs, model, planes, stride, dilation, name):
    """Two 3x3 convolutions; only the first strides and is dilated."""
    initial = model.initial_weights
    outputs = convolution(inputs, planes, 3, f"{name}.conv1", initial, stride=stride, dilation=dilation)
    outputs = norm_relu(outputs, f"{name}.bn1", f"{name}.bn1.relu")
    outputs = convolution(outputs, planes, 3, f"{name}.conv2", initial)
    outputs = BatchNormalization(gamma_initializer=last_gamma(initial), name=f"{name}.bn2")(outputs)
    return _add_relu(outputs, _shortcut(inputs, model, planes, stride, name), name)


def _bottleneck_block(inputs, model, planes, stride, dilation, name):
    """1x1, 3x3 and 1x1 convolutions; the 3x3 is dilated, and it or the first strides."""
    initial = model.initial_weights
    first, second = (stride, 1) if model.stride_on == "1x1" else (1, stride)
    outputs = convolution(inputs, planes, 1, f"{name}.conv1", initial, stride=first)
    outputs = norm_relu(outputs, f"{name}.bn1", f"{name}.bn1.relu")
    outputs = convolution(outputs, planes, 3, f"{name}.conv2", initial, stride=second, dilation=dilation)
    outputs = norm_relu(outputs, f"{name}.bn2", f"{name}.bn2.relu")
    outputs = convolution(outputs, 4 * planes, 1, f"{name}.conv3", initial)
    outputs = BatchNormalization(gamma_initializer=last_gamma(initial), name=f"{name}.bn3")(outputs)
    return _add_relu(outputs, _shortcut(inputs, model, 4 * planes, stride, name), name)
