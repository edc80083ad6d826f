"""Dilated residual networks (He et al. 2016, arXiv:1512.03385; dilation as in Yu et al. 2017, arXiv:1705.09914).

Layer names are `backbone.` and the module paths of MMSegmentation and torchvision, so that weights have the same names
in all three.
"""

import re

import keras

from kseg.config.sections import Model
from kseg.errors import ConfigError
from kseg.models.blocks import convolution, last_gamma, norm_relu
from kseg.models.norms import BatchNormalization

# Backbone -> number of blocks in the four stages, and whether the blocks are bottlenecks of three convolutions.
BACKBONES = {"resnet18": ((2, 2, 2, 2), False), "resnet50": ((3, 4, 6, 3), True), "resnet101": ((3, 4, 23, 3), True)}

# Output stride -> strides and dilations of the four stages.
STAGES = {8: ((1, 2, 1, 1), (1, 1, 2, 4)), 16: ((1, 2, 2, 1), (1, 1, 1, 2))}

# Matches the last layer of every residual block.
BLOCK_END = re.compile(r"backbone\.layer\d\.\d+\.relu")


def resnet(images: keras.KerasTensor, model: Model) -> list[keras.KerasTensor]:
    """Apply a dilated ResNet and return the outputs of its four stages.

    Args:
        images: Normalized images (N, H, W, 3).
        model: The `model` section of a config.

    Returns:
        Four feature maps (N, h, w, C). Their strides are 4, 8, 8, 8 at output stride 8 and 4, 8, 16, 16 at 16. Their
        channels are width * (1, 2, 4, 8), times 4 for bottleneck backbones.

    Raises:
        ConfigError: `model.multi_grid` does not have one dilation for every block of the last stage.

    Example:
        >>> import keras
        >>> from kseg.config.sections import Model
        >>> from kseg.models.resnet import resnet
        >>> features = resnet(keras.Input((64, 96, 3)), Model(backbone="resnet18", width=4))
        >>> [stage.shape for stage in features]
        [(None, 16, 24, 4), (None, 8, 12, 8), (None, 8, 12, 16), (None, 8, 12, 32)]
    """
    _, bottleneck = BACKBONES[model.backbone]
    strides, _ = STAGES[model.output_stride]
    outputs = _deep_stem(images, model) if model.stem == "deep" else _plain_stem(images, model)
    # The inputs are not negative, so zero padding equals the padding with minus infinity of PyTorch's pooling.
    outputs = keras.layers.ZeroPadding2D(1, name="backbone.maxpool.pad")(outputs)
    outputs = keras.layers.MaxPooling2D(3, strides=2, name="backbone.maxpool")(outputs)
    stages = []
    for stage in range(4):
        for block, dilation in enumerate(block_dilations(model, stage)):
            residual = _bottleneck_block if bottleneck else _basic_block
            outputs = residual(
                outputs,
                model,
                model.width * 2**stage,
                strides[stage] if block == 0 else 1,
                dilation,
                f"backbone.layer{stage + 1}.{block}",
            )
        stages.append(outputs)
    return stages


def residual_blocks(network: keras.Model) -> list[tuple[keras.KerasTensor, keras.KerasTensor]]:
    """Return the (input, output) tensors of a network's residual blocks, first to last."""
    edges = [network.get_layer("backbone.maxpool").output]
    edges += [layer.output for layer in network.layers if BLOCK_END.fullmatch(layer.name)]
    return list(zip(edges, edges[1:]))


def block_dilations(model: Model, stage: int) -> list[int]:
    """Return the dilations of the blocks of a stage, which is 0 to 3.

    Multi-grid dilations (Chen et al. 2017, arXiv:1706.05587, section 3.2.1) are absolute here, as in MMSegmentation.
    Raises ConfigError if `model.multi_grid` does not have one dilation for every block of the last stage.
    """
    blocks, dilation = BACKBONES[model.backbone][0][stage], STAGES[model.output_stride][1][stage]
    if stage == 3 and model.multi_grid:
        if len(model.multi_grid) != blocks:
            raise ConfigError(
                f"model.multi_grid needs {blocks} dilations, one for every block of "
                f"{model.backbone}'s last stage; got {model.multi_grid}"
            )
        return list(model.multi_grid)
    first = dilation // 2 if dilation > 1 and model.contract_dilation else dilation
    return [first] + [dilation] * (blocks - 1)


def _plain_stem(images, model):
    """Apply one 7x7 convolution with stride 2 (v1, v1b, torchvision)."""
    outputs = convolution(
        images, model.stem_channels or model.width, 7, "backbone.conv1", model.initial_weights, stride=2
    )
    return norm_relu(outputs, "backbone.bn1", "backbone.bn1.relu")


def _deep_stem(images, model):
    """Apply three 3x3 convolutions, the first with stride 2 (v1c; He et al. 2019, arXiv:1812.01187, figure 2)."""
    outputs, width = images, model.stem_channels or model.width
    for index, (channels, stride) in enumerate(((width // 2, 2), (width // 2, 1), (width, 1))):
        # In PyTorch's sequence every convolution, norm and ReLU has an index of its own.
        outputs = convolution(outputs, channels, 3, f"backbone.stem.{3 * index}", model.initial_weights, stride=stride)
        norm = f"backbone.stem.{3 * index + 1}"
        outputs = norm_relu(outputs, norm, f"{norm}.relu")
    return outputs


def _shortcut(inputs, model, channels, stride, name):
    """Return the inputs, or a 1x1 convolution of them if the stride or the channels change.

    In v1d the convolution follows an average pooling instead of having a stride.
    """
    if stride == 1 and inputs.shape[-1] == channels:
        return inputs
    index = 0
    if model.downsample == "average":
        index = 1
        if stride > 1:
            # "same" padding excludes the padded positions from the averages at the end of an odd side.
            inputs = keras.layers.AveragePooling2D(stride, padding="same", name=f"{name}.downsample.0")(inputs)
            stride = 1
    outputs = convolution(inputs, channels, 1, f"{name}.downsample.{index}", model.initial_weights, stride=stride)
    return BatchNormalization(name=f"{name}.downsample.{index + 1}")(outputs)


def _add_relu(branch, shortcut, name):
    outputs = keras.layers.Add(name=f"{name}.add")([branch, shortcut])
    return keras.layers.Activation("relu", name=f"{name}.relu")(outputs)


def _basic_block(inputs, model, planes, stride, dilation, name):
    """Apply two 3x3 convolutions, of which the first has the stride and the dilation."""
    initial = model.initial_weights
    outputs = convolution(inputs, planes, 3, f"{name}.conv1", initial, stride=stride, dilation=dilation)
    outputs = norm_relu(outputs, f"{name}.bn1", f"{name}.bn1.relu")
    outputs = convolution(outputs, planes, 3, f"{name}.conv2", initial)
    outputs = BatchNormalization(gamma_initializer=last_gamma(initial), name=f"{name}.bn2")(outputs)
    return _add_relu(outputs, _shortcut(inputs, model, planes, stride, name), name)


def _bottleneck_block(inputs, model, planes, stride, dilation, name):
    """Apply 1x1, 3x3 and 1x1 convolutions.

    The 3x3 convolution is dilated. It has the stride, or with `model.stride_on` "1x1" the first one has it.
    """
    initial = model.initial_weights
    first_stride, second_stride = (stride, 1) if model.stride_on == "1x1" else (1, stride)
    outputs = convolution(inputs, planes, 1, f"{name}.conv1", initial, stride=first_stride)
    outputs = norm_relu(outputs, f"{name}.bn1", f"{name}.bn1.relu")
    outputs = convolution(outputs, planes, 3, f"{name}.conv2", initial, stride=second_stride, dilation=dilation)
    outputs = norm_relu(outputs, f"{name}.bn2", f"{name}.bn2.relu")
    outputs = convolution(outputs, 4 * planes, 1, f"{name}.conv3", initial)
    outputs = BatchNormalization(gamma_initializer=last_gamma(initial), name=f"{name}.bn3")(outputs)
    return _add_relu(outputs, _shortcut(inputs, model, 4 * planes, stride, name), name)
