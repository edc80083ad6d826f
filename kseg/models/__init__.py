"""Functional segmentation models: one backbone, one main head, one auxiliary head.

To add a head: one function `(features, classes, model) -> {"main": logits, ...}`, one line in HEADS, one config.
"""

import keras

from kseg.config import Model
from kseg.errors import ConfigError, unknown
from kseg.models.encnet import encnet
from kseg.models.fcn import auxiliary, fcn
from kseg.models.resnet import BACKBONES, resnet

HEADS = {"encnet": encnet, "fcn": fcn}


def build(model: Model, classes: int, size: tuple = (None, None)) -> keras.Model:
    """Return the functional model of normalised float32 NHWC images.

    Its output is a dict of float32 logits: "main" (N, h, w, classes) at the head's stride, "aux" at the stride of
    stage 3 where model.auxiliary_channels is above 0, and "se" (N, classes) from EncNet. `size` is the (height, width)
    of the input; None leaves a side open. Raises ConfigError for an unknown backbone or head.
    """
    for kind, name, choices in (("backbone", model.backbone, BACKBONES), ("head", model.head, HEADS)):
        if name not in choices:
            raise ConfigError(unknown(f"model.{kind}", name, choices))
    images = keras.Input((*size, 3), name="images")
    features = resnet(images, model)
    outputs = HEADS[model.head](features, classes, model)
    if model.auxiliary_channels:
        outputs["aux"] = auxiliary(features, classes, model)
    return keras.Model(images, outputs, name=f"{model.head}_{model.backbone}_os{model.output_stride}")
