"""Functional segmentation models: one backbone, one main head, one auxiliary head.

To add a head: one function `(features, classes, model) -> {"main": logits, ...}`, one line in HEADS, one config.
"""

import contextlib
from collections.abc import Iterator

import keras

from kseg.config import Model
from kseg.errors import ConfigError, unknown
from kseg.models.gradient_checkpointing import Recomputing
from kseg.models.heads.apcnet import apcnet
from kseg.models.heads.deeplab import deeplabv3, deeplabv3plus
from kseg.models.heads.encnet import encnet
from kseg.models.heads.fcn import auxiliary, fcn
from kseg.models.heads.pspnet import pspnet
from kseg.models.resnet import BACKBONES, residual_blocks, resnet

HEADS = {"encnet": encnet, "deeplabv3": deeplabv3, "deeplabv3plus": deeplabv3plus, "apcnet": apcnet,
         "pspnet": pspnet, "fcn": fcn}


def build(model: Model, classes: int, size: tuple = (None, None), precision: str = "float32",
          recompute: bool = False) -> keras.Model:
    """Return the functional model of normalised float32 NHWC images.

    Its output is a dict of float32 logits: "main" (N, h, w, classes) at the head's stride, "aux" at the stride of
    stage 3 where model.auxiliary_channels is above 0, and "se" (N, classes) from EncNet. `size` is the (height, width)
    of the input; None leaves a side open. `precision` is the Keras dtype policy of the layers; variables and logits
    are float32 under each. With `recompute` training computes the insides of residual blocks again for their gradients
    instead of keeping them: the same numbers from the same weights. Raises ConfigError for an unknown backbone or head.
    """
    for kind, name, choices in (("backbone", model.backbone, BACKBONES), ("head", model.head, HEADS)):
        if name not in choices:
            raise ConfigError(unknown(f"model.{kind}", name, choices))
    with _policy(precision):
        images = keras.Input((*size, 3), name="images")
        features = resnet(images, model)
        outputs = HEADS[model.head](features, classes, model)
        if model.auxiliary_channels:
            outputs["aux"] = auxiliary(features, classes, model)
    network = keras.Model(images, outputs, name=f"{model.head}_{model.backbone}_os{model.output_stride}")
    return Recomputing(images, outputs, residual_blocks(network), network.name) if recompute else network


def main_only(model: keras.Model) -> keras.Model:
    """Return the part of a built model that inference needs, images -> main logits, sharing its variables.

    The auxiliary head and EncNet's presence layer serve the loss alone and are no part of it.
    """
    return keras.Model(model.input, model.output["main"], name=model.name)


@contextlib.contextmanager
def _policy(name: str) -> Iterator[None]:
    """Build layers under a dtype policy; Keras takes it from a global, which is put back."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
