"""Train a network of three layers in place of the configured model.

    python -m tests.helpers.small_training ARGUMENTS

is `python -m kseg.train ARGUMENTS` with that network. Tests of the loop, its files and its data do not depend on the
model, whose compilation would take most of their time.
"""

import keras
import pytest

from kseg import cli, models, train
from kseg.models.layers import ChannelDropout
from kseg.models.norms import BatchNormalization

# Overrides for the network, which has no outputs but the main one, and for random crops as the only augmentation.
SMALL = [
    "loss.se=0",
    "augment.scale_range=1.0,1.0",
    "augment.cat_max_ratio=1.0",
    "augment.flip=0.0",
    "augment.photometric=false",
]


def small_network(config, classes, precision="float32", recompute=False):
    """Return a network with batch normalization and dropout; it stands for `models.build`, hence its arguments."""
    images = keras.Input((None, None, 3))
    # Its many weights make a checkpoint larger than the other files of a run, as those of a real model do.
    outputs = keras.layers.Conv2D(64, 8, strides=4, padding="same", use_bias=False, dtype=precision, name="first")(
        images
    )
    outputs = BatchNormalization(dtype=precision, name="norm")(outputs)
    outputs = ChannelDropout(config.dropout, name="dropout")(outputs)
    return keras.Model(images, {"main": keras.layers.Conv2D(classes, 1, name="last")(outputs)})


def build_small_networks(monkeypatch):
    """Make training build the small network."""
    monkeypatch.setattr(models, "build", small_network)


if __name__ == "__main__":
    build_small_networks(pytest.MonkeyPatch())
    cli.run(train.main)
