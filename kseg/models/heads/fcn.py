"""Fully convolutional heads (Long et al. 2015, arXiv:1411.4038): a main head and the auxiliary head."""

import keras

from kseg.config.sections import Model
from kseg.models.blocks import classifier, conv_bn_relu


def fcn(features: list[keras.KerasTensor], classes: int, model: Model) -> dict[str, keras.KerasTensor]:
    """Apply 3x3 convolutions to stage 4, optionally joined with stage 4 itself.

    Args:
        features: Outputs (N, h, w, C) of the backbone's four stages.
        classes: Number of classes.
        model: The `model` section of a config; `model.fcn` has the options of this head.

    Returns:
        {"main": float32 logits (N, h, w, classes) at the stride of stage 4}.

    Example:
        >>> import keras
        >>> from kseg.config.sections import Model
        >>> from kseg.models.heads.fcn import fcn
        >>> features = [keras.Input((side, side, 8)) for side in (16, 8, 8, 8)]
        >>> fcn(features, classes=2, model=Model(channels=4))["main"].shape
        (None, 8, 8, 2)
    """
    outputs = features[3]
    for index in range(model.fcn.convolutions):
        outputs = conv_bn_relu(outputs, model.channels, 3, f"decode_head.convs.{index}", model.initial_weights)
    if model.fcn.concat_input:
        outputs = keras.layers.Concatenate(name="decode_head.concat")([features[3], outputs])
        outputs = conv_bn_relu(outputs, model.channels, 3, "decode_head.conv_cat", model.initial_weights)
    return {"main": classifier(outputs, classes, model.dropout, "decode_head", model.initial_weights)}


def auxiliary(features: list[keras.KerasTensor], classes: int, model: Model) -> keras.KerasTensor:
    """Return auxiliary logits on stage 3 for the loss (Zhao et al. 2017, arXiv:1612.01105, section 4).

    Args:
        features: Outputs (N, h, w, C) of the backbone's four stages.
        classes: Number of classes.
        model: The `model` section of a config.

    Returns:
        Float32 logits (N, h, w, classes) at the stride of stage 3.
    """
    outputs = conv_bn_relu(features[2], model.auxiliary_channels, 3, "auxiliary_head.convs.0", model.initial_weights)
    return classifier(outputs, classes, model.dropout, "auxiliary_head", model.initial_weights)
