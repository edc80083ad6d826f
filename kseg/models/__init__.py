"""Functional segmentation models: one backbone, one main head and one optional auxiliary head.

To add a head, write one function `(features, classes, model) -> {"main": logits, ...}`, add one line to HEADS and
write one config.
"""

import contextlib
from collections.abc import Iterator

import keras

from kseg.config.sections import Model
from kseg.errors import ConfigError, unknown
from kseg.models.gradient_checkpointing import Recomputing
from kseg.models.heads.apcnet import apcnet
from kseg.models.heads.deeplab import deeplabv3, deeplabv3plus
from kseg.models.heads.encnet import encnet
from kseg.models.heads.fcn import auxiliary, fcn
from kseg.models.heads.pspnet import pspnet
from kseg.models.resnet import BACKBONES, residual_blocks, resnet

HEADS = {
    "encnet": encnet,
    "deeplabv3": deeplabv3,
    "deeplabv3plus": deeplabv3plus,
    "apcnet": apcnet,
    "pspnet": pspnet,
    "fcn": fcn,
}


def build(
    model: Model,
    classes: int,
    size: tuple[int | None, int | None] = (None, None),
    precision: str = "float32",
    recompute: bool = False,
) -> keras.Model:
    """Build the functional model that a config's model section describes.

    Args:
        model: The `model` section of a config: backbone, head and their options.
        classes: Number of classes, which is the number of channels of the logits.
        size: (height, width) of the input in pixels. None leaves a side open until run time.
        precision: Keras dtype policy of the layers, such as "mixed_bfloat16". Variables and outputs stay float32.
        recompute: Whether training recomputes the activations inside residual blocks during the backward pass instead
            of storing them. The results are the same; memory is traded for time.

    Returns:
        A model from normalized float32 RGB images (N, height, width, 3) to a dict of float32 logits:

        - "main": (N, h, w, classes) at the stride of the head.
        - "aux": (N, h, w, classes) at the stride of stage 3, present if `model.auxiliary_channels` is above 0.
        - "se": class-presence logits (N, classes), present for EncNet with `model.encnet.se`.

    Raises:
        ConfigError: The backbone or the head is unknown, or `model.multi_grid` has the wrong length.

    Example:
        >>> from kseg import models
        >>> from kseg.config.sections import Model
        >>> tiny = Model(backbone="resnet18", width=4, head="fcn", channels=8, auxiliary_channels=0)
        >>> network = models.build(tiny, classes=2, size=(64, 96))
        >>> network.output["main"].shape
        (None, 8, 12, 2)
    """
    require_known(model)
    with _dtype_policy(precision):
        images = keras.Input((*size, 3), name="images")
        features = resnet(images, model)
        outputs = HEADS[model.head](features, classes, model)
        if model.auxiliary_channels:
            outputs["aux"] = auxiliary(features, classes, model)
    network = keras.Model(images, outputs, name=f"{model.head}_{model.backbone}_os{model.output_stride}")
    return Recomputing(images, outputs, residual_blocks(network), network.name) if recompute else network


def require_known(model: Model) -> None:
    """Raise ConfigError, with the choices, if a config names an unknown backbone or head.

    Args:
        model: The `model` section of a config.

    Raises:
        ConfigError: The backbone or the head is unknown.

    Example:
        >>> from kseg import models
        >>> from kseg.config.sections import Model
        >>> models.require_known(Model(backbone="resnet50", head="fcn"))
    """
    for kind, name, choices in (("backbone", model.backbone, BACKBONES), ("head", model.head, HEADS)):
        if name not in choices:
            raise ConfigError(unknown(f"model.{kind}", name, choices))


def main_only(model: keras.Model) -> keras.Model:
    """Return the inference part of a built model, from images to main logits.

    It shares the variables of `model`. The auxiliary head and EncNet's presence layer are excluded, because only the
    loss uses them.
    """
    return keras.Model(model.input, model.output["main"], name=model.name)


@contextlib.contextmanager
def _dtype_policy(name: str) -> Iterator[None]:
    """Set Keras' global dtype policy and restore the previous one on exit."""
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(previous)
