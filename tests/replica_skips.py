"""Applies gradients on two virtual devices, one of which may not be finite, and prints every replica's state as JSON.

Run in a process of its own, since virtual devices have to be made before the first tensor:
python tests/replica_skips.py
"""

import json

import keras
import numpy as np
import tensorflow as tf

from kseg import train
from kseg.optimizers import MomentumSGD


def main():
    processor = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        variables = [keras.Variable(np.ones(2, np.float32), name="first"), keras.Variable(2.0, name="second")]
        optimizer = MomentumSGD(0.1, skip_nonfinite=True)
        optimizer.build(variables)

    @tf.function
    def step(odd):
        def replica_step():
            context = tf.distribute.get_replica_context()
            # The second replica's gradient of the first variable alone.
            first = tf.where(tf.equal(context.replica_id_in_sync_group, 1), tf.stack([1.0, odd]), tf.ones(2))
            gradients, skipped = train.all_or_none([first, tf.constant(1.0)], context)
            optimizer.apply(gradients, variables)
            return skipped

        return strategy.reduce("mean", strategy.run(replica_step), axis=None)

    found = {}
    for name, odd in (("infinite", np.inf), ("nan", np.nan), ("finite", 1.0)):
        skipped = float(step(tf.constant(odd, tf.float32)))
        state = {"first": variables[0], "second": variables[1], "first velocity": optimizer.velocities[0],
                 "second velocity": optimizer.velocities[1]}
        found[name] = {key: [value.numpy().tolist() for value in strategy.experimental_local_results(variable.value)]
                       for key, variable in state.items()} | {"skipped": skipped}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
