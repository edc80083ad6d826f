"""Open the splits that a config names."""

import tensorflow as tf

from kseg.config import Config
from kseg.datasets import registry
from kseg.datasets.registry import Split
from kseg.input_pipeline import batching


def train_split(config: Config) -> Split:
    return registry.open_split(config.data, config.data.train_split)


def val_split(config: Config) -> Split:
    return registry.open_split(config.data, config.data.val_split)


def train_batches(config: Config, *arguments, **options) -> tf.data.Dataset:
    """Return `batching.train_batches` of the config's training split."""
    return batching.train_batches(train_split(config), config, *arguments, **options)


def step_indices(config: Config, step: int) -> list[int]:
    """Return the indices of the training examples in the batch of a step, none of them skipped."""
    return batching.batch_indices(len(train_split(config).names), config.train, step)


def unread_split(name: str) -> Split:
    """Return a split of a dataset of a name, for code that reads none of its examples."""
    return Split("train", registry.DATASETS[name], "", (), (), lambda index: (index, index))
