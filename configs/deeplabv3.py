"""DeepLabV3 (Chen et al. 2017) for images of one's own, in the `folder` layout.

    python -m kseg.train --config deeplabv3 --set data.directory=DATA init.backbone=resnet18

The values that the heads share, and their reasons, are in kseg.config.own_images.
"""

from kseg.config import Config
from kseg.config.own_images import own_images


def config() -> Config:
    return own_images("deeplabv3")
