"""Open the splits that a config names."""

import tensorflow as tf

from kseg.config import Config
from kseg.datasets import registry
from kseg.datasets.registry import Split
from kseg.input_pipeline import batching
from kseg.input_pipeline.normalization import normalize_batch


def train_split(config: Config) -> Split:
    return registry.open_split(config.data, config.data.train_split)


def val_split(config: Config) -> Split:
    return registry.open_split(config.data, config.data.val_split)


def train_batches(config: Config, *arguments, **options) -> tf.data.Dataset:
    """Return `batching.train_batches` of the config's training split."""
    return batching.train_batches(train_split(config), config, *arguments, **options)


def network_inputs(batch: dict, config: Config) -> tf.Tensor:
    """Return the normalized images of a training batch, float32 (N, H, W, 3)."""
    return normalize_batch(batch["image"], batch["inside"], config.data.mean, config.data.std, config.augment.pad_color)


def step_indices(config: Config, step: int) -> list[int]:
    """Return the indices of the training examples in the batch of a step, none of them skipped."""
    return batching.batch_indices(len(train_split(config).names), config.train, step)


def unread_split(name: str) -> Split:
    """Return a split of a dataset of a name, for code that reads none of its examples."""
    return Split("train", registry.DATASETS[name], "", (), (), lambda index: (index, index))
