"""PSPNet: pyramid scene parsing network (Zhao et al. 2017, arXiv:1612.01105)."""

import keras

from kseg.config import Model
from kseg.models.blocks import classifier, conv_bn_relu
from kseg.models.layers import AdaptiveAveragePooling, ResizeLike


def pspnet(features: list, classes: int, model: Model) -> dict:
    """Return {"main": logits at the stride of stage 4}: stage 4 beside its means over grids of several scales."""
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
