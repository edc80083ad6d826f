"""DeepLabV3 (Chen et al. 2017, arXiv:1706.05587) and DeepLabV3+ (Chen et al. 2018, arXiv:1802.02611)."""

import keras

from kseg.config.sections import Model
from kseg.models.blocks import classifier, conv_bn_relu, separable_bn_relu
from kseg.models.layers import AdaptiveAveragePooling, ResizeLike

# Output stride -> dilations of the pyramid (arXiv:1706.05587, section 3.3).
DILATIONS = {8: (1, 12, 24, 36), 16: (1, 6, 12, 18)}


def deeplabv3(features: list[keras.KerasTensor], classes: int, model: Model) -> dict[str, keras.KerasTensor]:
    """Apply atrous spatial pyramid pooling to stage 4 (arXiv:1706.05587, section 3.3).

    Args:
        features: Outputs (N, h, w, C) of the backbone's four stages.
        classes: Number of classes.
        model: The `model` section of a config; `model.deeplab` has the options of this head.

    Returns:
        {"main": float32 logits (N, h, w, classes) at the stride of stage 4}.

    Example:
        >>> import keras
        >>> from kseg.config.sections import Model
        >>> from kseg.models.heads.deeplab import deeplabv3
        >>> features = [keras.Input((side, side, 8)) for side in (16, 8, 8, 8)]
        >>> deeplabv3(features, classes=2, model=Model(channels=4))["main"].shape
        (None, 8, 8, 2)
    """
    outputs = _pyramid(features[3], model, separable=False)
    return {"main": classifier(outputs, classes, model.dropout, "decode_head", model.initial_weights)}


def deeplabv3plus(features: list[keras.KerasTensor], classes: int, model: Model) -> dict[str, keras.KerasTensor]:
    """Join a separable atrous pyramid on stage 4 with stage 1 (arXiv:1802.02611, section 3.1).

    Args:
        features: Outputs (N, h, w, C) of the backbone's four stages.
        classes: Number of classes.
        model: The `model` section of a config; `model.deeplab` has the options of this head.

    Returns:
        {"main": float32 logits (N, h, w, classes) at the stride of stage 1}. If `model.deeplab.shortcut_channels` is 0,
        stage 1 is not joined and the logits are at the stride of stage 4.

    Example:
        >>> import keras
        >>> from kseg.config.sections import Model
        >>> from kseg.models.heads.deeplab import deeplabv3plus
        >>> features = [keras.Input((side, side, 8)) for side in (16, 8, 8, 8)]
        >>> deeplabv3plus(features, classes=2, model=Model(channels=4))["main"].shape
        (None, 16, 16, 2)
    """
    initial = model.initial_weights
    outputs = _pyramid(features[3], model, separable=True)
    if model.deeplab.shortcut_channels:
        shortcut = conv_bn_relu(features[0], model.deeplab.shortcut_channels, 1, "decode_head.c1_bottleneck", initial)
        outputs = ResizeLike(model.align_corners, name="decode_head.c1_resize")([outputs, shortcut])
        outputs = keras.layers.Concatenate(name="decode_head.c1_concat")([outputs, shortcut])
    for index in (0, 1):
        outputs = separable_bn_relu(outputs, model.channels, f"decode_head.sep_bottleneck.{index}", initial)
    return {"main": classifier(outputs, classes, model.dropout, "decode_head", initial)}


def _pyramid(inputs: keras.KerasTensor, model: Model, separable: bool) -> keras.KerasTensor:
    """Join the mean of the image and one convolution per dilation, and reduce them by a 3x3 convolution."""
    channels, initial = model.channels, model.initial_weights
    mean = AdaptiveAveragePooling(1, name="decode_head.image_pool.0")(inputs)
    mean = conv_bn_relu(mean, channels, 1, "decode_head.image_pool.1", initial)
    branches = [ResizeLike(model.align_corners, name="decode_head.image_pool.resize")([mean, inputs])]
    for index, dilation in enumerate(model.deeplab.dilations or DILATIONS[model.output_stride]):
        name = f"decode_head.aspp_modules.{index}"
        if dilation == 1:
            branch = conv_bn_relu(inputs, channels, 1, name, initial)
        elif separable:
            branch = separable_bn_relu(inputs, channels, name, initial, dilation)
        else:
            branch = conv_bn_relu(inputs, channels, 3, name, initial, dilation)
        branches.append(branch)
    joined = keras.layers.Concatenate(name="decode_head.concat")(branches)
    return conv_bn_relu(joined, channels, 3, "decode_head.bottleneck", initial)
