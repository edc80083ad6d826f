"""DeepLabV3+ (Chen et al. 2018) for images of one's own, in the `folder` layout.

    python -m kseg.train --config deeplabv3plus --set data.directory=DATA init.backbone=resnet18

The values that the heads share, and their reasons, are in kseg.config.own_images.
"""

from kseg.config import Config, Deeplab, Model
from kseg.config.own_images import AUXILIARY_CHANNELS, BACKBONE, CHANNELS, own_images


def config() -> Config:
    return own_images(
        Model(
            backbone=BACKBONE,
            stem="7x7",
            output_stride=16,
            head="deeplabv3plus",
            channels=CHANNELS,
            auxiliary_channels=AUXILIARY_CHANNELS,
            # A quarter of the published number, as in the other layers of the head.
            deeplab=Deeplab(shortcut_channels=12),
        )
    )
