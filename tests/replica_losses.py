"""Trains 20 steps on one device and on two virtual ones, and prints both series of losses as JSON.

Run in a process of its own, since virtual devices have to be made before the first tensor:
python tests/replica_losses.py
"""

import json

import keras
import numpy as np
import tensorflow as tf

from kseg import train
from kseg.config import Config, Loss, Model, Train

STEPS, BATCH, CLASSES = 20, 4, 5
# About half of the 4 * 64 * 64 pixels are labelled at most, nearly all of them on one replica; 4 * 300 are the fewest
# that mining keeps.
LOSSES = {
    "valid": Loss(average="valid"),
    "all, mined below a threshold": Loss(average="all", ohem_kept=300, ohem_threshold=0.3),
    "kept, weighted and mined": Loss(average="kept", class_weights=(0.5, 1.0, 2.0, 0.1, 1.5), ohem_kept=300),
}


def batches(step):
    """A batch whose second half is mostly void, at odd steps wholly: means over each half are not the mean over all."""
    generator = np.random.default_rng(step)
    labels = generator.integers(0, CLASSES, (BATCH, 8, 8)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    images = generator.normal(0, 0.3, (BATCH, 64, 64, 3)) + labels[..., None] - 2
    labels[BATCH // 2:, 0 if step % 2 else 8:] = 255
    labels[0, :3] = 255
    return {"image": images.astype(np.float32), "label": labels, "index": np.arange(BATCH)}


def losses(strategy, loss):
    config = Config(model=Model(backbone="resnet18", width=8, channels=16, auxiliary_channels=8),
                    loss=loss, train=Train(global_batch=BATCH, steps=STEPS, learning_rate=0.02))
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model, optimizer = train.build(config, CLASSES, print)
    step = train.make_step(model, optimizer, config, strategy)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    data = tf.data.Dataset.from_tensor_slices(
        {name: np.concatenate([batches(index)[name] for index in range(STEPS)]) for name in ("image", "label", "index")}
    ).batch(BATCH).with_options(options)
    return [float(step(batch)["loss"]) for batch in strategy.experimental_distribute_dataset(data)]


def main():
    processor = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategies = {"one": tf.distribute.get_strategy(), "two": tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])}
    print(json.dumps({title: {name: losses(strategy, loss) for name, strategy in strategies.items()}
                      for title, loss in LOSSES.items()}))


if __name__ == "__main__":
    main()
