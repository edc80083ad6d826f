"""EncNet R-50-D8 on Cityscapes, 512x1024, 40k steps: MMSegmentation's recipe.

    python -m kseg.train --config encnet_cityscapes --workdir runs/cityscapes

Published (MMSegmentation, 4 GPUs x 2): 75.67 mIoU single scale, 77.08 multi-scale with flip.
"""

from kseg.config import Augment, Config, Data, Model, Train


def config() -> Config:
    return Config(
        data=Data(name="cityscapes"),
        augment=Augment(scale=(1024, 2048), crop=(512, 1024)),
        model=Model(backbone="resnet50", output_stride=8),
        train=Train(global_batch=8, steps=40_000),
    )
