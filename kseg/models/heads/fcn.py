"""Fully convolutional heads (Long et al. 2015, arXiv:1411.4038): a main head, and the auxiliary one of every model."""

import keras

from kseg.config import Model
from kseg.models.blocks import classifier, conv_bn_relu


def fcn(features: list, classes: int, model: Model) -> dict:
    """Return {"main": logits} at the stride of stage 4: 3x3 convolutions, optionally joined by the stage itself."""
    outputs = features[3]
    for index in range(model.fcn.convolutions):
        outputs = conv_bn_relu(outputs, model.channels, 3, f"decode_head.convs.{index}", model.initial_weights)
    if model.fcn.concat_input:
        outputs = keras.layers.Concatenate(name="decode_head.concat")([features[3], outputs])
        outputs = conv_bn_relu(outputs, model.channels, 3, "decode_head.conv_cat", model.initial_weights)
    return {"main": classifier(outputs, classes, model.dropout, "decode_head", model.initial_weights)}


def auxiliary(features: list, classes: int, model: Model):
    """Return the auxiliary logits on stage 3, for the loss alone (Zhao et al. 2017, arXiv:1612.01105, section 3.3)."""
    outputs = conv_bn_relu(features[2], model.auxiliary_channels, 3, "auxiliary_head.convs.0",
                           model.initial_weights)
    return classifier(outputs, classes, model.dropout, "auxiliary_head", model.initial_weights)
