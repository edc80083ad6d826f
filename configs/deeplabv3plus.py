"""DeepLabV3+ (Chen et al. 2018) for images of one's own, in the `folder` layout.

    python -m kseg.train --config deeplabv3plus --set data.directory=DATA init.backbone=resnet18

The values that the heads share, and their reasons, are in kseg.config.own_images.
"""

from kseg.config import Config, Deeplab
from kseg.config.own_images import own_images


def config() -> Config:
    # A quarter of the published number, as in the other layers of the head.
    return own_images("deeplabv3plus", Deeplab(shortcut_channels=12))
