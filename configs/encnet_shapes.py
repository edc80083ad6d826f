"""EncNet on the built-in synthetic dataset, for `make demo` and smoke tests.

    python -m kseg.train --config encnet_shapes --workdir runs/shapes

docs/results.md lists the result of `make demo` with its hardware and time.
"""

from kseg.config import Augment, Config, Data, Model, Train


def config() -> Config:
    return Config(
        data=Data(name="shapes"),
        augment=Augment(crop=(128, 256)),
        model=Model(backbone="resnet18", width=32, output_stride=8, channels=64, auxiliary_channels=32),
        train=Train(
            global_batch=8,
            steps=300,
            learning_rate=0.05,
            warmup_steps=20,
            log_every=10,
            validate_every=100,
            checkpoint_every=100,
        ),
    )
