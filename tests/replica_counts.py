"""Counts a folder on virtual devices, or as one of several hosts, and writes the counts to files.

Run in a process of its own, since devices have to be made before the first tensor:
python tests/replica_counts.py DIRECTORY OUT REPLICAS:SETTING ...
"""

import sys

import counted_pictures
import numpy as np
import tensorflow as tf

from kseg import runtime
from kseg.counts import Counter


def main(directory, out, *cases):
    numbers = [int(case.partition(":")[0]) for case in cases]
    strategy = runtime.claim_hosts(max(numbers))
    for number, case in zip(numbers, cases):
        name = case.partition(":")[2]
        if number < max(numbers):
            strategy = tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(number)])
        settings = counted_pictures.config(directory, counted_pictures.SETTINGS[name])
        with strategy.scope():
            model = counted_pictures.model(settings)
        counter = Counter(model, settings, counted_pictures.CLASSES, strategy)
        # Twice: the second count begins at nothing.
        first, counts = counter.count("val"), counter.count("val")
        assert (first.bands == counts.bands).all()
        if runtime.is_chief(strategy):
            np.savez(f"{out}-{name}.npz", replicas=strategy.num_replicas_in_sync, **counts._asdict())


if __name__ == "__main__":
    main(*sys.argv[1:])
