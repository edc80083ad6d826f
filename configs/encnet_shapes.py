"""EncNet on the built-in synthetic set: the smoke test of the whole house.

    python -m kseg.train --config encnet_shapes --workdir runs/shapes

Hardware, time and result stand in the README, under "make demo".
"""

from kseg.config import Config
from kseg.config.sections import Augment, Data, Model, Train


def config() -> Config:
    return Config(
        data=Data(name="shapes"),
        augment=Augment(crop=(128, 256)),
        model=Model(backbone="resnet18", width=32, output_stride=8, channels=64, auxiliary_channels=32),
        train=Train(global_batch=8, steps=300, learning_rate=0.05, warmup_steps=20, log_every=10, validate_every=100,
                    checkpoint_every=100),
    )
