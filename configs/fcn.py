"""FCN (Long et al. 2015) for images of one's own, in the `folder` layout.

    python -m kseg.train --config fcn --set data.directory=DATA init.backbone=resnet18

The values that the heads share, and their reasons, are in kseg.config.own_images.
"""

from kseg.config import Config, Model
from kseg.config.own_images import AUXILIARY_CHANNELS, BACKBONE, CHANNELS, own_images


def config() -> Config:
    return own_images(
        Model(
            backbone=BACKBONE,
            stem="7x7",
            output_stride=16,
            head="fcn",
            channels=CHANNELS,
            auxiliary_channels=AUXILIARY_CHANNELS,
        )
    )
