"""PSPNet: pyramid scene parsing network (Zhao et al. 2017, arXiv:1612.01105)."""

import keras

from kseg.config.sections import Model
from kseg.models.blocks import classifier, conv_bn_relu
from kseg.models.layers import AdaptiveAveragePooling, ResizeLike


def pspnet(features: list[keras.KerasTensor], classes: int, model: Model) -> dict[str, keras.KerasTensor]:
    """Join stage 4 with its averages over grids of several scales (section 3.2).

    Args:
        features: Outputs (N, h, w, C) of the backbone's four stages.
        classes: Number of classes.
        model: The `model` section of a config; `model.pspnet` has the options of this head.

    Returns:
        {"main": float32 logits (N, h, w, classes) at the stride of stage 4}.

    Example:
        >>> import keras
        >>> from kseg.config.sections import Model
        >>> from kseg.models.heads.pspnet import pspnet
        >>> features = [keras.Input((side, side, 8)) for side in (16, 8, 8, 8)]
        >>> pspnet(features, classes=2, model=Model(channels=4))["main"].shape
        (None, 8, 8, 2)
    """
    inputs, initial = features[3], model.initial_weights
    branches = [inputs]
    for index, scale in enumerate(model.pspnet.pool_scales):
        name = f"decode_head.psp_modules.{index}"
        branch = AdaptiveAveragePooling(scale, name=f"{name}.0")(inputs)
        branch = conv_bn_relu(branch, model.channels, 1, f"{name}.1", initial)
        branches.append(ResizeLike(model.align_corners, name=f"{name}.resize")([branch, inputs]))
    outputs = keras.layers.Concatenate(name="decode_head.concat")(branches)
    outputs = conv_bn_relu(outputs, model.channels, 3, "decode_head.bottleneck", initial)
    return {"main": classifier(outputs, classes, model.dropout, "decode_head", initial)}
