"""Write what a training leaves without training, for tests that need any model."""

import keras

from kseg import models
from kseg.datasets import registry
from kseg.training import working_directory
from kseg.weights import keras_files


def train(config, workdir, strategy):
    """Write initial weights in place of kseg.training.trainer.train."""
    keras.utils.set_random_seed(config.train.seed)
    dataset = registry.find_dataset(config.data)
    working_directory.open_workdir(workdir, config, dataset).close()
    keras_files.save_weights(models.build(config.model, len(dataset.classes)), workdir / "best.weights.h5")
    (workdir / "best.json").write_text("{}")
