"""EncNet with ResNet-18 on CamVid (SegNet's split, 480x360, 11 classes).

    python -m kseg.train --config encnet_camvid --workdir runs/camvid

docs/results.md lists the results with their commands.
"""

from kseg.config import Augment, Config, Data, Model, Train


def config() -> Config:
    return Config(
        data=Data(name="camvid"),
        augment=Augment(crop=(256, 320)),
        # With one 7x7 convolution as stem, torchvision's ImageNet weights fit: --set init.backbone=FILE.
        model=Model(backbone="resnet18", stem="7x7", output_stride=16, channels=128, auxiliary_channels=64),
        train=Train(
            global_batch=8,
            steps=2400,
            learning_rate=0.02,
            warmup_steps=100,
            log_every=20,
            validate_every=400,
            checkpoint_every=200,
        ),
    )
